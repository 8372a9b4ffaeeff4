"""A document that was read before: the first token of another question about it, against the first.

    python benchmarks/prefix.py [llama-3.2-1b] [--tokens 4096] [--question 32] [--rounds 5] [--save]

Each round has a document of its own, of random tokens, and two questions. The first request reads
all of it (cold), the second begins with the same document (hit), and a third in a model loaded anew
without a cache must give the same tokens. Seconds are those from ``generate`` to the first token,
as the caller sees them. Pages hold 64 tokens and only whole ones are kept, so the last of a
document may be computed again: "after the page" is how many tokens of it that is.

``--folder`` measures the cache on disk: one process reads a document and ends, another asks its own
question about it; a third asks with nothing there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import models
import numpy as np
from common import machine, save
from report import spread
from shapes import SHAPES

import musespark

GOAL = 0.015
AFTER = (0, 32, 63)  # tokens of the document after its last whole page
NEW = 4


def _load(path: str, tokens: int, **options: Any) -> musespark.Model:
    model = musespark.load(path, kv="kv8", context=tokens + 256, progress=False, **options)
    model.generate(list(range(1000, 1600)), max_new_tokens=2)  # threads awake, memory there
    return model


def _first_token(model: musespark.Model, ids: list[int]) -> tuple[float, list[int], int]:
    """Seconds from the call to the first token, all tokens, and how many of the prompt were there.

    Until the call returns, what is on disk is read; the engine counts from then on.
    """
    began = time.perf_counter()
    stream = model.generate(ids, max_new_tokens=NEW, temperature=0, stream=True)
    before = time.perf_counter() - began
    for _ in stream:
        pass
    result = stream.result
    return before + result.timings.first_token_s, result.tokens, result.usage.cached_tokens


def measure(path: str, tokens: int, question: int, rounds: int) -> list[dict[str, Any]]:
    """Cold and hit for each number of tokens after the last whole page."""
    rows = []
    choose = np.random.default_rng(0)
    with _load(path, tokens) as model, _load(path, tokens, prefix_cache=False) as plain:
        for after in AFTER:
            length = tokens // 64 * 64 + after
            cold, hit, cached = [], [], 0
            for _ in range(rounds):
                document = choose.integers(1000, 100_000, length).tolist()
                one, two = (choose.integers(1000, 100_000, question).tolist() for _ in range(2))
                cold.append(_first_token(model, document + one)[0])
                seconds, found, cached = _first_token(model, document + two)
                hit.append(seconds)
                assert cached == length // 64 * 64, cached
            assert found == _first_token(plain, document + two)[1], "a hit gave other tokens"
            rows.append(
                {
                    "document": length,
                    "after_page": after,
                    "question": question,
                    "cached_tokens": cached,
                    "cold_s": spread(cold),
                    "hit_s": spread(hit),
                    "ratio": statistics.median(h / c for h, c in zip(hit, cold, strict=True)),
                    "identical": True,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def from_folder(path: str, folder: str, tokens: int, question: int, seed: int) -> dict[str, Any]:
    """In a process of its own: a document that another process may have read before."""
    choose = np.random.default_rng(1)
    document = choose.integers(1000, 100_000, tokens // 64 * 64).tolist()
    asked = np.random.default_rng(seed).integers(1000, 100_000, question).tolist()
    with _load(path, tokens, prefix_folder=folder) as model:
        seconds, found, cached = _first_token(model, document + asked)
        stats = model.prefix_folder
    assert not stats.notes, stats
    return {
        "first_token_s": seconds,
        "cached_tokens": cached,
        "tokens": found,
        "folder_bytes": stats.bytes,
    }


def across_processes(path: str, tokens: int, question: int, rounds: int) -> dict[str, Any]:
    def run(folder: str, seed: int) -> dict[str, Any]:
        given = [sys.executable, __file__, "--worker", path, folder, str(seed)]
        given += ["--tokens", str(tokens), "--question", str(question)]
        done = subprocess.run(given, check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout.splitlines()[-1])

    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as empty:
        first = run(folder, 0)
        hits = [run(folder, seed) for seed in range(1, rounds + 1)]
        plain = run(empty, rounds)
    assert plain["cached_tokens"] == 0 and hits[-1]["tokens"] == plain["tokens"]
    assert {hit["cached_tokens"] for hit in hits} == {tokens // 64 * 64}
    cold = spread([first["first_token_s"], plain["first_token_s"]])
    hit = spread([hit["first_token_s"] for hit in hits])
    return {
        "document": tokens // 64 * 64,
        "question": question,
        "cold_s": cold,
        "hit_s": hit,
        "ratio": hit["median"] / cold["median"],
        "folder_bytes": first["folder_bytes"],
        "identical": True,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shape", nargs="?", default="llama-3.2-1b", choices=sorted(SHAPES))
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--question", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write results/prefix_SHAPE.json")
    parser.add_argument("--folder", action="store_true", help="the cache on disk instead")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        path, folder, seed = args.worker
        print(json.dumps(from_folder(path, folder, args.tokens, args.question, int(seed))))
        return
    path = str(models.build(SHAPES[args.shape], "q4.safetensors"))
    if args.folder:
        found = across_processes(path, args.tokens, args.question, args.rounds)
        print(json.dumps(found, indent=1))
        if args.save:
            save(f"prefix_folder_{args.shape}", {"machine": machine(), "shape": args.shape} | found)
        return
    rows = measure(path, args.tokens, args.question, args.rounds)
    worst = max(row["ratio"] for row in rows)
    print(f"hit / cold {worst:.2%} at most; goal {GOAL:.1%}")
    if args.save:
        report = {"machine": machine(), "shape": args.shape, "rows": rows}
        save(f"prefix_{args.shape}", report | {"largest_ratio": worst, "goal": GOAL})


if __name__ == "__main__":
    main()
