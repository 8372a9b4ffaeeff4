"""How long one waits: the first token of a warm session, and the gaps between tokens.

    python benchmarks/latency.py [llama-3.2-1b] [--new 12] [--turns 60] [--tokens 2000] [--save]
    python benchmarks/latency.py nano [--turns 200] [--save]

A shape: a sequence whose keys and values are retained, as a session's are, is gone on with: each
turn appends ``--new`` random prompt tokens and takes 8 tokens greedily. First tokens are counted
from the call to the event that brings them, in Python; turns begin at a depth of ``--depth``. Gaps
are those between the events of ``--tokens`` tokens of one answer, each of which brings one.

nano: the embedded model, through ``session.chat`` with text and template, from the call to the
first delta; a new session every eight turns. Its first turn is apart: it has no cache of its own,
and only the system prompt's may be there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from typing import Any

import models
import numpy as np
from common import machine, save
from shapes import SHAPES

import musespark
from musespark.events import Request, Tokens

GOALS = {"first_token_s": 0.1, "nano_first_token_s": 0.015, "gap_p95_over_median": 1.5}
_ANSWER = 8
_TURNS_OF_SESSION = 8
_QUESTIONS = (
    "What is 17 plus 25?",
    "How many letters are in the word banana?",
    "Is 91 a prime number?",
    "Which is larger, 3 times 14 or 5 times 9?",
)


def percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    at = [ordered[min(int(len(ordered) * part), len(ordered) - 1)] for part in (0.5, 0.95, 0.99)]
    return {"median": at[0], "p95": at[1], "p99": at[2], "most": ordered[-1], "n": len(ordered)}


def warm_turns(model: musespark.Model, new: int, turns: int, depth: int) -> list[float]:
    """Seconds to the first token of each turn."""
    choose = np.random.default_rng(0)
    ids = choose.integers(1000, 100_000, depth).tolist()
    kept, seconds = None, []
    for turn in range(turns + 3):
        began = time.perf_counter()
        ids = [*ids, *choose.integers(1000, 100_000, new - 1).tolist()]
        request = Request(tokens=ids, max_new_tokens=_ANSWER, retain=True)
        handle = model._engine.submit(request, base=kept)
        first, found = 0.0, []
        for event in handle:
            if isinstance(event, Tokens):
                first = first or time.perf_counter() - began
                found += event.ids
            else:
                # The last token of an answer has no keys and values: it is one of the new ones.
                cached = event.stats["cached_tokens"]
                assert turn == 0 or len(ids) - cached == new, (len(ids), cached)
        if kept is not None:
            kept.release()
        ids, kept = ids + found, handle.retained
        if turn >= 3:  # before it the beginning is computed, and everything woken
            seconds.append(first)
    return seconds


def gaps(model: musespark.Model, tokens: int) -> list[float]:
    """Seconds between the tokens of one answer."""
    request = Request(tokens=[1000, 1001, 1002], max_new_tokens=tokens, min_new_tokens=tokens)
    times, count = [], 0
    for event in model._engine.submit(request):
        if isinstance(event, Tokens):
            times.append(time.perf_counter())
            count += len(event.ids)
    assert count == tokens and len(times) > 0.95 * tokens, (count, len(times))
    return [b - a for a, b in itertools.pairwise(times)]


def of_shape(name: str, new: int, turns: int, depth: int, tokens: int) -> dict[str, Any]:
    path = str(models.build(SHAPES[name], "q4.safetensors"))
    context = max(depth + (turns + 4) * (new + _ANSWER), tokens) + 64
    with musespark.load(path, context=context, progress=False) as model:
        first = percentiles(warm_turns(model, new, turns, depth))
        between = percentiles(gaps(model, tokens)) if tokens else None
        info = {"kv": model.info.kv, "isa": model.info.isa, "threads": model.info.threads}
    report = {"shape": name, **info, "new_tokens": new, "depth": depth, "first_token_s": first}
    if between is not None:
        report["gap_s"] = between
        report["gap_p95_over_median"] = between["p95"] / between["median"]
    return report


def of_nano(turns: int) -> dict[str, Any]:
    first_turn, later = [], []
    with musespark.load(progress=False) as model:
        model.chat(_QUESTIONS[0], max_new_tokens=_ANSWER)
        for turn in range(turns):
            at = turn % _TURNS_OF_SESSION
            if at == 0:
                session = model.session(system="You are brief.")
            began = time.perf_counter()
            stream = session.chat(
                _QUESTIONS[turn % len(_QUESTIONS)], max_new_tokens=_ANSWER, stream=True
            )
            seconds = 0.0
            for _ in stream:
                seconds = seconds or time.perf_counter() - began
            (later if at else first_turn).append(seconds)
        info = {"kv": model.info.kv, "isa": model.info.isa, "threads": model.info.threads}
    every = percentiles(first_turn + later)
    return {
        "shape": "nano",
        **info,
        "first_token_s": every,
        "of_first_turns_s": percentiles(first_turn),
        "of_later_turns_s": percentiles(later),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    shapes = ["nano", *sorted(SHAPES)]
    parser.add_argument("shape", nargs="?", default="llama-3.2-1b", choices=shapes)
    parser.add_argument("--new", type=int, default=12, help="prompt tokens of a turn")
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--depth", type=int, default=4096, help="tokens before the first turn")
    parser.add_argument("--tokens", type=int, default=2000, help="of the answer; 0: none")
    parser.add_argument("--save", action="store_true", help="write results/latency_SHAPE.json")
    args = parser.parse_args()
    if args.shape == "nano":
        report = of_nano(args.turns)
    else:
        report = of_shape(args.shape, args.new, args.turns, args.depth, args.tokens)
    print(json.dumps(report, indent=1))
    if args.save:
        save(f"latency_{args.shape}", {"machine": machine(), **report, "goals": GOALS})


if __name__ == "__main__":
    main()
