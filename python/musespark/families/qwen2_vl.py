"""Qwen2-VL and Qwen2.5-VL, the text tower (transformers: Qwen2VLForConditionalGeneration,
Qwen2_5_VLForConditionalGeneration): qwen2 with positions along three axes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from musespark.families import llama
from musespark.families.decoder import read_sizes
from musespark.families.fields import Fields
from musespark.families.mrope import mrope_from_config
from musespark.families.qwen3 import windows
from musespark.families.rope import context_with
from musespark.families.spec import LayerSpec, MlpSpec, ModelSpec, NormSpec
from musespark.families.tensors import TensorMap, match_tensors, vision_tower

name = "qwen2_vl"
model_types = ("qwen2_vl", "qwen2_5_vl")
architectures = ("Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration")
models = "Qwen2-VL, Qwen2.5-VL (text, images)"

_IGNORABLE = llama.IGNORABLE | vision_tower("visual")


def text_config(outer: Fields, *kinds: str) -> Fields:
    """The text's part of a config: under ``text_config``, or beside the others in older files.
    `kinds`: the model types that it may have."""
    if outer.get("text_config") is None:
        return outer
    c = outer.section("text_config")
    if c.get("model_type") not in (None, *kinds):
        raise c.refuse("model_type", f"supported: {', '.join(kinds)}")
    return c


def tied_head(outer: Fields, text: Fields) -> bool:
    """Whether the head is the embedding: as either config says."""
    said = [one.flag("tie_word_embeddings", False) for one in (outer, text)]
    return any(said)


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; missing keys take Qwen2_5_VLTextConfig's defaults."""
    outer = Fields.of(config)
    outer.architecture(*architectures)
    c = text_config(outer, "qwen2_vl_text", "qwen2_5_vl_text", "qwen2_vl", "qwen2_5_vl")
    size = read_sizes(
        c,
        vocab_size=152064,
        hidden_size=8192,
        intermediate_size=29568,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        max_position_embeddings=32768,
    )
    norm = NormSpec("rms", c.number("rms_norm_eps", 1e-5))
    mlp = MlpSpec(activation=c.activation("hidden_act", "silu"), intermediate=size.intermediate)

    def layer(window: int) -> LayerSpec:
        attention = size.attention(window=window, qkv_bias=True)
        return LayerSpec(attention=attention, mlp=mlp, attn_norm=norm, mlp_norm=norm)

    rope = mrope_from_config(
        c,
        size.head_dim,
        size.context,
        theta=1000000.0,
        sections=(16, 24, 24),
        interleaved=False,
    )
    return ModelSpec(
        vocab=size.vocab,
        hidden=size.hidden,
        max_context=context_with(rope, size.context),
        final_norm=norm,
        tied_head=tied_head(outer, c),
        ropes=[rope],
        layers=[layer(w) for w in windows(c, size.layers, first=80)],
    )


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names; those of the vision tower are left out and listed."""
    names = list(names)
    source_of = llama.namer_beside_towers(names, llama.LAYER_NAMES)
    return match_tensors(model, names, source_of, _IGNORABLE)
