"""The sockets of a server: how much their headers may be, how long they may take, and who has to go
where there are too many.

What the application bounds begins when a request's headers are whole. Until then nobody has shown a
token, so what is bounded here costs others nothing: a header of 64 KiB, seconds in which it has to
come, and idle connections that make room for new ones.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import resource
import struct
import termios
from collections import defaultdict
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from musespark.server.limits import Limits
from musespark.server.security import client_of
from musespark.server.transport import ABORT, UNSENT, Pace, told
from musespark.server.wire import Failure

CONNECTIONS = 1024  # at most; fewer where this process may not open so many files
_HEADER_BYTES = 64 << 10  # browsers send cookies of whatever else is on this machine's ports
_EARLY_BYTES = 64 << 10  # of what clients ask before they have the answer to what they asked
_FULL = Failure(503, "too many requests are under way; try again", "unavailable", 1)


def config_of(app: Any, limits: Limits, **more: Any) -> uvicorn.Config:
    """How uvicorn is to serve an application. ``more``: of ``uvicorn.Config``."""
    return uvicorn.Config(
        app,
        # h11 always, which bounds headers where httptools does not; it is no slower here.
        http=functools.partial(Connection, Door(limits)),  # type: ignore[arg-type]
        h11_max_incomplete_event_size=_HEADER_BYTES,
        ws="none",
        lifespan="off",  # there is none; a second Ctrl-C would be told as its failure
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # anybody could say in them who he is
        **more,
    )


class Door:
    """What the connections of a server share. ``most``: connections; of requests under way three
    quarters of it, so that who is refused can be told so.

    A quarter of the files that this process may open stays for what else it opens.
    """

    def __init__(self, limits: Limits, most: int = CONNECTIONS):
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if files != resource.RLIM_INFINITY:
            most = min(most, files * 3 // 4)
        self.most, self.requests = most, max(1, most * 3 // 4)
        self._read, self.write_seconds = limits.read_seconds, limits.write_seconds
        self._connections: dict[Connection, None] = {}  # in the order in which they came
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, one: Connection) -> None:
        """Takes a connection in; of too many the client with the most idle ones loses that which
        has been idle the longest."""
        if len(self._connections) >= self.most:
            self._make_room(one)
        self._connections[one] = None
        if self._timer is None:
            self._sweep(one.loop)

    def leave(self, one: Connection) -> None:
        self._connections.pop(one, None)

    def _make_room(self, new: Connection) -> None:
        idle: defaultdict[str, list[Connection]] = defaultdict(list)
        for one in self._connections:
            if one.idle:
                idle[one.who].append(one)
        if idle:
            gone = min(max(idle.values(), key=len), key=lambda one: one.idle_since)
        else:
            gone = new
        gone.transport.abort()
        self.leave(gone)  # here, for it hears of it later

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ends what takes too long; one timer for all, as long as there are any."""
        now = loop.time()
        for one in list(self._connections):
            if one.stuck_for(now) > self.write_seconds:
                one.transport.abort()  # close() would wait for the client to take the rest
            elif one.idle and now - one.idle_since > self._read:
                one.transport.close()
        pause = min(1.0, self._read / 4, self.write_seconds / 4)
        self._timer = loop.call_later(pause, self._sweep, loop) if self._connections else None


class Connection(H11Protocol):
    """A connection of a client: uvicorn's, that can be ended while its client takes nothing.

    ``idle``: no request is under way; ``idle_since``: seconds of the loop's clock.
    """

    def __init__(self, door: Door, **given: Any):
        super().__init__(**given)
        self._door, self._inner = door, self.app
        self.app = self._request  # type: ignore[assignment]
        self.who = ""
        self.idle_since, self._pace = 0.0, Pace(door.write_seconds)

    @property
    def idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.who = client_of(self.client[0] if self.client else "")
        self.idle_since = self.loop.time()
        self._door.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.leave(self)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self.idle_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        self._pace.begin(self.loop.time(), self.unsent())
        super().pause_writing()

    def resume_writing(self) -> None:
        self._pace.end()
        super().resume_writing()

    def unsent(self) -> int:
        """Bytes that are written and that the client has not taken."""
        sock = self.transport.get_extra_info("socket")
        queued = 0 if sock is None else _queued(sock)
        return self.transport.get_write_buffer_size() + queued

    def stuck_for(self, now: float) -> float:
        """Seconds for which next to nothing was taken of what has to be taken before anything goes
        on; who is slow, but no slower than :class:`Pace` says, is waited for."""
        if not (self.flow.write_paused or self.transport.is_closing()):
            return 0.0
        return self._pace.waited(now, self.unsent())

    def handle_events(self) -> None:
        """Reads on behind a request that is not answered yet, or nobody would notice that its
        client goes away. What came is kept for its turn; of who says more than a little, no more is
        read before that."""
        super().handle_events()
        early = len(self.conn.trailing_data[0])
        if not self.idle and not self.cycle.more_body and early <= _EARLY_BYTES:
            self.flow.resume_reading()

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        if len(self.tasks) > self._door.requests:
            await told(_FULL, scope["path"])(scope, receive, send)
            return
        scope["extensions"] = {ABORT: self.transport.abort, UNSENT: self.unsent}
        await self._inner(scope, receive, send)  # type: ignore[arg-type]


def _queued(sock: Any) -> int:
    """Bytes of a socket that the other end has not taken, 0 where the system does not say. They may
    be megabytes, of which it takes new ones when a third has gone: by what it leaves to us alone,
    who is slow would look as if he took nothing."""
    try:
        return struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]
    except (OSError, ValueError):  # it cannot say, or is closed
        return 0
