"""What callers give as Python has it, as a request has it: functions as the tools that a model is
told of, types as the schema of its answer."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from musespark.agents.signature import Kind, kind_of
from musespark.agents.tools import Tool, tools_by_name
from musespark.errors import InvalidRequest

_TYPES = (
    "a schema (a dict, or its JSON as a str) or a type: a class with model_json_schema(), a "
    "dataclass, a TypedDict, an Enum, or such as list[int]"
)


def described(given: Mapping[str, Any]) -> dict[str, Any]:
    """A request's options, with functions and Tools among ``tools`` as descriptions, and a type as
    ``json_schema`` as what has a schema and reads values. InvalidRequest where they are neither."""
    out = dict(given)
    if given.get("tools") is not None:
        out["tools"] = _descriptions(given["tools"])
    if given.get("json_schema") is not None:
        out["json_schema"] = _answer(given["json_schema"])
    return out


def _descriptions(tools: Any) -> Any:
    if isinstance(tools, Mapping) and tools and all(map(callable, tools.values())):
        return [one.to_openai() for one in tools_by_name(tools).values()]
    if not isinstance(tools, (list, tuple)):
        return tools
    return [_description(tool) if callable(tool) else tool for tool in tools]


def _description(tool: Any) -> dict[str, Any]:
    return (tool if isinstance(tool, Tool) else Tool.of(tool)).to_openai()


@dataclass(frozen=True)
class _Answer:
    """A type as grammars take a class of pydantic."""

    schema: dict[str, Any]
    read: Callable[[str], Any]

    def model_json_schema(self) -> dict[str, Any]:
        return self.schema

    def model_validate(self, value: Any) -> Any:
        return self.read(json.dumps(value))

    def model_validate_json(self, text: str) -> Any:
        return self.read(text)


def _answer(given: Any) -> Any:
    if isinstance(given, (str, Mapping)):
        return given
    if callable(getattr(given, "model_json_schema", None)):
        if not isinstance(given, (type, _Answer)):
            raise InvalidRequest(
                f"json_schema: got an object of {type(given).__name__}, allowed is the class itself"
            )
        return given
    if callable(getattr(given, "validate_json", None)):  # a TypeAdapter of pydantic
        return _Answer(given.json_schema(), given.validate_json)
    if not isinstance(given, (type, types.UnionType)) and typing.get_origin(given) is None:
        raise InvalidRequest(f"json_schema: got {given!r:.60}, allowed is {_TYPES}")
    try:
        kind = kind_of(given, "json_schema")
    except InvalidRequest as error:
        why = str(error).partition("; give a Tool")[0]
        raise InvalidRequest(f"{why}; allowed is {_TYPES}") from None
    return _Answer(_closed(kind.schema), lambda text: _read(kind, text))


def _read(kind: Kind, text: str) -> Any:
    return kind.read(json.loads(text))


def _closed(schema: Any) -> Any:
    """A schema whose objects have no other properties than those that it names: its type has none
    for them."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    found = {key: _closed(value) for key, value in schema.items()}
    if found.get("type") == "object" and "properties" in found:
        found.setdefault("additionalProperties", False)
    return found
