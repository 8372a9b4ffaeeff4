"""Gemma 3: SigLIP, patches averaged to a fixed number of tokens, a norm and one product
(transformers: Gemma3ForConditionalGeneration)."""

from __future__ import annotations

import math
from collections.abc import Iterable

from musespark.families.fields import Fields
from musespark.families.spec import NormSpec
from musespark.families.tensors import Part, TensorMap
from musespark.families.vision import vit
from musespark.families.vision.spec import HeadSpec, PositionSpec, VisionSpec
from musespark.families.vision.tensors import match_vision, root_of

model_types = ("gemma3",)


def _sizes(config: Fields) -> vit.Sizes:
    return vit.read_sizes(config.section("vision_config"))


def spec(config: Fields, width: int) -> VisionSpec:
    """VisionSpec of a ``config.json``; `width` of the text side's rows."""
    c, size = config.section("vision_config"), _sizes(config)
    c.must_be("model_type", "siglip_vision_model", "siglip_vision_model")
    eps = c.number("layer_norm_eps", 1e-6)
    norm = NormSpec("layer", eps, bias=True)
    activation = c.activation("hidden_act", "gelu_pytorch_tanh")
    side = vit.table_side(c, size, 224)
    tokens = math.isqrt(config.integer("mm_tokens_per_image", 256, 2**20))
    if side % tokens:
        raise config.refuse("mm_tokens_per_image", f"its root must divide {side} patches")
    return VisionSpec(
        patch_dim=size.patch_dim,
        hidden=size.hidden,
        merge=side // tokens,
        patch_bias=True,
        positions=PositionSpec("table", side),
        layers=[size.layer(norm, activation)] * size.layers,
        head=HeadSpec(
            norm=norm,
            merge="average",
            merged_norm=NormSpec("rms_centered", eps),
            widths=(width,),
        ),
    )


def tensors(config: Fields, tower: VisionSpec, names: Iterable[str]) -> TensorMap:
    """Finds the tower's tensors among a checkpoint's."""
    names = list(names)
    root = root_of(names, "embeddings.patch_embedding.weight")
    stem = "multi_modal_projector."
    projector = root_of(names, f"{stem}mm_soft_emb_norm.weight") + stem
    stored = (tower.hidden, tower.head.widths[0])
    others: dict[str, str | Part] = {
        "head.merged_norm": f"{projector}mm_soft_emb_norm",
        "head.0": Part(f"{projector}mm_input_projection_weight", stored, transposed=True),
    }
    source = vit.siglip_source(root, _sizes(config), others)
    return match_vision(tower, names, source, (root, projector), vit.SIGLIP_SPARE)
