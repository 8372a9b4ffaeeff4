"""Conversations of the server's jobs: read once for all answers, few decoded pixels at a time."""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image

import musespark
from musespark.contemplating import Contemplation
from musespark.errors import InvalidRequest
from musespark.server import Limits, reading
from musespark.server.metrics import Meter
from musespark.server.reading import Pixels, Reader, in_thread
from musespark.server.wire import Ask, Ended, Job
from musespark.server.work import Work


@pytest.fixture(scope="module")
def model():
    with musespark.load(threads=1) as loaded:
        yield loaded


def run(scenario: Any) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


def picture(side: int) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(file, "PNG")
    return {"type": "image", "image": f"data:image/png;base64,{encoded(file.getvalue())}"}


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def asking(*sides: int) -> list[dict[str, Any]]:
    text = {"type": "text", "text": "Which color is it?"}
    return [{"role": "user", "content": [*map(picture, sides), text]}]


async def ended(work: Work, job: Job) -> list[Ended]:
    run = work.begin("client", job, False)
    try:
        return await run.answers()
    finally:
        await run.close()


def test_a_conversation_is_read_once_for_all_its_answers(model, monkeypatch) -> None:
    """Decoded, made into rows and tokenized once; each answer is what it would be alone."""
    counts = {"decoded": 0, "read": 0}

    def counting(name: str, call: Any) -> Any:
        def counted(*args: Any, **more: Any) -> Any:
            counts[name] += 1
            return call(*args, **more)

        return counted

    monkeypatch.setattr(reading, "open_named", counting("decoded", reading.open_named))
    monkeypatch.setattr(model, "_prepared_chat", counting("read", model._prepared_chat))
    options = {"seed": 3, "temperature": 1.0, "max_new_tokens": 12, "reasoning_effort": "none"}

    async def scenario() -> None:
        work = Work(model, Limits(), Meter(model))
        found = await ended(work, Job(True, (asking(40),), options, choices=4))
        assert counts == {"decoded": 1, "read": 1}
        assert work.reader._pixels.free == Limits().decoded_pixels
        for nth, one in enumerate(found):
            alone = model.chat(asking(40), **{**options, "seed": 3 + nth})
            assert one.result.content == alone.content
            assert one.result.seed == 3 + nth

    run(scenario)


def test_answers_without_a_seed_have_one_each(model) -> None:
    async def scenario() -> None:
        work = Work(model, Limits(), Meter(model))
        more = {"max_new_tokens": 2, "reasoning_effort": "none"}
        drawn = await ended(work, Job(True, (asking(),), {**more, "temperature": 1.0}, choices=4))
        assert len({one.result.seed for one in drawn}) == 4
        greedy = await ended(work, Job(True, (asking(),), {**more, "temperature": 0}, choices=4))
        assert {one.result.seed for one in greedy} == {0}

    run(scenario)


def test_requests_wait_for_room_for_their_pixels(model) -> None:
    """Two of 40 x 40 fit in 4,000 decoded pixels, the third is read when one has ended."""
    limits = Limits(pixels=2000, image_pixels=2000, decoded_pixels=4000)

    async def scenario() -> None:
        reader = Reader(model, limits, ThreadPoolExecutor(4))
        ask = Ask(True, asking(40), {})
        one, other, third = (reader.read(ask) for _ in range(3))
        await one.__aenter__()
        await other.__aenter__()
        waiting = asyncio.ensure_future(third.__aenter__())
        text = await reader.count(Ask(True, asking(), {}))  # those without pictures do not wait
        assert text > 0
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await one.__aexit__(None, None, None)
        assert (await waiting).chat is not None
        for each in (other, third):
            await each.__aexit__(None, None, None)
        assert reader._pixels.free == 4000

    run(scenario)


def test_who_gives_up_waiting_for_pixels_takes_none() -> None:
    async def scenario() -> None:
        pixels = Pixels(10)

        async def hold(count: int, until: asyncio.Event) -> None:
            async with pixels.held(count):
                await until.wait()

        first, last = asyncio.Event(), asyncio.Event()
        holder = asyncio.ensure_future(hold(8, first))
        big = asyncio.ensure_future(hold(9, last))
        small = asyncio.ensure_future(hold(2, last))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert pixels.free == 2, "in turn: the small one does not overtake"
        big.cancel()
        await asyncio.gather(big, return_exceptions=True)
        assert pixels.free == 0, "the small one's turn has come"
        for event in (first, last):
            event.set()
        await asyncio.gather(holder, small)
        assert pixels.free == 10

    run(scenario)


def test_who_goes_away_holds_the_turn_as_long_as_the_thread() -> None:
    async def scenario() -> None:
        go_on, ended = threading.Event(), threading.Event()

        def work() -> None:
            go_on.wait()
            ended.set()

        task = asyncio.ensure_future(in_thread(work))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.sleep(0.05)
        assert not task.done()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    run(scenario)


def test_who_is_cancelled_again_and_again_holds_its_thread_too() -> None:
    go_on, stops = threading.Event(), list[bool]()

    async def scenario() -> None:
        given = {"stop": lambda: stops.append(True), "pool": ThreadPoolExecutor(1)}
        task = asyncio.ensure_future(in_thread(go_on.wait, 20, **given))
        for _ in range(3):
            await asyncio.sleep(0.01)
            task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done() and len(stops) == 3
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(scenario)


def test_nobody_is_told_how_a_thread_ended_that_nobody_waited_for() -> None:
    """Its error would be logged, with a traceback that quotes what the client sent."""

    async def scenario() -> None:
        told: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        go_on = threading.Event()

        def work() -> None:
            go_on.wait()
            raise ValueError("the client's secret")

        task = asyncio.ensure_future(in_thread(work))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.sleep(0.05)
        go_on.set()
        await asyncio.wait({task})
        assert task.cancelled()
        del task
        gc.collect()
        assert not told

    run(scenario)


def test_who_asks_agents_and_goes_away_does_too(model, monkeypatch) -> None:
    go_on, entered = threading.Event(), threading.Event()
    prepare = Contemplation._prepare

    def slow(*args: Any) -> Any:
        entered.set()
        go_on.wait()
        return prepare(*args)

    monkeypatch.setattr(Contemplation, "_prepare", slow)

    async def scenario() -> None:
        work = Work(model, Limits(), Meter(model))
        options = {"mode": "contemplating", "n_agents": 3, "temperature": 1.0}
        run = work.begin("client", Job(True, (asking(),), options), False)
        await asyncio.to_thread(entered.wait)
        closing = asyncio.ensure_future(run.close())
        await asyncio.sleep(0.05)
        assert not closing.done() and work.turns.free == Limits().running - 3
        go_on.set()
        await closing
        assert work.turns.free == Limits().running

    try:
        run(scenario)
    finally:
        go_on.set()


def test_a_limit_of_all_pixels_is_at_least_that_of_a_request() -> None:
    with pytest.raises(InvalidRequest, match=r"decoded_pixels: got 10, .* at least pixels"):
        Limits(decoded_pixels=10)
