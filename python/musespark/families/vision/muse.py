"""Muse Glimmer and Muse Spark: axial positions counted from 1, columns first, beside an
interpolated table; windows in three of four layers; channels of a block interleaved, three
products, rows of one size (transformers: MuseGlimmer…, MuseSparkForConditionalGeneration).

The two differ in which way round the table is read.
"""

from __future__ import annotations

from collections.abc import Iterable

from musespark.families.fields import MAX_WIDTH, Fields
from musespark.families.spec import LayerSpec, NormSpec
from musespark.families.tensors import TensorMap
from musespark.families.vision import vit
from musespark.families.vision.spec import AxialRopeSpec, HeadSpec, PositionSpec, VisionSpec
from musespark.families.vision.tensors import match_vision, root_of

model_types = ("muse_glimmer", "muse_spark")


def _layers(c: Fields, size: vit.Sizes, window: int) -> list[LayerSpec]:
    norm = NormSpec("layer", 1e-5, bias=True)  # whatever layer_norm_eps says, as transformers
    activation = c.activation("hidden_act", "gelu")
    kinds = {
        "full_attention": size.layer(norm, activation, rope=True),
        "window_attention": size.layer(norm, activation, rope=True, window=window),
    }
    default = [
        "full_attention" if (i + 1) % 4 == 0 or i == size.layers - 1 else "window_attention"
        for i in range(size.layers)
    ]
    chosen = c.list_of("layer_types", size.layers) or default
    for kind in chosen:
        if kind not in kinds:
            raise c.refuse("layer_types", f"{kind!r:.80} is none of {list(kinds)}")
    return [kinds[kind] for kind in chosen]


def spec(config: Fields, width: int) -> VisionSpec:
    """VisionSpec of a ``config.json``; `width` of the text side's rows."""
    c = config.section("vision_config")
    size = vit.read_sizes(
        c,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=50,
        num_attention_heads=16,
        patch_size=14,
    )
    side = c.integer("pos_emb_height", 32, vit.MAX_SIDE)
    if c.integer("pos_emb_width", 32, vit.MAX_SIDE) != side:
        raise c.refuse("pos_emb_width", f"the same as pos_emb_height, {side}, is needed")
    c.get("max_position_embeddings")  # which follows from the two
    merge = vit.square(c, "merge_size", 2, 64)
    wide = size.hidden * merge**2
    if config.integer("out_hidden_size", 6144, MAX_WIDTH) != wide:
        raise config.refuse("out_hidden_size", f"{merge} x {merge} rows have {wide}")
    rope = c.section("rope_parameters")
    rope.must_be("rope_type", "axial", "axial")
    outer = NormSpec("layer", c.number("layer_norm_eps", 1e-5), bias=True)
    text_eps = config.section("text_config").number("rms_norm_eps", 1e-5)
    inner = config.integer("projector_hidden_size", 4096, MAX_WIDTH)
    return VisionSpec(
        patch_dim=size.patch_dim * c.integer("patch_temporal", 2, 64),
        hidden=size.hidden,
        merge=merge,
        positions=PositionSpec(
            "bilinear_zeros", side, turned=config.get("model_type") == "muse_spark"
        ),
        rope=AxialRopeSpec(
            on=True, theta=rope.number("rope_theta", 10000.0), columns_first=True, first=1
        ),
        embed_norm=outer,
        layers=_layers(c, size, side),
        head=HeadSpec(
            norm=outer,
            merge="interleave",
            widths=(inner, inner, width),
            activation=config.activation("projector_hidden_act", "gelu"),
            out_norm=NormSpec("rms_scaleless", text_eps),
        ),
    )


_LAYER = {
    "q": "attn.q_proj",
    "k": "attn.k_proj",
    "v": "attn.v_proj",
    "o": "attn.proj",
    "attn_norm": "norm1",
    "mlp_norm": "norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}


def tensors(config: Fields, tower: VisionSpec, names: Iterable[str]) -> TensorMap:
    """Finds the tower's tensors among a checkpoint's."""
    names = list(names)
    root = root_of(names, "patch_embedder.patch_embedding.weight")
    adapter = root_of(names, "vision_adapter.fc1.weight") + "vision_adapter."
    projection = root_of(names, "vision_projection.weight") + "vision_projection."
    whole = {
        "patch": f"{root}patch_embedder.patch_embedding.weight",
        "positions": f"{root}patch_embedder.position_embedding_table.weight",
        "embed_norm": f"{root}ln_pre.weight",
        "embed_norm_bias": f"{root}ln_pre.bias",
        "head.norm": f"{root}ln_post.weight",
        "head.norm_bias": f"{root}ln_post.bias",
        "head.0": f"{adapter}fc1.weight",
        "head.1": f"{adapter}fc2.weight",
        "head.2": f"{projection}weight",
    }

    def source(canonical: str) -> str:
        if canonical in whole:
            return whole[canonical]
        plain, stem = vit.plain_name(canonical)
        _, index, part = plain.split(".")
        return f"{root}layers.{index}.{_LAYER[part]}.{stem}"

    return match_vision(tower, names, source, (root, adapter, projection), {})
