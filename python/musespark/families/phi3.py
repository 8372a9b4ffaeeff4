"""Phi-3, Phi-3.5 and Phi-4 text models (transformers: Phi3ForCausalLM).

llama whose q, k and v are one stored matrix, and whose gate and up are another; part of a head may
stay unrotated (Phi-4-mini), and the frequencies may be stretched one by one (longrope).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from musespark.families import llama
from musespark.families.decoder import read_sizes
from musespark.families.fields import MAX_CONTEXT, Fields
from musespark.families.rope import rope_from_config
from musespark.families.spec import LayerSpec, MlpSpec, ModelSpec, NormSpec
from musespark.families.tensors import TensorMap, match_tensors, row_parts

name = "phi3"
model_types = ("phi3",)
architectures = ("Phi3ForCausalLM",)
models = "Phi-3, Phi-3.5, Phi-4, Phi-4-mini (text)"

_FUSED = {
    "self_attn.qkv_proj.weight": ("q", "k", "v"),
    "mlp.gate_up_proj.weight": ("gate", "up"),
}
# Phi3Config takes "su" and "yarn", older names, for longrope.
_ROPE_KINDS = {
    "default": "default",
    "longrope": "longrope",
    "su": "longrope",
    "yarn": "longrope",
}
_TRAINED_CONTEXT = 4096  # Phi3Config.original_max_position_embeddings


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; keys that are missing take Phi3Config's defaults."""
    c = Fields.of(config)
    c.architecture(*architectures)
    size = read_sizes(
        c,
        vocab_size=32064,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=None,
        max_position_embeddings=4096,
    )
    c.get("original_max_position_embeddings")  # longrope alone reads it
    norm = NormSpec("rms", c.number("rms_norm_eps", 1e-5))
    layer = LayerSpec(
        attention=size.attention(
            window=c.optional_integer("sliding_window", None, MAX_CONTEXT) or 0,
        ),
        mlp=MlpSpec(activation=c.activation("hidden_act", "silu"), intermediate=size.intermediate),
        attn_norm=norm,
        mlp_norm=norm,
    )
    rope = rope_from_config(
        c,
        size.head_dim,
        size.context,
        partial=True,
        kinds=_ROPE_KINDS,
        trained_context=_TRAINED_CONTEXT,
    )
    return ModelSpec(
        vocab=size.vocab,
        hidden=size.hidden,
        max_context=size.context,
        final_norm=norm,
        tied_head=c.flag("tie_word_embeddings", False),
        ropes=[rope],
        layers=[layer] * size.layers,
    )


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names: q, k, v and gate, up are row ranges of stored ones."""
    parts = row_parts(model, "model.layers.{}.", _FUSED)
    whole = llama.namer("model", llama.LAYER_NAMES)
    return match_tensors(model, names, lambda c: parts.get(c) or whole(c), llama.IGNORABLE)
