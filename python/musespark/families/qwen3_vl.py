"""Qwen3-VL, dense, the text tower (transformers: Qwen3VLForConditionalGeneration): qwen3 with
positions along three axes in turn. What layers of the vision tower give is added to an image's rows
after the first layers (model/given_rows.h: taps)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from musespark.families import llama, qwen3
from musespark.families.decoder import read_sizes
from musespark.families.fields import Fields
from musespark.families.mrope import mrope_from_config
from musespark.families.qwen2_vl import text_config, tied_head
from musespark.families.rope import context_with
from musespark.families.spec import LayerSpec, MlpSpec, ModelSpec, NormSpec
from musespark.families.tensors import TensorMap, match_tensors, vision_tower

name = "qwen3_vl"
model_types = ("qwen3_vl",)
architectures = ("Qwen3VLForConditionalGeneration",)
models = "Qwen3-VL, dense (text, images)"

_IGNORABLE = llama.IGNORABLE | vision_tower("visual")


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; missing keys take Qwen3VLTextConfig's defaults."""
    outer = Fields.of(config)
    outer.architecture(*architectures)
    c = text_config(outer, "qwen3_vl_text")
    size = read_sizes(
        c,
        vocab_size=151936,
        hidden_size=4096,
        intermediate_size=22016,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        head_dim=128,
        max_position_embeddings=128000,
    )
    bias = c.flag("attention_bias", False)
    norm = NormSpec("rms", c.number("rms_norm_eps", 1e-6))
    attention = size.attention(q_norm=norm, k_norm=norm, qkv_bias=bias, o_bias=bias)
    mlp = MlpSpec(activation=c.activation("hidden_act", "silu"), intermediate=size.intermediate)
    layer = LayerSpec(attention=attention, mlp=mlp, attn_norm=norm, mlp_norm=norm)
    rope = mrope_from_config(
        c,
        size.head_dim,
        size.context,
        theta=500000.0,
        sections=(24, 20, 20),
        interleaved=True,
    )
    return ModelSpec(
        vocab=size.vocab,
        hidden=size.hidden,
        max_context=context_with(rope, size.context),
        final_norm=norm,
        tied_head=tied_head(outer, c),
        ropes=[rope],
        layers=[layer] * size.layers,
    )


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names; those of the vision tower are left out and listed."""
    names = list(names)
    source_of = llama.namer_beside_towers(names, qwen3.LAYER_NAMES)
    return match_tensors(model, names, source_of, _IGNORABLE)
