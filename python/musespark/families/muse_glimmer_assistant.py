"""Muse Glimmer's block drafter (transformers: MuseGlimmerAssistantModel; DFlash, arXiv:2602.06036).

No model by itself: it drafts for another, whose embedding and head it uses (csrc/model/drafter.h).
What is particular to it: keys and values come from the hidden states of some of that model's layers
(``encoder.fc``, then a norm) and from the block itself; positions of a block see each other both
ways, and ``sliding_window`` positions before themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from musespark.families import llama
from musespark.families.decoder import read_sizes, read_windows
from musespark.families.fields import MAX_CONTEXT, MAX_LAYERS, MAX_VOCAB, Fields
from musespark.families.rope import rope_from_config
from musespark.families.spec import LayerSpec, MlpSpec, ModelSpec, NormSpec
from musespark.families.tensors import TensorMap, match_tensors

name = "muse_glimmer_assistant"
model_types = ("muse_glimmer_assistant",)
architectures = ("MuseGlimmerAssistantModel",)
models = "Muse Glimmer's block drafter, for `drafter=` (no model by itself)"

_LAYER_NAMES = llama.LAYER_NAMES | {
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
}
_NAMES = {
    "context": "encoder.fc.weight",
    "context_norm": "encoder.output_norm_enc.weight",
    "final_norm": "norm.weight",
}
_MOST_BLOCK = 64  # csrc/model/check_spec.cc


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; missing keys take MuseGlimmerAssistantConfig's defaults."""
    c = Fields.of(config)
    c.architecture(*architectures)
    mask = c.integer("mask_token_id", 201818, MAX_VOCAB - 1, low=0)
    size = read_sizes(
        c,
        vocab_size=mask + 1,
        hidden_size=6656,
        intermediate_size=19968,
        num_hidden_layers=5,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=131072,
    )
    norm = NormSpec("rms", c.number("rms_norm_eps", 1e-5))
    block = c.integer("block_size", 16, _MOST_BLOCK, low=2)
    window = c.optional_integer("sliding_window", 2048, MAX_CONTEXT)
    windows = read_windows(c, window, ["sliding_attention"] * size.layers)
    if any(0 < w < block for w in windows):
        raise c.refuse("sliding_window", f"at least block_size, {block}, is needed")
    mlp = MlpSpec(activation=c.activation("hidden_act", "silu"), intermediate=size.intermediate)
    rope = rope_from_config(c, size.head_dim, size.context, default_theta=500000.0)
    return ModelSpec(
        vocab=size.vocab,
        hidden=size.hidden,
        max_context=size.context,
        final_norm=norm,
        ropes=[rope],
        layers=[
            LayerSpec(
                # transformers' mask of both directions leaves `sliding_window` positions before a
                # query, beside itself.
                attention=size.attention(window=w and w + 1, q_norm=norm, k_norm=norm),
                mlp=mlp,
                attn_norm=norm,
                mlp_norm=norm,
            )
            for w in windows
        ],
        block=block,
        mask_token=mask,
        target_layers=_target_layers(c),
        context_norm=norm,
    )


def _target_layers(c: Fields) -> tuple[int, ...]:
    found = c.get("target_layer_ids")
    found = [1, 13, 25, 37, 49] if found is None else found
    if not isinstance(found, list) or not 1 <= len(found) <= MAX_LAYERS:
        raise c.refuse("target_layer_ids", f"a list of 1 … {MAX_LAYERS} layers is needed")
    for one in found:
        if type(one) is not int or not 0 <= one < MAX_LAYERS:
            raise c.refuse("target_layer_ids", f"{one!r:.80} is not a layer, 0 … {MAX_LAYERS - 1}")
    return tuple(found)


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names, with or without ``model.`` before them."""
    known = list(names)
    root = "model." if f"model.{_NAMES['final_norm']}" in known else ""

    def source_name(canonical: str) -> str:
        if canonical in _NAMES:
            return root + _NAMES[canonical]
        _, index, part = canonical.split(".")
        return f"{root}layers.{index}.{_LAYER_NAMES[part]}"

    return match_tensors(model, known, source_name, {})
