"""LLaVA 1.5: CLIP read before its last layer, without the class token, through two products
(transformers: LlavaForConditionalGeneration)."""

from __future__ import annotations

from collections.abc import Iterable

from musespark.families.fields import Fields
from musespark.families.spec import NormSpec
from musespark.families.tensors import TensorMap
from musespark.families.vision import vit
from musespark.families.vision.spec import HeadSpec, PositionSpec, VisionSpec
from musespark.families.vision.tensors import match_vision, root_of

model_types = ("llava",)


def _sizes(config: Fields) -> vit.Sizes:
    return vit.read_sizes(config.section("vision_config"), patch_size=32)


def _layers_run(config: Fields, there: int) -> int:
    """Layers up to the one whose output is read; -1 is the last."""
    chosen = config.get("vision_feature_layer", -2)
    run = there + 1 + chosen if type(chosen) is int and chosen < 0 else chosen
    if type(run) is not int or not 1 <= run <= there:
        raise config.refuse("vision_feature_layer", f"one of the {there} layers is needed")
    return run


def spec(config: Fields, width: int) -> VisionSpec:
    """VisionSpec of a ``config.json``; `width` of the text side's rows."""
    c, size = config.section("vision_config"), _sizes(config)
    c.must_be("model_type", "clip_vision_model", "clip_vision_model")
    c.get("projection_dim"), c.get("vocab_size")  # of heads that LLaVA does not use
    config.must_be("vision_feature_select_strategy", "default", "default")
    norm = NormSpec("layer", c.number("layer_norm_eps", 1e-5), bias=True)
    layer = size.layer(norm, c.activation("hidden_act", "quick_gelu"))
    return VisionSpec(
        patch_dim=size.patch_dim,
        hidden=size.hidden,
        class_token=True,
        positions=PositionSpec("table", vit.table_side(c, size, 224)),
        embed_norm=norm,
        layers=[layer] * _layers_run(config, size.layers),
        head=HeadSpec(
            widths=(width, width),
            activation=config.activation("projector_hidden_act", "gelu"),
            bias=config.flag("multimodal_projector_bias", True),
        ),
    )


def tensors(config: Fields, tower: VisionSpec, names: Iterable[str]) -> TensorMap:
    """Finds the tower's tensors among a checkpoint's."""
    names, size = list(names), _sizes(config)
    root = root_of(names, "embeddings.patch_embedding.weight")
    stem = "multi_modal_projector."
    projector = root_of(names, f"{stem}linear_1.weight") + stem
    others = {"head.0": f"{projector}linear_1", "head.1": f"{projector}linear_2"}
    spare = vit.SIGLIP_SPARE | vit.later_layers(len(tower.layers), size.layers)
    source = vit.siglip_source(root, size, others)
    return match_vision(tower, names, source, (root, projector), spare)
