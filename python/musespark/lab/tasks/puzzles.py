"""Puzzles that are reported and not gated: Countdown, knights and knaves, fractions."""

from __future__ import annotations

from fractions import Fraction
from itertools import permutations, product
from random import Random

from ..item import Problem, phrase
from .words import NAMES

# ---- Countdown ----------------------------------------------------------------------------------

_REACH = (
    "Reach {t} with {n}. Use each number at most once.",
    "Numbers {n}, target {t}. Which expression reaches it?",
    "Make {t} from {n}, each number at most once.",
    "Get to {t} using {n}; none of them twice.",
)


def _apply(op: str, a: int, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[op]


def _value(ways: list[tuple[str, int]]) -> tuple[str, int]:
    """A chain worked off from the left, brackets around what binds less than a following ``*``, and
    its value."""
    text, value, loose = str(ways[0][1]), ways[0][1], False
    for op, n in ways[1:]:
        if op == "*" and loose:
            text = f"({text})"
        loose = op != "*"
        text, value = f"{text}{op}{n}", _apply(op, value, n)
    return text, value


def countdown(r: Random, level: str) -> Problem:
    """Three numbers up to 9, three up to 25, four up to 25: any expression that reaches the target
    with each number at most once. The thought tries some chains that do not."""
    count, most = {"easy": (3, 9), "middle": (3, 25), "hard": (4, 25)}[level]
    while True:
        numbers = r.sample(range(1, most + 1), count)
        used = r.sample(numbers, r.randint(max(2, count - 1), count))
        ways = [("+", used[0]), *((r.choice("+-*"), n) for n in used[1:])]
        answer, target = _value(ways)
        if 0 < target < 1000 and target not in numbers:
            break
    listed = ", ".join(map(str, numbers))
    tried = []
    for _ in range(r.randint(0, 3)):
        order = r.choice(list(permutations(numbers, len(used))))
        text, value = _value([("+", order[0]), *((r.choice("+-*"), n) for n in order[1:])])
        if value != target and text not in (t for t, _ in tried):
            tried.append((text, value))
    steps = [f"{t}={v}, no" for t, v in tried] + [f"{answer}={target}, yes"]
    thought = f"{'; '.join(steps)}. So {answer}."
    return Problem(
        "countdown",
        level,
        f"{' '.join(map(str, sorted(numbers)))} = {target}",
        phrase(r, _REACH).format(t=target, n=listed),
        answer,
        "expression",
        steps=lambda e: (thought, answer),
    )


# ---- knights and knaves -------------------------------------------------------------------------

_WHO = (
    "Knights tell the truth, knaves lie. {s} Who is what?",
    "A knight always tells the truth, a knave always lies. {s} What is each?",
    "{s} Knights never lie and knaves always do. Who is what?",
    "Some here are knights, who speak the truth, some knaves, who lie. {s} Name each one's kind.",
)
_KINDS = {True: "knight", False: "knave"}


def knights(r: Random, level: str) -> Problem:
    """Two, three or four people, each of whom says something of another; one answer fits. The
    thought goes through the cases."""
    count = {"easy": 2, "middle": 3, "hard": 4}[level]
    while True:
        people = r.sample(NAMES, count)
        about = [r.choice([k for k in range(count) if k != i]) for i in range(count)]
        same = r.random() < 0.3
        claims = [r.random() < 0.4 for _ in range(count)]  # whether i says that j is a knight
        fits = [
            case
            for case in product((True, False), repeat=count)
            if all(case[i] == (case[about[i]] == claims[i]) for i in range(count))
        ]
        if same:  # the first says instead that both are the same, or not
            fits = [c for c in fits if c[0] == ((c[0] == c[about[0]]) == claims[0])]
        if len(fits) == 1:
            break
    said = [f"{people[i]} says: {people[about[i]]} is a {_KINDS[claims[i]]}." for i in range(count)]
    if same:
        other = people[about[0]]
        said.append(f"{people[0]} says: {other} and I are {'alike' if claims[0] else 'different'}.")
    (solution,) = fits
    thought = _cases(people, about, claims, solution, same=same)
    answer = ", ".join(f"{p} {_KINDS[k]}" for p, k in zip(people, solution, strict=True))
    return Problem(
        "knights",
        level,
        " ".join(said),
        phrase(r, _WHO).format(s=" ".join(said)),
        answer,
        "set",
        steps=lambda e: (f"{thought} So {answer}.", answer),
    )


def _cases(
    people: list[str], about: list[int], claims: list[bool], solution: tuple, *, same: bool
) -> str:
    """Each case up to the one that fits, with the first statement that does not fit it."""
    lines = []
    for case in product((True, False), repeat=len(people)):
        listed = ", ".join(f"{p} {_KINDS[k]}" for p, k in zip(people, case, strict=True))
        if case == solution:
            return "\n".join([*lines, f"{listed}: all fit."])
        wrong = [i for i in range(len(people)) if case[i] != (case[about[i]] == claims[i])]
        if same and not wrong:
            wrong = [0]
        lines.append(f"{listed}: {people[wrong[0]]}, no.")
    raise AssertionError("the solution is one of the cases")


# ---- fractions ----------------------------------------------------------------------------------

_WORK = ("What is {}?", "{}", "Calculate {}.", "{} = ?", "Give {} as one fraction.")
_CANCEL = ("Simplify {}.", "Reduce {}.", "Cancel {} as far as it goes.")


def fractions(r: Random, level: str) -> Problem:
    """Cancel; add or take away with different denominators; multiply or divide. Answers in lowest
    terms."""
    if level == "easy":
        part, by = Fraction(r.randint(1, 30), r.randint(2, 40)), r.randint(2, 12)
        n, d = part.numerator * by, part.denominator * by
        answer = str(part)
        thought = f"{n}/{by}={part.numerator}, {d}/{by}={part.denominator}. So {answer}."
        return _fraction(level, f"{n}/{d}", phrase(r, _CANCEL).format(f"{n}/{d}"), answer, thought)
    a, b = (Fraction(r.randint(1, 12), r.randint(2, 15)) for _ in range(2))
    if level == "middle":
        op = r.choice("+-")
        if op == "-" and a < b:
            a, b = b, a
        common = a.denominator * b.denominator
        x, y = a.numerator * b.denominator, b.numerator * a.denominator
        total = x + y if op == "+" else x - y
        result = a + b if op == "+" else a - b
        thought = f"{a}={x}/{common}, {b}={y}/{common}. {x}{op}{y}={total}. {total}/{common}"
    else:
        op = r.choice("*:")
        n, d = (
            (a.numerator * b.numerator, a.denominator * b.denominator)
            if op == "*"
            else (a.numerator * b.denominator, a.denominator * b.numerator)
        )
        result = Fraction(n, d)
        second = f"{b}" if op == "*" else f"{b.denominator}/{b.numerator}"
        x, y = second.split("/") if "/" in second else (second, "1")
        thought = f"{a}*{second}: {a.numerator}*{x}={n}, {a.denominator}*{y}={d}. {n}/{d}"
    thought += f"={result}. So {result}."
    text = f"{a} {op} {b}"
    key = f"{min(a, b)} {op} {max(a, b)}" if op in "+*" else text
    return _fraction(level, key, phrase(r, _WORK).format(text), str(result), thought)


def _fraction(level: str, key: str, question: str, answer: str, thought: str) -> Problem:
    return Problem("fractions", level, key, question, answer, steps=lambda e: (thought, answer))


TASKS = {"countdown": countdown, "knights": knights, "fractions": fractions}
