"""musespark itself, timed as ``musespark bench`` does. Its times hold the greedy choices."""

from __future__ import annotations

from protocol import serve

import musespark
from musespark.cli.bench import prefill_seconds, step_seconds


class Ours:
    def __init__(self, path: str, threads: int, context: int):
        self._model = musespark.load(
            path, threads=threads, context=context, prefix_cache=False, progress=False
        )
        info = self._model.info
        self.info = {"version": musespark.__version__, "isa": info.isa, "kv": info.kv}

    def prefill(self, tokens: int) -> float:
        return prefill_seconds(self._model, tokens)

    def step(self, rows: int, steps: int) -> float:
        return step_seconds(self._model, rows, steps)


if __name__ == "__main__":
    serve(Ours)
