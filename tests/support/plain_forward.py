"""A plain float64 forward pass over a ModelSpec, for tests: no cache, no chunks, no packing.

Independent of ``musespark.reference`` and of the core; the golden fixtures check it against
transformers, and it is the oracle of the stories260K test.
"""

from __future__ import annotations

import math

import numpy as np

_ERF = np.vectorize(math.erf)


def covers(spec):
    """Whether this file knows all that a spec says: what part 2 added is not written here again."""
    return all(
        layer.mlp.kind == "dense"
        and not (layer.residual_gates or layer.attention.joint_qk_norm or layer.attention.sinks)
        and layer.residual_scale == 1.0
        and layer.attn_norm.kind != "layer"
        and layer.attention.out_norm.kind == "none"
        for layer in spec.layers
    ) and all(rope.scaling != "factors" for rope in spec.ropes)


def _norm(x, spec, weight):
    if spec.kind == "none":
        return x
    y = x / np.sqrt((x * x).mean(-1, keepdims=True) + spec.eps)
    if spec.kind == "rms_scaleless":
        return y
    return y * (1.0 + weight if spec.kind == "rms_centered" else weight)


def _activate(kind, x):
    if kind == "silu":
        return x / (1.0 + np.exp(-x))
    if kind == "gelu":
        return 0.5 * x * (1.0 + _ERF(x / math.sqrt(2.0)))
    assert kind == "gelu_tanh", kind
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def _frequencies(rope):
    exponents = np.arange(0, rope.dim, 2) / rope.dim
    freq = rope.theta**-exponents
    if rope.scaling == "linear":
        return freq / rope.factor
    if rope.scaling == "llama3":
        wave = 2 * np.pi / freq
        smooth = (rope.original_context / wave - rope.low_freq_factor) / (
            rope.high_freq_factor - rope.low_freq_factor
        )
        smooth = np.clip(smooth, 0.0, 1.0)
        return (1 - smooth) * freq / rope.factor + smooth * freq
    if rope.scaling == "yarn":

        def turns_at(beta):
            return (rope.dim * math.log(rope.original_context / (beta * 2 * math.pi))) / (
                2 * math.log(rope.theta)
            )

        low = max(math.floor(turns_at(rope.beta_fast)), 0)
        high = min(math.ceil(turns_at(rope.beta_slow)), rope.dim - 1)
        high = high + 0.001 if high == low else high
        ramp = np.clip((np.arange(rope.dim // 2) - low) / (high - low), 0.0, 1.0)
        return freq / rope.factor * ramp + freq * (1 - ramp)
    return freq


def _rotate(x, rope):
    """x [positions, heads, head_dim], pairs (i, i + dim/2) or neighbours."""
    angle = np.arange(x.shape[0])[:, None] * _frequencies(rope)
    cos = np.cos(angle)[:, None] * rope.attention_factor
    sin = np.sin(angle)[:, None] * rope.attention_factor
    half = rope.dim // 2
    if rope.interleaved:
        a, b = x[..., 0 : rope.dim : 2], x[..., 1 : rope.dim : 2]
        turned = np.stack([a * cos - b * sin, b * cos + a * sin], -1)
        return np.concatenate([turned.reshape(*x.shape[:-1], -1), x[..., rope.dim :]], -1)
    a, b = x[..., :half], x[..., half : rope.dim]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., rope.dim :]], -1)


def _attention(spec, layer, w, x):
    a, n = layer.attention, x.shape[0]

    def project(name, heads):
        y = x @ w[name].T + w.get(f"{name}_bias", 0.0)
        return y.reshape(n, heads, a.head_dim)

    q, k, v = project("q", a.heads), project("k", a.kv_heads), project("v", a.kv_heads)
    q, k = _norm(q, a.q_norm, w.get("q_norm")), _norm(k, a.k_norm, w.get("k_norm"))
    if a.rope >= 0:
        q, k = _rotate(q, spec.ropes[a.rope]), _rotate(k, spec.ropes[a.rope])
    share = a.heads // a.kv_heads
    k, v = np.repeat(k, share, axis=1), np.repeat(v, share, axis=1)
    scores = np.einsum("qhd,khd->hqk", q * a.query_scale, k)
    if a.softcap:
        scores = a.softcap * np.tanh(scores / a.softcap)
    distance = np.arange(n)[:, None] - np.arange(n)[None]
    seen = distance >= 0
    if a.window:
        seen &= distance < a.window
    scores = np.where(seen, scores, -np.inf)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    scores /= scores.sum(-1, keepdims=True)
    out = np.einsum("hqk,khd->qhd", scores, v).reshape(n, -1)
    if a.output_gate:
        out = out / (1.0 + np.exp(-(x @ w["attn_gate"].T)))
    return out @ w["o"].T + w.get("o_bias", 0.0)


def forward(spec, weights, tokens):
    """Logits float64 [len(tokens), vocab]; `weights` is canonical name -> array."""
    w64 = {name: np.asarray(value, np.float64) for name, value in weights.items()}
    x = w64["embed"][np.asarray(tokens)] * spec.embed_scale
    x = _norm(x, spec.embed_norm, None)
    for i, layer in enumerate(spec.layers):
        prefix = f"layers.{i}."
        w = {k[len(prefix) :]: v for k, v in w64.items() if k.startswith(prefix)}
        y = _attention(spec, layer, w, _norm(x, layer.attn_norm, w.get("attn_norm")))
        x = x + _norm(y, layer.post_attn_norm, w.get("post_attn_norm"))
        y = _norm(x, layer.mlp_norm, w.get("mlp_norm"))
        up = y @ w["up"].T + w.get("up_bias", 0.0)
        if layer.mlp.gated:
            gate = y @ w["gate"].T + w.get("gate_bias", 0.0)
            inner = _activate(layer.mlp.activation, gate) * up
        else:
            inner = _activate(layer.mlp.activation, up)
        y = inner @ w["down"].T + w.get("down_bias", 0.0)
        x = x + _norm(y, layer.post_mlp_norm, w.get("post_mlp_norm"))
    x = _norm(x, spec.final_norm, w64.get("final_norm"))
    logits = spec.logit_scale * (x @ w64.get("head", w64["embed"]).T)
    cap = spec.logit_softcap
    return cap * np.tanh(logits / cap) if cap else logits
