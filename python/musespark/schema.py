"""Values against a JSON schema: the keywords that tools are described with.

Source: the draft 2020-12 of JSON Schema (https://json-schema.org/draft/2020-12). What a schema says
in other keywords is not checked; patterns are among them, for a text of a model can make a
regular expression run for ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from musespark.errors import InvalidRequest

_MOST_REFERENCES = 64  # one inside another, without a value between them
_MOST_CHECKS = 200_000  # of a value and all in it: unions of references can be endless work


def check_value(value: Any, schema: Any, where: str) -> None:
    """InvalidRequest, naming the place, for a value that the schema does not allow.

    ``type``, ``enum``, ``const``, ``properties``, ``required``, ``additionalProperties``,
    ``items``, ``prefixItems``, sizes and bounds, ``multipleOf``, ``anyOf``, ``oneOf``, ``allOf``,
    and ``$ref`` to a place in the same schema.
    """
    _check(value, schema, where, _Root(schema), 0)


class _Root:
    """The whole schema, and how much more may be looked at."""

    def __init__(self, schema: Any):
        self.schema, self.left = schema, _MOST_CHECKS


def _check(value: Any, schema: Any, where: str, root: _Root, depth: int) -> None:
    root.left -= 1
    if root.left < 0:
        raise InvalidRequest(
            f"{where}: more than {_MOST_CHECKS} checks; its schema is too involved"
        )
    if schema is False:
        raise InvalidRequest(f"{where}: nothing is allowed here")
    if not isinstance(schema, Mapping):
        return
    if "$ref" in schema:
        if depth > _MOST_REFERENCES:
            raise InvalidRequest(f"{where}: its schema refers to itself without end")
        _check(value, referred(root.schema, schema["$ref"]), where, root, depth + 1)
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
    for union in ("anyOf", "oneOf"):
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


def referred(root: Any, reference: Any) -> Any:
    """The place that ``#/$defs/name`` names. InvalidRequest for none."""
    node = root
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise InvalidRequest(f"$ref: {reference!r:.80}, must begin with #")
    for part in reference[1:].strip("/").split("/") if reference != "#" else ():
        part = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, Mapping) or part not in node:
            raise InvalidRequest(f"$ref: {reference!r:.80} is no place in the schema")
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
