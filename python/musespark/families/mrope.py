"""Rotary positions along three axes (time, height, width), as Qwen's models that see have them."""

from __future__ import annotations

import dataclasses

from musespark.families.fields import Fields
from musespark.families.rope import KINDS, rope_from_config, rope_parameters
from musespark.families.spec import RopeSpec

_KINDS = {**KINDS, "mrope": "default"}
_BESIDE = ("mrope_section", "mrope_interleaved")


def mrope_from_config(
    c: Fields,
    head_dim: int,
    max_context: int,
    *,
    theta: float,
    sections: tuple[int, int, int],
    interleaved: bool,
) -> RopeSpec:
    """The RopeSpec of a text config. `theta` and `sections` (pairs of each axis) are the family's
    defaults. `interleaved`: pairs take the axes in turn, and the time what is left, else one axis
    after the other. As in transformers it is the family's, whatever ``mrope_interleaved`` says.
    """
    rope = rope_from_config(
        c, head_dim, max_context, default_theta=theta, kinds=_KINDS, beside=_BESIDE
    )
    params = rope_parameters(c)
    given = params.list_of("mrope_section", 3, "time, height and width") or list(sections)
    pairs = rope.dim // 2
    if any(type(n) is not int or n < 0 for n in given) or sum(given) != pairs:
        raise params.refuse("mrope_section", f"{pairs} pairs in all are needed")
    if params.flag("mrope_interleaved", interleaved) != interleaved:
        raise params.refuse("mrope_interleaved", f"only {interleaved} is supported in this family")
    axes = _interleaved(given) if interleaved else _in_a_row(given)
    return dataclasses.replace(rope, axes=axes)


def _in_a_row(sections: list[int]) -> tuple[int, ...]:
    return tuple(axis for axis, count in enumerate(sections) for _ in range(count))


def _interleaved(sections: list[int]) -> tuple[int, ...]:
    def axis(pair: int) -> int:
        turn = pair % 3
        return turn if turn and pair < 3 * sections[turn] else 0

    return tuple(axis(pair) for pair in range(sum(sections)))
