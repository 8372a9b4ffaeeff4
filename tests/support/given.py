"""Rows given in place of embeddings, for tests: random ones, and tiny models that take them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from musespark.families.spec import ModelSpec
from support import tiny_models


@dataclass
class Given:
    """As csrc/model/given_rows.h has it; ``ids`` are the tokens that stand for the rows."""

    first: int
    rows: np.ndarray
    advance: int
    places: np.ndarray | None = None
    taps: list[np.ndarray] | None = None

    @property
    def count(self) -> int:
        return len(self.rows)

    def fields(self, *, rows: bool = True) -> dict[str, Any]:
        """What the core takes; without rows: they are provided when it asks."""
        out = {"first": self.first, "count": self.count, "advance": self.advance}
        out["places"] = self.places
        return out | ({"rows": self.rows, "taps": self.taps or []} if rows else {})


def grid_places(height: int, width: int) -> np.ndarray:
    """int32 [height * width, 3]: of an image's rows, counted from the first."""
    at = np.zeros((height, width, 3), np.int32)
    at[..., 1], at[..., 2] = np.arange(height)[:, None], np.arange(width)
    return at.reshape(-1, 3)


def axes(spec: ModelSpec, *, interleaved: bool = False) -> ModelSpec:
    """The model with positions along three axes."""

    def of(half: int) -> tuple[int, ...]:
        return tuple(i % 3 if interleaved else 3 * i // half for i in range(half))

    ropes = [replace(rope, axes=of(rope.dim // 2)) for rope in spec.ropes]
    return replace(spec, ropes=ropes)


def qwen() -> ModelSpec:
    return axes(tiny_models.qwen3())


def gemma() -> ModelSpec:
    """Rows that see each other, behind windows shorter and longer than a span of them."""
    spec = tiny_models.muse(70)
    return replace(spec, embed_scale=3.0, mutual_rows=True)


def given_rows(
    spec: ModelSpec, first: int, count: int, *, width: int = 0, taps: int = 0, seed: int = 1
) -> Given:
    """Random rows; `width`: as an image so wide."""
    rng = np.random.default_rng((seed, first, count))

    def rows() -> np.ndarray:
        return rng.standard_normal((count, spec.hidden)).astype(np.float32)

    places = grid_places(count // width, width) if width else None
    advance = max(count // width, width) if width else count
    return Given(first, rows(), advance, places, [rows() for _ in range(taps)])


def prompt(spec: ModelSpec, length: int, given: list[Given], seed: int = 5) -> np.ndarray:
    """Random tokens; negative ids that follow from the rows where they are given."""
    tokens = tiny_models.random_tokens(spec, length, seed)
    for span in given:
        ids = -1 - (span.rows.view(np.uint32)[:, 0] >> 1).astype(np.int64)
        tokens[span.first : span.first + span.count] = ids
    return tokens
