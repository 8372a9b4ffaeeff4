"""musespark itself, timed as ``musespark bench`` does. Its times hold the greedy choices.
MUSESPARK_BENCH_KV: the format of its cache."""

from __future__ import annotations

import os

from protocol import serve, token_ids

import musespark
from musespark.cli.bench import prefill_seconds, step_seconds


class Ours:
    def __init__(self, path: str, threads: int, context: int):
        self._model = musespark.load(
            path,
            kv=os.environ.get("MUSESPARK_BENCH_KV", "auto"),
            threads=threads,
            context=context,
            prefix_cache=False,
            progress=False,
        )
        info = self._model.info
        self.info = {
            "version": musespark.__version__,
            "isa": info.isa,
            "kv": info.kv,
            "kv_bytes_per_token": info.kv_bytes_per_token,
        }

    def prefill(self, tokens: int) -> float:
        return prefill_seconds(self._model, tokens)

    def step(self, rows: int, steps: int) -> float:
        return step_seconds(self._model, rows, steps)

    def deep(self, tokens: int, steps: int) -> tuple[float, float]:
        count = {"max_new_tokens": steps + 1, "min_new_tokens": steps + 1, "temperature": 0}
        done = self._model.generate(token_ids(tokens, 100_000), **count).timings
        return done.prefill_s, done.decode_s / steps


if __name__ == "__main__":
    serve(Ours)
