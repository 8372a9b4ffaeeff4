"""All servers of a connection, on an event loop in a thread of its own, and their tools."""

from __future__ import annotations

import asyncio
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from musespark.agents.mcp.places import Place
from musespark.agents.mcp.results import followed_schema, value_of
from musespark.agents.mcp.session import Patience, Session
from musespark.agents.tools import Tool, text_of
from musespark.errors import InvalidRequest, ToolServerFailed

if TYPE_CHECKING:
    import mcp_types as types

_NO_NAME = re.compile(r"[^\w.-]")
_LONGEST_NAME = 64


class Connection:
    """Servers that :func:`musespark.agents.mcp.connect` named: connected to by ``with`` or ``async
    with``, which may be entered again once it is left. The tools may be used from any thread."""

    def __init__(
        self, places: Sequence[Place], patience: Patience, *, prefix: bool, trust_hints: bool
    ):
        self._places, self._patience = places, patience
        self._prefix, self._trust_hints = prefix, trust_hints
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None  # while it may be asked
        self._over = False
        self._sessions: list[Session] = []
        self._thread: threading.Thread | None = None

    def __enter__(self) -> list[Tool]:
        ready = self._begin()
        try:
            ready.result()
            return self._tools(self._waiting)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exc: object) -> None:
        thread = self._end()
        if thread is not None:
            thread.join()

    async def __aenter__(self) -> list[Tool]:
        ready = self._begin()
        try:
            await asyncio.wrap_future(ready)
            return self._tools(self._awaiting)
        except BaseException:
            await self.__aexit__()
            raise

    async def __aexit__(self, *exc: object) -> None:
        thread = self._end()
        if thread is not None:
            await asyncio.to_thread(thread.join)

    # ---- the thread -----------------------------------------------------------------------------

    def _begin(self) -> Future[None]:
        """Starts the thread; done when every server is connected to, or with why one is not."""
        if self._thread is not None:
            raise InvalidRequest("connect: this connection is open; leave it before")
        self._over, ready = False, Future[None]()
        ready.set_running_or_notify_cancel()  # who waits may give up, and not take it away
        self._thread = threading.Thread(
            target=self._run, args=(ready,), name="musespark-mcp", daemon=True
        )
        self._thread.start()
        return ready

    def _end(self) -> threading.Thread | None:
        """Lets go of the servers; the thread, which then ends."""
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._leave)
            self._loop, self._over = None, True
        thread, self._thread = self._thread, None
        return thread

    def _run(self, ready: Future[None]) -> None:
        try:
            failure = asyncio.run(self._main(ready))
        except BaseException as error:
            if ready.done():
                raise
            failure = error
        if failure is not None:  # here, where no server is left running
            ready.set_exception(failure)

    async def _main(self, ready: Future[None]) -> BaseException | None:
        """Serves until :meth:`_leave`; gives why a server could not be connected to."""
        self._sessions = [Session(place, self._patience) for place in self._places]
        opened = [session.opened for session in self._sessions]
        with self._lock:
            if self._over:
                return ToolServerFailed("the connection was closed")
            self._loop = asyncio.get_running_loop()
        serving = asyncio.gather(*(session.serve() for session in self._sessions))
        await asyncio.wait(opened, return_when=asyncio.FIRST_EXCEPTION)
        failures = [one.exception() for one in opened if one.done() and one.exception()]
        if failures:
            self._leave()
        else:
            ready.set_result(None)
        await serving
        with self._lock:
            self._loop = None
        if calls := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(calls, timeout=1)  # they are told that the server is gone
        for one in opened:
            one.exception()  # of those that were still waited for: not this failure's cause
        return failures[0] if failures else None

    def _leave(self) -> None:
        for session in self._sessions:
            session.leave()

    def _ask(
        self, session: Session, tool: str, arguments: Mapping[str, Any]
    ) -> Future[types.CallToolResult]:
        with self._lock:
            if self._loop is None:
                raise ToolServerFailed(f"{session.place.name}: {tool}: the connection is closed")
            return asyncio.run_coroutine_threadsafe(session.call(tool, arguments), self._loop)

    # ---- tools ----------------------------------------------------------------------------------

    def _tools(self, run: Callable[[Session, str], Callable[..., Any]]) -> list[Tool]:
        """Of all servers; ``run`` makes what calls one."""
        listed = list(self._listed())
        plain = [_NO_NAME.sub("_", tool.name) for _, tool in listed]
        often = Counter(plain)
        found: dict[str, Tool] = {}
        for (session, tool), name in zip(listed, plain, strict=True):
            server = session.place.name
            if self._prefix or often[name] > 1 or not name[:1].isidentifier():
                name = f"{server}_{name}"
            if name in found or len(name) > _LONGEST_NAME:
                raise InvalidRequest(
                    f"servers[{server!r}]: its tool {tool.name!r:.160} would be called {name:.160}"
                    f", allowed are at most {_LONGEST_NAME} characters that no other tool is "
                    "called; its 'tools' may leave it out"
                )
            schema = followed_schema(tool.input_schema, f"{server}: {tool.name}")
            effects = not (self._trust_hints and _only_reads(tool))
            said = text_of(tool.description or tool.title or "")
            found[name] = Tool(name, said, schema, run(session, tool.name), effects)
        return list(found.values())

    def _listed(self) -> Iterator[tuple[Session, types.Tool]]:
        """Each server's tools, those that are to be taken."""
        for session in self._sessions:
            wanted, known = session.place.tools, [tool.name for tool in session.tools]
            for name in sorted(wanted or ()):
                if name not in known:
                    raise InvalidRequest(
                        f"servers[{session.place.name!r}].tools: got {name!r:.80}, it has "
                        f"{', '.join(known):.400}"
                    )
            for tool in session.tools:
                if wanted is None or tool.name in wanted:
                    yield session, tool

    def _waiting(self, session: Session, tool: str) -> Callable[..., Any]:
        def run(**arguments: Any) -> Any:
            answer = self._ask(session, tool, arguments)
            try:
                return value_of(answer.result(), f"{session.place.name}: {tool}")
            except BaseException:
                answer.cancel()  # who waits was interrupted, by Ctrl-C perhaps
                raise

        return run

    def _awaiting(self, session: Session, tool: str) -> Callable[..., Any]:
        async def run(**arguments: Any) -> Any:
            result = await asyncio.wrap_future(self._ask(session, tool, arguments))
            return await asyncio.to_thread(value_of, result, f"{session.place.name}: {tool}")

        return run


def _only_reads(tool: types.Tool) -> bool:
    """Whether its server says that it changes nothing."""
    hints = tool.annotations
    return hints is not None and bool(hints.read_only_hint) and not hints.destructive_hint
