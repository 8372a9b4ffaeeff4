"""HTTP around the protocols: bodies in, JSON and server-sent events out; clients that go away."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from musespark.errors import Cancelled
from musespark.server.limits import Limits
from musespark.server.outbox import Failed, Item, Piece
from musespark.server.wire import Ended, Event, Exchange, Failure, to_json
from musespark.server.work import Run

T = TypeVar("T")
ENDS = Cancelled("the server is shutting down")  # what a request hears whose task is cancelled


class Refused(Exception):  # noqa: N818 - says what it is
    """A request that is answered with a status and a message. ``retry_after``: seconds."""

    def __init__(self, status: int, message: str, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


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


def _written(events: Sequence[Event]) -> bytes:
    lines = []
    for data, name in events:
        if not isinstance(data, str):
            data = to_json(data)
        lines.append(f"event: {name}\ndata: {data}\n\n" if name else f"data: {data}\n\n")
    return "".join(lines).encode("utf-8", "replace")


class EventStream(Response):
    """A run as server-sent events. Closes the run, whatever happens: where the client goes away or
    takes nothing for ``write_seconds``, what runs is cancelled. Where the server ends, the client
    is told so."""

    media_type = "text/event-stream"

    def __init__(
        self,
        exchange: Exchange,
        run: Run,
        prompt_tokens: int,
        write_seconds: float,
        failure_of: Callable[[Exception], Failure],
    ):
        super().__init__(headers={"X-Accel-Buffering": "no"})  # of proxies that would collect it
        del self.headers["content-length"]
        self._exchange, self._run, self._prompt = exchange, run, prompt_tokens
        self._write_seconds, self._failure_of = write_seconds, failure_of
        self._sending: float | None = None  # since when a client has not taken what it is sent
        self._ended: list[Ended] = []
        self._started = self._complete = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            try:
                with contextlib.suppress(ClientDisconnect):
                    await _until(self._gone_or_stuck(receive), self._write(send))
            finally:
                await self._run.close()
        except asyncio.CancelledError:
            await self._cut(send)  # until the next cancellation, where the client is stuck
            raise

    async def _gone_or_stuck(self, receive: Receive) -> None:
        """Until the client has gone away, or taken nothing for too long. One timer for a stream,
        not one for each of its events."""
        gone = asyncio.ensure_future(_gone(receive))
        try:
            while not gone.done():
                await asyncio.wait({gone}, timeout=self._write_seconds / 4)
                since = self._sending
                if since is not None and time.monotonic() - since > self._write_seconds:
                    return
        finally:
            gone.cancel()

    async def _cut(self, send: Send) -> None:
        if not self._complete:
            await self._start(send)
            await self._send(send, self._exchange.failed(self._failure_of(ENDS)))
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
        await self._send(send, self._exchange.begin(self._prompt))
        whole = True
        async for items in self._run.items():
            events = [event for item in items for event in self._events(item)]
            await self._send(send, events)
            if any(isinstance(item, Failed) for item in items):
                whole = False
                break
        if whole:
            await self._send(send, self._exchange.close(self._ended))
        await self._finish(send)

    def _events(self, item: Item) -> list[Event]:
        if isinstance(item, Piece):
            return self._exchange.piece(item.index, item.delta)
        if isinstance(item, Ended):
            self._ended.append(item)
            return self._exchange.ended(item)
        if isinstance(item, Failed):
            return self._exchange.failed(self._failure_of(item.error))
        return []

    async def _send(self, send: Send, events: Sequence[Event]) -> None:
        if events:
            message = {"type": "http.response.body", "body": _written(events), "more_body": True}
            self._sending = time.monotonic()
            await send(message)
            self._sending = None
