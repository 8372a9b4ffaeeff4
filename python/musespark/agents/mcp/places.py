"""Where MCP servers are, as callers and configuration files say it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from musespark.errors import InvalidRequest

Server = str | Sequence[str] | Mapping[str, Any]

_KEYS = ("command", "args", "env", "cwd", "url", "headers", "tools", "type")
_CONFIGURED = "mcpServers"  # the key in configuration files
_TYPES = {"command": ("stdio",), "url": ("http", "streamable-http", "streamableHttp")}
_NAME = re.compile(r"[A-Za-z][\w-]{0,31}", re.ASCII)


@dataclass(frozen=True)
class Place:
    """A server: a ``command`` with its arguments, or a ``url``. ``tools``: those to take; None for
    all. ``env`` and ``headers`` may hold secrets, and are shown nowhere."""

    name: str
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    cwd: str | None = None
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    tools: frozenset[str] | None = None


def places_of(servers: Any) -> list[Place]:
    """Checked servers, by name or as a configuration file has them; InvalidRequest naming what is
    wrong."""
    if not isinstance(servers, Mapping) or not servers:
        raise InvalidRequest(f"servers: got {servers!r:.60}, allowed is a dict name: server")
    inside = servers.get(_CONFIGURED)
    # Else it is a server that is called so.
    if isinstance(inside, Mapping) and all(isinstance(one, Mapping) for one in inside.values()):
        if len(servers) > 1:
            other = next(key for key in servers if key != _CONFIGURED)
            raise InvalidRequest(
                f"servers: got {other!r:.60} beside {_CONFIGURED!r}, allowed is that alone, or "
                "what is in it"
            )
        servers = inside
        if not servers:
            raise InvalidRequest(f"servers[{_CONFIGURED!r}]: got none, allowed is at least one")
    return [place_of(name, given) for name, given in servers.items()]


def place_of(name: Any, given: Any) -> Place:
    """A checked server; InvalidRequest naming what is wrong of it."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"servers: got the name {name!r:.60}, allowed are a letter and then up to 31 letters, "
            "digits, '_' and '-'"
        )
    where = f"servers[{name!r}]"
    if isinstance(given, str):
        return Place(name, url=_url(given, where))
    if not isinstance(given, Mapping):
        return Place(name, command=_texts(given, where, "a command as a list of str, or a URL"))
    if unknown := [key for key in given if key not in _KEYS]:
        raise InvalidRequest(f"{where}: got {unknown[0]!r:.60}, allowed are {', '.join(_KEYS)}")
    if ("command" in given) == ("url" in given):
        raise InvalidRequest(f"{where}: allowed is one of command and url")
    _check_type(given, "url" if "url" in given else "command", where)
    tools = given.get("tools")
    if tools is not None:
        tools = frozenset(_texts(tools, f"{where}.tools", "a list of names"))
    if "url" in given:
        _refuse_beside("url", given, ("args", "env", "cwd"), where)
        headers = _pairs(given, "headers", where)
        return Place(name, url=_url(given["url"], where), headers=headers, tools=tools)
    _refuse_beside("command", given, ("headers",), where)
    env, cwd = _pairs(given, "env", where), given.get("cwd")
    cwd = None if cwd is None else str(cwd)
    return Place(name, _command(given, where), env, cwd, tools=tools)


def _check_type(given: Mapping[str, Any], key: str, where: str) -> None:
    """What configuration files say beside ``command`` or ``url``, which says the same."""
    kind = given.get("type", _TYPES[key][0])
    if kind not in _TYPES[key]:
        allowed = " or ".join(_TYPES[key])
        raise InvalidRequest(f"{where}.type: got {kind!r:.60}, allowed beside {key!r} is {allowed}")


def _command(given: Mapping[str, Any], where: str) -> tuple[str, ...]:
    command = given["command"]
    command = [command] if isinstance(command, str) else command
    arguments = given.get("args") or ()
    if arguments:
        arguments = _texts(arguments, f"{where}.args", "a list of str")
    return (*_texts(command, f"{where}.command", "a str or a list of str"), *arguments)


def _url(given: Any, where: str) -> str:
    if not isinstance(given, str) or not given.startswith(("http://", "https://")):
        raise InvalidRequest(
            f"{where}: got {given!r:.80}, allowed is http://… or https://…, or a command as a list"
        )
    return given


def _texts(given: Any, where: str, allowed: str) -> tuple[str, ...]:
    several = isinstance(given, Sequence) and not isinstance(given, (str, bytes))
    if not several or not given:
        raise InvalidRequest(f"{where}: got {given!r:.60}, allowed is {allowed}")
    for text in given:
        if not isinstance(text, str) or "\0" in text:
            raise InvalidRequest(f"{where}: got {text!r:.60} in it, allowed is {allowed}")
    return tuple(given)


def _pairs(given: Mapping[str, Any], key: str, where: str) -> dict[str, str]:
    pairs = given.get(key) or {}
    if not isinstance(pairs, Mapping) or not all(
        isinstance(text, str) for pair in pairs.items() for text in pair
    ):
        raise InvalidRequest(f"{where}.{key}: allowed is a dict of str to str")
    return dict(pairs)


def _refuse_beside(key: str, given: Mapping[str, Any], others: Sequence[str], where: str) -> None:
    for other in others:
        if other in given:
            raise InvalidRequest(f"{where}: {other!r} has no meaning beside {key!r}")
