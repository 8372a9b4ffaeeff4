"""What answers have written and nobody has been sent yet: joined, so that there is less to send."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from musespark.results import Delta
from musespark.server.wire import Ended


class Begun(NamedTuple):
    """An answer's prompt has been read. ``prompt_tokens``: 0 where there are several."""

    index: int
    prompt_tokens: int


class Piece(NamedTuple):
    """What an answer grew by."""

    index: int
    delta: Delta


class Failed(NamedTuple):
    """An answer that there will not be."""

    index: int
    error: Exception


Item = Begun | Piece | Ended | Failed


class Outbox:
    """Items of one request, from who writes them to who sends them, on one event loop.

    The first piece may be sent at once; later ones wait until ``window()`` seconds after what was
    taken last, for more to join them. A beginning, an end and a failure wait for nothing. What
    nobody takes stays.
    """

    def __init__(self, window: Callable[[], float]):
        self._window, self._loop = window, asyncio.get_running_loop()
        self._items: list[Item] = []
        self._ready = asyncio.Event()
        self._taken = float("-inf")  # when a piece was taken last
        self._timer: asyncio.TimerHandle | None = None

    def put(self, item: Item) -> None:
        """Adds an item."""
        self._items.append(item)
        if self._ready.is_set():
            return
        left = 0.0
        if isinstance(item, Piece):
            left = self._taken + self._window() - self._loop.time()
        if left <= 0:
            self._release()
        elif self._timer is None:
            self._timer = self._loop.call_later(left, self._release)

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._ready.set()

    async def take(self) -> list[Item]:
        """What there is, at least one item, as soon as it may be sent; neighbouring pieces of text
        of one channel of one answer are one."""
        await self._ready.wait()
        self._ready.clear()
        some, self._items = self._items, []
        if any(isinstance(item, Piece) for item in some):
            self._taken = self._loop.time()
        return joined(some)

    def close(self) -> None:
        """Nothing more is taken."""
        if self._timer is not None:
            self._timer.cancel()


def joined(items: list[Item]) -> list[Item]:
    """Items in order, neighbouring pieces of text of one channel of one answer as one."""
    out: list[Item] = []
    for item in items:
        last = out[-1] if out else None
        if isinstance(item, Piece) and isinstance(last, Piece) and _joins(last, item):
            delta = replace(
                last.delta,
                text=last.delta.text + item.delta.text,
                logprobs=last.delta.logprobs + item.delta.logprobs,
            )
            out[-1] = Piece(item.index, delta)
        else:
            out.append(item)
    return out


def _joins(one: Piece, other: Piece) -> bool:
    def key(piece: Piece) -> tuple[Any, ...]:
        delta = piece.delta
        return piece.index, delta.channel, getattr(delta, "agent", 0), getattr(delta, "round", 0)

    calls = one.delta.tool_call is not None or other.delta.tool_call is not None
    return not calls and key(one) == key(other)
