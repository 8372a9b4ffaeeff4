"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: axial positions, patches block by block, blocks through a norm
and two products (transformers: Qwen2VL…, Qwen2_5_VL…, Qwen3VLForConditionalGeneration).

Qwen2.5-VL has RMS norms, gated MLPs and windows in most layers; Qwen3-VL adds an interpolated table
of positions and taps: heads of their own after some layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from musespark.families.fields import MAX_LAYERS, MAX_WIDTH, Fields
from musespark.families.spec import NormSpec
from musespark.families.tensors import Part, TensorMap
from musespark.families.vision import vit
from musespark.families.vision.spec import (
    AxialRopeSpec,
    HeadSpec,
    PositionSpec,
    TapSpec,
    VisionSpec,
)
from musespark.families.vision.tensors import match_vision, root_of

model_types = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")

_LAYER_NORM = NormSpec("layer", 1e-6, bias=True)
_RMS_NORM = NormSpec("rms", 1e-6)


def _kind(config: Fields) -> str:
    return str(config.get("model_type"))


def _sizes(config: Fields) -> vit.Sizes:
    c, kind = config.section("vision_config"), _kind(config)
    if kind == "qwen2_vl":
        hidden = c.integer("embed_dim", 1280, MAX_WIDTH)
        intermediate = hidden * c.integer("mlp_ratio", 4, 64)
    else:
        defaults = {"qwen2_5_vl": (3584, 3420), "qwen3_vl": (1152, 4304)}[kind]
        hidden = c.integer("hidden_size", defaults[0], MAX_WIDTH)
        intermediate = c.integer("intermediate_size", defaults[1], MAX_WIDTH)
    size = vit.Sizes(
        hidden=hidden,
        intermediate=intermediate,
        layers=c.integer("depth", 27 if kind == "qwen3_vl" else 32, MAX_LAYERS),
        heads=c.integer("num_heads", 16, MAX_WIDTH),
        channels=_channels(c),
        patch=vit.square(c, "patch_size", 16 if kind == "qwen3_vl" else 14),
    )
    vit.check_heads(c, "num_heads", size)
    return size


def _channels(c: Fields) -> int:
    # Checkpoints of Qwen2-VL say in_chans, which transformers does not read.
    c.get("in_chans")
    return c.integer("in_channels", 3, 64)


def _depth(c: Fields) -> int:
    """Frames of a patch."""
    return vit.square(c, "temporal_patch_size", 2, 64)


def spec(config: Fields, width: int) -> VisionSpec:
    """VisionSpec of a ``config.json``; `width` of the text side's rows."""
    c, size, kind = config.section("vision_config"), _sizes(config), _kind(config)
    c.get("tokens_per_second")  # of videos, which the text side's positions read
    said = "hidden_size" if kind == "qwen2_vl" else "out_hidden_size"
    if c.integer(said, 3584, MAX_WIDTH) != width:
        raise c.refuse(said, f"the text side's rows have {width}")
    merge = c.integer("spatial_merge_size", 2, 64)
    theta = c.section("rope_parameters").number("rope_theta", 10000.0)
    wide = size.hidden * merge**2
    activation = {"qwen2_vl": "quick_gelu", "qwen2_5_vl": "silu"}.get(kind, "gelu_pytorch_tanh")
    norm = _RMS_NORM if kind == "qwen2_5_vl" else _LAYER_NORM
    layer = size.layer(
        norm, c.activation("hidden_act", activation), rope=True, gated=kind == "qwen2_5_vl"
    )
    tower = VisionSpec(
        patch_dim=size.patch_dim * _depth(c),
        hidden=size.hidden,
        merge=merge,
        order="blocks",
        rope=AxialRopeSpec(on=True, theta=theta),
        layers=[layer] * size.layers,
        head=HeadSpec(norm=norm, widths=(wide, width), bias=True),
    )
    if kind == "qwen2_5_vl":
        return replace(tower, layers=_windowed(c, size, tower))
    return _with_taps(c, tower) if kind == "qwen3_vl" else tower


def _windowed(c: Fields, size: vit.Sizes, tower: VisionSpec) -> list:
    """All layers but some see a window of so many pixels, in whole blocks."""
    blocks = c.integer("window_size", 112, 2**20) // tower.merge // size.patch
    window = blocks * tower.merge
    if not 1 <= window <= vit.MAX_SIDE:
        raise c.refuse("window_size", f"blocks have {tower.merge * size.patch} pixels")
    full = c.get("fullatt_block_indexes", [7, 15, 23, 31])
    if not isinstance(full, list | tuple) or not all(type(i) is int for i in full):
        raise c.refuse("fullatt_block_indexes", "a list of integers is needed")
    return [
        layer if i in full else replace(layer, attention=replace(layer.attention, window=window))
        for i, layer in enumerate(tower.layers)
    ]


def _with_taps(c: Fields, tower: VisionSpec) -> VisionSpec:
    entries = c.integer("num_position_embeddings", 2304, vit.MAX_SIDE**2)
    if math.isqrt(entries) ** 2 != entries:
        raise c.refuse("num_position_embeddings", "a square is needed")
    layers = c.get("deepstack_visual_indexes", [8, 16, 24])
    there = range(len(tower.layers))
    if not isinstance(layers, list | tuple) or not all(
        type(i) is int and i in there for i in layers
    ):
        raise c.refuse("deepstack_visual_indexes", f"layers in {there} are needed")
    if sorted(set(layers)) != list(layers):
        raise c.refuse("deepstack_visual_indexes", "ascending layers are needed")
    head = replace(tower.head, norm=NormSpec(), merged_norm=_LAYER_NORM)
    return replace(
        tower,
        patch_bias=True,
        positions=PositionSpec("bilinear_corners", math.isqrt(entries)),
        taps=[TapSpec(i, head) for i in layers],
    )


_LAYER = {
    "o": "attn.proj",
    "attn_norm": "norm1",
    "mlp_norm": "norm2",
}
_MLP = {
    "qwen2_vl": {"up": "mlp.fc1", "down": "mlp.fc2"},
    "qwen2_5_vl": {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"},
    "qwen3_vl": {"up": "mlp.linear_fc1", "down": "mlp.linear_fc2"},
}
_HEAD = {
    "qwen2_vl": {"norm": "ln_q", "0": "mlp.0", "1": "mlp.2"},
    "qwen2_5_vl": {"norm": "ln_q", "0": "mlp.0", "1": "mlp.2"},
    "qwen3_vl": {"norm": "norm", "merged_norm": "norm", "0": "linear_fc1", "1": "linear_fc2"},
}


def tensors(config: Fields, tower: VisionSpec, names: Iterable[str]) -> TensorMap:
    """Finds the tower's tensors among a checkpoint's."""
    names, kind, size = list(names), _kind(config), _sizes(config)
    root = root_of(names, "patch_embed.proj.weight")
    depth = tower.patch_dim // size.patch_dim
    stored = (size.hidden, size.channels, depth, size.patch, size.patch)
    whole = {
        "patch": Part(f"{root}patch_embed.proj.weight", stored, flat=True),
        "patch_bias": f"{root}patch_embed.proj.bias",
        "positions": f"{root}pos_embed.weight",
    }
    layer_names = _LAYER | _MLP[kind]

    def source(canonical: str) -> str | Part:
        if canonical in whole:
            return whole[canonical]
        plain, stem = vit.plain_name(canonical)
        place, *rest = plain.split(".")
        if place == "head":
            return f"{root}merger.{_HEAD[kind][rest[0]]}.{stem}"
        if place == "taps":
            return f"{root}deepstack_merger_list.{rest[0]}.{_HEAD[kind][rest[1]]}.{stem}"
        at, part = f"{root}blocks.{rest[0]}.", rest[1]
        if part in ("q", "k", "v"):
            return vit.fused_rows(f"{at}attn.qkv.{stem}", size.hidden, part)
        return f"{at}{layer_names[part]}.{stem}"

    return match_vision(tower, names, source, (root,), {})
