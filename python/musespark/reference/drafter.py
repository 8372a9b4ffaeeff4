"""A block drafter in plain NumPy: what ``csrc/model/drafter.h`` computes, in one piece, no cache.

``spec`` is a ``families.spec.ModelSpec`` with a ``block``; ``weights`` maps its canonical tensor
names to arrays. Matrices are [outputs, inputs].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from musespark.reference.forward import Weights, attend, join, mlp, norm, rotate


def context_rows(spec: Any, weights: Weights, states: np.ndarray) -> np.ndarray:
    """[positions, hidden] of what the target's layers gave, [positions, layers * hidden]."""
    return norm(states @ weights["context"].T, spec.context_norm, weights["context_norm"])


def seen(context: int, block: int, window: int) -> np.ndarray:
    """bool [block, context + block]: a row of the block sees all of it, and with a window the
    ``window - 1`` positions before itself."""
    query, key = np.arange(context, context + block)[:, None], np.arange(context + block)[None]
    return (query - key < window) if window else np.ones((block, context + block), bool)


def draft_rows(
    spec: Any, weights: Weights, embeds: np.ndarray, states: np.ndarray, first: int = 0
) -> np.ndarray:
    """What the head reads, [block, hidden]: row i is of the token i positions behind the last.

    ``embeds`` [block, hidden]: the target's embeddings, not normed, of the text's last token and of
    masks. ``states``: of the positions from ``first`` on to the one before the last token's.
    """
    context, block = context_rows(spec, weights, states), len(embeds)
    places = np.repeat(first + np.arange(len(context) + block)[:, None], 3, axis=1)
    x = embeds
    for i, layer in enumerate(spec.layers):
        at = f"layers.{i}."
        w = {name[len(at) :]: value for name, value in weights.items() if name.startswith(at)}
        rows = norm(x, layer.attn_norm, w["attn_norm"])
        x = join(x, _attention(rows, context, layer.attention, w, spec.ropes, places), layer, None)
        x = join(x, mlp(norm(x, layer.mlp_norm, w["mlp_norm"]), layer.mlp, w), layer, None)
    return norm(x, spec.final_norm, weights["final_norm"])


def _attention(
    rows: np.ndarray, context: np.ndarray, a: Any, w: Weights, ropes: Any, places: np.ndarray
) -> np.ndarray:
    """Queries of the block's normed rows over keys and values of the context and the block."""
    both = np.concatenate([context, rows])

    def heads(of: np.ndarray, name: str, count: int) -> np.ndarray:
        return (of @ w[name].T).reshape(len(of), count, a.head_dim)

    q = norm(heads(rows, "q", a.heads), a.q_norm, w.get("q_norm"))
    k = norm(heads(both, "k", a.kv_heads), a.k_norm, w.get("k_norm"))
    if a.rope >= 0:
        q, k = rotate(q, ropes[a.rope], places[-len(rows) :]), rotate(k, ropes[a.rope], places)
    visible = seen(len(context), len(rows), a.window)
    out = attend(q * a.query_scale, k, heads(both, "v", a.kv_heads), a, None, visible)
    return out.reshape(len(rows), -1) @ w["o"].T
