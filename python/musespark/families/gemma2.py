"""Gemma 2 (transformers: Gemma2ForCausalLM).

Embeddings are multiplied with the root of the width, norms stand before and after both halves of a
layer and are zero-centred, attention scores and logits are soft-capped, every other layer has a
window, and queries are scaled by a number of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from musespark.families import llama
from musespark.families.decoder import Sizes, read_sizes, read_windows
from musespark.families.fields import MAX_CONTEXT, Fields
from musespark.families.rope import rope_from_config
from musespark.families.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec
from musespark.families.tensors import TensorMap, match_tensors

name = "gemma2"
model_types = ("gemma2",)
architectures = ("Gemma2ForCausalLM",)
models = "Gemma 2"

LAYER_NAMES = llama.LAYER_NAMES | {
    "post_attn_norm": "post_attention_layernorm.weight",
    "mlp_norm": "pre_feedforward_layernorm.weight",
    "post_mlp_norm": "post_feedforward_layernorm.weight",
}


def gemma_layer(c: Fields, size: Sizes, norm: NormSpec, attention: AttentionSpec) -> LayerSpec:
    """What Gemma 2 and 3 share of a layer."""
    c.get("hidden_act")  # stands beside hidden_activation; transformers does not read it
    mlp = MlpSpec(
        activation=c.activation("hidden_activation", "gelu_pytorch_tanh"),
        intermediate=size.intermediate,
    )
    return LayerSpec(attention, mlp, norm, norm, norm, norm)


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; keys that are missing take Gemma2Config's defaults."""
    c = Fields.of(config)
    c.architecture(*architectures)
    c.must_be("use_bidirectional_attention", False, None)
    size = read_sizes(
        c,
        vocab_size=256000,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        max_position_embeddings=8192,
    )
    bias = c.flag("attention_bias", False)
    norm = NormSpec("rms_centered", c.number("rms_norm_eps", 1e-6))
    query_scale = c.number("query_pre_attn_scalar", 256) ** -0.5
    softcap = c.optional_number("attn_logit_softcapping", 50.0) or 0.0
    kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(size.layers)]
    window = c.optional_integer("sliding_window", 4096, MAX_CONTEXT)

    def layer(window: int) -> LayerSpec:
        attention = size.attention(
            window=window,
            query_scale=query_scale,
            softcap=softcap,
            qkv_bias=bias,
            o_bias=bias,
        )
        return gemma_layer(c, size, norm, attention)

    return ModelSpec(
        vocab=size.vocab,
        hidden=size.hidden,
        max_context=size.context,
        embed_scale=size.hidden**0.5,
        final_norm=norm,
        tied_head=c.flag("tie_word_embeddings", True),
        logit_softcap=c.optional_number("final_logit_softcapping", 30.0) or 0.0,
        ropes=[rope_from_config(c, size.head_dim, size.context)],
        layers=[layer(w) for w in read_windows(c, window, kinds)],
    )


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names; see :func:`match_tensors`."""
    return match_tensors(model, names, llama.namer("model", LAYER_NAMES), llama.IGNORABLE)
