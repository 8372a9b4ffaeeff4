"""What the adapters share: options of ``Model.chat`` from what frameworks call them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from musespark.errors import InvalidRequest, MissingLibrary
from musespark.messages import name_results
from musespark.options import CONTEMPLATING, MODES

_TOOL_CHOICES = {"any": "required", True: "required", False: "none"}


def missing(extra: str, error: ModuleNotFoundError) -> MissingLibrary:
    """The error for a framework that is not installed."""
    return MissingLibrary(
        f"musespark.integrations.{extra.replace('-', '_')} needs {error.name}: "
        f"pip install 'musespark[{extra}]'"
    )


def chat_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of ``Model.chat`` where ``response_format`` and ``tool_choice`` may be as OpenAI's
    protocol has them. With tools and no choice it is ``auto``, as in ``Model.act``: every call
    parses and has arguments that its tool allows."""
    options = {name: value for name, value in given.items() if value is not None}
    form = options.pop("response_format", None)
    if form is not None:
        options["json_schema"] = answer_schema(form)
    if not options.get("tools", True):
        del options["tools"]
    if "tools" in options or "tool_choice" in options:
        options["tool_choice"] = chosen_tool(options.get("tool_choice", "auto"))
    return options


def streamed(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The request as a stream. InvalidRequest for several agents, whose pieces are no one turn."""
    if asked.get("mode") == CONTEMPLATING:
        raise InvalidRequest(
            f"mode: got {CONTEMPLATING!r} in a stream, allowed is one of {list(MODES)}; without a "
            "stream it is allowed"
        )
    return {**asked, "stream": True}


def chosen_tool(choice: Any) -> Any:
    """``tool_choice`` of ``Model.chat`` from the ways that frameworks write one."""
    if not isinstance(choice, Mapping):
        return _TOOL_CHOICES.get(choice, choice)
    function = choice.get("function")
    named = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(named, str):
        raise InvalidRequest(
            f"tool_choice: got {choice!r:.80}, allowed is auto, required, none, a tool's name, or "
            '{"type": "function", "function": {"name": a tool\'s}}'
        )
    return named


def answer_schema(response_format: Any) -> Any:
    """``json_schema`` of ``Model.chat`` from a ``response_format`` of OpenAI's protocol: strict,
    where that does not say otherwise."""
    form = response_format if isinstance(response_format, Mapping) else {}
    named = form.get("json_schema")
    if form.get("type") == "json_object":
        return {"type": "object"}
    if form.get("type") != "json_schema" or not isinstance(named, Mapping) or "schema" not in named:
        raise InvalidRequest(
            f"response_format: got {response_format!r:.80}, allowed is of the type json_object, or "
            "json_schema with a schema"
        )
    return named["schema"] if named.get("strict") is False else closed(named["schema"])


def closed(schema: Any) -> Any:
    """A copy of a JSON schema whose objects with ``properties`` allow no others, where they do not
    say: an answer of a class has that class's fields."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    copy = {key: closed(value) for key, value in schema.items()}
    if copy.get("type") == "object" and "properties" in copy:
        copy.setdefault("additionalProperties", False)
    return copy


def conversation(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with results named by their calls, and with the system messages that they begin
    with as one, their texts apart by a blank line: frameworks give several, templates write one."""
    messages = name_results(messages)
    count = next(
        (i for i, message in enumerate(messages) if message["role"] != "system"), len(messages)
    )
    if count < 2:
        return messages
    texts = "\n\n".join(message["content"] for message in messages[:count])
    return [{"role": "system", "content": texts}, *messages[count:]]
