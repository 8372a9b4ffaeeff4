"""Muse Glimmer, the text tower (transformers: MuseGlimmerForConditionalGeneration).

What is particular to it: the looked-up embedding row is normed; queries and keys are normed
without weights and queries multiplied by ``qk_scale_factor``; layers whose ``layer_rope_theta`` is
0 have no positions; attention output is gated by sigmoid(gate_proj x); norms stand before and
after both halves of a layer and are zero-centred, the final norm is not; logits are scaled, then
soft-capped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from musespark.families import llama
from musespark.families.decoder import read_sizes, read_windows
from musespark.families.fields import MAX_CONTEXT, Fields
from musespark.families.rope import rope_from_config
from musespark.families.spec import LayerSpec, MlpSpec, ModelSpec, NormSpec
from musespark.families.tensors import TensorMap, match_tensors, vision_tower

name = "muse_glimmer"
model_types = ("muse_glimmer",)
architectures = ("MuseGlimmerForConditionalGeneration",)
models = "Muse Glimmer (text, images, video), Spark Nano"

LAYER_NAMES = llama.LAYER_NAMES | {
    "attn_gate": "self_attn.gate_proj.weight",
    "post_attn_norm": "post_attention_layernorm.weight",
    "mlp_norm": "pre_feedforward_layernorm.weight",
    "post_mlp_norm": "post_feedforward_layernorm.weight",
}
_IGNORABLE = vision_tower("vision_tower", "vision_adapter", "vision_projection")


def rotated_layers(c: Fields, layers: int) -> list[bool]:
    """Which layers have positions.

    transformers 5.23 reads ``layer_rope_theta`` as a switch only: a value that is not 0 rotates
    with the one theta of ``rope_parameters``, whatever the value. So do we; :func:`notes` tells.
    """
    thetas = c.list_of("layer_rope_theta", layers)
    if thetas is None:
        return [(layers - 1 - i) % 4 != 0 for i in range(layers)]
    for theta in thetas:
        if type(theta) not in (int, float) or not 0 <= theta < 1e30:
            raise c.refuse("layer_rope_theta", f"{theta!r:.80} is not a number of at least 0")
    return [theta != 0 for theta in thetas]


def layer_windows(c: Fields, layers: int) -> list[int]:
    """The window of each layer: all but every fourth, counted from the last, have one."""
    default = [
        "full_attention" if (layers - 1 - i) % 4 == 0 else "sliding_attention"
        for i in range(layers)
    ]
    window = c.optional_integer("sliding_window", 2048, MAX_CONTEXT)
    return read_windows(c, window, default)


def tied_head(c: Fields, text: Fields) -> bool:
    """Whether the head is the embedding, from the outer config and its ``text_config``.

    transformers ties by the outer field alone. A text_config that says tied beside a stored head is
    resolved by the loader, which unties where the two matrices differ.
    """
    text.get("tie_word_embeddings")
    said = c if c.has("tie_word_embeddings") else text
    return said.flag("tie_word_embeddings", False)


def _text_config(outer: Fields) -> Fields:
    outer.architecture(*architectures)
    c = outer.section("text_config")
    c.must_be("model_type", "muse_glimmer_text", "muse_glimmer_text")
    return c


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; missing keys take MuseGlimmerTextConfig's defaults."""
    outer = Fields.of(config)
    c = _text_config(outer)
    size = read_sizes(
        c,
        vocab_size=202048,
        hidden_size=6656,
        intermediate_size=19968,
        num_hidden_layers=52,
        num_attention_heads=32,
        num_key_value_heads=2,
        head_dim=128,
        max_position_embeddings=131072,
    )
    eps = c.number("rms_norm_eps", 1e-5)
    bias = c.flag("attention_bias", False)
    query_scale = c.number("qk_scale_factor", 3.87) * size.head_dim**-0.5
    before = NormSpec("rms_centered", eps)
    after = NormSpec("rms_centered", c.number("post_norm_eps", 1e-8))
    scaleless = NormSpec("rms_scaleless", eps)
    activation = c.activation("hidden_activation", "silu")
    mlp = MlpSpec(activation=activation, intermediate=size.intermediate)
    rotated = rotated_layers(c, size.layers)

    def layer(window: int, rope: bool) -> LayerSpec:
        attention = size.attention(
            window=window,
            rope=0 if rope else -1,
            q_norm=scaleless,
            k_norm=scaleless,
            query_scale=query_scale,
            qkv_bias=bias,
            o_bias=bias,
            output_gate=True,
        )
        return LayerSpec(
            attention=attention,
            mlp=mlp,
            attn_norm=before,
            post_attn_norm=after,
            mlp_norm=before,
            post_mlp_norm=after,
        )

    return ModelSpec(
        vocab=size.vocab,
        hidden=size.hidden,
        max_context=size.context,
        embed_norm=scaleless,
        final_norm=NormSpec("rms", eps),
        tied_head=tied_head(outer, c),
        logit_scale=c.number("output_multiplier", 0.19611613513818404),
        logit_softcap=c.number("final_logit_softcapping", 20.0),
        ropes=[rope_from_config(c, size.head_dim, size.context)] if any(rotated) else [],
        layers=[layer(w, r) for w, r in zip(layer_windows(c, size.layers), rotated, strict=True)],
    )


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names; the vision tower's are left out and listed."""
    source_name = llama.namer("model.language_model", LAYER_NAMES)
    return match_tensors(model, names, source_name, _IGNORABLE)


def notes(config: Mapping[str, Any] | Fields) -> list[str]:
    """A note where ``layer_rope_theta`` names a theta that (as in transformers) is not used."""
    c = Fields.of(config).section("text_config")
    return theta_notes(c, rope_from_config(c, 2, 1).theta)


def theta_notes(c: Fields, theta: float) -> list[str]:
    """What :func:`notes` says of a text config whose layers rotate with `theta`."""
    thetas = c.get("layer_rope_theta")
    others = sorted({t for t in thetas if t not in (0, theta)}) if isinstance(thetas, list) else []
    if not others:
        return []
    return [
        f"layer_rope_theta has {others}, which only switch positions on; the theta used is "
        f"rope_parameters.rope_theta, {theta:g}, as in transformers 5.23"
    ]
