"""Tools that are Python functions.

    @tool(effects=True)
    def send_mail(to: str, text: str) -> str:
        \"\"\"Send a mail.

        Args:
            to: who gets it
        \"\"\"

The function itself stays as it is. What a model got wrong goes back to it as the tool's answer:
arguments that the schema does not allow, a tool there is none of, a function that raises.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import json
import re
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from musespark.agents.signature import signature_of
from musespark.errors import InvalidRequest
from musespark.parts import is_media
from musespark.schema import argument_schema, check_value

_NAME = re.compile(r"[^\W\d][\w.-]{0,63}")
_MARK = "__musespark_tool__"
_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]+")  # of an object that does not say what it is


@dataclass(frozen=True)
class Tool:
    """A function that a model may call: how it is called, what it is told to do, the JSON schema of
    its arguments, and the function, which gets them as keywords.

    ``effects``: it changes something, so each call waits for approval. ``read``: arguments as JSON
    has them to what the function wants; None where that is the same.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    run: Callable[..., Any] = field(repr=False)
    effects: bool = False
    read: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = field(
        default=None, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise InvalidRequest(
                f"tools: got the name {self.name!r:.80}, allowed are a letter and then up to 63 "
                "letters, digits, '_', '.' and '-'"
            )
        if not isinstance(self.parameters, Mapping):
            raise InvalidRequest(
                f"tools: {self.name}: parameters: got {self.parameters!r:.60}, allowed is a JSON "
                "schema, a dict"
            )
        if not isinstance(self.effects, bool):
            raise InvalidRequest(
                f"tools: {self.name}: effects: got {self.effects!r:.60}, allowed is True or False"
            )

    @classmethod
    def of(cls, function: Callable[..., Any], name: str | None = None) -> Tool:
        """From a function's signature and docstring: see
        :func:`musespark.agents.signature.signature_of` for what is understood of them. What
        :func:`tool` says of the function counts first."""
        if isinstance(function, Mapping):
            raise InvalidRequest(
                f"tools: got {function!r:.60}, a description with no function to run, allowed are "
                "functions and Tool; chat(tools=[...]) takes descriptions"
            )
        if not callable(function):
            raise InvalidRequest(f"tools: got {function!r:.60}, allowed are functions and Tool")
        said = _said_of(function)
        name = said.get("name") or getattr(function, "__name__", "") if name is None else name
        if not name or name == "<lambda>":
            raise InvalidRequest(
                f"tools: {function!r:.60} has no name; give a dict of names and functions, such as "
                '{"get_weather": function}'
            )
        found = signature_of(function, name)
        description = said.get("description") or found.description
        effects = said.get("effects", False)
        return cls(name, description, found.parameters, function, effects, found.read)

    @property
    def is_async(self) -> bool:
        """Whether the function is one for an event loop."""
        call = getattr(self.run, "__call__", self.run)  # noqa: B004 - of an object: its method
        return inspect.iscoroutinefunction(self.run) or inspect.iscoroutinefunction(call)

    def to_openai(self) -> dict[str, Any]:
        """As ``tools`` of :meth:`Model.chat` takes it."""
        function = {"name": self.name, "description": self.description}
        return {"type": "function", "function": {**function, "parameters": dict(self.parameters)}}

    def check(self, arguments: Any) -> None:
        """InvalidRequest naming the argument that the schema does not allow; others than those that
        it names are not allowed unless it says so."""
        if not isinstance(arguments, Mapping):
            raise InvalidRequest(f"{self.name}: arguments must be an object")
        known = argument_schema(self.parameters, f"tools: {self.name}")
        schema = {"additionalProperties": False, **known, "type": "object"}
        check_value(arguments, schema, self.name)

    def __call__(self, arguments: Any) -> Any:
        """Runs it. InvalidRequest naming the argument that the schema does not allow."""
        self.check(arguments)
        return self.run(**(arguments if self.read is None else self.read(arguments)))


def tool(
    function: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    description: str | None = None,
    effects: bool = False,
) -> Any:
    """Marks a function: how a model calls it, what it is told of it (its name and docstring where
    None), and whether it has ``effects``, so that each call waits for approval."""

    def marked(given: Callable[..., Any]) -> Callable[..., Any]:
        if not callable(given):
            raise InvalidRequest(f"tool: got {given!r:.60}, allowed is a function")
        said = {"name": name, "description": description, "effects": effects}
        try:
            setattr(given, _MARK, said)
        except (AttributeError, TypeError):  # a method, or one of Python's own
            raise InvalidRequest(
                f"tool: got {given!r:.60}, which cannot be marked; give a Tool"
            ) from None
        return given

    return marked if function is None else marked(function)


def _said_of(function: Any) -> dict[str, Any]:
    """What :func:`tool` says of a function, or of the one that a partial is of."""
    while isinstance(function, functools.partial) and not hasattr(function, _MARK):
        function = function.func
    return getattr(function, _MARK, {})


@dataclass(frozen=True)
class Content:
    """What a tool gives that is more than text: ``parts`` as a message's content has them, such as
    ``{"type": "image", "image": …}``."""

    parts: Sequence[Mapping[str, Any]]

    @property
    def text(self) -> str:
        """Of its parts that are text."""
        return "\n".join(str(part["text"]) for part in self.parts if part.get("type") == "text")

    @property
    def media(self) -> list[Mapping[str, Any]]:
        """Its parts that are images or videos."""
        return [part for part in self.parts if is_media(part)]


Tools = Mapping[str, "Callable[..., Any] | Tool"] | Iterable["Callable[..., Any] | Tool"]


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
        one = given if isinstance(given, Tool) else Tool.of(given, name)
        if named and one.name != name:
            raise InvalidRequest(f"tools[{name!r:.60}]: its name is {one.name!r:.60}")
        if one.name in found:
            raise InvalidRequest(f"tools: {one.name!r:.60} is given twice")
        found[one.name] = one
    if not found:
        raise InvalidRequest("tools: got none, allowed is at least one; chat() needs none")
    return found


@dataclass(frozen=True)
class Written:
    """The text of a function's value. ``more``: a generator in it was not read to its end."""

    text: str
    more: bool = False


class UnfinishedError(Exception):
    """A generator had not ended when the time was over."""


def text_of(value: Any) -> str:
    """What a model is told of a function's value: a text as it is, else JSON, where an Enum is its
    value, a set (in order, where it has one), a generator or an array is a list, and an object of
    another type is its str(). What no text has (a lone surrogate) is replaced. InvalidRequest for a
    number that no JSON has, for bytes, and for an object whose str() has an address in memory,
    which is another one in each process."""
    return written(value).text


def written(value: Any, most: int | None = None, until: float | None = None) -> Written:
    """:func:`text_of` a value. No more is read of a generator, which may have no end, once it has
    more than ``most`` characters; :class:`UnfinishedError` for one that goes on after ``until``, on
    the monotonic clock."""
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, Content):
        value = value.text
    plain = _Plain(most, until)
    if not isinstance(value, str):
        value = plain.json(value)
        if "NaN" in value or "Infinity" in value:  # perhaps in a text, where they may be
            json.loads(value, parse_constant=_refuse_number)
    return Written(value.encode(errors="replace").decode(), plain.more)


def _refuse_number(name: str) -> None:
    raise InvalidRequest(
        f"the tool gave the number {name}, allowed are those that JSON has: finite"
    )


class _Plain:
    """What stands in JSON for objects that JSON does not know. ``more``: whether a generator was
    not read to its end."""

    def __init__(self, most: int | None, until: float | None):
        self._most, self._until, self.more = most, until, False

    def json(self, value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, default=self._value)

    def _value(self, value: Any) -> Any:
        if isinstance(value, enum.Enum):
            return value.value
        if isinstance(value, Set):
            return _in_order(value)
        if isinstance(value, Generator):
            return self._taken(value)
        if callable(getattr(value, "tolist", None)):  # an array, whose str() leaves out its middle
            return value.tolist()
        if callable(getattr(value, "model_dump", None)):
            return value.model_dump(mode="json")
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        text = str(value)
        if isinstance(value, (bytes, bytearray)) or _ADDRESS.search(text):
            raise InvalidRequest(
                f"the tool gave a value of type {type(value).__name__}, allowed are a str, what "
                "JSON has, and objects whose str() says what they are"
            )
        return text

    def _taken(self, values: Generator[Any, Any, Any]) -> list[Any]:
        """The items that a generator gives, each as JSON has it: it may be a generator too."""
        items, characters = [], 0
        with closing(values):
            for item in values:
                if self._until is not None and time.monotonic() >= self._until:
                    raise UnfinishedError
                text = self.json(item)
                items.append(json.loads(text))
                characters += len(text) + len(", ")
                if self._most is not None and characters > self._most:
                    self.more = True
                    break
        return items


def _in_order(values: Set[Any]) -> list[Any]:
    """Alike in each process, though texts hash differently; as they come where none is less."""
    try:
        return sorted(values)
    except TypeError:
        return list(values)
