"""Messages of :meth:`musespark.Model.chat` from what other protocols and frameworks write: images,
calls with their arguments as JSON text, results that name only the call they answer, several
messages of the system."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from musespark.errors import InvalidRequest
from musespark.text.toolcalls import strict_json
from musespark.vision.pixels import file_of

_OF_SYSTEM = ("system", "developer")


def image_part(url: str, where: str) -> dict[str, Any]:
    """An image as :meth:`musespark.Model.chat` takes it, its file decoded from a data URL.

    InvalidRequest for anything else: nothing is fetched, and no file of this machine is opened.
    """
    if url[:5].lower() != "data:":
        raise InvalidRequest(
            f"{where}: got {url!r:.60}, allowed is a data URL; nothing is fetched or opened here"
        )
    try:
        return {"type": "image", "image": file_of(url)}
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: {error}") from None


def arguments_of(text: str, where: str) -> dict[str, Any]:
    """A call's arguments from their JSON."""
    try:
        value = strict_json(text or "{}")
    except ValueError as error:
        raise InvalidRequest(f"{where}: not JSON: {error!s:.120}") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where}: got {value!r:.60}, allowed is a JSON object")
    return value


def tool_call(id: str, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A call in a message of the assistant."""
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def call_text(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call with its arguments as JSON text."""
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "function": {"name": function["name"], "arguments": arguments}}


def name_results(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, those of tools with their function's name, which templates write: of the last
    call before it that has the id, for ids may come again.

    InvalidRequest for a result whose call is not before it in the conversation.
    """
    names: dict[str, str] = {}
    for index, message in enumerate(messages):
        for one in message.get("tool_calls") or ():
            names[one["id"]] = one["function"]["name"]
        if message["role"] == "tool":
            call = message["tool_call_id"]
            if call not in names:
                raise InvalidRequest(
                    f"messages[{index}]: no call before it has the id {call!r:.80} that it answers"
                )
            message["name"] = names[call]
    return messages


def conversation(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with results named by their calls (:func:`name_results`), and with the messages
    of the system and the developer that they begin with as one, their texts apart by a blank line:
    frameworks and clients give several, templates write one."""
    messages = name_results(messages)
    roles, texts = [], []
    for message in messages:
        text = _text_of(message.get("content"))
        if message["role"] not in _OF_SYSTEM or text is None:
            break
        roles.append(message["role"])
        texts.append(text)
    if len(texts) < 2:
        return messages
    role = roles[0] if len({*roles}) == 1 else "system"
    return [{"role": role, "content": "\n\n".join(texts)}, *messages[len(texts) :]]


def _text_of(content: Any) -> str | None:
    """A content that is a text, or parts that all are; None for any other."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or any(part.get("type") != "text" for part in content):
        return None
    return "\n".join(part["text"] for part in content)
