"""The first Gemma (transformers: GemmaForCausalLM).

llama with zero-centred norms, embeddings multiplied with the root of the width, and a tanh gelu.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from musespark.families import llama
from musespark.families.decoder import read_sizes
from musespark.families.fields import Fields
from musespark.families.rope import context_with, rope_from_config
from musespark.families.spec import LayerSpec, MlpSpec, ModelSpec, NormSpec
from musespark.families.tensors import TensorMap, match_tensors

name = "gemma"
model_types = ("gemma",)
architectures = ("GemmaForCausalLM",)
models = "Gemma (the first), CodeGemma"


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; keys that are missing take GemmaConfig's defaults.

    As in transformers ``hidden_act`` "gelu", which the first releases say, means the tanh formula,
    and ``hidden_activation``, which later ones have beside it, is not read.
    """
    c = Fields.of(config)
    c.architecture(*architectures)
    c.must_be("use_bidirectional_attention", False, None)
    size = read_sizes(
        c,
        vocab_size=256000,
        hidden_size=3072,
        intermediate_size=24576,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=16,
        head_dim=256,
        max_position_embeddings=8192,
    )
    c.get("hidden_activation")
    activation = c.activation("hidden_act", "gelu_pytorch_tanh")
    bias = c.flag("attention_bias", False)
    norm = NormSpec("rms_centered", c.number("rms_norm_eps", 1e-6))
    layer = LayerSpec(
        attention=size.attention(qkv_bias=bias, o_bias=bias),
        mlp=MlpSpec(
            activation="gelu_tanh" if activation == "gelu" else activation,
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
        embed_scale=size.hidden**0.5,
        final_norm=norm,
        tied_head=c.flag("tie_word_embeddings", True),
        ropes=[rope],
        layers=[layer] * size.layers,
    )


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names; see :func:`match_tensors`."""
    return match_tensors(model, names, llama.namer("model", llama.LAYER_NAMES), llama.IGNORABLE)
