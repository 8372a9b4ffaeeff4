"""What a caller reads: streams of deltas, driven from a handle, and the result at their end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from musespark.collectors import Collector
from musespark.engine import Handle
from musespark.errors import Error, InvalidRequest
from musespark.events import Event, Finished, Tokens
from musespark.results import Delta


def _read_by_one(error: Exception) -> InvalidRequest | None:
    """The error of a generator that is running already, which it raises without a frame of its
    own, as one of ours; None for any other."""
    trace = error.__traceback__
    if trace is None or trace.tb_next is not None:
        return None
    return InvalidRequest("this stream is being read already; one reader at a time")


class _Driven:
    """What both streams share: the collector's state and the result."""

    def __init__(self, handle: Handle, collector: Collector):
        self.handle, self._collector = handle, collector
        self._result: Any = None
        self._failure: Exception | None = None
        self._closed = False

    @property
    def result(self) -> Any:
        """The final object; there once the iteration has ended or the stream was closed.

        Closed early it holds what had been written when it was last read (a model of thousands of
        tokens a second writes some in between), with finish_reason ``cancelled``. What ended
        the iteration with an error raises that error here too.
        """
        if self._result is not None:
            return self._result
        if self._failure is not None:
            raise self._failure
        if not self._closed:
            raise Error("the stream has not ended yet; read it to the end or close it")
        return self._partial()

    def _partial(self) -> Any:
        self.handle.cancel()
        try:
            for event in self.handle:  # what nobody read, and the end
                self._cut(event)
        except Error as error:
            self._failure = error
            raise
        return self._result

    def _cut(self, event: Event) -> None:
        """The result of a stream that nobody read to this end."""
        if isinstance(event, Finished):
            _, self._result = self._collector.finish(event._replace(reason="cancelled"))

    def cancel(self) -> None:
        """Ends the request within one layer; the iteration then ends with what there is."""
        self.handle.cancel()

    def _step(self, event: Event) -> list[Delta]:
        if isinstance(event, Finished):
            deltas, self._result = self._collector.finish(event)
            return deltas
        if not isinstance(event, Tokens) or self._collector.stopped:
            return []
        deltas = self._collector.push(event)
        if self._collector.stopped:
            self.handle.cancel()
        return deltas


class Stream(_Driven):
    """An iterator of :class:`Delta`; ``.result`` after the end. Closing it early cancels."""

    def __init__(self, handle: Handle, collector: Collector):
        super().__init__(handle, collector)
        self._deltas = self._run()

    def _run(self) -> Iterator[Delta]:
        try:
            for event in self.handle:
                yield from self._step(event)
        except Error as error:
            self._failure = error
            raise

    def __iter__(self) -> Iterator[Delta]:
        return self

    def __next__(self) -> Delta:
        try:
            return next(self._deltas)
        except ValueError as error:
            if refused := _read_by_one(error):
                raise refused from None
            raise

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancels the request if it still runs. Another thread that reads comes to an end."""
        self.handle.cancel()
        try:
            self._deltas.close()
        except ValueError as error:
            if not _read_by_one(error):
                raise
        else:
            self._closed = True

    def drain(self) -> Any:
        """Runs to the end and returns the result; what ends it early cancels."""
        try:
            for _ in self:
                pass
        finally:
            self.close()
        return self.result


class AsyncStream(_Driven):
    """The same for an event loop."""

    def __init__(self, handle: Handle, collector: Collector):
        super().__init__(handle, collector)
        self._deltas = self._run()

    async def _run(self) -> AsyncIterator[Delta]:
        try:
            async for event in self.handle:
                for delta in self._step(event):
                    yield delta
        except Error as error:
            self._failure = error
            raise

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        try:
            return await self._deltas.__anext__()
        except RuntimeError as error:
            if refused := _read_by_one(error):
                raise refused from None
            raise

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancels the request if it still runs, and waits until it has ended."""
        self.handle.cancel()
        try:
            await self._deltas.aclose()
        except RuntimeError as error:
            if not _read_by_one(error):
                raise
            return  # who reads it comes to an end
        if self._result is None and self._failure is None:
            try:
                await self._rest()
            except Error as error:  # the model was closed: result says so
                self._failure = error
        self._closed = True

    async def _rest(self) -> None:
        async for event in self.handle:
            self._cut(event)

    async def drain(self) -> Any:
        async for _ in self:
            pass
        return self.result
