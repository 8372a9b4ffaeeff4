"""What a generated example is, how it is checked, and how examples are split.

A *problem* is one instance of a task with several ways to think about it; an *item* is a problem
told
at one effort: messages, a thought, an answer. The split is by instance and not by seed: an instance
whose canonical text hashes to 0 mod 16 is for evaluation only, so that no rewording, effort or seed
can carry it into training.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .raster import Box, Picture

EFFORTS = ("low", "medium", "high", "xhigh")
LEVELS = ("easy", "middle", "hard")
CHECKERS = (
    *("string", "number", "set", "json", "call", "box", "boxes", "expression"),
    "none",
)

#: Characters of an answer that a thought says again.
_SHORT = 12
#: Text between these two control characters is a deliberately wrong step: part of the input, not
#: of the loss.
WRONG_OPEN, WRONG_CLOSE = "\x01", "\x02"


@dataclass
class Problem:
    """One instance of a task.

    ``steps(error)`` gives (thought text, result it ends with); with a ``Random`` as ``error`` it
    makes one
    plausible mistake and carries it through. ``check(result)`` tests a result by another route
    and gives
    (text, whether it agrees). ``second`` is a further route that does not look at the first
    one's result.
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
    messages: list[dict] | None = None
    tools: list[dict] | None = None
    calls: list[dict] | None = None
    system: str = ""
    thoughtless: bool = False
    pictures: list[Picture] | None = None


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
    another route. xhigh: two routes, compared, then the check, which decides where they differ.
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
    mistaken = result != p.answer
    begun = f"{WRONG_OPEN}{text}{WRONG_CLOSE}" if mistaken else text
    if effort == "xhigh" and p.second:
        return _two_routes(p, begun, result, mistaken)
    verdict, agrees = p.check(result)
    if agrees:
        return f"{begun}\nCheck: {verdict} Right."
    right = p.steps(None)[0]
    return f"{begun}\nCheck: {verdict} Wrong. Again: {right}"


def _two_routes(p: Problem, first: str, result: str, mistaken: bool) -> str:
    verdict, _ = p.check(p.answer)
    text = f"{first}\nAnother way: {p.second}"
    if mistaken:
        return f"{text} Not {result}.\nThird: {verdict} So {p.answer}."
    both = p.answer if 0 < len(p.answer) <= _SHORT else "agree"
    return f"{text} Both {both}.\nCheck: {verdict} Right."


def normalize(text: str) -> str:
    """Whitespace folded, final full stop dropped: what two equal string answers agree in."""
    text = " ".join(text.split())
    return text[:-1] if text.endswith(".") and len(text) > 1 else text


def grade(item: Item, answer: str, calls: list[dict] | None = None) -> bool:
    """Whether ``answer`` (or ``calls``: [{name, arguments}]) is exactly right for ``item``."""
    if item.checker == "none":
        return True
    if item.checker == "call":
        return _plain_calls(calls) == _plain_calls(item.calls)
    if calls:
        return False
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
    if item.checker == "json":
        try:
            return json.loads(got) == json.loads(want)
        except ValueError:
            return False
    return got == want


def _plain_calls(calls: list[dict] | None) -> list[tuple[str, dict]]:
    """Calls with every argument as the text a model writes, so 5 and "5" are the same argument."""
    return [
        (
            c["name"],
            {k: v if isinstance(v, str) else json.dumps(v) for k, v in c["arguments"].items()},
        )
        for c in calls or []
    ]


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


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
    each at most once."""
    try:
        value = value_of(text)
    except ValueError:
        return False
    numbers, _, target = key.partition(" = ")
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


_BOX = re.compile(r"([^\[\];,]*)\[(\d+), ?(\d+), ?(\d+), ?(\d+)\]")


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
