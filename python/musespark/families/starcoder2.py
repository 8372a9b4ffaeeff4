"""StarCoder 2 (transformers: Starcoder2ForCausalLM).

llama with LayerNorm in place of RMSNorm, biases everywhere and an MLP without a gate.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from musespark.families import llama
from musespark.families.decoder import read_sizes
from musespark.families.fields import MAX_CONTEXT, Fields
from musespark.families.rope import context_with, rope_from_config
from musespark.families.spec import LayerSpec, MlpSpec, ModelSpec, NormSpec
from musespark.families.tensors import TensorMap, match_tensors

name = "starcoder2"
model_types = ("starcoder2",)
architectures = ("Starcoder2ForCausalLM",)
models = "StarCoder 2"

_LAYER_NAMES = llama.LAYER_NAMES | {
    "attn_norm_bias": "input_layernorm.bias",
    "mlp_norm_bias": "post_attention_layernorm.bias",
    "up": "mlp.c_fc.weight",
    "up_bias": "mlp.c_fc.bias",
    "down": "mlp.c_proj.weight",
    "down_bias": "mlp.c_proj.bias",
}


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; keys that are missing take Starcoder2Config's defaults."""
    c = Fields.of(config)
    c.architecture(*architectures)
    size = read_sizes(
        c,
        vocab_size=49152,
        hidden_size=3072,
        intermediate_size=12288,
        num_hidden_layers=30,
        num_attention_heads=24,
        num_key_value_heads=2,
        max_position_embeddings=4096,
    )
    # Keys of published configs that say what the class holds for given.
    c.must_be("norm_type", "layer_norm", None)
    c.must_be("mlp_type", "default", None)
    bias = c.flag("use_bias", True)
    norm = NormSpec("layer", c.number("norm_epsilon", 1e-5), bias=True)
    layer = LayerSpec(
        attention=size.attention(
            window=c.optional_integer("sliding_window", None, MAX_CONTEXT) or 0,
            qkv_bias=bias,
            o_bias=bias,
        ),
        mlp=MlpSpec(
            activation=c.activation("hidden_act", "gelu_pytorch_tanh"),
            gated=False,
            bias=bias,
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
        tied_head=c.flag("tie_word_embeddings", True),
        ropes=[rope],
        layers=[layer] * size.layers,
    )


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names; see :func:`match_tensors`."""
    return match_tensors(model, names, llama.namer("model", _LAYER_NAMES), llama.IGNORABLE)
