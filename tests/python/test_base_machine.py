"""Instruction-set levels, core counts, memory, files, checked sizes and the error classes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import musespark
from musespark import _core
from musespark._core import testing

ORDER = ["amx", "avx512vnni", "avxvnni", "avx2", "i8mm", "neon", "scalar"]


def test_the_report_names_every_level_and_the_reason_for_each_absent_one() -> None:
    report = _core.isa_report()
    assert [name for name, _, _ in report] == ORDER
    for name, present, reason in report:
        assert present != bool(reason), name
    assert report[-1] == ("scalar", True, "")


def test_levels_agree_with_the_kernels_own_list() -> None:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        pytest.skip("no /proc/cpuinfo on this system")
    flags = next(
        (set(line.split()) for line in text.splitlines() if line.startswith("flags")), None
    )
    if flags is None:
        pytest.skip("/proc/cpuinfo has no x86 flags")
    base = {"avx2", "fma", "f16c", "bmi2"}
    wanted = {
        "avx2": base,
        "avxvnni": base | {"avx_vnni"},
        "avx512vnni": base | {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"},
    }
    present = {name: is_present for name, is_present, _ in _core.isa_report()}
    for name, needed in wanted.items():
        assert present[name] == (needed <= flags), name


MACHINE = [(name, name not in ("amx", "avxvnni")) for name in ORDER]


def test_levels_are_those_present_from_the_forced_one_down() -> None:
    choose = testing.choose_isa_levels
    assert choose(MACHINE, None) == ["avx512vnni", "avx2", "i8mm", "neon", "scalar"]
    assert choose(MACHINE, "avx2") == ["avx2", "i8mm", "neon", "scalar"]
    assert choose(MACHINE, "scalar") == ["scalar"]


@pytest.mark.parametrize("forced", ["avxvnni", "amx", "sse9", "", "AVX2", "avx2 "])
def test_forcing_an_absent_or_unknown_level_is_an_error(forced: str) -> None:
    with pytest.raises(musespark.Error, match="this machine has avx512vnni, avx2, i8mm") as caught:
        testing.choose_isa_levels(MACHINE, forced)
    assert f"MUSESPARK_ISA={forced}" in str(caught.value).replace("'", "")


def levels_with(forced: str) -> subprocess.CompletedProcess:
    code = "from musespark import _core; print(','.join(_core.isa_levels()))"
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MUSESPARK_ISA": forced},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_forcing_in_a_fresh_process() -> None:
    present = [name for name, is_present, _ in _core.isa_report() if is_present]
    for index, name in enumerate(present):
        result = levels_with(name)
        assert result.stdout.strip().split(",") == present[index:], result.stderr
    absent = next(name for name, is_present, _ in _core.isa_report() if not is_present)
    for name in (absent, "sse9"):
        result = levels_with(name)
        assert result.returncode != 0
        assert "musespark.errors.Error: MUSESPARK_ISA" in result.stderr


def group_tree(root: Path, membership: str, files: dict[str, str]) -> str:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(membership)
    for path, text in files.items():
        target = root / "sys/fs/cgroup" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    return str(root)


@pytest.mark.parametrize(
    ("membership", "files", "quota"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/a/b\n", {"a/b/cpu.max": "900000 100000\n", "a/cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1.0),
        ("0::/a\n", {"a/cpu.max": "max 100000\n"}, 0.0),
        ("0::/a\n", {"a/cpu.max": "nonsense\n"}, 0.0),
        ("0::/a\n", {}, 0.0),
        (
            "4:memory:/m\n3:cpu,cpuacct:/a\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "70000", "cpu,cpuacct/a/cpu.cfs_period_us": "50000"},
            1.4,
        ),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 0.0),
        ("nonsense\n", {}, 0.0),
    ],
)
def test_quota_of_control_groups(
    tmp_path: Path, membership: str, files: dict[str, str], quota: float
) -> None:
    cores = _core.count_cores(root=group_tree(tmp_path, membership, files))
    assert cores["quota"] == pytest.approx(quota)
    whole = max(1, int(quota)) if quota else cores["affinity"]
    assert cores["usable"] == min(whole, cores["affinity"])


def test_affinity_counts() -> None:
    code = "from musespark import _core; print(_core.count_cores()['affinity'])"
    allowed = sorted(os.sched_getaffinity(0))
    result = subprocess.run(
        [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{allowed[0]}}}); {code}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout.strip() == "1", result.stderr
    assert _core.count_cores()["affinity"] == len(allowed)


@pytest.mark.parametrize(
    "name",
    [
        "Error",
        "InvalidRequest",
        "UnsupportedModel",
        "CorruptFile",
        "ContextOverflow",
        "MemoryBudgetExceeded",
        "Cancelled",
        "DeadlineExceeded",
    ],
)
def test_core_exceptions_become_their_python_classes(name: str) -> None:
    with pytest.raises(musespark.Error, match="thrown by a test") as caught:
        testing.throw_error(name)
    assert type(caught.value) is getattr(musespark, name)
    if name == "ContextOverflow":
        assert (caught.value.needed, caught.value.limit) == (9, 4)


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_aligned_memory(size: int) -> None:
    misalignment, length, zero, moved_from = testing.aligned_buffer(size)
    assert (misalignment, length, zero, moved_from) == (0, size, True, 0)


@pytest.mark.parametrize("size", [1 << 62, (1 << 64) - 1, (1 << 63) - 1])
def test_impossible_allocations_raise_and_name_the_bytes(size: int) -> None:
    with pytest.raises(musespark.MemoryBudgetExceeded, match=str(size)):
        testing.refuse_allocation(size)


def test_mapped_files(tmp_path: Path) -> None:
    path = tmp_path / "päth with spaces"
    content = bytes(range(256)) * 33
    path.write_bytes(content)
    assert testing.read_mapped(str(path)) == content
    assert testing.read_mapped_slice(str(path), 5, 10) == content[5:15]
    assert testing.read_mapped_slice(str(path), len(content), 0) == b""
    path.write_bytes(b"")
    assert testing.read_mapped(str(path)) == b""


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 11), (11, 0), (5, 6), (1, 2**64 - 1), (2**63, 1)]
)
def test_a_slice_outside_the_file_is_corrupt(tmp_path: Path, offset: int, length: int) -> None:
    path = tmp_path / "ten"
    path.write_bytes(b"0123456789")
    with pytest.raises(musespark.CorruptFile, match=rf"payload covers bytes {offset} \+ {length}"):
        testing.read_mapped_slice(str(path), offset, length)


def test_files_that_cannot_be_mapped(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        testing.read_mapped(str(tmp_path / "missing"))
    assert caught.value.filename == str(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        testing.read_mapped(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="Invalid argument"):
        testing.read_mapped(str(tmp_path / "pipe"))
    with pytest.raises(OSError, match="Invalid argument"):
        testing.read_mapped("a\0b")


def test_checked_arithmetic() -> None:
    top = 2**63 - 1
    assert testing.checked_add(top - 1, 1) == top
    assert testing.checked_mul(-(2**31), 2**32) == -(2**63)
    assert testing.checked_narrow(255) == 255
    assert [testing.checked_round_up(v, 16) for v in (0, 1, 16, 17)] == [0, 16, 16, 32]
    with pytest.raises(musespark.Error, match=rf"sum: {top} \+ 1 does not fit"):
        testing.checked_add(top, 1)
    with pytest.raises(musespark.CorruptFile, match=r"product: .* does not fit"):
        testing.checked_mul(2**32, 2**31)
    for value in (256, -1):
        with pytest.raises(musespark.Error, match=f"byte: {value} does not fit"):
            testing.checked_narrow(value)
    with pytest.raises(musespark.Error, match="padded"):
        testing.checked_round_up(top, 16)


def test_build_info_is_complete() -> None:
    info = _core.build_info()
    for name in ("compiler", "build_type", "flags", "arch", "pybind11", "eigen", "xtensor", "blas"):
        assert info[name], name
    assert "-ffp-contract=off" in info["flags"]
    for forbidden in ("fast-math", "-march", "unsafe"):
        assert forbidden not in info["flags"] + info["kernel_flags"]
