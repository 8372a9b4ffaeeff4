"""Mistral 7B and its kin (transformers: MistralForCausalLM): llama with a window in every layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from musespark.families import llama
from musespark.families.decoder import read_sizes
from musespark.families.fields import MAX_CONTEXT, Fields
from musespark.families.rope import context_with, rope_from_config
from musespark.families.spec import LayerSpec, MlpSpec, ModelSpec, NormSpec
from musespark.families.tensors import TensorMap, match_tensors

name = "mistral"
model_types = ("mistral",)
architectures = ("MistralForCausalLM",)
models = "Mistral 7B, Mistral Nemo, Mistral Small (text)"


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; keys that are missing take MistralConfig's defaults.

    ``layer_types`` is refused: transformers' MistralModel does not read it.
    """
    c = Fields.of(config)
    c.architecture(*architectures)
    return text_spec(c, c.flag("tie_word_embeddings", False))


def text_spec(c: Fields, tied_head: bool) -> ModelSpec:
    """The ModelSpec of a mistral config, or of one inside another's ``text_config``."""
    c.get("tie_word_embeddings")
    size = read_sizes(
        c,
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
    )
    norm = NormSpec("rms", c.number("rms_norm_eps", 1e-6))
    layer = LayerSpec(
        attention=size.attention(
            window=c.optional_integer("sliding_window", 4096, MAX_CONTEXT) or 0,
        ),
        mlp=MlpSpec(activation=c.activation("hidden_act", "silu"), intermediate=size.intermediate),
        attn_norm=norm,
        mlp_norm=norm,
    )
    rope = rope_from_config(c, size.head_dim, size.context)
    return ModelSpec(
        vocab=size.vocab,
        hidden=size.hidden,
        max_context=context_with(rope, size.context),
        final_norm=norm,
        tied_head=tied_head,
        ropes=[rope],
        layers=[layer] * size.layers,
    )


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names; see :func:`match_tensors`."""
    return match_tensors(model, names, llama.namer("model", llama.LAYER_NAMES), llama.IGNORABLE)
