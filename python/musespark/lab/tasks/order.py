"""Comparing, sorting, orderings: every comparison is spelled out."""

from __future__ import annotations

from itertools import pairwise, takewhile
from random import Random

from ..item import Problem, phrase, sized
from .words import NAMES

_LARGER = (
    "Which is larger, {a} or {b}?",
    "Which number is bigger: {a} or {b}?",
    "Which is greater, {a} or {b}?",
    "Is {a} or {b} larger?",
    "What is the larger of {a} and {b}?",
    "Which is more, {a} or {b}?",
    "max of {a} and {b}",
    "Compare {a} and {b}. Which is larger?",
    "which is bigger, {a} or {b}?",
    "{a} or {b}: which is larger?",
    "Tell me the bigger number: {a}, {b}",
    "Which is higher, {a} or {b}?",
    "Of {a} and {b}, which is the greater number?",
)
_SMALLER = (
    "Which is smaller, {a} or {b}?",
    "Which number is less: {a} or {b}?",
    "Which is less, {a} or {b}?",
    "Is {a} or {b} smaller?",
    "What is the smaller of {a} and {b}?",
    "min of {a} and {b}",
    "Compare {a} and {b}. Which is smaller?",
    "{a} or {b}: which is smaller?",
    "Which is lower, {a} or {b}?",
    "Of {a} and {b}, which is the lesser number?",
)
_MAXIMUM = (
    "What is the largest number in {}?",
    "Find the maximum: {}",
    "Which is the biggest: {}?",
    "max({})",
    "Name the greatest of {}.",
)
_MINIMUM = (
    "What is the smallest number in {}?",
    "Find the minimum: {}",
    "Which is the smallest: {}?",
    "min({})",
    "Name the least of {}.",
)
_DOWN = (
    "Sort in descending order: {}",
    "Sort from largest to smallest: {}",
    "Arrange so that the numbers fall: {}",
)
_UP = (
    "Sort: {}",
    "Sort these numbers: {}",
    "Sort in ascending order: {}",
    "Put in order, smallest first: {}",
    "Sort from smallest to largest: {}",
    "sort {}",
    "Arrange so that the numbers rise: {}",
)


#: Numbers to sort, or to find the greatest of.
_COUNTS = {"easy": (3, 5), "middle": (6, 8), "hard": (9, 12)}


def compare_steps(a: int, b: int, *, large: bool, flip: bool = False) -> str:
    """Lengths first, then the first differing digit; then which is larger and which smaller.

    The thought opens with what is asked and closes with it, so that each step is one decision; a
    model that had to join the sign with the question's word in one step guessed. ``flip`` turns
    the relation round (a deliberate mistake).
    """
    x, y = str(a), str(b)
    sign = "=" if a == b else "<" if (a < b) != flip else ">"
    parts = []
    if len(x) != len(y):
        parts.append(f"{a} has {len(x)} digits, {b} has {len(y)}")
    else:
        for p, q in zip(x, y, strict=True):
            if p != q:
                parts.append(f"{p}{sign}{q}")
                break
            parts.append(f"{p}={q}")
    small, big = (a, b) if sign == "<" else (b, a)
    asked = f"asked larger {big}" if large else f"asked smaller {small}"
    end = "Equal." if a == b else f"larger {big}, smaller {small}, {asked}."
    word = "larger" if large else "smaller"
    return f"{word}? {', '.join(parts)}, so {a}{sign}{b}: {end}"


def comparison(r: Random, level: str) -> Problem:
    """Two numbers: 2 digits, up to 4 digits, near neighbours of 4 to 6 digits."""
    top = {"easy": 99, "middle": 9999, "hard": 999999}[level]
    a, b = (
        r.randint(0 if level == "easy" else 100, top),
        r.randint(0 if level == "easy" else 100, top),
    )
    if level == "hard" or r.random() < 0.3:
        digits = list(str(a))
        digits[r.randrange(1, len(digits)) if len(digits) > 1 else 0] = str(r.randint(0, 9))
        b = int("".join(digits))
        if r.random() < 0.3 and len(digits) > 2:
            b = int(r.choice((str(a)[:-1], str(a) + str(r.randint(0, 9)))))
    large = r.random() < 0.6
    answer = str(max(a, b) if large else min(a, b)) if a != b else "They are equal."
    gap = (
        f"{max(a, b)}-{min(a, b)}={abs(a - b)}, so {max(a, b)} is larger."
        if a != b
        else f"{a}-{b}=0, equal."
    )
    rising = f"in order {min(a, b)}, {max(a, b)}: the {'last' if large else 'first'} is {answer}."

    def steps(e: Random | None) -> tuple[str, str]:
        if e and a != b:
            return compare_steps(a, b, large=large, flip=True), str(
                min(a, b) if large else max(a, b)
            )
        return compare_steps(a, b, large=large), answer

    return Problem(
        "comparison",
        level,
        f"{min(a, b)} {max(a, b)}",
        phrase(r, _LARGER if large else _SMALLER).format(a=a, b=b),
        answer,
        "string",
        steps=steps,
        check=lambda got: (gap, got == answer),
        second=rising if a != b else gap,
    )


def sorting(r: Random, level: str) -> Problem:
    """5, 8 or 12 numbers (in training from 3, 6 and 9): those of each ten gathered, put in order
    among themselves, then all. To take the least again and again asked for a decision over all
    numbers in one step, and a model of 47 M tokens sorted five of them in 7 of 10 cases."""
    n = sized(r, *_COUNTS[level])
    values = [r.randint(0, 99) for _ in range(n)]
    down = r.random() < 0.25
    out = sorted(values, reverse=down)
    listed = r.choice((", ", " ")).join(map(str, values))
    ask = phrase(r, _DOWN if down else _UP)

    def steps(e: Random | None) -> tuple[str, str]:
        told = list(out)
        if e:
            k = e.randrange(n - 1)
            told[k], told[k + 1] = told[k + 1], told[k]
        listed = " ".join(map(str, told))
        return f"{_by_tens(values, down=down)}. In order {listed}.", ", ".join(map(str, told))

    def check(got: str) -> tuple[str, bool]:
        listed_out = [int(v) for v in got.split(", ")]
        sign = ">=" if down else "<="
        for p, q in pairwise(listed_out):
            if (p < q) if down else (p > q):
                return f"{p} before {q}.", False
        told = f"{sign.join(map(str, listed_out))}, {len(listed_out)} numbers"
        if len(listed_out) != n:
            return f"{told}, not {n}.", False
        there = list(takewhile(lambda v: listed_out.count(v) >= values.count(v), values))
        found = [f"{v} yes" for v in there] + [f"{v} no" for v in values[len(there) :][:1]]
        return f"{told}. {', '.join(found)}.", len(there) == n

    other = (
        f"from the other end {_by_tens(values, down=not down)}. Turned {' '.join(map(str, out))}."
    )

    return Problem(
        "sorting",
        level,
        " ".join(map(str, sorted(values))),
        ask.format(listed),
        ", ".join(map(str, out)),
        "string",
        steps=steps,
        check=check,
        second=other,
    )


def _by_tens(values: list[int], *, down: bool) -> str:
    """``values`` (0 to 99) with two digits each, then which of them each ten has, as they come and
    in order. Without the zeros those below ten were forgotten: they begin like any other."""
    parts = []
    for ten in range(9, -1, -1) if down else range(10):
        found = [v for v in values if v // 10 == ten]
        ranked = sorted(found, reverse=down)
        also = f" so {_padded(ranked)}" if found != ranked else ""
        parts.append(f"{ten}: {_padded(found) or 'none'}{also}")
    return f"{_padded(values)}. {', '.join(parts)}"


def _padded(values: list[int]) -> str:
    return " ".join(f"{v:02}" for v in values)


def extreme(r: Random, level: str) -> Problem:
    """The largest or smallest of a list, by a running best."""
    n = sized(r, *_COUNTS[level])
    values = r.sample(range(100 if level == "easy" else 1000), n)
    large = r.random() < 0.6
    best = (max if large else min)(values)
    ask = phrase(r, _MAXIMUM if large else _MINIMUM)

    def steps(e: Random | None) -> tuple[str, str]:
        value, parts = values[0], [str(values[0])]
        for v in values[1:]:
            new = (max if large else min)(value, v)
            if e and e.random() < 0.3:
                new = v
            parts.append(f"{v}{'>' if v > value else '<'}{value} best {new}")
            value = new
        return ", ".join(parts) + ".", str(value)

    def check(got: str) -> tuple[str, bool]:
        worse = [v for v in values if (v > int(got) if large else v < int(got))]
        word = "above" if large else "below"
        if worse:
            return f"{worse[0]} is {word} {got}.", False
        each = ", ".join(f"{v}{'<' if large else '>'}{got}" for v in values if v != best)
        return f"{each}. None {word} {got}.", True

    kept, back = values[-1], [str(values[-1])]
    for v in values[-2::-1]:
        sign = ">" if v > kept else "<"
        kept_now = (max if large else min)(kept, v)
        back.append(f"{v}{sign}{kept} best {kept_now}")
        kept = kept_now

    return Problem(
        "extreme",
        level,
        " ".join(map(str, sorted(values))),
        ask.format(", ".join(map(str, values))),
        str(best),
        "number",
        steps=steps,
        check=check,
        second=f"from the end {', '.join(back)}.",
    )


_RELATIONS = (
    ("taller than", "tallest", "shortest"),
    ("older than", "oldest", "youngest"),
    ("faster than", "fastest", "slowest"),
    ("heavier than", "heaviest", "lightest"),
    ("richer than", "richest", "poorest"),
)


_WHO = ("{told} Who is the {end}?", "Who is the {end}? {told}")


def ordering(r: Random, level: str) -> Problem:
    """A chain of comparative statements in any order; who is first or last."""
    n = {"easy": 3, "middle": 4, "hard": 5}[level]
    people = r.sample(NAMES, n)
    relation, most, least = r.choice(_RELATIONS)
    facts = [f"{people[i]} is {relation} {people[i + 1]}." for i in range(n - 1)]
    shuffled = r.sample(facts, len(facts))
    top = r.random() < 0.5
    answer = people[0] if top else people[-1]
    short = ">".join(people)
    chain = [f"{people[i]}>{people[i + 1]}" for i in range(n - 1)]

    def steps(e: Random | None) -> tuple[str, str]:
        listed = [f.split(f" is {relation} ") for f in shuffled]
        noted = ", ".join(f"{a}>{b[:-1]}" for a, b in listed)
        return f"{noted}. Chain {short}. {most if top else least}: {answer}.", answer

    return Problem(
        "ordering",
        level,
        f"{relation} {' '.join(people)}",
        phrase(r, _WHO).format(told=" ".join(shuffled), end=most if top else least),
        answer,
        "string",
        results=short,
        steps=steps,
        check=lambda got: (
            f"{', '.join(chain)}; {answer} has none {'above' if top else 'below'}.",
            got == answer,
        ),
        second=_sides(shuffled, relation, answer, top=top),
    )


def _sides(told: list[str], relation: str, answer: str, *, top: bool) -> str:
    """Who stands before and after the words of comparison; the end stands on one side alone."""
    before, after = zip(*(t[:-1].split(f" is {relation} ") for t in told), strict=True)
    where = "before, never after" if top else "after, never before"
    return f"before {', '.join(before)}; after {', '.join(after)}. Only {where}: {answer}."


TASKS = {
    "comparison": comparison,
    "sorting": sorting,
    "extreme": extreme,
    "ordering": ordering,
}
