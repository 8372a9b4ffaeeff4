"""``musespark lab rollouts OUT``: the model's own right replies, to train on.

Expert iteration (STaR, arXiv:2203.14465; ReST-EM, arXiv:2312.06585): problems of the training side,
several sampled replies to each on our engine, and of the right ones a few are kept. Problems that
are always right teach nothing and give none. First those that mended a first try of their own; the
try is input and never loss. So a model meets the mistakes it makes, not only those planted.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

from ..weights.files import write_whole
from .arguments import at_least, check_targets, chosen_of
from .backends import Reply, right
from .engine import MusesparkBackend
from .item import EFFORTS, LEVELS, WRONG_CLOSE, WRONG_OPEN, Item, compose
from .progress import Bar
from .tasks import GATED, draw, pictures

TASKS = tuple(task for task in GATED if task not in pictures.TASKS)
#: How a thought goes on after its first try, and what it then says where that was wrong.
_SECOND = ("\nCheck: ", "\nAnother way: ")
_MENDED = (" Wrong. Again: ", "\nThird: ")


def mended(thought: str) -> str | None:
    """``thought`` with its first try marked as wrong, if it says so itself."""
    if not any(words in thought for words in _MENDED):
        return None
    end = min((at for words in _SECOND if (at := thought.find(words)) > 0), default=0)
    return f"{WRONG_OPEN}{thought[:end]}{WRONG_CLOSE}{thought[end:]}" if end else None


def kept(item: Item, replies: list[Reply], most: int) -> list[Item]:
    """Of the replies to ``item`` up to ``most`` right ones that differ, mended ones first; none
    where all are right or all are wrong."""
    good = [r for r in replies if right(item, r)]
    if len(good) in (0, len(replies)):
        return []
    thoughts = dict.fromkeys(r.thought for r in good)
    told = [mended(t) or t for t in thoughts]
    told.sort(key=lambda t: WRONG_OPEN not in t)  # stable: else in the order they came
    return [replace(item, thought=t) for t in told[:most]]


def problems(tasks: Sequence[str], efforts: Sequence[str], n: int, seed: int) -> list[Item]:
    """``n`` items of the training side for each task, level and effort."""
    items = []
    for task in tasks:
        for level in LEVELS:
            for effort in efforts:
                rng = Random(f"rollouts {seed} {task} {level} {effort}")
                for _ in range(n):
                    problem = draw(rng, task, level, evaluation=False)
                    items.append(compose(problem, effort, rng))
    return items


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
    p.add_argument("--efforts", default="high,xhigh")
    p.add_argument("--n", type=int, default=20, help="problems per task, level and effort")
    p.add_argument("--samples", type=int, default=8, help="replies to each problem")
    p.add_argument("--keep", type=int, default=2, help="of the right ones, at most")
    p.add_argument("--temperature", type=float, default=1.0)
    p.add_argument("--max-new-tokens", type=int, default=500)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--threads", type=int)
    args = p.parse_args(argv)
    args.tasks = chosen_of(args.tasks, TASKS, "--tasks")
    args.efforts = chosen_of(args.efforts, EFFORTS, "--efforts")
    for name in ("n", "samples", "keep"):
        at_least(1, getattr(args, name), f"--{name}")
    check_targets({"OUT": args.out})
    return args


def main(argv: list[str]) -> None:
    """Sample, keep, write; prints what came of it."""
    args = parse(argv)
    items = problems(args.tasks, args.efforts, args.n, args.seed)
    backend = MusesparkBackend(args.model, threads=args.threads)
    samples: list[list[Reply]] = []
    try:
        for k in range(args.samples):
            options = {"temperature": args.temperature, "thinking_policy": "off"}
            options["seed"] = args.seed * 1009 + k
            bar = Bar(f"sample {k + 1} of {args.samples}")
            samples.append(backend.reply(items, args.max_new_tokens, options=options, progress=bar))
    finally:
        backend.close()
    out = []
    for item, replies in zip(items, zip(*samples, strict=True), strict=True):
        out += kept(item, list(replies), args.keep)
    write(out, Path(args.out))
    own = sum(WRONG_OPEN in (i.thought or "") for i in out)
    print(f"{len(items)} problems, {args.samples} replies each: {len(out)} kept, {own} mended")
