"""Decoding beside Python that computes: what other threads of a program cost a model.

    python benchmarks/busy_python.py [--model M] [--streams 1 16] [--tokens 1000] [--rounds 7]
                                     [--save]

Tokens a second of ``--streams`` answers at once, alone and beside a thread that computes in pure
Python, in turn ``--rounds`` times: medians, and each round's ratio. The model has all cores but
one, so that only Python's lock is shared: that thread gives it up every 5 ms, when others ask.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import machine, save

import musespark

PROMPT = "Once upon a time"


def tokens_per_s(model: musespark.Model, streams: int, tokens: int) -> float:
    begun = time.perf_counter()
    model.generate_batch([PROMPT] * streams, max_new_tokens=tokens, min_new_tokens=tokens)
    return streams * tokens / (time.perf_counter() - begun)


@contextlib.contextmanager
def busy_python() -> Iterator[None]:
    """A thread that computes without ever waiting."""
    ends, value = threading.Event(), 1

    def compute() -> None:
        nonlocal value
        while not ends.is_set():
            for _ in range(1000):
                value = (value * 1103515245 + 12345) & 0xFFFFFFFF

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


def measure(model: musespark.Model, streams: int, args: argparse.Namespace) -> dict[str, Any]:
    alone, beside = [], []
    for _ in range(args.rounds):
        alone.append(tokens_per_s(model, streams, args.tokens))
        with busy_python():
            beside.append(tokens_per_s(model, streams, args.tokens))
    ratios = [b / a for a, b in zip(alone, beside, strict=True)]
    return {
        "streams": streams,
        "tokens_per_s_alone": round(statistics.median(alone)),
        "tokens_per_s_beside": round(statistics.median(beside)),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(one, 3) for one in ratios],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    threads = max(1, len(os.sched_getaffinity(0)) - 1)
    with musespark.load(args.model, threads=threads, prefix_cache=False) as model:
        tokens_per_s(model, max(args.streams), args.tokens)
        measured = [measure(model, streams, args) for streams in args.streams]
    name = "nano" if args.model is None else Path(args.model).resolve().parent.name
    report = {"model": name, "threads": threads, "measured": measured, "machine": machine()}
    print(json.dumps(report, indent=1))
    if args.save:
        save(f"busy_python_{name}", report)


if __name__ == "__main__":
    main()
