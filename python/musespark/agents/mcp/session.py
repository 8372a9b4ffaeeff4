"""One MCP server: connected to, asked, left. On an event loop."""

from __future__ import annotations

import asyncio
import math
import os
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from musespark.agents.mcp.places import Place
from musespark.errors import DeadlineExceeded, Error, ToolServerFailed

if TYPE_CHECKING:
    import mcp
    import mcp_types as types

MOST_TOOLS = 256  # of one server


@dataclass(frozen=True)
class Patience:
    """Seconds that a server has for a call, and to start."""

    call: float
    start: float


class Session:
    """A server while it is connected to. ``opened``: done when ``tools`` are known, or with why
    they are not."""

    def __init__(self, place: Place, patience: Patience):
        import anyio

        self.place, self.tools = place, list["types.Tool"]()
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._patience = patience
        self._client: mcp.Client | None = None
        self._left, self._scope = asyncio.Event(), anyio.CancelScope()

    async def serve(self) -> None:
        """Connects, and stays so until :meth:`leave`. What breaks off after ``opened`` is told by
        the calls that it breaks."""
        import anyio

        name, seconds = self.place.name, self._patience.start
        self._scope.deadline = anyio.current_time() + seconds
        try:
            with self._scope:
                await self._connected()
        except Exception as error:
            self._refuse(ToolServerFailed(f"{name}: {self._why(error)}"))
        finally:
            self._client = None
        late = f"{name}: the server did not answer within start_timeout, {seconds:g} s"
        self._refuse(DeadlineExceeded(late))
        await self._left.wait()

    async def _connected(self) -> None:
        async with AsyncExitStack() as stack:
            client = await self._entered(stack)
            self.tools = await _listed(client)
            self._scope.deadline = math.inf
            self._client = client
            self.opened.set_result(None)
            await self._left.wait()

    def leave(self) -> None:
        """Ends :meth:`serve`, wherever it is."""
        self._left.set()
        if not self.opened.done():
            self._scope.cancel()

    def _refuse(self, error: Error) -> None:
        if not self.opened.done():
            self.opened.set_exception(error)

    async def _entered(self, stack: AsyncExitStack) -> mcp.Client:
        import httpx2
        from mcp import Client, StdioServerParameters, stdio_client
        from mcp.client.streamable_http import streamable_http_client
        from mcp_types import Implementation

        from musespark import __version__

        place = self.place
        if place.url:
            # How long an answer may take is the call's to say.
            patience = httpx2.Timeout(self._patience.start, read=None)
            http = httpx2.AsyncClient(headers=dict(place.headers), timeout=patience)
            await stack.enter_async_context(http)
            transport = streamable_http_client(place.url, http_client=http)
        else:
            command, *arguments = place.command
            given = {"env": dict(place.env), "cwd": place.cwd}
            parameters = StdioServerParameters(command=command, args=arguments, **given)
            # The process's own: that of a notebook has no descriptor to give away.
            errors = sys.__stderr__ or stack.enter_context(open(os.devnull, "w"))  # noqa: SIM115
            transport = stdio_client(parameters, errlog=errors)
        who = Implementation(name="musespark", version=__version__)
        return await stack.enter_async_context(Client(transport, client_info=who, cache=None))

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> types.CallToolResult:
        """A tool's result. ToolServerFailed or DeadlineExceeded naming the server and the tool."""
        import anyio

        where, client = f"{self.place.name}: {tool}", self._client
        if client is None:
            raise ToolServerFailed(f"{where}: the server is gone")
        try:
            with anyio.fail_after(self._patience.call):
                return await client.call_tool(tool, dict(arguments))
        except TimeoutError:
            late = f"{where}: no answer within timeout, {self._patience.call:g} s"
            raise DeadlineExceeded(late) from None
        except Exception as error:  # whatever the server answers and its transport raises
            raise ToolServerFailed(f"{where}: {self._why(error)}") from error

    def _why(self, error: BaseException) -> str:
        """What to say of an error of the SDK, which comes in groups of one."""
        from mcp import MCPError
        from mcp_types import CONNECTION_CLOSED

        while inside := getattr(error, "exceptions", None):
            error = inside[0]
        if isinstance(error, MCPError) and error.code == CONNECTION_CLOSED:
            if self.place.url:
                return f"the server broke off ({error.message:.200})"
            return "the server ended; what it wrote to standard error may say why"
        if isinstance(error, (MCPError, Error)):
            return f"{error!s:.2000}"
        if isinstance(error, OSError) and self.place.command and error.strerror:
            return f"{self.place.command[0]!r}: {error.strerror}"
        return f"{type(error).__name__}: {error!s:.2000}"


async def _listed(client: mcp.Client) -> list[types.Tool]:
    tools = list["types.Tool"]()
    cursor: str | None = None
    for _ in range(MOST_TOOLS):
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if not cursor and len(tools) <= MOST_TOOLS:
            return tools
    raise ToolServerFailed(f"more than {MOST_TOOLS} tools, or a list without end")
