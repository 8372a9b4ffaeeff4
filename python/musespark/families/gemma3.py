"""Gemma 3, the text tower (transformers: Gemma3ForCausalLM, Gemma3ForConditionalGeneration).

Gemma 2 with a norm on each query and key head in place of the soft caps, five window layers to one
full one, and positions of their own for each of the two kinds (older keys: ``rope_theta`` and
``rope_scaling`` for full layers, ``rope_local_base_freq`` for the others).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from musespark.families import llama
from musespark.families.decoder import read_sizes, read_windows
from musespark.families.fields import MAX_CONTEXT, MAX_LAYERS, Fields
from musespark.families.gemma2 import LAYER_NAMES as GEMMA2_LAYER_NAMES
from musespark.families.gemma2 import gemma_layer
from musespark.families.rope import ropes_of_kinds
from musespark.families.spec import LayerSpec, ModelSpec, NormSpec
from musespark.families.tensors import TensorMap, match_tensors, vision_tower

name = "gemma3"
model_types = ("gemma3", "gemma3_text")
architectures = ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration")
models = "Gemma 3 (text, images)"

LAYER_NAMES = GEMMA2_LAYER_NAMES | {
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
}
_IGNORABLE = llama.IGNORABLE | vision_tower("vision_tower", "multi_modal_projector")


def _text_config(outer: Fields) -> Fields:
    outer.architecture(*architectures)
    if outer.get("model_type") == "gemma3_text":
        return outer
    c = outer.section("text_config")
    c.must_be_absent("final_logit_softcapping")
    c.must_be("model_type", "gemma3_text", "gemma3_text")
    return c


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; missing keys take Gemma3TextConfig's defaults."""
    outer = Fields.of(config)
    c = _text_config(outer)
    # Gemma3Attention of transformers 5.23 does not read its soft cap.
    c.must_be_absent("attn_logit_softcapping")
    c.must_be("use_bidirectional_attention", False, None)
    size = read_sizes(
        c,
        vocab_size=262208,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        max_position_embeddings=131072,
    )
    bias = c.flag("attention_bias", False)
    norm = NormSpec("rms_centered", c.number("rms_norm_eps", 1e-6))
    query_scale = c.number("query_pre_attn_scalar", 256) ** -0.5
    every = c.integer("sliding_window_pattern", 6, MAX_LAYERS)
    kinds = [
        "sliding_attention" if (i + 1) % every else "full_attention" for i in range(size.layers)
    ]
    window = c.optional_integer("sliding_window", 4096, MAX_CONTEXT)

    def layer(window: int) -> LayerSpec:
        attention = size.attention(
            window=window,
            rope=0 if window else 1,
            q_norm=norm,
            k_norm=norm,
            query_scale=query_scale,
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
        tied_head=_tied(outer, c),
        logit_softcap=c.optional_number("final_logit_softcapping", None) or 0.0,
        ropes=ropes_of_kinds(c, size.head_dim, size.context, 1000000.0, 10000.0),
        layers=[layer(w) for w in read_windows(c, window, kinds)],
        mutual_rows=c is not outer,
    )


def _tied(outer: Fields, text: Fields) -> bool:
    # transformers ties by the outer field alone, which is true where it is not said.
    text.flag("tie_word_embeddings", True)
    return outer.flag("tie_word_embeddings", True)


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names; those of the vision tower are left out and listed."""
    names = list(names)
    source_of = llama.namer_beside_towers(names, LAYER_NAMES)
    return match_tensors(model, names, source_of, _IGNORABLE)
