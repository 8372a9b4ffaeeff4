"""A model's forward pass with attention through pages of any format, and attacks on its keys.

The pass is the NumPy reference in float64; attention writes, seals and reads pages with the kernels
of this machine, as an engine does: the first page at 8 bits, the query's own page open. An attack
changes keys and queries where they are ready for the cache, so that attention is the same function
of them and only what is stored differs:

- ``shift``: one constant vector is added to all keys of a KV head: in each channel, with a random
  sign, `size` times the standard deviation of the head's keys, all channels and positions together.
  A softmax does not see it.
- ``scale``: a pair of channels that rope turns together (any pair where there is no rope), `size`
  times as large in keys and as much smaller in queries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np

from musespark._core import testing
from musespark.reference import forward
from musespark.reference.rowwise import Exact

PAGE, CHUNK = 64, 512


@dataclass(frozen=True)
class Attack:
    kind: str = "none"
    size: float = 1.0

    def apply(self, q: np.ndarray, k: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Queries [n, heads, D] and keys [n, kv_heads, D] of a layer, attacked."""
        rng = np.random.default_rng(seed)
        heads, dim = k.shape[1:]
        if self.kind == "shift":
            return q, k + self.size * k.std(axis=(0, 2))[:, None] * rng.choice(
                [-1, 1], (heads, dim)
            )
        if self.kind == "scale":
            factors = np.ones((heads, dim))
            for row in factors:
                pair = rng.integers(dim // 2)
                row[[pair, pair + dim // 2]] = self.size
            return q / np.repeat(factors, q.shape[1] // heads, axis=0), k * factors
        return q, k


def attend_pages(kv: str, q: np.ndarray, k: np.ndarray, v: np.ndarray, a: Any, sinks: Any):
    """Attention of scaled queries [n, heads, D] over k, v [n, kv_heads, D] through pages."""
    dim = -(-a.head_dim // 16) * 16
    frame = Exact.rotation(dim)
    group = a.heads // a.kv_heads
    pad = ((0, 0), (0, 0), (0, dim - a.head_dim))
    q, k, v = ((np.pad(x, pad) @ frame.T).astype(np.float32) for x in (q, k, v))
    out = np.empty_like(q)
    for head in range(a.kv_heads):
        pages = _pages(kv, k[:, head], v[:, head])
        rows = slice(head * group, head * group + group)
        sink = None if sinks is None else np.tile(np.float32(sinks[rows]), len(q))
        found = _attend(pages, np.ascontiguousarray(q[:, rows].reshape(-1, dim)), group, a, sink)
        out[:, rows] = found.reshape(len(q), group, dim)
    return (out.astype(np.float64) @ frame)[..., : a.head_dim]


def _pages(kv: str, keys: np.ndarray, values: np.ndarray) -> list[tuple[str, Any, Any]]:
    """(format, open, sealed) of each page of one KV head."""
    isa, dim, pages = testing.kernel_levels()[0], keys.shape[1], []
    for begin in range(0, len(keys), PAGE):
        form = "kv8" if begin == 0 else kv
        page = np.zeros(testing.open_page_bytes(form, dim), np.uint8)
        count = min(PAGE, len(keys) - begin)
        for slot in range(count):
            testing.write_token(isa, form, slot, keys[begin + slot], values[begin + slot], page)
        sealed = testing.seal_page(isa, form, dim, page) if count == PAGE else None
        pages.append((form, page, sealed))
    return pages


def _attend(pages: list, q: np.ndarray, group: int, a: Any, sink: Any) -> np.ndarray:
    isa, (rows, dim) = testing.kernel_levels()[0], q.shape
    pos = np.repeat(np.arange(rows // group), group)
    low = np.maximum(0, pos - a.window + 1) if a.window else np.zeros_like(pos)
    state = (np.full(rows, -np.inf, np.float32), np.zeros(rows, np.float32), np.zeros_like(q))
    for chunk in range(-(-len(pages) * PAGE // CHUNK)):
        here = pages[8 * chunk : 8 * chunk + 8]
        here = here + [("kv8", None, None)] * (8 - len(here))
        forms, opened, sealed = ([page[i] for page in here] for i in range(3))
        part = testing.attend_chunk(
            isa, forms, q, pos, low, pos, chunk, opened, sealed, a.softcap, dim
        )
        state = testing.attention_merge(isa, *state, *part)
    out = np.empty_like(q)
    testing.attention_finish(isa, *state, sink, dim, out)
    return out


def logits(spec: Any, weights: Any, tokens: np.ndarray, kv: str | None, attack: Attack):
    """float64 [n, vocab]; `kv` None: exact attention."""
    layer = 0
    exact = forward.attend

    def attend(q: Any, k: Any, v: Any, a: Any, sinks: Any, seen: np.ndarray) -> np.ndarray:
        nonlocal layer
        layer += 1
        q, k = attack.apply(q, k, layer)
        run: Callable[..., np.ndarray] = exact if kv is None else _through(kv)
        return run(q, k, v, a, sinks, seen)

    with mock.patch.object(forward, "attend", attend):
        return forward.logits(spec, weights, tokens)


def _through(kv: str) -> Callable[..., np.ndarray]:
    return lambda q, k, v, a, sinks, seen: attend_pages(kv, q, k, v, a, sinks)
