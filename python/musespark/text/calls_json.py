"""Tool calls whose arguments are JSON: Hermes and Qwen, Llama, Phi-4, Granite, Mistral, DeepSeek,
Kimi, harmony. Each function takes a tool channel's text and gives its calls in order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from musespark.text.toolcalls import (
    Malformed,
    ToolCall,
    ToolCallError,
    find_mark,
    json_at,
    skip_space,
    strict_json,
)

Found = list[ToolCall | ToolCallError]
_NAMES = ("name", "tool_name")
_ARGUMENTS = ("arguments", "parameters")
_IDS = ("id", "call_id", "tool_call_id")
_NO_ARGUMENTS = {*_NAMES, *_IDS, "type", "function", "index"}  # keys beside them
_JSON_CALLS = re.compile(r"\s*\[?\s*\{")


def parse_json(text: str, schemas: Mapping[str, Any], recipient: str | None = None) -> Found:
    """Calls as ``{"name": …, "arguments": {…}}``: one, a list, or several after each other with
    white space or ``;`` between them. ``parameters`` for ``arguments`` (Llama), ``tool_name`` for
    ``name`` (Command R7B) and OpenAI's ``{"function": {…}}`` are the same."""
    calls: Found = []
    at = skip_space(text, 0)
    while at < len(text):
        try:
            value, end = json_at(text, at)
        except ValueError as error:
            return [*calls, ToolCallError(text[at:] if calls else str(text), f"not JSON: {error}")]
        alone = not calls and not isinstance(value, list)
        whole = alone and skip_space(text, end) == len(text)
        raw = str(text) if whole else text[at:end]
        calls += [_of_value(item, raw) for item in (value if isinstance(value, list) else [value])]
        at = skip_space(text, end)
        if at < len(text) and text[at] == ";":
            at = skip_space(text, at + 1)
    return calls or [ToolCallError(str(text), "no call inside")]


def _of_value(value: Any, raw: str) -> ToolCall | ToolCallError:
    inner = value.get("function") if isinstance(value, dict) else None
    call = inner if isinstance(inner, dict) else value
    if not isinstance(call, dict):
        return ToolCallError(raw, "expected an object with a name")
    name = next((call[key] for key in _NAMES if key in call), None)
    if not isinstance(name, str) or not name:
        return ToolCallError(raw, "expected an object with a name")
    call_id = next((value[key] for key in _IDS if isinstance(value.get(key), str)), "")
    try:
        return ToolCall(name, _object(_arguments(call, value)), raw, call_id)
    except Malformed as error:
        return ToolCallError(raw, str(error))


def _arguments(call: dict[str, Any], outer: dict[str, Any]) -> Any:
    """What stands under the key of the arguments; none must stand under another key."""
    layers = [call] if call is outer else [call, outer]
    given = [(layer, key) for layer in layers for key in _ARGUMENTS if key in layer]
    if len(given) > 1:
        raise Malformed(f"arguments are given twice, as {' and '.join(key for _, key in given)}")
    if given and given[0][0] is call:
        return call[given[0][1]]
    others = [key for key in (*call, *outer) if key not in _NO_ARGUMENTS]
    if others:
        raise Malformed(f"neither {' nor '.join(_ARGUMENTS)}, but {others[0]!r:.60}")
    return {}


def _object(given: Any) -> dict[str, Any]:
    """Arguments as an object; they may be JSON text of one, or null."""
    if isinstance(given, str):
        try:
            given = strict_json(given)
        except ValueError as error:
            raise Malformed(f"arguments are not JSON: {error}") from error
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise Malformed("arguments are not an object")
    return given


def _named(name: str, arguments: str, raw: str, call_id: str = "") -> ToolCall | ToolCallError:
    """A call whose name stands outside the JSON of its arguments."""
    name = name.strip()
    if not name or any(c in name for c in '\n"{'):
        return ToolCallError(raw, f"{name[:60]!r} is not a name")
    try:
        return ToolCall(name, _object(arguments), raw, call_id)
    except Malformed as error:
        return ToolCallError(raw, str(error))


def parse_mistral(text: str, schemas: Mapping[str, Any], recipient: str | None = None) -> Found:
    """What follows ``[TOOL_CALLS]``: a JSON list with ids (Nemo), or ``name[ARGS]{…}`` with
    ``[CALL_ID]id`` after the name (Small 3.2) or without (Ministral, Devstral)."""
    arguments = find_mark(text, "[ARGS]")
    if arguments < 0 or _JSON_CALLS.match(text):
        return parse_json(text, schemas, recipient)
    head, body = text[:arguments], text[arguments + len("[ARGS]") :]
    number = find_mark(text, "[CALL_ID]")
    if 0 <= number < arguments:
        name, call_id = head[:number], head[number + len("[CALL_ID]") :].strip()
    else:
        name, call_id = head, ""
    return [_named(name, body, str(text), call_id)]


def parse_deepseek(text: str, schemas: Mapping[str, Any], recipient: str | None = None) -> Found:
    """A call: ``name<｜tool▁sep｜>{…}`` (V3.1), or ``function<｜tool▁sep｜>name``
    and the arguments in a fence (V3, R1)."""
    separator = "<｜tool▁sep｜>"
    at = find_mark(text, separator)
    if at < 0:
        return [ToolCallError(str(text), f"expected {separator}")]
    head, body = text[:at], text[at + len(separator) :]
    name, fence, rest = body.partition("\n```json\n")
    if not fence or name.lstrip().startswith("{"):
        return [_named(head, body, str(text))]
    body, closed, after = rest.rpartition("```")
    if not closed or after.strip():
        return [ToolCallError(str(text), "the fence around the arguments does not end")]
    return [_named(name, body, str(text))]


def parse_kimi(text: str, schemas: Mapping[str, Any], recipient: str | None = None) -> Found:
    """``functions.NAME:0<|tool_call_argument_begin|>{…}``; what stands first is also the id."""
    marker = "<|tool_call_argument_begin|>"
    at = find_mark(text, marker)
    if at < 0:
        return [ToolCallError(str(text), f"expected {marker}")]
    call_id = text[:at].strip()
    name = call_id.rpartition(":")[0] or call_id
    return [_named(name.removeprefix("functions."), text[at + len(marker) :], str(text), call_id)]


def parse_harmony(text: str, schemas: Mapping[str, Any], recipient: str | None = None) -> Found:
    """The body of a message ``to=functions.NAME``: the arguments alone."""
    name = (recipient or "").removeprefix("functions.")
    return [_named(name, text, str(text))]


def parse_keyed(text: str, schemas: Mapping[str, Any], recipient: str | None = None) -> Found:
    """``[{"NAME": {…}}, …]`` (Apertus)."""
    try:
        value = strict_json(text)
    except ValueError as error:
        return [ToolCallError(str(text), f"not JSON: {error}")]
    calls: Found = []
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, dict) or len(item) != 1:
            calls.append(ToolCallError(str(text), "expected an object of one name"))
            continue
        ((name, given),) = item.items()
        try:
            calls.append(ToolCall(name, _object(given), str(text)))
        except Malformed as error:
            calls.append(ToolCallError(str(text), str(error)))
    return calls or [ToolCallError(str(text), "no call inside")]
