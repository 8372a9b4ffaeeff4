"""Values of a JSON schema as rules: as JSON, as Gemma's own notation, and as text between tags.

What a schema says in other keywords than those of :class:`Values` is llguidance's to follow, where
values are JSON. Objects have the properties that their schema names, in its order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from musespark.calls.lark import Lark
from musespark.errors import InvalidRequest
from musespark.grammar import json_rule
from musespark.schema import referred, shapes_of

# A bound of digits, for a number is to be one that every reader of JSON can read; a weak model
# writes digits for ever.
INTEGER = r"-?(?:0|[1-9][0-9]{0,18})"
NUMBER = rf"{INTEGER}(?:\.[0-9]{{1,20}})?(?:[eE][-+]?[0-9]{{1,2}})?"
_MOST_REFERENCES = 64  # one after another
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_PLAIN = {"type", "description", "title", "default", "examples", "$defs"}
# What is followed here; each keyword says something of values of one type alone.
_KEYWORDS = {
    *("minLength", "maxLength", "pattern", "format", "items", "minItems", "maxItems"),
    *("properties", "required", "additionalProperties", *_BOUNDS),
}
_OF_TUPLES = {"type", "prefixItems", "items", "minItems", "maxItems"}
_DATE = "[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
_TIME = (
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?"
    "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
# Formats of texts that are no JSON, which llguidance does not follow there.
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
}
Schema = Mapping[str, Any]


class Values:
    """Values of schemas that belong to one ``root`` (which has the ``$defs``). ``quote``: the
    marker around strings in Gemma's notation, whose keys are bare; None for JSON."""

    def __init__(self, lark: Lark, root: Schema, where: str, quote: str | None = None):
        self._lark, self._root, self._where, self._quote = lark, root, where, quote
        self._followed: dict[str, str] = {}  # to rules; each once, for they may double at each step
        self._comma, self._colon = (", ", ": ") if quote is None else (",", ":")

    def value(self, schema: Any) -> str:
        """A value, as an expression."""
        if schema is True or schema == {}:
            return self._any()
        if not isinstance(schema, Mapping):
            raise InvalidRequest(f"{self._where}: got the schema {schema!r:.60}, allowed is a dict")
        if "$ref" in schema and not set(schema) - _PLAIN - {"$ref"}:
            return self._reference(schema)
        if "const" in schema or "enum" in schema:
            return self._one_of(schema.get("enum", [schema.get("const")]))
        for union in ("anyOf", "oneOf"):
            if union in schema and not set(schema) - _PLAIN - {union}:
                return self._lark.rule(" | ".join(map(self.value, schema[union])))
        kind = schema.get("type")
        if isinstance(kind, list):
            rest = {key: value for key, value in schema.items() if key != "type"}
            return self._lark.rule(" | ".join(self.value({**rest, "type": k}) for k in kind))
        if not set(schema) - _PLAIN - {"type"} and kind is None:
            return self._any()
        if _is_tuple(schema):
            return self._tuple(schema["prefixItems"])
        if set(schema) - _PLAIN - (_KEYWORDS if isinstance(kind, str) else set()):
            return self._library(schema)
        makers: dict[Any, Callable[[Schema], str]] = {
            "string": self._string,
            "integer": lambda s: self._number(s, INTEGER),
            "number": lambda s: self._number(s, NUMBER),
            "boolean": lambda s: self._lark.rule('"true" | "false"'),
            "null": lambda s: '"null"',
            "array": self._array,
            "object": self.object,
        }
        if kind not in makers:
            allowed = ", ".join(makers)
            raise InvalidRequest(f"{self._where}: got the type {kind!r:.60}, allowed are {allowed}")
        return makers[kind](schema)

    def arguments(self) -> str:
        """The arguments of a call, an object of the root, which :func:`argument_schema` gave."""
        return self._lark.rule(" | ".join(map(self._named, shapes_of(self._root))))

    def object(self, schema: Schema) -> str:
        """An object with the properties of its schema; of any, where it names none."""
        others = schema.get("additionalProperties")
        if not schema.get("properties") and others is not False and schema is not self._root:
            return self._dict(others)
        return self._named(schema)

    def _named(self, schema: Schema) -> str:
        properties = schema.get("properties") or {}
        entries = [
            (f"{self._key(name)} {self.value(rule)}", name in schema.get("required", ()))
            for name, rule in properties.items()
        ]
        return f'"{{" {self.listed(entries)} "}}"'

    def listed(self, entries: Sequence[tuple[str, bool]]) -> str:
        """Expressions in their order with commas between, each with whether it is required."""
        comma, lark = self._lark.text(self._comma), self._lark
        rest = ['""']
        for entry, needed in reversed(entries):
            tail = f"{comma} {entry}" if needed else f"({comma} {entry})?"
            rest.append(lark.rule(f"{tail} {rest[-1]}"))
        rest.reverse()  # rest[i]: from entry i on, after another one
        first: list[str] = []
        for i, (entry, needed) in enumerate(entries):
            first.append(f"{entry} {rest[i + 1]}")
            if needed:
                return lark.rule(" | ".join(first))
        return lark.rule(" | ".join([*first, '""']))

    def _reference(self, schema: Schema) -> str:
        """What a reference names, which may refer to itself."""
        name = schema["$ref"]
        if name not in self._followed:
            rule = self._followed[name] = self._lark.declared()
            self._lark.define(rule, self.value(referred(self._root, name, self._where)))
        return self._followed[name]

    # ---- kinds --------------------------------------------------------------------------------

    def _key(self, name: str) -> str:
        return self._lark.text((name if self._quote else _json(name)) + self._colon)

    def _string(self, schema: Schema) -> str:
        if self._quote is None:
            return self._library(schema)
        regex, least = raw_text(schema)
        quote = self._lark.text(self._quote)
        return f"{quote} {self._lark.until(regex, self._quote, least)}"

    def _number(self, schema: Schema, regex: str) -> str:
        bounded = any(name in schema for name in _BOUNDS)
        return self._library(schema, plain=True) if bounded else self._lark.terminal(regex)

    def _array(self, schema: Schema) -> str:
        low, high = schema.get("minItems", 0), schema.get("maxItems")
        item = self._lark.rule(self.value(schema.get("items", True)))
        comma = self._lark.text(self._comma)
        if high is not None and high < max(low, 1):
            return '"[" "]"'
        count = f"{{{max(low - 1, 0)},{'' if high is None else high - 1}}}"
        some = item if high == 1 else f"{item} ({comma} {item}){count}"
        return f'"[" {some} "]"' if low else f'"[" ({some})? "]"'

    def _tuple(self, items: Sequence[Any]) -> str:
        """A list of so many values, each by its own schema."""
        comma = self._lark.text(self._comma)
        return f'"[" {f" {comma} ".join(map(self.value, items))} "]"'

    def _dict(self, others: Any) -> str:
        """An object whose keys are not known."""
        key = self._string({"type": "string"}) if self._quote is None else self._bare_key()
        value = self.value(others) if isinstance(others, Mapping) else self._any()
        entry = self._lark.rule(f"{key} {self._lark.text(self._colon)} {value}")
        comma = self._lark.text(self._comma)
        return f'"{{" ({entry} ({comma} {entry})*)? "}}"'

    def _bare_key(self) -> str:
        return self._lark.terminal(r"[A-Za-z_][A-Za-z0-9_]{0,40}")

    def _any(self) -> str:
        """What has no type: a value without others in it, or a list of such."""
        plain = [self._string({"type": "string"}), self._lark.terminal(NUMBER)]
        one = self._lark.rule(" | ".join([*plain, '"true"', '"false"', '"null"']))
        comma = self._lark.text(self._comma)
        return self._lark.rule(f'{one} | "[" ({one} ({comma} {one})*)? "]"')

    def _one_of(self, values: Sequence[Any]) -> str:
        if not values:
            raise InvalidRequest(f"{self._where}: got an empty enum, allowed is at least one value")
        return self._lark.rule(" | ".join(map(self._literal, values)))

    def _literal(self, value: Any) -> str:
        if self._quote is None or not isinstance(value, str):
            return self._lark.text(_json(value))
        return self._lark.text(f"{self._quote}{value}{self._quote}")

    def _library(self, schema: Schema, *, plain: bool = False) -> str:
        """JSON by llguidance."""
        if self._quote is not None and not plain:
            odd = sorted(set(schema) - _PLAIN)
            raise InvalidRequest(
                f"{self._where}: got a schema with {', '.join(odd)}, which calls of this model "
                "cannot be held to; tool_choice=None leaves them free"
            )
        given = {k: v for k, v in schema.items() if k not in ("description", "title")}
        if "$defs" in self._root and not plain and '"$ref"' in json.dumps(given):
            given["$defs"] = self._root["$defs"]
        return self._lark.rule(json_rule(given))


def _is_tuple(schema: Schema) -> bool:
    """Whether a schema is a list's that has just the items that it names."""
    items = schema.get("prefixItems")
    if schema.get("type") != "array" or not isinstance(items, (list, tuple)) or not items:
        return False
    exact = all(schema.get(name) == len(items) for name in ("minItems", "maxItems"))
    return exact and not set(schema) - _PLAIN - _OF_TUPLES


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# ---- values between tags ------------------------------------------------------------------------


def may_be_text(schema: Any) -> bool:
    """Whether a value between tags is taken as it is: a string, or what has no type."""
    if not isinstance(schema, Mapping):
        return True
    if "const" in schema or "enum" in schema:
        return any(isinstance(v, str) for v in schema.get("enum", [schema.get("const")]))
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return any(map(may_be_text, schema[union]))
    kind = schema.get("type")
    return kind is None or "string" in ([kind] if isinstance(kind, str) else kind)


def resolved(schema: Any, root: Schema, where: str) -> Any:
    """A schema without a reference at its top."""
    seen = 0
    while isinstance(schema, Mapping) and "$ref" in schema:
        if seen == _MOST_REFERENCES:
            raise InvalidRequest(f"{where}: its schema refers to itself without end")
        schema, seen = referred(root, schema["$ref"], where), seen + 1
    return schema


def split_texts(schema: Any) -> tuple[Any, Any]:
    """A schema's part that allows texts and its part that allows the rest; None for neither."""
    if not isinstance(schema, Mapping) or not may_be_text(schema):
        return (schema, None) if may_be_text(schema) else (None, schema)
    if "enum" in schema:
        texts = [v for v in schema["enum"] if isinstance(v, str)]
        others = [v for v in schema["enum"] if not isinstance(v, str)]
        return {**schema, "enum": texts}, {**schema, "enum": others} if others else None
    for union in ("anyOf", "oneOf"):
        if union in schema:
            rest = {key: value for key, value in schema.items() if key != union}
            texts = [part for part in schema[union] if may_be_text(part)]
            others = [part for part in schema[union] if not may_be_text(part)]
            return {**rest, union: texts}, {**rest, union: others} if others else None
    kinds = schema.get("type")
    others = [kind for kind in kinds if kind != "string"] if isinstance(kinds, list) else []
    text = {**schema, "type": "string"} if kinds else schema
    return text, {**schema, "type": others} if others else None


def tagged(
    lark: Lark, schema: Schema, root: Schema, where: str, close: str, *, wrap: str = ""
) -> str:
    """A value and the tag after it: strings as they are, the rest as JSON. ``wrap``: a line break
    that may stand before the tag and is no part of the value."""
    if not may_be_text(schema):
        return f"{Values(lark, root, where).value(schema)} {lark.text(wrap + close)}"
    if isinstance(schema, Mapping) and ("const" in schema or "enum" in schema):
        values = schema.get("enum", [schema.get("const")])
        texts = [lark.text(v if isinstance(v, str) else _json(v)) for v in values]
        return f"{lark.rule(' | '.join(texts))} {lark.text(wrap + close)}"
    only = isinstance(schema, Mapping) and schema.get("type") == "string"
    regex, least = raw_text(schema if only else {}, wrapped=bool(wrap))
    return lark.until(f"(?:{regex}){re.escape(wrap)}?" if wrap else regex, close, least)


def raw_text(schema: Schema, *, wrapped: bool = False) -> tuple[str, int]:
    """A regular expression of a string, and its least length; a pattern counts before a
    format, both before lengths. ``wrapped``: it ends with no line break."""
    pattern = schema.get("pattern")
    if not pattern and (known := _FORMATS.get(str(schema.get("format")))):
        pattern = f"^{known}$"
    if pattern:
        begun, ended = pattern.startswith("^"), pattern.endswith("$")
        inner = f"(?:{pattern[begun : len(pattern) - ended]})"
        return f"{'' if begun else '(?s:.*)'}{inner}{'' if ended else '(?s:.*)'}", 1
    low, high = schema.get("minLength", 0), schema.get("maxLength")
    if wrapped:
        most = "" if high is None else max(high - 1, 0)
        some = f"(?s:.{{{max(low - 1, 0)},{most}}})[^\\n]"
        return (some if low else f"(?:{some})?"), low
    if not low and high is None:
        return "(?s:.*)", 0
    return f"(?s:.{{{low},{'' if high is None else high}}})", low
