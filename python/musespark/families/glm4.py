"""GLM-4 of 2024 and 2025 (transformers: GlmForCausalLM, Glm4ForCausalLM).

llama whose gate and up are one stored matrix, whose heads rotate in part, neighbouring floats as
pairs; glm4 has norms after the halves of a layer too, and calls the one before the MLP
``post_attention_layernorm``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from musespark.families import llama
from musespark.families.decoder import read_sizes
from musespark.families.fields import Fields
from musespark.families.rope import context_with, rope_from_config
from musespark.families.spec import LayerSpec, MlpSpec, ModelSpec, NormSpec
from musespark.families.tensors import TensorMap, match_tensors, row_parts

name = "glm4"
model_types = ("glm", "glm4")
architectures = ("GlmForCausalLM", "Glm4ForCausalLM")
models = "GLM-4 9B, GLM-4-0414, GLM-Z1"

_LAYER_NAMES = llama.LAYER_NAMES | {
    "post_attn_norm": "post_self_attn_layernorm.weight",
    "post_mlp_norm": "post_mlp_layernorm.weight",
}
_FUSED = {"mlp.gate_up_proj.weight": ("gate", "up")}


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; missing keys take GlmConfig's and Glm4Config's defaults."""
    c = Fields.of(config)
    c.architecture(*architectures)
    size = read_sizes(
        c,
        vocab_size=151552,
        hidden_size=4096,
        intermediate_size=13696,
        num_hidden_layers=40,
        num_attention_heads=32,
        num_key_value_heads=2,
        head_dim=128,
        max_position_embeddings=131072,
    )
    norm = NormSpec("rms", c.number("rms_norm_eps", 1.5625e-07))
    after = norm if c.get("model_type") == "glm4" else NormSpec()
    layer = LayerSpec(
        attention=size.attention(qkv_bias=c.flag("attention_bias", True)),
        mlp=MlpSpec(activation=c.activation("hidden_act", "silu"), intermediate=size.intermediate),
        attn_norm=norm,
        post_attn_norm=after,
        mlp_norm=norm,
        post_mlp_norm=after,
    )
    rope = rope_from_config(c, size.head_dim, size.context, partial=True, default_share=0.5)
    return ModelSpec(
        vocab=size.vocab,
        hidden=size.hidden,
        max_context=context_with(rope, size.context),
        final_norm=norm,
        tied_head=c.flag("tie_word_embeddings", False),
        ropes=[dataclasses.replace(rope, interleaved=True)],
        layers=[layer] * size.layers,
    )


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names: gate and up are the halves of a stored matrix."""
    parts = row_parts(model, "model.layers.{}.", _FUSED)
    whole = llama.namer("model", _LAYER_NAMES)
    return match_tensors(model, names, lambda c: parts.get(c) or whole(c), llama.IGNORABLE)
