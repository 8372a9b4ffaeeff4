"""Tool calls: what they are, and how a value that is only text gets the type of its schema.

How models write calls is in syntaxes.py. What cannot be parsed becomes a :class:`ToolCallError`
with the raw text; nothing raises and nothing is dropped.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from musespark.schema import argument_schema

_MAX_DIGITS = 400
_SPACE = re.compile(r"\s*")


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


class Malformed(Exception):  # noqa: N818 - never leaves the parsers of calls
    """Why a text is no call."""


class Raw(str):
    """The text of a tool channel that knows which of the marker strings in it are markers.

    ``marks``: for each marker that comes as an id, where it came, ascending; markers that are not
    in it are looked for in the text. So an argument that spells a marker does not end there.
    """

    marks: Mapping[str, Sequence[int]]

    @classmethod
    def of(cls, text: str, marks: Mapping[str, Sequence[int]]) -> Raw:
        raw = cls(text)
        raw.marks = marks
        return raw


def find_mark(text: str, marker: str, at: int = 0) -> int:
    """Where the next such marker begins, -1 for none."""
    if isinstance(text, Raw) and marker in text.marks:
        places = text.marks[marker]
        index = bisect_left(places, at)
        return places[index] if index < len(places) else -1
    return text.find(marker, at)


def mark_at(text: str, marker: str, at: int) -> bool:
    """Whether such a marker stands at a position; looks nowhere else."""
    if isinstance(text, Raw) and marker in text.marks:
        places = text.marks[marker]
        index = bisect_left(places, at)
        return index < len(places) and places[index] == at
    return text.startswith(marker, at)


def schemas_of(tools: Iterable[Mapping[str, Any]] | None) -> dict[str, dict[str, Any]]:
    """Tool name -> :func:`argument_schema` of it, from OpenAI-shaped or bare function objects."""
    found = {}
    for tool in tools or ():
        function = tool.get("function", tool)
        if isinstance(function, Mapping) and isinstance(function.get("name"), str):
            name = function["name"]
            found[name] = argument_schema(function.get("parameters") or {}, f"tools: {name}")
    return found


# ---- values ------------------------------------------------------------------------------------


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text:.40} is beyond the numbers of JSON readers")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    if len(built) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key {twice!r:.60} is given twice")
    return built


_DECODER = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_object
)


def strict_json(text: str) -> Any:
    """Strict JSON (no NaN, Infinity, 1e999 or key that is given twice); ValueError otherwise, too
    deep nesting included."""
    value, end = json_at(text, skip_space(text, 0))
    if skip_space(text, end) < len(text):
        raise ValueError(f"text after the value: {text[end : end + 40]!r}")
    return value


def json_at(text: str, at: int) -> tuple[Any, int]:
    """The JSON value that begins at ``at``, and the position after it; ValueError for none."""
    try:
        return _DECODER.raw_decode(text, at)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def skip_space(text: str, at: int) -> int:
    """The first position from ``at`` that is no white space."""
    return _SPACE.match(text, at).end()


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
            return None if None in parts else set().union(*parts) or None
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


def convert(text: str, schema: Any, read: Callable[[str], Any] | None = None) -> Any:
    """A parameter's text as a value of the schema's type.

    Where the schema allows a string and something else, the something else wins if the text is
    one. Without a type, JSON that is not a string is taken as JSON, anything else as a string.
    ``read``: how a text is read as a value, strict JSON where it is None. ValueError where the text
    has none of the types.
    """
    kinds = _types(schema)
    bare = text.strip()
    value: Any = text
    try:
        if len(bare) <= _MAX_DIGITS or not bare.lstrip("-").isdigit():
            value = (read or strict_json)(bare)
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


def typed(
    name: str,
    values: Mapping[str, str],
    raw: str,
    schemas: Mapping[str, Any],
    read: Callable[[str], Any] | None = None,
) -> ToolCall | ToolCallError:
    """A call whose arguments are texts, with the types of the tool's schema."""
    properties = schemas.get(name, {}).get("properties") or {}
    arguments = {}
    for key, value in values.items():
        try:
            arguments[key] = convert(value, properties.get(key), read)
        except ValueError as error:
            return ToolCallError(raw, f"parameter {key!r}: {error}")
    return ToolCall(name, arguments, raw)
