"""Addition, subtraction and multiplication, digit by digit, with checks by the inverse or
another split."""

from __future__ import annotations

from random import Random

from ..item import Evaluation, Problem, against, phrase, sized, wanted

_ADD = (
    "What is {a} + {b}?",
    "{a}+{b}",
    "{a} + {b}",
    "{a}+{b}=",
    "{a} + {b} = ?",
    "Calculate {a} plus {b}.",
    "Add {a} and {b}.",
    "What is {a} plus {b}?",
    "{a}+{b}=?",
    "Compute {a} + {b}.",
    "What's {a}+{b}?",
    "How much is {a} plus {b}?",
    "Calculate {a} + {b}",
    "what is {a}+{b}",
    "Find the sum of {a} and {b}.",
    "Please add {a} and {b}.",
    "What is the sum of {a} and {b}?",
    "{a} plus {b}",
    "Solve: {a} + {b}",
    "{a} + {b} =",
    "What do {a} and {b} make together?",
    "Work out {a} plus {b}.",
)
_SUB = (
    "What is {a} - {b}?",
    "{a}-{b}",
    "{a} - {b}",
    "{a}-{b}=",
    "{a} - {b} = ?",
    "Calculate {a} minus {b}.",
    "Subtract {b} from {a}.",
    "What is {a} minus {b}?",
    "{a}-{b}=?",
    "Compute {a} - {b}.",
    "What's {a}-{b}?",
    "How much is {a} minus {b}?",
    "Calculate {a} - {b}",
    "what is {a}-{b}",
    "Take {b} away from {a}.",
    "Find the difference of {a} and {b}.",
    "{a} minus {b}",
    "Solve: {a} - {b}",
    "What is left of {a} without {b}?",
    "Work out {a} minus {b}.",
)
_MUL = (
    "What is {a} * {b}?",
    "{a}*{b}",
    "{a} * {b}",
    "{a}*{b}=",
    "{a} x {b}",
    "Calculate {a} times {b}.",
    "Multiply {a} by {b}.",
    "What is {a} times {b}?",
    "{a}*{b}=?",
    "Compute {a} * {b}.",
    "What's {a}*{b}?",
    "How much is {a} times {b}?",
    "What is {a} x {b}?",
    "what is {a}*{b}",
    "What is the product of {a} and {b}?",
    "{a} times {b}",
    "{a} × {b}",
    "Solve: {a} * {b}",
    "What do {a} times {b} make?",
    "Work out {a} times {b}.",
)
_CHAIN = (
    "What is {}?",
    "{}",
    "Calculate {}.",
    "{} = ?",
    "Compute {}.",
    "What's {}?",
    "Find {}.",
    "{}=",
    "what is {}",
    "How much is {}?",
    "Please calculate {}.",
    "Solve {}.",
    "Give the value of {}.",
    "Tell me what {} is.",
    "{}=?",
    "Evaluate {}.",
    "Work out {}.",
)


def add_steps(a: int, b: int, error: Random | None = None) -> tuple[str, str]:
    """Column addition from the ones up; with ``error`` one column's sum is off by one."""
    x, y = str(a)[::-1], str(b)[::-1]
    n = max(len(x), len(y))
    bad = error.randrange(n) if error else -1
    carry, parts, digits = 0, [], ""
    for i in range(n):
        p, q = int(x[i]) if i < len(x) else 0, int(y[i]) if i < len(y) else 0
        total = p + q + carry
        shown = f"{p}+{q}+{carry}" if carry else f"{p}+{q}"
        if i == bad:
            total = total - 1 if total and error.random() < 0.5 else total + 1
        carry = total // 10
        digits = (str(total) if i == n - 1 else str(total % 10)) + digits
        parts.append(f"{shown}={total}" + (f" carry {carry}" if carry and i < n - 1 else ""))
    return f"{', '.join(parts)}. So {digits}.", digits


def sub_steps(a: int, b: int, error: Random | None = None) -> tuple[str, str]:
    """Column subtraction (a >= b): what was lent goes first, then a comparison says whether to
    borrow; with ``error`` one column is off by one."""
    x, y = str(a)[::-1], str(b)[::-1]
    n = len(x)
    bad = error.randrange(n) if error else -1
    borrow, parts, digits = 0, [], ""
    for i in range(n):
        p, q = int(x[i]), int(y[i]) if i < len(y) else 0
        top = p - borrow
        lend = int(top < q)
        value = top + 10 * lend - q
        if i == bad:
            value = value + 1 if value < 9 else value - 1
        parts.append(_column(p, q, borrow, value))
        borrow, digits = lend, str(value) + digits
    digits = digits.lstrip("0") or "0"
    return f"{', '.join(parts)}. So {digits}.", digits


def _column(p: int, q: int, borrow: int, value: int) -> str:
    """``p - borrow - q``, one decision at a time; ``value`` is what it says comes out."""
    top = p - borrow
    if top < 0:
        return f"10-1=9 9-{q}={value} borrow"
    lent = f"{p}-1={top} " if borrow else ""
    sign = "<" if top < q else ">" if top > q else "="
    taken = f"{10 + top}-{q}={value} borrow" if top < q else f"{top}-{q}={value}"
    return f"{lent}{top}{sign}{q} {taken}"


def mul_steps(
    a: int, b: int, error: Random | None = None, *, columns: bool = False
) -> tuple[str, str]:
    """Split a into places and b into places, multiply each, add up one by one, or with ``columns``
    digit by digit."""
    products = []
    for q, y in enumerate(str(b)[::-1]):
        for p, x in enumerate(str(a)[::-1]):
            if x != "0" and y != "0":
                products.append((int(x) * 10**p, int(y) * 10**q))
    if not products:
        return f"{a}*{b}=0. So 0.", "0"
    bad = error.randrange(len(products)) if error else -1
    parts, total = [], 0
    for i, (x, y) in enumerate(products):
        value = x * y
        if i == bad:
            value += error.choice((-1, 1)) * 10 ** (len(str(value)) - len(str(value).rstrip("0")))
        parts.append(f"{x}*{y}={value}")
        parts += [_sum(total, value, columns=columns)] if i else []
        total += value
    if columns and len(products) > 1:  # the last sum says it
        return f"{'; '.join(parts)}.", str(total)
    return f"{', '.join(parts)}. So {total}.", str(total)


def _sum(a: int, b: int, *, columns: bool = True) -> str:
    """A sum within a route: in one step, or in columns."""
    return f"{a}+{b}: {add_steps(a, b)[0][:-1]}" if columns else f"{a}+{b}={a + b}"


def summed(values: list[int]) -> str:
    """``values`` added up one by one, in columns: what checks add in one step came out wrong as
    often as what they checked."""
    total, parts = values[0], []
    for v in values[1:]:
        parts.append(_sum(total, v))
        total += v
    return "; ".join(parts) or str(total)


def places(n: int) -> list[int]:
    """``n`` as its digits' values, the greatest first: 407 is 400, 7."""
    text = str(n)
    return [int(d) * 10 ** (len(text) - i) for i, d in enumerate(text, 1) if d != "0"]


def _by_nines(a: int, b: int) -> str:
    """``a - b`` (a >= b) as ``a`` plus what ``b`` lacks to nines, and 1; its first 1 is dropped."""
    n = len(str(a))
    lacks = 10**n - 1 - b
    text, total = add_steps(a, lacks)
    rest = int(total) + 1
    each = ", ".join(f"9-{d}={9 - int(d)}" for d in f"{b:0{n}}")
    return f"{each}: {lacks}; {a}+{lacks}: {text[:-1]}; {total}+1={rest}, less {10**n} is {a - b}."


def place_by_place(a: int, b: int) -> str:
    """``a`` plus ``b``, one place of ``b`` at a time, the greatest first."""
    parts, value = [], a
    for part in places(b) or [0]:
        parts.append(f"{value}+{part}={value + part}")
        value += part
    return ", ".join(parts) + "."


def _from_the_left(a: int, b: int, *, columns: bool = False) -> str:
    """``a`` times ``b`` by the places of both, the greatest first."""
    parts, total = [], 0
    for x in places(a) or [0]:
        for y in places(b) or [0]:
            parts.append(f"{x}*{y}={x * y}")
            parts += [_sum(total, x * y, columns=columns)] if total else []
            total += x * y
    return ("; " if columns else ", ").join(parts) + "."


def _by_column(a: int, b: int) -> str:
    """``a`` times each digit of ``b``, digit by digit of ``a`` from the ones up; then added up."""
    rows, total = [], 0
    for place, y in enumerate(reversed(str(b))):
        row = a * int(y) * 10**place
        rows.append(f"{_row(a, int(y))}: {row}")
        rows += [_sum(total, row)] if place else []
        total += row
    return f"{'; '.join(rows)}."


def _row(a: int, digit: int) -> str:
    carry, parts = 0, []
    for x in reversed(str(a)):
        total = int(x) * digit + carry
        shown = f"{x}*{digit}+{carry}={total}" if carry else f"{x}*{digit}={total}"
        carry = total // 10
        parts.append(f"{shown} carry {carry}" if carry else shown)
    return ", ".join(parts)


def rounded_up(a: int, b: int) -> str:
    """``a`` times ``b`` by the next ten above ``a``."""
    up = -(-a // 10) * 10
    if up == a:
        return _from_the_left(a, b)
    return f"{up}*{b}={up * b}, {up - a}*{b}={(up - a) * b}, {up * b}-{(up - a) * b}={a * b}."


def _number(r: Random, digits: int) -> int:
    return r.randint(10 ** (digits - 1), 10**digits - 1)


def addition(r: Random, level: str) -> Problem:
    """Two terms of 2 digits, of 4 digits, or a chain of 4 terms; in training of fewer too."""
    if level == "hard":
        return _chain(r)
    if level == "easy":
        a, b = (
            (r.randint(0, 99), r.randint(0, 99))
            if r.random() < 0.3 and not isinstance(r, Evaluation)
            else (_number(r, 2), _number(r, 2))
        )
    else:
        a, b = _number(r, sized(r, 3, 4)), _number(r, sized(r, 2, 4))
        if r.random() < 0.5:
            a, b = b, a

    def check(result: str) -> tuple[str, bool]:
        c = int(result)
        if c < b:
            return f"{c}<{b}.", False
        text, back = sub_steps(c, b)
        return f"{c}-{b}: {text[:-1]}, {wanted(back, str(a))}.", back == str(a)

    return Problem(
        "addition",
        level,
        f"{min(a, b)}+{max(a, b)}",
        phrase(r, _ADD).format(a=a, b=b),
        str(a + b),
        "number",
        steps=lambda e: add_steps(a, b, e),
        check=check,
        second=f"{b}+{a}: {add_steps(b, a)[0]}",
    )


def _chain(r: Random) -> Problem:
    terms = [_number(r, 2) for _ in range(sized(r, 3, 4))]
    signs = [1] + [r.choice((1, -1)) for _ in terms[1:]]
    total = terms[0]
    for i in range(1, len(terms)):
        if signs[i] < 0 and terms[i] > total:
            signs[i] = 1
        total += signs[i] * terms[i]

    def steps(e: Random | None) -> tuple[str, str]:
        value, parts, bad = terms[0], [], e.randrange(1, len(terms)) if e else -1
        for i in range(1, len(terms)):
            op, by_column = ("+", add_steps) if signs[i] > 0 else ("-", sub_steps)
            text, new = by_column(value, terms[i], e if i == bad else None)
            parts.append(f"{value}{op}{terms[i]}: {text}")
            value = int(new)
            if i + 1 < len(terms) and signs[i + 1] < 0 and value < terms[i + 1]:
                return steps(None)  # a mistake that left too little to go on with
        return "\n".join(parts), str(value)

    plus = [t for t, s in zip(terms, signs, strict=True) if s > 0]
    minus = [t for t, s in zip(terms, signs, strict=True) if s < 0]
    route = f"plus {summed(plus)}"
    if minus:
        left = f"{sum(plus)}-{sum(minus)}: {sub_steps(sum(plus), sum(minus))[0][:-1]}"
        route += f", minus {summed(minus)}; {left}"
    text = str(terms[0]) + "".join(
        f" {'+' if s > 0 else '-'} {t}" for t, s in zip(terms[1:], signs[1:], strict=True)
    )
    ask = phrase(r, _CHAIN)
    if r.random() < 0.3:
        text = text.replace(" ", "")
    return Problem(
        "addition",
        "hard",
        text.replace(" ", ""),
        ask.format(text),
        str(total),
        "number",
        results=_running(terms, signs),
        steps=steps,
        check=lambda got: (_back(int(got), terms, signs), got == str(total)),
        second=f"{route}.",
    )


def _back(value: int, terms: list[int], signs: list[int]) -> str:
    """From a result back to the first term, as far as whole numbers go."""
    parts = []
    for term, sign in zip(terms[:0:-1], signs[:0:-1], strict=True):
        if sign > 0 and value < term:
            return f"{'; '.join([*parts, f'{value}<{term}'])}."
        op, by_column = ("-", sub_steps) if sign > 0 else ("+", add_steps)
        text, back = by_column(value, term)
        parts.append(f"{value}{op}{term}: {text[:-1]}")
        value = int(back)
    return f"{'; '.join(parts)}, {wanted(str(value), str(terms[0]))}."


def _running(terms: list[int], signs: list[int]) -> str:
    value, out = terms[0], []
    for t, s in zip(terms[1:], signs[1:], strict=True):
        value += s * t
        out.append(str(value))
    return " ".join(out)


def subtraction(r: Random, level: str) -> Problem:
    """Minuend not below the subtrahend: 2 digits, 4 digits, 5 digits; in training one less too.
    Chains with minus signs are addition's."""
    n = 2 if level == "easy" else sized(r, 3, 4) if level == "middle" else sized(r, 4, 5)
    b, a = sorted((_number(r, n), _number(r, sized(r, n - 1, n))))

    def check(result: str) -> tuple[str, bool]:
        text, back = add_steps(int(result), b)
        return f"{result}+{b}: {text[:-1]}, {wanted(back, str(a))}.", back == str(a)

    return Problem(
        "subtraction",
        level,
        f"{a}-{b}",
        phrase(r, _SUB).format(a=a, b=b),
        str(a - b),
        "number",
        steps=lambda e: sub_steps(a, b, e),
        check=check,
        second=_by_nines(a, b),
    )


def multiplication(r: Random, level: str) -> Problem:
    """2×1 digits (and the small table), 3×1 digits, 2×2 digits."""
    if level == "easy":
        a, b = (
            (r.randint(1, 12), r.randint(1, 12))
            if r.random() < 0.4 and not isinstance(r, Evaluation)
            else (_number(r, 2), r.randint(2, 9))
        )
    elif level == "middle":
        a, b = _number(r, 3), r.randint(2, 9)
    else:
        a, b = _number(r, 2), _number(r, 2)
    shown = (b, a) if r.random() < 0.3 else (a, b)
    route = _from_the_left(a, b, columns=True)
    return Problem(
        "multiplication",
        level,
        f"{min(a, b)}*{max(a, b)}",
        phrase(r, _MUL).format(a=shown[0], b=shown[1]),
        str(a * b),
        "number",
        steps=lambda e: mul_steps(a, b, e),
        check=lambda got: against(route, got, str(a * b)),
        second=_by_column(a, b),
        careful=lambda: mul_steps(a, b, columns=True)[0],
    )


TASKS = {"addition": addition, "subtraction": subtraction, "multiplication": multiplication}
