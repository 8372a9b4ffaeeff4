"""The hot kernels take no more instructions than recorded (tests/golden/instruction_counts.json).

Times on a shared machine tell a change of 3% from noise in minutes or never; counts do in seconds,
though not what an instruction costs. The AVX2 level is the newest that valgrind knows.
"""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import pytest

from support.core_programs import absent, build, package_folder
from support.instruction_counts import AGAIN, Counts, count, differences, recorded

pytestmark = pytest.mark.timeout(600)  # the layers may have to be compiled first


@pytest.fixture(scope="module")
def program(repository: Path) -> Path:
    if os.environ.get("MUSESPARK_TEST_SANITIZED"):
        pytest.skip("the sanitizer's libraries are loaded into every program started here")
    if platform.machine() != "x86_64":
        pytest.skip("the AVX2 kernels are counted")
    if "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this machine has no AVX2")
    if shutil.which("valgrind") is None:
        absent("no valgrind on the path (.ci/system-packages)")
    return build("kernel_counts", repository, package_folder(repository))


def counted(program: Path, folder: Path, *arguments: str) -> Counts:
    now = count(program, str(shutil.which("valgrind")), folder, *arguments)
    if now.compiler != recorded().compiler:
        pytest.skip(
            f"built by {now.compiler}; the record is of {recorded().compiler}, and counts of "
            "different compilers say nothing about the kernels"
        )
    return now


def test_the_hot_kernels_take_the_instructions_that_are_recorded(program, tmp_path) -> None:
    now = counted(program, tmp_path)
    assert len(now.counts) == 6
    wrong = differences(recorded().counts, now.counts)
    assert not wrong, "\n".join([*wrong, AGAIN])


def test_six_percent_more_work_for_any_kernel_is_found(program, tmp_path) -> None:
    now = counted(program, tmp_path, "--more")
    assert len(differences(recorded().counts, now.counts)) == 6


def test_a_difference_is_more_than_three_percent_either_way() -> None:
    record = {"a": 1000, "b": 1000, "c": 1000, "d": 1000}
    assert differences(record, {"a": 1030, "b": 970, "c": 1000, "d": 1000}) == []
    assert differences(record, {"a": 1031, "b": 969, "c": 1000, "e": 5}) == [
        "d: only in the record",
        "e: not in the record",
        "a: 1,000 -> 1,031 instructions (+3.1%)",
        "b: 1,000 -> 969 instructions (-3.1%)",
    ]


def test_another_compiler_is_a_reason_to_skip(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(globals(), "count", lambda *_: Counts("Clang 99", {}))
    with pytest.raises(pytest.skip.Exception, match="built by Clang 99; the record is of"):
        counted(Path("program"), tmp_path)
