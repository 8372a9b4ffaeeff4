"""What callers give in OpenAI's shapes, checked before a template sees it: messages and tools.

A template would drop what it does not expect without a word, or fail on it in its own terms.
Every InvalidRequest here names the field, as ``messages[2].tool_calls[0].function.name``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, NamedTuple

from musespark.errors import InvalidRequest, UnsupportedModel
from musespark.parts import IMAGE_PARTS, VIDEO_PART
from musespark.schema import argument_schema

_MEDIA = (*IMAGE_PARTS, VIDEO_PART, "audio", "input_audio")
_BESIDE = ("images", *IMAGE_PARTS, "videos", "video", "audio", "input_audio")
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
MAX_DEPTH = 64  # of values, in what callers give and in what models write
_TOOL_NAME = re.compile(r"[\w.-]{1,128}")  # what every protocol's calls can be read with
_NO_OBJECT = ("not", "enum", "const")  # at a schema's root: what they leave no grammar follows
_TOOL_SHAPE = (
    '{"type": "function", "function": {"name": ..., "description": ..., "parameters": ...}}'
)


def _wrong(where: str, value: Any, allowed: str) -> InvalidRequest:
    plain = value is None or isinstance(value, (str, bool, int, float))
    got = f"{value!r:.60}" if plain else f"a value of type {type(value).__name__}"
    return InvalidRequest(f"{where:.200}: got {got}, allowed is {allowed}")


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        what = f"{where:.200}: a lone surrogate at index {error.start}, which no text has"
        raise InvalidRequest(what) from None


def _fields(value: Any, where: str, what: str) -> dict[str, Any]:
    """A mapping, a dataclass or a pydantic object as a dict."""
    if callable(getattr(value, "model_dump", None)):
        value = value.model_dump()
    elif is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if not isinstance(value, Mapping):
        raise _wrong(where, value, what)
    return dict(value)


def _list(value: Any, where: str, what: str) -> Sequence[Any]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise _wrong(where, value, what)
    return value


# ---- messages -----------------------------------------------------------------------------------


def checked_messages(messages: Any, parts: str, images: bool = False) -> list[dict[str, Any]]:
    """Messages as dicts. ``parts``: the template's text; a part of a kind that it does not name
    raises UnsupportedModel, and so does an image unless there may be ``images``."""
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    messages = _list(messages, "messages", "a str or a list of messages")
    if not messages:
        raise InvalidRequest("messages: got an empty list, allowed is at least one message")
    kinds = _Kinds(parts, images)
    return [_message(message, f"messages[{i}]", kinds) for i, message in enumerate(messages)]


def known_calls(messages: Any) -> frozenset[str]:
    """The ids of calls in checked messages, and those that results name: the beginning of a
    conversation may have been cut off, with calls that results in the rest of it answer."""
    if isinstance(messages, str):
        return frozenset()
    found: list[Any] = []
    for given in messages:
        message = _fields(given, "messages", "a dict")
        found.append(message.get("tool_call_id"))
        calls = message.get("tool_calls") or ()
        found += (_fields(call, "tool_calls", "a dict").get("id") for call in calls)
    return frozenset(one for one in found if isinstance(one, str))


class _Kinds(NamedTuple):
    """The parts that a content may have."""

    template: str
    images: bool

    def refused(self, kind: Any) -> str:
        """Why a part of a kind is not taken; empty where it is."""
        seen = kind in ("image", VIDEO_PART) and self.images and kind in self.template
        if kind == "text" or seen:
            return ""
        if kind == VIDEO_PART and self.images:
            return "video: the chat template writes none"
        if kind in (*IMAGE_PARTS, VIDEO_PART):
            what = "the chat template writes" if self.images else "this model reads"
            return f"{'video' if kind == VIDEO_PART else 'images'}: {what} text alone"
        known = isinstance(kind, str) and kind not in _MEDIA and kind in self.template
        return "" if known else "this version runs text, images and video only"


def _message(given: Any, where: str, kinds: _Kinds) -> dict[str, Any]:
    message = _fields(given, where, "a dict with role and content")
    role = message.get("role")
    if not isinstance(role, str):
        raise _wrong(f"{where}.role", role, "a str: user, assistant, system or tool")
    _refuse_media(message, where, _BESIDE)
    calls = message.get("tool_calls")
    if calls is not None:
        calls = _list(calls, f"{where}.tool_calls", "a list of tool calls")
        for index, call in enumerate(calls):
            check_call(call, f"{where}.tool_calls[{index}]")
    for name in (*_THOUGHTS, "tool_call_id", "name"):
        if not isinstance(message.get(name, ""), (str, type(None))):
            raise _wrong(f"{where}.{name}", message[name], "a str")
        _check_text(message.get(name) or "", f"{where}.{name}")
    thought = any(message.get(name) for name in _THOUGHTS)
    may_lack = role == "assistant" and (calls or thought)
    _check_content(message.get("content"), f"{where}.content", role, bool(may_lack), kinds)
    return message


def _refuse_media(given: Mapping[str, Any], where: str, names: tuple[str, ...]) -> None:
    """No template reads these; a model would answer about what it has not seen."""
    for name in names:
        if given.get(name) not in (None, [], ()):
            raise InvalidRequest(
                f"{where}.{name}: nothing reads it here; an image is a part of content, "
                '{"type": "image", "image": ...}'
            )


def _check_content(content: Any, where: str, role: str, may_lack: bool, kinds: _Kinds) -> None:
    if isinstance(content, str):
        _check_text(content, where)
        return
    if content is None and may_lack:
        return
    if role == "tool" and isinstance(content, Mapping):  # a result as data; templates write JSON
        checked_json(content, where)
        return
    allowed = "a str or a list of parts"
    if role == "assistant":
        allowed += "; it may be missing beside tool_calls"
    for index, part in enumerate(_list(content, where, allowed)):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        refused = kinds.refused(kind) if isinstance(part, Mapping) else "a part is a dict"
        if refused:
            raise UnsupportedModel(f"{where}[{index}]: a part of type {kind!r:.60}; {refused}")
        if kind == "text" and not isinstance(part.get("text"), str):
            raise _wrong(f"{where}[{index}].text", part.get("text"), "a str")
        if kind == "text":
            _refuse_media(part, f"{where}[{index}]", _BESIDE)
            _check_text(part["text"], f"{where}[{index}].text")


def check_call(given: Any, where: str) -> None:
    """InvalidRequest where a tool call of a message is none, or cannot be written as text."""
    call = _fields(given, where, 'a dict with "function"')
    if isinstance(call.get("id"), str):
        _check_text(call["id"], f"{where}.id")
    function = call
    if "function" in call:
        where += ".function"
        function = _fields(call["function"], where, "a dict with name and arguments")
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise _wrong(f"{where}.name", function.get("name"), "the function's name, a str")
    _check_text(function["name"], f"{where}.name")
    arguments = function.get("arguments")
    if not isinstance(arguments, (str, Mapping, type(None))):
        raise _wrong(f"{where}.arguments", arguments, "JSON text or a dict")
    checked_json(arguments, f"{where}.arguments")


# ---- tools --------------------------------------------------------------------------------------


def checked_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Tools as plain data. What OpenAI lets out is filled in, since templates read it anyway: an
    empty description, and parameters that are an object without properties."""
    if tools is None:
        return None
    tools = _list(tools, "tools", f"a list of {_TOOL_SHAPE}")
    for index, tool in enumerate(tools):
        if callable(tool):  # a function, or a Tool of one
            allowed = f"{_TOOL_SHAPE}, as Tool.of(function).to_openai() gives it; act() takes it so"
            raise _wrong(f"tools[{index}]", tool, allowed)
    checked = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    names: set[str] = set()
    for index, tool in enumerate(checked):
        name = tool["function"]["name"]
        if name in names:
            raise _wrong(f"tools[{index}].function.name", name, "each name once")
        names.add(name)
    return checked


def _tool(given: Any, where: str) -> dict[str, Any]:
    tool = checked_json(_fields(given, where, _TOOL_SHAPE), where)
    if tool.setdefault("type", "function") != "function":
        raise _wrong(f"{where}.type", tool["type"], "'function'")
    if "function" not in tool:
        raise InvalidRequest(f"{where}.function is missing; a tool is {_TOOL_SHAPE}")
    where += ".function"
    function = _fields(tool["function"], where, "a dict with name, description and parameters")
    name = function.get("name")
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        raise _wrong(f"{where}.name", name, "1 to 128 letters, digits, '_', '.' and '-'")
    if function.get("description") is None:
        function["description"] = ""
    if not isinstance(function["description"], str):
        raise _wrong(f"{where}.description", function["description"], "a str")
    parameters = _parameters(function.get("parameters"), f"{where}.parameters", name)
    return {**tool, "function": {**function, "parameters": parameters}}


def _parameters(parameters: Any, where: str, tool: str) -> dict[str, Any]:
    """The schema of a tool's arguments, which are an object: see :func:`argument_schema`."""
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, dict):
        raise _wrong(where, parameters, "a JSON schema, a dict")
    kind = parameters.get("type") or "object"
    if kind != "object":
        raise _wrong(f"{where}.type", kind, "'object', as arguments are one")
    for name in _NO_OBJECT:
        if name in parameters:
            allowed = "none here: arguments are an object with properties"
            raise _wrong(f"{where}.{name}", parameters[name], allowed)
    parameters = argument_schema(parameters, f"tools: {tool}")
    for name, value in (("type", "object"), ("properties", {})):
        if parameters.get(name) is None:
            parameters[name] = value
    if not isinstance(parameters["properties"], dict):
        raise _wrong(f"{where}.properties", parameters["properties"], "a dict")
    return parameters


def checked_json(value: Any, where: str, depth: int = 0) -> Any:
    """A copy in JSON's types; InvalidRequest for anything that JSON cannot say."""
    if depth > MAX_DEPTH:
        raise InvalidRequest(f"{where:.200}: nested more than {MAX_DEPTH} deep")
    if isinstance(value, str):
        _check_text(value, where)
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _wrong(where, value, "a finite number")
        return value
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise _wrong(where, wrong[0], "a str as key")
        for key in value:
            _check_text(key, f"a key of {where}")
        return {key: checked_json(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [checked_json(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(value)]
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        return checked_json(value.item(), where, depth + 1)  # a NumPy scalar
    raise _wrong(where, value, "a value that JSON knows")
