"""Tool calls in tags around each argument, typed by the tool's schema: ATEM (Muse), DSML (DeepSeek
3.2 and 4), ``<function=…>`` (Qwen3-Coder, Seed, Nemotron), ``<arg_key>`` (GLM).

ATEM (from the Muse Glimmer chat template; "String and scalar parameters should be specified as is,
while lists and objects should use JSON format. Note that spaces for string values are not stripped.
The output is not expected to be valid XML and is parsed with regular expressions"):

    <atem:function_calls>
    <atem:invoke name="TOOL">
    <atem:parameter name="KEY">VALUE</atem:parameter>
    </atem:invoke>
    </atem:function_calls>

A value ends at the first closing tag that another parameter or the end of the call follows, so a
value may contain the closing tag. DSML says of each parameter whether it is a string.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from musespark.text.calls_python import literal
from musespark.text.toolcalls import (
    Malformed,
    ToolCall,
    ToolCallError,
    convert,
    find_mark,
    skip_space,
    strict_json,
    typed,
)

Found = list[ToolCall | ToolCallError]


@dataclass(frozen=True)
class _Tags:
    """The tags of one form. ``quote`` ends a name; ``wrap``: line breaks around values are no part
    of them."""

    calls: tuple[str, str] | None
    invoke: tuple[str, str]
    parameter: tuple[str, str]
    quote: str
    wrap: bool = False

    @property
    def value_end(self) -> re.Pattern[str]:
        opening, closing = map(re.escape, self.parameter)
        return re.compile(rf"{closing}\s*(?={opening}|{re.escape(self.invoke[1])})")


_ATEM = _Tags(
    ("<atem:function_calls>", "</atem:function_calls>"),
    ('<atem:invoke name="', "</atem:invoke>"),
    ('<atem:parameter name="', "</atem:parameter>"),
    '">',
)
_XML = _Tags(None, ("<function=", "</function>"), ("<parameter=", "</parameter>"), ">", wrap=True)
_DSML = _Tags(
    None,
    ('<｜DSML｜invoke name="', "</｜DSML｜invoke>"),
    ('<｜DSML｜parameter name="', "</｜DSML｜parameter>"),
    '"',
)
_VALUE_END = {tags: tags.value_end for tags in (_ATEM, _XML, _DSML)}


def _name(text: str, at: int, quote: str) -> tuple[str, int]:
    """The name that stands before the next ``quote``, and the position after it."""
    end = text.find(quote, at)
    if end < 0:
        raise Malformed("the tag's name does not end")
    return text[at:end], end + len(quote)


def _parameters(text: str, at: int, tags: _Tags) -> tuple[dict[str, str], int]:
    """The parameters of a call from ``at``, and the position after the call's closing tag."""
    found: dict[str, str] = {}
    opening, closing = tags.parameter[0], tags.invoke[1]
    while True:
        at = skip_space(text, at)
        if text.startswith(closing, at):
            return found, at + len(closing)
        if not text.startswith(opening, at):
            cut = at >= len(text) or opening.startswith(text[at:])
            raise Malformed(
                "cut short" if cut else f"expected a parameter at {text[at : at + 40]!r}"
            )
        key, at = _name(text, at + len(opening), tags.quote)
        end = _VALUE_END[tags].search(text, at)
        if end is None:
            raise Malformed(f"the value of parameter {key!r} does not end")
        if key in found:
            raise Malformed(f"parameter {key!r} is given twice")
        value, at = text[at : end.start()], end.end()
        if tags.wrap:
            value = value.removeprefix("\n").removesuffix("\n")
        found[key] = value


Finish = Callable[[str, dict[str, str], str], ToolCall | ToolCallError]


def _invoke(text: str, at: int, tags: _Tags, finish: Finish) -> tuple[Any, int]:
    start, opening = at, tags.invoke[0]
    if not text.startswith(opening, at):
        raise Malformed(f"expected a call at {text[at : at + 40]!r}")
    name, at = _name(text, at + len(opening), tags.quote)
    if tags is _DSML:
        at = text.find(">", at) + 1 or len(text)
    values, at = _parameters(text, at, tags)
    return finish(name, values, text[start:at]), at


def _invokes(text: str, at: int, tags: _Tags, finish: Finish) -> Found:
    """All calls from ``at`` on; a wrapper's closing tag must end them where the form has one."""
    calls: Found = []
    closing = tags.calls[1] if tags.calls else None
    while True:
        at = skip_space(text, at)
        if closing and text.startswith(closing, at):
            at = skip_space(text, at + len(closing))
            if at < len(text):
                calls.append(ToolCallError(text[at:], "text after the calls"))
            elif not calls:
                calls.append(ToolCallError(str(text), "no call inside"))
            return calls
        if at >= len(text):
            return calls or [ToolCallError(str(text), "cut short" if closing else "no call inside")]
        try:
            call, at = _invoke(text, at, tags, finish)
        except Malformed as error:
            return [*calls, ToolCallError(text[at:], str(error))]
        calls.append(call)


def parse_atem(text: str, schemas: Mapping[str, Any], recipient: str | None = None) -> Found:
    """Calls in ATEM form; see the module's docstring."""
    opening = _ATEM.calls[0] if _ATEM.calls else ""
    at = skip_space(text, 0)
    if not text.startswith(opening, at):
        return [ToolCallError(str(text), f"expected {opening}")]

    def finish(name: str, values: dict[str, str], raw: str) -> ToolCall | ToolCallError:
        if recipient is not None and name != recipient:
            return ToolCallError(raw, f"the channel is to {recipient!r}, the call to {name!r}")
        return typed(name, values, raw, schemas)

    return _invokes(text, at + len(opening), _ATEM, finish)


def parse_xml(text: str, schemas: Mapping[str, Any], recipient: str | None = None) -> Found:
    """``<function=NAME><parameter=KEY>VALUE</parameter>…</function>``. Values are written as their
    templates do it: strings as they are, the rest as JSON or like Python (``True``, ``['a']``)."""
    return _invokes(text, 0, _XML, lambda n, v, raw: typed(n, v, raw, schemas, literal))


_IS_STRING = re.compile(r'\s+string="(true|false)">|>')


def parse_dsml(text: str, schemas: Mapping[str, Any], recipient: str | None = None) -> Found:
    """``<｜DSML｜invoke name="NAME"><｜DSML｜parameter name="KEY" string="true">VALUE…``."""

    def finish(name: str, values: dict[str, str], raw: str) -> ToolCall | ToolCallError:
        arguments: dict[str, Any] = {}
        properties = schemas.get(name, {}).get("properties") or {}
        for key, value in values.items():
            said = _IS_STRING.match(value)
            if said is None:
                return ToolCallError(raw, f"parameter {key!r}: the tag does not end")
            value = value[said.end() :]
            try:
                if said[1] == "false":
                    arguments[key] = strict_json(value)
                else:
                    arguments[key] = value if said[1] else convert(value, properties.get(key))
            except ValueError as error:
                return ToolCallError(raw, f"parameter {key!r}: {error}")
        return ToolCall(name, arguments, raw)

    return _invokes(text, 0, _DSML, finish)


def parse_glm(text: str, schemas: Mapping[str, Any], recipient: str | None = None) -> Found:
    """``NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>…``, white space between them."""
    first = find_mark(text, "<arg_key>")
    name = (text if first < 0 else text[:first]).strip()
    values: dict[str, str] = {}
    at = len(text) if first < 0 else first
    try:
        if not name or "\n" in name or name[0] in "{<":
            raise Malformed(f"{name[:60]!r} is not a name")
        while at < len(text):
            key, at = _between(text, at, "<arg_key>", "</arg_key>")
            value, at = _between(text, at, "<arg_value>", "</arg_value>")
            if key in values:
                raise Malformed(f"parameter {key!r} is given twice")
            values[key] = value
    except Malformed as error:
        return [ToolCallError(str(text), str(error))]
    return [typed(name, values, str(text), schemas)]


def _between(text: str, at: int, opening: str, closing: str) -> tuple[str, int]:
    """What stands between two markers, the first of which is next, and the position of what
    follows."""
    if find_mark(text, opening, at) != at:
        raise Malformed(f"expected {opening} at {text[at : at + 40]!r}")
    end = find_mark(text, closing, at)
    if end < 0:
        raise Malformed(f"{opening} does not end")
    return text[at + len(opening) : end], skip_space(text, end + len(closing))
