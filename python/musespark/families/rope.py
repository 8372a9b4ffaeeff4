"""Rotary position parameters: the old keys (rope_theta, rope_scaling) and rope_parameters."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from musespark.families.fields import MAX_CONTEXT, Fields
from musespark.families.spec import RopeSpec

_KEYS = {
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "factor",
    "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate",
    "short_factor", "long_factor",
    "attn_factor", "finetuned",  # in published configs; transformers reads neither, a note tells
}  # fmt: skip
KINDS = {kind: kind for kind in ("default", "linear", "llama3", "yarn", "longrope")}
_NOTHING: Mapping[str, Any] = {}
_DEFAULT_THETA = 10000.0  # transformers: RotaryEmbeddingConfigMixin.default_theta


@dataclass(frozen=True)
class _Rope:
    """What the scalings are made of; ``params`` is the object that says them.

    ``nested``: it is that of one kind of layers, for which transformers looks at nothing else.
    """

    config: Fields
    params: Fields
    dim: int
    theta: float
    max_context: int
    trained_context: int | None
    nested: bool

    def original_context(self) -> int:
        # transformers prefers the field beside the rope parameters, then the one inside.
        key = "original_max_position_embeddings"
        if self.nested:
            return self.params.integer(key, self.max_context, MAX_CONTEXT)
        inside, beside = self.params.has(key), self.config.has(key)
        if not beside and self.trained_context is not None:
            return self.trained_context
        where = self.params if inside and not beside else self.config
        return where.integer(key, self.max_context, MAX_CONTEXT)


def rope_parameters(config: Fields, default: Mapping[str, Any] = _NOTHING) -> Fields:
    """What a config says of its rope, under the newer or the older key."""
    # As in transformers 5: rope_scaling where not empty takes the place of rope_parameters.
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    if not config.has(name):
        return Fields(default, f"{config.where}.{name}")
    return config.section(name)


def rope_from_config(
    config: Fields,
    head_dim: int,
    max_context: int,
    *,
    default_theta: float = _DEFAULT_THETA,
    partial: bool = False,
    default_share: float = 1.0,
    kinds: Mapping[str, str] = KINDS,
    trained_context: int | None = None,
    default: Mapping[str, Any] = _NOTHING,
    beside: Collection[str] = (),
) -> RopeSpec:
    """The RopeSpec of a config whose layers all rotate the same way.

    ``rope_theta`` inside the rope parameters wins over the one beside them, and so does
    ``partial_rotary_factor`` (default `default_share`), which only families with `partial` may
    have. A rope type that is not known, and a key that would change the rotation, is refused.

    `kinds` are the rope types that a family may have, with what they mean; `trained_context` is the
    family's default of ``original_max_position_embeddings`` beside the rope parameters;
    `default` is what stands for rope parameters where a config has none; `beside` are keys of them
    that the caller reads.
    """
    params = rope_parameters(config, default)
    share = default_share
    for where in (config, params):
        if not partial:
            where.must_be("partial_rotary_factor", 1.0, None)
        elif where.has("partial_rotary_factor"):
            share = where.number("partial_rotary_factor", 1.0)
            if share > 1.0:
                raise where.refuse("partial_rotary_factor", "a share of at most 1 is needed")
    dim, theta = int(head_dim * share), config.number_or("rope_theta", default_theta)
    return rope_of(config, params, dim, theta, max_context, kinds, trained_context, beside=beside)


def rope_of(
    config: Fields,
    params: Fields,
    dim: int,
    default_theta: float,
    max_context: int,
    kinds: Mapping[str, str] = KINDS,
    trained_context: int | None = None,
    nested: bool = False,
    beside: Collection[str] = (),
) -> RopeSpec:
    """The RopeSpec that one object of rope parameters describes; `dim` floats of a head rotate.

    `nested`: the object is that of one kind of layers.
    """
    for key in params.values:
        if key not in _KEYS and key not in beside:
            raise params.refuse(str(key), f"known rope parameters are {sorted(_KEYS)}")
    if dim < 2 or dim % 2:
        raise config.refuse("head_dim", f"rotary positions need an even head size, got {dim}")
    theta = params.number_or("rope_theta", default_theta)
    key = "rope_type" if params.has("rope_type") else "type"
    said = params.get(key) if params.has(key) else "default"
    kind = kinds.get(said) if isinstance(said, str) else None
    if kind is None:
        raise params.refuse(key, f"supported: {', '.join(sorted(kinds))}")
    if kind == "default":
        return RopeSpec(dim=dim, theta=theta)
    if kind == "linear":
        factor = params.number("factor", math.nan)
        return RopeSpec(dim=dim, theta=theta, scaling="linear", factor=factor)
    make = {"llama3": _llama3, "yarn": _yarn, "longrope": _longrope}[kind]
    return make(_Rope(config, params, dim, theta, max_context, trained_context, nested))


def ropes_of_kinds(
    c: Fields, head_dim: int, max_context: int, theta: float, local_theta: float | None
) -> list[RopeSpec]:
    """Positions of window layers, then of full ones, of a config that tells them apart.

    ``rope_parameters`` has an object for each kind of layer. The older keys are ``rope_theta``
    (default `theta`) and ``rope_scaling`` for full layers; the latter is laid over what
    ``rope_parameters`` says, as in transformers. ``rope_local_base_freq`` (default `local_theta`)
    is for window layers; with None they share ``rope_theta``, which transformers 5.23 gives to full
    layers alone, so a value beside it is refused. So is what transformers drops without a word:
    ``type`` in ``rope_scaling``, which there is no ``rope_type``, and ``truncate`` of a kind.
    """
    nested = c.section("rope_parameters")
    for key in nested.values:
        if key not in ("full_attention", "sliding_attention"):
            raise nested.refuse(str(key), "known are full_attention and sliding_attention")
    full, local = nested.section("full_attention"), nested.section("sliding_attention")
    scaling = c.section("rope_scaling")
    if scaling.has("type") and not scaling.has("rope_type"):
        raise scaling.refuse("type", "beside layers of two kinds transformers reads only rope_type")
    if scaling.values:
        full = scaling.laid_over(full)
    own = theta if local_theta is None else c.number("rope_local_base_freq", local_theta)
    if local_theta is None and c.number_or("rope_theta", theta) != theta:
        raise c.refuse("rope_theta", f"beside layers of two kinds only {theta:g} is supported")
    return [
        rope_of(c, local, head_dim, own, max_context, nested=True),
        rope_of(c, full, head_dim, c.number_or("rope_theta", theta), max_context, nested=True),
    ]


def context_with(rope: RopeSpec, max_context: int) -> int:
    """How long a text may be: YaRN is often added to a config that still says the trained length.

    Then ``original_max_position_embeddings`` times ``factor`` is what the scaling was made for.
    """
    if rope.scaling != "yarn":
        return max_context
    return min(max(max_context, int(rope.original_context * rope.factor)), MAX_CONTEXT)


def _llama3(r: _Rope) -> RopeSpec:
    low = r.params.number("low_freq_factor", math.nan)
    high = r.params.number("high_freq_factor", math.nan)
    if high <= low:
        raise r.params.refuse("high_freq_factor", f"must be greater than low_freq_factor, {low}")
    return RopeSpec(
        dim=r.dim,
        theta=r.theta,
        scaling="llama3",
        factor=r.params.number("factor", math.nan),
        low_freq_factor=low,
        high_freq_factor=high,
        original_context=r.original_context(),
    )


def _mscale(factor: float, mscale: float = 1.0) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn(r: _Rope) -> RopeSpec:
    if r.theta <= 1:
        raise r.config.refuse("rope_theta", f"yarn needs one above 1, not {r.theta}")
    factor = r.params.number("factor", math.nan)
    attention = _mscale(factor)
    if r.params.get("mscale") and r.params.get("mscale_all_dim"):
        whole = _mscale(factor, r.params.number("mscale_all_dim", math.nan))
        attention = _mscale(factor, r.params.number("mscale", math.nan)) / whole
    made = RopeSpec(
        dim=r.dim,
        theta=r.theta,
        scaling="yarn",
        factor=factor,
        beta_fast=r.params.number_or("beta_fast", 32.0),
        beta_slow=r.params.number_or("beta_slow", 1.0),
        original_context=r.original_context(),
        attention_factor=r.params.number_or("attention_factor", attention),
    )
    if r.params.flag("truncate", True):
        return made
    if r.nested:
        raise r.params.refuse("truncate", "transformers truncates where layers are of two kinds")
    return _untruncated(made)


def _untruncated(yarn: RopeSpec) -> RopeSpec:
    """YaRN whose ramp begins and ends between dimensions, as the factors of each frequency."""

    def dimension(rotations: float) -> float:
        turns = math.log(yarn.original_context / (rotations * 2 * math.pi))
        return yarn.dim * turns / (2 * math.log(yarn.theta))

    low = max(dimension(yarn.beta_fast), 0.0)
    high = min(dimension(yarn.beta_slow), yarn.dim - 1.0)
    if low == high:
        high += 0.001
    factors = []
    for i in range(yarn.dim // 2):
        ramp = min(max((i - low) / (high - low), 0.0), 1.0)
        factors.append(1.0 / (ramp / yarn.factor + (1.0 - ramp)))
    return RopeSpec(
        dim=yarn.dim,
        theta=yarn.theta,
        scaling="factors",
        attention_factor=yarn.attention_factor,
        factors=tuple(factors),
    )


def _longrope(r: _Rope) -> RopeSpec:
    def factors(name: str) -> tuple[float, ...]:
        value = r.params.list_of(name, r.dim // 2, "half the rotated floats of a head")
        for one in value or ():
            if type(one) not in (int, float) or not 0 < one < 1e30:
                raise r.params.refuse(name, f"{one!r:.40} is not a number above 0")
        if value is None:
            raise r.params.refuse(name, "longrope needs it")
        return tuple(float(one) for one in value)

    original = r.original_context()
    if original < 2:
        raise r.config.refuse(
            "original_max_position_embeddings", f"longrope needs at least 2, not {original}"
        )
    factor = r.params.number_or("factor", r.max_context / original)
    attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return RopeSpec(
        dim=r.dim,
        theta=r.theta,
        scaling="factors",
        original_context=original,
        attention_factor=r.params.number_or("attention_factor", attention),
        factors=factors("long_factor"),
        short_factors=factors("short_factor"),
    )
