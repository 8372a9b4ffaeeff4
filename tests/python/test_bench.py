"""``musespark bench``: its report, the machine's limits, and what a model asks of the machine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest

from musespark.cli import bench, limits, main, work
from musespark.families.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec
from musespark.families.tensors import canonical_shapes
from support.compare import assert_within

FAST = ["-d", "4", "-r", "1", "--context", "100", "--threads", "1", "--json"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSESPARK_CACHE", str(tmp_path / "cache"))


def report_of(capsys, *arguments: str) -> dict:
    assert main(["bench", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def probe(tmp_path_factory) -> limits.Limits:
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        pytest.skip("no C compiler")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUSESPARK_CACHE", str(tmp_path_factory.mktemp("cache")))
        opened = limits.Limits()
        opened.path = limits.binary()
    with opened:
        yield opened


# ---- the report ---------------------------------------------------------------------------------


def test_bench_measures_what_it_was_asked(capsys):
    report = report_of(capsys, *FAST, "-p", "8", "16", "-b", "2", "-r", "2", "--no-limits")
    rows = report["rows"]
    assert [row["test"] for row in rows] == ["prefill 8", "prefill 16", "decode 4", "step of 2"]
    assert [row["unit"] for row in rows] == ["tokens/s"] * 3 + ["ms"]
    assert all(0 < row["low"] <= row["median"] <= row["high"] for row in rows)
    assert {row["share"] for row in rows} == {None}
    assert report["limits"]["note"] == "the machine's limits were not asked for"
    assert 0 < report["load_s"] < report["first_token_s"]
    assert 3e6 < report["bytes_per_token"] < report["peak_bytes"]


def test_bench_takes_what_the_context_has(capsys):
    report = report_of(capsys, "-r", "1", "-b", "1", "--no-limits", *FAST[4:])
    assert [row["test"] for row in report["rows"]] == ["prefill 99", "decode 64", "step of 1"]


def test_bench_refuses_more_than_the_context(capsys):
    assert main(["bench", "-p", "256", "--no-limits", "--context", "256"]) == 1
    assert "257 tokens asked, the context is 256" in capsys.readouterr().err
    for wrong in (["-r", "0"], ["-b", "0"], ["-p", "0"], ["-d", "0"]):
        assert main(["bench", *wrong]) == 1
        assert "at least 1" in capsys.readouterr().err


def test_without_a_compiler_bench_says_that_there_are_no_shares(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert main(["bench", "-p", "8", "-b", "1", *FAST[:-1]]) == 0
    out = capsys.readouterr().out
    assert "no shares: the machine's limits: no C compiler" in out
    assert "prefill 8" in out and "%" not in out


class FakeLimits:
    """A machine that reads 1 GB/s, and computes 1 Top/s at whatever level is in use."""

    names = ("amx", "avx512vnni", "avxvnni", "avx2", "neon", "i8mm")

    def peaks(self, threads: int) -> dict[str, float]:
        return dict.fromkeys(self.names, 1e12)

    def read_bandwidth(self, threads: int) -> float:
        return 1e9


def test_with_limits_every_row_has_a_share(capsys, monkeypatch):
    monkeypatch.setattr(bench, "Limits", lambda: contextlib.nullcontext(FakeLimits()))
    report = report_of(capsys, *FAST, "-p", "8", "-b", "2")
    assert report["limits"]["read_bandwidth"] == 1e9
    prefill, decode, step = report["rows"]
    assert_within(
        decode["share"], decode["median"] * report["bytes_per_token"] / 1e9, 1e-9, "decode"
    )
    assert_within(
        step["share"], report["bytes_per_token"] / 1e9 / (step["median"] / 1e3), 1e-9, "step"
    )
    if report["isa"] != "scalar":
        assert report["limits"]["level"] == report["isa"]
        assert prefill["share"] > 0


# ---- timing -------------------------------------------------------------------------------------


def test_rows_of_a_batch_are_submitted_while_another_prompt_is_computed():
    """All begin in the same step then, and decode in lockstep."""
    log = []

    class Model:
        info = SimpleNamespace(vocab=50, context=40)

        @contextlib.contextmanager
        def generate(self, prompt, **options):
            log.append(("open", len(prompt), options["max_new_tokens"]))
            yield
            log.append(("close",))

        def generate_batch(self, prompts, **options):
            log.append(("batch", len(prompts), options["max_new_tokens"]))
            assert options["min_new_tokens"] == options["max_new_tokens"]
            return [SimpleNamespace(timings=SimpleNamespace(decode_s=s)) for s in (1.0, 6.0, 2.0)]

    assert bench.step_seconds(Model(), 3, 12) == 0.5
    assert log == [("open", 39, 1), ("batch", 3, 13), ("close",)]


def test_a_share_is_the_least_time_over_the_time_taken():
    spec = tiny()
    roof = bench.Roof(spec, 4000, None, 2, "avx2", {"avx2": 1e6})
    operations = work.step_operations(spec, 8)
    assert roof.step_share(1, 2.0, None) is None
    assert roof.step_share(1, 8.0, 1000.0) == 0.5  # 4 s of reading
    assert roof.step_share(8, 1.0, 1e12) == operations / 1e6
    assert roof.prefill_share(3, 2.0) == work.prefill_operations(spec, 3) / 1e6 / 2
    assert dataclasses.replace(roof, level="").prefill_share(3, 2.0) is None


@pytest.mark.parametrize(
    "isa, formats, level",
    [
        ("avx2", {"q4": 100, "f32": 90}, "avx2"),
        ("amx", {"q4": 100}, ""),
        ("avx2", {"bf16": 100, "q8": 90}, "f32_avx2"),
    ],
)
def test_the_peak_is_that_of_the_level_and_the_format(isa, formats, level):
    assert bench.peak_level(isa, formats, ("avx2", "f32_avx2")) == level


# ---- what a model asks --------------------------------------------------------------------------


def tiny(*, tied: bool = True, window: int = 0, mlp: MlpSpec | None = None) -> ModelSpec:
    attention = AttentionSpec(heads=4, kv_heads=2, head_dim=8, window=window)
    layer = LayerSpec(attention=attention, mlp=mlp or MlpSpec(intermediate=48))
    return ModelSpec(vocab=100, hidden=32, max_context=64, tied_head=tied, layers=[layer, layer])


# q and o 32 x 32, k and v 16 x 32, gate, up and down 48 x 32
MATRICES = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 48 * 32)
HEAD = 100 * 32


def one_byte(spec: ModelSpec) -> dict[str, int]:
    return {
        name: shape[0] * shape[1]
        for name, shape in canonical_shapes(spec).items()
        if len(shape) == 2
    }


@pytest.mark.parametrize("tied", [True, False])
def test_a_token_reads_every_matrix_once_and_no_embedding_beside_a_head(tied):
    spec = tiny(tied=tied)
    assert sum(one_byte(spec).values()) == MATRICES + (HEAD if tied else 2 * HEAD)
    assert work.bytes_per_token(spec, one_byte(spec)) == MATRICES + HEAD
    assert work.step_operations(spec, 3) == 2 * 3 * (MATRICES + HEAD)


def test_a_prompt_is_linear_layers_one_head_and_causal_attention():
    pairs = 1 + 2 + 3 + 4 + 5
    attention = 2 * 4 * 4 * 8 * pairs  # layers, operations, heads, head_dim
    assert work.prefill_operations(tiny(), 5) == 2 * 5 * MATRICES + 2 * HEAD + attention
    windowed = 2 * 4 * 4 * 8 * (1 + 2 + 2 + 2 + 2)
    assert work.prefill_operations(tiny(window=2), 5) == 2 * 5 * MATRICES + 2 * HEAD + windowed


def test_of_experts_a_token_reads_those_it_chooses():
    mlp = MlpSpec(
        kind="experts", intermediate=48, experts=8, experts_per_token=2, shared_intermediate=16
    )
    spec = tiny(mlp=mlp)
    attention = 2 * (2 * 32 * 32 + 2 * 16 * 32)
    experts = 2 * (8 * 32 + 2 * 3 * 48 * 32 + 3 * 16 * 32)  # router, two of eight, shared
    assert work.bytes_per_token(spec, one_byte(spec)) == attention + experts + HEAD


# ---- the limits ---------------------------------------------------------------------------------


def test_the_probe_reads_and_computes(probe, monkeypatch):
    monkeypatch.setattr(limits, "_STREAMS", (2, 4))
    monkeypatch.setattr(limits, "_AHEAD", (2048,))
    assert probe.names
    for name in probe.names:
        assert probe.peak(name, 1, passes=1) > 1e8
    assert probe.read_bandwidth(1, passes=1) > 1e8
    assert probe.setting(1)["streams"] in (2, 4) and probe.setting(1)["ahead"] == 2048
    with pytest.raises(limits.Unmeasured, match="this machine has"):
        probe.peak("tpu", 1)


def test_the_probe_is_compiled_once(probe, monkeypatch):
    monkeypatch.setenv("MUSESPARK_CACHE", str(probe.path.parent))
    monkeypatch.setattr(subprocess, "run", None)
    assert limits.binary() == probe.path


def test_a_compiler_that_fails_is_named(monkeypatch, tmp_path):
    broken = tmp_path / "brokencc"
    broken.write_text("#!/bin/sh\necho 'no such flag' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(limits.Unmeasured, match=r"brokencc -O3 .* failed: no such flag"):
        limits.binary()
    assert not list((tmp_path / "cache").glob("*limits*"))


@pytest.mark.parametrize("gone", [False, True], ids=["ending", "gone"])
def test_a_probe_that_ends_says_so(probe, monkeypatch, gone):
    """Before the question is written (a broken pipe, also for close) or while it is waited for."""
    monkeypatch.setenv("MUSESPARK_CACHE", str(probe.path.parent))
    with limits.Limits() as own:
        own._process.kill()
        if gone:
            own._process.wait()
        with pytest.raises(limits.Unmeasured, match="ended with status -9"):
            own.peak(own.names[0], 1)


INSTRUCTIONS = {
    "amx": (r"tdpbssd", 4),
    "avx512vnni": (r"vpdpbusd .*zmm", 12),
    "avxvnni": (r"vpdpbusd .*ymm", 12),
    "avx2": (r"vpmaddubsw .*ymm", 12),
    "f32_avx512": (r"vfmadd231ps .*zmm", 12),
    "f32_avx2": (r"vfmadd231ps .*ymm", 12),
    "i8mm": (r"smmla", 12),
    "neon": (r"sdot", 12),
    "f32_neon": (r"fmla", 12),
}


def spills(code: str, pattern: str, count: int) -> bool:
    """Whether a loop of `count` such instructions touches memory. AssertionError where there are
    not so many, which would be another loop."""
    lines = code.splitlines()
    at = [i for i, line in enumerate(lines) if re.search(pattern, line)]
    assert len(at) == count, code
    return any("(" in line or "[" in line for line in lines[at[0] : at[-1] + 1])


def test_accumulators_of_the_peaks_stay_in_registers(probe):
    if shutil.which("objdump") is None:
        pytest.skip("no objdump")
    command = ["objdump", "-d", "--no-show-raw-insn", str(probe.path)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    functions = dict(re.findall(r"<(\w+)>:\n(.*?)(?:\n\n|\Z)", listing, re.DOTALL))
    for name in probe.names:
        assert not spills(functions[f"peak_{name}"], *INSTRUCTIONS[name]), name


def test_a_spilled_accumulator_is_seen():
    kept = "vpdpbusd %zmm0,%zmm0,%zmm1\nvpdpbusd %zmm0,%zmm0,%zmm2"
    spilled = kept.replace("\n", "\nvmovdqa32 %zmm1,0x40(%rsp)\n")
    assert not spills(kept, "vpdpbusd .*zmm", 2)
    assert spills(spilled, "vpdpbusd .*zmm", 2)
