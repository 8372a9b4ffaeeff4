"""Llama 2 and 3.x, SmolLM2 (transformers: LlamaForCausalLM)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from musespark.families.decoder import read_sizes
from musespark.families.fields import Fields
from musespark.families.rope import context_with, rope_from_config
from musespark.families.spec import LayerSpec, MlpSpec, ModelSpec, NormSpec
from musespark.families.tensors import TensorMap, match_tensors

name = "llama"
model_types = ("llama",)
architectures = ("LlamaForCausalLM",)
models = "Llama 2 and 3.x, SmolLM, SmolLM2, and other models of their shape"

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


def namer(
    root: str, layer_names: Mapping[str, str], head: str = "lm_head.weight"
) -> Callable[[str], str]:
    """Canonical name -> the checkpoint's name, for a text tower stored under `root`."""

    def source_name(canonical: str) -> str:
        if canonical == "embed":
            return f"{root}.embed_tokens.weight"
        if canonical == "head":
            return head
        if canonical.startswith("final_norm"):
            return f"{root}.norm.{'bias' if canonical.endswith('_bias') else 'weight'}"
        _, index, part = canonical.split(".")
        return f"{root}.layers.{index}.{layer_names[part]}"

    return source_name


def namer_beside_towers(
    names: Iterable[str], layer_names: Mapping[str, str]
) -> Callable[[str], str]:
    """As :func:`namer`, for a text tower stored beside others, under one of the roots in use."""
    known = set(names)
    roots = ("model.language_model", "model.text_model", "language_model.model", "model")
    root = next((r for r in roots if f"{r}.embed_tokens.weight" in known), roots[0])
    heads = ("lm_head.weight", "language_model.lm_head.weight")
    return namer(root, layer_names, next((h for h in heads if h in known), heads[0]))


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; keys that are missing take LlamaConfig's defaults."""
    c = Fields.of(config)
    c.architecture(*architectures)
    return text_spec(c, c.flag("tie_word_embeddings", False))


def text_spec(c: Fields, tied: bool, eps: float = 1e-6) -> ModelSpec:
    """The ModelSpec of a LlamaConfig; `eps` where it does not say one."""
    size = read_sizes(
        c,
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=None,
        max_position_embeddings=2048,
    )
    bias = c.flag("attention_bias", False)
    norm = NormSpec("rms", c.number("rms_norm_eps", eps))
    layer = LayerSpec(
        attention=size.attention(qkv_bias=bias, o_bias=bias),
        mlp=MlpSpec(
            activation=c.activation("hidden_act", "silu"),
            bias=c.flag("mlp_bias", False),
            intermediate=size.intermediate,
        ),
        attn_norm=norm,
        mlp_norm=norm,
    )
    rope = rope_from_config(c, size.head_dim, size.context)
    return ModelSpec(
        vocab=size.vocab,
        hidden=size.hidden,
        max_context=context_with(rope, size.context),
        final_norm=norm,
        tied_head=tied,
        ropes=[rope],
        layers=[layer] * size.layers,
    )


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names; see :func:`match_tensors`."""
    return match_tensors(model, names, namer("model", LAYER_NAMES), IGNORABLE)
