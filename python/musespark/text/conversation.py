"""A caller's messages, tools and variables as plain data for a template, as such or disguised.

The conversion follows ``_plain_template_data`` and ``_alias_reasoning_fields`` of transformers'
``utils/chat_template_utils.py`` (5.23).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from musespark.errors import InvalidRequest
from musespark.text.guard import ROLES, Disguise

_REASONING = ("reasoning_content", "thinking", "reasoning")


def _plain(value: Any) -> Any:
    """JSON types only, freshly made: a template never sees an object with methods of its own.
    Anything else (an image, an array) becomes a placeholder such as ``<Image>``."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, dict) or isinstance(value, Mapping):  # noqa: SIM101 - the first is fast
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if callable(getattr(value, "model_dump", None)):  # pydantic
        return _plain(value.model_dump())
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        return _plain(value.item())  # a NumPy scalar
    return f"<{type(value).__name__}>"


def plain_inputs(messages: Any, tools: Any, variables: dict[str, Any]) -> tuple[list, Any, dict]:
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if isinstance(messages, (bytes, Mapping)) or not isinstance(messages, Sequence):
        raise InvalidRequest(
            f"messages must be a list of dicts or a str, not {type(messages).__name__}"
        )
    copied = []
    for index, message in enumerate(messages):
        message = _plain(message)
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidRequest(
                f"messages[{index}] must be a dict with a role, not {message!r:.80}"
            )
        # As transformers: no None values, and reasoning under each of its usual names.
        message = {key: value for key, value in message.items() if value is not None}
        reasoning = next((message[key] for key in _REASONING if key in message), None)
        if reasoning is not None:
            message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
        copied.append(message)
    tools = _plain(tools)
    if tools is not None and not (
        isinstance(tools, (list, tuple)) and all(isinstance(t, dict) for t in tools)
    ):
        raise InvalidRequest("tools must be a list of dicts (JSON schemas of functions)")
    return copied, list(tools) if tools is not None else None, _plain(variables)


def mark_end(messages: list[dict[str, Any]], mark: str) -> str:
    """Writes `mark` behind the last text of the final message, an assistant's, and returns the text
    before it."""
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant":
        raise InvalidRequest(
            "continue_final_message: the last message must be the assistant's, not "
            f"{last.get('role')!r:.60}"
        )
    content = last.get("content")
    if isinstance(content, str):
        last["content"] = content + mark
        return content
    for part in reversed(content if isinstance(content, (list, tuple)) else ()):
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            text = part["text"]
            part["text"] = text + mark
            return text
    raise InvalidRequest("continue_final_message: the last message has no content to go on with")


def cut_at(rendered: str, mark: str) -> str | None:
    """A rendering up to `mark`, which ends with a space; where the template trimmed that, what it
    trimmed before the mark is left out too. None where the mark is not there."""
    at = rendered.rfind(mark.rstrip())
    if at < 0:
        return None
    return rendered[:at] if rendered.startswith(mark, at) else rendered[:at].rstrip()


def hide(disguise: Disguise, value: Any) -> Any:
    if isinstance(value, str):
        return disguise.hide(value)
    if isinstance(value, dict):
        return {disguise.hide_key(key): hide(disguise, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(hide(disguise, item) for item in value)
    return value


def hide_message(disguise: Disguise, message: dict[str, Any]) -> dict[str, Any]:
    hidden = hide(disguise, message)
    role, content = message["role"], message.get("content")
    if role in ROLES:
        hidden["role"] = role
    if role == "assistant" and isinstance(content, str) and "reasoning_content" not in message:
        hidden["content"] = disguise.hide_assistant(content)
    return hidden


def size_of(value: Any) -> int:
    """Characters of all strings, and 16 for each element."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(16 + size_of(key) + size_of(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return sum(16 + size_of(item) for item in value)
    return 16
