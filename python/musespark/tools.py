"""Tools that are Python functions, and the loop in which a model calls them.

    def weather(city: str, days: int = 1) -> str:
        \"\"\"The weather of the coming days.

        Args:
            city: which town
        \"\"\"

    run = model.run_tools("Will it rain in Bergen?", [weather])
    run.content, run.uses

The functions run in the caller's thread, one after the other. What a model got wrong goes back to
it as the tool's answer: arguments that the schema does not allow, a tool there is none of, a
function that raises.
"""

from __future__ import annotations

import inspect
import json
import re
import time
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from musespark.calling import NO_CALLS_LEFT, Calling, no_such_tool
from musespark.errors import InvalidRequest
from musespark.results import ChatResult
from musespark.schema import check_value

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_ARGUMENT = re.compile(r"^\s*\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")
_SHOWN = 300  # characters of an error that a model is told


@dataclass(frozen=True)
class Tool:
    """A function that a model may call: how it is called, what it is told to do, the JSON schema of
    its arguments, and the function, which gets them as keywords."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    run: Callable[..., Any] = field(repr=False)

    @classmethod
    def of(cls, function: Callable[..., Any], name: str | None = None) -> Tool:
        """From a function's signature and docstring: the first paragraph says what it does, a
        section ``Args:`` what its parameters are.

        Types: str, int, float, bool, None, list, dict, Literal, Optional and unions of these; a
        parameter without one may be anything. InvalidRequest for others, naming the parameter.
        """
        if not callable(function):
            raise InvalidRequest(f"tools: got {function!r:.60}, allowed are functions and Tool")
        name = getattr(function, "__name__", "") if name is None else name
        if not name or name == "<lambda>":
            raise InvalidRequest(f"tools: {function!r:.60} has no name; give a dict name: function")
        description, said = _docstring(inspect.getdoc(function) or "")
        return cls(name, description, _parameters(function, name, said), function)

    def to_openai(self) -> dict[str, Any]:
        """As ``tools`` of :meth:`Model.chat` takes it."""
        function = {"name": self.name, "description": self.description}
        return {"type": "function", "function": {**function, "parameters": dict(self.parameters)}}

    def __call__(self, arguments: Any) -> Any:
        """Runs it. InvalidRequest naming the argument that the schema does not allow."""
        if not isinstance(arguments, Mapping):
            raise InvalidRequest(f"{self.name}: arguments must be an object")
        check_value(arguments, {**self.parameters, "type": "object"}, self.name)
        return self.run(**arguments)


@dataclass(frozen=True)
class ToolUse:
    """One call. ``turn``: which of the model's turns made it, from 0; ``answer``: what the model
    was told; ``error``: whether that was an error; ``seconds``: in the function."""

    turn: int
    id: str
    name: str
    arguments: Any
    answer: str
    error: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class ToolRun:
    """``result``: of the last turn; ``messages``: the whole conversation, to be gone on with;
    ``uses``: every call, in order; ``turns``: how often the model spoke. ``complete``: whether it
    ended with an answer, not within its limits nor with more calls. ``malformed``: raw texts
    of calls that could not be read, of which the model was told."""

    result: ChatResult
    messages: list[dict[str, Any]] = field(repr=False)
    uses: tuple[ToolUse, ...] = ()
    turns: int = 1
    complete: bool = True
    malformed: tuple[str, ...] = ()

    @property
    def content(self) -> str:
        return self.result.content

    def __str__(self) -> str:
        return self.content


class Chat(Protocol):
    """:meth:`Model.chat`, or what answers like it."""

    def __call__(
        self, messages: Sequence[Mapping[str, Any]], *, tools: list[dict[str, Any]], **options: Any
    ) -> ChatResult: ...


Tools = Mapping[str, "Callable[..., Any] | Tool"] | Iterable["Callable[..., Any] | Tool"]


def run_tools(
    chat: Chat,
    messages: str | Sequence[Mapping[str, Any]],
    tools: Tools,
    *,
    calls: int = 8,
    **options: Any,
) -> ToolRun:
    """A conversation to its answer, with tools that are run.

    ``messages``: as for :meth:`Model.chat`. ``tools``: functions, whose signature and docstring the
    model is told (:meth:`Tool.of`), or tools with their own schema. The functions run here, one
    after the other; what they return (a str, or what JSON knows) is told to the model until it
    answers. ``calls``: how many are answered; after those the model is told to answer, once.
    ``options``: of each turn. Raises InvalidRequest, as :meth:`Model.chat` does.
    """
    check_calls(calls)
    if options.get("stream"):
        raise InvalidRequest("stream: got True; run_tools returns when the model has answered")
    known = tools_by_name(tools)
    run = ToolConversation(known, messages, calls)
    schemas = [tool.to_openai() for tool in known.values()]
    while True:
        result = chat(run.messages, tools=schemas, **options)
        if not run.take(result):
            uses, malformed = tuple(run.uses), tuple(run.malformed)
            return ToolRun(result, run.messages, uses, run.turns, run.complete, malformed)


def tools_by_name(tools: Tools) -> dict[str, Tool]:
    """Checked tools; InvalidRequest for a name that is given twice, and for none at all."""
    named = isinstance(tools, Mapping)
    if not named and (isinstance(tools, (str, bytes, Tool)) or not isinstance(tools, Iterable)):
        raise InvalidRequest(
            f"tools: got {tools!r:.60}, allowed are functions: a list, or a dict by name"
        )
    pairs = tools.items() if named else ((None, tool) for tool in tools)  # type: ignore[union-attr]
    found: dict[str, Tool] = {}
    for name, given in pairs:
        tool = given if isinstance(given, Tool) else Tool.of(given, name)
        if named and tool.name != name:
            raise InvalidRequest(f"tools[{name!r:.60}]: its name is {tool.name!r:.60}")
        if tool.name in found:
            raise InvalidRequest(f"tools: {tool.name!r:.60} is given twice")
        found[tool.name] = tool
    if not found:
        raise InvalidRequest("tools: got none, allowed is at least one; chat() needs none")
    return found


def check_calls(calls: Any) -> None:
    """InvalidRequest where ``calls`` is no number of calls."""
    if isinstance(calls, bool) or not isinstance(calls, int) or calls < 0:
        raise InvalidRequest(f"calls: got {calls!r:.60}, allowed is an integer >= 0")


class ToolConversation(Calling):
    """One conversation under way, its calls answered by functions. ``messages``: as for
    :meth:`Model.chat`; they are copied, and the copy grows."""

    def __init__(
        self, tools: Mapping[str, Tool], messages: str | Sequence[Mapping[str, Any]], calls: int
    ):
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        elif not isinstance(messages, Sequence):
            raise InvalidRequest(f"messages: got {messages!r:.60}, allowed is a str or a list")
        super().__init__(list(messages), calls)
        self._tools, self.uses = tools, list[ToolUse]()

    def answer(self, index: int, call: Mapping[str, Any], *, allowed: bool) -> str:
        use = self._use(call, allowed)
        self.uses.append(use)
        return use.answer

    def _use(self, call: Mapping[str, Any], allowed: bool) -> ToolUse:
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        seen = {"turn": self.turns - 1, "id": call.get("id", ""), "name": name}
        seen["arguments"] = arguments
        tool = self._tools.get(name)
        if not allowed or tool is None:
            why = no_such_tool(name, [*self._tools]) if allowed else NO_CALLS_LEFT
            return ToolUse(**seen, answer=f"error: {why}", error=True)
        began = time.perf_counter()
        try:
            answer, wrong = _text(tool(arguments)), False
        except InvalidRequest as error:
            answer, wrong = f"error: {error!s:.{_SHOWN}}", True
        except Exception as error:  # the function's: the model may try something else
            answer, wrong = f"error: {type(error).__name__}: {error!s:.{_SHOWN}}", True
        return ToolUse(**seen, answer=answer, error=wrong, seconds=time.perf_counter() - began)


def _text(value: Any) -> str:
    """What a model is told of a function's value: a text as it is, else JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


# ---- schemas of functions ----------------------------------------------------------------------


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """The first paragraph as one line, and what a section Args says of each parameter."""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    said: dict[str, str] = {}
    section, name = False, ""
    for line in text.splitlines():
        if not line.startswith(" "):
            section, name = line.strip() in ("Args:", "Arguments:", "Parameters:"), ""
        elif section and (match := _ARGUMENT.match(line)):
            name = match[1]
            said[name] = match[2].strip()
        elif section and name:
            said[name] = f"{said[name]} {line.strip()}".strip()
    return paragraph, said


def _parameters(function: Callable[..., Any], name: str, said: Mapping[str, str]) -> dict[str, Any]:
    try:
        signature = inspect.signature(function)
        hints = typing.get_type_hints(function, include_extras=True)
    except (TypeError, ValueError, NameError) as error:
        raise InvalidRequest(
            f"tools: the signature of {name} cannot be read ({error}); give a Tool with its schema"
        ) from error
    properties, required = {}, []
    for parameter in signature.parameters.values():
        where = f"tools: {name}({parameter.name})"
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            raise InvalidRequest(f"{where}: arguments are given by name; give a Tool with a schema")
        if parameter.kind == parameter.VAR_KEYWORD:
            raise InvalidRequest(f"{where}: its names are not known; give a Tool with a schema")
        rule = _rule(hints.get(parameter.name, Any), where)
        if parameter.name in said:
            rule["description"] = said[parameter.name]
        if parameter.default is parameter.empty:
            required.append(parameter.name)
        properties[parameter.name] = rule
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _rule(hint: Any, where: str) -> dict[str, Any]:
    """A type as JSON schema."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return {}
    if hint in _PLAIN:
        return {"type": _PLAIN[hint]}
    if origin is typing.Annotated:
        rule = _rule(inside[0], where)
        texts = [note for note in inside[1:] if isinstance(note, str)]
        return {**rule, "description": texts[0]} if texts else rule
    if origin is Literal:
        return {"enum": list(inside)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_rule(one, where) for one in inside]}
    if hint in (list, tuple) or origin in (list, Sequence):
        return {"type": "array", **({"items": _rule(inside[0], where)} if inside else {})}
    if hint is dict or origin in (dict, Mapping):
        return {
            "type": "object",
            **({"additionalProperties": _rule(inside[1], where)} if inside else {}),
        }
    raise InvalidRequest(f"{where}: no JSON has the type {hint!r:.80}; give a Tool with its schema")
