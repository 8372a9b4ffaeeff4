"""What a client is told of a body that is refused: the place, what it got and what is allowed."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from musespark.errors import InvalidRequest

# Why a field that other servers know is refused here; any other that is unknown is just that.
_REFUSED = {
    "chat_template": "a template of a request is never run",
    "chat_template_kwargs": "allowed in /v1/chat/completions alone, with enable_thinking",
    "previous_response_id": "nothing is stored; send the conversation",
    "conversation": "nothing is stored; send the conversation",
    "functions": "give tools",
    "function_call": "give tools",
}
# pydantic's types of errors that say of which kind a value is to be.
_KINDS = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "an object"),
    **dict.fromkeys(("list_type", "tuple_type"), "an array"),
    **dict.fromkeys(("int_type", "int_from_float", "int_parsing"), "an integer"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "none_required": "null",
    "string_type": "a string",
}
# And of those that say how large one is to be; the number in their context.
_BOUNDS = {
    "greater_than_equal": ("ge", "{} or more"),
    "greater_than": ("gt", "more than {}"),
    "less_than_equal": ("le", "at most {}"),
    "less_than": ("lt", "less than {}"),
    "string_too_short": ("min_length", "at least {} character"),
    "string_too_long": ("max_length", "at most {} character"),
    "too_short": ("min_length", "at least {} item"),
    "too_long": ("max_length", "at most {} item"),
}


def told(error: ValidationError, body: Any) -> str:
    """One message of an error of a body."""
    meant = _meant(error.errors(include_url=False), body)
    first = meant[0]
    where = place(first, body) or "the body"
    if first["type"] == "extra_forbidden":
        if first["loc"][:-1] == ("chat_template_kwargs",):
            return f"{where:.200}: allowed of {first['loc'][0]} is enable_thinking alone"
        return f"{where:.200}: {_REFUSED.get(str(first['loc'][-1]), 'unknown field')}"
    if first["type"] == "missing":
        return f"{where:.200} is missing"
    if first["type"].startswith("union_tag"):
        return _told_of_tag(first, where)
    got = shown(first["input"])
    if first["type"] in ("too_short", "too_long"):
        got += f" of {len(first['input'])}"
    return f"{where:.200}: got {got}, {_wanted(meant):.300}"


_ARGUMENT = re.compile(r"\bby ([a-z_]+)=(True|False)$")  # what to give, as Python writes it
_OPTION = re.compile(r"([a-z_]+)((?:\.\w+|\[\d+\])*)(?=: | is missing)")


def renamed(error: Exception, fields: Mapping[str, str]) -> Exception:
    """An error about an option of a model, about the field of a body that it came from, and in
    JSON's words. ``fields``: these by the options; of one that ends with ``[]`` the places inside
    are others."""
    if isinstance(error, InvalidRequest):
        in_json = _ARGUMENT.sub(lambda given: f"by {given[1]}: {given[2].lower()}", str(error))
        if in_json != str(error):
            error.args = (in_json,)
    found = _OPTION.match(str(error)) if isinstance(error, InvalidRequest) else None
    if found is not None and found[1] in fields:
        name = fields[found[1]]
        where = name.removesuffix("[]") if name.endswith("[]") else name + found[2]
        error.args = (where + str(error)[found.end() :],)
    return error


@contextlib.contextmanager
def renaming(fields: Mapping[str, str]) -> Iterator[None]:
    """Errors are :func:`renamed`."""
    try:
        yield
    except InvalidRequest as error:
        renamed(error, fields)
        raise


def _meant(errors: Sequence[Any], body: Any) -> list[Any]:
    """Of a union every member complains: those that were meant came furthest into the value, and
    not one that the value's ``type`` is not of, where it is of any; before all, one that has too
    many items, which were not looked at. Of what they say of one place, what is more than its kind
    goes first; else all."""
    for one in errors:
        if one["type"] == "too_long":
            return [one]
    depth = max(len(_path(one, body)) for one in errors)
    furthest = [one for one in errors if len(_path(one, body)) == depth]
    others = [one for one in furthest if _of_type(one)]
    strange = {one["loc"][:-1] for one in others}
    fitting = [one for one in furthest if one["loc"][:-1] not in strange]
    meant = fitting or others or furthest
    first = next((one for one in meant if not _is_kind(one)), meant[0])
    if not _is_kind(first):
        return [first]
    where = place(first, body)
    return [one for one in meant if place(one, body) == where]


def _of_type(error: Any) -> bool:
    """Whether it is of a ``type`` that says which of several a value is."""
    return error["type"] == "literal_error" and error["loc"][-1:] == ("type",)


def _is_kind(error: Any) -> bool:
    return error["type"] in _KINDS or error["type"] == "literal_error"


def _told_of_tag(error: Any, where: str) -> str:
    """Of a value whose ``type`` or ``role`` says which of several it is."""
    context = error["ctx"]
    name = context["discriminator"].strip("'")
    if not name.isidentifier() or name.startswith("_"):  # a function: the items of responses
        name = "type"
    where = f"{where}.{name}"
    given = error["input"]
    if not isinstance(given, Mapping):
        return f"{where.removesuffix('.' + name):.200}: got {shown(given)}, allowed is an object"
    if name not in given:
        return f"{where:.200} is missing"
    allowed = context.get("expected_tags")
    said = f"allowed is one of {allowed}" if allowed else "it is not known"
    return f"{where:.200}: got {shown(given[name])}, {said:.300}"


def _wanted(meant: Sequence[Any]) -> str:
    first = meant[0]
    if _is_kind(first):
        kinds = (_KINDS.get(one["type"]) or _in_json(one["ctx"]["expected"]) for one in meant)
        return f"allowed is {_either(dict.fromkeys(kinds))}"
    if first["type"] not in _BOUNDS:
        return first["msg"]
    name, text = _BOUNDS[first["type"]]
    bound = first["ctx"][name]
    counts = text.endswith(("character", "item"))
    said = text.format(f"{bound:g}" if isinstance(bound, float) else bound)
    said += "s" if counts and bound != 1 else ""
    return f"allowed {'are' if counts else 'is'} {said}"


def _in_json(expected: str) -> str:
    """pydantic's words for literals, which are Python's."""
    return {"True": "true", "False": "false", "None": "null"}.get(expected, expected)


def _either(kinds: Iterable[str]) -> str:
    *some, last = kinds
    return f"{', '.join(some)} or {last}" if some else last


def shown(value: Any) -> str:
    """A value as a client wrote it, an object or array in a word."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (str, int, float)):
        return f"{value!r:.60}"
    return "an object" if isinstance(value, Mapping) else "an array"


def place(error: Any, body: Any) -> str:
    """The place of an error in a body."""
    out = ""
    for part in _path(error, body):
        if isinstance(part, int):
            out += f"[{part}]"
        else:
            out += f".{part}" if out else part
    return out


def _path(error: Any, body: Any) -> list[int | str]:
    """The parts of it; names of union members are none."""
    out: list[int | str] = []
    node, path = body, error["loc"]
    lacks = len(path) - 1 if error["type"] == "missing" else None
    for at, part in enumerate(path):
        if isinstance(part, int) and isinstance(node, list) and part < len(node):
            out.append(part)
            node = node[part]
        elif isinstance(node, Mapping) and (part in node or at == lacks):
            out.append(str(part))
            node = node.get(part)
    return out
