"""llama.cpp through llama-cpp-python's low-level API. Sampling is no part of its times; flash
attention is on, ubatch is 512. MUSESPARK_BENCH_KV: the type of its cache, f16 or q8_0."""

from __future__ import annotations

import ctypes
import os
import time

import llama_cpp as lib
from protocol import serve, token_ids

_MOST_ROWS = 32
_TYPES = {"f16": 1, "q8_0": 8}  # ggml_type


@lib.llama_log_callback
def _quiet(level, text, data):
    pass


class LlamaCpp:
    def __init__(self, path: str, threads: int, context: int):
        lib.llama_log_set(_quiet, ctypes.c_void_p(0))
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = lib.llama_model_load_from_file(path.encode(), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self._vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, 512, 512
        params.n_seq_max, params.kv_unified = _MOST_ROWS, True
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = 1
        cache = os.environ.get("MUSESPARK_BENCH_KV", "f16")
        params.type_k = params.type_v = _TYPES[cache]
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError("llama.cpp cannot make a context")
        self._batch = lib.llama_batch_init(512, 0, 1)
        system = lib.llama_print_system_info().decode()
        self.info = {"version": lib.__version__, "system": system, "kv": cache}

    def _evaluate(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Rows of (token, position, sequence, whether its logits are wanted)."""
        self._batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            self._batch.token[i], self._batch.pos[i] = token, position
            self._batch.n_seq_id[i], self._batch.logits[i] = 1, wanted
            self._batch.seq_id[i][0] = sequence
        status = lib.llama_decode(self._context, self._batch)
        if status:
            raise RuntimeError(f"llama_decode: status {status}")
        lib.llama_synchronize(self._context)

    def _clear(self) -> None:
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)

    def prefill(self, tokens: int) -> float:
        self._clear()
        ids = token_ids(tokens, self._vocab)
        start = time.perf_counter()
        for past in range(0, tokens, 512):
            part = ids[past : past + 512]
            self._evaluate([(t, past + i, 0, past + i + 1 == tokens) for i, t in enumerate(part)])
        return time.perf_counter() - start

    def step(self, rows: int, steps: int) -> float:
        self._clear()
        ids = token_ids(rows * (steps + 1), self._vocab)

        def one(position: int) -> None:
            first = position * rows
            self._evaluate([(ids[first + row], position, row, True) for row in range(rows)])

        one(0)
        start = time.perf_counter()
        for position in range(1, steps + 1):
            one(position)
        return (time.perf_counter() - start) / steps

    def deep(self, tokens: int, steps: int) -> tuple[float, float]:
        prefill_s = self.prefill(tokens)
        start = time.perf_counter()
        for position in range(tokens, tokens + steps):
            self._evaluate([(7, position, 0, True)])
        return prefill_s, (time.perf_counter() - start) / steps


if __name__ == "__main__":
    serve(LlamaCpp)
