"""What answers have written and nobody has been sent yet: joined, so that there is less to send."""

from __future__ import annotations

import asyncio
import itertools
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
    """Items of one request, from who writes them to who sends them, on one event loop. What nobody
    takes stays."""

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._taker: asyncio.Future[None] | None = None

    def put(self, item: Item) -> None:
        """Adds an item."""
        self._items.append(item)
        self.nudge()

    def nudge(self) -> None:
        """Who waits in :meth:`take` waits no longer."""
        if self._taker is not None and not self._taker.done():
            self._taker.set_result(None)

    async def take(self) -> list[Item]:
        """What has come, nothing after a :meth:`nudge` alone; neighbouring pieces of text of one
        channel of one answer are one."""
        if not self._items:
            self._taker = asyncio.get_running_loop().create_future()
            await self._taker
        some, self._items = self._items, []
        return joined(some)


def joined(items: list[Item]) -> list[Item]:
    """Items in order, neighbouring pieces of text of one channel of one answer as one."""
    out: list[Item] = []
    for key, group in itertools.groupby(items, _joins):
        some = list(group)
        out += some if key is None or len(some) == 1 else [_one(some)]
    return out


def _joins(item: Item) -> tuple[Any, ...] | None:
    """What neighbours have in common that are joined; None of what stays by itself."""
    if not isinstance(item, Piece) or item.delta.tool_call is not None:
        return None
    delta = item.delta
    return item.index, delta.channel, getattr(delta, "agent", 0), getattr(delta, "round", 0)


def _one(pieces: list[Any]) -> Piece:
    """All at once: a slow reader leaves thousands, and each may be joined but once."""
    deltas = [piece.delta for piece in pieces]
    text = "".join(delta.text for delta in deltas)
    logprobs = tuple(itertools.chain.from_iterable(delta.logprobs for delta in deltas))
    return Piece(pieces[0].index, replace(deltas[0], text=text, logprobs=logprobs))
