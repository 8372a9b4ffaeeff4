"""From the metadata and tensor names of a GGUF file to a family, its spec and its tensors.

gguf_names.py has the tables. Metadata is a mapping of key to value as weights/gguf.py gives it;
nothing here reads a file.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from musespark.errors import CorruptFile, UnsupportedModel
from musespark.families import gguf_names, read_config
from musespark.families.fields import MAX_CONTEXT, MAX_LAYERS, MAX_WIDTH
from musespark.families.gguf_names import ARCHITECTURES, Architecture
from musespark.families.lacking import GGUF_LACKING, LACKING
from musespark.families.spec import LayerSpec, ModelSpec, NormSpec, RopeSpec
from musespark.families.tensors import Part, TensorMap, canonical_shapes, match_tensors, row_parts

Shape = tuple[int, ...]


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
) -> GgufModel:
    """The model of a file with these keys and tensors (name -> shape, rows before columns).

    ``vector`` reads a small tensor as float32 [n]. UnsupportedModel names the key (or, as the
    family does, the config field) that this version cannot follow; CorruptFile the one that is
    missing or contradicts another.
    """
    keys = _Keys(metadata)
    arch = _variant(keys, ARCHITECTURES[keys.name])
    config = config_of(keys, arch, shapes, vector)
    family, spec, notes = read_config(config)
    if gguf_names.ROPE_FACTORS in shapes:
        spec = dataclasses.replace(
            spec, ropes=[_stretched(rope, keys, vector) for rope in spec.ropes]
        )
    if arch.one_added:
        spec = _with_plain_norms(spec)
    if arch.weighted_heads:
        spec = _with_weighted_heads(spec)
    mapping = match_tensors(spec, shapes, sources(arch, spec), gguf_names.IGNORABLE)
    mapping.ignored.clear()  # what IGNORABLE names has been read
    interleaved = _interleaved(spec, mapping) if arch.interleaved else {}
    return GgufModel(family.name, config, spec, mapping, interleaved, notes)


def _variant(keys: _Keys, arch: Architecture) -> Architecture:
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


class _Keys:
    """The keys of one architecture, checked as they are read."""

    def __init__(self, metadata: Mapping[str, Any]):
        self.metadata = metadata
        name = metadata.get("general.architecture")
        if name is None:
            raise CorruptFile("general.architecture is missing")
        lacking = GGUF_LACKING.get(name, name) if isinstance(name, str) else ""
        if lacking in LACKING and name not in ARCHITECTURES:
            raise UnsupportedModel(
                f"general.architecture is {name!r:.80}: {LACKING[lacking]} not part of this version"
            )
        if not isinstance(name, str) or name not in ARCHITECTURES:
            raise UnsupportedModel(
                f"general.architecture is {name!r:.80}: supported are "
                f"{', '.join(sorted(ARCHITECTURES))}"
            )
        self.name = name

    def own(self) -> list[str]:
        """The architecture's keys, without its name."""
        prefix = self.name + "."
        return [key[len(prefix) :] for key in self.metadata if key.startswith(prefix)]

    def has(self, key: str) -> bool:
        return f"{self.name}.{key}" in self.metadata

    def get(self, key: str) -> Any:
        return self.metadata.get(f"{self.name}.{key}")

    def refuse(self, key: str, why: str) -> UnsupportedModel:
        return UnsupportedModel(f"{self.name}.{key} is {self.get(key)!r:.80}: {why}")

    def number(self, key: str) -> int | float:
        """An integer or finite number; one that all layers share may be an array."""
        value = self.get(key)
        if isinstance(value, np.ndarray) and value.size and value.dtype.kind in "iuf":
            if (value != value[0]).any():
                raise self.refuse(key, "one value for all layers is needed")
            value = value[0].item()
        if type(value) not in (int, float) or not math.isfinite(value):
            raise CorruptFile(f"{self.name}.{key} is {value!r:.80}, a number is needed")
        return value

    def integer(self, key: str) -> int:
        value = self.number(key)
        if type(value) is not int:
            raise CorruptFile(f"{self.name}.{key} is {value!r:.80}, an integer is needed")
        return value


_DEFAULT_THETA = 10000.0  # what llama.cpp takes where a file does not say, whatever the model


def config_of(
    keys: _Keys,
    arch: Architecture,
    shapes: Mapping[str, Shape],
    vector: Callable[[str], np.ndarray],
) -> dict[str, Any]:
    """The config that ``arch.model_type``'s family reads."""
    _check_keys(keys, arch)
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
    scaling = _rope_scaling(keys)
    if gguf_names.LONG_FACTORS in shapes:
        scaling = _longrope(keys, config, shapes, vector)
    if scaling is not None:
        config["rope_scaling"] = scaling
    _check_head(keys, config)
    return arch.complete(config)


def _read_pattern(keys: _Keys, config: dict[str, Any]) -> None:
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


def _longrope(
    keys: _Keys,
    config: dict[str, Any],
    shapes: Mapping[str, Shape],
    vector: Callable[[str], np.ndarray],
) -> dict[str, Any]:
    """The scaling of a file with a number for each frequency, one set for long texts."""
    original = "rope.scaling.original_context_length"
    if not keys.has(original):
        raise CorruptFile(f"{keys.name}.{original} is missing")
    if gguf_names.SHORT_FACTORS not in shapes:
        raise CorruptFile(f"tensor {gguf_names.SHORT_FACTORS!r} is missing")
    config["original_max_position_embeddings"] = keys.integer(original)
    scaling: dict[str, Any] = {
        "rope_type": "longrope",
        "long_factor": vector(gguf_names.LONG_FACTORS).tolist(),
        "short_factor": vector(gguf_names.SHORT_FACTORS).tolist(),
    }
    if keys.has("rope.scaling.attn_factor"):
        scaling["attention_factor"] = keys.number("rope.scaling.attn_factor")
    return scaling


def _check_keys(keys: _Keys, arch: Architecture) -> None:
    """Refuses keys that nobody reads and that are not known to be without effect."""
    read = {*arch.keys, *gguf_names.READ_IN_CODE, *gguf_names.WITHOUT_EFFECT}
    for key in keys.own():
        if key in read:
            continue
        neutral, value = gguf_names.NEUTRAL.get(key), keys.get(key)
        if neutral is None or not np.isscalar(value) or value != neutral:
            raise keys.refuse(key, "this key is not supported")


def _check_sizes(keys: _Keys) -> None:
    """The numbers that the rest of this file counts with; the family checks them all."""
    limits = {"block_count": MAX_LAYERS} | dict.fromkeys(
        ("attention.head_count", "embedding_length", "attention.key_length"), MAX_WIDTH
    )
    for key, limit in limits.items():
        if keys.has(key) and not 1 <= keys.integer(key) <= limit:
            raise keys.refuse(key, f"an integer in 1 … {limit} is needed")


def _vocab(keys: _Keys, shapes: Mapping[str, Shape]) -> int:
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


def _check_head(keys: _Keys, config: dict[str, Any]) -> None:
    """Value heads are as wide as key heads, and a head rotates whole unless the family says."""
    head = config.get("head_dim", 0) or config["hidden_size"] // max(
        1, config["num_attention_heads"]
    )
    if keys.has("attention.value_length") and keys.integer("attention.value_length") != head:
        raise keys.refuse("attention.value_length", f"key heads are {head} wide")
    if keys.has("rope.dimension_count"):
        rotated = keys.integer("rope.dimension_count")
        if not 2 <= rotated <= head:
            raise keys.refuse("rope.dimension_count", f"heads are {head} wide")
        # A little more than the share, so that rounding down gives this number again.
        share = 1.0 if rotated == head else (rotated + 0.5) / head
        config["partial_rotary_factor"] = share


def _rope_scaling(keys: _Keys) -> dict[str, Any] | None:
    kind = keys.get("rope.scaling.type")
    if kind is None or (isinstance(kind, str) and kind == "none"):
        return None
    scaling: dict[str, Any] = {"rope_type": kind}
    if not isinstance(kind, str) or kind not in ("linear", "yarn"):
        raise keys.refuse("rope.scaling.type", "supported are none, linear, yarn")
    if not keys.has("rope.scaling.factor"):
        raise CorruptFile(f"{keys.name}.rope.scaling.factor is missing")
    scaling["factor"] = keys.number("rope.scaling.factor")
    if kind == "yarn":
        for key, name in (
            ("rope.scaling.original_context_length", "original_max_position_embeddings"),
            ("rope.scaling.yarn_beta_fast", "beta_fast"),
            ("rope.scaling.yarn_beta_slow", "beta_slow"),
        ):
            if keys.has(key):
                scaling[name] = keys.number(key)
    if keys.has("rope.scaling.attn_factor") and keys.number("rope.scaling.attn_factor") != 1.0:
        raise keys.refuse("rope.scaling.attn_factor", "only 1.0 is supported")
    return scaling


# ---- frequency factors --------------------------------------------------------------------------

_LLAMA3_LOW, _LLAMA3_HIGH = 1.0, 4.0
_LLAMA3_CONTEXT = 8192


def _stretched(rope: RopeSpec, keys: _Keys, vector: Callable[[str], np.ndarray]) -> RopeSpec:
    """The rotation of a file with ``rope_freqs.weight``: numbers that divide the frequencies.

    llama.cpp computes them from the llama3 scaling, whose parameters it does not keep. Where the
    usual ones give these very numbers they are what the model was made with, and the frequencies
    are then those of the original to the bit; else the numbers are taken as they are.
    """
    name = gguf_names.ROPE_FACTORS
    factors = vector(name)
    if len(factors) != rope.dim // 2:
        raise CorruptFile(f"tensor {name!r} has {len(factors)} numbers, {rope.dim // 2} are needed")
    if not (np.isfinite(factors) & (factors > 0)).all():
        raise CorruptFile(f"tensor {name!r} holds {factors.min()}; numbers above 0 are needed")
    if rope.scaling != "none":
        raise UnsupportedModel(
            f"{keys.name}.rope.scaling.type is {rope.scaling!r}: not supported beside {name}"
        )
    if (factors == 1).all():
        return rope
    context = _LLAMA3_CONTEXT
    if keys.has("rope.scaling.original_context_length"):
        context = keys.integer("rope.scaling.original_context_length")
    if 1 <= context <= MAX_CONTEXT:
        usual = dataclasses.replace(
            rope,
            scaling="llama3",
            factor=float(factors.max()),
            low_freq_factor=_LLAMA3_LOW,
            high_freq_factor=_LLAMA3_HIGH,
            original_context=context,
        )
        if np.allclose(factors, llama3_factors(usual), rtol=1e-5, atol=0):
            return usual
    return dataclasses.replace(
        rope, scaling="factors", factors=tuple(float(one) for one in factors)
    )


def llama3_factors(rope: RopeSpec) -> np.ndarray:
    """float64 [dim / 2]: what llama3 scaling divides each frequency by, as llama.cpp writes it."""
    frequency = rope.theta ** (-np.arange(0, rope.dim, 2) / rope.dim)
    wavelength = 2 * math.pi / frequency
    low, high = rope.low_freq_factor, rope.high_freq_factor
    smooth = (rope.original_context / wavelength - low) / (high - low)
    between = 1 / ((1 - smooth) / rope.factor + smooth)
    factors = np.where(wavelength > rope.original_context / low, rope.factor, between)
    return np.where(wavelength < rope.original_context / high, 1.0, factors)


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


def unweave(rows: int, heads: int) -> np.ndarray:
    """For each row of Q or K in our order, its row in llama.cpp's.

    A head's pair i of rows that rotate together is (2 i, 2 i + 1) there and (i, i + D / 2) here.
    """
    order = np.arange(rows).reshape(heads, -1, 2)
    return order.swapaxes(1, 2).reshape(rows)


def _with_plain_norms(spec: ModelSpec) -> ModelSpec:
    """The spec with norms that multiply by w where the family's multiply by 1 + w."""

    def plain(norm: NormSpec) -> NormSpec:
        return dataclasses.replace(norm, kind="rms") if norm.kind == "rms_centered" else norm

    def layer(one: LayerSpec) -> LayerSpec:
        a = one.attention
        return dataclasses.replace(
            one,
            attention=dataclasses.replace(a, q_norm=plain(a.q_norm), k_norm=plain(a.k_norm)),
            attn_norm=plain(one.attn_norm),
            post_attn_norm=plain(one.post_attn_norm),
            mlp_norm=plain(one.mlp_norm),
            post_mlp_norm=plain(one.post_mlp_norm),
        )

    return dataclasses.replace(
        spec, final_norm=plain(spec.final_norm), layers=[layer(one) for one in spec.layers]
    )


def _with_weighted_heads(spec: ModelSpec) -> ModelSpec:
    """The spec with a weight for each norm of queries and keys that has none."""

    def weighted(norm: NormSpec) -> NormSpec:
        return dataclasses.replace(norm, kind="rms") if norm.kind == "rms_scaleless" else norm

    def layer(one: LayerSpec) -> LayerSpec:
        a = one.attention
        norms = {"q_norm": weighted(a.q_norm), "k_norm": weighted(a.k_norm)}
        return dataclasses.replace(one, attention=dataclasses.replace(a, **norms))

    return dataclasses.replace(spec, layers=[layer(one) for one in spec.layers])
