"""``musespark lab rollouts OUT``: the model's own tries, checked and mended, to train on.

Problems of the training side, several sampled replies to each on our engine at medium effort: plain
steps to a result. Those tries then begin items of the efforts that check: the problem tells the
check, and where the try was wrong what is right. So a model learns to judge the mistakes it makes,
not only those planted (as DAgger, arXiv:1011.0686, with the generator as the expert). A wrong try
is input and never loss; a right one is both (STaR, arXiv:2203.14465). Problems that are always
answered right teach nothing and give none.

Replies at the efforts that check are kept up to where they doubt, and told on from there: doubts
are wrong as often as right, and a model that had read them behind mistakes alone spoiled what it
had, for after "Wrong." it was never the same again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import zip_longest
from pathlib import Path
from random import Random
from typing import Any

from ..errors import InvalidRequest
from ..weights.files import write_whole
from .arguments import at_least, check_targets, chosen_of
from .backends import Reply, right
from .engine import MusesparkBackend
from .item import (
    AGAIN,
    EFFORTS,
    LEVELS,
    THIRD,
    WRONG_CLOSE,
    WRONG_OPEN,
    Item,
    Problem,
    compose,
    settled,
    told_calls,
)
from .progress import Bar
from .tasks import GATED, draw, pictures

TASKS = tuple(task for task in GATED if task not in pictures.TASKS)
#: Tries are sampled at this effort: its thoughts are steps and a result, without a check.
TRIED = "medium"


def result_of(problem: Problem, reply: Reply) -> str:
    """What a reply came to, as steps of its ``problem`` end: calls with their arguments in the
    order of the right ones, where they have the same names."""
    if not problem.stated:
        return reply.answer
    told = []
    for call, right_one in zip_longest(reply.calls, problem.calls or []):
        if call is not None:
            given = call["arguments"]
            order = right_one["arguments"] if right_one else given
            keys = order if order.keys() == given.keys() else given
            told.append({"name": call["name"], "arguments": {k: given[k] for k in keys}})
    return told_calls(told)


def judged(problem: Problem, item: Item, reply: Reply) -> bool:
    """Whether a check of ``problem`` tells rightly if ``reply`` to ``item`` is right; False where
    there is no check, or none of such a result."""
    if problem.check is None or not reply.finished or not reply.thought:
        return False
    result = result_of(problem, reply)
    try:
        agrees = problem.check(result)[1]
    except ValueError:  # not a number, not a list
        return False
    return agrees == right(item, reply) == (result == problem.result)


def kept(
    problem: Problem,
    item: Item,
    replies: Sequence[Reply],
    efforts: Sequence[str],
    most: int,
    rng: Random,
) -> list[Item]:
    """Up to ``most`` different ``replies`` to ``item``, a wrong and a right one in turn, each as
    the first try of its ``problem`` told at one of ``efforts``; none where all replies are right.

    With wrong ones first, four in five were wrong, and a model so trained doubted right tries as
    well (lab/README.md)."""
    if all(right(item, r) for r in replies):
        return []
    tries = {r.thought: r for r in replies if judged(problem, item, r)}.values()
    sides = (
        [r for r in tries if (result_of(problem, r) == problem.result) == good]
        for good in (False, True)
    )
    told = [r for pair in zip_longest(*sides) for r in pair if r]
    return [
        compose(problem, rng.choice(efforts), rng, first=(r.thought, result_of(problem, r)))
        for r in told[:most]
    ]


def doubted(problem: Problem, item: Item, replies: Sequence[Reply]) -> list[Item]:
    """``item`` with the different beginnings of ``replies``' thoughts, up to the first doubt, and
    what is right behind it. Whoever was wrong, the beginning is never loss."""
    if problem.check is None or problem.steps is None:
        return []
    told = {}
    for reply in replies:
        places = [(at, sign) for sign in (AGAIN, THIRD) if (at := reply.thought.find(sign)) >= 0]
        if places:
            at, sign = min(places)
            own = f"{WRONG_OPEN}{reply.thought[: at + len(sign)]}{WRONG_CLOSE}"
            told[own] = replace(item, thought=f"{own} {settled(problem)}")
    return [*told.values()]


def problems(tasks: Sequence[str], n: int, seed: int) -> list[Problem]:
    """``n`` problems of the training side for each task and level."""
    found = []
    for task in tasks:
        for level in LEVELS:
            rng = Random(f"rollouts {seed} {task} {level}")
            found += [draw(rng, task, level, evaluation=False) for _ in range(n)]
    return found


def write(items: list[Item], path: Path) -> None:
    """As JSON lines that ``mix.read_rollouts`` reads."""
    rows = ({k: v for k, v in asdict(i).items() if k != "pictures"} for i in items)
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def parse(argv: list[str]) -> argparse.Namespace:
    """The options of the command."""
    p = argparse.ArgumentParser(prog="musespark lab rollouts", description=__doc__.split("\n")[0])
    p.add_argument("out", help="file of JSON lines")
    p.add_argument("model", nargs="?", help="model folder, file or hub id (default: Spark Nano)")
    p.add_argument("--tasks", default=",".join(TASKS), help="some of the gated text and tool tasks")
    p.add_argument("--efforts", default="high,xhigh", help="to tell checked tries at")
    p.add_argument("--n", type=int, default=40, help="problems per task and level")
    p.add_argument("--samples", type=int, default=8, help="replies to each problem")
    p.add_argument("--keep", type=int, default=2, help="of them, at most: wrong, right, wrong, …")
    p.add_argument("--doubts", type=int, default=2, help="replies to each at each of --efforts")
    p.add_argument("--temperature", type=float, default=1.0)
    p.add_argument("--max-new-tokens", type=int, default=500)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int)
    args = p.parse_args(argv)
    args.tasks = chosen_of(args.tasks, TASKS, "--tasks")
    args.efforts = chosen_of(args.efforts, EFFORTS[EFFORTS.index(TRIED) + 1 :], "--efforts")
    for name in ("n", "samples", "doubts", "keep"):
        at_least(1, getattr(args, name), f"--{name}")
    check_targets({"OUT": args.out})
    if Path(args.out).is_file():
        raise InvalidRequest(f"OUT: {args.out} is there already; name another file")
    return args


def main(argv: list[str]) -> None:
    """Sample, tell, write; prints what came of it."""
    args = parse(argv)
    asked = problems(args.tasks, args.n, args.seed)
    rng = Random(args.seed)
    backend = MusesparkBackend(args.model, threads=args.threads)

    def told(item: Item, k: int) -> dict[str, Any]:
        seed = args.seed * 1009 + k
        return {"temperature": args.temperature, "thinking_policy": "off", "seed": seed}

    def sampled(effort: str, samples: int) -> Iterator[tuple[Problem, Item, list[Reply]]]:
        items = [compose(p, effort, rng) for p in asked]
        bar = Bar(f"sampling at {effort}")
        replies = backend.replies(items, samples, args.max_new_tokens, told, progress=bar)
        return zip(asked, items, replies, strict=True)

    out = []
    try:
        for problem, item, group in sampled(TRIED, args.samples):
            out += kept(problem, item, group, args.efforts, args.keep, rng)
        tries = len(out)
        for effort in args.efforts:
            for problem, item, group in sampled(effort, args.doubts):
                out += doubted(problem, item, group)
    finally:
        backend.close()
    if not out:
        raise InvalidRequest("rollouts: every reply is right, or none can be checked; ask more")
    write(out, Path(args.out))
    wrong = sum(WRONG_OPEN in i.thought for i in out[:tries])
    print(f"{len(asked)} problems: {tries} tries, {wrong} of them wrong, {len(out) - tries} doubts")
