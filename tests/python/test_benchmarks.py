"""The scripts in benchmarks/: figures from samples, workers, models of a shape, predictions."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import musespark

BENCHMARKS = Path(__file__).resolve().parent.parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))
import contemplating  # noqa: E402
import engines  # noqa: E402
import environments  # noqa: E402
import forks  # noqa: E402
import long_context  # noqa: E402
import memory  # noqa: E402
import models  # noqa: E402
import peers  # noqa: E402
import report  # noqa: E402
import rollouts  # noqa: E402
import serving  # noqa: E402
from report import Sample, Task, Work  # noqa: E402
from shapes import SHAPES  # noqa: E402

from musespark.lab.item import is_evaluation  # noqa: E402
from musespark.lab.tasks import split_of  # noqa: E402

sys.path.append(str(BENCHMARKS / "workers"))
from run_transformers import ended  # noqa: E402

PREFILL, DECODE, STEP = Task("p", tokens=100), Task("d", steps=8), Task("s", rows=4, steps=8)


def decode(engine: str, number: int, seconds: float, before: float = 50.0, after: float = 50.0):
    return Sample(engine, "d", number, seconds, (before, after))


# ---- figures ------------------------------------------------------------------------------------


def test_values_are_tokens_a_second_or_milliseconds_of_a_step():
    assert PREFILL.value(0.5) == 200 and PREFILL.unit == "tokens/s"
    assert DECODE.value(0.02) == 50 and DECODE.unit == "tokens/s"
    assert STEP.value(0.02) == 20 and STEP.unit == "ms"
    assert PREFILL.question == {"test": "prefill", "tokens": 100}
    assert STEP.question == {"test": "step", "rows": 4, "steps": 8}
    assert STEP.warm_up.question == {"test": "step", "rows": 4, "steps": 4}
    assert PREFILL.warm_up == PREFILL


def test_a_spread_is_median_lowest_and_highest():
    assert report.spread([3.0, 1.0, 10.0, 2.0]) == {"median": 2.5, "low": 1.0, "high": 10.0, "n": 4}


def test_ratios_pair_the_timings_of_a_round():
    ours = [decode("musespark", i, 0.01 * (i + 1)) for i in range(3)]
    theirs = [decode("x", 2, 0.06), decode("x", 0, 0.04)]
    assert report.paired_ratios(ours, theirs) == pytest.approx([4.0, 2.0])


def test_timings_of_another_machine_are_no_pair():
    """The bandwidth of some machines flips between two values within seconds."""
    ours = [decode("musespark", 0, 0.01, 54, 54), decode("musespark", 1, 0.01, 54, 54)]
    flipped = [decode("x", 0, 0.02, 85, 85), decode("x", 1, 0.02, 54, 85)]
    assert report.paired_ratios(ours, flipped) == []
    assert report.paired_ratios(ours, [decode("x", 1, 0.02, 50, 52)]) == [2.0]
    assert decode("x", 0, 1, 100, 95).steady and not decode("x", 0, 1, 100, 94).steady
    assert Sample("x", "p", 0, 1.0).steady


def work(**more: float) -> Work:
    operations = {"p": 1000.0, "d": 10.0, "s": 40.0}
    return Work(operations, {"musespark": 100, "x": 200}, vector_peak=2000.0, **more)


def test_shares_are_of_the_peaks_and_of_what_was_read():
    samples = [Sample("x", "p", 0, 1.0), Sample("x", "p", 1, 2.0), Sample("x", "p", 2, 4.0)]
    found = report.shares(PREFILL, "x", samples, work(tile_peak=4000.0))
    assert found == {"vector": 0.25, "tile": 0.125}
    assert report.shares(PREFILL, "x", samples, work())["tile"] is None
    found = report.shares(DECODE, "x", [decode("x", 0, 8.0)], work())
    assert found == {"bandwidth": 0.5, "roof": 0.5}  # 200 bytes in 8 s of 50 a second
    # 40 operations at 2000 a second: less than 4 s of reading; at 4 a second: more.
    sample = Sample("x", "s", 0, 20.0, (50.0, 50.0))
    assert report.shares(STEP, "x", [sample], work())["roof"] == 0.2
    slow = dataclasses.replace(work(), vector_peak=4.0)
    assert report.shares(STEP, "x", [sample], slow)["roof"] == 0.5


def test_unsteady_timings_count_only_where_there_are_no_others():
    steady, unsteady = decode("x", 0, 0.1), decode("x", 1, 0.2, 50, 80)
    ours = [decode("musespark", 0, 0.05), decode("musespark", 1, 0.05)]
    row = report.row(DECODE, "x", [*ours, steady, unsteady], work())
    assert (row.value["median"], row.kept, row.unsteady) == (10, 1, 1)
    assert row.ratio == {"median": 2.0, "low": 2.0, "high": 2.0, "n": 1}
    row = report.row(DECODE, "x", [*ours, unsteady], work())
    assert (row.value["median"], row.kept, row.unsteady, row.ratio) == (5, 1, 1, None)
    assert report.row(DECODE, "musespark", ours, work()).ratio is None
    assert report.row(DECODE, "y", ours, work()) is None


def test_a_table_has_a_line_for_each_engine():
    samples = [decode("musespark", 0, 0.05), decode("x", 0, 0.1)]
    rows = [report.row(DECODE, name, samples, work()) for name in ("musespark", "x")]
    head, ours, theirs = report.task_table(DECODE, rows).splitlines()
    assert head.replace("  ", " ").split()[:2] == ["d", "tokens/s"] and "of limit" in head
    assert ours.split()[:3] == ["musespark", "20.0", "[20.0..20.0]"]
    assert theirs.split()[-2:] == ["2.00x", "[2.00..2.00]"]
    assert head.index("of bandwidth") + len("of bandwidth") == ours.index("4000%") + 5


# ---- engines ------------------------------------------------------------------------------------

WORKER = """
import json, sys, time
print(json.dumps({"version": "1", "load_s": 0.0, "first_token_s": 0.0}), flush=True)
for line in sys.stdin:
    question = json.loads(line)
    if question["test"] == "prefill":
        print("a word of the library", file=sys.stderr)
        print(json.dumps({"seconds": 2.0}), flush=True)
    elif question["test"] == "step":
        time.sleep(60)
    else:
        sys.exit("the model fell over")
"""


@pytest.fixture
def worker(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "BUILD", tmp_path)
    started = engines.Worker([sys.executable, "-c", WORKER], {}, "fake")
    yield started
    started.close()


def test_a_worker_answers_and_is_stopped_between(worker):
    assert worker.info["version"] == "1"
    worker.pause()
    with pytest.raises(engines.WorkerFailed, match=r"no answer in 0 s"):
        worker.ask({"test": "prefill"}, timeout=0.2)


def test_a_worker_that_hangs_or_dies_says_so(worker, tmp_path, monkeypatch):
    assert worker.ask({"test": "prefill"}) == {"seconds": 2.0}
    with pytest.raises(engines.WorkerFailed, match="ended with status 1: the model fell over"):
        worker.ask({"test": "memory"})
    with pytest.raises(engines.WorkerFailed, match="ended with status 3"):
        engines.Worker([sys.executable, "-c", "raise SystemExit(3)"], {}, "other")
    refused = 'print(\'{"error": "no such architecture"}\')'
    with pytest.raises(engines.WorkerFailed, match="no such architecture"):
        engines.Worker([sys.executable, "-c", refused], {}, "other")


def test_a_worker_script_keeps_its_answers_apart_from_what_libraries_print(tmp_path):
    script = tmp_path / "run_noisy.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(BENCHMARKS / 'workers')!r})\n"
        "from protocol import serve\n"
        "class Noisy:\n"
        "    info = {'version': '2'}\n"
        "    def __init__(self, model, threads, context): print('loading', model)\n"
        "    def prefill(self, tokens): print('prefill'); return float(tokens)\n"
        "    def step(self, rows, steps): raise NotImplementedError('one at a time')\n"
        "serve(Noisy)\n"
    )
    started = engines.Worker([sys.executable, str(script), "m", "1", "8"], {}, "noisy")
    try:
        assert started.info["version"] == "2"
        assert 0 <= started.info["load_s"] <= started.info["first_token_s"]
        assert started.ask(PREFILL.question) == {"seconds": 100.0}
        assert started.ask(STEP.question) == {"error": "one at a time"}
        assert started.ask({"test": "memory"})["peak_bytes"] > 1e6
    finally:
        started.close()


class FakeWorker:
    def __init__(self, name: str, log: list[str], answers: dict):
        self.info = {"version": "1", "model_bytes": 100}
        self._name, self._log, self._answers, self._runs = name, log, answers, False

    def ask(self, question):
        assert self._runs, "asked while it is stopped"
        self._log.append(f"{self._name} {question['test']}")
        answer = self._answers[question["test"]]
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)

    def resume(self):
        self._runs = True

    def pause(self):
        self._runs = False

    def close(self):
        self._log.append(f"{self._name} closed")


def fake_run(bandwidths: list[float], answers: dict[str, dict], rounds: int = 2):
    """A run of fake engines, on a machine that reads these bandwidths one after another."""
    readings = iter(bandwidths)
    machine = SimpleNamespace(read_bandwidth=lambda threads: next(readings))
    run, log = peers.Run(machine, 2, [PREFILL, DECODE], rounds), []
    workers = {name: FakeWorker(name, log, {"memory": {"peak_bytes": 5}} | given)
               for name, given in answers.items()}  # fmt: skip
    run.infos = {name: worker.info for name, worker in workers.items()}
    run._measure_group(workers)
    return run, log


GOOD = {"prefill": {"seconds": 1.0}, "step": {"seconds": 0.5}}


def test_rounds_go_through_the_engines_in_turn():
    run, log = fake_run([50.0] * 8, {"musespark": GOOD, "x": GOOD})
    turns = [line.split()[0] for line in log if "prefill" in line]
    assert turns == ["x", "musespark", "musespark", "x", "x", "musespark"]
    assert len(run.samples) == 8 and not run.reasons  # two engines, tests and rounds; no warm-up
    assert run.infos["x"]["peak_bytes"] == 5


def test_a_timing_is_repeated_where_the_bandwidth_moved():
    run, _ = fake_run([50.0, 80.0, 80.0, 80.0], {"x": GOOD}, rounds=1)
    assert [s.bandwidth for s in run.samples if s.test == "d"] == [(50.0, 80.0), (80.0, 80.0)]


def test_what_an_engine_cannot_do_is_asked_once_and_reported():
    lame = {"prefill": {"seconds": 1.0}, "step": {"error": "one at a time"}}
    run, log = fake_run([50.0] * 4, {"musespark": GOOD, "x": lame})
    assert run.reasons == {"x, d": "one at a time"}
    assert log.count("x step") == 1 and log.count("x prefill") == 3
    dead = {"prefill": engines.WorkerFailed("no answer in 300 s")}
    run, log = fake_run([50.0] * 4, {"musespark": GOOD, "x": dead})
    assert run.reasons == {"x": "no answer in 300 s"}
    assert log.count("x prefill") == 1 and log.count("musespark prefill") == 3


def test_an_engine_that_cannot_be_installed_is_a_reason(monkeypatch):
    def start(*_):
        raise environments.EnvironmentFailed("pip install: no such version")

    run = peers.Run(SimpleNamespace(), 2, [PREFILL], 1)
    lost = SimpleNamespace(name="x", start=start)
    assert run.start(lost, SHAPES["llama-3.2-1b"], "q4") is None
    assert run.reasons == {"x": "pip install: no such version"} and not run.infos


def test_an_installer_that_fails_names_the_first_error():
    said = "print('resolving'); print('x.c:1: error: no header'); raise SystemExit('ERROR: failed')"
    with pytest.raises(environments.EnvironmentFailed, match=r"-c .*: x.c:1: error: no header"):
        environments._run([sys.executable, "-c", said])


def test_an_environment_is_made_where_its_packages_are_other_ones(monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(environments, "BUILD", tmp_path)
    monkeypatch.setattr(environments, "_run", lambda command, variables=None: ran.append(command))
    one = environments.Environment("e", ("a==1",), sources=("a",), unwanted=("b",))
    (tmp_path / "e" / "bin").mkdir(parents=True)
    (tmp_path / "e" / "bin" / "python").touch()
    (tmp_path / "e" / ".packages").write_text("a==1\n")
    assert one.python() == tmp_path / "e" / "bin" / "python" and not ran
    (tmp_path / "e" / ".packages").write_text("a==0\n")
    monkeypatch.setattr(environments.shutil, "rmtree", lambda *_, **__: None)
    one.python()
    assert [command[1:3] for command in ran] == [["-m", "venv"], ["-m", "pip"], ["-m", "pip"]]
    assert {"--no-binary=a", "--no-cache-dir", "a==1"} <= set(ran[1])
    assert ran[2][-1] == "b" and (tmp_path / "e" / ".packages").read_text() == "a==1\n"


def test_levels_leave_the_engines_that_can_be_held_to_them():
    assert list(engines.engines("avx2")) == ["musespark", "llama.cpp"]
    assert engines.engines("avx2")["musespark"].variables == {"MUSESPARK_ISA": "avx2"}
    assert (
        "AVX512=ON" not in engines.engines("avx2")["llama.cpp"].environment.variables["CMAKE_ARGS"]
    )


def test_a_machine_has_a_name_for_files():
    assert peers.machine_name("Intel(R) Xeon(R) Processor") == "intel-xeon"
    assert peers.machine_name("AMD EPYC 9V45 96-Core Processor") == "amd-epyc-9v45-96"


# ---- models -------------------------------------------------------------------------------------


def tiny(name: str):
    """A named shape with four narrow layers and 1,024 tokens."""
    sizes = {"num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 512}
    sizes |= {"vocab_size": 1024, "bos_token_id": 768, "eos_token_id": 769}
    config = dict(SHAPES[name].config)
    if "text_config" in config:
        config["text_config"] = config["text_config"] | sizes
    else:
        config |= sizes
    return dataclasses.replace(SHAPES[name], name=f"{name}-tiny", config=config)


@pytest.fixture
def own_build(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "BUILD", tmp_path)
    monkeypatch.setenv("MUSESPARK_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("name", ["llama-3.2-1b", "qwen3-0.6b", "muse-glimmer-30b"])
@pytest.mark.parametrize("what", ["q4.safetensors", "q4_0.gguf", "q8_0.gguf", "checkpoint"])
def test_every_form_of_a_shape_is_the_same_model(name, what, own_build):
    shape = tiny(name)
    if what == "checkpoint" and not shape.floats:
        with pytest.raises(models.NotBuilt, match="too large"):
            models.build(shape, what)
        return
    path = models.build(shape, what)
    spec = models.spec_of(shape)
    with musespark.load(path, context=64, threads=1, progress=False) as model:
        assert (model.info.layers, model.info.hidden) == (len(spec.layers), spec.hidden)
        assert model.info.family == shape.config["model_type"]
        assert len(model.generate([1, 2, 3], max_new_tokens=2).tokens) == 2
        assert model.tokenizer.encode("ab", add_special=False)
    assert not list(own_build.rglob("*.partial*"))
    before = path.stat().st_mtime_ns
    assert models.build(shape, what).stat().st_mtime_ns == before


def test_agents_over_one_prefix_are_measured(own_build, monkeypatch):
    """That every agent writes all its tokens and memory keeps to its bound is asserted there."""
    monkeypatch.setattr(contemplating, "least_step", lambda *_: 1.0)
    path = models.build(tiny("llama-3.2-1b"), "q4.safetensors")
    found = contemplating.measure_shape(path, [1, 3], prefix=200, tokens=96, rounds=1, threads=1)
    assert found[1]["ratio_to_1"]["median"] == 1.0 and found[3]["step_s"]["n"] == 1
    assert found[3]["memory"]["bound"] > found[1]["memory"]["bound"]


def test_forks_are_measured(own_build):
    """That they go on as fresh requests do is asserted there."""
    path = models.build(tiny("llama-3.2-1b"), "q4.safetensors")
    found = forks.measure(str(path), tokens=130, forks=3, kv="kv8")
    assert found["open_page_bytes"] > 0 and found["at_most_an_open_page_each"]


def test_blocks_of_k_quants_decode_to_small_numbers():
    from musespark import _core

    rows = models.random_blocks("Q4_K", 4, 512)
    assert rows.shape == (4, 2 * 144)
    values = _core.decode("q4_k", rows)
    assert values.shape == (4, 512) and 0 < abs(values).max() < 4


def test_bytes_a_token_reads_are_those_of_the_file(own_build):
    import gguf

    for name in ("qwen3-0.6b", "muse-glimmer-30b"):
        shape = tiny(name)
        path = models.build(shape, "q4_0.gguf")
        stored = {t.name: t.n_bytes for t in gguf.GGUFReader(path).tensors}
        unread = 0 if "output.weight" not in stored else stored["token_embd.weight"]
        assert models.weight_bytes(shape, "q4_0.gguf", path) == sum(stored.values()) - unread
        ours = models.build(shape, "q4.safetensors")
        with musespark.load(ours, threads=1, context=64, progress=False) as model:
            vectors = model.info.weight_formats["f32"]
            heads = 1024 * 256 * 6.5625 / 8 * (2 if unread else 1)
            read = models.weight_bytes(shape, "q4.safetensors", ours)
            assert read <= model.info.weight_bytes - vectors
            assert (read == model.info.weight_bytes - vectors) == (not unread)
            assert read > model.info.weight_bytes - vectors - heads


def test_a_killed_build_leaves_nothing_that_counts(own_build, monkeypatch):
    def killed(shape, path, what):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "write_gguf", killed)
    with pytest.raises(KeyboardInterrupt):
        models.build(tiny("llama-3.2-1b"), "q4_0.gguf")
    assert not [path for path in own_build.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_a_shape_has_the_size_that_its_name_says(name):
    billions = float(name.rsplit("-", 1)[1].rstrip("b"))
    found = sum(t.rows * t.cols for t in models.gguf_tensors(SHAPES[name], "q4_0.gguf")) / 1e9
    assert 0.9 * billions < found < 1.25 * billions


def test_a_tokenizer_has_every_byte_and_only_valid_merges():
    tokens, merges, special = models.byte_level_tokens(70_000)
    assert len(tokens) + len(special) == 70_000 == len({*tokens, *special})
    assert len([t for t in tokens if len(t) == 1]) == 256
    assert all(a in set(tokens[:256]) or len(a) == 2 for a, _ in merges)


# ---- serving ------------------------------------------------------------------------------------

SINGLE = serving.Single(
    prefill_s={100: 1.0, 200: 3.0},
    step_s={1: [(0, 1.0), (100, 2.0)], 2: [(0, 1.0), (100, 1.0)], 4: [(0, 2.0), (100, 2.0)]},
)


def test_figures_between_the_measured_ones_are_on_the_line():
    assert [SINGLE.prefill(n) for n in (50, 100, 150, 300)] == [0.5, 1.0, 2.0, 5.0]
    assert [SINGLE.step(rows, 0) for rows in (1, 2, 3, 4, 9)] == [1.0, 1.0, 1.5, 2.0, 2.0]
    assert [SINGLE.step(1, behind) for behind in (50, 100, 200)] == [1.5, 2.0, 3.0]
    assert SINGLE.gain(4) == [2.0, 4.0]


def test_the_prediction_computes_prompts_one_by_one_and_rows_together():
    flat = serving.Single({100: 1.0}, {1: [(0, 1.0)], 2: [(0, 1.0)]})
    one = [serving.Arrival(0.0, 100)]
    assert serving.predicted_seconds(one, 5, flat) == pytest.approx(1 + 4)
    two = [serving.Arrival(0.0, 100), serving.Arrival(0.5, 200)]
    assert serving.predicted_seconds(two, 5, flat) == pytest.approx(1 + 2 + 4)
    late = [serving.Arrival(0.0, 100), serving.Arrival(50.0, 100)]
    assert serving.predicted_seconds(late, 5, flat) == pytest.approx(50 + 1 + 4)
    # With 100, then 101 tokens behind the row.
    assert serving.predicted_seconds(one, 3, SINGLE) == pytest.approx(1 + 2.0 + 2.01)


def test_arrivals_are_a_function_of_the_seed():
    asked = serving.arrivals(32, 20, 2000, 10.0)
    assert asked == serving.arrivals(32, 20, 2000, 10.0)
    assert asked != serving.arrivals(32, 20, 2000, 10.0, seed=21)
    assert asked[0].at == 0 and asked == sorted(asked, key=lambda a: a.at)
    assert all(20 <= a.prompt <= 2000 for a in asked)


def test_gaps_know_who_prefilled_how_many_decoded_and_what_is_behind_them():
    first = serving.Served(serving.Arrival(0.0, 5), [1, 2, 3, 4], [1.0, 2.0, 5.0, 6.0])
    second = serving.Served(serving.Arrival(2.5, 7), [1, 2], [5.0, 6.0])
    found = serving.gaps([first, second])
    assert [(g.seconds, g.rows, g.behind, g.prefilling) for g in found] == [
        (1.0, 1, 5, False), (3.0, 1, 6, True), (1.0, 2, 14, False), (1.0, 2, 14, False)
    ]  # fmt: skip
    flat = serving.Single({100: 1.0}, {1: [(0, 0.75)], 2: [(0, 0.5)]})
    figures = serving.summary([first, second], 4, flat)
    assert figures["added_by_prefill_s"] == {"p50": 2.25, "p90": 2.25, "p99": 2.25, "max": 2.25,
                                             "n": 1}  # fmt: skip
    assert figures["added_without_prefill_s"]["max"] == 0.5
    assert figures["output_tokens_per_s"] == 1.0
    assert figures["gain_of_rows"][2] == [3.0]


def test_sequences_that_arrive_at_random_get_the_tokens_they_get_alone():
    server = serving.Server(None, 1, sequences=3, tokens=700)
    try:
        asked = serving.arrivals(3, 20, 60, 0.01)
        served = server.serve(asked, 300)
        assert [len(one.tokens) for one in served] == [300] * 3
        assert all(one.times == sorted(one.times) for one in served)
        single = server.measure(served, rounds=1)
        assert set(single.step_s) == set(serving.ROWS)
        assert all(s > 0 for steps in single.step_s.values() for _, s in steps)
        assert serving.check(server, served, 3, 300) == 3
        served[1].tokens[-1] += 1
        with pytest.raises(SystemExit, match="gives other tokens alone"):
            serving.check(server, served, 3, 300)
        json.dumps(serving.summary(served, 300, single))
    finally:
        server.close()


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", memory.FORMATS)
def test_the_bytes_of_a_format_are_the_pools(kv):
    spec = models.spec_of(tiny("muse-glimmer-30b"))
    row = memory.bytes_of(spec, kv, 3000)
    assert row["pool_most"] <= row["estimate"] <= 1.1 * row["pool_most"]
    per_head = {"f32": 1024, "kv8": 264, "kv8v4": 202, "kv4": 140}[kv]
    assert row["per_token_layer_head"] == per_head == memory.page_bytes(kv, 128) / 64


def test_the_estimate_is_near_the_measured_peak():
    """3% on the machine that the figures were measured on; other interpreters differ."""
    row = memory.measure(None, "kv8", 512, 2)
    assert abs(row["deviation"]) < 0.2, row
    assert row["measured"]["peak"] >= row["measured"]["loaded"] > row["weights"]


def test_long_contexts_are_told_beside_the_best_other() -> None:
    samples = [{"prefill_s": p, "step_s": 0.1, "bandwidth_share": 0.5} for p in (2.0, 4.0, 8.0)]
    ours = long_context.figures(samples, 100)
    assert ours == {"prefill": 25, "decode": 10, "bandwidth_share": 0.5}
    other = {"prefill": 10.0, "decode": 4.0}
    text = long_context.table(
        {"musespark:kv8": ours, "a:f16": other, "b:-": {**other, "decode": 8}}
    )
    own, a, _ = text.splitlines()[1:]
    assert own.split() == ["musespark:kv8", "25.0", "2.50", "10.0", "1.25", "50%"]
    assert a.split() == ["a:f16", "10.0", "4.0"], "others have no ratio"


# ---- rollouts -----------------------------------------------------------------------------------


def sampled(seconds: float, *lengths: int, steps: int = 0) -> rollouts.Sampled:
    return rollouts.Sampled(seconds, [[1] * n for n in lengths], steps)


def test_rollouts_are_compared_with_the_faster_of_theirs_in_the_same_round():
    rounds = [
        {
            "transformers f32": sampled(2.0, 100),
            "transformers bf16": sampled(speed, 100),
            "musespark auto": sampled(0.5, 150, 50),
        }
        for speed in (1.0, 4.0)
    ]
    assert rollouts.ratios(rounds, "musespark auto") == [4.0, 8.0]
    theirs = [sampled(2.0, 100, 20, steps=200), sampled(1.0, 90, 30, steps=200)]
    row = rollouts.row("transformers f32", theirs, 0.5)
    assert row["tokens_per_s"]["median"] == 90 and row["tokens_each"] == 60
    assert row["all_rows_per_s"]["median"] == 150
    assert "all_rows_per_s" not in rollouts.row("musespark auto", [sampled(1.0, 5)], 0.5)


def test_rows_of_a_batch_are_alike_and_none_is_for_evaluation():
    items = rollouts.exercises(40, 3, seed=1)
    assert len(items) == 120 and all(items[i] is items[i - i % 3] for i in range(120))
    tasks = [item.task for item in items]
    assert [t for i, t in enumerate(tasks) if i == 0 or t != tasks[i - 1]] == [
        t for t in rollouts.TASKS if t in tasks
    ]
    assert set(tasks) == set(rollouts.TASKS)
    assert not any(is_evaluation(split_of(i.task), i.key) for i in items)
    prompts = rollouts.prompt_ids(items[:2], str(rollouts.NANO))
    with musespark.load(threads=1) as model:
        wanted = model.chat(items[0].messages, reasoning_effort="high", max_new_tokens=1)
    assert prompts[0] == prompts[1] and len(prompts[0]) == wanted.usage.prompt_tokens


def test_a_row_ends_with_its_first_end():
    assert ended([5, 6, 2, 0, 0], [2, 3]) == [5, 6, 2]
    assert ended([5, 6, 7], [2, 3]) == [5, 6, 7]


def test_the_share_of_right_replies_is_of_those_that_ended():
    tokenizer = rollouts.tok.load(rollouts.NANO)
    items = rollouts.exercises(2, 1, seed=1)
    told = [
        [*tokenizer.encode(" to=user").ids, rollouts.tok.MESSAGE, *tokenizer.encode(i.answer).ids]
        for i in items
    ]
    ends = [[rollouts.tok.EOT], []]
    replies = [ids + end for ids, end in zip(told, ends, strict=True)]
    assert rollouts.right(items, replies, str(rollouts.NANO)) == 0.5
