"""What it costs to watch a thought, and to try answers along it, when nothing ends it early.

    python benchmarks/thinking.py [llama-3.2-1b | nano] [--tokens 384] [--rounds 7] [--save]

The same request decodes in five ways, in turn, each round: not watched; watched (budget, landing,
margin, loops, none of which ends it); with signals of each token too; with two stoppers that look
at them after each token, as if every token ended a sentence; with trial answers of 8 tokens after
every 24 tokens. Medians of tokens a second with the lowest and highest, and the ratios to the
first, round by round. Tokens must be the same in all five.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import models
import numpy as np
from common import machine, save
from report import spread
from shapes import SHAPES

import musespark
from musespark.engine import STOPPER_FEATURES, TokenClasses
from musespark.events import Request

OPEN, CLOSE = 50, 51  # reserved markers, which Nano never finds likely: no margin is reached
STEP = 24
WAYS = ("plain", "watched", "signals", "stoppers", "trials")
NEVER = {"weights": dict.fromkeys(STOPPER_FEATURES, 1e-6), "bias": -20.0, "threshold": 0.5}


def requests(vocab: int, tokens: int) -> dict[str, Request]:
    """By way. Any id may end a sentence; trials keep their distance."""
    ids = [*np.random.default_rng(0).integers(8, vocab, 500).tolist(), OPEN]
    bias = {CLOSE: -100.0}  # the thought goes on
    thoughts = {"cache": "keep", "opens": [[OPEN]], "closes": [CLOSE]}
    thinking = {
        "close": CLOSE,
        "openings": [[OPEN]],
        "classes": TokenClasses(b"\x08" * vocab),
        "budget": 1 << 20,
        "margin": 0.0,
        "loop": 10_000,
    }
    stoppers = {"stopper": NEVER, "hopeless": NEVER}
    trials = {"tokens": 8, "every": STEP, "confident": 1.0, "close": [CLOSE, 9, 10, 11]}
    given: dict[str, Any] = {"tokens": ids, "max_new_tokens": tokens}
    given |= {"thoughts": thoughts, "logit_bias": bias}
    return {
        "plain": Request(**given),
        "watched": Request(**given, thinking=thinking),
        "signals": Request(**given, thinking={**thinking, "signals": True}),
        "stoppers": Request(**given, thinking={**thinking, "signals": True, **stoppers}),
        "trials": Request(**given, thinking=thinking, trials=trials),
    }


def measure(model: musespark.Model, tokens: int, rounds: int) -> dict[str, Any]:
    """Tokens a second of each way, and their ratios to the first."""
    engine, vocab = model._engine, model.info.vocab
    asked = requests(vocab, tokens)
    for request in asked.values():
        engine.submit(request).result()
    speed: dict[str, list[float]] = {way: [] for way in WAYS}
    written, stats = {}, {}
    for _ in range(rounds):
        for way, request in asked.items():
            start = time.perf_counter()
            result = engine.submit(request).result()
            took = result.stats["decode_s"]
            assert took < time.perf_counter() - start
            speed[way].append((len(result.tokens) - 1) / took)
            written[way], stats[way] = result.tokens, result.stats
    assert all(written[way] == written["plain"] for way in WAYS)
    ratios = {
        way: [one / base for one, base in zip(speed[way], speed["plain"], strict=True)]
        for way in WAYS[1:]
    }
    return {
        "tokens": tokens,
        "trials": len(stats["trials"]["trials"]),
        "trial_rows": stats["trials"]["trial_tokens"],
        "tokens_per_s": {way: spread(values) for way, values in speed.items()},
        "ratio_to_plain": {way: spread(values) for way, values in ratios.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shape", nargs="?", default="llama-3.2-1b", choices=["nano", *SHAPES])
    parser.add_argument("--tokens", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--save", action="store_true", help="write results/thinking_SHAPE.json")
    args = parser.parse_args()
    path = None if args.shape == "nano" else models.build(SHAPES[args.shape], "q4.safetensors")
    with musespark.load(path, context=1024 if path else 2048) as model:
        found = {"shape": args.shape, **measure(model, args.tokens, args.rounds)}
    print(json.dumps(found, indent=1))
    if args.save:
        save(f"thinking_{args.shape}", {"machine": machine(), **found})


if __name__ == "__main__":
    main()
