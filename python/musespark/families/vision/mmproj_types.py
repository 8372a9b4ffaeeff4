"""What llama.cpp's projector files (mmproj) say, as data: one :class:`Kind` for each
``clip.projector_type`` that is run.

The converter writes a tower as tensors ``v.*``, its projector as ``mm.*``, and of its config and
its image processor the few keys ``clip.*`` that are read here. An entry of :data:`KINDS` says how
those become the config, the processor's settings and the tensors that our families read; what no
key says takes the defaults of transformers' classes, and what those differ in is written at each.
mmproj.py applies it. Facts are of conversion/ and gguf-py of llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from musespark.errors import CorruptFile, UnsupportedModel
from musespark.families.spec import NormSpec
from musespark.families.vision import vit
from musespark.families.vision.mmproj_keys import ClipKeys
from musespark.families.vision.spec import VisionSpec

Shape = tuple[int, ...]
PATCH, POSITIONS = "v.patch_embd.weight", "v.position_embd.weight"
SECOND_FRAME = "v.patch_embd.weight.1"
_MOST_PIXELS = 1 << 28


@dataclass
class Said:
    """What a file says, in the terms of a model folder: ``vision`` is config.json's vision_config,
    ``outer`` its other keys; ``preprocessor`` and ``processor`` are the files of that name."""

    vision: dict[str, Any]
    outer: dict[str, Any] = field(default_factory=dict)
    preprocessor: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Header:
    """What all kinds have. ``shapes``: of all tensors. ``width``: of the rows for the text side,
    ``image``: pixels on a side, as the file has it."""

    keys: ClipKeys
    size: vit.Sizes
    image: int
    shapes: Mapping[str, Shape]
    width: int

    @property
    def side(self) -> int:
        """Patches on a side of the file's image."""
        return self.image // self.size.patch

    def merge(self, key: str, default: int) -> int:
        """Patches of a token on a side."""
        return self.keys.integer(key, 64, default)

    def epsilon(self) -> float:
        return self.keys.number("clip.vision.attention.layer_norm_epsilon", 1.0)

    def rows(self, name: str, columns: int) -> int:
        """The rows of a matrix of so many columns."""
        shape = self.shapes.get(name)
        if shape is None:
            raise CorruptFile(f"tensor {name!r} is missing")
        if len(shape) != 2 or shape[1] != columns:
            raise CorruptFile(f"tensor {name!r} has shape {list(shape)}, {columns} columns needed")
        return shape[0]

    def table_side(self) -> int:
        """The side of a square table of positions."""
        entries = self.rows(POSITIONS, self.size.hidden)
        if math.isqrt(entries) ** 2 != entries:
            raise CorruptFile(f"tensor {POSITIONS!r} has {entries} rows, a square is needed")
        return math.isqrt(entries)


def _plain(model_type: str, header: Header) -> dict[str, Any]:
    """vision_config of SigLIP and CLIP."""
    size = header.size
    return {
        "model_type": model_type,
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_channels": size.channels,
        "patch_size": size.patch,
        "image_size": header.image,
        "layer_norm_eps": header.epsilon(),
    }


def _tokens(header: Header, merge: int, key: str) -> int:
    """Tokens of the file's square image."""
    if header.side % merge:
        raise CorruptFile(f"{key} is {merge}: must divide {header.side} patches on a side")
    return (header.side // merge) ** 2


_SCALE = "clip.vision.projector.scale_factor"
_MERGE = "clip.vision.spatial_merge_size"


def _idefics3(header: Header) -> Said:
    merge = header.merge(_SCALE, 2)
    longest = header.keys.integer("clip.vision.preproc_image_size", 1 << 16, 4 * header.image)
    return Said(
        _plain("idefics3_vision", header),
        {"scale_factor": merge},
        {"size": {"longest_edge": longest}, "max_image_size": {"longest_edge": header.image}},
        {"image_seq_len": _tokens(header, merge, _SCALE)},
    )


def _gemma3(header: Header) -> Said:
    tokens = _tokens(header, header.merge(_SCALE, 4), _SCALE)
    size = {"height": header.image, "width": header.image}
    return Said(
        _plain("siglip_vision_model", header),
        {"mm_tokens_per_image": tokens},
        {"size": size},
        {"image_seq_length": tokens},
    )


def _llava(header: Header) -> Said:
    if "v.class_embd" not in header.shapes:
        raise UnsupportedModel(
            "tensor 'v.class_embd' is missing: of projector_type 'mlp' CLIP towers alone are run"
        )
    for name in ("model.image_newline", "v.image_newline"):
        if name in header.shapes:
            raise UnsupportedModel(f"tensor {name!r}: LLaVA 1.6's grids of tiles are not supported")
    keys, layers = header.keys, header.size.layers
    # The converter leaves out the layers that are not read, and says so where the config did.
    read = layers
    if keys.has("clip.vision.feature_layer"):
        read = int(keys.numbers("clip.vision.feature_layer", 1)[0])
    aspect = keys.text("clip.vision.image_aspect_ratio")
    if aspect not in (None, "pad", "square"):
        raise keys.refuse("clip.vision.image_aspect_ratio", "known are 'pad' and 'square'")
    padded = {"do_pad": True, "image_processor_type": "LlavaImageProcessor"}
    activation = "gelu" if keys.flag("clip.use_gelu") else "quick_gelu"
    return Said(
        _plain("clip_vision_model", header) | {"hidden_act": activation},
        {
            "vision_feature_layer": read,
            "multimodal_projector_bias": "mm.0.bias" in header.shapes,
        },
        {
            "size": {"shortest_edge": header.image},
            "crop_size": {"height": header.image, "width": header.image},
        }
        | (padded if aspect == "pad" else {}),
    )


def _qwen(header: Header, vision: dict[str, Any]) -> Said:
    size, keys, merge = header.size, header.keys, header.merge(_MERGE, 2)
    header.epsilon()  # of the text; the classes have one of their own
    vision |= {
        "depth": size.layers,
        "num_heads": size.heads,
        "in_channels": size.channels,
        "patch_size": size.patch,
        "spatial_merge_size": merge,
        "temporal_patch_size": 2,
    }
    pixels = {"patch_size": size.patch, "merge_size": merge, "temporal_patch_size": 2}
    for name in ("min_pixels", "max_pixels"):
        key = f"clip.vision.image_{name}"
        if keys.has(key):
            pixels[name] = keys.integer(key, _MOST_PIXELS)
    return Said(vision, {}, pixels)


def _qwen2_vl(header: Header) -> Said:
    size = header.size
    if size.intermediate % size.hidden:
        raise UnsupportedModel(
            f"clip.vision.embedding_length is {size.hidden}: must divide {size.intermediate}, the "
            "rows of ffn_up"
        )
    ratio = size.intermediate // size.hidden
    sizes = {"embed_dim": size.hidden, "mlp_ratio": ratio, "hidden_size": header.width}
    return _qwen(header, sizes)


def _wide(header: Header) -> dict[str, Any]:
    size = header.size
    sizes = {"hidden_size": size.hidden, "intermediate_size": size.intermediate}
    return sizes | {"out_hidden_size": header.width}


def _qwen2_5_vl(header: Header) -> Said:
    every = header.keys.integer("clip.vision.n_wa_pattern", header.size.layers)
    full = list(range(every - 1, header.size.layers, every))
    windows: dict[str, Any] = {"fullatt_block_indexes": full}
    if header.keys.has("clip.vision.window_size"):
        windows["window_size"] = header.keys.integer("clip.vision.window_size", 1 << 20)
    return _qwen(header, _wide(header) | windows)


def _qwen3_vl(header: Header) -> Said:
    taps, layers = "clip.vision.is_deepstack_layers", header.size.layers
    tapped = header.keys.flags(taps, layers) if header.keys.has(taps) else [False] * layers
    places = {
        "num_position_embeddings": header.table_side() ** 2,
        "deepstack_visual_indexes": [i for i, one in enumerate(tapped) if one],
    }
    return _qwen(header, _wide(header) | places)


def _muse_glimmer(header: Header) -> Said:
    size, merge, side = header.size, header.merge(_MERGE, 2), header.table_side()
    wide = size.hidden * merge**2
    vision = _plain("muse_glimmer_vision", header) | {
        # The converter adds up the two frames of a patch: an image's are the same, a video's not.
        "patch_temporal": 1,
        "pos_emb_height": side,
        "pos_emb_width": side,
        "merge_size": merge,
    }
    del vision["image_size"], vision["model_type"]
    return Said(
        vision,
        {"out_hidden_size": wide, "projector_hidden_size": header.rows("mm.0.weight", wide)},
        {"patch_size": size.patch, "merge_size": merge, "temporal_patch_size": 1},
    )


def _soft_norm_as_stored(spec: VisionSpec) -> VisionSpec:
    """Gemma's own norm is stored as 1 + w."""
    norm = spec.head.merged_norm
    plain = NormSpec("rms", norm.eps)
    return replace(spec, head=replace(spec.head, merged_norm=plain))


def _as_it_is(spec: VisionSpec) -> VisionSpec:
    return spec


@dataclass(frozen=True)
class Kind:
    """How files of one ``clip.projector_type`` are read.

    ``texts``: general.architecture of the models it is made for. ``text_type``: the model_type of
    such a text inside a config with a tower ("": as the text's file alone has it). ``activation``:
    what ``clip.use_gelu`` and ``clip.use_silu`` must say (gelu, silu, "": neither; None: they say
    nothing). ``heads``: tensors of the head, canonical name -> the file's without ``.weight``.
    ``output``: the matrix that makes rows of the text side; ``turned``: it is stored as [inputs,
    outputs]. ``frames``: of a stored patch, each in a tensor. ``woven``: rows of Q and K alternate
    between halves, as in llama.cpp's texts. ``older``: an older converter wrote such files too,
    which calls the two products of an MLP the other way round. ``row``: the text that stands for
    one of an image's rows; ``marks``: what must be in the text's vocabulary beside it.
    """

    model_type: str
    texts: tuple[str, ...]
    describe: Callable[[Header], Said]
    heads: Mapping[str, str]
    output: str
    row: str
    marks: tuple[str, ...] = ()
    text_type: str = ""
    activation: str | None = "gelu"
    adjust: Callable[[VisionSpec], VisionSpec] = _as_it_is
    turned: bool = False
    frames: int = 1
    woven: bool = False
    older: bool = False


_QWEN_HEADS = {"norm": "v.post_ln", "0": "mm.0", "1": "mm.2"}
_QWEN_MARKS = ("<|vision_start|>", "<|vision_end|>")

KINDS = {
    "idefics3": Kind(
        "idefics3",
        ("llama",),
        _idefics3,
        {"norm": "v.post_ln", "0": "mm.model.fc"},
        "mm.model.fc.weight",
        "<image>",
        ("<fake_token_around_image>",),  # Idefics 3 spells the others
        older=True,
    ),
    "gemma3": Kind(
        "gemma3",
        ("gemma3",),
        _gemma3,
        {"norm": "v.post_ln", "merged_norm": "mm.soft_emb_norm", "0": "mm.input_projection"},
        "mm.input_projection.weight",
        "<image_soft_token>",
        ("<start_of_image>", "<end_of_image>"),
        adjust=_soft_norm_as_stored,
        turned=True,
        older=True,
    ),
    "mlp": Kind(
        "llava",
        ("llama",),
        _llava,
        {"0": "mm.0", "1": "mm.2"},
        "mm.2.weight",
        "<image>",
        activation=None,
        older=True,
    ),
    "qwen2vl_merger": Kind(
        "qwen2_vl",
        ("qwen2vl",),
        _qwen2_vl,
        _QWEN_HEADS,
        "mm.2.weight",
        "<|image_pad|>",
        _QWEN_MARKS,
        text_type="qwen2_vl_text",
        activation="",
        frames=2,
        older=True,
    ),
    "qwen2.5vl_merger": Kind(
        "qwen2_5_vl",
        ("qwen2vl",),
        _qwen2_5_vl,
        _QWEN_HEADS,
        "mm.2.weight",
        "<|image_pad|>",
        _QWEN_MARKS,
        text_type="qwen2_5_vl_text",
        activation="silu",
        frames=2,
        older=True,
    ),
    "qwen3vl_merger": Kind(
        "qwen3_vl",
        ("qwen3vl",),
        _qwen3_vl,
        {"merged_norm": "v.post_ln", "norm": "v.post_ln", "0": "mm.0", "1": "mm.2"},
        "mm.2.weight",
        "<|image_pad|>",
        _QWEN_MARKS,
        text_type="qwen3_vl_text",
        frames=2,
    ),
    "muse-glimmer": Kind(
        "muse_glimmer",
        ("muse-glimmer",),
        _muse_glimmer,
        {"norm": "v.post_ln", "0": "mm.0", "1": "mm.1", "2": "mm.2"},
        "mm.2.weight",
        "<|patch|>",
        ("<|image_start|>", "<|image_end|>"),
        activation=None,
        woven=True,
    ),
}
# Types that people have and this version does not run: why.
LACKING = {
    "lfm2": "short convolution layers (in the text tower) are not part of this version",
}
