"""What a generated example is, how it is checked, and how examples are split.

A *problem* is one instance of a task with several ways to think about it; an *item* is a problem
told
at one effort: messages, a thought, an answer. The split is by instance and not by seed: an instance
whose canonical text hashes to 0 mod 16 is for evaluation only, so that no rewording, effort or seed
can carry it into training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

EFFORTS = ("low", "medium", "high", "xhigh")
LEVELS = ("easy", "middle", "hard")
CHECKERS = ("string", "number", "set", "json", "call", "none")

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
    context: dict = field(default_factory=dict)


def is_evaluation(task: str, key: str) -> bool:
    """Whether the instance ``key`` of ``task`` belongs to the evaluation side (one in 16)."""
    digest = hashlib.blake2b(f"{task}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % 16 == 0


def compose(problem: Problem, effort: str, rng: Random, error_rate: float = 0.0) -> Item:
    """Tell ``problem`` at ``effort``; with probability ``error_rate`` a first try is wrong and
    repaired.

    low: intermediate results only, or an empty thought. medium: steps. high: steps and one check by
    another route. xhigh: two routes, compared, and a third where they differ.
    """
    thought = None if problem.thoughtless else _thought(problem, effort, rng, error_rate)
    messages = problem.messages or [{"role": "user", "content": problem.question}]
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
    )


def _thought(p: Problem, effort: str, rng: Random, error_rate: float) -> str:
    if effort == "low" or p.steps is None:
        return p.results
    wrong = p.check is not None and effort != "medium" and rng.random() < error_rate
    text, result = p.steps(rng if wrong else None)
    if effort == "medium" or p.check is None:
        return text
    mistaken = result != p.answer
    first = f"{WRONG_OPEN}{text}{WRONG_CLOSE}" if mistaken else text
    if effort == "xhigh" and p.second:
        return _two_routes(p, first, result, mistaken)
    verdict, agrees = p.check(result)
    if agrees:
        return f"{first}\nCheck: {verdict} Right."
    right = p.steps(None)[0]
    return f"{first}\nCheck: {verdict} Wrong. Again: {right}"


def _two_routes(p: Problem, first: str, result: str, mistaken: bool) -> str:
    text = f"{first}\nAnother way: {p.second}"
    if not mistaken:
        return f"{text} Both {p.answer}."
    verdict, _ = p.check(p.answer)
    return f"{text} Not {result}. Third: {verdict} So {p.answer}."


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
