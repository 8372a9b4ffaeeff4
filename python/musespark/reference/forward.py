"""The forward pass of a ModelSpec in plain NumPy: whole sequences, no cache, no chunks, no packing.

``logits(spec, weights, tokens)`` is what ``csrc/model`` computes, in the order it is written in
papers. ``spec`` is a ``families.spec.ModelSpec`` (anything with its attributes); ``weights`` maps
the canonical tensor names (``csrc/model/README.md``) to arrays. Matrices are [outputs, inputs].
Rows given in place of embeddings (``csrc/model/given_rows.h``) are objects with its fields: first,
count, rows, taps, places (arrays, or None for the last two) and advance.
A LoRA adapter is further weights: ``<matrix>.lora_a`` [rank, inputs] and ``<matrix>.lora_b``
[outputs, rank], its scale multiplied in; a control vector is ``layers.<i>.control`` [hidden].

Only the rope tables follow the core's rounding: frequencies and angles are float32 numbers by
definition (transformers computes them so), and at position 1000 that rounding is already 3e-5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from musespark.reference.experts import experts

Weights = Mapping[str, np.ndarray]
_erf = np.vectorize(math.erf, otypes=[float])


def norm(x: np.ndarray, spec: Any, weight: np.ndarray | None, bias: Any = 0.0) -> np.ndarray:
    """Norms the last axis; ``weight`` as the checkpoint stores it (zero-centred kinds add 1)."""
    if spec.kind == "none":
        return x
    if spec.kind == "layer":
        y = x - x.mean(-1, keepdims=True)
        return y / np.sqrt((y * y).mean(-1, keepdims=True) + spec.eps) * weight + bias
    if spec.kind == "rms_input_scaled":
        x = x * (1 + weight)
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + spec.eps)
    if spec.kind == "rms":
        return y * weight
    return y * (1 + weight) if spec.kind == "rms_centered" else y


def activate(kind: str, x: np.ndarray) -> np.ndarray:
    """The activation functions of MlpSpec."""
    if kind == "silu":
        return x / (1 + np.exp(-x))
    if kind == "gelu":
        return 0.5 * x * (1 + _erf(x / math.sqrt(2)).astype(x.dtype))
    if kind == "gelu_tanh":
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if kind == "relu":
        return np.maximum(x, 0)
    if kind == "relu2":
        return np.maximum(x, 0) ** 2
    if kind == "quick_gelu":
        return x / (1 + np.exp(-1.702 * x))
    raise ValueError(f"activation {kind!r}")


def inverse_frequencies(rope: Any, length: int | None = None) -> np.ndarray:
    """float32 [dim / 2], radians per position, as transformers' modeling_rope_utils makes them.

    ``length``: of the whole sequence; None is beyond ``original_context``.
    """
    f32 = np.float32
    half = rope.dim // 2
    exponent = (np.arange(half) * 2).astype(f32) / f32(rope.dim)
    frequency = (np.float64(rope.theta) ** exponent.astype(np.float64)).astype(f32)
    if rope.scaling == "factors":
        short = rope.short_factors and length is not None and length <= rope.original_context
        factors = rope.short_factors if short else rope.factors
        return f32(1) / (np.asarray(factors, f32) * frequency)
    inverse = f32(1) / frequency
    if rope.scaling == "linear":
        return inverse / f32(rope.factor)
    if rope.scaling == "llama3":
        context = rope.original_context
        wavelength = f32(1) / inverse * f32(2 * math.pi)
        smooth = (f32(1) / wavelength * f32(context) - f32(rope.low_freq_factor)) / f32(
            rope.high_freq_factor - rope.low_freq_factor
        )
        blended = (1 - smooth) * inverse / f32(rope.factor) + smooth * inverse
        long = wavelength > f32(context / rope.low_freq_factor)
        short = wavelength < f32(context / rope.high_freq_factor)
        return np.where(long, inverse / f32(rope.factor), np.where(short, inverse, blended))
    if rope.scaling == "yarn":

        def dimension(rotations: float) -> float:
            turns = math.log(rope.original_context / (rotations * 2 * math.pi))
            return rope.dim * turns / (2 * math.log(rope.theta))

        low = max(math.floor(dimension(rope.beta_fast)), 0)
        high = float(min(math.ceil(dimension(rope.beta_slow)), rope.dim - 1))
        high += 0.001 if low == high else 0
        ramp = np.clip((np.arange(half, dtype=f32) - f32(low)) / f32(high - low), 0, 1)
        keep = 1 - ramp
        return f32(1) / (f32(rope.factor) * frequency) * (1 - keep) + inverse * keep
    return inverse


def rope_places(positions: int, given: Sequence[Any] = ()) -> np.ndarray:
    """int [positions, 3]: the rotary position of each row along each axis."""
    places = np.empty((positions, 3), np.int64)
    row = at = 0
    for span in given:
        before = span.first - row
        places[row : span.first] = (at + np.arange(before))[:, None]
        at += before
        own = np.arange(span.count)[:, None] if span.places is None else span.places
        places[span.first : span.first + span.count] = at + own
        row, at = span.first + span.count, at + span.advance
    places[row:] = (at + np.arange(positions - row))[:, None]
    return places


def rope_tables(rope: Any, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin, float64 [positions, dim / 2], of positions along each axis, int [positions, 3];
    the angle is a float32 product."""
    inverse = inverse_frequencies(rope, len(places))
    axes = np.asarray(rope.axes or [0] * (rope.dim // 2))
    angle = (places[:, axes].astype(np.float32) * inverse).astype(np.float64)
    return np.cos(angle) * rope.attention_factor, np.sin(angle) * rope.attention_factor


def rotate(x: np.ndarray, rope: Any, places: np.ndarray) -> np.ndarray:
    """Rotary positions on x [positions, heads, head_dim]; floats past dim stay."""
    cos, sin = (table[:, None].astype(x.dtype) for table in rope_tables(rope, places))
    half = rope.dim // 2
    out = x.copy()
    if rope.interleaved:
        a, b = slice(0, rope.dim, 2), slice(1, rope.dim, 2)
    else:
        a, b = slice(0, half), slice(half, rope.dim)
    out[..., a] = x[..., a] * cos - x[..., b] * sin
    out[..., b] = x[..., b] * cos + x[..., a] * sin
    return out


def visible(positions: int, window: int, mutual: Sequence[Any] = ()) -> np.ndarray:
    """bool [query, key]: a query sees itself and what is before it, with a window the last ones;
    rows of a span in ``mutual`` also those behind them in it."""
    distance = np.arange(positions)[:, None] - np.arange(positions)[None]
    seen = distance >= 0
    for span in mutual:
        rows = slice(span.first, span.first + span.count)
        seen[rows, rows] = True
    return seen & (distance < window) if window else seen


def attend(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, a: Any, sinks: Any, seen: np.ndarray
) -> np.ndarray:
    """Attention of scaled queries q [n, heads, D] over k, v [n, kv_heads, D] -> [n, heads, D];
    ``seen`` bool [n, n] says which query sees which key."""
    out = np.empty_like(q)
    for head in range(a.heads):
        kv_head = head // (a.heads // a.kv_heads)
        scores = q[:, head] @ k[:, kv_head].T
        if a.softcap:
            scores = a.softcap * np.tanh(scores / a.softcap)
        scores = np.where(seen, scores, -np.inf)
        top = scores.max(-1, keepdims=True)
        if sinks is not None:
            top = np.maximum(top, sinks[head])
        p = np.exp(scores - top)
        total = p.sum(-1, keepdims=True)
        if sinks is not None:
            total = total + np.exp(sinks[head] - top)
        out[:, head] = p @ v[:, kv_head] / total
    return out


def product(x: np.ndarray, w: Weights, name: str, bias: bool = False) -> np.ndarray:
    """x . W^T, the bias where there is one, then what an adapter adds: (x . A^T) . B^T."""
    y = x @ w[name].T + (w[f"{name}_bias"] if bias else 0)
    if f"{name}.lora_a" in w:
        y = y + (x @ w[f"{name}.lora_a"].T) @ w[f"{name}.lora_b"].T
    return y


def attention(
    x: np.ndarray, a: Any, w: Weights, ropes: Any, given: Sequence[Any] = (), mutual: bool = False
) -> np.ndarray:
    """The attention half of a layer, from normed rows to what post_attn_norm takes."""

    def normed(rows: np.ndarray, kind: Any, name: str) -> np.ndarray:
        return norm(rows, kind, w.get(name), w.get(f"{name}_bias", 0))

    def heads(name: str, count: int, kind: Any) -> np.ndarray:
        y = product(x, w, name, a.qkv_bias)
        if kind is None:
            return y.reshape(len(x), count, a.head_dim)
        if a.joint_qk_norm:
            return normed(y, kind, f"{name}_norm").reshape(len(x), count, a.head_dim)
        return normed(y.reshape(len(x), count, a.head_dim), kind, f"{name}_norm")

    q, k = heads("q", a.heads, a.q_norm), heads("k", a.kv_heads, a.k_norm)
    v = heads("v", a.kv_heads, None)
    if a.rope >= 0:
        places = rope_places(len(x), given)
        q, k = (rotate(rows, ropes[a.rope], places) for rows in (q, k))
    seen = visible(len(x), a.window, given if mutual else ())
    out = attend(q * a.query_scale, k, v, a, w["sinks"] if a.sinks else None, seen)
    out = normed(out, a.out_norm, "out_norm").reshape(len(x), -1)
    if a.output_gate:
        out = out / (1 + np.exp(-product(x, w, "attn_gate")))
    return product(out, w, "o", a.o_bias)


def mlp(x: np.ndarray, m: Any, w: Weights, prefix: str = "") -> np.ndarray:
    """A dense MLP, from normed rows to what post_mlp_norm takes; tensors ``<prefix>gate``, ..."""

    def linear(name: str, rows: np.ndarray) -> np.ndarray:
        return product(rows, w, f"{prefix}{name}", m.bias)

    up = linear("up", x)
    if m.gated and m.swiglu_limit:
        gate = np.minimum(linear("gate", x), m.swiglu_limit)
        up = np.clip(up, -m.swiglu_limit, m.swiglu_limit) + 1
        hidden = gate / (1 + np.exp(-m.swiglu_alpha * gate)) * up
    elif m.gated:
        hidden = activate(m.activation, linear("gate", x)) * up
    else:
        hidden = activate(m.activation, up)
    return linear("down", hidden)


def join(x: np.ndarray, y: np.ndarray, layer: Any, gate: np.ndarray | None) -> np.ndarray:
    """How a half of a layer joins the residual stream; ``gate`` where the layer has such gates."""
    if gate is None:
        return x + layer.residual_scale * y
    w = gate / layer.residual_temperature
    beta = 1 / (1 + np.exp(-w))
    alpha = np.sqrt(np.maximum((1 + beta) / (1 + np.exp(w)), 1e-3))
    return alpha * x + beta * y


def _add(x: np.ndarray, given: Sequence[Any], tap: int) -> None:
    """What the taps of a layer add to the given rows, in place."""
    for span in given:
        if tap < len(span.taps or ()):
            x[span.first : span.first + span.count] += span.taps[tap]


def residuals(
    spec: Any, weights: Weights, tokens: Any, dtype: Any = np.float64, given: Sequence[Any] = ()
) -> Iterator[np.ndarray]:
    """The residual stream [len(tokens), hidden] after each layer, its control vector added. As
    :func:`logits`."""
    every = {name: np.asarray(value, dtype) for name, value in weights.items()}

    def normed(rows: np.ndarray, kind: Any, name: str) -> np.ndarray:
        return norm(rows, kind, every.get(name), every.get(f"{name}_bias", 0))

    known = np.maximum(np.asarray(tokens), 0)
    x = norm(every["embed"][known] * dtype(spec.embed_scale), spec.embed_norm, None)
    for span in given:
        x[span.first : span.first + span.count] = span.rows
    for i, layer in enumerate(spec.layers):
        at = f"layers.{i}."
        w = {name[len(at) :]: value for name, value in every.items() if name.startswith(at)}
        y = normed(x, layer.attn_norm, f"{at}attn_norm")
        y = attention(y, layer.attention, w, spec.ropes, given, spec.mutual_rows)
        y = normed(y, layer.post_attn_norm, f"{at}post_attn_norm")
        x = join(x, y, layer, w.get("attn_residual_gate"))
        y = normed(x, layer.mlp_norm, f"{at}mlp_norm")
        if layer.mlp.kind == "experts":
            y = experts(y, layer.mlp, w, norm, mlp)
        else:
            y = mlp(y, layer.mlp, w)
        y = normed(y, layer.post_mlp_norm, f"{at}post_mlp_norm")
        x = join(x, y, layer, w.get("mlp_residual_gate"))
        _add(x, given, i)
        x = x + w.get("control", 0)
        yield x


def logits(
    spec: Any, weights: Weights, tokens: Any, dtype: Any = np.float64, given: Sequence[Any] = ()
) -> np.ndarray:
    """Logits [len(tokens), vocab] after every token, computed in `dtype`. ``given``: by position;
    the tokens there are not looked at."""
    *_, x = residuals(spec, weights, tokens, dtype, given)
    x = norm(x, spec.final_norm, weights.get("final_norm"), weights.get("final_norm_bias", 0))
    head = np.asarray(weights["embed" if spec.tied_head else "head"], dtype)
    out = x.astype(dtype) @ head.T * dtype(spec.logit_scale)
    cap = spec.logit_softcap
    return cap * np.tanh(out / cap) if cap else out
