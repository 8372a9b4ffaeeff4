"""An encoder of a ModelSpec in plain NumPy, one text at a time; the twin of csrc/model/encoder."""

from __future__ import annotations

from typing import Any

import numpy as np

from musespark.reference.forward import Weights, join, mlp, norm


def rows(spec: Any, weights: Weights, tokens: Any, dtype: Any = np.float64) -> np.ndarray:
    """The last layer's rows [len(tokens), hidden], computed in `dtype`."""
    every = {name: np.asarray(value, dtype) for name, value in weights.items()}

    def normed(x: np.ndarray, kind: Any, name: str) -> np.ndarray:
        return norm(x, kind, every.get(name), every.get(f"{name}_bias", 0))

    x = every["embed"][np.asarray(tokens)]
    if spec.token_types:
        x = x + every["token_types"][0]
    if spec.positions:
        x = x + every["positions"][: len(x)]
    x = normed(x, spec.embed_norm, "embed_norm")
    for i, layer in enumerate(spec.layers):
        at = f"layers.{i}."
        w = {name[len(at) :]: value for name, value in every.items() if name.startswith(at)}
        y = normed(attention(x, layer.attention, w), layer.post_attn_norm, f"{at}post_attn_norm")
        x = join(x, y, layer, w.get("attn_residual_gate"))
        x = normed(x, layer.attn_norm, f"{at}attn_norm")
        y = normed(mlp(x, layer.mlp, w), layer.post_mlp_norm, f"{at}post_mlp_norm")
        x = join(x, y, layer, w.get("mlp_residual_gate"))
        x = normed(x, layer.mlp_norm, f"{at}mlp_norm")
    return x


def attention(x: np.ndarray, a: Any, w: Weights) -> np.ndarray:
    """Every row sees every row."""

    def heads(name: str, count: int) -> np.ndarray:
        y = x @ w[name].T + (w[f"{name}_bias"] if a.qkv_bias else 0)
        return np.repeat(y.reshape(len(x), count, a.head_dim), a.heads // count, axis=1)

    q, k, v = heads("q", a.heads), heads("k", a.kv_heads), heads("v", a.kv_heads)
    scores = np.einsum("qhd,khd->hqk", q * a.query_scale, k)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    out = np.einsum("hqk,khd->qhd", p, v).reshape(len(x), -1)
    return out @ w["o"].T + (w["o_bias"] if a.o_bias else 0)


def embed(spec: Any, weights: Weights, tokens: Any, dtype: Any = np.float64) -> np.ndarray:
    """The embedding of one text [hidden]."""
    x = rows(spec, weights, tokens, dtype)
    out = x.mean(0) if spec.pooling == "mean" else x[0]
    return out / max(np.sqrt((out * out).sum()), 1e-12) if spec.normalize else out
