"""Granite 3, dense (transformers: GraniteForCausalLM): llama with four multipliers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from musespark.families import llama
from musespark.families.decoder import read_sizes
from musespark.families.fields import Fields
from musespark.families.rope import context_with, rope_from_config
from musespark.families.spec import LayerSpec, MlpSpec, ModelSpec, NormSpec
from musespark.families.tensors import TensorMap, match_tensors

name = "granite"
model_types = ("granite",)
architectures = ("GraniteForCausalLM",)
models = "Granite 3.x, dense"


def granite_spec(c: Fields, read_mlp: Callable[[Fields, int], MlpSpec]) -> ModelSpec:
    """What the dense and the sparse family share; `read_mlp` takes intermediate_size."""
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
    norm = NormSpec("rms", c.number("rms_norm_eps", 1e-6))
    layer = LayerSpec(
        attention=size.attention(
            query_scale=c.number("attention_multiplier", 1.0),
            qkv_bias=bias,
            o_bias=bias,
        ),
        mlp=read_mlp(c, size.intermediate),
        attn_norm=norm,
        mlp_norm=norm,
        residual_scale=c.number("residual_multiplier", 1.0),
    )
    rope = rope_from_config(c, size.head_dim, size.context)
    return ModelSpec(
        vocab=size.vocab,
        hidden=size.hidden,
        max_context=context_with(rope, size.context),
        embed_scale=c.number("embedding_multiplier", 1.0),
        final_norm=norm,
        tied_head=c.flag("tie_word_embeddings", False),
        logit_scale=1.0 / c.number("logits_scaling", 1.0),
        ropes=[rope],
        layers=[layer] * size.layers,
    )


def _dense(c: Fields, intermediate: int) -> MlpSpec:
    return MlpSpec(
        activation=c.activation("hidden_act", "silu"),
        bias=c.flag("mlp_bias", False),
        intermediate=intermediate,
    )


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; keys that are missing take GraniteConfig's defaults."""
    c = Fields.of(config)
    c.architecture(*architectures)
    return granite_spec(c, _dense)


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names; see :func:`match_tensors`."""
    return match_tensors(model, names, llama.namer("model", llama.LAYER_NAMES), llama.IGNORABLE)
