"""Tiny models of odd sizes, random weights, and the forward path of the core without the engine."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np

from musespark import _core
from musespark.families.spec import (
    AttentionSpec,
    LayerSpec,
    MlpSpec,
    ModelSpec,
    NormSpec,
    RopeSpec,
)
from musespark.families.tensors import canonical_shapes
from support.run_engine import aligned

RMS = NormSpec("rms", 1e-5)
CENTERED = NormSpec("rms_centered", 1e-6)
SCALELESS = NormSpec("rms_scaleless", 1e-5)


def llama() -> ModelSpec:
    """Grouped heads, head_dim 12 (padded to 16), rope scaling, hidden no multiple of 64."""
    attention = AttentionSpec(heads=4, kv_heads=2, head_dim=12, rope=0, query_scale=12**-0.5)
    layer = LayerSpec(attention, MlpSpec(intermediate=80), attn_norm=RMS, mlp_norm=RMS)
    rope = RopeSpec(dim=12, theta=500.0, scaling="llama3", factor=8.0, original_context=256)
    return ModelSpec(
        vocab=101, hidden=48, max_context=4096, final_norm=RMS, ropes=[rope], layers=[layer] * 2
    )


def qwen3() -> ModelSpec:
    """Norms over heads, three query heads to one of two KV heads, untied, hidden above 64."""
    attention = AttentionSpec(
        heads=6, kv_heads=2, head_dim=24, rope=0, query_scale=24**-0.5, q_norm=RMS, k_norm=RMS
    )
    layer = LayerSpec(attention, MlpSpec(intermediate=150), attn_norm=RMS, mlp_norm=RMS)
    rope = RopeSpec(dim=24, theta=1e6)
    return ModelSpec(
        vocab=77, hidden=80, max_context=4096, final_norm=RMS, ropes=[rope], layers=[layer] * 2
    )


def muse(window: int = 70) -> ModelSpec:
    """Three sliding layers with rope to a full one without; gates, norms after, scale and cap."""

    def layer(window: int, rope: int) -> LayerSpec:
        attention = AttentionSpec(
            heads=4,
            kv_heads=1,
            head_dim=32,
            window=window,
            rope=rope,
            q_norm=SCALELESS,
            k_norm=SCALELESS,
            query_scale=3.87 * 32**-0.5,
            output_gate=True,
        )
        return LayerSpec(
            attention, MlpSpec(intermediate=96), CENTERED, CENTERED, CENTERED, CENTERED
        )

    return ModelSpec(
        vocab=130,
        hidden=64,
        max_context=4096,
        embed_norm=SCALELESS,
        final_norm=RMS,
        tied_head=True,
        logit_scale=0.7,
        logit_softcap=20.0,
        ropes=[RopeSpec(dim=32, theta=10000.0)],
        layers=[layer(window, 0), layer(window, 0), layer(window, 0), layer(0, -1)],
    )


def everything() -> ModelSpec:
    """What no family of part 1 has, all at once, and two windows."""
    attention = AttentionSpec(
        heads=4,
        kv_heads=2,
        head_dim=20,
        window=33,
        rope=0,
        query_scale=0.3,
        softcap=5.0,
        sinks=True,
        qkv_bias=True,
        o_bias=True,
    )
    ln = NormSpec("layer", 1e-5, bias=True)
    first = LayerSpec(
        attention,
        MlpSpec(activation="gelu", gated=False, bias=True, intermediate=70),
        attn_norm=ln,
        mlp_norm=NormSpec("rms_input_scaled", 1e-5),
    )
    second = LayerSpec(
        replace(attention, window=100, rope=1, q_norm=ln, sinks=False),
        MlpSpec(activation="relu2", gated=False, intermediate=64),
        attn_norm=ln,
        mlp_norm=RMS,
        post_mlp_norm=ln,
    )
    third = LayerSpec(
        replace(attention, window=0, rope=-1, softcap=0.0, qkv_bias=False, o_bias=False),
        MlpSpec(activation="gelu_tanh", bias=True, intermediate=130),
        attn_norm=SCALELESS,
        mlp_norm=ln,
    )
    return ModelSpec(
        vocab=65,
        hidden=72,
        max_context=4096,
        embed_scale=1.7,
        final_norm=ln,
        logit_scale=0.5,
        ropes=[
            RopeSpec(dim=12, interleaved=True, theta=1000.0),
            RopeSpec(
                dim=20,
                theta=5000.0,
                scaling="yarn",
                factor=4.0,
                original_context=128,
                attention_factor=1.2,
            ),
        ],
        layers=[first, second, third],
    )


def experts() -> ModelSpec:
    """Experts as three families have them, a dense layer between; gates, odd sizes, wide norms."""
    attention = AttentionSpec(
        heads=4, kv_heads=2, head_dim=16, rope=0, query_scale=0.25, window=40, sinks=True
    )
    mlp = MlpSpec(kind="experts", intermediate=36, experts=7, experts_per_token=3)
    limited = replace(
        mlp,
        bias=True,
        swiglu_limit=1.5,
        swiglu_alpha=1.702,
        router="softmax_chosen",
        router_bias=True,
    )
    pooled = replace(
        mlp,
        router="sigmoid",
        router_renormalize=True,
        router_correction=True,
        router_scale=0.7,
        routed_scale=1.3,
        expert_width=40,
        expert_in_norm=CENTERED,
        expert_out_norm=NormSpec("rms_input_scaled", 1e-5),
    )
    shared = replace(mlp, intermediate=64, shared_intermediate=50, shared_router=True)
    plain = replace(mlp, gated=False, activation="relu2", experts_per_token=1)
    first = LayerSpec(attention, limited, RMS, mlp_norm=RMS)
    second = LayerSpec(
        replace(attention, window=0, rope=1, joint_qk_norm=True, q_norm=RMS, k_norm=RMS),
        pooled,
        attn_norm=RMS,
        mlp_norm=RMS,
        post_attn_norm=SCALELESS,
        residual_gates=True,
        residual_temperature=0.3,
    )
    third = LayerSpec(
        replace(attention, sinks=False, out_norm=SCALELESS, output_gate=True),
        replace(shared, router_renormalize=True),
        post_attn_norm=RMS,
        post_mlp_norm=RMS,
        residual_scale=0.6,
    )
    dense = replace(first, mlp=replace(limited, kind="dense", experts=0, experts_per_token=0))
    return ModelSpec(
        vocab=90,
        hidden=56,
        max_context=4096,
        final_norm=RMS,
        ropes=[
            RopeSpec(dim=16, theta=1000.0),
            RopeSpec(dim=8, theta=500.0, scaling="factors", factors=(1.0, 1.1, 2.5, 4.0)),
        ],
        layers=[first, second, dense, third, replace(first, mlp=plain)],
    )


SPECS = {
    "llama": llama,
    "qwen3": qwen3,
    "muse": muse,
    "everything": everything,
    "experts": experts,
}


def shapes(spec: ModelSpec) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    """Canonical names: matrices (rows, cols) and vectors (length)."""
    every = canonical_shapes(spec)
    matrices = {name: shape for name, shape in every.items() if len(shape) == 2}
    return matrices, {name: shape[0] for name, shape in every.items() if len(shape) == 1}


def random_weights(spec: ModelSpec, seed: int = 1) -> dict[str, np.ndarray]:
    """Weights that keep activations near 1 and make attention look at some keys, not all."""
    rng = np.random.default_rng(seed)
    matrices, vectors = shapes(spec)
    weights = {
        name: (rng.standard_normal(shape) * (1.5 / shape[1] ** 0.5)).astype(np.float32)
        for name, shape in matrices.items()
    }
    if "embed" in weights:
        weights["embed"] *= np.float32(spec.hidden**0.5)
    for name, length in vectors.items():
        values = rng.standard_normal(length) * 0.3
        weights[name] = values.astype(np.float32)
    for name, _length in vectors.items():
        if name.endswith("norm") and not _is_centered(spec, name):
            weights[name] += np.float32(1)
    return weights


def _is_centered(spec: ModelSpec, name: str) -> bool:
    holder, _, part = name.rpartition(".")
    kind = getattr(spec, part, None)
    if holder:
        layer = spec.layers[int(holder.split(".")[1])]
        owners = (layer, layer.attention, layer.mlp)
        kind = next(getattr(owner, part) for owner in owners if hasattr(owner, part))
    return kind.kind in ("rms_centered", "rms_input_scaled")


def pack(weights: dict[str, np.ndarray], recipe: str) -> dict[str, tuple]:
    """Tensors for the core. `recipe` is one format, or "mixed": the formats in turn."""
    cycle = ("q4", "q8", "q4g32h", "f32", "q6", "iq4g32h", "bf16", "q8g32h", "mxfp4")
    tensors = {}
    for i, (name, value) in enumerate(sorted(weights.items())):
        if value.ndim == 1:
            tensors[name] = ("f32", 1, len(value), value)
            continue
        fmt = cycle[i % len(cycle)] if recipe == "mixed" else recipe
        if name.endswith(".router"):
            fmt = "f32"
        packed = aligned(_core.packed_nbytes(fmt, *value.shape))
        source, dtype = value, "f32"
        if fmt == "bf16":
            source, dtype = _core.testing.f32_to_bf16(value), "bf16"
        _core.pack(fmt, source, out=packed, dtype=dtype)
        tensors[name] = (fmt, *value.shape, packed)
    return tensors


def unpack(tensors: dict[str, tuple]) -> dict[str, np.ndarray]:
    """The numbers the packed tensors stand for."""
    return {
        name: data if data.dtype == np.float32 else _core.unpack(fmt, data, rows, cols)
        for name, (fmt, rows, cols, data) in tensors.items()
    }


class Runner:
    """A model of the core with its pool of pages."""

    def __init__(self, spec, tensors, *, threads=1, kv="f32", budget=1 << 40):
        self.spec = spec
        self.model = _core.testing.TextModel(
            dataclasses.asdict(spec), tensors, threads=threads, kv=kv
        )
        self.pool = _core.testing.PagePool(self.model, budget)

    def sequence(self):
        return _core.testing.Sequence(self.pool)

    def feed(self, sequence, tokens, cut=None, *, accept=True):
        """All logits of `tokens`, fed in pieces of `cut`: a number, or a list that is cycled."""
        tokens = [int(t) for t in tokens]
        cuts = [cut] if isinstance(cut, int) else (cut or [max(1, len(tokens))])
        rows, at, i = [], 0, 0
        while at < len(tokens):
            piece = tokens[at : at + cuts[i % len(cuts)]]
            rows.append(self.model.forward([(sequence, piece, "all")]))
            if accept:
                sequence.accept(sequence.length)
            at += len(piece)
            i += 1
        return np.concatenate(rows)

    def logits(self, tokens, cut=None):
        """All logits of a fresh sequence."""
        return self.feed(self.sequence(), tokens, cut)


def random_tokens(spec: ModelSpec, count: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, spec.vocab, count).astype(np.int32)
