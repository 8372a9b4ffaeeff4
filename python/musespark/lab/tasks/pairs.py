"""Pairs of numbers: signs, digits side by side, lengths, sums and differences in one step."""

from __future__ import annotations

from random import Random

from ..item import Problem, compared, is_evaluation, phrase, sign_of, sized

#: How each kind of pairs is asked.
_PAIRS = {
    "signs": (
        "Put <, > or = between: {}",
        "Smaller, greater or equal: {}",
        "Write the signs: {}",
        "Compare each pair: {}",
    ),
    "same": ("Compare digit by digit: {}", "Where do these differ: {}", "Side by side: {}"),
    "long": ("How many digits has each: {}", "Count the digits: {}", "Digits of each: {}"),
    "sums": ("Add two and two: {}", "What do these come to: {}", "Find the sums of {}"),
    "less": ("Greater less smaller: {}", "Take the smaller away: {}", "How far apart are {}"),
}


def _near(r: Random, a: int, digits: int) -> int:
    """A number like ``a``: one digit another, two turned round, one left out, any number, or it."""
    x, i = list(str(a)), r.randrange(len(str(a)))
    kind = r.randrange(6)
    if kind < 2:
        x[i] = str(r.randint(0, 9))
    elif kind == 2:
        x[i - 1], x[i] = x[i], x[i - 1]
    elif kind == 3 and len(x) > 1:
        x.pop(i)
    elif kind == 4:
        return r.randrange(10 ** r.randint(1, digits))
    return int("".join(x))


def _two(r: Random, kind: str, digits: int) -> tuple[int, int]:
    """A pair for a kind; of sums and differences most are round, as parts of products are."""
    a = r.randrange(10 ** r.randint(max(1, digits - 2), digits))
    if kind in ("sums", "less"):
        zeros = min(r.choice((0, 0, 1, 1, 2)), digits - 1)
        b = r.randrange(1, 10 ** (r.randint(zeros + 1, digits) - zeros)) * 10**zeros
    else:
        b = _near(r, a, digits)
    return (a, b) if r.random() < 0.5 else (b, a)


def _told(kind: str, a: int, b: int) -> str:
    if kind == "signs":
        return f"{a}{sign_of(a, b)}{b}"
    if kind == "same":
        return compared(str(a), str(b))
    if kind == "long":
        return f"{a} and {b}: {len(str(a))} and {len(str(b))} digits"
    if kind == "sums":
        return f"{a}+{b}={a + b}"
    return f"{max(a, b)}-{min(a, b)}={abs(a - b)}"


def pairs(r: Random, level: str) -> Problem:
    """A first skill: pairs of numbers, of which the sign, the digits side by side, the lengths, the
    sum or the difference are told. Thoughts of comparing, sorting, adding up and checking hold few
    such decisions, and most of them come out the same way."""
    digits = {"easy": 2, "middle": 4, "hard": 6}[level]
    kind = r.choice(("signs", "signs", "same", "long", "sums", "sums", "less"))
    if kind in ("sums", "less"):
        digits = min(digits, 5)
    found: list[tuple[int, int]] = []
    count = sized(r, *{"easy": (2, 4), "middle": (4, 6), "hard": (5, 8)}[level])
    while len(found) < count:
        a, b = _two(r, kind, digits)
        if not _evaluated(a, b) and (a != b or r.random() < 0.2):
            found.append((a, b))
    answer = ("; " if kind == "same" else ", ").join(_told(kind, a, b) for a, b in found)
    listed = r.choice((", ", "; ")).join(f"{a} {b}" for a, b in found)
    key = f"{kind} {' '.join(f'{a},{b}' for a, b in found)}"
    return Problem(
        "pairs",
        level,
        key,
        phrase(r, _PAIRS[kind]).format(listed),
        answer,
        "string",
        results=answer,  # at low effort too: behind empty thoughts answers learned to think aloud
        steps=lambda e: (answer, answer),
    )


def _evaluated(a: int, b: int) -> bool:
    """Whether two numbers are what evaluation compares, adds or subtracts."""
    low, high = min(a, b), max(a, b)
    asked = {
        "comparison": f"{low} {high}",
        "addition": f"{low}+{high}",
        "subtraction": f"{high}-{low}",
    }
    return any(is_evaluation(task, key) for task, key in asked.items())


TASKS = {"pairs": pairs}
