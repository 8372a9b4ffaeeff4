"""The table of the ways to write tool calls, by the names that protocols.py uses."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from musespark.errors import InvalidRequest
from musespark.text import calls_json, calls_python, calls_tagged
from musespark.text.given import check_call
from musespark.text.toolcalls import Raw, ToolCall, ToolCallError, schemas_of

Syntax = Callable[[str, Mapping[str, Any], "str | None"], list["ToolCall | ToolCallError"]]


def parse_code(
    text: str, schemas: Mapping[str, Any], recipient: str | None = None
) -> list[ToolCall | ToolCallError]:
    """What Llama writes where it may call: JSON, or calls like Python's."""
    json_like = text.lstrip()[:1] == "{" or re.match(r"\s*\[\s*\{", text)
    parse = calls_json.parse_json if json_like else calls_python.parse_python
    return parse(text, schemas, recipient)


SYNTAXES: dict[str, Syntax] = {
    "atem": calls_tagged.parse_atem,
    "dsml": calls_tagged.parse_dsml,
    "xml": calls_tagged.parse_xml,
    "glm": calls_tagged.parse_glm,
    "json": calls_json.parse_json,
    "keyed": calls_json.parse_keyed,
    "mistral": calls_json.parse_mistral,
    "deepseek": calls_json.parse_deepseek,
    "kimi": calls_json.parse_kimi,
    "harmony": calls_json.parse_harmony,
    "python": calls_python.parse_python,
    "gemma": calls_python.parse_gemma,
    "function-gemma": calls_python.parse_function_gemma,
    "code": parse_code,
}
# Only the closing tag says that a call in this syntax is whole.
_UNBOUNDED = frozenset(["glm"])
_LONGEST_ID = 128
_MOST_CALLS = 99_999  # whose numbers stay within the 9 letters of Mistral's ids
_JSON_START = re.compile(r'\{\s*(?:"(?P<key>[^"\\]*)"?\s*(?P<rest>.*))?', re.DOTALL)
_LIST_START = re.compile(r"\[\s*(?:\{.*|[^\W\d][\w.-]*(?:\(.*)?)?", re.DOTALL)
_KEYS = ("name", "type", "function", "parameters", "arguments")
_FENCES = ("```tool_code\n", "```json\n", "```tool_call\n")


def may_be_calls(text: str, kinds: Collection[str]) -> bool:
    """Whether an answer that begins so can turn out to be calls without tags around them.

    ``kinds``: ``json`` objects, a ``list`` of objects or of calls like Python's, a ``fence``.
    """
    text = text.lstrip()
    if not text:
        return True
    if "fence" in kinds and any(f.startswith(text) or text.startswith(f) for f in _FENCES):
        return True
    if "json" in kinds and (match := _JSON_START.fullmatch(text)):
        key, rest = match["key"] or "", match["rest"]
        return any(k == key or (not rest and k.startswith(key)) for k in _KEYS)
    return "list" in kinds and _LIST_START.fullmatch(text) is not None


def _that_can_be_sent(call: ToolCall | ToolCallError) -> ToolCall | ToolCallError:
    """The call, or an error where a message with it would be refused: no turn could follow."""
    if isinstance(call, ToolCall):
        try:
            check_call(call.to_openai(), "tool call")
        except InvalidRequest as error:
            return ToolCallError(call.raw, str(error))
    return call


def _number_of(id: str, form: str) -> int:
    """The number in an id of a form; 0 where it is of another, or of no number that we count to."""
    digits = id.removeprefix(form.partition("{")[0])
    number = int(digits) if len(digits) < 6 and digits.isascii() and digits.isdigit() else 0
    return number if id == form.format(number) and number < _MOST_CALLS else 0


class CallReader:
    """Reads the calls of one turn and gives them ids.

    ``form``: how an id is written, with ``{}`` for its number, where the model gives none that is
    new; ``known``: ids of the conversation, after whose numbers those of new calls begin.
    """

    def __init__(
        self,
        tools: Iterable[Mapping[str, Any]] | None,
        form: str,
        known: Collection[str] = (),
    ):
        self.schemas = schemas_of(tools)
        self._form, self._used = form, set(known)
        self._next = 1 + max((_number_of(one, form) for one in self._used), default=0)

    @property
    def offered(self) -> bool:
        """Whether the request offers tools."""
        return bool(self.schemas)

    def read(
        self, syntax: str, text: str | Raw, recipient: str | None = None, *, closed: bool = True
    ) -> list[ToolCall | ToolCallError]:
        """The calls of a tool channel's text; ``closed``: its own closing tag ended it."""
        if not closed and syntax in _UNBOUNDED:
            return [ToolCallError(str(text), "cut short")]
        found = map(_that_can_be_sent, SYNTAXES[syntax](text, self.schemas, recipient))
        return [self._with_id(call) if isinstance(call, ToolCall) else call for call in found]

    def read_bare(self, text: str) -> Sequence[ToolCall]:
        """The calls of an answer that is nothing but calls to tools on offer; else none."""
        fence = re.fullmatch(r"\s*```json\n(.*?)\n?```\s*", text, re.DOTALL)
        read = SYNTAXES["code"](fence[1] if fence else text, self.schemas, None)
        found = list(map(_that_can_be_sent, read))
        calls = [c for c in found if isinstance(c, ToolCall) and c.name in self.schemas]
        return [self._with_id(c) for c in calls] if len(calls) == len(found) else []

    def _with_id(self, call: ToolCall) -> ToolCall:
        if not 0 < len(call.id) <= _LONGEST_ID or call.id in self._used:
            while (new := self._form.format(self._next)) in self._used:
                self._next += 1
            call = replace(call, id=new)
        self._used.add(call.id)
        return call
