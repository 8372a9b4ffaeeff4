"""How a GGUF file says that positions are rotated: keys ``rope.scaling.*`` and small tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from musespark.errors import CorruptFile, UnsupportedModel
from musespark.families.fields import MAX_CONTEXT
from musespark.families.gguf_keys import Keys
from musespark.families.gguf_names import LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS
from musespark.families.spec import RopeSpec

Shape = tuple[int, ...]

_TYPE = "rope.scaling.type"
_FACTOR = "rope.scaling.factor"
_ORIGINAL = "rope.scaling.original_context_length"
_ATTENTION = "rope.scaling.attn_factor"
_YARN = {
    _ORIGINAL: "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}


def rope_scaling(
    keys: Keys, shapes: Mapping[str, Shape], vector: Callable[[str], np.ndarray]
) -> dict[str, Any]:
    """The fields of a config that say the scaling; none where there is none."""
    kind = _scaling_kind(keys, shapes)
    if ROPE_FACTORS in shapes and kind != "none":
        raise UnsupportedModel(
            f"tensor {ROPE_FACTORS!r} is not supported beside {keys.name}.{_TYPE} {kind!r}"
        )
    if keys.has(_ORIGINAL):
        keys.integer(_ORIGINAL)  # the trained context, which some files give whatever the scaling
    if kind == "none":
        return {}
    if kind == "longrope":
        return _longrope(keys, shapes, vector)
    scaling: dict[str, Any] = {"rope_type": kind, "factor": keys.number(_FACTOR)}
    if kind == "yarn":
        scaling |= {name: keys.number(key) for key, name in _YARN.items() if keys.has(key)}
    return {"rope_scaling": scaling}


def _scaling_kind(keys: Keys, shapes: Mapping[str, Shape]) -> str:
    """none, linear, yarn or longrope. As llama.cpp: linear where no key says, and a factor of 0
    counts as 1."""
    said = keys.get(_TYPE) if keys.has(_TYPE) else None
    known = ("none", "linear", "yarn", "longrope")
    if said is not None and not (isinstance(said, str) and said in known):
        raise keys.refuse(_TYPE, f"supported are {', '.join(known)}")
    if LONG_FACTORS in shapes:
        if said not in (None, "none", "longrope"):
            raise keys.refuse(_TYPE, f"not supported beside tensor {LONG_FACTORS!r}")
        return "longrope"
    if SHORT_FACTORS in shapes:
        raise CorruptFile(f"tensor {LONG_FACTORS!r} is missing, {SHORT_FACTORS!r} is there")
    if said == "longrope":
        raise CorruptFile(f"{keys.name}.{_TYPE} is 'longrope', tensor {LONG_FACTORS!r} is missing")
    if said is None:
        said = "linear" if keys.has(_FACTOR) else "none"
    if said == "linear" and keys.number(_FACTOR) in (0, 1):
        return "none"
    return said


def _longrope(
    keys: Keys, shapes: Mapping[str, Shape], vector: Callable[[str], np.ndarray]
) -> dict[str, Any]:
    """A number for each frequency, one set of them for long texts. As in llama.cpp scores are not
    scaled where no key says so, whatever the family's formula."""
    if SHORT_FACTORS not in shapes:
        raise CorruptFile(f"tensor {SHORT_FACTORS!r} is missing, {LONG_FACTORS!r} is there")
    scaling: dict[str, Any] = {
        "rope_type": "longrope",
        "long_factor": vector(LONG_FACTORS).tolist(),
        "short_factor": vector(SHORT_FACTORS).tolist(),
        "attention_factor": keys.number(_ATTENTION) if keys.has(_ATTENTION) else 1.0,
    }
    original = keys.integer(_ORIGINAL)
    return {"rope_scaling": scaling, "original_max_position_embeddings": original}


# ---- frequency factors --------------------------------------------------------------------------

_LLAMA3_LOW, _LLAMA3_HIGH = 1.0, 4.0
_LLAMA3_CONTEXT = 8192


def with_frequency_factors(
    rope: RopeSpec, keys: Keys, vector: Callable[[str], np.ndarray]
) -> RopeSpec:
    """The rotation of a file with ``rope_freqs.weight``: numbers that divide the frequencies.

    llama.cpp computes them from the llama3 scaling, whose parameters it does not keep. Where the
    usual ones give these very numbers they are what the model was made with, and the frequencies
    are then those of the original to the bit; else the numbers are taken as they are.
    """
    name = ROPE_FACTORS
    factors = vector(name)
    if len(factors) != rope.dim // 2:
        raise CorruptFile(f"tensor {name!r} has {len(factors)} numbers, {rope.dim // 2} are needed")
    if not (np.isfinite(factors) & (factors > 0)).all():
        raise CorruptFile(f"tensor {name!r} holds {factors.min()}; numbers above 0 are needed")
    if (factors == 1).all():
        return rope
    context = _LLAMA3_CONTEXT
    if keys.has(_ORIGINAL):
        context = keys.integer(_ORIGINAL)
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
