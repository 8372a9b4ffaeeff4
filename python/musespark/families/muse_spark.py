"""Muse Spark, the text tower (transformers: MuseSparkForConditionalGeneration).

Muse Glimmer with experts, which run at a width of their own between two projections, a norm on what
attention gives, and gates that weigh what a layer adds against what it was given. Norms differ from
Glimmer's: after attention without a weight, after the MLP on weighted input.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from musespark.families import llama
from musespark.families.decoder import Sizes, read_sizes
from musespark.families.fields import MAX_EXPERTS, MAX_WIDTH, Fields
from musespark.families.muse_glimmer import LAYER_NAMES as GLIMMER_LAYER_NAMES
from musespark.families.muse_glimmer import (
    layer_windows,
    rotated_layers,
    theta_notes,
    tied_head,
)
from musespark.families.rope import rope_from_config
from musespark.families.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec, RopeSpec
from musespark.families.tensors import Part, TensorMap, match_tensors, vision_tower

name = "muse_spark"
model_types = ("muse_spark",)
architectures = ("MuseSparkForConditionalGeneration",)
models = "Muse Spark (text, images)"

LAYER_NAMES = GLIMMER_LAYER_NAMES | {
    "attn_residual_gate": "post_attention_residual_gate.gate",
    "mlp_residual_gate": "post_feedforward_residual_gate.gate",
    "router": "mlp.gate.weight",
    "router_correction": "mlp.gate.e_score_correction_bias",
    "expert_in": "mlp.pre_expert_proj.weight",
    "expert_in_norm": "mlp.pre_expert_norm.weight",
    "expert_out_norm": "mlp.experts.post_expert_norm.weight",
    "expert_out": "mlp.post_expert_proj.weight",
}
_IGNORABLE = vision_tower("vision_tower", "vision_adapter", "vision_projection") | {
    "audio tower: not part of this version": re.compile(r"model\.audio_tower\..+"),
}
_ROPE = {"rope_type": "default", "rope_theta": 500000.0}


def _text_config(outer: Fields) -> Fields:
    outer.architecture(*architectures)
    c = outer.section("text_config")
    c.must_be("model_type", "muse_spark_text", "muse_spark_text")
    return c


def _mlps(c: Fields, size: Sizes, eps: float, post_eps: float) -> list[MlpSpec]:
    activation = c.activation("hidden_act", "silu")
    dense = MlpSpec(activation=activation, intermediate=size.intermediate)
    experts = c.integer("num_local_experts", 256, MAX_EXPERTS)
    sparse = MlpSpec(
        kind="experts",
        activation=activation,
        intermediate=c.integer("moe_intermediate_size", 4096, MAX_WIDTH),
        experts=experts,
        experts_per_token=c.integer("num_experts_per_tok", 8, experts),
        router="sigmoid",
        router_renormalize=True,
        router_correction=True,
        router_scale=c.number("output_multiplier", 0.1767766952966369),
        routed_scale=c.number("routed_scaling_factor", 1.0),
        expert_width=c.integer("moe_hidden_size", 4096, MAX_WIDTH),
        expert_in_norm=NormSpec("rms_centered", eps),
        expert_out_norm=NormSpec("rms_input_scaled", post_eps),
    )
    kinds = c.list_of("mlp_layer_types", size.layers) or ["sparse"] * size.layers
    known = {"sparse": sparse, "dense": dense}
    for kind in kinds:
        if not isinstance(kind, str) or kind not in known:
            raise c.refuse("mlp_layer_types", f"{kind!r:.80} is neither sparse nor dense")
    return [known[kind] for kind in kinds]


def _attention(c: Fields, size: Sizes, eps: float) -> list[AttentionSpec]:
    scaleless = NormSpec("rms_scaleless", eps)
    bias = c.flag("attention_bias", False)
    query_scale = c.number("qk_scale_factor", 5.4730064863875) * size.head_dim**-0.5
    rotated = rotated_layers(c, size.layers)
    return [
        size.attention(
            window=window,
            rope=0 if rope else -1,
            q_norm=scaleless,
            k_norm=scaleless,
            query_scale=query_scale,
            qkv_bias=bias,
            o_bias=bias,
            output_gate=True,
            out_norm=scaleless,
        )
        for window, rope in zip(layer_windows(c, size.layers), rotated, strict=True)
    ]


def _rope(c: Fields, head_dim: int, context: int) -> RopeSpec:
    return rope_from_config(c, head_dim, context, default=_ROPE)


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; missing keys take MuseSparkTextConfig's defaults."""
    outer = Fields.of(config)
    c = _text_config(outer)
    size = read_sizes(
        c,
        vocab_size=202048,
        hidden_size=8192,
        intermediate_size=16384,
        num_hidden_layers=62,
        num_attention_heads=128,
        num_key_value_heads=16,
        head_dim=64,
        max_position_embeddings=1048576,
    )
    eps, post_eps = c.number("rms_norm_eps", 1e-5), c.number("post_norm_eps", 1e-8)
    temperature = c.number("residual_gate_temperature", 0.3)
    attention = _attention(c, size, eps)
    layers = [
        LayerSpec(
            attention=a,
            mlp=mlp,
            attn_norm=NormSpec("rms_centered", eps),
            post_attn_norm=NormSpec("rms_scaleless", post_eps),
            mlp_norm=NormSpec("rms_centered", eps),
            post_mlp_norm=NormSpec("rms_input_scaled", post_eps),
            residual_gates=True,
            residual_temperature=temperature,
        )
        for a, mlp in zip(attention, _mlps(c, size, eps, post_eps), strict=True)
    ]
    rope = _rope(c, size.head_dim, size.context)
    return ModelSpec(
        vocab=size.vocab,
        hidden=size.hidden,
        max_context=size.context,
        embed_norm=NormSpec("rms_scaleless", eps),
        final_norm=NormSpec("rms", eps),
        tied_head=tied_head(outer, c),
        logit_scale=c.number("output_multiplier", 0.1767766952966369),
        logit_softcap=c.number("final_logit_softcapping", 20.0),
        ropes=[rope] if any(a.rope >= 0 for a in attention) else [],
        layers=layers,
    )


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names: experts are slices of stacks; other towers are listed."""
    whole = llama.namer("model.language_model", LAYER_NAMES)

    def source_of(canonical: str) -> str | Part:
        parts = canonical.split(".")
        if len(parts) != 5:
            return whole(canonical)
        _, layer, _, expert, part = parts
        mlp, number = model.layers[int(layer)].mlp, int(expert)
        at = f"model.language_model.layers.{layer}.mlp.experts."
        inner, width = mlp.intermediate, mlp.expert_width
        if part == "down":
            return Part(f"{at}down_proj", (mlp.experts, width, inner), number)
        start = inner if part == "up" else 0
        stored = (mlp.experts, 2 * inner, width)
        return Part(f"{at}gate_up_proj", stored, number, start=start, count=inner)

    return match_tensors(model, names, source_of, _IGNORABLE)


def notes(config: Mapping[str, Any] | Fields) -> list[str]:
    """As :func:`muse_glimmer.notes`."""
    c = Fields.of(config).section("text_config")
    return theta_notes(c, _rope(c, 2, 1).theta)
