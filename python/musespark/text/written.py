"""Whether a chat template writes every message: what it does not write, the model would not see.

Each text is replaced by a word of its own and the conversation rendered once more: a word that is
missing was dropped. Two things are the template's own business and not looked at: earlier thoughts,
and what an assistant says beside its calls, which families write or leave out as they were trained.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from musespark.errors import InvalidRequest
from musespark.text.conversation import plain_inputs


@dataclass
class _Words:
    """Words that occur nowhere else, each with the place that it stands for."""

    places: list[str] = field(default_factory=list)

    def new(self, place: str) -> str:
        self.places.append(place)
        return f"qz{len(self.places) - 1:07d}x"

    @staticmethod
    def found(text: str) -> set[int]:
        """The numbers of the words in a text."""
        return {int(digits) for digits in re.findall(r"qz(\d{7})x", text)}


def refuse_unwritten(
    messages: list[dict[str, Any]], render: Callable[[list[dict[str, Any]]], str], origin: str
) -> None:
    """InvalidRequest for the first message that the template ``origin`` leaves out in ``render``,
    wholly or one of its text parts or calls."""
    words = _Words()
    messages, _, _ = plain_inputs(messages, None, {})
    marked = [_marked(message, f"messages[{i}]", words) for i, message in enumerate(messages)]
    try:
        text = render(marked)
    except InvalidRequest:
        return  # the conversation itself fails likewise and says how
    written = words.found(text)
    for index, place in enumerate(words.places):
        if index not in written:
            hint = "; give the call as text, in a content" if ".tool_calls[" in place else ""
            raise InvalidRequest(
                f"{place}: the chat template {origin} does not write it; the model would not see it"
                f"{hint}"
            )


def _marked(message: dict[str, Any], where: str, words: _Words) -> dict[str, Any]:
    """The message (our own copy) with a word for each of its texts and calls."""
    role, content = message["role"], message.get("content")
    beside_calls = role == "assistant" and bool(message.get("tool_calls"))

    def marked(place: str) -> str:
        place = f"{place} (role {role!r:.40})"
        return "text" if beside_calls else words.new(place)

    if isinstance(content, str) and content.strip():
        message["content"] = marked(f"{where}.content")
    elif isinstance(content, dict) and content:  # a result as data
        message["content"] = {"result": marked(f"{where}.content")}
    elif isinstance(content, (list, tuple)):
        for index, part in enumerate(content):
            if part.get("type") == "text" and part["text"].strip():
                part["text"] = marked(f"{where}.content[{index}]")
    for index, call in enumerate(message.get("tool_calls") or ()):
        function = call.get("function", call)
        function["name"] = words.new(f"{where}.tool_calls[{index}]")
    return message
