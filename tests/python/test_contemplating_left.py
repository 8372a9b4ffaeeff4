"""Contemplations that are left while a thread of theirs runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import musespark
from musespark.contemplating import run as run_code
from musespark.contemplating.run import Contemplation
from musespark.contemplating.streams import AsyncContemplationStream
from support.scripted_agents import Script, Stage


@pytest.fixture(scope="module")
def nano() -> Iterator[musespark.Model]:
    with musespark.load(threads=1) as model:
        yield model


class Gate:
    """Holds the thread that makes the second round, when its requests are submitted and nothing
    else knows of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.reached, self.opened = threading.Event(), threading.Event()
        self._made, self._round = 0, run_code.Round
        monkeypatch.setattr(run_code, "Round", self._make)

    def _make(self, *given: Any) -> Any:
        self._made += 1
        if self._made == 2:
            self.reached.set()
            assert self.opened.wait(60)
        return self._round(*given)


def refining(nano: musespark.Model) -> tuple[Stage, AsyncContemplationStream]:
    stage = Stage(nano, [Script("x", answer) for answer in "1212"])
    given = {"n_agents": 2, "seed": 1, "aggregate": "refine", "consensus": None}
    return stage, AsyncContemplationStream(Contemplation(stage, "Which?", given))


async def left(stream: AsyncContemplationStream, gate: Gate) -> None:
    """Reads it until the thread is at the gate, and is cancelled there."""
    reader = asyncio.ensure_future(stream.drain())
    assert await asyncio.to_thread(gate.reached.wait, 60)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader


def test_a_stream_that_is_closed_waits_for_its_thread(nano: Any, monkeypatch: Any) -> None:
    """It went on beside the thread, and what that then began stayed in the engine."""
    stage, gate = None, Gate(monkeypatch)

    async def main() -> None:
        nonlocal stage
        stage, stream = refining(nano)
        await left(stream, gate)
        closing = asyncio.ensure_future(stream.aclose())
        for _ in range(20):
            await asyncio.sleep(0)
        before = closing.done()
        gate.opened.set()
        await closing
        assert not before and len(stream.result.rounds) == 2
        assert stream.result.stop_reason == "cancelled"

    asyncio.run(main())
    assert len(stage.handles) == 4 and all(handle.cancelled for handle in stage.handles)


def test_what_a_thread_begins_that_nobody_waits_for_is_cancelled(
    nano: Any, monkeypatch: Any
) -> None:
    gate = Gate(monkeypatch)

    async def main() -> None:
        stage, stream = refining(nano)
        await left(stream, gate)
        gate.opened.set()
        await asyncio.get_running_loop().shutdown_default_executor()
        assert len(stage.handles) == 4 and all(handle.cancelled for handle in stage.handles)
        assert stream.handle.wanted is not None  # its steps were not ended: it is still held

    asyncio.run(main())


def test_an_error_of_a_thread_that_nobody_waits_for_is_not_logged(
    nano: Any, monkeypatch: Any
) -> None:
    """The thread is refused what it submits, since who asked has left."""
    entered, opened, told = threading.Event(), threading.Event(), []

    async def main() -> None:
        stage, stream = refining(nano)
        submit = stage._submit

        def late(*given: Any) -> Any:
            if len(stage.handles) == 2:
                entered.set()
                assert opened.wait(60)
            return submit(*given)

        monkeypatch.setattr(stage, "_submit", late)
        asyncio.get_running_loop().set_exception_handler(lambda loop, what: told.append(what))
        reader = asyncio.ensure_future(stream.drain())
        assert await asyncio.to_thread(entered.wait, 60)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        closing = asyncio.ensure_future(stream.aclose())
        opened.set()
        await closing
        assert stream.result.stop_reason == "cancelled" and len(stream.result.rounds) == 1
        assert stage.handles[2].cancelled

    asyncio.run(main())
    assert told == []
