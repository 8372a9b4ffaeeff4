"""From the metadata and tensor names of a GGUF file to a family, its spec and its tensors.

gguf_names.py has the tables; gguf_rope.py reads how positions are scaled. Metadata is a mapping of
key to value as weights/gguf.py gives it; nothing here reads a file.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from musespark.errors import CorruptFile, UnsupportedModel
from musespark.families import gguf_names, read_config
from musespark.families.fields import MAX_LAYERS, MAX_WIDTH, FieldRefused
from musespark.families.gguf_keys import Keys
from musespark.families.gguf_names import ARCHITECTURES, Architecture
from musespark.families.gguf_rope import rope_scaling, with_frequency_factors
from musespark.families.spec import LayerSpec, ModelSpec, NormSpec
from musespark.families.tensors import Part, TensorMap, canonical_shapes, match_tensors, row_parts
from musespark.untrusted import plain_value

Shape = tuple[int, ...]
Around = Callable[[Mapping[str, Any]], dict[str, Any]]
_PROJECTORS = ("clip", "mmproj")  # general.architecture of files that no text is in


@dataclass(frozen=True)
class GgufModel:
    """What a file holds. ``interleaved``: stored Q and K -> heads, where rows must be put back."""

    family: str
    config: dict[str, Any]
    spec: ModelSpec
    mapping: TensorMap
    interleaved: dict[str, int]
    notes: list[str]


def read_gguf(
    metadata: Mapping[str, Any],
    shapes: Mapping[str, Shape],
    vector: Callable[[str], np.ndarray],
    around: Around = dict,
) -> GgufModel:
    """The model of a file with these keys and tensors (name -> shape, rows before columns).

    ``vector`` reads a small tensor as float32 [n]. ``around``: from the config of the file to that
    of a model of which it is the text. UnsupportedModel names the key or tensor that
    this version cannot follow; CorruptFile the one that is missing or contradicts another.
    """
    _check_type(metadata)
    keys = Keys(metadata)
    arch = _variant(keys, ARCHITECTURES[keys.name])
    config = around(config_of(keys, arch, shapes, vector))
    pooling = _encoder_notes(keys) if arch.encoder else _pooling_notes(keys)
    keys.refuse_unread(gguf_names.NEUTRAL, gguf_names.WITHOUT_EFFECT)
    try:
        family, spec, notes = read_config(config)
    except FieldRefused as error:
        raise _in_terms_of_the_file(error, keys, arch, shapes) from None
    if gguf_names.ROPE_FACTORS in shapes:
        spec = dataclasses.replace(
            spec, ropes=[with_frequency_factors(rope, keys, vector) for rope in spec.ropes]
        )
    spec = _with_norms_as_stored(spec, arch)
    read = gguf_names.ROTATION if spec.ropes else ()
    mapping = match_tensors(spec, shapes.keys() - {*read}, sources(arch, spec), {})
    interleaved = _interleaved(spec, mapping) if arch.interleaved else {}
    return GgufModel(family.name, config, spec, mapping, interleaved, notes + pooling)


def _check_type(metadata: Mapping[str, Any]) -> None:
    """UnsupportedModel for files that hold something beside a model: an adapter, a projector."""
    kind, arch = (plain_value(metadata, f"general.{key}") for key in ("type", "architecture"))
    of_images = "; it goes beside the text model's file, as mmproj="
    if kind not in (None, "model"):
        hint = of_images if kind == "mmproj" else ""
        raise UnsupportedModel(f"general.type is {kind!r:.80}: only a 'model' can be loaded{hint}")
    if arch in _PROJECTORS:
        raise UnsupportedModel(
            f"general.architecture is {arch!r}: a projector of images, no model{of_images}"
        )


def _in_terms_of_the_file(
    error: FieldRefused, keys: Keys, arch: Architecture, shapes: Mapping[str, Shape]
) -> UnsupportedModel:
    """A family's refusal with the key or tensor that the config's field was made of."""

    def keys_of(field: str) -> list[str]:
        own = [key for key, name in arch.keys.items() if name == field]
        return [*own, *gguf_names.FIELD_KEYS.get(field, ())]

    def in_words(found: re.Match[str]) -> str:
        return next(iter(keys_of(found[0])), found[0])

    why = re.sub(r"\w+_\w+", in_words, error.why.replace("this field", "this key"))
    if error.field == "partial_rotary_factor":
        why = "models of this architecture rotate whole heads"
    for key in keys_of(error.field):
        if keys.has(key):
            return keys.refuse(key, why)
    tensor = arch.biases.get(error.field, "")
    tensor = f"blk.0.{tensor}" if tensor else gguf_names.FIELD_TENSORS.get(error.field, "")
    if tensor in shapes:
        return UnsupportedModel(f"tensor {tensor!r}: {why}")
    for key in keys_of(error.field):
        return keys.refuse(key, why)
    return UnsupportedModel(f"general.architecture is {keys.name!r}: {why}")


def _variant(keys: Keys, arch: Architecture) -> Architecture:
    for key, other in arch.variants.items():
        if keys.has(key) and keys.number(key) != 0:
            return other
    return arch


def sources(arch: Architecture, spec: ModelSpec) -> Callable[[str], str | Part]:
    """Canonical name -> the file's name, or the part of the file's tensor that it is."""
    shapes = canonical_shapes(spec)
    fused = row_parts(spec, "blk.{}.", arch.fused)

    def source_of(canonical: str) -> str | Part:
        if canonical in fused:
            return fused[canonical]
        if canonical in gguf_names.NAMES:
            return gguf_names.NAMES[canonical]
        _, index, part = canonical.split(".", 2)
        at = f"blk.{index}."
        if not part.startswith("experts."):
            return at + arch.layer_names[part]
        _, expert, part = part.split(".")
        stored = (spec.layers[int(index)].mlp.experts, *shapes[canonical])
        return Part(at + arch.layer_names[f"experts.{part}"], stored, int(expert))

    return source_of


_DEFAULT_THETA = 10000.0  # what llama.cpp takes where a file does not say, whatever the model


def config_of(
    keys: Keys,
    arch: Architecture,
    shapes: Mapping[str, Shape],
    vector: Callable[[str], np.ndarray],
) -> dict[str, Any]:
    """The config that ``arch.model_type``'s family reads."""
    _check_sizes(keys)
    config: dict[str, Any] = {"model_type": arch.model_type, **arch.constants}
    for key, name in arch.keys.items():
        if keys.has(key):
            config[name] = keys.number(key)
        elif key in arch.required:
            raise CorruptFile(f"{keys.name}.{key} is missing")
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    config.setdefault("rope_theta", _DEFAULT_THETA)
    config["vocab_size"] = _vocab(keys, shapes)
    _read_pattern(keys, config)
    config["tie_word_embeddings"] = gguf_names.NAMES["head"] not in shapes
    for flag, part in arch.biases.items():
        config[flag] = f"blk.0.{part}" in shapes
    config |= rope_scaling(keys, shapes, vector)
    if arch.by_axis:
        _read_axes(keys, config)
    _check_head(keys, config)
    if arch.encoder:
        config |= _encoder_config(keys, shapes)
    return arch.complete(config)


_POOLING_MODES = {1: "mean_tokens", 2: "cls_token"}
_POOLINGS = {1: "mean", 2: "first token", 3: "last token"}


def _pooling_notes(keys: Keys) -> list[str]:
    """How the file wants rows made one embedding, which this version does for encoders alone."""
    key = "pooling_type"
    if not keys.has(key):
        return []
    pooling = keys.integer(key)
    if pooling == 0:
        return []
    if pooling not in _POOLINGS:
        raise keys.refuse(key, f"known are 0 (none) and {_POOLINGS}")
    return [
        f"an embedding model; {keys.name}.{key} {pooling} ({_POOLINGS[pooling]}) is not applied: "
        "it is read as a model that generates text"
    ]


def _encoder_config(keys: Keys, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """How rows become one embedding, as the files of sentence-transformers say it."""
    if keys.get("attention.causal") is not False:
        raise keys.refuse("attention.causal", "an encoder sees both ways: false is needed")
    types = shapes.get(gguf_names.NAMES["token_types"], ())
    found: dict[str, Any] = {"type_vocab_size": types[0] if len(types) == 2 else 1}
    pooling = keys.integer("pooling_type") if keys.has("pooling_type") else 0
    modules = [{"type": "Transformer", "path": ""}, {"type": "Pooling", "path": "1_Pooling"}]
    modules.append({"type": "Normalize", "path": "2_Normalize"})
    files: dict[str, Any] = {"modules": modules}
    if pooling in _POOLING_MODES:
        files["pooling"] = {f"pooling_mode_{_POOLING_MODES[pooling]}": True}
    elif pooling:
        what = f" ({_POOLINGS[pooling]})" if pooling in _POOLINGS else ""
        raise keys.refuse("pooling_type", f"not supported{what}; known are 0 to 2: none, mean, cls")
    return found | {"sentence_transformers": files}


def _encoder_notes(keys: Keys) -> list[str]:
    return [f"{keys.name}: an embedding is divided by its length, as llama.cpp does: no key says"]


def _read_pattern(keys: Keys, config: dict[str, Any]) -> None:
    """Which layers have the window, where the file says it layer by layer."""
    pattern = keys.get("attention.sliding_window_pattern")
    if pattern is None:
        return
    layers = config["num_hidden_layers"]
    if not isinstance(pattern, np.ndarray) or pattern.dtype != bool or pattern.shape != (layers,):
        raise keys.refuse("attention.sliding_window_pattern", f"{layers} booleans are needed")
    config["layer_types"] = [
        "sliding_attention" if one else "full_attention" for one in pattern.tolist()
    ]


def _read_axes(keys: Keys, config: dict[str, Any]) -> None:
    """Pairs that rotate by time, height and width; and what images may add to layers, of which the
    file of the tower says more."""
    key = "rope.dimension_sections"
    sections = keys.get(key)
    good = isinstance(sections, np.ndarray) and sections.dtype.kind in "iu" and sections.size == 4
    if not good or not ((sections >= 0) & (sections <= MAX_WIDTH)).all() or sections[3] != 0:
        raise keys.refuse(key, "pairs of time, height and width, and 0, are needed")
    rope = config.get("rope_scaling", {"rope_type": "default"})
    config["rope_scaling"] = rope | {"mrope_section": sections[:3].tolist()}
    if keys.has("n_deepstack_layers") and not 0 <= keys.integer("n_deepstack_layers") <= MAX_LAYERS:
        raise keys.refuse("n_deepstack_layers", f"an integer in 0 … {MAX_LAYERS} is needed")


def _check_sizes(keys: Keys) -> None:
    """The numbers that the rest of this file counts with; the family checks them all."""
    limits = {"block_count": MAX_LAYERS} | dict.fromkeys(
        ("attention.head_count", "embedding_length", "attention.key_length"), MAX_WIDTH
    )
    for key, limit in limits.items():
        if keys.has(key) and not 1 <= keys.integer(key) <= limit:
            raise keys.refuse(key, f"an integer in 1 … {limit} is needed")


def _vocab(keys: Keys, shapes: Mapping[str, Shape]) -> int:
    """Rows of the embedding; vocab_size, where given, must say the same."""
    name = gguf_names.NAMES["embed"]
    embed = shapes.get(name)
    if embed is None or len(embed) != 2:
        found = "is missing" if embed is None else f"has shape {list(embed)}"
        raise CorruptFile(
            f"tensor {gguf_names.NAMES['embed']!r} {found}, two dimensions are needed"
        )
    if keys.has("vocab_size") and keys.integer("vocab_size") != embed[0]:
        raise CorruptFile(
            f"{keys.name}.vocab_size is {keys.integer('vocab_size')}, "
            f"{gguf_names.NAMES['embed']} has {embed[0]} rows"
        )
    return embed[0]


def _check_head(keys: Keys, config: dict[str, Any]) -> None:
    """Value heads are as wide as key heads, and a head rotates whole unless the family says."""
    head = config.get("head_dim", 0) or config["hidden_size"] // max(
        1, config["num_attention_heads"]
    )
    if keys.has("attention.value_length") and keys.integer("attention.value_length") != head:
        raise keys.refuse("attention.value_length", f"key heads are {head} wide")
    _check_rotated(keys, config, head)


def _check_rotated(keys: Keys, config: dict[str, Any], head: int) -> None:
    """How many floats of a head rotate: all of them where the file does not say, as llama.cpp."""
    key, key_of_windows = "rope.dimension_count", "rope.dimension_count_swa"
    rotated = keys.integer(key) if keys.has(key) else head
    if keys.has(key) and (not 2 <= rotated <= head or rotated % 2):
        raise keys.refuse(key, f"an even number of at most {head}, a head's width, is needed")
    if keys.has(key_of_windows) and keys.integer(key_of_windows) != rotated:
        raise keys.refuse(key_of_windows, f"other layers rotate {rotated} floats of a head")
    # A little more than the share, so that rounding down gives this number again.
    config["partial_rotary_factor"] = 1.0 if rotated == head else (rotated + 0.5) / head


# ---- forms of llama.cpp's own -------------------------------------------------------------------


def _interleaved(spec: ModelSpec, mapping: TensorMap) -> dict[str, int]:
    heads: dict[str, int] = {}
    for i, layer in enumerate(spec.layers):
        a = layer.attention
        for part, count in (("q", a.heads), ("k", a.kv_heads)):
            for name in (f"layers.{i}.{part}", f"layers.{i}.{part}_bias"):
                if name in mapping.sources:
                    heads[mapping.sources[name].name] = count
    return heads


def unpermute(rows: int, heads: int) -> np.ndarray:
    """For each row of Q or K in our order, its row in llama.cpp's.

    A head's pair i of rows that rotate together is (2 i, 2 i + 1) there and (i, i + D / 2) here.
    """
    order = np.arange(rows).reshape(heads, -1, 2)
    return order.swapaxes(1, 2).reshape(rows)


def _with_norms_as_stored(spec: ModelSpec, arch: Architecture) -> ModelSpec:
    """The spec with norms that multiply by w where the family's multiply by 1 + w (``one_added``),
    and with weights for those of queries and keys that have none (``weighted_heads``)."""
    everywhere = {"rms_centered": "rms"} if arch.one_added else {}
    of_heads = everywhere | ({"rms_scaleless": "rms"} if arch.weighted_heads else {})
    if not of_heads:
        return spec

    def stored(holder: Any, kinds: Mapping[str, str], *names: str) -> dict[str, NormSpec]:
        norms = {name: getattr(holder, name) for name in names}
        return {
            name: dataclasses.replace(norm, kind=kinds.get(norm.kind, norm.kind))
            for name, norm in norms.items()
        }

    def layer(one: LayerSpec) -> LayerSpec:
        a = one.attention
        around = stored(one, everywhere, "attn_norm", "post_attn_norm", "mlp_norm", "post_mlp_norm")
        a = dataclasses.replace(a, **stored(a, of_heads, "q_norm", "k_norm"))
        return dataclasses.replace(one, attention=a, **around)

    return dataclasses.replace(
        spec,
        layers=[layer(one) for one in spec.layers],
        **stored(spec, everywhere, "final_norm"),
    )
