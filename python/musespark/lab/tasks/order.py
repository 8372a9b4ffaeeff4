"""Comparing, sorting, orderings: every comparison is spelled out."""

from __future__ import annotations

from itertools import pairwise
from random import Random

from ..item import Problem, against, phrase, sign_of, sized
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
    "Which is the greater, {a} or {b}?",
    "Of {a} and {b}, which is larger?",
    "Which number of {a} and {b} is greater?",
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
    "Which is the lesser, {a} or {b}?",
    "Tell me the smaller number: {a}, {b}",
    "which is less, {a} or {b}?",
    "Of {a} and {b}, which is smaller?",
    "Of {a} and {b}, which is the lesser number?",
)
_MAXIMUM = (
    "What is the largest number in {}?",
    "Find the maximum: {}",
    "Which is the biggest: {}?",
    "max({})",
    "Which of {} is the largest?",
    "What is the highest number among {}?",
    "Give the largest of {}.",
    "Tell me the maximum of {}.",
    "the biggest of {}?",
    "Pick the greatest number: {}",
    "Largest: {}",
    "Which number is greatest, {}?",
    "Look at {}. Which is the highest?",
    "Say which of these is biggest: {}",
    "Name the largest of {}.",
    "Name the greatest of {}.",
)
_MINIMUM = (
    "What is the smallest number in {}?",
    "Find the minimum: {}",
    "Which is the smallest: {}?",
    "min({})",
    "Which of {} is the smallest?",
    "What is the lowest number among {}?",
    "Give the smallest of {}.",
    "Tell me the minimum of {}.",
    "the smallest of {}?",
    "Pick the least number: {}",
    "Smallest: {}",
    "Which number is least, {}?",
    "Look at {}. Which is the lowest?",
    "Say which of these is smallest: {}",
    "Name the smallest of {}.",
    "Name the least of {}.",
)
_DOWN = (
    "Sort in descending order: {}",
    "Sort from largest to smallest: {}",
    "Order these from high to low: {}",
    "Put in order, largest first: {}",
    "Write {} from the largest down.",
    "Sort downwards: {}",
    "sort {}, biggest first",
    "List in falling order: {}",
    "Arrange from greatest to least: {}",
    "Give {} in descending order.",
    "Which order has the largest first: {}?",
    "Arrange so that the numbers fall: {}",
)
_UP = (
    "Sort: {}",
    "Sort these numbers: {}",
    "Sort in ascending order: {}",
    "Put in order, smallest first: {}",
    "Sort from smallest to largest: {}",
    "sort {}",
    "Order these from low to high: {}",
    "Write {} from the smallest up.",
    "Sort upwards: {}",
    "List in rising order: {}",
    "Arrange from least to greatest: {}",
    "Give {} in ascending order.",
    "Put these numbers in order: {}",
    "Arrange the numbers: {}",
    "order: {}",
    "Arrange so that the numbers rise: {}",
)


#: Numbers to sort, or to find the greatest of.
_COUNTS = {"easy": (3, 5), "middle": (6, 8), "hard": (9, 12)}


def compare_steps(a: int, b: int, *, large: bool, flip: bool = False) -> str:
    """Lengths first, always told, then the first differing digit; then which is larger and which
    smaller.

    The thought opens with what is asked and closes with it, so that each step is one decision; a
    model that had to join the sign with the question's word in one step guessed. ``flip`` turns
    the relation round (a deliberate mistake).
    """
    x, y = str(a), str(b)
    sign = "=" if a == b else "<" if (a < b) != flip else ">"
    parts = [f"{len(x)} and {len(y)} digits"]
    if len(x) == len(y):
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


def _of_one_length(a: int, b: int, *, large: bool) -> str:
    """Both with as many digits, the shorter after zeros, compared from the left."""
    n = len(str(max(a, b)))
    x, y = f"{a:0{n}}", f"{b:0{n}}"
    signs = []
    for p, q in zip(x, y, strict=True):
        signs.append(f"{p}{sign_of(int(p), int(q))}{q}")
        if p != q:
            break
    told = f"as {x} and {y}: {', '.join(signs)}"
    if a == b:
        return f"{told}. They are equal."
    asked = f"larger {max(a, b)}" if large else f"smaller {min(a, b)}"
    return f"{told}. {asked}."


def _in_order(a: int, b: int, *, large: bool) -> str:
    """Both by what they are made of, and the one asked for."""
    if a == b:
        return f"{a} and {b} are one number."
    low, high = min(a, b), max(a, b)
    asked = f"the last is {high}" if large else f"the first is {low}"
    return f"in order {low}, {high}: {asked}."


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
    padded, rising = _of_one_length(a, b, large=large), _in_order(a, b, large=large)

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
        check=lambda got: against(padded, got, answer),
        second=rising,
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
        tens, told = _by_tens(values, down=down, slip=e)
        if told == out and e:
            k = e.randrange(n - 1)
            told[k], told[k + 1] = told[k + 1], told[k]
        listed = " ".join(map(str, told))
        return f"{tens}. In order {listed}.", ", ".join(map(str, told))

    def check(got: str) -> tuple[str, bool]:
        """In order, each with its place; then the place of each number that was given, which ends
        with the first that has none. "yes" for each was said of those that were not there too."""
        told = [int(v) for v in got.split(", ")]
        signs = [f"{told[0]} 1"]
        for i, (p, q) in enumerate(pairwise(told), 2):
            signs.append(f"{p}{sign_of(p, q)}{q} {i}")
            if (p < q) if down else (p > q):
                return f"{', '.join(signs)}.", False
        free, found = list(enumerate(told, 1)), []
        for v in values:
            place = next((place for place in free if place[1] == v), None)
            found.append(f"{v} at {place[0]}" if place else f"{v} none")
            if place is None:
                break
            free.remove(place)
        text = f"{', '.join(signs)}; {', '.join(found)}"
        if place is not None and free:
            return f"{text}, left {free[0][1]}.", False
        return f"{text}.", place is not None

    tens, _ = _by_tens(values, down=not down)
    other = f"from the other end {tens}. Turned {' '.join(map(str, out))}."

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


def _by_tens(values: list[int], *, down: bool, slip: Random | None = None) -> tuple[str, list[int]]:
    """``values`` (0 to 99) with two digits each, then which of them each ten has, several both as
    they come and in order; and all in order. Without the zeros those below ten were forgotten: they
    begin like any other. ``slip``: those of a ten may be left as they come, the mistake that
    weights of 144 M tokens made most, where the order was told only if it was another one."""
    parts, told = [], []
    for ten in range(9, -1, -1) if down else range(10):
        found = [v for v in values if v // 10 == ten]
        ranked = found if slip and slip.random() < 0.5 else sorted(found, reverse=down)
        also = f" so {_padded(ranked)}" if len(found) > 1 else ""
        parts.append(f"{ten}: {_padded(found) or 'none'}{also}")
        told += ranked
    return f"{_padded(values)}. {', '.join(parts)}", told


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
        if e and value == best:
            return steps(None)  # a mistake that came to nothing
        return ", ".join(parts) + ".", str(value)

    def check(got: str) -> tuple[str, bool]:
        signs, word = [], "above" if large else "below"
        for v in values:
            signs.append(f"{v}{sign_of(v, int(got))}{got}")
            if v > int(got) if large else v < int(got):
                return f"{', '.join(signs)}. {v} is {word} {got}.", False
        return f"{', '.join(signs)}. None {word} {got}.", int(got) in values

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


_WHO = (
    "{told} Who is the {end}?",
    "{told} Who is {end}?",
    "{told} Name the {end}.",
    "{told} Tell me who is the {end}.",
    "{told} Which of them is the {end}?",
    "Read this: {told} Who is the {end}?",
    "{told} So who is the {end}?",
    "Name the {end}. {told}",
    "Which one is the {end}? {told}",
    "Tell me who is the {end}. {told}",
    "Who is the {end}? {told}",
)


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
        check=lambda got: against(
            f"{', '.join(chain)}; {answer} has none {'above' if top else 'below'}.", got, answer
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
