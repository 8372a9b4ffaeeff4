"""Arithmetic: an expression's value, by a parser that knows nothing else."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from typing import Any

from musespark.errors import InvalidRequest
from musespark.options import text

_LONGEST = 500  # characters of an expression
_BITS = 4096  # of an integer on the way
_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: dict[type, Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: getattr(math, name)
    for name in ("sqrt", "exp", "log", "log2", "log10", "sin", "cos", "tan", "floor", "ceil")
}
_FUNCTIONS |= {"abs": abs, "min": min, "max": max, "factorial": lambda n: _factorial(n)}
_FUNCTIONS["round"] = lambda value, digits=0: round(float(value), max(-400, min(400, digits)))
_GROUPED = re.compile(r"\d,\s*0\d")  # 1,000 as an argument would be two
# As people write it. A factorial and a root are found by their operands.
_SIGNS = str.maketrans({"×": "*", "·": "*", "⋅": "*", "÷": "/", "−": "-", "π": "pi", "^": "**"})
_RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"
_POWER = re.compile(f"[{_RAISED}]+")
_AS_DIGITS = str.maketrans(_RAISED, "0123456789-")
_WORD = re.compile(r"[\w.]+")
_LARGEST_FACTORIAL = 600  # which has more than the bits allowed
_CONSTANTS = {"pi": math.pi, "e": math.e}


def calculate(expression: str) -> str:
    """Evaluate an expression.

    Args:
        expression: numbers, + - * / // % ** (or ^: 2^3 is 8) ! and brackets, sqrt, log, sin and
            the like
    """
    if len(text("expression", expression)) > _LONGEST:
        raise InvalidRequest(
            f"expression: got {len(expression)} characters, allowed are at most {_LONGEST}"
        )
    tree = _parsed(expression)
    try:
        value = _value(tree)
    except InvalidRequest:
        raise
    except (ArithmeticError, ValueError, TypeError) as error:
        raise InvalidRequest(f"expression: {expression!r:.80}: {error!s:.80}") from None
    return repr(value) if isinstance(value, float) else str(value)


def _parsed(expression: str) -> ast.AST:
    """InvalidRequest for what is no expression, and for numbers with commas in them, which Python
    reads as several."""
    if not expression.strip():
        raise InvalidRequest(f"expression: got {expression!r:.80}, allowed is such as 2 * (3 + 4)")
    try:
        tree = ast.parse(_as_python(expression.strip()), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        why = error.msg if isinstance(error, SyntaxError) else str(error) or "too deep"
        raise InvalidRequest(
            f"expression: got {expression!r:.80}, allowed is such as 2 * (3 + 4) ({why:.80})"
        ) from None
    if isinstance(tree, ast.Tuple) or _GROUPED.search(expression):
        raise InvalidRequest(
            f"expression: got {expression!r:.80}, allowed are numbers without commas: 1000, not "
            "1,000"
        )
    return tree


def _as_python(expression: str) -> str:
    """An expression with the signs that people write as Python has them. InvalidRequest for two
    factorials together: 3!! is (3!)! to some and 3 * 1 to others."""
    if re.search(r"!\s*!", expression):
        raise InvalidRequest(
            f"expression: got {expression!r:.80}, allowed is (3!)! or a product, for !! is either"
        )
    text = _POWER.sub(lambda found: f"**({found[0].translate(_AS_DIGITS)})", expression)
    text = text.translate(_SIGNS)
    at = text.find("!")
    while at >= 0:
        begin = _operand_before(text, at) if text[at + 1 : at + 2] != "=" else at
        if begin < at:
            text = f"{text[:begin]}factorial({text[begin:at]}){text[at + 1 :]}"
        at = text.find("!", at + 1 + len("factorial("))
    at = text.rfind("√")
    while at >= 0:
        end = _operand_after(text, at + 1)
        text = f"{text[:at]}sqrt({text[at + 1 : end]}){text[end:]}"
        at = text.rfind("√")
    return text


def _operand_before(text: str, end: int) -> int:
    """Where a number, a name, or brackets with the name before them begin, which end here."""
    at = len(text[:end].rstrip())
    if text[at - 1 : at] == ")":
        at = _other_bracket(text, range(at - 1, -1, -1))
    while at > 0 and _WORD.fullmatch(text[at - 1]):
        at -= 1
    return at


def _operand_after(text: str, begin: int) -> int:
    """Where a number, a name or brackets end, or a name with its brackets, which begin here."""
    at = begin + len(text[begin:]) - len(text[begin:].lstrip())
    if (word := _WORD.match(text, at)) is not None:
        at = word.end()
    if text[at : at + 1] != "(":
        return at
    return _other_bracket(text, range(at, len(text))) + 1


def _other_bracket(text: str, places: range) -> int:
    """Where what the bracket at the first of the places opens or closes ends; else the last."""
    depth = 0
    for place in places:
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    return places[-1]


def _factorial(value: Any) -> int:
    if value != int(value) or value < 0:
        raise InvalidRequest(
            f"expression: the factorial of {value}, allowed is of 0, 1, 2 and so on"
        )
    if value > _LARGEST_FACTORIAL:
        raise InvalidRequest(f"expression: {value!s:.20}! is too large")
    return math.factorial(int(value))


def _value(node: ast.AST) -> Any:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _bounded(node.value)
    if isinstance(node, ast.Name) and node.id in _CONSTANTS:
        return _CONSTANTS[node.id]
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow):
            return _bounded(_power(left, right))
        if type(node.op) in _BINARY:
            return _bounded(_BINARY[type(node.op)](left, right))
    if isinstance(node, ast.Call) and not node.keywords:
        function = _FUNCTIONS.get(node.func.id) if isinstance(node.func, ast.Name) else None
        if function is not None:
            return _bounded(function(*map(_value, node.args)))
    what = ast.unparse(node)
    raise InvalidRequest(f"expression: {what!r:.60} is no arithmetic")


def _power(base: Any, exponent: Any) -> Any:
    whole = isinstance(base, int) and isinstance(exponent, int)
    if whole and abs(base) > 1 and abs(exponent) * base.bit_length() > _BITS:
        raise InvalidRequest(f"expression: {base!s:.20}**{exponent!s:.20} is too large")
    return base**exponent


def _bounded(value: Any) -> Any:
    if isinstance(value, complex):
        raise InvalidRequest("expression: its value is no real number")
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidRequest("expression: a value is too large, allowed are up to 1.8e308")
    if isinstance(value, int) and value.bit_length() > _BITS:
        raise InvalidRequest(f"expression: a value of more than {_BITS} bits")
    return value
