"""Qwen3, dense (transformers: Qwen3ForCausalLM): llama with a norm on each query and key head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from musespark.families import llama
from musespark.families.decoder import chosen_window, read_sizes, read_windows
from musespark.families.fields import Fields
from musespark.families.rope import context_with, rope_from_config
from musespark.families.spec import LayerSpec, MlpSpec, ModelSpec, NormSpec
from musespark.families.tensors import TensorMap, match_tensors

name = "qwen3"
model_types = ("qwen3",)
architectures = ("Qwen3ForCausalLM",)
models = "Qwen3, dense"

LAYER_NAMES = llama.LAYER_NAMES | {
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
}


def windows(c: Fields, layers: int, first: int = 28) -> list[int]:
    """The window of each layer, as qwen2 and qwen3 say it; `first`: the default of
    ``max_window_layers``."""
    window = chosen_window(c)
    first = c.integer("max_window_layers", first, 2**31, low=0)
    default = [
        "sliding_attention" if window and i >= first else "full_attention" for i in range(layers)
    ]
    return read_windows(c, window, default)


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; keys that are missing take Qwen3Config's defaults."""
    c = Fields.of(config)
    c.architecture(*architectures)
    size = read_sizes(
        c,
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=22016,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        head_dim=128,
        max_position_embeddings=32768,
    )
    bias = c.flag("attention_bias", False)
    norm = NormSpec("rms", c.number("rms_norm_eps", 1e-6))
    mlp = MlpSpec(activation=c.activation("hidden_act", "silu"), intermediate=size.intermediate)

    def layer(window: int) -> LayerSpec:
        attention = size.attention(
            window=window,
            q_norm=norm,
            k_norm=norm,
            qkv_bias=bias,
            o_bias=bias,
        )
        return LayerSpec(attention=attention, mlp=mlp, attn_norm=norm, mlp_norm=norm)

    rope = rope_from_config(c, size.head_dim, size.context)
    return ModelSpec(
        vocab=size.vocab,
        hidden=size.hidden,
        max_context=context_with(rope, size.context),
        final_norm=norm,
        tied_head=c.flag("tie_word_embeddings", False),
        ropes=[rope],
        layers=[layer(w) for w in windows(c, size.layers)],
    )


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names; see :func:`match_tensors`."""
    return match_tensors(model, names, llama.namer("model", LAYER_NAMES), llama.IGNORABLE)
