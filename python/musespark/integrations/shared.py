"""What the adapters share: options of ``Model.chat`` from what frameworks call them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from musespark.errors import InvalidRequest, MissingLibrary
from musespark.options import CONTEMPLATING, MODES

# Keywords of JSON schemas that hold schemas by names, and those that hold values.
_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
_VALUES = ("enum", "const", "default", "examples", "required")
_TOOL_CHOICES = {"any": "required", True: "required", False: "none"}


def missing(extra: str, error: ModuleNotFoundError) -> MissingLibrary:
    """The error for a framework that is not installed."""
    return MissingLibrary(
        f"musespark.integrations.{extra.replace('-', '_')} needs {error.name}: "
        f"pip install 'musespark[{extra}]'"
    )


def checked_model(model: Any) -> Any:
    """The model that an adapter is given. InvalidRequest for what is none, such as its folder."""
    if not hasattr(model, "chat") or not hasattr(model, "info"):
        raise InvalidRequest(
            f"model: got {type(model).__name__}, allowed is a model of musespark.load(…)"
        )
    return model


def chat_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of ``Model.chat`` where ``response_format`` and ``tool_choice`` may be as OpenAI's
    protocol has them. With tools and no choice it is ``auto``, as in ``Model.act``: every call
    parses and has arguments that its tool allows."""
    options = {name: value for name, value in given.items() if value is not None}
    form = options.pop("response_format", None)
    if form is not None:
        options["json_schema"] = answer_schema(form)
    if tools := options.pop("tools", None):
        options["tools"] = [described(tool) for tool in tools]
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
    if isinstance(choice, (str, bool)):
        return _TOOL_CHOICES.get(choice, choice)
    function = choice.get("function") if isinstance(choice, Mapping) else None
    named = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(named, str):
        raise InvalidRequest(
            f"tool_choice: got {choice!r:.80}, allowed is auto, required, any, none, True, False, "
            'a tool\'s name, or {"type": "function", "function": {"name": a tool\'s}}'
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


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a JSON schema whose objects with ``properties`` allow no others, where they do not
    say: an answer of a class has that class's fields."""

    def close(one: dict[str, Any]) -> dict[str, Any]:
        if one.get("type") == "object" and "properties" in one:
            one.setdefault("additionalProperties", False)
        return one

    return _rewritten(schema, close)


def described(tool: Any) -> Any:
    """A tool with its schema as ``Model.act`` writes one, whichever framework it comes from: models
    know schemas that begin with the type and have no titles, which repeat names."""
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or "parameters" not in function:
        return tool

    def untitled(one: dict[str, Any]) -> dict[str, Any]:
        first = {key: one[key] for key in ("type", "properties", "required") if key in one}
        return first | {key: value for key, value in one.items() if key not in (*first, "title")}

    parameters = _rewritten(function["parameters"], untitled)
    return {**tool, "function": {**function, "parameters": parameters}}


def _rewritten(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A copy of a JSON schema with ``change`` made of each schema in it, the inner ones first."""
    if isinstance(schema, list):
        return [_rewritten(one, change) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    copy: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _BY_NAME and isinstance(value, Mapping):
            copy[key] = {name: _rewritten(one, change) for name, one in value.items()}
        else:
            copy[key] = value if key in _VALUES else _rewritten(value, change)
    return change(copy)
