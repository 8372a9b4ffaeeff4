"""Types of Python as JSON schemas, and values of JSON as values of the types."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from musespark.agents.formats import format_of
from musespark.errors import InvalidRequest
from musespark.schema import check_value

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
# Bounds in Annotated, as annotated_types and pydantic's Field name them, and as JSON Schema does.
_BOUNDS: dict[str, str | dict[str, str]] = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "multiple_of": "multipleOf",
    "pattern": {"string": "pattern"},
    "min_length": {"string": "minLength", "array": "minItems"},
    "max_length": {"string": "maxLength", "array": "maxItems"},
}
# A set's schema has no uniqueItems: no grammar follows it, and what is there twice is there once.
_LISTS = (list, tuple, set, frozenset)
_ARGUMENT = re.compile(r"^\s*\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")


@dataclass(frozen=True)
class Kind:
    """A type: its ``schema``, and what makes a value of it from a value of JSON."""

    schema: dict[str, Any]
    read: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True)
class Signature:
    """A function's ``description``, the schema of its ``parameters``, and ``read``: arguments as
    JSON has them to those of the types that the function wants."""

    description: str
    parameters: dict[str, Any]
    read: Callable[[Mapping[str, Any]], dict[str, Any]]


def signature_of(function: Callable[..., Any], name: str) -> Signature:
    """What a function's signature and docstring say: its first paragraph, and a section ``Args:``.

    Types: str, int, float, bool, None, Optional and unions, Literal, Enum, list, tuple, set,
    frozenset, dict, TypedDict, dataclasses, classes of pydantic; date, datetime and time (texts of
    JSON Schema's formats; times with the offset that the format has), UUID, Path and Decimal;
    Annotated with a description and with bounds (``ge``, ``gt``, ``le``, ``lt``, ``multiple_of``,
    ``pattern``, ``min_length`` and ``max_length`` of pydantic's Field and of annotated_types; of a
    union: those of its members that have such bounds); a parameter without a type may be anything.
    InvalidRequest for others, naming the parameter.
    """
    inner, text, bound = _inner(function)
    description, said = _docstring(text)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise _not_read(f"tools: the signature of {name}", error) from error
    hints = _hints(inner, f"tools: the signature of {name}")
    kinds, required, defaults = _Kinds(), [], {}
    fields: dict[str, Kind] = {}
    for parameter in signature.parameters.values():
        where = f"tools: {name}({parameter.name})"
        if parameter.name in bound:
            continue
        _check_named(parameter, where)
        if not fields and parameter.name == "self" and inspect.isfunction(function):
            raise InvalidRequest(f"{where}: a method without its object; give object.{name}")
        fields[parameter.name] = kinds.of(hints.get(parameter.name, Any), where)
        if parameter.default is parameter.empty:
            required.append(parameter.name)
        elif _is_json(parameter.default):
            defaults[parameter.name] = parameter.default
            kinds.check_default(parameter.default, fields[parameter.name], where)
    whole = kinds.record(fields, required, said, defaults, name)
    if kinds.defs:
        whole.schema["$defs"] = kinds.defs
    return Signature(description, whole.schema, whole.read)


def kind_of(hint: Any, where: str) -> Kind:
    """A type alone, as parameters may have it; InvalidRequest for others."""
    kinds = _Kinds()
    kind = kinds.of(hint, where)
    return Kind({**kind.schema, "$defs": kinds.defs} if kinds.defs else kind.schema, kind.read)


def _hints(given: Any, what: str) -> dict[str, Any]:
    """The types in a signature or a class, InvalidRequest where they cannot be had."""
    try:
        return typing.get_type_hints(given, include_extras=True)
    except Exception as error:  # an annotation that is a text is code: it may raise anything
        raise _not_read(what, error) from error


def _inner(function: Any) -> tuple[Any, str, set[str]]:
    """What has the types of a function, its docstring, and which of its arguments are given already
    by name, so that a model is not asked for them: partials have the function that they are of,
    objects their method."""
    bound: set[str] = set()
    while isinstance(function, functools.partial):
        bound |= {*function.keywords}
        function = function.func
    said = inspect.getdoc(function) or ""
    if inspect.isfunction(getattr(type(function), "__call__", None)):  # noqa: B004 - an object's
        function = function.__call__
        said = inspect.getdoc(function) or said
    return function, said, bound


def _not_read(what: str, error: Exception) -> InvalidRequest:
    return InvalidRequest(f"{what} cannot be read ({error!s:.200}); give a Tool with its schema")


def _check_named(parameter: inspect.Parameter, where: str) -> None:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
        raise InvalidRequest(f"{where}: arguments are given by name; give a Tool with a schema")
    if parameter.kind == parameter.VAR_KEYWORD:
        raise InvalidRequest(f"{where}: its names are not known; give a Tool with a schema")


def _is_json(value: Any) -> bool:
    """Whether a default can stand in a schema; None says no more than that it may be left out."""
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return isinstance(value, (str, bool, int, float)) and not isinstance(value, enum.Enum)


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


class _Kinds:
    """Types of one signature. ``defs``: what classes of pydantic define beside themselves."""

    def __init__(self) -> None:
        self.defs: dict[str, Any] = {}
        self._inside: list[Any] = []  # dataclasses and TypedDicts under way

    def of(self, hint: Any, where: str) -> Kind:
        origin, inside = typing.get_origin(hint), typing.get_args(hint)
        if hint is Any:
            return Kind({})
        if origin is typing.Annotated:  # whose notes may be none that can be hashed
            return self._annotated(inside, where)
        if hint is int:  # 5.0 is an integer in JSON
            return Kind({"type": _PLAIN[hint]}, int)
        if hint in _PLAIN:
            return Kind({"type": _PLAIN[hint]})
        if origin is Literal:
            return self._literal(inside, where)
        if origin in (typing.Union, types.UnionType):
            return self._union([self.of(one, where) for one in inside], where)
        if hint in _LISTS or origin in (*_LISTS, Sequence):
            return self._array(hint if origin is None else origin, inside, where)
        if hint is dict or origin in (dict, Mapping):
            return self._mapping(inside, where)
        if (found := format_of(hint, _path(where))) is not None:
            return Kind(*found)
        if isinstance(hint, type):
            return self._class(hint, where)
        raise _no_json(hint, where)

    def record(
        self,
        fields: Mapping[str, Kind],
        required: Sequence[str],
        said: Mapping[str, str],
        defaults: Mapping[str, Any],
        where: str,
    ) -> Kind:
        """An object of these fields, each with what is said of it."""
        path = _path(where)
        properties = {}
        for name, kind in fields.items():
            rule = dict(kind.schema)
            if name in said:
                rule["description"] = said[name]
            if name in defaults:
                rule["default"] = defaults[name]
            properties[name] = rule
        schema = {"type": "object", "properties": properties, "required": list(required)}

        def read(given: Mapping[str, Any]) -> dict[str, Any]:
            for name in given:
                if name not in fields:
                    raise InvalidRequest(f"{path}: no argument {name!r:.60}, it has {[*fields]}")
            return {name: fields[name].read(value) for name, value in given.items()}

        return Kind(schema, read)

    def check_default(self, default: Any, kind: Kind, where: str) -> None:
        """InvalidRequest for a default that its own type does not allow."""
        check_value(default, {**kind.schema, "$defs": self.defs}, f"{where}: the default")

    def _annotated(self, inside: Sequence[Any], where: str) -> Kind:
        kind = self.of(inside[0], where)
        schema = dict(kind.schema)
        for note in inside[1:]:
            said = getattr(note, "description", note)
            if isinstance(said, str):
                schema.setdefault("description", said)
            for one in (note, *getattr(note, "metadata", ())):  # of pydantic's Field
                schema = _bounded(schema, one, where)
        return Kind(schema, kind.read)

    def _union(self, parts: Sequence[Kind], where: str) -> Kind:
        def read(value: Any) -> Any:
            refused = InvalidRequest(
                f"{_path(where)}: got {value!r:.60}, which is none of its types"
            )
            for part in parts:
                try:
                    check_value(value, {**part.schema, "$defs": self.defs}, where)
                except InvalidRequest:
                    continue
                try:
                    return part.read(value)
                except InvalidRequest as error:  # a text that is no date may be the next one's
                    refused = error
            raise refused

        return Kind({"anyOf": [part.schema for part in parts]}, read)

    def _literal(self, values: Sequence[Any], where: str) -> Kind:
        for value in values:
            if value is not None and not _is_json(value):
                raise _no_json(value, where)
        return Kind({"enum": list(values)})

    def _array(self, hint: Any, inside: Sequence[Any], where: str) -> Kind:
        made = hint if hint in _LISTS else list
        if made is tuple and inside and inside[-1] is not Ellipsis:
            return self._tuple(inside, where)
        item = self.of(inside[0], where) if inside else Kind({})
        schema = {"type": "array", **({"items": item.schema} if inside else {})}
        return Kind(schema, lambda values: made(map(item.read, values)))

    def _tuple(self, inside: Sequence[Any], where: str) -> Kind:
        """One of so many values, each of its own type."""
        items, count = [self.of(one, f"{where}[{i}]") for i, one in enumerate(inside)], len(inside)
        schema = {"type": "array", "prefixItems": [item.schema for item in items]}
        schema |= {"minItems": count, "maxItems": count}
        return Kind(
            schema,
            lambda values: tuple(
                item.read(value) for item, value in zip(items, values, strict=True)
            ),
        )

    def _mapping(self, inside: Sequence[Any], where: str) -> Kind:
        if not inside:
            return Kind({"type": "object"})
        if inside[0] is not str:
            raise InvalidRequest(f"{where}: keys of type {inside[0]!r:.60}, allowed are str")
        item = self.of(inside[1], where)
        schema = {"type": "object", "additionalProperties": item.schema}
        return Kind(schema, lambda values: {key: item.read(v) for key, v in values.items()})

    def _class(self, hint: type, where: str) -> Kind:
        if hint in self._inside:
            raise InvalidRequest(f"{where}: {hint.__name__} refers to itself; give a Tool")
        if issubclass(hint, enum.Enum):
            values = [member.value for member in hint]
            self._literal(values, where)
            return Kind({"enum": values}, hint)
        if callable(getattr(hint, "model_json_schema", None)):
            return self._pydantic(hint, where)
        self._inside.append(hint)
        try:
            if typing.is_typeddict(hint):
                return self._typed_dict(hint, where)
            if dataclasses.is_dataclass(hint):
                return self._dataclass(hint, where)
        finally:
            self._inside.pop()
        raise _no_json(hint, where)

    def _pydantic(self, hint: Any, where: str) -> Kind:
        try:
            schema = hint.model_json_schema()
        except Exception as error:  # pydantic's own, of a name that it cannot resolve too
            raise _not_read(f"{where}: {hint.__name__}", error) from error
        for name, rule in schema.pop("$defs", {}).items():
            if self.defs.setdefault(name, rule) != rule:
                raise InvalidRequest(f"{where}: two classes are called {name}; give a Tool")
        from_json = getattr(hint, "model_validate_json", None)
        if from_json is None:
            return Kind(schema, hint.model_validate)
        # Strict ones read dates, enums and tuples from JSON alone.
        return Kind(schema, lambda value: from_json(json.dumps(value)))

    def _typed_dict(self, hint: Any, where: str) -> Kind:
        fields = {
            name: self.of(_bare(of), f"{where}.{name}")
            for name, of in _hints(hint, f"{where}: {hint.__name__}").items()
        }
        required = [name for name in fields if name in hint.__required_keys__]
        said = _docstring(inspect.getdoc(hint) or "")[1]
        return self.record(fields, required, said, {}, where)

    def _dataclass(self, hint: Any, where: str) -> Kind:
        hints = _hints(hint, f"{where}: {hint.__name__}")
        known = [field for field in dataclasses.fields(hint) if field.init]
        fields = {
            field.name: self.of(hints[field.name], f"{where}.{field.name}") for field in known
        }
        missing = dataclasses.MISSING
        required = [f.name for f in known if f.default is missing and f.default_factory is missing]
        defaults = {f.name: f.default for f in known if _is_json(f.default)}
        for name, default in defaults.items():
            self.check_default(default, fields[name], f"{where}.{name}")
        said = _docstring(inspect.getdoc(hint) or "")[1]
        whole = self.record(fields, required, said, defaults, where)
        return Kind(whole.schema, lambda values: hint(**whole.read(values)))


def _path(where: str) -> str:
    """A place as errors about its values name it."""
    return where.removeprefix("tools: ").replace("(", ".").replace(")", "")


def _bare(hint: Any) -> Any:
    """A field's type without Required and NotRequired."""
    name = getattr(typing.get_origin(hint), "_name", None)  # Python 3.10 has them elsewhere
    return typing.get_args(hint)[0] if name in ("Required", "NotRequired") else hint


def _bounded(schema: dict[str, Any], note: Any, where: str) -> dict[str, Any]:
    """A schema with what a note of Annotated says of its values. InvalidRequest for what it cannot
    say of them."""
    for name, keyword in _BOUNDS.items():
        value = None if isinstance(note, str) else getattr(note, name, None)
        if value is None:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidRequest(f"{where}: {name}={value!r}, allowed is a finite number")
        if isinstance(keyword, str):
            keyword = {"integer": keyword, "number": keyword}
        found = _with_bound(schema, keyword, value)
        if found is None:
            raise InvalidRequest(f"{where}: {name}={value!r:.40}, allowed of {[*keyword]}")
        schema = found
    return schema


def _with_bound(
    schema: dict[str, Any], keywords: Mapping[str, str], value: Any
) -> dict[str, Any] | None:
    """A schema with a bound, by the ``keywords`` of types; of a union, in each member of which it
    can be said. None where it can be said of none."""
    if "anyOf" in schema:
        parts = [(part, _with_bound(part, keywords, value)) for part in schema["anyOf"]]
        if all(bounded is None for _, bounded in parts):
            return None
        return {**schema, "anyOf": [bounded or part for part, bounded in parts]}
    kind = schema.get("type")
    if not isinstance(kind, str) or kind not in keywords:
        return None
    return {**schema, keywords[kind]: value}


def _no_json(hint: Any, where: str) -> InvalidRequest:
    return InvalidRequest(
        f"{where}: no JSON has the type {hint!r:.80}; give a Tool with its schema"
    )
