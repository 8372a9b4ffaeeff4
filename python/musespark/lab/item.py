"""What a generated example is, how it is checked, and how examples are split.

A *problem* is one instance of a task with several ways to think about it; an *item* is a problem
told
at one effort: messages, a thought, an answer. The split is by instance and not by seed: an instance
whose canonical text hashes to 0 mod 16 is for evaluation only, so that no rewording, effort or seed
can carry it into training.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .raster import Picture

EFFORTS = ("low", "medium", "high", "xhigh")
LEVELS = ("easy", "middle", "hard")

#: Characters of an answer that a thought says again.
_SHORT = 12
#: Text between these two control characters is a deliberately wrong step: part of the input, not
#: of the loss.
WRONG_OPEN, WRONG_CLOSE = "\x01", "\x02"
#: What a thought says behind a check, and behind a second route, that came out otherwise; looked
#: for in replies too (`rollouts.py`).
AGAIN, THIRD = " Wrong. Again:", " They differ.\nThird:"


@dataclass
class Problem:
    """One instance of a task.

    ``steps(error)`` gives (thought text, result it ends with); with a ``Random`` as ``error`` it
    makes one
    plausible mistake and carries it through. ``check(result)`` tests a result by another route
    and gives
    (text, whether it agrees). ``second`` is a further route that does not look at the first
    one's result. ``careful()`` tells the steps with more care than a first try has, for a try after
    a doubt; the steps themselves where None. ``stated``: the result of steps that end in calls,
    which have no answer.
    """

    task: str
    level: str
    key: str
    question: str
    answer: str
    checker: str = "string"
    results: str = ""
    steps: Callable[[Random | None], tuple[str, str]] | None = None
    check: Callable[[str], tuple[str, bool]] | None = None
    second: str = ""
    careful: Callable[[], str] | None = None
    stated: str = ""
    messages: list[dict] | None = None
    tools: list[dict] | None = None
    calls: list[dict] | None = None
    system: str = ""
    thoughtless: bool = False
    pictures: list[Picture] | None = None

    @property
    def result(self) -> str:
        """What right steps end with."""
        return self.stated or self.answer


@dataclass
class Item:
    """One example: ``thought`` may hold masked wrong steps between WRONG_OPEN and WRONG_CLOSE."""

    task: str
    level: str
    effort: str
    key: str
    messages: list[dict]
    thought: str | None
    answer: str
    checker: str
    tools: list[dict] | None = None
    calls: list[dict] | None = None
    pictures: list[Picture] | None = None
    #: "seen", or "held": asked in words that training never uses.
    wording: str = "seen"
    #: Whether its thought was ended, or left out, by whoever runs the model: what does that is
    #: input then.
    forced: bool = False
    #: The file and line it was read from; empty for those of generators.
    where: str = ""

    @property
    def modality(self) -> str:
        """vision, tools or text."""
        return "vision" if self.pictures else "tools" if self.tools else "text"


class Evaluation(Random):
    """Draws at the full size of a level, where training draws smaller instances too."""


class HeldOutWording(Evaluation):
    """Draws only the wordings that training never uses; any other draws only the rest."""


def sized(r: Random, low: int, high: int) -> int:
    """A size of a level: of an evaluation ``high``, else from ``low`` to it."""
    return high if isinstance(r, Evaluation) else r.randint(low, high)


def phrase(r: Random, templates: tuple[str, ...]) -> str:
    """One of ``templates``; the last tenth, at least one, is held out for evaluation."""
    kept = len(templates) - max(1, len(templates) // 10)
    return r.choice(templates[kept:] if isinstance(r, HeldOutWording) else templates[:kept])


def is_evaluation(task: str, key: str) -> bool:
    """Whether the instance ``key`` of ``task`` belongs to the evaluation side (one in 16)."""
    return _hashed(task, key) % 16 == 0


def is_calibration(task: str, key: str) -> bool:
    """Whether an instance of the evaluation side is one that thresholds are calibrated on (one in
    four) and not one that policies are compared on."""
    return _hashed(task, key) // 16 % 4 == 0


def _hashed(task: str, key: str) -> int:
    digest = hashlib.blake2b(f"{task}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def compose(
    problem: Problem,
    effort: str,
    rng: Random,
    error_rate: float = 0.0,
    first: tuple[str, str] | None = None,
) -> Item:
    """Tell ``problem`` at ``effort``; with probability ``error_rate`` a first try is wrong and
    repaired. ``first`` is a first try to begin with, as ``problem.steps`` returns it.

    low: intermediate results only, or an empty thought. medium: steps. high: steps and one check by
    another route. xhigh: two routes, compared, then the check; where they differ the steps again.
    """
    thought = None if problem.thoughtless else _thought(problem, effort, rng, error_rate, first)
    messages = problem.messages or [{"role": "user", "content": _content(problem)}]
    if problem.system:
        messages = [{"role": "system", "content": problem.system}, *messages]
    return Item(
        problem.task,
        problem.level,
        effort,
        problem.key,
        messages,
        thought,
        problem.answer,
        problem.checker,
        problem.tools,
        problem.calls,
        problem.pictures,
    )


def _content(problem: Problem) -> str | list[dict]:
    """What the user says: the pictures, then the question."""
    if not problem.pictures:
        return problem.question
    images = [{"type": "image"} for _ in problem.pictures]
    return [*images, {"type": "text", "text": problem.question}]


def _thought(
    p: Problem, effort: str, rng: Random, error_rate: float, first: tuple[str, str] | None
) -> str:
    if effort == "low" or p.steps is None:
        return p.results
    wrong = p.check is not None and effort != "medium" and rng.random() < error_rate
    text, result = first or p.steps(rng if wrong else None)
    if effort == "medium" or p.check is None:
        return text
    mistaken = result != p.result
    slip = rng if not mistaken and rng.random() < error_rate else None
    begun = f"{WRONG_OPEN}{text}{WRONG_CLOSE}" if mistaken else text
    if effort == "xhigh" and p.second:
        return _two_routes(p, begun, result, mistaken, slip)
    verdict, agrees = p.check(result)
    slipped = slip and slipped_check(verdict, slip)
    if slipped:
        return f"{begun}{WRONG_OPEN}\nCheck: {slipped}{AGAIN}{WRONG_CLOSE} {settled(p)}"
    if agrees:
        return f"{begun}\nCheck: {verdict} Right."
    return f"{begun}\nCheck: {verdict}{AGAIN} {settled(p)}"


def told_calls(calls: list[dict]) -> str:
    """Calls as thoughts name them."""
    pairs = [", ".join(f"{k}={v}" for k, v in c["arguments"].items()) for c in calls]
    return "; ".join(f"{c['name']}: {p}" for c, p in zip(calls, pairs, strict=True))


def settled(p: Problem) -> str:
    """What follows a doubt, AGAIN or THIRD, of a problem that has steps and a check: the steps once
    more, which go by the problem alone, whoever was wrong before. Where another route followed
    THIRD, one that can be told only by who knows the answer, weights of 177 M tokens took the
    second route's word for it, and xhigh spoiled 11% of right first tries in text (card)."""
    return p.careful() if p.careful else p.steps(None)[0]


def _two_routes(p: Problem, first: str, result: str, mistaken: bool, slip: Random | None) -> str:
    right = p.result
    slipped = slip and _slipped_number(p.second, right, slip)
    if slipped:
        second, other = slipped
        text = f"\nAnother way: {second} {compared(result, other)}.{THIRD}"
        return f"{first}{WRONG_OPEN}{text}{WRONG_CLOSE} {settled(p)}"
    text = f"{first}\nAnother way: {p.second}"
    if right:
        text += f" {compared(result, right)}."
    if mistaken:
        return f"{text}{THIRD} {settled(p)}"
    verdict, _ = p.check(right)
    both = right if 0 < len(right) <= _SHORT else "agree"
    return f"{text} Both {both}.\nCheck: {verdict} Right."


def _misread(number: str, r: Random) -> str:
    """``number`` with another digit at one place."""
    i = r.randrange(len(number))
    digits = [d for d in "0123456789" if d != number[i] and (i or d != "0" or len(number) == 1)]
    return f"{number[:i]}{r.choice(digits)}{number[i + 1 :]}"


def _slipped_number(route: str, result: str, r: Random) -> tuple[str, str] | None:
    """``route`` with another number in place of the last ``result``, and that number; None where
    the route does not end in such a number."""
    before, found, after = route.rpartition(result)
    inside = before[-1:].isdecimal() or any(c.isdecimal() for c in after)
    if not found or not result.isdecimal() or inside:
        return None
    other = _misread(result, r)
    return f"{before}{other}{after}", other


_AGREES = re.compile(r"(.*); (\d+) and \2: [^:]*\.", re.DOTALL)
_BACK_AT = re.compile(r"(.*), want (\d+): [^:]*\.", re.DOTALL)


def slipped_check(verdict: str, r: Random) -> str | None:
    """A ``verdict`` that agrees, with a mistake at its end, so that it does not; None for one that
    ends in no number. Without these only first tries were wrong, and weights of 177 M tokens that
    doubted one came to the check's result, whichever it was."""
    if told := _AGREES.fullmatch(verdict):
        slipped = _slipped_number(told[1], told[2], r)
        return slipped and f"{slipped[0]}; {compared(told[2], slipped[1])}."
    if told := _BACK_AT.fullmatch(verdict):
        slipped = _slipped_number(told[1], told[2], r)
        return slipped and f"{slipped[0]}, {wanted(slipped[1], told[2])}."
    return None


def side_by_side(one: str, other: str) -> str:
    """Two results, character by character, item by item or word by word up to where they differ.

    Whether they are equal is what a check turns on, and it is told one step at a time: where it was
    one step, weights of 137 M tokens called wrong tries right behind checks that showed it ("So
    1742, want 1342. Right."), and 16 of 182 were repaired (card, text at high effort).
    """
    told = []
    for p, q in zip_longest(_parts(one), _parts(other), fillvalue="nothing"):
        told.append(f"{p}={q}" if p == q else f"{p}/{q}")
        if p != q:
            break
    return " ".join(told)


def _parts(result: str) -> Sequence[str]:
    """Digits and characters of a number or a code, items of a list, words of a text."""
    if "," in result:
        return result.split(", ")
    return result if result == result.upper() and " " not in result else result.split()


def sign_of(a: int, b: int) -> str:
    """How ``a`` is to ``b``."""
    return "<" if a < b else ">" if a > b else "="


def compared(one: str, other: str) -> str:
    """Both results, and side by side."""
    return f"{one} and {other}: {side_by_side(one, other)}"


def wanted(got: str, want: str) -> str:
    """What has to come out, and ``got`` beside it."""
    return f"want {want}: {side_by_side(got, want)}"


def against(route: str, got: str, answer: str) -> tuple[str, bool]:
    """A check of ``got`` by a ``route`` that came to ``answer``: both side by side, and if they
    agree."""
    return f"{route[:-1]}; {compared(got, answer)}.", got == answer


def exact(
    task: str,
    level: str,
    key: str,
    question: str,
    answer: str,
    thought: str,
    checker: str = "string",
    routes: tuple[str, str] | None = None,
    pictures: list[Picture] | None = None,
) -> Problem:
    """A problem whose ``thought`` and ``routes`` (a check, another way) hold no mistakes."""
    return Problem(
        task,
        level,
        key,
        question,
        answer,
        checker,
        steps=lambda e: (thought, answer),
        check=None if routes is None else lambda got: against(routes[0], got, answer),
        second="" if routes is None else routes[1],
        pictures=pictures,
    )
