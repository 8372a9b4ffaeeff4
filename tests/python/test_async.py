"""The async twins: the event loop stays free, and a cancelled task leaves nothing behind."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time

import pytest

import musespark

LONG = "Once upon a time there was a fox. " * 20_000


@pytest.fixture(scope="module")
def model():
    with musespark.load(context=512, threads=1) as loaded:
        yield loaded


@pytest.mark.parametrize("method", ["agenerate", "achat"])
def test_a_long_prompt_does_not_hold_up_the_loop(model, monkeypatch, method: str) -> None:
    """Encoding it once ran on the loop's thread; in a thread it still held the interpreter."""
    monkeypatch.setattr(musespark.Tokenizer, "at_least", lambda self, chars: 0)  # encode it
    ticks: list[float] = []

    async def tick() -> None:
        while True:
            ticks.append(time.perf_counter())
            await asyncio.sleep(0.002)

    async def main() -> tuple[float, float]:
        ticking = asyncio.ensure_future(tick())
        await asyncio.sleep(0)
        begin = time.perf_counter()
        with pytest.raises(musespark.ContextOverflow):
            await getattr(model, method)(LONG)
        end = time.perf_counter()
        ticking.cancel()
        return begin, end

    begin, end = asyncio.run(main())
    inside = [begin, *(t for t in ticks if begin < t < end), end]
    longest = max(b - a for a, b in itertools.pairwise(inside))
    assert end - begin > 0.1, "the prompt is too short to tell"
    assert longest < (end - begin) / 2


def test_a_task_cancelled_while_it_encodes_submits_nothing(model, monkeypatch) -> None:
    encoding, go_on = threading.Event(), threading.Event()
    real, submitted = model.tokenizer.encode, []

    def slow(*args, **kwargs):
        encoding.set()
        go_on.wait(10)
        return real(*args, **kwargs)

    async def main() -> None:
        task = asyncio.ensure_future(model.agenerate("The fox", max_new_tokens=400))
        await asyncio.to_thread(encoding.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    before = model._engine.stats()["steps"]
    submit = model._engine.submit
    monkeypatch.setattr(model._engine, "submit", lambda *a, **k: submitted.append(submit(*a, **k)))
    monkeypatch.setattr(model.tokenizer, "encode", slow)
    asyncio.run(main())
    assert not submitted
    assert model._engine.stats()["steps"] == before


@pytest.mark.parametrize("method", ["agenerate", "achat"])
def test_a_cancelled_task_ends_its_request(model, method: str) -> None:
    async def main() -> None:
        call = getattr(model, method)("Tell me a story.", min_new_tokens=400, max_new_tokens=400)
        task = asyncio.ensure_future(call)
        while not model._engine.stats()["running"]:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    end = time.monotonic() + 10
    while model._engine.stats()["running"] and time.monotonic() < end:
        time.sleep(0.002)
    assert model._engine.stats()["running"] == 0


def test_wrong_options_are_refused_as_in_the_twins(model) -> None:
    for call in (model.agenerate("x", temprature=1), model.achat("x", temprature=1)):
        with pytest.raises(musespark.InvalidRequest, match="did you mean 'temperature'"):
            asyncio.run(call)


def test_long_texts_are_encoded_as_short_ones_are(model) -> None:
    """A batch of one gives the ids of the single call, on both sides of the limit."""
    whole = LONG[:20_000]
    tokenizer = model.tokenizer
    single = tokenizer._plain.encode(whole, add_special_tokens=False).ids
    assert tokenizer.encode(whole) == list(single)
    with pytest.raises(musespark.InvalidRequest, match="lone surrogate at index 20000"):
        tokenizer.encode(whole + "\ud800")
