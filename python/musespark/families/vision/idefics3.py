"""Idefics3 and SmolVLM: SigLIP with positions by buckets, blocks of patches through one product
(transformers: Idefics3ForConditionalGeneration, SmolVLMForConditionalGeneration)."""

from __future__ import annotations

from collections.abc import Iterable

from musespark.families.fields import Fields
from musespark.families.spec import NormSpec
from musespark.families.tensors import TensorMap
from musespark.families.vision import vit
from musespark.families.vision.spec import HeadSpec, PositionSpec, VisionSpec
from musespark.families.vision.tensors import match_vision, root_of

model_types = ("idefics3", "smolvlm")


def _sizes(config: Fields) -> vit.Sizes:
    return vit.read_sizes(
        config.section("vision_config"),
        hidden_size=1152,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=16,
        patch_size=32,
    )


def spec(config: Fields, width: int) -> VisionSpec:
    """VisionSpec of a ``config.json``; `width` of the text side's rows."""
    c, size = config.section("vision_config"), _sizes(config)
    norm = NormSpec("layer", c.number("layer_norm_eps", 1e-6), bias=True)
    activation = c.activation("hidden_act", "gelu_pytorch_tanh")
    return VisionSpec(
        patch_dim=size.patch_dim,
        hidden=size.hidden,
        merge=config.integer("scale_factor", 2, 64),
        patch_bias=True,
        positions=PositionSpec("buckets", vit.table_side(c, size, 224)),
        layers=[size.layer(norm, activation)] * size.layers,
        head=HeadSpec(norm=norm, widths=(width,)),
    )


def tensors(config: Fields, tower: VisionSpec, names: Iterable[str]) -> TensorMap:
    """Finds the tower's tensors among a checkpoint's."""
    names = list(names)
    root = root_of(names, "embeddings.patch_embedding.weight")
    connector = root_of(names, "connector.modality_projection.proj.weight") + "connector."
    others = {"head.0": f"{connector}modality_projection.proj"}
    source = vit.siglip_source(root, _sizes(config), others)
    return match_vision(tower, names, source, (root, connector), vit.SIGLIP_SPARE)
