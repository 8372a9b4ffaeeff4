"""Bytes of keys and values and of steps, by the core's own formulas, of models that need not be
loaded. A spec is a ``families.spec.ModelSpec`` or its dict."""

from __future__ import annotations

import dataclasses
from typing import Any

from musespark import _core

PREFILL_CHUNK = 512  # prompt tokens of one step
MAX_BATCH = 64  # sequences that run at once
# Tokens at a prompt's end from any page of which another prompt can go on, through windows too.
LAST_MESSAGE: int = _core.last_message
LOGGED_QUERIES: int = _core.logged_queries  # last tokens whose attention can be asked for at once


def kv_bytes(spec: Any, kv: str, tokens: int, step: int = PREFILL_CHUNK) -> int:
    """The most bytes of keys and values one sequence of ``tokens`` tokens holds, as the engine
    reserves them: layers with a window count up to their window. ``step``: tokens that are
    computed at once; 1 while it decodes."""
    return _core.kv_bytes(spec_dict(spec), kv=kv, tokens=tokens, step=step)


def kv_bytes_per_token(spec: Any, kv: str) -> float:
    """Bytes a token takes in all layers together once its page is full."""
    return _core.kv_bytes_per_token(spec_dict(spec), kv=kv)


def shared_kv_bytes(spec: Any, kv: str, tokens: int) -> int:
    """Bytes of :func:`kv_bytes` that sequences with the same first ``tokens`` tokens have once."""
    return _core.shared_kv_bytes(spec_dict(spec), kv=kv, tokens=tokens)


def step_bytes(
    spec: Any, *, tokens: int, sequences: int, threads: int, floats: bool, two_forms: bool
) -> int:
    """The most bytes that steps take beside weights, keys and values, with ``sequences`` of up to
    ``tokens`` tokens. ``floats``: weights are f32 or bf16; ``two_forms``:
    q4 and q6 ones read the same input."""
    sizes = {"tokens": tokens, "sequences": min(sequences, MAX_BATCH), "threads": threads}
    rows = PREFILL_CHUNK
    return sum(
        _core.step_memory(
            spec_dict(spec), rows=rows, floats=floats, two_forms=two_forms, **sizes
        ).values()
    )


def spec_dict(spec: Any) -> Any:
    """A ModelSpec as the core takes it."""
    is_value = dataclasses.is_dataclass(spec) and not isinstance(spec, type)
    return dataclasses.asdict(spec) if is_value else spec
