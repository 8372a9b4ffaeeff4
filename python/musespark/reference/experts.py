"""Layers of experts in plain NumPy: routing of each row, experts one after the other.

The twin of ``csrc/ops/experts``. ``m`` is a ``families.spec.MlpSpec`` of kind experts, ``w`` the
layer's tensors by canonical name without ``layers.{i}.``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Weights = Mapping[str, np.ndarray]
Norm = Callable[..., np.ndarray]
Mlp = Callable[[np.ndarray, Any, Weights, str], np.ndarray]


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def route(logits: np.ndarray, m: Any, correction: Any = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """From logits [rows, experts] to experts [rows, k], ascending, and their weights [rows, k]."""
    logits = logits * m.router_scale
    scores = logits
    if m.router == "softmax":
        scores = _softmax(logits)
    elif m.router == "sigmoid":
        scores = 1 / (1 + np.exp(-logits))
    # A stable sort of what is largest first: among equals the lower index comes first.
    order = np.argsort(-(scores + correction), axis=-1, kind="stable")
    chosen = np.sort(order[:, : m.experts_per_token], axis=-1)
    weights = np.take_along_axis(scores, chosen, -1)
    if m.router == "softmax_chosen":
        weights = _softmax(weights)
    elif m.router_renormalize:
        weights = weights / (weights.sum(-1, keepdims=True) + 1e-15)
    return chosen, weights * m.routed_scale


def experts(x: np.ndarray, m: Any, w: Weights, norm: Norm, mlp: Mlp) -> np.ndarray:
    """The layer's output for normed rows x [rows, hidden].

    ``mlp(x, m, w, prefix)`` is a dense MLP, its tensors named with the prefix.
    """
    logits = x @ w["router"].T + w.get("router_bias", 0)
    chosen, weights = route(logits, m, w.get("router_correction", 0))
    inputs = x
    if m.expert_width:
        inputs = norm(x @ w["expert_in"].T, m.expert_in_norm, w.get("expert_in_norm"))
    out = np.zeros_like(inputs)
    for e in range(m.experts):
        rows, slot = np.nonzero(chosen == e)
        if len(rows):
            y = mlp(inputs[rows], m, w, f"experts.{e}.")
            y = norm(y, m.expert_out_norm, w.get("expert_out_norm"))
            out[rows] += weights[rows, slot, None] * y
    if m.expert_width:
        out = out @ w["expert_out"].T
    if m.shared_intermediate:
        shared = mlp(x, m, w, "shared_")
        if m.shared_router:
            shared = shared / (1 + np.exp(-(x @ w["shared_router"])))[:, None]
        out = out + shared
    return out
