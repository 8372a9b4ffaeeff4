"""OpenVINO GenAI's LLMPipeline, token ids in. Its times hold the greedy choice; prefill is the time
to the first token. Weights are repacked at the first inference, so loading ends with that."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai
from protocol import serve, token_ids

_VOCAB = 100_000  # all shapes have more


class OpenVino:
    def __init__(self, path: str, threads: int, context: int):
        self._pipeline = genai.LLMPipeline(
            path, "CPU", INFERENCE_NUM_THREADS=threads, PERFORMANCE_HINT="LATENCY"
        )
        self.info = {
            "version": genai.__version__.partition("-")[0],
            "runtime": openvino.__version__,
        }

    def _generate(self, rows: int, tokens: int, new: int) -> tuple[float, Any]:
        ids = np.array([token_ids(tokens, _VOCAB, 7 + 17 * row) for row in range(rows)], np.int64)
        config = genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos = new, True
        config.do_sample = config.apply_chat_template = False
        tokenized = genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        start = time.perf_counter()
        result = self._pipeline.generate(tokenized, config)
        seconds = time.perf_counter() - start
        made = result.perf_metrics.get_num_generated_tokens()
        if made != rows * new:
            raise RuntimeError(f"{made} tokens were made, {rows * new} were asked for")
        return seconds, result.perf_metrics

    def prefill(self, tokens: int) -> float:
        return self._generate(1, tokens, 1)[1].get_ttft().mean / 1e3

    def step(self, rows: int, steps: int) -> float:
        seconds, metrics = self._generate(rows, 1, steps + 1)
        return (seconds - metrics.get_ttft().mean / 1e3) / steps

    def deep(self, tokens: int, steps: int) -> tuple[float, float]:
        seconds, metrics = self._generate(1, tokens, steps + 1)
        prefill_s = metrics.get_ttft().mean / 1e3
        return prefill_s, (seconds - prefill_s) / steps


if __name__ == "__main__":
    serve(OpenVino)
