"""LFM2-VL: SigLIP 2 (NaFlex) with positions resized for each image, blocks of patches through a
norm and two products (transformers: Lfm2VlForConditionalGeneration)."""

from __future__ import annotations

import math
from collections.abc import Iterable

from musespark.families.fields import MAX_WIDTH, Fields
from musespark.families.spec import NormSpec
from musespark.families.tensors import TensorMap
from musespark.families.vision import vit
from musespark.families.vision.spec import HeadSpec, PositionSpec, VisionSpec
from musespark.families.vision.tensors import match_vision, root_of

model_types = ("lfm2_vl",)


def _sizes(config: Fields) -> vit.Sizes:
    return vit.read_sizes(config.section("vision_config"))


def spec(config: Fields, width: int) -> VisionSpec:
    """VisionSpec of a ``config.json``; `width` of the text side's rows."""
    c, size = config.section("vision_config"), _sizes(config)
    c.must_be("model_type", "siglip2_vision_model", "siglip2_vision_model")
    norm = NormSpec("layer", c.number("layer_norm_eps", 1e-6), bias=True)
    activation = c.activation("hidden_act", "gelu_pytorch_tanh")
    entries = c.integer("num_patches", 256, vit.MAX_SIDE**2)
    if math.isqrt(entries) ** 2 != entries:
        raise c.refuse("num_patches", "a square is needed")
    config.must_be("vision_feature_layer", -1, -1)
    # nn.LayerNorm's own eps.
    over = NormSpec("layer", 1e-5, bias=True)
    return VisionSpec(
        patch_dim=size.patch_dim,
        hidden=size.hidden,
        merge=config.integer("downsample_factor", 2, 64),
        patch_bias=True,
        positions=PositionSpec("bilinear_area", math.isqrt(entries)),
        layers=[size.layer(norm, activation)] * size.layers,
        head=HeadSpec(
            norm=norm,
            merged_norm=over if config.flag("projector_use_layernorm", True) else NormSpec(),
            widths=(config.integer("projector_hidden_size", 2560, MAX_WIDTH), width),
            activation=config.activation("projector_hidden_act", "gelu"),
            bias=config.flag("projector_bias", True),
        ),
    )


def tensors(config: Fields, tower: VisionSpec, names: Iterable[str]) -> TensorMap:
    """Finds the tower's tensors among a checkpoint's."""
    names = list(names)
    root = root_of(names, "embeddings.patch_embedding.weight")
    stem = "multi_modal_projector."
    projector = root_of(names, f"{stem}linear_1.weight") + stem
    others = {
        "patch": f"{root}embeddings.patch_embedding",
        "head.merged_norm": f"{projector}layer_norm",
        "head.0": f"{projector}linear_1",
        "head.1": f"{projector}linear_2",
    }
    source = vit.siglip_source(root, _sizes(config), others)
    return match_vision(tower, names, source, (root, projector), vit.SIGLIP_SPARE)
