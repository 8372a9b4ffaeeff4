"""Tool calls as models write them: the ATEM form of the Muse family, and JSON objects.

ATEM (from the Muse Glimmer chat template; "String and scalar parameters should be specified as is,
while lists and objects should use JSON format. Note that spaces for string values are not stripped.
The output is not expected to be valid XML and is parsed with regular expressions"):

    <atem:function_calls>
    <atem:invoke name="TOOL">
    <atem:parameter name="KEY">VALUE</atem:parameter>
    </atem:invoke>
    </atem:function_calls>

A value ends at the first ``</atem:parameter>`` that another parameter or the end of the call
follows, so a value may contain the closing tag. What cannot be parsed becomes a
:class:`ToolCallError` with the raw text; nothing raises and nothing is dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_MAX_DIGITS = 400


@dataclass(frozen=True)
class ToolCall:
    """A call the model made. ``arguments`` are values of the types in the tool's schema."""

    name: str
    arguments: dict[str, Any]
    raw: str
    id: str = ""

    def to_openai(self) -> dict[str, Any]:
        """The OpenAI shape, with ``arguments`` as a dict."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True)
class ToolCallError:
    """Text in a tool channel that is not a call: ``raw`` is all of it, ``reason`` says why."""

    raw: str
    reason: str


class _Malformed(Exception):  # noqa: N818 - never leaves this module
    pass


def schemas_of(tools: Iterable[Mapping[str, Any]] | None) -> dict[str, dict[str, Any]]:
    """Tool name -> JSON schema of its parameters, from OpenAI-shaped or bare function objects."""
    found = {}
    for tool in tools or ():
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            found[function["name"]] = dict(function.get("parameters") or {})
    return found


# ---- values ------------------------------------------------------------------------------------


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text:.40} is beyond the numbers of JSON readers")
    return value


def _json(text: str) -> Any:
    """Strict JSON (no NaN, Infinity or 1e999); ValueError otherwise, too deep nesting included."""
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _types(schema: Any) -> set[str] | None:
    """The JSON types a schema allows; None where it does not say."""
    if not isinstance(schema, Mapping):
        return None
    kind = schema.get("type")
    if isinstance(kind, str):
        return {kind}
    if isinstance(kind, list):
        return {k for k in kind if isinstance(k, str)} or None
    for union in ("anyOf", "oneOf"):
        if isinstance(schema.get(union), list):
            parts = [_types(part) for part in schema[union]]
            return None if None in parts else set().union(*parts)
    values = schema["enum"] if isinstance(schema.get("enum"), list) else None
    if values is None and "const" in schema:
        values = [schema["const"]]
    return {_type_of(value) for value in values} if values else None


def _type_of(value: Any) -> str:
    if value is None:
        return "null"
    for kind, types in (("boolean", bool), ("integer", int), ("number", float), ("string", str)):
        if isinstance(value, types):
            return kind
    return "array" if isinstance(value, list) else "object"


def convert(text: str, schema: Any) -> Any:
    """A parameter's text as a value of the schema's type.

    Where the schema allows a string and something else, the something else wins if the text is
    one. Without a type, JSON that is not a string is taken as JSON, anything else as a string.
    ValueError where the text has none of the types.
    """
    kinds = _types(schema)
    bare = text.strip()
    value: Any = text
    try:
        if len(bare) <= _MAX_DIGITS or not bare.lstrip("-").isdigit():
            value = _json(bare)
    except ValueError:
        pass
    kind = _type_of(value)
    if kinds is None:
        return text if kind == "string" else value
    if kind == "number" and "number" not in kinds and "integer" in kinds and value.is_integer():
        return int(value)  # JSON Schema: 5.0 is an integer
    if kind != "string" and (kind in kinds or (kind == "integer" and "number" in kinds)):
        return value
    if "string" in kinds:
        return text
    raise ValueError(f"{bare[:80]!r} is not of type {' or '.join(sorted(kinds))}")


# ---- ATEM --------------------------------------------------------------------------------------

_CALLS, _CALLS_END = "<atem:function_calls>", "</atem:function_calls>"
_INVOKE, _INVOKE_END = '<atem:invoke name="', "</atem:invoke>"
_PARAMETER, _PARAMETER_END = '<atem:parameter name="', "</atem:parameter>"
_VALUE_END = re.compile(rf"{_PARAMETER_END}\s*(?={_PARAMETER}|{_INVOKE_END})")
_SPACE = re.compile(r"\s*")


def _skip_space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()


def _quoted(text: str, at: int) -> tuple[str, int]:
    """The name that stands before the next ``">``, and the position after it."""
    end = text.find('">', at)
    if end < 0:
        raise _Malformed("the tag's name does not end")
    return text[at:end], end + 2


def _parameters(text: str, at: int) -> tuple[dict[str, str], int]:
    """The parameters of a call from ``at``, and the position after ``</atem:invoke>``."""
    found: dict[str, str] = {}
    while True:
        at = _skip_space(text, at)
        if text.startswith(_INVOKE_END, at):
            return found, at + len(_INVOKE_END)
        if not text.startswith(_PARAMETER, at):
            cut = at >= len(text) or _PARAMETER.startswith(text[at:])
            raise _Malformed(
                "cut short" if cut else f"expected a parameter at {text[at : at + 40]!r}"
            )
        key, at = _quoted(text, at + len(_PARAMETER))
        end = _VALUE_END.search(text, at)
        if end is None:
            raise _Malformed(f"the value of parameter {key!r} does not end")
        if key in found:
            raise _Malformed(f"parameter {key!r} is given twice")
        found[key], at = text[at : end.start()], end.end()


def _invoke(
    text: str, at: int, schemas: Mapping[str, Any], recipient: str | None
) -> tuple[Any, int]:
    start = at
    name, at = _quoted(text, at + len(_INVOKE))
    values, at = _parameters(text, at)
    raw = text[start:at]
    if recipient is not None and name != recipient:
        return ToolCallError(raw, f"the channel is to {recipient!r}, the call to {name!r}"), at
    properties = schemas.get(name, {}).get("properties") or {}
    arguments = {}
    for key, value in values.items():
        try:
            arguments[key] = convert(value, properties.get(key))
        except ValueError as error:
            return ToolCallError(raw, f"parameter {key!r}: {error}"), at
    return ToolCall(name, arguments, raw), at


def parse_atem(
    text: str, schemas: Mapping[str, Any], recipient: str | None = None
) -> list[ToolCall | ToolCallError]:
    """All calls of a tool channel's text, in order; see the module's docstring."""
    calls: list[ToolCall | ToolCallError] = []
    at = _skip_space(text, 0)
    if not text.startswith(_CALLS, at):
        return [ToolCallError(text, f"expected {_CALLS}")]
    at += len(_CALLS)
    while True:
        at = _skip_space(text, at)
        if text.startswith(_CALLS_END, at):
            at = _skip_space(text, at + len(_CALLS_END))
            if at < len(text):
                calls.append(ToolCallError(text[at:], "text after the calls"))
            elif not calls:
                calls.append(ToolCallError(text, "no call inside"))
            return calls
        if at >= len(text):
            if not calls:
                calls.append(ToolCallError(text, "cut short"))
            return calls
        try:
            if not text.startswith(_INVOKE, at):
                raise _Malformed(f"expected a call at {text[at : at + 40]!r}")
            call, at = _invoke(text, at, schemas, recipient)
        except _Malformed as error:
            calls.append(ToolCallError(text[at:], str(error)))
            return calls
        calls.append(call)


# ---- JSON --------------------------------------------------------------------------------------


def parse_json_call(
    text: str, schemas: Mapping[str, Any], recipient: str | None = None
) -> list[ToolCall | ToolCallError]:
    """One call as ``{"name": …, "arguments": {…}}`` (Hermes, Qwen); arguments may be JSON text."""
    try:
        value = _json(text)
    except ValueError as error:
        return [ToolCallError(text, f"not JSON: {error}")]
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str):
        return [ToolCallError(text, "expected an object with a name")]
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = _json(arguments)
        except ValueError as error:
            return [ToolCallError(text, f"arguments are not JSON: {error}")]
    if not isinstance(arguments, dict):
        return [ToolCallError(text, "arguments are not an object")]
    return [ToolCall(name, arguments, text)]


Syntax = Callable[[str, Mapping[str, Any], "str | None"], list["ToolCall | ToolCallError"]]
SYNTAXES: dict[str, Syntax] = {"atem": parse_atem, "json": parse_json_call}
