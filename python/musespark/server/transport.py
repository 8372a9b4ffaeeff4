"""HTTP around the protocols: bodies in, JSON and server-sent events out; clients that go away."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from musespark.errors import Cancelled
from musespark.server import anthropic
from musespark.server.limits import Limits
from musespark.server.openai_shared import openai_error
from musespark.server.outbox import Begun, Failed, Item, Piece
from musespark.server.reading import in_thread
from musespark.server.refusing import renamed
from musespark.server.wire import Ended, Event, Exchange, Failure, json_in_steps, to_json
from musespark.server.work import Run
from musespark.untrusted import parse_json

T = TypeVar("T")
_PARTS = 500_000  # objects and arrays of a body: one that asks something has fewer
_LARGE = 1000  # values of an answer, which take some milliseconds
ENDS = Cancelled("the server is shutting down")  # what a request hears whose task is cancelled
_CUT_S = 1.0  # in which a client has to take what it is told at the end
# In a scope's extensions, where what serves the application has it: ends the connection at once,
# whatever its client has not taken yet.
ABORT = "musespark.abort"
UNSENT = "musespark.unsent"  # says how many bytes that is
_LEAST_BYTES_PER_S = 1024  # of who takes an answer slowly: what it asked with is kept meanwhile


class Refused(Exception):  # noqa: N818 - says what it is
    """A request that is answered with a status and a message. ``retry_after``: seconds."""

    def __init__(self, status: int, message: str, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


class Pace:
    """How fast a client takes what it is sent. ``least``: bytes that it has to take in the time in
    which it has to take something."""

    def __init__(self, seconds: float):
        self.least = math.ceil(_LEAST_BYTES_PER_S * seconds)
        self._since, self._mark = math.inf, 0

    def begin(self, now: float, unsent: int) -> None:
        """It has so many bytes to take from now on."""
        self._since, self._mark = now, unsent

    def end(self) -> None:
        self._since = math.inf

    def waited(self, now: float, unsent: int) -> float:
        """Seconds since it had last taken so much, or all; to be asked now and then."""
        enough = unsent < self._mark and unsent <= max(0, self._mark - self.least)
        if self._since == math.inf or enough:
            self.begin(now, unsent)
        return now - self._since


class Bodies:
    """What requests have sent that are not answered yet: at most ``most`` bytes together.

    Counted is what came, not what was announced: who announces much and sends nothing holds up
    nobody. ``retry_after``: says in how many seconds some of it will be gone.
    """

    def __init__(self, most: int, retry_after: Callable[[], int]):
        self.held, self._most, self._retry_after = 0, most, retry_after

    @contextlib.contextmanager
    def counted(self, receive: Receive) -> Iterator[Receive]:
        """What a request receives until its end. It raises :class:`Refused` where it is too much
        beside the others."""
        own = 0

        async def count() -> Message:
            nonlocal own
            message = await receive()
            size = len(message.get("body", b""))
            if self.held + size > self._most:
                after = self._retry_after()
                raise Refused(
                    429,
                    f"the body: requests under way have sent {self.held} bytes, allowed are at "
                    f"most {self._most} together; try again in {after} s",
                    after,
                )
            own, self.held = own + size, self.held + size
            return message

        try:
            yield count
        finally:
            self.held -= own


async def body_of(request: Request, limits: Limits) -> bytes:
    """The body of a JSON request; :class:`Refused` for one that is too long, of another type, or
    does not come."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, f"Content-Type: got {kind!r:.60}, allowed is application/json")
    most = limits.body_bytes
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()) or len(length) > 18:
        raise Refused(400, f"Content-Length: got {length!r:.40}, allowed is a number of bytes")
    if int(length) > most:
        raise Refused(413, f"the body: got {int(length)} bytes, allowed are at most {most}")
    try:
        return await asyncio.wait_for(_read(request, most), limits.read_seconds)
    except asyncio.TimeoutError:
        raise Refused(408, f"the body did not come within {limits.read_seconds:g} s") from None


def value_of(data: bytes, limits: Limits) -> Any:
    """A body that is JSON; CorruptFile for what is none, or has too many parts."""
    return parse_json(data, "the body", limits.body_bytes, parts=_PARTS)


async def _read(request: Request, most: int) -> bytes:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > most:
            raise Refused(413, f"the body: more than {most} bytes, which are allowed")
    return bytes(data)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` gives; ClientDisconnect, and ``work`` is cancelled, where the client goes away
    before."""
    return await _until(_gone(receive), work)


async def _until(end: Coroutine[Any, Any, None], work: Coroutine[Any, Any, T]) -> T:
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(end)
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


def as_json(value: Mapping[str, Any], status: int = 200, **headers: str) -> Response:
    """A JSON answer."""
    data = to_json(value).encode("utf-8", "replace")
    return Response(data, status, headers, "application/json")


def values_of(items: Iterable[Item]) -> int:
    """About how many values there are to write of what answers wrote: tokens with what stood beside
    them. A text is one of them, however long."""
    found = 0
    for item in items:
        told = item.delta.logprobs if isinstance(item, Piece) else getattr(item, "logprobs", ())
        found += 1 + len(told) * (1 + len(told[-1].top)) if told else 1
    return found


async def large_json(make: Callable[[], Mapping[str, Any]], values: int) -> Response:
    """A JSON answer of so many ``values``: many are put together in a thread, or nobody else would
    be served for seconds."""
    if values < _LARGE:
        return as_json(make())
    data = await in_thread(lambda: json_in_steps(make()).encode("utf-8", "replace"))
    return Response(data, media_type="application/json")


def told(failure: Failure, path: str, **headers: str) -> Response:
    """An error as the protocol of a path writes it."""
    messages = path.startswith(anthropic.PATH)
    error_body = anthropic.CountTokens.error_body if messages else openai_error
    if failure.retry_after:
        headers["Retry-After"] = str(failure.retry_after)
    return as_json(error_body(failure), failure.status, **headers)


def _written(events: Sequence[Event], write: Callable[[Any], str] = to_json) -> bytes:
    lines = []
    for data, name in events:
        if not isinstance(data, str):
            data = write(data)
        lines.append(f"event: {name}\ndata: {data}\n\n" if name else f"data: {data}\n\n")
    return "".join(lines).encode("utf-8", "replace")


class EventStream(Response):
    """A run as server-sent events. Closes the run, whatever happens: where the client goes away or
    takes next to nothing for ``write_seconds``, what runs is cancelled. Where the server ends, the
    client is told so. After each ``quiet_seconds`` of silence, in the queue, a long prompt or a
    call that comes whole, something without a meaning is sent, or proxies would take it for dead.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        exchange: Exchange,
        run: Run,
        limits: Limits,
        failure_of: Callable[[Exception], Failure],
    ):
        super().__init__(headers={"X-Accel-Buffering": "no"})  # of proxies that would collect it
        del self.headers["content-length"]
        self._exchange, self._run, self._limits = exchange, run, limits
        self._failure_of = failure_of
        self._sending: float | None = None  # since when a client has not taken what it is sent
        self._sent = time.monotonic()  # when it was last sent something
        self._ended: list[Ended] = []
        self._started = self._begun = self._complete = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        extensions = scope.get("extensions") or {}
        abort, unsent = extensions.get(ABORT), extensions.get(UNSENT, int)
        try:
            try:
                with contextlib.suppress(ClientDisconnect):
                    await _until(self._gone_or_stuck(receive, abort, unsent), self._write(send))
            finally:
                await self._run.close()
        except asyncio.CancelledError:
            try:
                await asyncio.wait_for(self._cut(send), _CUT_S)
            except asyncio.TimeoutError:  # the client takes nothing, and the end waits for it
                if abort is not None:
                    abort()
            raise

    async def _gone_or_stuck(
        self, receive: Receive, abort: Callable[[], None] | None, unsent: Callable[[], int]
    ) -> None:
        """Until the client has gone away, or taken next to nothing of what is ``unsent`` for too
        long, when its connection is ended by ``abort``. One timer for a stream, not one for each of
        its events."""
        most, quiet = self._limits.write_seconds, self._limits.quiet_seconds
        gone, pace, begun = asyncio.ensure_future(_gone(receive)), Pace(most), None
        try:
            while not gone.done():
                await asyncio.wait({gone}, timeout=min(most, quiet) / 4)
                now, since = time.monotonic(), self._sending
                if since is None and now - self._sent > quiet:
                    self._run.nudge()
                if since != begun:  # what is sent now is another piece than at the last look
                    begun = since
                    pace.begin(now, unsent())
                elif since is not None and pace.waited(now, unsent()) > most:
                    if abort is not None:
                        abort()
                        await gone  # so that nobody takes it for an answer that was forgotten
                    return
        finally:
            gone.cancel()

    async def _cut(self, send: Send) -> None:
        if not self._complete:
            await self._start(send)
            await self._send(send, lambda: self._failed(ENDS))
            await self._finish(send)

    async def _start(self, send: Send) -> None:
        if not self._started:
            self._started = True
            headers = self.raw_headers
            await send({"type": "http.response.start", "status": 200, "headers": headers})

    async def _finish(self, send: Send) -> None:
        self._complete = True
        await send({"type": "http.response.body", "body": b""})

    async def _write(self, send: Send) -> None:
        await self._start(send)
        whole = True
        async for items in self._run.items():
            await self._send(send, lambda some=items: self._events(some), values_of(items))
            if time.monotonic() - self._sent > self._limits.quiet_seconds:
                await self._send_bytes(send, self._exchange.quiet)
            if any(isinstance(item, Failed) for item in items):
                whole = False
                break
        if whole:
            end = functools.partial(self._exchange.close, self._ended)
            await self._send(send, end, values_of(self._ended))
        await self._finish(send)

    def _events(self, items: Sequence[Item]) -> list[Event]:
        return [event for item in items for event in self._events_of(item)]

    def _events_of(self, item: Item) -> list[Event]:
        if isinstance(item, Begun):
            return self._begin(item.prompt_tokens)
        if isinstance(item, Piece):
            return self._exchange.piece(item.index, item.delta)
        if isinstance(item, Ended):
            self._ended.append(item)
            return self._exchange.ended(item)
        if isinstance(item, Failed):
            return self._failed(item.error)
        return []

    def _begin(self, prompt_tokens: int) -> list[Event]:
        if self._begun:
            return []
        self._begun = True
        return self._exchange.begin(prompt_tokens)

    def _failed(self, error: Exception) -> list[Event]:
        # Clients of some protocols take no end of what has not begun.
        failure = self._failure_of(renamed(error, self._exchange.fields))
        return [*self._begin(0), *self._exchange.failed(failure)]

    async def _send(self, send: Send, make: Callable[[], Sequence[Event]], values: int = 0) -> None:
        """Events of so many ``values``; see :func:`large_json`."""
        if values < _LARGE:
            data = _written(make())
        else:
            data = await in_thread(lambda: _written(make(), json_in_steps))
        if data:
            await self._send_bytes(send, data)

    async def _send_bytes(self, send: Send, data: bytes) -> None:
        self._sending = time.monotonic()
        await send({"type": "http.response.body", "body": data, "more_body": True})
        self._sent, self._sending = self._sending, None
