"""Qwen3, dense (transformers: Qwen3ForCausalLM): llama with a norm on each query and key head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from musespark.families import llama
from musespark.families.fields import MAX_CONTEXT, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, Fields
from musespark.families.rope import rope_from_config
from musespark.families.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec
from musespark.families.tensors import TensorMap, match_tensors

name = "qwen3"
model_types = ("qwen3",)

LAYER_NAMES = llama.LAYER_NAMES | {
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
}


def _windows(c: Fields, layers: int) -> list[int]:
    """The window of each layer, 0 = full attention.

    transformers' mask lets a query at q see keys with k > q - sliding_window: itself and the
    window - 1 positions before it, which is what AttentionSpec.window means.
    """
    window = 0
    if c.flag("use_sliding_window", False):
        window = c.optional_integer("sliding_window", 4096, MAX_CONTEXT) or 0
    first = c.integer("max_window_layers", 28, 2**31, low=0)
    default = [
        "sliding_attention" if window and i >= first else "full_attention" for i in range(layers)
    ]
    kinds = c.layer_types(layers, default)
    if not window and "sliding_attention" in kinds:
        raise c.refuse("sliding_window", "layer_types has sliding layers, so a window is needed")
    return [window if kind == "sliding_attention" else 0 for kind in kinds]


def spec(config: Mapping[str, Any]) -> ModelSpec:
    """ModelSpec of a ``config.json``; keys that are missing take Qwen3Config's defaults."""
    c = Fields(config)
    c.architecture("Qwen3ForCausalLM")
    c.must_be_absent("quantization_config", "per_layer_config")
    hidden = c.integer("hidden_size", 4096, MAX_WIDTH)
    heads = c.integer("num_attention_heads", 32, MAX_WIDTH)
    kv_heads = c.optional_integer("num_key_value_heads", 32, heads) or heads
    head_dim = c.integer("head_dim", 128, MAX_WIDTH)
    c.check_heads(heads, kv_heads, head_dim)
    context = c.integer("max_position_embeddings", 32768, MAX_CONTEXT)
    bias = c.flag("attention_bias", False)
    norm = NormSpec("rms", c.number("rms_norm_eps", 1e-6))
    mlp = MlpSpec(
        activation=c.activation("hidden_act", "silu"),
        intermediate=c.integer("intermediate_size", 22016, MAX_WIDTH),
    )

    def layer(window: int) -> LayerSpec:
        attention = AttentionSpec(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            window=window,
            rope=0,
            q_norm=norm,
            k_norm=norm,
            query_scale=head_dim**-0.5,
            qkv_bias=bias,
            o_bias=bias,
        )
        return LayerSpec(attention=attention, mlp=mlp, attn_norm=norm, mlp_norm=norm)

    return ModelSpec(
        vocab=c.integer("vocab_size", 151936, MAX_VOCAB),
        hidden=hidden,
        max_context=context,
        final_norm=norm,
        tied_head=c.flag("tie_word_embeddings", False),
        ropes=[rope_from_config(c, head_dim, context)],
        layers=[layer(w) for w in _windows(c, c.integer("num_hidden_layers", 32, MAX_LAYERS))],
    )


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names; see :func:`match_tensors`."""
    return match_tensors(model, names, llama.namer("model", LAYER_NAMES), llama.IGNORABLE)


def notes(config: Mapping[str, Any]) -> list[str]:
    """What a user should know about how this config is read: nothing for this family."""
    return []
