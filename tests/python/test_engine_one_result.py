"""What a request returns depends on its tokens, parameters and seed alone: to the bit."""

from __future__ import annotations

import functools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from musespark import _core
from musespark.engine import Request, Result
from support import engine_cases as cases

MODELS = sorted(cases.MODELS)
LEVELS = [level for level, present, _ in _core.isa_report() if present]


@functools.cache
def expected(model: str) -> tuple[str, ...]:
    """One thread, one request after the other, whole chunks."""
    with cases.make_engine(model, threads=1) as engine:
        return tuple(cases.alone(engine))


def assert_same(answers: list[str], model: str, how: str) -> None:
    assert len(answers) == 16
    for i, (answer, wanted) in enumerate(zip(answers, expected(model), strict=True)):
        assert answer == wanted, f"request {i} differs {how}"


def test_the_cases_evict_and_demote() -> None:
    for model in MODELS:
        with cases.make_engine(model) as engine:
            evicted, demoted = (
                engine.submit(r).result().stats for r in cases.requests(engine.vocab)[8:10]
            )
        assert evicted["evictions"] == 4
        assert (demoted["demoted_pages"] > 0) == (model == "muse_kv8"), "f32 has nothing to demote"


def test_the_cases_say_something() -> None:
    for model in MODELS:
        answers = [json.loads(a) for a in expected(model)]
        assert len({json.dumps(a["tokens"]) for a in answers}) == 16
        assert all(len(set(a["tokens"])) > 3 for a in answers[3:10]), "sampling that does not vary"
        assert answers[10]["logits"][0][0] == 600
        watched, ended, stopped, given_up, kept = answers[11:]
        assert watched["stop"] == "budget" and len(watched["trials"]) > 2
        assert ended["stop"] == "confident" and len(ended["trials"]) > 1
        assert stopped["stop"] == "confident" and len(stopped["signals"]) > 20 * 32
        assert given_up["stop"] == "hopeless" and len(given_up["trials"]) > 1
        *_, rows = kept["trials"][-1]
        assert kept["stop"] == "confident" and rows < 3 + 5 - 1, "no row of it was kept"


@pytest.mark.isa
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("way", ["alone", "together"])
def test_threads_and_batch(model: str, threads: int, way: str) -> None:
    with cases.make_engine(model, threads=threads) as engine:
        answers = getattr(cases, way)(engine)
    assert_same(answers, model, f"on {threads} threads, {way}")


@pytest.mark.isa
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("chunk", [1, 7, 64, 300])
def test_prefill_chunks(model: str, chunk: int) -> None:
    with cases.make_engine(model, prefill_chunk=chunk, max_batch=5) as engine:
        answers = cases.together(engine)
    assert_same(answers, model, f"with chunks of {chunk}")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("model", MODELS)
def test_fresh_processes_on_every_instruction_set(model: str, level: str) -> None:
    settings = {"threads": 1 + len(level) % 2, "prefill_chunk": 200}
    support = Path(cases.__file__).parent.parent
    # Where the package and the test support are found is this process's to know.
    environment = os.environ | {
        "MUSESPARK_ISA": level,
        "PYTHONPATH": os.pathsep.join([str(support), *sys.path]),
    }
    command = [
        sys.executable,
        "-m",
        "support.engine_cases",
        model,
        "together",
        json.dumps(settings),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    # A level without kernels of its own runs the next one's.
    assert LEVELS.index(told["isa"]) >= LEVELS.index(level)
    assert (told["isa"] == "scalar") == (level == "scalar")
    assert_same(told["answers"], model, f"on {level}")


def stopped_just_after_trials(model: str, vocab: int) -> list[Request]:
    """Each stops at the trial after some n-th, and would at the n-th with one token more."""
    few = []
    with cases.make_engine(model, context=700) as engine:
        for count, share in ((94, 0.5), (95, 0.7), (96, 0.9)):
            watched = cases.thinking(count, vocab, confident=1.0, max_new_tokens=None)
            trials = engine.submit(watched).result().stats["trials"]
            at = trials[int(share * len(trials))][0]
            late = {"weights": {"tokens": 1.0}, "bias": -math.log(at + 1.5), "threshold": 0.5}
            few.append(
                cases.thinking(count, vocab, confident=1.0, stopper=late, max_new_tokens=None)
            )
    return few


def signal_bits(result: Result) -> bytes:
    return b"" if result.signals is None else result.signals.tobytes()


@pytest.mark.parametrize("model", MODELS)
def test_preemption(model: str) -> None:
    """Pages run out, the youngest are computed again: same tokens."""
    vocab = cases.packed(model)[0].vocab
    few = [
        Request(tokens=cases.tokens(90, seed=i), temperature=0.8, seed=i, stop_ids=())
        for i in range(3)
    ]
    few += [  # growing, in trials and out of them
        cases.thinking(90 + i, vocab, confident=sure, budget=budget, max_new_tokens=None)
        for i, (sure, budget) in enumerate([(1.0, None), (0.04, None), (1.0, 40), (1.0, 200)])
    ]
    few += stopped_just_after_trials(model, vocab)
    with cases.make_engine(model, context=700) as engine:
        wanted = [engine.submit(r).result() for r in few]
        used = engine.stats()["kv_bytes_used"]
    assert used == 0, "pages kept after the end"
    needs = cases.bytes_needed(model, 700)
    with cases.make_engine(model, context=700, memory_budget=2 * needs) as engine:
        handles = [engine.submit(r) for r in few]
        results = [h.result() for h in handles]
        stats = engine.stats()
    assert stats["preemptions"] > 0, "the budget was not tight"
    assert [r.tokens for r in results] == [r.tokens for r in wanted]
    assert [r.stats["trial_tokens"] for r in results] == [r.stats["trial_tokens"] for r in wanted]
    assert [r.stats["trials"] for r in results] == [r.stats["trials"] for r in wanted]
    assert [signal_bits(r) for r in results] == [signal_bits(r) for r in wanted]
    assert {r.reason for r in results} == {"length"}
    assert sum(r.stats["preemptions"] for r in results) == stats["preemptions"]
    assert stats["kv_bytes_used"] == 0
