"""``musespark lab steer [MODEL]``: a control vector for shorter thoughts, made of a model's own
replies, and what it does to held-out items.

A pair is one problem's thought at a short effort, whole, and its thought at a long effort, cut to
as many tokens, each behind its own prompt: at their last tokens, where the states are taken, one is
about to end and the other to go on. Such directions shorten the thoughts of larger models, those of
middle layers most (arXiv:2503.22048; arXiv:2507.04742). The divergence is bounded on replies to
further problems. (Means over whole thoughts behind one prompt shortened Nano's less, and cost more:
README of this folder.)

Measured are thinking tokens and accuracy at several strengths beside the fixed efforts, on the
evaluation's items, which are not those that the vector was made of. What says whether the vector is
worth having is ``above_line``: points of accuracy above the line through the fixed efforts, at as
many tokens. Beyond strength 1 nothing bounds the divergence.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidRequest, UnsupportedModel
from ..options import real, refused
from ..steering import ControlVector
from ..thinking.sentences import thought_spans
from ..weights.files import write_whole
from .arguments import at_least, check_targets, chosen_of
from .backends import Reply, right
from .bench_thinking import TASKS, spread
from .engine import MusesparkBackend
from .item import EFFORTS, LEVELS, Item
from .paired import Outcomes, Resampled, rows
from .progress import Bar

#: Of the problems asked, those whose replies the divergence is bounded on, and at most so many.
_NEUTRAL_SHARE, _NEUTRAL = 5, 16
#: Tokens by which a pair's thoughts differ at least.
_LEAST_LONGER = 8
STEERED, EFFORT = "steered", "effort"


def main(argv: Sequence[str]) -> None:
    """Runs the command; the arguments are those after its name."""
    args = _arguments(argv)
    begin = time.monotonic()
    load = {"quantize": args.quantize, "kv": args.kv, "threads": args.threads}
    with contextlib.closing(MusesparkBackend(args.model, **load)) as backend:
        vector, pairs = make(backend, args)
        vector.save(args.out)
        print(f"{pairs} pairs, KL {vector.kl:.4f} at strength 1; wrote {args.out}")
        report = {
            "source": backend.model.info.source,
            "model": vector.model,
            "seed": args.seed,
            "pairs": pairs,
            "layers": list(vector.layers),
            "max_kl": vector.max_kl,
            "kl": vector.kl,
            "rows": measure(backend, vector, args),
        }
    report["seconds"] = round(time.monotonic() - begin, 1)
    if args.json:
        write_whole(Path(args.json), (json.dumps(report, indent=1) + "\n").encode())
    print(table(report["rows"]))


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="musespark lab steer",
        description="A control vector for shorter thoughts, and what it does.",
    )
    add = parser.add_argument
    add("model", nargs="?", help="model folder, file or hub id (default: Spark Nano)")
    add("--pairs", type=int, default=200, help="problems that are asked at both efforts")
    add("--short", default="medium", choices=EFFORTS, help="effort of the positive thoughts")
    add("--long", default="xhigh", choices=EFFORTS, help="of the negative ones; it is measured at")
    add("--max-kl", type=float, default=0.2, help="nats, at strength 1")
    add("--layers", metavar="FIRST-LAST", help="default: the two in the middle")
    add("--strengths", default="0.5,1,1.5", help="that are measured")
    add("--n", type=int, default=600, help="items measured, of all tasks and levels alike")
    add("--tasks", default="all", help=f"all, or some of {', '.join(TASKS)}")
    add("--levels", default="all", help="all, or some of easy,middle,hard")
    add("--seed", type=int, default=2026)
    add("--max-new-tokens", type=int, default=400)
    add("--quantize", default="auto", choices=("auto", "none", "q8", "q4"))
    add("--kv", default="auto", choices=("auto", "f32", "kv8", "kv8v4", "kv4"))
    add("--threads", type=int)
    add("--out", metavar="FILE", default="shorter_thoughts.safetensors")
    add("--json", metavar="OUT", help="write the rows here")
    args = parser.parse_args(argv)
    check_targets({"--out": args.out, "--json": args.json})
    for name, least in (("pairs", 10), ("n", 1), ("seed", 0), ("max_new_tokens", 1)):
        at_least(least, getattr(args, name), f"--{name.replace('_', '-')}")
    if EFFORTS.index(args.short) >= EFFORTS.index(args.long):
        raise InvalidRequest(f"--short: got {args.short}, allowed is an effort below {args.long}")
    args.tasks = chosen_of(args.tasks, TASKS, "--tasks")
    args.levels = chosen_of(args.levels, LEVELS, "--levels")
    args.max_kl = real("--max-kl", args.max_kl, 0.0, 1e3, "a number of nats from 0 to 1000")
    args.layers = _range(args.layers)
    args.strengths = _numbers(args.strengths)
    return args


def _range(given: str | None) -> tuple[int, int] | None:
    if given is None:
        return None
    first, _, last = given.partition("-")
    if not (first.isdecimal() and last.isdecimal()):
        raise InvalidRequest(f"--layers: got {given!r:.60}, allowed is FIRST-LAST")
    return int(first), int(last)


def _numbers(given: str) -> list[float]:
    allowed = "numbers from -1e6 to 1e6, with commas between"
    try:
        found = [float(one) for one in given.split(",")]
    except ValueError:
        raise refused("--strengths", given, allowed) from None
    return [real("--strengths", one, -1e6, 1e6, allowed) for one in found]


# ---- pairs --------------------------------------------------------------------------------------


def make(backend: MusesparkBackend, args: argparse.Namespace) -> tuple[ControlVector, int]:
    """The vector, and of how many pairs it was made."""
    items = spread(args.tasks, args.levels, args.pairs, args.seed, calibration=True)
    order = np.random.default_rng(args.seed).permutation(len(items))
    held = max(1, len(items) // _NEUTRAL_SHARE)
    limit = args.max_new_tokens
    asked = [items[i] for i in order[held:]]
    short, long = (_replies(backend, asked, effort, limit) for effort in (args.short, args.long))
    pairs = [
        pair
        for one, other in zip(zip(*short, strict=True), zip(*long, strict=True), strict=True)
        if (pair := pair_of(backend, *one, *other)) is not None
    ]
    if not pairs:
        raise InvalidRequest(
            f"--pairs: of {len(asked)} problems none is thought about longer at {args.long} than "
            f"at {args.short}; more of them are needed, or other efforts"
        )
    apart = _replies(backend, [items[i] for i in order[:held]][:_NEUTRAL], args.long, limit)
    neutral = [[*prompt_of(backend, i), *r.tokens] for i, r in zip(*apart, strict=True)]
    positive, negative = (list(texts) for texts in zip(*pairs, strict=True))
    vector = ControlVector.calibrate(
        backend.model,
        positive,
        negative,
        neutral=neutral,
        max_kl=args.max_kl,
        layers=args.layers or _middle(len(backend.model._weights.spec.layers)),
    )
    return vector, len(pairs)


def _middle(layers: int) -> tuple[int, int]:
    return max(0, layers // 2 - 1), layers // 2


def _replies(
    backend: MusesparkBackend, items: Sequence[Item], effort: str, limit: int, **options: Any
) -> tuple[list[Item], list[Reply]]:
    """The items at an effort, and their replies, with nothing to end a thought."""
    asked = [replace(item, effort=effort) for item in items]
    told = {"thinking_policy": "off", **options}
    return asked, backend.reply(asked, limit, options=told, progress=Bar(f"answering, {effort}"))


def pair_of(
    backend: MusesparkBackend, short: Item, brief: Reply, long: Item, lengthy: Reply
) -> tuple[list[int], list[int]] | None:
    """Ids of the positive and the negative text; None where the thoughts are no pair."""
    one, other = _up_to_thought(backend, short, brief), _up_to_thought(backend, long, lengthy)
    if one is None or other is None:
        return None
    (begun, whole), (also_begun, longer) = one, other
    if not whole or len(longer) < len(whole) + _LEAST_LONGER:
        return None
    return [*begun, *whole], [*also_begun, *longer[: len(whole)]]


def prompt_of(backend: MusesparkBackend, item: Item) -> list[int]:
    """Of the turn that answers an item; items with pictures have none of ids alone."""
    return [int(i) for i in backend._request(item, 1)[0].tokens]


def _up_to_thought(
    backend: MusesparkBackend, item: Item, reply: Reply
) -> tuple[list[int], list[int]] | None:
    """What stands before a reply's first thought, the prompt included, and the thought, as ids."""
    marks = backend.model._requests.thoughts.marks
    if marks is None:
        raise UnsupportedModel("steer: the model's protocol marks no thoughts by tokens")
    prompt = prompt_of(backend, item)
    tokens = [*prompt, *reply.tokens]
    spans = thought_spans(tokens, marks, len(prompt))
    if not spans:
        return None
    return tokens[: spans[0].begin], tokens[spans[0].begin : spans[0].end]


# ---- measuring ----------------------------------------------------------------------------------


def measure(
    backend: MusesparkBackend, vector: ControlVector, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for each fixed effort and each strength, as lab.paired has them."""
    items, limit = spread(args.tasks, args.levels, args.n, args.seed), args.max_new_tokens
    fixed = {e: _outcomes(EFFORT, e, *_replies(backend, items, e, limit)) for e in EFFORTS}
    found = list(fixed.values())
    for strength in args.strengths:
        with backend.model.steer(vector, strength=strength, everywhere=False) as steering:
            asked = _replies(backend, items, args.long, limit, steering=steering)
            found.append(_outcomes(f"{STEERED} {strength:g}", args.long, *asked))
    return rows(found, fixed, {}, Resampled(len(items), args.seed))


def _outcomes(
    policy: str, effort: str, items: Sequence[Item], replies: Sequence[Reply]
) -> Outcomes:
    marks = np.array([right(item, reply) for item, reply in zip(items, replies, strict=True)])
    thinking = np.array([reply.thinking_tokens for reply in replies])
    family = policy.partition(" ")[0]
    return Outcomes(policy, family, effort, marks, thinking, np.zeros(len(marks), np.int64))


def table(found: Sequence[dict[str, Any]]) -> str:
    """The rows for a terminal, or a page (Markdown)."""
    lines = [
        "| | effort | n | thinking tokens | accuracy | saved | points above the fixed efforts |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        cells = [row["policy"], row["effort"], str(row["n"]), f"{row['thinking_tokens']:.1f}"]
        cells += [_cell(row, "accuracy", 100), _cell(row, "saved", 100)]
        cells.append("" if row["family"] == EFFORT else _cell(row, "above_line", 1))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any], name: str, by: float) -> str:
    value, known = row[name], row[f"{name}_interval"]
    if value is None or known is None:
        return ""
    low, high = (f"{by * end:.1f}" for end in known)
    return f"{by * value:.1f} [{low}, {high}]"
