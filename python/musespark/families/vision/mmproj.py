"""From the metadata and tensors of a projector file (mmproj) to a tower beside a text.

mmproj_types.py has the tables. Metadata is a mapping of key to value as weights/gguf.py gives it;
nothing here reads a file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from musespark.errors import CorruptFile, UnsupportedModel
from musespark.families.fields import MAX_LAYERS, MAX_WIDTH, FieldRefused
from musespark.families.tensors import Part, TensorMap
from musespark.families.vision import VisionSpec, vision_spec, vit
from musespark.families.vision.mmproj_keys import ClipKeys
from musespark.families.vision.mmproj_types import (
    KINDS,
    LACKING,
    PATCH,
    POSITIONS,
    SECOND_FRAME,
    Header,
    Kind,
    Said,
)
from musespark.families.vision.tensors import match_vision
from musespark.untrusted import plain_value

Shape = tuple[int, ...]
ARCHITECTURES = ("clip", "mmproj")  # general.architecture of such files
_MOST_PIXELS = 1 << 16  # on a side
_MOST_NUMBERS = 1 << 26  # of a tensor that is decoded whole; those in use have a tenth of it
_LAYER = {
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_out",
    "attn_norm": "ln1",
    "mlp_norm": "ln2",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}
_SWAPPED = {"up": "ffn_down", "down": "ffn_up"}
_TAPS = {"merged_norm": "norm", "0": "fc1", "1": "fc2"}
# Field of a config -> the key that it was made of: what a refusal names.
_FIELD_KEYS = {
    "deepstack_visual_indexes": "clip.vision.is_deepstack_layers",
    "mm_tokens_per_image": "clip.vision.projector.scale_factor",
    "vision_feature_layer": "clip.vision.feature_layer",
    "window_size": "clip.vision.patch_size",
}


@dataclass(frozen=True)
class Remade:
    """A tensor that is decoded to floats and made of stored ones of one shape: side by side along a
    new axis 2 where there are several, then with its axes in the order ``axes`` (all of them)."""

    names: tuple[str, ...]
    shape: Shape  # of what becomes of them
    axes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Tower:
    """``remade``: tensors of ``mapping`` that are put together; ``interleaved``: stored Q and K ->
    heads, as in families/gguf.py."""

    spec: VisionSpec
    mapping: TensorMap
    remade: dict[str, Remade]
    interleaved: dict[str, int]


@dataclass(frozen=True)
class Projector:
    """What a file says by itself. ``width``: of the rows it makes. ``name``: its type."""

    name: str
    kind: Kind
    width: int
    said: Said
    shapes: Mapping[str, Shape] = field(repr=False)

    @property
    def taps(self) -> int:
        """Layers of the text that are given features too."""
        return len(self.said.vision.get("deepstack_visual_indexes", ()))

    def around(self, text: Mapping[str, Any]) -> dict[str, Any]:
        """The config.json of the whole, `text` being that of its text alone."""
        said = {"model_type": self.kind.model_type, "vision_config": self.said.vision}
        said |= self.said.outer
        if "text_config" in text:
            return {**text, **said}
        inner = dict(text)
        tied = {"tie_word_embeddings": inner.pop("tie_word_embeddings")}
        if self.kind.text_type:
            inner["model_type"] = self.kind.text_type
        return {**said, **tied, "text_config": inner}


def read_projector(metadata: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Projector:
    """The projector of a file with these keys and tensors (name -> shape, rows before columns).

    UnsupportedModel names a type, key or tensor that this version does not run; CorruptFile what
    is missing, out of range or contradicts another.
    """
    name = plain_value(metadata, "general.architecture")
    if name not in ARCHITECTURES:
        raise UnsupportedModel(
            f"general.architecture is {name!r:.80}: a projector file (mmproj) says 'clip'"
        )
    keys = ClipKeys(metadata)
    if not keys.flag("clip.has_vision_encoder"):
        raise UnsupportedModel("clip.has_vision_encoder is not true: the file reads no images")
    where, kind = _kind(keys)
    _check_activation(keys, kind)
    header = _header(keys, kind, shapes)
    said = kind.describe(header)
    mean, std = (keys.numbers(f"clip.vision.image_{part}", 3) for part in ("mean", "std"))
    if not all(one > 0 for one in std):
        raise CorruptFile(f"clip.vision.image_std is {std}: numbers above 0 are needed")
    said.preprocessor |= {"image_mean": mean, "image_std": std}
    keys.refuse_unread()
    return Projector(where, kind, header.width, said, shapes)


def _kind(keys: ClipKeys) -> tuple[str, Kind]:
    key = "clip.projector_type"
    if not keys.has(key) and keys.has("clip.vision.projector_type"):
        key = "clip.vision.projector_type"  # of files that hear too
    name = keys.text(key)
    if name is None:
        raise CorruptFile(f"{key} is missing")
    if name not in KINDS:
        why = LACKING.get(name, f"known are {', '.join(KINDS)}")
        raise UnsupportedModel(f"{key} is {name!r:.80}: {why}")
    return name, KINDS[name]


def _check_activation(keys: ClipKeys, kind: Kind) -> None:
    """The flags must say what the type's towers have."""
    said = [name for name in ("gelu", "silu") if keys.flag(f"clip.use_{name}")]
    if kind.activation is not None and said != [one for one in (kind.activation,) if one]:
        raise UnsupportedModel(
            f"clip.use_gelu and clip.use_silu say {said}: towers of this type have "
            f"{kind.activation or 'neither'}"
        )


def _header(keys: ClipKeys, kind: Kind, shapes: Mapping[str, Shape]) -> Header:
    hidden = keys.integer("clip.vision.embedding_length", MAX_WIDTH)
    heads = keys.integer("clip.vision.attention.head_count", MAX_WIDTH)
    if hidden % heads:
        raise CorruptFile(
            f"clip.vision.attention.head_count is {heads}: must divide "
            f"clip.vision.embedding_length, {hidden}"
        )
    patch = keys.integer("clip.vision.patch_size", vit.MAX_SIDE)
    image = keys.integer("clip.vision.image_size", _MOST_PIXELS, low=patch)
    stored = _shape(shapes, PATCH)
    if len(stored) != 4 or stored != (hidden, 3, patch, patch):
        raise CorruptFile(
            f"tensor {PATCH!r} has shape {list(stored)}, the keys ask for "
            f"{[hidden, 3, patch, patch]}"
        )
    size = vit.Sizes(
        hidden=hidden,
        intermediate=_intermediate(keys, kind, shapes, hidden),
        layers=keys.integer("clip.vision.block_count", MAX_LAYERS),
        heads=heads,
        channels=3,
        patch=patch,
    )
    return Header(keys, size, image, shapes, _width(keys, kind, shapes))


def _shape(shapes: Mapping[str, Shape], name: str) -> Shape:
    if name not in shapes:
        raise CorruptFile(f"tensor {name!r} is missing")
    return shapes[name]


def _swapped(kind: Kind, shapes: Mapping[str, Shape], hidden: int) -> bool:
    """Whether ffn_down and ffn_up are the other way round: the older converter's names."""
    rows, columns = (*_shape(shapes, "v.blk.0.ffn_down.weight"), 0, 0)[:2]
    return kind.older and columns == hidden and rows != hidden


def _intermediate(keys: ClipKeys, kind: Kind, shapes: Mapping[str, Shape], hidden: int) -> int:
    """The inner width of an MLP, as its matrices have it. The key must agree, where it says one: in
    older files it is 0, and in those of Qwen2-VL another number."""
    up = "ffn_down" if _swapped(kind, shapes, hidden) else "ffn_up"
    shape = _shape(shapes, f"v.blk.0.{up}.weight")
    key = "clip.vision.feed_forward_length"
    said = keys.integer(key, MAX_WIDTH, 0, low=0)
    if kind.model_type != "qwen2_vl" and said not in (0, shape[0]):
        raise CorruptFile(f"{key} is {said}, tensor 'v.blk.0.{up}.weight' has {shape[0]} rows")
    return shape[0]


def _width(keys: ClipKeys, kind: Kind, shapes: Mapping[str, Shape]) -> int:
    """Columns of the rows for the text. LLaVA's key is about a head of CLIP's that it lacks."""
    shape = _shape(shapes, kind.output)
    if len(shape) != 2 or max(shape) > MAX_WIDTH:
        raise CorruptFile(f"tensor {kind.output!r} has shape {list(shape)}, a matrix is needed")
    width = shape[1] if kind.turned else shape[0]
    key = "clip.vision.projection_dim"
    said = keys.integer(key, MAX_WIDTH, 0, low=0)
    if kind.model_type != "llava" and said not in (0, width):
        raise CorruptFile(f"{key} is {said}, tensor {kind.output!r} makes rows of {width}")
    return width


# ---- the tower -----------------------------------------------------------------------------------


def tower_of(projector: Projector, config: Mapping[str, Any]) -> Tower:
    """The tower of a file, in a model with this config (:meth:`Projector.around`)."""
    kind = projector.kind
    try:
        spec = kind.adjust(vision_spec(config, projector.width))
    except FieldRefused as error:
        key = _FIELD_KEYS.get(error.field, f"clip: what stands for {error.field}")
        raise UnsupportedModel(f"{key}: {error.why}") from None
    remade = _remade(projector, spec)
    names = set(projector.shapes) - {SECOND_FRAME if kind.frames > 1 else ""}
    mapping = match_vision(
        spec, names, _source(projector, spec, remade), ("",), _spare(projector, spec)
    )
    heads = spec.layers[0].attention.heads
    woven = r"layers\.\d+\.[qk](_bias)?"
    interleaved = {
        part.name: heads
        for name, part in mapping.sources.items()
        if kind.woven and re.fullmatch(woven, name)
    }
    return Tower(spec, mapping, remade, interleaved)


def _remade(projector: Projector, spec: VisionSpec) -> dict[str, Remade]:
    kind, shapes = projector.kind, projector.shapes
    found: dict[str, Remade] = {}
    if kind.frames > 1:
        first, second = _shape(shapes, PATCH), _shape(shapes, SECOND_FRAME)
        if first != second:
            raise CorruptFile(
                f"tensor {SECOND_FRAME!r} has shape {list(second)}, {PATCH!r} {list(first)}"
            )
        whole = (*first[:2], 2, *first[2:])
        found[PATCH] = Remade((PATCH, SECOND_FRAME), whole)
    if kind.turned:
        stored = (spec.hidden, projector.width)
        if (shape := _shape(shapes, kind.output)) != stored:
            raise CorruptFile(
                f"tensor {kind.output!r} has shape {list(shape)}, the keys ask for {list(stored)}"
            )
        found[kind.output] = Remade((kind.output,), stored[::-1], (1, 0))
    # Parts of a vector are told by its numbers, not by its bytes.
    biases = [name for name in shapes if name.endswith("attn_qkv.bias")]
    found |= {name: Remade((name,), shapes[name]) for name in biases}
    for name, one in found.items():
        if math.prod(one.shape) > _MOST_NUMBERS:
            raise UnsupportedModel(
                f"tensor {name!r} has {math.prod(one.shape)} numbers, at most {_MOST_NUMBERS} are "
                "decoded at once"
            )
    return found


def _source(
    projector: Projector, spec: VisionSpec, remade: Mapping[str, Remade]
) -> Callable[[str], str | Part]:
    """Canonical name -> the file's name, or the part of the file's tensor that it is."""
    kind, shapes = projector.kind, projector.shapes
    layer_names = _LAYER | (_SWAPPED if _swapped(kind, shapes, spec.hidden) else {})
    fused = "v.blk.0.attn_qkv.weight" in shapes
    patch = remade[PATCH].shape if PATCH in remade else shapes[PATCH]
    whole: dict[str, str | Part] = {
        "patch": Part(PATCH, patch, flat=True),
        "patch_bias": "v.patch_embd.bias",
        "class_token": "v.class_embd",
        "positions": POSITIONS,
        "embed_norm": "v.pre_ln.weight",
        "embed_norm_bias": "v.pre_ln.bias",
    }

    def source(canonical: str) -> str | Part:
        if canonical in whole:
            return whole[canonical]
        plain, stem = vit.plain_name(canonical)
        place, *rest = plain.split(".")
        if place == "head":
            return f"{kind.heads[rest[0]]}.{stem}"
        if place == "taps":
            layer = spec.taps[int(rest[0])].layer
            return f"v.deepstack.{layer}.{_TAPS[rest[1]]}.{stem}"
        at, part = f"v.blk.{rest[0]}.", rest[1]
        if fused and part in ("q", "k", "v"):
            return vit.fused_rows(f"{at}attn_qkv.{stem}", spec.hidden, part)
        return f"{at}{layer_names[part]}.{stem}"

    return source


def _spare(projector: Projector, spec: VisionSpec) -> dict[str, re.Pattern[str]]:
    """What a file may have beside what is run."""
    if spec.rope.on and not spec.positions.side:
        # Of older files, in which every tower had one.
        return {"a placeholder of positions": re.compile(re.escape(POSITIONS))}
    if projector.kind.model_type != "llava":
        return {}
    later = range(len(spec.layers), projector.said.vision["num_hidden_layers"])
    layers = rf"v\.blk\.({'|'.join(map(str, later))})\..+|" if later else ""
    return {"layers after the one that is read": re.compile(layers + r"v\.post_ln\..+")}
