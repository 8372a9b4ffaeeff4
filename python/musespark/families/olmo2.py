"""OLMo 2 (transformers: Olmo2ForCausalLM).

llama whose norms stand after the halves of a layer and not before them, and whose queries and keys
are normed over all heads at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from musespark.families import llama
from musespark.families.decoder import Sizes, read_sizes
from musespark.families.fields import Fields
from musespark.families.rope import context_with, rope_from_config
from musespark.families.spec import LayerSpec, MlpSpec, ModelSpec, NormSpec
from musespark.families.tensors import TensorMap, match_tensors

name = "olmo2"
model_types = ("olmo2",)
architectures = ("Olmo2ForCausalLM",)
models = "OLMo 2"

LAYER_NAMES = llama.LAYER_NAMES | {
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "post_attn_norm": "post_attention_layernorm.weight",
    "post_mlp_norm": "post_feedforward_layernorm.weight",
}


def read_layer(c: Fields) -> tuple[Sizes, LayerSpec]:
    """Sizes, and a layer without a window that rotates with the first rope."""
    size = read_sizes(
        c,
        vocab_size=50304,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=None,
        max_position_embeddings=2048,
    )
    bias = c.flag("attention_bias", False)
    norm = NormSpec("rms", c.number("rms_norm_eps", 1e-5))
    attention = size.attention(
        q_norm=norm,
        k_norm=norm,
        joint_qk_norm=True,
        qkv_bias=bias,
        o_bias=bias,
    )
    mlp = MlpSpec(activation=c.activation("hidden_act", "silu"), intermediate=size.intermediate)
    return size, LayerSpec(attention, mlp, post_attn_norm=norm, post_mlp_norm=norm)


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; keys that are missing take Olmo2Config's defaults."""
    c = Fields.of(config)
    c.architecture(*architectures)
    size, layer = read_layer(c)
    rope = rope_from_config(c, size.head_dim, size.context)
    return ModelSpec(
        vocab=size.vocab,
        hidden=size.hidden,
        max_context=context_with(rope, size.context),
        final_norm=layer.post_attn_norm,
        tied_head=c.flag("tie_word_embeddings", False),
        ropes=[rope],
        layers=[layer] * size.layers,
    )


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names; see :func:`match_tensors`."""
    return match_tensors(model, names, llama.namer("model", LAYER_NAMES), llama.IGNORABLE)
