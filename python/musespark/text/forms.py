"""The forms in which chat templates take what OpenAI's messages may give in several.

Arguments of calls are a dict or JSON text; a content is text or a list of parts; a content that is
not there is missing, empty or None; instructions are ``system`` or ``developer``. A template is
written for one of each, and drops the others, prints their Python spelling, or fails on them. What
it is written for is found by trying.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import product
from typing import Any

Messages = list[dict[str, Any]]
# Renders messages with tools; None where the template fails on them.
Attempt = Callable[[Messages, list[dict[str, Any]] | None], str | None]

_BLANKS: tuple[dict[str, Any], ...] = ({}, {"content": ""}, {"content": None})
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "",
        "parameters": {"type": "object", "properties": {}},
    },
}
_USER = {"role": "user", "content": "probe"}
_AFTER_CALL: list[dict[str, Any]] = [
    {"role": "tool", "tool_call_id": "call00001", "name": "probe", "content": "probe"},
    {"role": "assistant", "content": "probe"},
    _USER,
]


@dataclass(frozen=True)
class CallForm:
    """How a template takes calls: ``text``: arguments as JSON text, else as a dict; ``blank``: the
    content of a message that only calls."""

    text: bool = False
    blank: dict[str, Any] = field(default_factory=lambda: {"content": ""})


def find_call_form(attempt: Attempt) -> CallForm:
    """The first form in which a template writes a call; else the first that it does not fail on."""
    works = []
    # Templates may fail on what follows a call, or without tools: the whole is tried first.
    for tail, tools in product((_AFTER_CALL, []), (None, [_PROBE_TOOL])):
        for text, blank in product((False, True), _BLANKS):
            rendered = attempt([*_calling(text, blank), *tail], tools)
            if rendered is not None and "argument_value" in rendered:
                return CallForm(text, blank)
            if rendered is not None:
                works.append(CallForm(text, blank))
    return works[0] if works else CallForm()


def _calling(text: bool, blank: dict[str, Any]) -> Messages:
    value: Any = {"argument_name": "argument_value"}
    function = {"name": "probe", "arguments": json.dumps(value) if text else value}
    call = {"id": "call00001", "type": "function", "function": function}
    return [_USER, {"role": "assistant", **blank, "tool_calls": [call]}]


def with_call_form(messages: Messages, form: CallForm) -> Messages:
    """Messages whose calls are in a template's form; changes the ones given."""
    for message in messages:
        calls = message.get("tool_calls") or ()
        for call in calls:
            if isinstance(call, dict) and isinstance(call.get("function"), dict):
                _set_arguments(call["function"], form.text)
        if message["role"] == "assistant" and not message.get("content"):
            if calls:
                message.pop("content", None)
                message.update(form.blank)
            elif "reasoning_content" in message:
                message["content"] = ""
    return messages


def _set_arguments(function: dict[str, Any], as_text: bool) -> None:
    arguments = function.get("arguments")
    if as_text and isinstance(arguments, dict):
        function["arguments"] = json.dumps(arguments, ensure_ascii=False)
    elif not as_text and isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            return  # not JSON: the template gets what the model wrote
        if isinstance(parsed, dict):
            function["arguments"] = parsed


def with_known_roles(messages: Messages, literals: Collection[str]) -> Messages:
    """``developer`` is ``system`` for a template that does not know it, as llama.cpp's server has
    it: OpenAI's newer name of the same thing."""
    if "developer" in literals:
        return messages
    return [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]


# ---- text parts ---------------------------------------------------------------------------------


def with_contents(messages: Messages, attempt: Callable[[Messages], str | None]) -> Messages:
    """Messages whose text parts are joined by line breaks, as other servers join them, but for the
    roles of which a template writes a list of one part as it writes a str, or writes lists only.

    ``attempt``: as :data:`Attempt`, with the caller's own tools and variables.
    """
    roles = {message["role"] for message in messages if _is_text_parts(message.get("content"))}
    if not roles:
        return messages
    plain = attempt(_rewritten(messages, roles, _joined))
    if plain is None:  # a template may take lists only; else it says itself what it cannot do
        return messages if attempt(messages) is not None else _rewritten(messages, roles, _joined)

    def takes_lists(role: str) -> bool:
        others = _rewritten(messages, roles - {role}, _joined)
        one, two = (attempt(_rewritten(others, {role}, write)) for write in (_one_part, _two_parts))
        if one is None or two is None or len(two) < len(one):  # some read the first part only
            return False
        texts = [_joined(m["content"]).strip() for m in _with_parts(messages, {role})]
        lists_only = all(text in one for text in texts) and not all(text in plain for text in texts)
        return one == plain or lists_only

    return _rewritten(messages, {role for role in roles if not takes_lists(role)}, _joined)


def _is_text_parts(content: Any) -> bool:
    return isinstance(content, (list, tuple)) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    )


def _joined(parts: list[dict[str, Any]]) -> str:
    return "\n".join(part["text"] for part in parts)


def _one_part(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": _joined(parts)}]


def _two_parts(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": ""}, *_one_part(parts)]


def _with_parts(messages: Messages, roles: Collection[str]) -> Messages:
    return [m for m in messages if m["role"] in roles and _is_text_parts(m.get("content"))]


def _rewritten(messages: Messages, roles: Collection[str], write: Callable[[Any], Any]) -> Messages:
    made = []
    for message in messages:
        if _with_parts([message], roles):
            message = {**message, "content": write(message["content"])}
        made.append(message)
    return made
