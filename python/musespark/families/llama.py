"""Llama 2 and 3.x (transformers: LlamaForCausalLM)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from musespark.families.fields import MAX_CONTEXT, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, Fields
from musespark.families.rope import rope_from_config
from musespark.families.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec
from musespark.families.tensors import TensorMap, match_tensors

name = "llama"
model_types = ("llama",)

# The layout that llama started and most families since share; keys are canonical names.
LAYER_NAMES = {
    "attn_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "o_bias": "self_attn.o_proj.bias",
    "mlp_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
    "gate_bias": "mlp.gate_proj.bias",
    "up_bias": "mlp.up_proj.bias",
    "down_bias": "mlp.down_proj.bias",
}
# Older checkpoints carry the rotation's frequencies; they follow from the config.
IGNORABLE = {
    "rotary frequencies, which follow from the config": re.compile(
        r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
    )
}


def namer(root: str, layer_names: Mapping[str, str]) -> Callable[[str], str]:
    """Canonical name -> the checkpoint's name, for a text tower stored under `root`."""

    def source_name(canonical: str) -> str:
        if canonical == "embed":
            return f"{root}.embed_tokens.weight"
        if canonical == "head":
            return "lm_head.weight"
        if canonical == "final_norm":
            return f"{root}.norm.weight"
        _, index, part = canonical.split(".")
        return f"{root}.layers.{index}.{layer_names[part]}"

    return source_name


def spec(config: Mapping[str, Any]) -> ModelSpec:
    """ModelSpec of a ``config.json``; keys that are missing take LlamaConfig's defaults."""
    c = Fields(config)
    c.architecture("LlamaForCausalLM")
    c.must_be_absent("quantization_config", "sliding_window", "per_layer_config")
    c.must_be("pretraining_tp", 1, 1)
    hidden = c.integer("hidden_size", 4096, MAX_WIDTH)
    heads = c.integer("num_attention_heads", 32, MAX_WIDTH)
    kv_heads = c.optional_integer("num_key_value_heads", None, heads) or heads
    head_dim = c.optional_integer("head_dim", None, MAX_WIDTH) or hidden // heads
    c.check_heads(heads, kv_heads, head_dim)
    context = c.integer("max_position_embeddings", 2048, MAX_CONTEXT)
    bias = c.flag("attention_bias", False)
    norm = NormSpec("rms", c.number("rms_norm_eps", 1e-6))
    layer = LayerSpec(
        attention=AttentionSpec(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            rope=0,
            query_scale=head_dim**-0.5,
            qkv_bias=bias,
            o_bias=bias,
        ),
        mlp=MlpSpec(
            activation=c.activation("hidden_act", "silu"),
            bias=c.flag("mlp_bias", False),
            intermediate=c.integer("intermediate_size", 11008, MAX_WIDTH),
        ),
        attn_norm=norm,
        mlp_norm=norm,
    )
    return ModelSpec(
        vocab=c.integer("vocab_size", 32000, MAX_VOCAB),
        hidden=hidden,
        max_context=context,
        final_norm=norm,
        tied_head=c.flag("tie_word_embeddings", False),
        ropes=[rope_from_config(c, head_dim, context)],
        layers=[layer] * c.integer("num_hidden_layers", 32, MAX_LAYERS),
    )


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names; see :func:`match_tensors`."""
    return match_tensors(model, names, namer("model", LAYER_NAMES), IGNORABLE)


def notes(config: Mapping[str, Any]) -> list[str]:
    """What a user should know about how this config is read: nothing for this family."""
    return []
