"""Runs _core.Engine without the Python driver: logits and greedy tokens of weights in memory."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from musespark import _core
from musespark.families.spec import ModelSpec

Packed = dict[str, tuple[str, int, int, np.ndarray]]


def pack_weights(weights: dict[str, np.ndarray], fmt: str = "f32") -> Packed:
    """Canonical float32 weights as the engine takes them; vectors stay as they are."""
    out: Packed = {}
    for name, value in weights.items():
        value = np.ascontiguousarray(value, np.float32)
        if value.ndim == 1:
            out[name] = ("f32", 1, value.size, aligned(value.nbytes).view(np.float32))
            out[name][3][:] = value
            continue
        data = aligned(_core.packed_nbytes(fmt, *value.shape))
        _core.pack(fmt, value, dtype="f32", out=data)
        out[name] = (fmt, *value.shape, data)
    return out


def aligned(nbytes: int) -> np.ndarray:
    """Zero bytes at a 64-byte boundary, as the core reads them in place."""
    raw = np.zeros(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]


def engine(spec: ModelSpec, tensors: Packed, *, context: int, kv: str = "f32", **more: Any) -> Any:
    """A core engine with one thread and room for one sequence of `context` tokens."""
    settings: dict[str, Any] = {"threads": 1, "memory_budget": 256 << 20} | more
    return _core.Engine(asdict(spec), tensors, context=context, kv=kv, **settings)


def _drain(core: Any, request: int) -> tuple[list[int], list[np.ndarray]]:
    tokens: list[int] = []
    rows: list[np.ndarray] = []
    while core.has_work():
        for event in core.run_until(0.5):
            assert event[1] == request
            if event[0] == "tokens":
                tokens += event[2]
            elif event[0] == "logits":
                rows.append(event[3])
            else:
                assert event[2] in ("length", "stop"), event
    return tokens, rows


def logits(core: Any, tokens: np.ndarray) -> np.ndarray:
    """float32 [n, vocab]: the logits at every position."""
    request = core.submit(np.asarray(tokens, np.int32), params={"logits": "all"})
    return np.concatenate(_drain(core, request)[1])


def scores(core: Any, tokens: np.ndarray) -> np.ndarray:
    """float32 [n - 1]: the log-probability of each token but the first."""
    request = core.submit(np.asarray(tokens, np.int32), params={"logits": "score"})
    return np.concatenate(_drain(core, request)[1])


def greedy(core: Any, prompt: np.ndarray, count: int) -> list[int]:
    """`count` tokens that follow the prompt, the most likely each time."""
    params = {"max_new_tokens": count, "temperature": 0.0}
    return _drain(core, core.submit(np.asarray(prompt, np.int32), params=params))[0]
