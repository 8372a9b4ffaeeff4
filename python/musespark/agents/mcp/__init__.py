"""Tools of MCP servers (Model Context Protocol) for :func:`musespark.agents.act`.

    servers = {"files": ["python", "server.py"], "web": "http://127.0.0.1:8000/mcp"}
    with connect(servers) as tools:
        model.act("What is in notes.txt?", [*tools, my_function], approve=ask)

Only the servers named are started or reached, with the official SDK (``musespark[mcp]``). What they
say is data: ``places.py`` says where they are, ``session.py`` talks to one, ``connection.py`` makes
tools of all, ``results.py`` values of what they give.
"""

from __future__ import annotations

from collections.abc import Mapping

from musespark.agents.mcp.connection import Connection
from musespark.agents.mcp.places import Server, places_of
from musespark.agents.mcp.session import Patience
from musespark.errors import InvalidRequest, MissingLibrary
from musespark.options import real

__all__ = ["Connection", "connect"]


def connect(
    servers: Mapping[str, Server],
    *,
    timeout: float = 60.0,
    start_timeout: float = 60.0,
    prefix: bool = False,
    trust_hints: bool = True,
) -> Connection:
    """Tools of MCP servers: a list of :class:`Tool`, as the value of ``with`` (for
    :meth:`Model.act`) or of ``async with`` (coroutine functions, for :meth:`Model.aact`).

    ``servers``: by name a command (a list of str, spoken to over its standard input and output), a
    URL (streamable HTTP), or a dict as configuration files have it: ``command``, ``args``, ``env``
    (beside PATH, HOME and the like, all that it gets) and ``cwd``, or ``url`` and ``headers``; and
    ``tools``, the names to take (all, where not given). A whole file's value,
    ``{"mcpServers": {name: server, …}}``, is taken too. A server's tools are those it has when it
    is connected to. At the end of the block a command's input is closed; after 2 s it is
    terminated, after 2 more killed, with all that it started in its session.

    A tool keeps its name; where two servers have it, where it begins with no letter, and with
    ``prefix`` always, it is ``server_tool``. Characters that no name has here become ``_``.

    A tool counts as having effects, so that each call waits for approval, unless its server says
    ``readOnlyHint`` and not ``destructiveHint``. Hints are a server's word; with
    ``trust_hints=False`` they count for nothing.

    Calls are held to the tool's ``inputSchema``, but for keywords that no grammar follows
    (``uniqueItems``, ``propertyNames``, …), which are the server's to check. Texts and pictures
    come back as data. A call that fails is told to the model as an error that names the server:
    what a tool says of its failure, or a server that is gone (ToolServerFailed; none is started
    again), or no answer within ``timeout`` seconds (DeadlineExceeded; the server is told to stop).

    Raises InvalidRequest naming the argument, and MissingLibrary. Entering the block raises
    ToolServerFailed or, after ``start_timeout`` seconds, DeadlineExceeded naming the server, and
    leaves none running.
    """
    _check_library()
    places = places_of(servers)
    for name, given in (("prefix", prefix), ("trust_hints", trust_hints)):
        if not isinstance(given, bool):
            raise InvalidRequest(f"{name}: got {given!r:.60}, allowed is True or False")
    patience = Patience(
        real("timeout", timeout, 1e-3, 1e6, "seconds: 0.001 to a million"),
        real("start_timeout", start_timeout, 1e-3, 1e6, "seconds: 0.001 to a million"),
    )
    return Connection(places, patience, prefix=prefix, trust_hints=trust_hints)


def _check_library() -> None:
    try:
        from mcp import Client  # noqa: F401 - version 1 has none
    except ImportError as error:
        raise MissingLibrary("MCP servers need mcp 2: pip install 'musespark[mcp]'") from error
