"""Qwen2 and Qwen2.5 (transformers: Qwen2ForCausalLM): llama with biases on q, k and v."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from musespark.families import llama
from musespark.families.decoder import read_sizes
from musespark.families.fields import Fields
from musespark.families.qwen3 import windows
from musespark.families.rope import context_with, rope_from_config
from musespark.families.spec import LayerSpec, MlpSpec, ModelSpec, NormSpec
from musespark.families.tensors import TensorMap, match_tensors

name = "qwen2"
model_types = ("qwen2",)
architectures = ("Qwen2ForCausalLM",)
models = "Qwen2, Qwen2.5, and models distilled into them"


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; keys that are missing take Qwen2Config's defaults."""
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
        max_position_embeddings=32768,
    )
    c.must_be("attention_bias", True, None)  # not a field of Qwen2Config: q, k, v have theirs
    norm = NormSpec("rms", c.number("rms_norm_eps", 1e-6))
    mlp = MlpSpec(activation=c.activation("hidden_act", "silu"), intermediate=size.intermediate)

    def layer(window: int) -> LayerSpec:
        attention = size.attention(window=window, qkv_bias=True)
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
    return match_tensors(model, names, llama.namer("model", llama.LAYER_NAMES), llama.IGNORABLE)
