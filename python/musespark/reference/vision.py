"""A vision tower of a VisionSpec in plain NumPy, one frame at a time; the twin of
csrc/model/vision_tower, written from the places of patches, not from the core's plan."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from musespark.reference.forward import Weights, activate, inverse_frequencies, mlp, norm


def encode(
    spec: Any, weights: Weights, patches: np.ndarray, grids: Iterable, dtype: Any = np.float64
) -> list[np.ndarray]:
    """Rows [tokens, width] of the head and of each tap, computed in `dtype`.

    ``patches`` [n, patch_dim] in the tower's order; ``grids``: (frames, height, width) each.
    """
    every = {name: np.asarray(value, dtype) for name, value in weights.items()}
    outputs: list[list[np.ndarray]] = [[] for _ in range(1 + len(spec.taps))]
    at = 0
    for frames, height, width in grids:
        for _ in range(frames):
            frame = np.asarray(patches[at : at + height * width], dtype)
            at += height * width
            for out, rows in zip(outputs, _frame(spec, every, frame, height, width), strict=True):
                out.append(rows)
    return [np.concatenate(out) for out in outputs]


def order(spec: Any, height: int, width: int) -> np.ndarray:
    """[height * width, 2]: (y, x) of the patches of a frame, in the order in which they come."""
    y, x = np.mgrid[:height, :width]
    places = np.stack([y, x], -1)
    if spec.order == "raster":
        return places.reshape(-1, 2)
    m = spec.merge
    blocks = places.reshape(height // m, m, width // m, m, 2).swapaxes(1, 2)
    return blocks.reshape(-1, 2)


def axis_weights(kind: str, size: int, side: int) -> np.ndarray:
    """float64 [size, side]: what each of `size` patches of an axis takes of the table's entries.

    Places are float32 numbers by definition, as transformers has them.
    """
    f32 = np.float32
    index = np.arange(size, dtype=f32)
    weights = np.zeros((size, side))
    if kind == "table":
        return np.eye(side)[:size]
    if kind == "buckets":
        at = np.minimum(index * (f32(1) / f32(size)), f32(1 - 1e-6))
        boundaries = (1 / side + np.arange(side - 1) * (1 / side)).astype(f32)
        weights[np.arange(size), np.searchsorted(boundaries, at, side="right")] = 1
        return weights
    if kind == "bilinear_area":
        scale = side / size
        support = max(scale, 1.0)
        center = scale * (np.arange(size) + 0.5)
        distance = np.abs(np.arange(side) + 0.5 - center[:, None]) / support
        weights = np.maximum(1 - distance, 0)
        return weights / weights.sum(1, keepdims=True)
    if kind == "bilinear_corners":
        at = index * f32(side - 1) / f32(max(size - 1, 1))
    else:
        at = (index + f32(0.5)) * f32(side) / f32(size) - f32(0.5)
    return np.maximum(1 - np.abs(np.arange(side) - at.astype(np.float64)[:, None]), 0)


def positions(spec: Any, table: np.ndarray, height: int, width: int) -> np.ndarray:
    """What the patches of a frame take of the table, [height * width, hidden] in raster order."""
    side, kind = spec.positions.side, spec.positions.kind
    rows, cols = (width, height) if spec.positions.turned else (height, width)
    entries = table.reshape(side, side, -1)
    y = axis_weights(kind, rows, side).astype(table.dtype)
    x = axis_weights(kind, cols, side).astype(table.dtype)
    return np.einsum("ys,xt,stc->yxc", y, x, entries).reshape(rows * cols, -1)


def _rotated(spec: Any, x: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Axial positions on x [n, heads, head_dim]; places [n, 2] are (y, x)."""

    class Axis:
        dim, theta, scaling = x.shape[-1] // 2, spec.rope.theta, "none"

    outer, inner = places.T[::-1] if spec.rope.columns_first else places.T
    at = np.stack([outer, inner], -1).astype(np.float32) + np.float32(spec.rope.first)
    angle = (at[:, :, None] * inverse_frequencies(Axis)).reshape(len(x), 1, -1)
    cos, sin = np.cos(angle.astype(np.float64)), np.sin(angle.astype(np.float64))
    cos, sin = cos.astype(x.dtype), sin.astype(x.dtype)
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def _attention(spec: Any, x: np.ndarray, a: Any, w: Weights, places: np.ndarray) -> np.ndarray:
    """Every row sees the rows of its window, or all of the frame."""

    def heads(name: str) -> np.ndarray:
        y = x @ w[name].T + (w[f"{name}_bias"] if a.qkv_bias else 0)
        return y.reshape(len(x), a.heads, a.head_dim)

    q, k, v = heads("q"), heads("k"), heads("v")
    if a.rope >= 0:
        q, k = _rotated(spec, q, places), _rotated(spec, k, places)
    scores = np.einsum("qhd,khd->hqk", q * a.query_scale, k)
    if a.window:
        window = places // a.window
        same = (window[:, None] == window[None]).all(-1)
        scores = np.where(same, scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    out = np.einsum("hqk,khd->qhd", p, v).reshape(len(x), -1)
    return out @ w["o"].T + (w["o_bias"] if a.o_bias else 0)


def _named(every: Weights, prefix: str) -> dict[str, np.ndarray]:
    return {name[len(prefix) :]: w for name, w in every.items() if name.startswith(prefix)}


def _normed(x: np.ndarray, kind: Any, w: Weights, name: str) -> np.ndarray:
    return norm(x, kind, w.get(name), w.get(f"{name}_bias", 0))


def _head(spec: Any, head: Any, w: Weights, x: np.ndarray, height: int, width: int) -> np.ndarray:
    """x: rows of the patches in raster order."""
    m = spec.merge
    x = _normed(x, head.norm, w, "norm")
    blocks = x.reshape(height // m, m, width // m, m, -1).swapaxes(1, 2)
    blocks = blocks.reshape(-1, m * m, x.shape[-1])
    if head.merge == "average":
        x = blocks.mean(1)
    elif head.merge == "interleave":
        x = blocks.swapaxes(1, 2).reshape(len(blocks), -1)
    else:
        x = blocks.reshape(len(blocks), -1)
    x = _normed(x, head.merged_norm, w, "merged_norm")
    for i in range(len(head.widths)):
        x = x @ w[f"{i}"].T + (w[f"{i}_bias"] if head.bias else 0)
        if i + 1 < len(head.widths):
            x = activate(head.activation, x)
    return _normed(x, head.out_norm, w, "out_norm")


def _frame(
    spec: Any, every: Weights, patches: np.ndarray, height: int, width: int
) -> list[np.ndarray]:
    places = order(spec, height, width)
    raster = places[:, 0] * width + places[:, 1]
    x = patches @ every["patch"].T + (every["patch_bias"] if spec.patch_bias else 0)
    first = int(spec.class_token)
    if spec.positions.side:
        x = x + positions(spec, every["positions"][first:], height, width)[raster]
    if spec.class_token:
        x = np.concatenate([every["class_token"][None] + every["positions"][:1], x])
    x = _normed(x, spec.embed_norm, every, "embed_norm")
    outputs = []
    taps = {tap.layer: j for j, tap in enumerate(spec.taps)}
    back = first + np.argsort(raster)

    def read(head: Any, prefix: str) -> np.ndarray:
        return _head(spec, head, _named(every, prefix), x[back], height, width)

    for i, layer in enumerate(spec.layers):
        w = _named(every, f"layers.{i}.")
        y = _normed(x, layer.attn_norm, w, "attn_norm")
        x = x + _attention(spec, y, layer.attention, w, places)
        x = x + mlp(_normed(x, layer.mlp_norm, w, "mlp_norm"), layer.mlp, w)
        if i in taps:
            outputs.append(read(spec.taps[taps[i]].head, f"taps.{taps[i]}."))
    return [read(spec.head, "head."), *outputs]
