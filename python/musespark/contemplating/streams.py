"""Who drives contemplations: one for its deltas, one for an event loop, several at once."""

from __future__ import annotations

import contextvars
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from musespark.contemplating.result import AgentDelta, ContemplationResult
from musespark.contemplating.run import Contemplation, Messages
from musespark.engine import Handle
from musespark.errors import Error
from musespark.generation import AsyncStream, Stream

if TYPE_CHECKING:
    import asyncio

    from musespark.model import Model


class ContemplationStream(Stream):
    """An iterator of :class:`AgentDelta`, in an order that is always the same; ``.result`` after
    the end. Closed early it holds the vote of what was there."""

    def __init__(self, contemplation: Contemplation):
        self._contemplation = contemplation.start()
        super().__init__(contemplation, None)  # what is cancelled in place of a request

    @property
    def blocked(self) -> bool:
        """Whether nothing can be done until the engine has written more."""
        wanted = self._contemplation.wanted
        return isinstance(wanted, Handle) and not wanted.has_event

    @property
    def ended(self) -> bool:
        return self._contemplation.wanted is None

    def go_on(self) -> AgentDelta | None:
        """Does what is next, waiting where it is :attr:`blocked`; a delta where one came."""
        run = self._contemplation
        wanted = run.wanted
        if isinstance(wanted, AgentDelta):
            run.advance()
            return wanted
        run.advance(wanted.next_event() if isinstance(wanted, Handle) else wanted())
        return None

    def quiet(self) -> None:
        """Nobody reads the deltas from here on: tokens are then taken in lumps, not in turn, which
        is cheaper."""
        self._contemplation.heard = False

    def drain(self) -> ContemplationResult:
        self.quiet()
        return super().drain()

    def _run(self) -> Iterator[AgentDelta]:
        try:
            while not self.ended:
                delta = self.go_on()
                if delta is not None:
                    yield delta
        except BaseException as error:
            self.handle.cancel()
            if isinstance(error, Exception):
                self._failure = error
            raise
        self._result = self._contemplation.result

    def _partial(self) -> ContemplationResult:
        run = self._contemplation
        run.cancel()
        try:
            while (wanted := run.wanted) is not None:  # no tool is run any more
                run.advance(wanted.next_event() if isinstance(wanted, Handle) else None)
        except Error as error:
            self._failure = error
            raise
        self._result = run.result
        return self._result


class AsyncContemplationStream(AsyncStream):
    """The same for an event loop; tools run in threads."""

    def __init__(self, contemplation: Contemplation):
        self._contemplation = contemplation.start()
        self._working: asyncio.Future[None] | None = None  # what runs in a thread
        super().__init__(contemplation, None)

    async def _run(self) -> AsyncIterator[AgentDelta]:
        run = self._contemplation
        try:
            while (wanted := run.wanted) is not None:
                if isinstance(wanted, AgentDelta):
                    run.advance()
                    yield wanted
                elif isinstance(wanted, Handle):
                    run.advance(await wanted.anext_event())
                else:
                    await self._in_thread(wanted)
                    run.advance()
        except BaseException as error:
            self.handle.cancel()
            if isinstance(error, Exception):
                self._failure = error
            raise
        self._result = run.result

    def quiet(self) -> None:
        """See :meth:`ContemplationStream.quiet`."""
        self._contemplation.heard = False

    async def drain(self) -> ContemplationResult:
        self.quiet()
        return await super().drain()

    async def _in_thread(self, work: Callable[[], None]) -> None:
        """Runs it; who is cancelled here leaves it running, for no thread can be ended."""
        import asyncio  # here: it takes longer than mapping the weights

        run, loop = contextvars.copy_context().run, asyncio.get_running_loop()
        self._working = working = loop.run_in_executor(None, run, work)
        working.add_done_callback(_seen)
        await asyncio.wait([working])
        working.result()

    async def _rest(self) -> None:
        import asyncio

        run = self._contemplation
        if self._working is not None:  # else it would go on beside what its reader left running
            await asyncio.wait([self._working])
        while (wanted := run.wanted) is not None:
            run.advance(await wanted.anext_event() if isinstance(wanted, Handle) else None)
        self._result = run.result


def _seen(done: asyncio.Future[None]) -> None:
    """Its error is told to who waits for it, if anybody does: asyncio need not log it."""
    if not done.cancelled():
        done.exception()


def contemplate(model: Model, messages: Messages, given: Mapping[str, Any]) -> ContemplationStream:
    """See :meth:`musespark.Model.chat` with ``mode="contemplating"``."""
    run = Contemplation(model, messages, given)
    try:
        return ContemplationStream(run)
    except BaseException:  # Ctrl-C
        run.cancel()
        raise


async def acontemplate(
    model: Model, messages: Messages, given: Mapping[str, Any]
) -> AsyncContemplationStream:
    """The same for an event loop; the question is encoded in a thread."""
    import asyncio  # here: it takes longer than mapping the weights

    run = await asyncio.to_thread(Contemplation, model, messages, given)
    return AsyncContemplationStream(run)


def drain_together(streams: Sequence[ContemplationStream]) -> list[Any]:
    """The results of several that run at once, each going on as soon as it can: what one of them
    decides early leaves room for the others."""
    running = list(streams)
    for stream in running:
        stream.quiet()
    while running:
        if all(stream.blocked for stream in running):
            running[0].go_on()
        for stream in running:
            while not stream.ended and not stream.blocked:
                stream.go_on()
        running = [stream for stream in running if not stream.ended]
    return [stream.drain() for stream in streams]
