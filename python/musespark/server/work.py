"""Requests of many clients in one engine: from the event loop to its thread and back.

The engine's own thread runs all requests as one batch. Here are coroutines alone: a job waits for
its turns, is prepared in a worker thread (templates, images), submitted, and its deltas come back
through the loop. What nobody reads yet is kept, at most a context for each answer, so that a slow
client holds up neither the engine nor others.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from musespark.contemplating import acontemplate
from musespark.contemplating.options import checked_contemplating
from musespark.errors import InvalidRequest, UnsupportedModel
from musespark.generation import AsyncStream
from musespark.options import CONTEMPLATING
from musespark.parts import with_media
from musespark.results import TokenLogprob
from musespark.server.limits import Limits
from musespark.server.metrics import Meter
from musespark.server.outbox import Begun, Failed, Item, Outbox, Piece
from musespark.server.turns import Ticket, Turns
from musespark.server.wire import Ask, Ended, Job
from musespark.vision.pixels import Limits as PictureLimits
from musespark.vision.pixels import open_named

if TYPE_CHECKING:
    from musespark.model import Model

_MOST_RETRY_S = 60


class Work:
    """The requests of one model. For one event loop."""

    def __init__(self, model: Model, limits: Limits, meter: Meter):
        self.model, self.limits, self.meter = model, limits, meter
        self.turns = Turns(limits.running, limits.waiting)
        self._pictures = PictureLimits(
            file_bytes=limits.body_bytes, pixels=limits.image_pixels, count=limits.images
        )
        self._seconds = 1.0  # of a turn, the mean of the last ones

    def begin(self, client: str, job: Job, streams: bool) -> Run:
        """Puts a job that is within the limits in the queue; ``streams``: its pieces are read, not
        the whole alone. InvalidRequest or :class:`musespark.server.turns.QueueFull`."""
        asks = job.asks()
        tickets = self.turns.take(client, [_rows(ask) for ask in asks], self.retry_after())
        return Run(self, list(zip(asks, tickets, strict=True)), streams)

    @contextlib.contextmanager
    def turn(self, client: str) -> Iterator[Ticket]:
        """A ticket for what is no job; it ends with the context."""
        (ticket,) = self.turns.take(client, [1], self.retry_after())
        try:
            yield ticket
        finally:
            ticket.release()

    def retry_after(self) -> int:
        """Seconds in which what waits will be about done."""
        rounds = (self.turns.waiting + 1) / self.limits.running
        return min(_MOST_RETRY_S, max(1, math.ceil(rounds * self._seconds)))

    async def count(self, job: Job) -> int:
        """Tokens of the prompt of the only request of a job that is within the limits."""
        (ask,) = job.asks()
        return await asyncio.to_thread(self._count, ask)

    def _count(self, ask: Ask) -> int:
        messages = self._with_pictures(ask.prompt)
        return len(self.model._prepared_chat(messages, ask.options).ids)

    async def stream(self, ask: Ask, *, heard: bool) -> tuple[AsyncStream, int]:
        """A request under way, and how long its prompt is. ``heard``: whether its pieces are sent
        as they come."""
        if _contemplates(ask):
            messages = await asyncio.to_thread(self._with_pictures, ask.prompt)
            agents = await acontemplate(self.model, messages, ask.options)
            if not heard:
                agents.quiet()
            return agents, 0
        request, *rest = await asyncio.to_thread(self._prepared, ask)
        return AsyncStream(*self.model._submit(request, *rest)), len(request.tokens)

    def _prepared(self, ask: Ask) -> tuple[Any, ...]:
        if not ask.is_chat:
            return self.model._text_request(ask.prompt, ask.options)
        return self.model._chat_request(self._with_pictures(ask.prompt), ask.options)

    def _with_pictures(self, messages: Any) -> Any:
        """The messages with images decoded, within the limits of a request."""
        left = self.limits.pixels

        def decode(part: Mapping[str, Any], where: str) -> Mapping[str, Any]:
            nonlocal left
            if self.model._requests.eyes is None:
                raise UnsupportedModel("images: this model reads text alone")
            most = min(self._pictures.pixels, max(1, left))
            limits = replace(self._pictures, pixels=most)
            picture = open_named(part["image"], where, limits=limits)
            left -= picture.pixels.size // 3
            if left < 0:
                raise InvalidRequest(f"{where}: more than {self.limits.pixels} pixels together")
            return {**part, "image": picture}

        return with_media(messages, decode)

    def took(self, seconds: float) -> None:
        """A turn took so long."""
        self._seconds += 0.1 * (seconds - self._seconds)


def _contemplates(ask: Ask) -> bool:
    return ask.is_chat and ask.options.get("mode") == CONTEMPLATING


def _rows(ask: Ask) -> int:
    """How many rows of the engine answer it at once."""
    return checked_contemplating(ask.options).n_agents if _contemplates(ask) else 1


class Run:
    """A job's answers as they come. To be closed; closing early cancels what is left of it."""

    def __init__(self, work: Work, asks: list[tuple[Ask, Ticket]], streams: bool):
        self._work, self._streams = work, streams
        self._outbox = Outbox()
        self._early: list[Item] = []  # what begun() took
        self._left = len(asks)
        self._tasks = [
            asyncio.ensure_future(self._answer(index, ask, ticket))
            for index, (ask, ticket) in enumerate(asks)
        ]
        for task, (_, ticket) in zip(self._tasks, asks, strict=True):
            # Here, for a task that is cancelled before it ran runs none of its own.
            task.add_done_callback(lambda _, ticket=ticket: ticket.release())

    async def _answer(self, index: int, ask: Ask, ticket: Ticket) -> None:
        meter = self._work.meter
        try:
            with meter.waits():
                await ticket.wait()
            began = time.monotonic()
            try:
                await self._write(index, ask)
            finally:
                self._work.took(time.monotonic() - began)
        except Exception as error:  # who reads the run hears of it
            self._outbox.put(Failed(index, error))

    async def _write(self, index: int, ask: Ask) -> None:
        told: list[TokenLogprob] = []
        clock = self._work.meter.clock()
        stream, prompt = await self._work.stream(ask, heard=self._streams)
        async with stream:
            self._outbox.put(Begun(index, prompt))
            async for delta in stream:
                clock.tick()
                if delta.channel == "content":
                    told += delta.logprobs
                if self._streams:
                    self._outbox.put(Piece(index, delta))
            result = stream.result
        self._work.meter.used(result.usage)
        self._outbox.put(Ended(index, result, tuple(told)))

    async def begun(self, seconds: float | None = None) -> None:
        """Waits for the first answer to begin, at most so long; raises where it cannot."""
        with contextlib.suppress(asyncio.TimeoutError):
            self._early = await asyncio.wait_for(self._outbox.take(), seconds)
            if isinstance(self._early[0], Failed):
                raise self._early[0].error

    def nudge(self) -> None:
        """Who reads :meth:`items` is given nothing, where nothing comes."""
        self._outbox.nudge()

    async def items(self) -> AsyncIterator[list[Item]]:
        """What has come meanwhile, again and again."""
        while self._left:
            some, self._early = self._early or await self._outbox.take(), []
            self._left -= sum(isinstance(one, (Ended, Failed)) for one in some)
            yield some

    async def answers(self) -> list[Ended]:
        """All answers, whole and in order; raises where one failed."""
        found: list[Ended] = []
        async for some in self.items():
            for item in some:
                if isinstance(item, Failed):
                    raise item.error
                if isinstance(item, Ended):
                    found.append(item)
        return sorted(found, key=lambda one: one.index)

    async def close(self) -> None:
        """Cancels what still runs, and waits until the engine has let go of it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
