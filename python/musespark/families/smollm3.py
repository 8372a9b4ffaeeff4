"""SmolLM3 (transformers: SmolLM3ForCausalLM): llama in which every fourth layer has no positions.

``no_rope_layers`` says it layer by layer, and in spite of its name 1 means that the layer rotates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from musespark.families import llama
from musespark.families.decoder import read_sizes, read_windows
from musespark.families.fields import MAX_CONTEXT, MAX_LAYERS, Fields
from musespark.families.rope import context_with, rope_from_config
from musespark.families.spec import LayerSpec, MlpSpec, ModelSpec, NormSpec
from musespark.families.tensors import TensorMap, match_tensors

name = "smollm3"
model_types = ("smollm3",)
architectures = ("SmolLM3ForCausalLM",)
models = "SmolLM3"


def _rotated(c: Fields, layers: int) -> list[bool]:
    every = c.integer("no_rope_layer_interval", 4, MAX_LAYERS)
    given = c.list_of("no_rope_layers", layers)
    if given is None:
        return [(i + 1) % every != 0 for i in range(layers)]
    for one in given:
        if one not in (0, 1):
            raise c.refuse("no_rope_layers", f"{one!r:.40} is neither 0 nor 1")
    return [one == 1 for one in given]


def _windows(c: Fields, rotated: list[bool]) -> list[int]:
    window = c.optional_integer("sliding_window", None, MAX_CONTEXT)
    if not c.flag("use_sliding_window", False):
        window = None
    default = [
        "full_attention" if window is None or rope else "sliding_attention" for rope in rotated
    ]
    return read_windows(c, window, default)


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; keys that are missing take SmolLM3Config's defaults."""
    c = Fields.of(config)
    c.architecture(*architectures)
    size = read_sizes(
        c,
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=32768,
    )
    bias = c.flag("attention_bias", False)
    norm = NormSpec("rms", c.number("rms_norm_eps", 1e-6))
    mlp = MlpSpec(
        activation=c.activation("hidden_act", "silu"),
        bias=c.flag("mlp_bias", False),
        intermediate=size.intermediate,
    )
    rotated = _rotated(c, size.layers)

    def layer(window: int, rope: bool) -> LayerSpec:
        attention = size.attention(
            window=window,
            rope=0 if rope else -1,
            qkv_bias=bias,
            o_bias=bias,
        )
        return LayerSpec(attention=attention, mlp=mlp, attn_norm=norm, mlp_norm=norm)

    rope = rope_from_config(c, size.head_dim, size.context, default_theta=2000000.0)
    return ModelSpec(
        vocab=size.vocab,
        hidden=size.hidden,
        max_context=context_with(rope, size.context),
        final_norm=norm,
        tied_head=c.flag("tie_word_embeddings", True),
        ropes=[rope] if any(rotated) else [],
        layers=[layer(w, r) for w, r in zip(_windows(c, rotated), rotated, strict=True)],
    )


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names; see :func:`match_tensors`."""
    return match_tensors(model, names, llama.namer("model", llama.LAYER_NAMES), llama.IGNORABLE)
