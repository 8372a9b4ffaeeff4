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
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from musespark.contemplating import AsyncContemplationStream, Contemplation
from musespark.contemplating.options import checked_contemplating
from musespark.events import Request
from musespark.generation import AsyncStream
from musespark.results import Delta, TokenLogprob
from musespark.scoring import scored_tokens
from musespark.server.limits import Limits
from musespark.server.metrics import Meter
from musespark.server.outbox import Begun, Failed, Item, Outbox, Piece
from musespark.server.reading import Conversation, Reader, contemplates, ended, in_thread
from musespark.server.turns import Ticket, Turns
from musespark.server.wire import Ask, Ended, Job

if TYPE_CHECKING:
    from musespark.model import Model

T = TypeVar("T")

_MOST_RETRY_S = 60


class Work:
    """The requests of one model. For one event loop."""

    def __init__(self, model: Model, limits: Limits, meter: Meter):
        self.model, self.limits, self.meter = model, limits, meter
        self.turns = Turns(limits.running, limits.waiting)
        # A thread for each turn, beside the loop's own: long ones keep nobody's body waiting.
        self._pool = ThreadPoolExecutor(limits.running, "musespark-turn")
        self.reader = Reader(model, limits, self._pool)
        self._seconds = 1.0  # of a turn, the mean of the last ones

    def begin(self, client: str, job: Job, streams: bool) -> Run:
        """Puts a job that is within the limits in the queue; ``streams``: its pieces are read, not
        the whole alone. InvalidRequest or :class:`musespark.server.turns.QueueFull`."""
        asks = job.asks()
        tickets = self.turns.take(client, [_rows(ask) for ask in asks], self.retry_after())
        return Run(self, list(zip(asks, tickets, strict=True)), streams, job.choices)

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
        return await self.reader.count(ask)

    async def stream(
        self, ask: Ask, read: Conversation | None, nth: int, *, heard: bool
    ) -> tuple[AsyncStream, int]:
        """The ``nth`` answer to a conversation, or to a text where there is none, under way, and
        how long its prompt is. ``heard``: whether its pieces are sent as they come."""
        if read is not None and read.chat is None:
            given = (self.model, read.messages, ask.options)
            agents = AsyncContemplationStream(await self.threaded(Contemplation, *given))
            if not heard:
                agents.quiet()
            return agents, 0
        request, *rest = await self.threaded(self._request, ask, read, nth)
        return AsyncStream(*self.model._submit(request, *rest)), len(request.tokens)

    async def echo(self, ask: Ask) -> Delta:
        """The prompt as a piece of what answers it, with the log-probabilities of its tokens where
        they are asked for."""
        request, text = await self.threaded(self._echoed, ask)
        if not request.logprobs:
            return Delta(text)
        handle = self.model._engine.submit(request)
        result = await ended(asyncio.ensure_future(handle.aresult()), handle.cancel)
        return Delta(text, logprobs=await self.threaded(scored_tokens, request.tokens, result))

    def _echoed(self, ask: Ask) -> tuple[Request, str]:
        """What scores a prompt, and the prompt as text."""
        given, count = ask.prompt, ask.options.get("logprobs")
        text = given if isinstance(given, str) else self.model.tokenizer.decode(given)
        some = {"max_new_tokens": 1, "adapter": ask.options.get("adapter")}  # without a grammar
        read, *_ = self.model._text_request(given, some)
        asked = {"logits": "score", "logprobs": count} if count else {}
        return Request(tokens=read.tokens, adapter=read.adapter, **asked), text

    def _text_request(self, ask: Ask) -> tuple[Any, ...]:
        if ask.options.get("max_new_tokens") != 0:
            return self.model._text_request(ask.prompt, ask.options)
        some = {**ask.options, "max_new_tokens": 1}  # of a text that is written
        request, *rest = self.model._text_request(ask.prompt, some)
        return replace(request, max_new_tokens=0), *rest

    def _request(self, ask: Ask, read: Conversation | None, nth: int) -> tuple[Any, ...]:
        if read is None or read.chat is None:
            return self._text_request(ask)
        chat, seed = read.chat, ask.options.get("seed")
        if nth > 0 and seed is None and chat.options.temperature > 0:
            seed = secrets.randbits(32)  # as each request without one draws its own
        request, collector = chat.ask(seed)
        return request, collector, self.model._prefixes.base_for(request)

    async def threaded(
        self, call: Callable[..., T], *args: Any, stop: Callable[[], object] = lambda: None
    ) -> T:
        """:func:`musespark.server.reading.in_thread`, in one of those of the turns."""
        return await in_thread(call, *args, stop=stop, pool=self._pool)

    def took(self, seconds: float) -> None:
        """A turn took so long."""
        self._seconds += 0.1 * (seconds - self._seconds)


def _rows(ask: Ask) -> int:
    """How many rows of the engine answer it at once."""
    return checked_contemplating(ask.options).n_agents if contemplates(ask) else 1


class Run:
    """A job's answers as they come, ``choices`` to each prompt. To be closed; closing early cancels
    what is left of it."""

    def __init__(self, work: Work, asks: list[tuple[Ask, Ticket]], streams: bool, choices: int):
        self._work, self._streams, self._choices = work, streams, choices
        self._outbox = Outbox()
        self._early: list[Item] = []  # what begun() took
        self._left = len(asks)
        self._held = contextlib.AsyncExitStack()
        self._read: asyncio.Future[Conversation] | None = None  # by who comes first
        self._echoes = dict[int, asyncio.Future[Delta]]()  # of each prompt, by who comes first
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
        read = await self._conversation(ask) if ask.is_chat else None
        echo = await self._echo(index // self._choices, ask) if ask.echo else None
        stream, prompt = await self._work.stream(ask, read, index, heard=self._streams)

        def tell(delta: Delta) -> None:
            if delta.channel == "content":
                told.extend(delta.logprobs)
            if self._streams:
                self._outbox.put(Piece(index, delta))

        async with stream:
            self._outbox.put(Begun(index, prompt))
            if echo is not None:
                tell(echo)
            async for delta in stream:
                clock.tick()
                tell(delta)
            result = stream.result
        if echo is not None:  # whose reader counts tokens: what ended it has no text, but is one
            untold = (result.logprobs or ())[len(told) - len(echo.logprobs) :]
            tell(Delta("", logprobs=untold))
        self._work.meter.used(result.usage)
        text = "" if echo is None else echo.text
        self._outbox.put(Ended(index, result, tuple(told), text))

    async def _conversation(self, ask: Ask) -> Conversation:
        """The conversation that all answers are to; it stays read until the run is closed."""
        if self._read is None:
            reading = self._held.enter_async_context(self._work.reader.read(ask))
            self._read = asyncio.ensure_future(reading)
        return await self._read

    async def _echo(self, prompt: int, ask: Ask) -> Delta:
        """The prompt of so many as a piece of its answers, scored once for all of them."""
        if prompt not in self._echoes:
            self._echoes[prompt] = asyncio.ensure_future(self._work.echo(ask))
        return await self._echoes[prompt]

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
        await self._held.aclose()
