"""What forks of one conversation cost: bytes of keys and values, and memory of the process.

    python benchmarks/forks.py [llama-3.2-1b] [--tokens 4096] [--forks 16] [--kv kv8] [--save]

A prefix of random tokens is computed once and forked; then every fork goes on by itself with a
token of its own, all in one batch. Bytes are the engine's own count; the process's are resident
ones. The tokens of the forks must be those of requests that share nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
from pathlib import Path
from typing import Any

import models
import numpy as np
from common import machine, save
from shapes import SHAPES

import musespark
from musespark.events import Request


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _settled(model: musespark.Model) -> dict[str, int]:
    """The engine's numbers after all that was asked for has been done."""
    model._engine.submit(Request(tokens=[1], max_new_tokens=0)).result()
    stats = model._engine.stats()
    names = ("kv_bytes_used", "pages", "open_pages")
    return {**{name: stats[name] for name in names}, "resident_bytes": resident()}


def _grown(after: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in after}


def measure(path: str, tokens: int, forks: int, kv: str) -> dict[str, Any]:
    """Bytes of a prefix, of its forks before they write, and after each wrote a token."""
    with musespark.load(path, kv=kv, context=tokens + 256, prefix_cache=False) as model:
        drawn = np.random.default_rng(0).integers(0, model.info.vocab, tokens + forks).tolist()
        ids, own = drawn[:tokens], [[one] for one in drawn[tokens:]]

        def run(prompt: list[int], base: Any = None) -> Any:
            request = Request(tokens=prompt, max_new_tokens=1, retain=True)
            return model._engine.submit(request, base=base)

        run(ids[:512]).result()  # work memory of the largest step
        run([*ids[:600], 1]).result()
        empty = _settled(model)
        first = run(ids)
        first.result()
        prefix = _settled(model)
        twins = [first.retained.fork() for _ in range(forks)]
        forked = _settled(model)
        handles = [run([*ids, *more], twin) for more, twin in zip(own, twins, strict=True)]
        results = [handle.result() for handle in handles]
        cached = [result.stats["cached_tokens"] for result in results]
        assert cached == [tokens] * forks, cached
        written = _settled(model)
        fresh = run([*ids, *own[0]]).result()
        assert fresh.tokens == results[0].tokens, "a fork went on otherwise than a fresh request"
        core = model._engine._driver.check()
        _, _, open_page = core.page_list(length=1, prompt=0)[0]
        costs = {
            "prefix": _grown(prefix, empty),
            "forks_before_writing": _grown(forked, prefix),
            "forks_after_a_token": _grown(written, prefix),
        }
        used = costs["prefix"]["kv_bytes_used"]
        after = costs["forks_after_a_token"]["kv_bytes_used"]
        return {
            "tokens": tokens,
            "forks": forks,
            "kv": model.info.kv,
            "open_page_bytes": open_page,
            **costs,
            "before_writing_share": {
                "kv": costs["forks_before_writing"]["kv_bytes_used"] / used,
                "resident": costs["forks_before_writing"]["resident_bytes"] / used,
            },
            "at_most_an_open_page_each": after <= forks * open_page,
            "identical": True,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shape", nargs="?", default="llama-3.2-1b", choices=sorted(SHAPES))
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--forks", type=int, default=16)
    parser.add_argument("--kv", default="kv8")
    parser.add_argument("--save", action="store_true", help="write results/forks_SHAPE.json")
    args = parser.parse_args()
    path = str(models.build(SHAPES[args.shape], "q4.safetensors"))
    found = {"shape": args.shape, **measure(path, args.tokens, args.forks, args.kv)}
    print(json.dumps(found, indent=1))
    if args.save:
        save(f"forks_{args.shape}", {"machine": machine(), **found})


if __name__ == "__main__":
    main()
