"""What most towers share: layers of a plain vision transformer, and reading their sizes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from musespark.families.fields import MAX_LAYERS, MAX_WIDTH, Fields
from musespark.families.spec import AttentionSpec, LayerSpec, MlpSpec, NormSpec
from musespark.families.tensors import Part

MAX_SIDE = 1024  # patches on a side of a table or a window; pixels of a patch

# Parts of a layer of SigLIP and CLIP in transformers.
SIGLIP_LAYER = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.out_proj",
    "attn_norm": "layer_norm1",
    "mlp_norm": "layer_norm2",
    "up": "mlp.fc1",
    "down": "mlp.fc2",
}


@dataclass(frozen=True)
class Sizes:
    """The sizes of a tower; ``patch`` in pixels on a side."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    channels: int
    patch: int

    @property
    def patch_dim(self) -> int:
        """Numbers of a patch, one frame deep."""
        return self.channels * self.patch**2

    def layer(
        self,
        norm: NormSpec,
        activation: str,
        *,
        window: int = 0,
        rope: bool = False,
        gated: bool = False,
    ) -> LayerSpec:
        """A layer with biases everywhere and norms before both halves."""
        head_dim = self.hidden // self.heads
        return LayerSpec(
            attention=AttentionSpec(
                heads=self.heads,
                kv_heads=self.heads,
                head_dim=head_dim,
                window=window,
                rope=0 if rope else -1,
                query_scale=head_dim**-0.5,
                qkv_bias=True,
                o_bias=True,
            ),
            mlp=MlpSpec(
                activation=activation, gated=gated, bias=True, intermediate=self.intermediate
            ),
            attn_norm=norm,
            mlp_norm=norm,
        )


def square(c: Fields, name: str, default: int, high: int = MAX_SIDE) -> int:
    """An integer, or a list of two that are the same."""
    value = c.get(name, default)
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if type(value) is not int or not 1 <= value <= high:
        raise c.refuse(name, f"an integer in 1 … {high}, or that twice, is needed")
    return value


def read_sizes(
    c: Fields,
    *,
    hidden_size: int = 768,
    intermediate_size: int = 3072,
    num_hidden_layers: int = 12,
    num_attention_heads: int = 12,
    patch_size: int = 16,
) -> Sizes:
    """Sizes under the names of SigLIP's config; the defaults are its class's (SigLIP-B/16)."""
    sizes = Sizes(
        hidden=c.integer("hidden_size", hidden_size, MAX_WIDTH),
        intermediate=c.integer("intermediate_size", intermediate_size, MAX_WIDTH),
        layers=c.integer("num_hidden_layers", num_hidden_layers, MAX_LAYERS),
        heads=c.integer("num_attention_heads", num_attention_heads, MAX_WIDTH),
        channels=c.integer("num_channels", 3, 64),
        patch=square(c, "patch_size", patch_size),
    )
    check_heads(c, "num_attention_heads", sizes)
    return sizes


def check_heads(c: Fields, name: str, sizes: Sizes) -> None:
    """Heads share the hidden width evenly."""
    if sizes.hidden % sizes.heads:
        raise c.refuse(name, f"must divide the hidden width, {sizes.hidden}")


def table_side(c: Fields, sizes: Sizes, image_size: int) -> int:
    """Patches on a side of the image that the table of positions was made for."""
    return max(square(c, "image_size", image_size, 2**20) // sizes.patch, 1)


def plain_name(canonical: str) -> tuple[str, str]:
    """A canonical name without ``_bias``, and ``bias`` or ``weight``."""
    plain = canonical.removesuffix("_bias")
    return plain, "bias" if plain != canonical else "weight"


def siglip_source(
    root: str, sizes: Sizes, others: Mapping[str, str | Part]
) -> Callable[[str], str | Part]:
    """For ``match_vision``: names below `root` as SigLIP and CLIP have them.

    `others`: canonical name without ``_bias`` -> name without ``.weight``, or a Part.
    """
    stored = (sizes.hidden, sizes.channels, sizes.patch, sizes.patch)
    places = {
        "class_token": Part(f"{root}embeddings.class_embedding", (sizes.hidden,)),
        "patch": Part(f"{root}embeddings.patch_embedding.weight", stored, flat=True),
        "patch_bias": Part(f"{root}embeddings.patch_embedding.bias", (sizes.hidden,)),
        "positions": f"{root}embeddings.position_embedding.weight",
        "embed_norm": f"{root}pre_layrnorm.weight",
        "embed_norm_bias": f"{root}pre_layrnorm.bias",
        "head.norm": f"{root}post_layernorm.weight",
        "head.norm_bias": f"{root}post_layernorm.bias",
    }

    def source(canonical: str) -> str | Part:
        plain, kind = plain_name(canonical)
        if plain in others:
            other = others[plain]
            return other if isinstance(other, Part) else f"{other}.{kind}"
        if canonical in places:
            return places[canonical]
        _, index, part = plain.split(".")
        return f"{root}encoder.layers.{index}.{SIGLIP_LAYER[part]}.{kind}"

    return source


# What a SigLIP or CLIP tower's checkpoint has beside what is run.
SIGLIP_SPARE = {
    "pooling head, which models that write text do not use": re.compile(
        r"head\..+|pooler\..+|embeddings\.position_ids"
    ),
}


def later_layers(run: int, there: int) -> dict[str, re.Pattern[str]]:
    """Ignorable: layers of a SigLIP or CLIP tower beyond those that are run, and its last norm."""
    numbers = "|".join(map(str, range(run, there)))
    layers = rf"encoder\.layers\.({numbers})\..+|" if numbers else ""
    return {"layers after the one that is read": re.compile(layers + r"post_layernorm\..+")}


def fused_rows(name: str, hidden: int, part: str) -> Part:
    """Rows of ``q``, ``k`` or ``v`` of a weight or bias in which the three are stored as one."""
    stored = (3 * hidden,) if name.endswith(".bias") else (3 * hidden, hidden)
    return Part(name, stored, start="qkv".index(part) * hidden, count=hidden)
