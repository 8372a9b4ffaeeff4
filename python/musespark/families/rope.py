"""Rotary position parameters: the old keys (rope_theta, rope_scaling) and rope_parameters."""

from __future__ import annotations

import math

from musespark.families.fields import MAX_CONTEXT, Fields
from musespark.families.spec import RopeSpec

_KEYS = {
    "rope_type", "type", "rope_theta", "partial_rotary_factor", "factor",
    "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate",
}  # fmt: skip
_DEFAULT_THETA = 10000.0  # transformers: RotaryEmbeddingConfigMixin.default_theta


def rope_from_config(config: Fields, head_dim: int, max_context: int) -> RopeSpec:
    """The RopeSpec of a config whose layers all rotate the same way.

    As in transformers 5: ``rope_scaling`` where not empty takes the place of ``rope_parameters``;
    ``rope_theta`` inside them wins over the one beside them. A rope type that is not known, and a
    key that would change the rotation, is refused.
    """
    name = "rope_scaling" if config.values.get("rope_scaling") else "rope_parameters"
    params = config.section(name)
    for key in params.values:
        if key not in _KEYS:
            raise params.refuse(str(key), f"known rope parameters are {sorted(_KEYS)}")
    for where in (params, config):
        where.must_be("partial_rotary_factor", 1.0, None)
    if head_dim % 2:
        raise config.refuse("head_dim", f"rotary positions need an even head size, got {head_dim}")
    theta_from = config if params.values.get("rope_theta") is None else params
    theta = theta_from.number("rope_theta", _DEFAULT_THETA)

    kind = params.values.get("rope_type", params.values.get("type", "default"))
    if kind == "default":
        return RopeSpec(dim=head_dim, theta=theta)
    if kind == "linear":
        factor = params.number("factor", math.nan)
        return RopeSpec(dim=head_dim, theta=theta, scaling="linear", factor=factor)
    if kind == "llama3":
        return _llama3(config, params, head_dim, theta, max_context)
    if kind == "yarn":
        return _yarn(config, params, head_dim, theta, max_context)
    key = "rope_type" if "rope_type" in params.values else "type"
    raise params.refuse(key, "supported: default, linear, llama3, yarn")


def _original_context(config: Fields, params: Fields, max_context: int) -> int:
    # transformers prefers the field beside the rope parameters, then the one inside.
    key = "original_max_position_embeddings"
    where = params if config.values.get(key) is None else config
    return where.integer(key, max_context, MAX_CONTEXT)


def _llama3(
    config: Fields, params: Fields, head_dim: int, theta: float, max_context: int
) -> RopeSpec:
    low = params.number("low_freq_factor", math.nan)
    high = params.number("high_freq_factor", math.nan)
    if high <= low:
        raise params.refuse("high_freq_factor", f"must be greater than low_freq_factor, {low}")
    return RopeSpec(
        dim=head_dim,
        theta=theta,
        scaling="llama3",
        factor=params.number("factor", math.nan),
        low_freq_factor=low,
        high_freq_factor=high,
        original_context=_original_context(config, params, max_context),
    )


def _yarn(
    config: Fields, params: Fields, head_dim: int, theta: float, max_context: int
) -> RopeSpec:
    params.must_be("truncate", True, None)
    params.must_be_absent("mscale", "mscale_all_dim")
    factor = params.number("factor", math.nan)
    attention = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0
    if params.values.get("attention_factor") is not None:
        attention = params.number("attention_factor", attention)

    def beta(name: str, default: float) -> float:
        return default if params.values.get(name) is None else params.number(name, default)

    return RopeSpec(
        dim=head_dim,
        theta=theta,
        scaling="yarn",
        factor=factor,
        beta_fast=beta("beta_fast", 32.0),
        beta_slow=beta("beta_slow", 1.0),
        original_context=_original_context(config, params, max_context),
        attention_factor=attention,
    )
