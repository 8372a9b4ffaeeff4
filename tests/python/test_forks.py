"""Forks share pages until they write: what they cost, in use and in what admission reserves."""

from __future__ import annotations

from functools import partial

import pytest

from musespark.engine import Engine, Request
from support import engine_cases as cases
from support.engine_cases import at_once, fingerprint, tokens

FORKS, PREFIX = 16, 500
MODELS = sorted(cases.MODELS)  # muse_kv8 has windows of 70, llama_f32 has none
MUSE = ("muse_kv8", "kv8")


def settled(engine: Engine) -> dict[str, int]:
    """Stats after everything that was asked for has been done."""
    engine.submit(Request(tokens=[1], max_new_tokens=0)).result()
    return engine.stats()


def retained(engine: Engine, prompt: list[int], new: int = 1, **more):
    handle = engine.submit(Request(tokens=prompt, max_new_tokens=new, retain=True, **more))
    handle.result()
    return handle.retained


def go_on(engine: Engine, base, i: int, new: int = 5, *, retain: bool = True):
    prompt = tokens(PREFIX) + tokens(3, seed=50 + i)
    request = Request(tokens=prompt, max_new_tokens=new, retain=retain, logprobs=2)
    return engine.submit(request, base=base)


@pytest.mark.parametrize("model", MODELS)
def test_forks_cost_nothing_before_they_write_and_an_open_page_after(model: str) -> None:
    with cases.make_engine(model, prefix_cache=False) as engine:
        first = retained(engine, tokens(PREFIX))
        before = settled(engine)
        forks = [first.fork() for _ in range(FORKS)]
        forked = settled(engine)
        assert forked["retained"] == before["retained"] + FORKS
        for name in ("kv_bytes_used", "pages", "open_pages"):
            assert forked[name] == before[name]
        # One token: with more, the prompt's end is kept beside it where there are windows.
        results = [go_on(engine, fork, i, new=1) for i, fork in enumerate(forks)]
        for handle, fork in zip(results, forks, strict=True):
            assert handle.result().stats["cached_tokens"] == PREFIX
            fork.release()
        after = settled(engine)
        classes = 2 if model == "muse_kv8" else 1
        assert 0 < after["open_pages"] - before["open_pages"] <= FORKS * classes
        assert after["pages"] - before["pages"] <= FORKS * classes
        assert after["kv_bytes_used"] > before["kv_bytes_used"]
        first.release()
        for handle in results:
            handle.retained.release()
        assert settled(engine)["kv_bytes_used"] == 0


@pytest.mark.parametrize("kv", ["f32", "kv8"])
def test_forks_run_at_once_in_the_memory_that_they_take(kv: str) -> None:
    """Each alone would reserve the prefix again, and they would wait for each other, or take the
    memory of those that are retained."""
    model = "llama_f32"
    with cases.make_engine(model, kv=kv) as engine:
        wanted = [fingerprint(go_on(engine, None, i).result()) for i in range(FORKS)]
    needs, page = (cases.bytes_needed(model, n, kv=kv, prefill_chunk=64) for n in (PREFIX, 64))
    budget = needs + FORKS * 2 * page  # each may end one page and begin the next
    assert budget < FORKS * needs * (0.4 if kv == "f32" else 0.7)
    with cases.make_engine(model, kv=kv, memory_budget=budget, prefill_chunk=64) as engine:
        first = retained(engine, tokens(PREFIX))
        forks = [first.fork() for _ in range(FORKS)]
        handles = at_once(engine, [partial(go_on, engine, fork, i) for i, fork in enumerate(forks)])
        results = [handle.result() for handle in handles]
        assert [fingerprint(r) for r in results] == wanted
        assert [r.stats["cached_tokens"] for r in results] == [PREFIX] * FORKS
        assert engine.stats()["preemptions"] == 0
        # They ran side by side, and all of them are still there.
        assert engine.stats()["steps"] < 40
        # Nothing more is retained, for which one that has not gone on yet would have to go.
        for i, handle in enumerate(handles):
            again = go_on(engine, handle.retained, i, retain=False).result()
            assert again.stats["cached_tokens"] > PREFIX


@pytest.mark.parametrize(
    ("model", "kv", "chunk", "prompt", "common", "more", "new"),
    [
        ("llama_f32", "f32", 64, 200, 100, 120, 40),
        ("llama_f32", "f32", 64, 200, 130, 120, 40),
        ("llama_f32", "kv8", 4, 160, 159, 114, 14),
        ("muse_kv8", "kv8", 1, 320, 320, 100, 60),
        ("muse_kv8", "f32", 16, 320, 320, 100, 60),
    ],
)
def test_what_a_continuation_leaves_to_its_base_is_reserved(
    model: str, kv: str, chunk: int, prompt: int, common: int, more: int, new: int
) -> None:
    """A base's pages count for nothing while a continuation holds them too. But it copies the page
    in which it leaves the base, and lets pages outside its window go: the base has them alone then.
    A budget for the continuation and what else the base has was too small, and ended it.

    Steps and lengths at which the room that a step needs for open pages does not hide it: each
    ended with an error at one budget at least, the last two where windows alone were forgotten too.
    """
    settings = {"prefill_chunk": chunk, "kv": kv}
    before = tokens(prompt)
    request = Request(tokens=before[:common] + tokens(more, seed=2), max_new_tokens=new, logprobs=2)
    with cases.make_engine(model, **settings) as engine:
        wanted = fingerprint(engine.submit(request).result())
    length = common + more + new
    least, page = (cases.bytes_needed(model, n, **settings) for n in (length, 64))
    for beside in range(3):
        budget = least + beside * page
        with cases.make_engine(model, memory_budget=budget, prefix_cache=False, **settings) as e:
            base = e.submit(Request(tokens=before, logits="last", retain=True))  # no prompt's end
            base.result()
            result = e.submit(request, base=base.retained).result()
            assert fingerprint(result) == wanted
            assert result.stats["cached_tokens"] in (0, common)
    assert result.stats["cached_tokens"] == common
