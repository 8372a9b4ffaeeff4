"""Values against a JSON schema: the keywords that tools are described with.

Source: the draft 2020-12 of JSON Schema (https://json-schema.org/draft/2020-12). What a schema says
in other keywords is not checked; patterns are among them, for a text of a model can make a
regular expression run for ever.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any

from musespark.errors import Error, InvalidRequest

_MOST_REFERENCES = 64  # one inside another, without a value between them
_MOST_CHECKS = 200_000  # of a value and all in it: unions of references can be endless work
_MOST_SHAPES = 64  # that the arguments of one tool may have
_MOST_MULTIPLES = 100_000  # half a second of a grammar, which has a state for each remainder
_UNIONS = ("anyOf", "oneOf")
_LISTED = ("properties", "required")  # what a shape of arguments has of each name
_JOINED = ("$ref", "allOf", *_UNIONS)  # keywords that say elsewhere what an object is


def check_value(value: Any, schema: Any, where: str) -> None:
    """InvalidRequest, naming the place, for a value that the schema does not allow.

    ``type``, ``enum``, ``const``, ``properties``, ``required``, ``additionalProperties``,
    ``items``, ``prefixItems``, sizes and bounds, ``multipleOf``, ``anyOf``, ``oneOf``, ``allOf``,
    and ``$ref`` to a place in the same schema. InvalidRequest too where a keyword's value is none
    that it may have, or both are nested too deeply.
    """
    with schema_errors(where):
        _check(value, schema, where, _Root(schema), 0)


@contextmanager
def schema_errors(where: str) -> Iterator[None]:
    """What is raised inside over a keyword's value that it may not have, or over what is nested too
    deeply, as InvalidRequest: nobody has checked the schema."""
    try:
        yield
    except Error:
        raise
    except RecursionError:
        raise InvalidRequest(f"{where}: nested too deeply to be checked") from None
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise InvalidRequest(
            f"{where}: its schema is none ({error!s:.80}), allowed is JSON Schema's draft 2020-12"
        ) from error


class _Root:
    """The whole schema, how much more may be looked at, and the shapes of its references."""

    def __init__(self, schema: Any):
        self.schema, self.left = schema, _MOST_CHECKS
        self.shapes: dict[str, list[dict[str, Any]]] = {}

    def spend(self, checks: int, where: str) -> None:
        """InvalidRequest where it is more than is left."""
        self.left -= checks
        if self.left < 0:
            raise InvalidRequest(
                f"{where}: its schema is too involved: got more than {_MOST_CHECKS} checks, "
                "allowed are as many"
            )


def _check(value: Any, schema: Any, where: str, root: _Root, depth: int) -> None:
    root.spend(1, where)
    if schema is False:
        raise InvalidRequest(f"{where}: nothing is allowed here")
    if not isinstance(schema, Mapping):
        return
    if "$ref" in schema:
        if depth > _MOST_REFERENCES:
            raise InvalidRequest(f"{where}: its schema refers to itself without end")
        _check(value, referred(root.schema, schema["$ref"], where), where, root, depth + 1)
    _check_type(value, schema, where)
    if isinstance(value, Mapping):
        _check_object(value, schema, where, root)
    elif isinstance(value, (list, tuple)):
        _check_array(value, schema, where, root)
    elif isinstance(value, str):
        _check_bounds(len(value), schema, ("minLength", "maxLength"), where, " characters")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        _check_bounds(value, schema, ("minimum", "maximum"), where, "")
        _check_more(value, schema, where)
    for part in schema.get("allOf", ()):
        _check(value, part, where, root, depth)
    for union in _UNIONS:
        if union in schema:
            _check_union(value, schema[union], union, where, root, depth)


def _check_type(value: Any, schema: Mapping[str, Any], where: str) -> None:
    kinds = schema.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds is not None and not any(_is(value, kind) for kind in kinds):
        raise InvalidRequest(f"{where}: {_shown(value)}, must be {' or '.join(map(str, kinds))}")
    allowed = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if allowed is not None and not any(_same(value, one) for one in allowed):
        listed = ", ".join(map(_shown, allowed))
        raise InvalidRequest(f"{where}: {_shown(value)}, must be one of {listed:.300}")


def _check_object(
    value: Mapping[str, Any], schema: Mapping[str, Any], where: str, root: _Root
) -> None:
    properties = schema.get("properties") or {}
    for name in schema.get("required", ()):
        if name not in value:
            raise InvalidRequest(f"{where}: {name} is missing")
    others = schema.get("additionalProperties", True)
    for name, item in value.items():
        if name in properties:
            _check(item, properties[name], f"{where}.{name}", root, 0)
        elif others is False:
            raise InvalidRequest(f"{where}: no argument {name!r:.60}, it has {[*properties]}")
        else:
            _check(item, others, f"{where}.{name}", root, 0)


def _check_array(value: Any, schema: Mapping[str, Any], where: str, root: _Root) -> None:
    _check_bounds(len(value), schema, ("minItems", "maxItems"), where, " items")
    first = schema.get("prefixItems", ())
    for index, item in enumerate(value):
        rule = first[index] if index < len(first) else schema.get("items", True)
        _check(item, rule, f"{where}[{index}]", root, 0)


def _check_bounds(
    size: Any, schema: Mapping[str, Any], names: tuple[str, str], where: str, what: str
) -> None:
    low, high = (schema.get(name) for name in names)
    if (low is not None and size < low) or (high is not None and size > high):
        if high is None:
            allowed = f"at least {low}"
        else:
            allowed = f"at most {high}" if low is None else f"{low} to {high}"
        raise InvalidRequest(f"{where}: {size!r:.40}{what}, must be {allowed}")


def _check_more(value: Any, schema: Mapping[str, Any], where: str) -> None:
    low, high = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if low is not None and value <= low:
        raise InvalidRequest(f"{where}: {value!r:.40}, must be more than {low}")
    if high is not None and value >= high:
        raise InvalidRequest(f"{where}: {value!r:.40}, must be less than {high}")
    step = schema.get("multipleOf")
    if step is not None and not _is_multiple(value, step):
        raise InvalidRequest(f"{where}: {value!r:.40}, must be a multiple of {step}")


def _is_multiple(value: Any, step: Any) -> bool:
    if isinstance(value, int) and isinstance(step, int):
        return value % step == 0
    try:
        return float(value / step).is_integer()
    except OverflowError:  # an integer beyond what a float holds
        return False


def _check_union(value: Any, parts: Any, union: str, where: str, root: _Root, depth: int) -> None:
    refused = []
    for part in parts:
        try:
            _check(value, part, where, root, depth)
        except InvalidRequest as error:
            refused.append(str(error))
    fitting = len(parts) - len(refused)
    if fitting == 0:
        raise InvalidRequest(f"{where}: none of what is allowed fits: {'; '.join(refused):.300}")
    if union == "oneOf" and fitting > 1:
        raise InvalidRequest(f"{where}: {fitting} of what is allowed fit, must be one")


# ---- the arguments of a tool --------------------------------------------------------------------


def argument_schema(schema: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The schema of a tool's arguments with their ``properties`` at its root.

    A root that is a reference, a union or made of parts (``$ref``, ``anyOf``, ``oneOf``,
    ``allOf``), as unions and models of pydantic give, is followed: one object where it can be
    one, else all properties and the union of whole objects (:func:`shapes_of`). Others are copied.
    InvalidRequest naming the place for a root that no object fits or that has too many shapes.
    """
    if not any(name in schema for name in _JOINED):
        return dict(schema)
    root = _Root(schema)
    shapes = [_written(shape) for shape in _shapes(schema, root, where, 0)]
    if not shapes:
        raise InvalidRequest(f"{where}: none of what its schema allows is an object; arguments are")
    apart = (*_JOINED, "type", "properties", "required", "additionalProperties")
    rest = {key: value for key, value in schema.items() if key not in apart}
    if len(shapes) == 1:
        return {"type": "object", **shapes[0], **rest}
    names = dict.fromkeys(name for shape in shapes for name in shape["properties"])
    properties = {}
    for name in names:
        rules = [s["properties"][name] for s in shapes if name in s["properties"]]
        properties[name] = _one_of(_different((), rules, root, where), "anyOf")
    needed = [name for name in names if all(name in shape["required"] for shape in shapes)]
    whole = {"type": "object", "properties": properties, "required": needed}
    union = next((name for name in _UNIONS if name in schema), "anyOf")
    return {**whole, union: [{"type": "object", **shape} for shape in shapes], **rest}


def shapes_of(schema: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The objects that a schema of :func:`argument_schema` allows."""
    return next((schema[union] for union in _UNIONS if union in schema), [schema])


def _shapes(schema: Any, root: _Root, where: str, depth: int) -> list[dict[str, Any]]:
    """What a schema allows of objects: of each its properties, all rules of each of them, and which
    of them are required."""
    root.spend(1, where)
    if depth > _MOST_REFERENCES:
        raise InvalidRequest(f"{where}: its schema refers to itself without end")
    if not isinstance(schema, Mapping):
        return [] if schema is False else [{"properties": {}, "required": {}}]
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        return []
    for name in ("not", "enum", "const"):
        if name in schema:
            raise InvalidRequest(
                f"{where}: got {name} among what its arguments may be, allowed "
                "are objects with properties"
            )
    properties = _field(schema, "properties", where)
    own: dict[str, Any] = {"properties": {name: (rule,) for name, rule in properties.items()}}
    needed = _field(schema, "required", where)
    own["required"] = dict.fromkeys(name for name in needed if isinstance(name, str))
    if "additionalProperties" in schema:
        own["additionalProperties"] = schema["additionalProperties"]
    found = [own]
    if "$ref" in schema:
        found = _both(found, _shapes_referred(schema["$ref"], root, where, depth), root, where)
    parts = [[part] for part in _field(schema, "allOf", where)]
    parts += [_field(schema, union, where) for union in _UNIONS if union in schema]
    for part in parts:
        inside = [shape for one in part for shape in _shapes(one, root, where, depth + 1)]
        found = _both(found, inside, root, where)
    return found


def _shapes_referred(reference: Any, root: _Root, where: str, depth: int) -> list[dict[str, Any]]:
    """Those of what a reference names: once each, for references that are two of others double at
    each step."""
    schema = referred(root.schema, reference, where)
    if reference not in root.shapes:
        root.shapes[reference] = _shapes(schema, root, where, depth + 1)
    return root.shapes[reference]


def _both(
    some: list[dict[str, Any]], others: list[dict[str, Any]], root: _Root, where: str
) -> list[dict[str, Any]]:
    """What is one of some and one of others, in each way."""
    if len(some) * len(others) > _MOST_SHAPES:
        raise InvalidRequest(
            f"{where}: its arguments have more than {_MOST_SHAPES} shapes, which are allowed"
        )
    return [_merged(one, other, root, where) for one in some for other in others]


def check_multiples(schema: Any, where: str) -> None:
    """InvalidRequest where ``multipleOf`` would make a grammar of a schema, or of several, endless
    work: numbers that may come together in one rule count as their least common multiple, others as
    their sum; zeros at their end do not count."""
    steps, joined, pending = set[int](), False, [schema]
    while pending:
        node = pending.pop()
        if isinstance(node, Mapping):
            joined = joined or "$ref" in node or "allOf" in node
            step = node.get("multipleOf")
            if isinstance(step, (int, float)) and not isinstance(step, bool):
                steps.add(_without_zeros(step))
            pending += node.values()
        elif isinstance(node, (list, tuple)):
            pending += node
    work = 1
    for step in sorted(steps):
        work = math.lcm(work, max(step, 1)) if joined else work + step
        if work > _MOST_MULTIPLES:
            told = f"a {'least common multiple' if joined else 'sum'} of more than"
            raise InvalidRequest(
                f"{where}: multipleOf: got {told} {_MOST_MULTIPLES} without zeros at its end, "
                "allowed are as many"
            )


def _without_zeros(number: float) -> int:
    """The digits of a number as an integer, without the zeros at its end."""
    if isinstance(number, float):
        number = int("".join(map(str, Decimal(repr(number)).as_tuple().digits)))
    number = abs(number)
    while number and number % 10 == 0:
        number //= 10
    return number


def _field(schema: Mapping[str, Any], name: str, where: str) -> Any:
    """The properties of an object, or a list of what a schema has; empty where there are none."""
    kind = Mapping if name == "properties" else (list, tuple)
    value = schema.get(name)
    if value is not None and not isinstance(value, kind):
        allowed = "an object" if name == "properties" else "an array"
        raise InvalidRequest(f"{where}: {name}: got {_shown(value)}, allowed is {allowed}")
    return value or ({} if name == "properties" else [])


def _merged(
    one: Mapping[str, Any], other: Mapping[str, Any], root: _Root, where: str
) -> dict[str, Any]:
    """What is both."""
    root.spend(sum(len(each[name]) for each in (one, other) for name in _LISTED), where)
    properties = dict(one["properties"])
    for name, rules in other["properties"].items():
        properties[name] = _different(properties.get(name, ()), rules, root, where)
    required = {**one["required"], **other["required"]}
    return {**one, **other, "properties": properties, "required": required}


def _different(
    some: Sequence[Any], others: Sequence[Any], root: _Root, where: str
) -> Sequence[Any]:
    """Rules that are different from each other, of some that are, and of others."""
    found = list(some)
    for rule in others:
        root.spend(len(found), where)
        if rule not in found:
            found.append(rule)
    return found


def _written(shape: Mapping[str, Any]) -> dict[str, Any]:
    """A shape as a schema has it: one rule for each property."""
    properties = {name: _one_of(rules, "allOf") for name, rules in shape["properties"].items()}
    return {**shape, "properties": properties, "required": [*shape["required"]]}


def _one_of(rules: Sequence[Any], union: str) -> Any:
    """One rule where there is one, else all of them."""
    return rules[0] if len(rules) == 1 else {union: list(rules)}


def referred(root: Any, reference: Any, where: str) -> Any:
    """The place that ``#/$defs/name`` names. InvalidRequest for none; ``where``: who refers."""
    node = root
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise InvalidRequest(f"{where}: $ref: {reference!r:.80}, must begin with #")
    for part in reference[1:].strip("/").split("/") if reference != "#" else ():
        part = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, Mapping) or part not in node:
            raise InvalidRequest(f"{where}: $ref: {reference!r:.80} is no place in the schema")
        node = node[part]
    return node


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if isinstance(value, float) and value.is_integer() and kind == "integer":
        return True
    types: dict[str, tuple[type, ...]] = {
        "null": (type(None),),
        "integer": (int,),
        "number": (int, float),
        "string": (str,),
        "array": (list, tuple),
        "object": (Mapping,),
    }
    return isinstance(value, types.get(kind, ()))


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: true is not 1."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _shown(value: Any) -> str:
    return f"{value!r:.80}"
