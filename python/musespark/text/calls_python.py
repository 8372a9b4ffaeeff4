"""Tool calls written like code: Python calls (Llama 3.2 and 4, LFM2, Gemma's ``tool_code``) and
Gemma's ``call:name{key:value}``. Nothing is run: only literals are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from musespark.text.given import MAX_DEPTH
from musespark.text.toolcalls import (
    Malformed,
    ToolCall,
    ToolCallError,
    find_mark,
    mark_at,
    skip_space,
    strict_json,
)

Found = list[ToolCall | ToolCallError]
_NAME = re.compile(r"[^\W\d]\w*(?:[.-]\w+)*")
_KEYWORD = re.compile(r"([^\W\d]\w*)\s*=\s*")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_CONSTANTS = {"True": True, "true": True, "False": False, "false": False}
_CONSTANTS |= {"None": None, "null": None}
_STRING = re.compile(
    r"'''(?:[^\\]|\\.)*?'''"
    r'|"""(?:[^\\]|\\.)*?"""'
    r"|'(?:[^'\\\n]|\\.)*'"
    r'|"(?:[^"\\\n]|\\.)*"',
    re.DOTALL,
)
_ESCAPE = re.compile(
    r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([0-7]{1,3})|(.))", re.DOTALL
)
_PLAIN_ESCAPES = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "\n": "",
}


def _unescaped(match: re.Match[str]) -> str:
    for group, base in ((1, 16), (2, 16), (3, 16), (4, 8)):
        if match[group] is not None:
            code = int(match[group], base)
            if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
                raise Malformed(f"{match[0]} is no character")
            return chr(code)
    return _PLAIN_ESCAPES.get(match[5], match[5] if match[5] in "'\"\\/" else match[0])


class _Reader:
    """Literals at a position. ``quote``: the marker around Gemma's strings, None for Python's."""

    def __init__(self, text: str, quote: str | None = None):
        self.text, self.quote = text, quote

    def value(self, at: int, depth: int = 0) -> tuple[Any, int]:
        """The value that begins at ``at``, and the position after it; raises Malformed."""
        text = self.text
        if depth > MAX_DEPTH:
            raise Malformed("nested too deeply")
        if self.quote is not None and mark_at(text, self.quote, at):
            return self._marked(at)
        if text[at : at + 1] in ("[", "("):
            closing = "]" if text[at] == "[" else ")"
            return self._items(at + 1, closing, depth)
        if text[at : at + 1] == "{":
            return self._entries(at + 1, depth)
        if match := _STRING.match(text, at):
            edge = 3 if match[0][:3] in ("'''", '"""') else 1
            return _ESCAPE.sub(_unescaped, match[0][edge:-edge]), match.end()
        if (match := _NAME.match(text, at)) and match[0] in _CONSTANTS:
            return _CONSTANTS[match[0]], match.end()
        if match := _NUMBER.match(text, at):
            return _number(match[0]), match.end()
        raise Malformed(f"expected a value at {text[at : at + 40]!r}")

    def _marked(self, at: int) -> tuple[str, int]:
        begin = at + len(self.quote or "")
        end = find_mark(self.text, self.quote or "", begin)
        if end < 0:
            raise Malformed("a string does not end")
        return self.text[begin:end], end + len(self.quote or "")

    def _items(self, at: int, closing: str, depth: int) -> tuple[list[Any], int]:
        found: list[Any] = []
        while not self.text.startswith(closing, at := skip_space(self.text, at)):
            item, at = self.value(at, depth + 1)
            found.append(item)
            at = self._comma(at, closing)
        return found, at + 1

    def _entries(self, at: int, depth: int) -> tuple[dict[str, Any], int]:
        found: dict[str, Any] = {}
        while not self.text.startswith("}", at := skip_space(self.text, at)):
            key, at = self._key(at, depth)
            at = skip_space(self.text, at)
            if not self.text.startswith(":", at):
                raise Malformed(f"expected ':' at {self.text[at : at + 40]!r}")
            if key in found:
                raise Malformed(f"key {key!r:.60} is given twice")
            found[key], at = self.value(skip_space(self.text, at + 1), depth + 1)
            at = self._comma(at, "}")
        return found, at + 1

    def _key(self, at: int, depth: int) -> tuple[str, int]:
        if self.quote is not None and not mark_at(self.text, self.quote, at):
            end = self.text.find(":", at)  # Gemma writes names bare
            if end < 0 or not self.text[at:end].strip():
                raise Malformed(f"expected a key at {self.text[at : at + 40]!r}")
            return self.text[at:end].strip(), end
        key, at = self.value(at, depth + 1)
        if not isinstance(key, str):
            raise Malformed(f"the key {key!r:.40} is not a string")
        return key, at

    def _comma(self, at: int, closing: str) -> int:
        at = skip_space(self.text, at)
        if self.text.startswith(",", at):
            return at + 1
        if self.text.startswith(closing, at):
            return at
        cut = at >= len(self.text)
        raise Malformed("cut short" if cut else f"expected ',' at {self.text[at : at + 40]!r}")

    def printed(self, at: int, schemas: Mapping[str, Any]) -> tuple[list[ToolCall], int]:
        """A call, or those that stand in ``print(…)`` where no tool is called so."""
        opening = "print("
        if "print" in schemas or not self.text.startswith(opening, at):
            call, at = self.call(at, schemas)
            return [call], at
        calls, at = [], skip_space(self.text, at + len(opening))
        while not calls or not self.text.startswith(")", at):
            call, at = self.call(at, schemas)
            calls.append(call)
            at = skip_space(self.text, self._comma(at, ")"))
        return calls, at + 1

    def call(self, at: int, schemas: Mapping[str, Any]) -> tuple[ToolCall, int]:
        """A call ``name(key=value, …)``; values without keys go by the schema's order."""
        start, text = at, self.text
        match = _NAME.match(text, at)
        if match is None or not text.startswith("(", match.end()):
            raise Malformed(f"expected a call at {text[at : at + 40]!r}")
        name, at = match[0], match.end() + 1
        if name not in schemas and name.endswith(".call"):  # Llama 3.1's built-in tools
            name = name.removesuffix(".call")
        order = list(schemas.get(name, {}).get("properties") or {})
        arguments: dict[str, Any] = {}
        while not text.startswith(")", at := skip_space(text, at)):
            keyword = _KEYWORD.match(text, at)
            if keyword is None and len(arguments) >= len(order):
                self.value(at)  # where it is no value at all, that is the error
                raise Malformed(f"argument {len(arguments) + 1} of {name} has no name")
            key = keyword[1] if keyword else order[len(arguments)]
            if key in arguments:
                raise Malformed(f"argument {key!r} is given twice")
            arguments[key], at = self.value(keyword.end() if keyword else at)
            at = self._comma(at, ")")
        return ToolCall(name, arguments, text[start : at + 1]), at + 1


def _number(text: str) -> int | float:
    try:
        value = float(text) if any(c in text for c in ".eE") else int(text)
    except ValueError as error:
        raise Malformed(f"{text[:40]} is no number") from error
    if value in (float("inf"), float("-inf")):
        raise Malformed(f"{text[:40]} is beyond the numbers of JSON readers")
    return value


def literal(text: str) -> Any:
    """A value in JSON or Python's notation; ValueError for anything else."""
    try:
        return strict_json(text)
    except ValueError as error:
        try:
            value, end = _Reader(text).value(0)
        except Malformed:
            raise error from None
        if skip_space(text, end) < len(text):
            raise
        return value


_FENCE = re.compile(r"\s*```(?:tool_code|python|tool_call)?[ \t]*\n(.*?)\n?```\s*", re.DOTALL)


def parse_python(text: str, schemas: Mapping[str, Any], recipient: str | None = None) -> Found:
    """``[name(key=value), …]``, or calls after each other with ``,``, ``;`` or lines between them;
    all of it may stand in a fence, and calls in ``print(…)``."""
    fenced = _FENCE.fullmatch(text)
    body = fenced[1].strip() if fenced else text.strip()
    listed = body.startswith("[") and body.endswith("]")
    if body.startswith("[") and not listed:
        return [ToolCallError(str(text), "the list of calls does not end")]
    inner = body[1:-1] if listed else body
    reader, calls, at = _Reader(inner), [], skip_space(inner, 0)
    while at < len(inner):
        try:
            found, at = reader.printed(at, schemas)
        except Malformed as error:
            return [*calls, ToolCallError(inner[at:] if calls else str(text), str(error))]
        calls += found
        at = skip_space(inner, at)
        if inner[at : at + 1] in (",", ";"):
            at = skip_space(inner, at + 1)
    return calls or [ToolCallError(str(text), "no call inside")]


def parse_gemma(text: str, schemas: Mapping[str, Any], recipient: str | None = None) -> Found:
    """``call:name{key:value,…}``; strings stand between ``<|"|>`` and are taken as they are."""
    return _quoted_call(text, '<|"|>')


def parse_function_gemma(
    text: str, schemas: Mapping[str, Any], recipient: str | None = None
) -> Found:
    """As :func:`parse_gemma`, with ``<escape>`` around strings."""
    return _quoted_call(text, "<escape>")


def _quoted_call(text: str, quote: str) -> Found:
    at = skip_space(text, 0)
    begin = text.find("{", at)
    name = text[at + len("call:") : begin].strip() if begin >= 0 else ""
    try:
        if not text.startswith("call:", at) or not _NAME.fullmatch(name):
            raise Malformed(f"expected call:name{{ at {text[at : at + 40]!r}")
        arguments, end = _Reader(text, quote).value(begin)
        if skip_space(text, end) < len(text):
            raise Malformed(f"text after the call: {text[end : end + 40]!r}")
    except Malformed as error:
        return [ToolCallError(str(text), str(error))]
    return [ToolCall(name, arguments, str(text))]
