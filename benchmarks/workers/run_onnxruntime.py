"""ONNX Runtime GenAI. Its steps hold the greedy choice."""

from __future__ import annotations

import json
import time

import numpy as np
import onnxruntime_genai as genai
from protocol import serve, token_ids

_VOCAB = 100_000  # all shapes have more


class OnnxRuntime:
    def __init__(self, path: str, threads: int, context: int):
        config = genai.Config(path)
        options = {"session_options": {"intra_op_num_threads": threads}}
        config.overlay(json.dumps({"model": {"decoder": options}}))
        self._model = genai.Model(config)
        self.info = {"version": genai.__version__}

    def _generator(self, rows: int, tokens: int, new: int) -> genai.Generator:
        params = genai.GeneratorParams(self._model)
        length = tokens + new
        params.set_search_options(
            max_length=length, min_length=length, do_sample=False, batch_size=rows
        )
        return genai.Generator(self._model, params)

    def prefill(self, tokens: int) -> float:
        generator = self._generator(1, tokens, 1)
        ids = np.array(token_ids(tokens, _VOCAB), np.int32)
        start = time.perf_counter()
        generator.append_tokens(ids)
        generator.get_logits()
        return time.perf_counter() - start

    def step(self, rows: int, steps: int) -> float:
        generator = self._generator(rows, 1, steps + 2)
        ids = np.array([token_ids(1, _VOCAB, 7 + 17 * row) for row in range(rows)], np.int32)
        generator.append_tokens(ids if rows > 1 else ids[0])
        generator.generate_next_token()  # its logits are the prompt's
        start = time.perf_counter()
        for _ in range(steps):
            generator.generate_next_token()
        return (time.perf_counter() - start) / steps


if __name__ == "__main__":
    serve(OnnxRuntime)
