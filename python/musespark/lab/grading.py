"""Whether an answer is exactly right: numbers, texts, sets, JSON, calls, boxes, expressions."""

from __future__ import annotations

import ast
import contextlib
import json
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .item import Item
    from .raster import Box

#: A sentence's full stop; one after other signs may be part of what is said (a row of ``#`` and
#: ``.``).
_FULL_STOP = re.compile(r"(?<=[\w)\]])\.$")


def normalize(text: str) -> str:
    """Whitespace folded, final full stop dropped: what two equal string answers agree in."""
    return _FULL_STOP.sub("", " ".join(text.split()))


def grade(item: Item, answer: str, calls: list[dict] | None = None) -> bool:
    """Whether ``answer`` (or ``calls``: [{name, arguments}]) is exactly right for ``item``."""
    if item.checker == "none":
        return True
    if item.checker == "call":
        return _same_calls(calls or [], item.calls or [])
    if calls:
        return False
    if item.checker == "json":
        return _same_json(answer, item.answer)
    got, want = normalize(answer), normalize(item.answer)
    if item.checker == "number":
        return _number(got) is not None and _number(got) == _number(want)
    if item.checker == "set":
        return sorted(x.strip() for x in got.split(",")) == sorted(
            x.strip() for x in want.split(",")
        )
    if item.checker == "box":
        boxes = boxes_in(got), boxes_in(want)
        return len(boxes[0]) == 1 and overlap_of(boxes[0][0][1], boxes[1][0][1]) >= 0.5
    if item.checker == "boxes":
        return _same_boxes(boxes_in(got), boxes_in(want))
    if item.checker == "expression":
        return _reaches(got, item.key)
    return got == want


def _same_calls(got: list[dict], want: list[dict]) -> bool:
    return len(got) == len(want) and all(
        g["name"] == w["name"]
        and g["arguments"].keys() == w["arguments"].keys()
        and all(_same_argument(g["arguments"][k], v) for k, v in w["arguments"].items())
        for g, w in zip(got, want, strict=True)
    )


def _same_argument(got: Any, want: Any) -> bool:
    """Whether an argument has the value ``want``; a model writes all but texts as JSON, so that 5
    and "5" are the same."""
    if not isinstance(got, str):
        got = json.dumps(got)
    return got == want if isinstance(want, str) else _same_json(got, json.dumps(want))


def _same_json(got: str, want: str) -> bool:
    """Whether two texts are the same JSON value, whatever the order of names."""
    try:
        return _equal(_json(got), _json(want))
    except (ValueError, RecursionError):
        return False


def _json(text: str) -> Any:
    """ValueError for what is no JSON and for an object that has a name twice."""
    return json.loads(text, object_pairs_hook=_distinct, parse_float=Decimal)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    named = dict(pairs)
    if len(named) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return named


def _equal(a: Any, b: Any) -> bool:
    """Equality of JSON values: true is not 1."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(v, b[k]) for k, v in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and a == b


#: Commas stand between groups of three digits or nowhere.
_NUMBER = re.compile(r"[+-]?(\d{1,3}(,\d{3})+|\d+)?(\.\d+)?", re.ASCII)


def _number(text: str) -> Decimal | None:
    """Exactly the value of a number as people write it; None for anything else."""
    if not _NUMBER.fullmatch(text) or not text[-1:].isdigit():
        return None
    return Decimal(text.replace(",", ""))


_EXPRESSION = re.compile(r"[\d+*()-]{1,80}")


def value_of(expression: str) -> int:
    """Of an expression in whole numbers, ``+``, ``-``, ``*`` and brackets, of up to 80 characters;
    ValueError for anything else."""
    text = expression.replace(" ", "")
    if _EXPRESSION.fullmatch(text):
        with contextlib.suppress(SyntaxError, ValueError, RecursionError):
            return _valued(ast.parse(text, mode="eval").body)
    raise ValueError(f"expression: got {expression!r:.80}, allowed are whole numbers, + - * ( )")


def _reaches(text: str, key: str) -> bool:
    """Whether an expression has the value behind ``=`` in ``key`` and uses only numbers before it,
    each at most once. The value may stand behind it too (``3*5+7=22``)."""
    numbers, _, target = key.partition(" = ")
    text, told, stated = text.partition("=")
    try:
        value = value_of(text)
    except ValueError:
        return False
    if told and stated.strip() != target:
        return False
    left = [int(n) for n in numbers.split()]
    for n in map(int, re.findall(r"\d+", text)):
        if n not in left:
            return False
        left.remove(n)
    return value == int(target)


def _valued(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.BinOp):
        a, b = _valued(node.left), _valued(node.right)
        for kind, value in ((ast.Add, a + b), (ast.Sub, a - b), (ast.Mult, a * b)):
            if isinstance(node.op, kind):
                return value
    raise ValueError("no sum, difference or product of whole numbers")


_SIDE = r"(\d{1,6})"
_BOX = re.compile(rf"([^\[\];,]*)\[{_SIDE}, ?{_SIDE}, ?{_SIDE}, ?{_SIDE}\]", re.ASCII)


def boxes_in(text: str) -> list[tuple[str, Box]]:
    """Boxes [x0,y0,x1,y1] of a text, each with the words before it."""
    return [(m[0].strip(), tuple(map(int, m[1:]))) for m in _BOX.findall(text)]


def overlap_of(a: Box, b: Box) -> float:
    """Intersection over union; 0 where either box is empty or turned round."""
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    areas = [max(0, c[2] - c[0]) * max(0, c[3] - c[1]) for c in (a, b)]
    if across <= 0 or down <= 0 or not all(areas):
        return 0.0
    return across * down / (sum(areas) - across * down)


def _same_boxes(got: list[tuple[str, Box]], want: list[tuple[str, Box]]) -> bool:
    """Whether each wanted box has one of its own with the same words, and none is left over."""
    left = list(got)
    for label, box in want:
        fits = [g for g in left if g[0] == label and overlap_of(g[1], box) >= 0.5]
        if not fits:
            return False
        left.remove(fits[0])
    return not left
