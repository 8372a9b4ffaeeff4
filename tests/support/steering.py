"""Control vectors for tests: random ones, as the reference twin and as the core take them."""

from __future__ import annotations

import numpy as np

from musespark.families.spec import ModelSpec
from musespark.weights.control_vectors import core_tensors

__all__ = ["control_tensors", "random_directions", "twin_weights"]


def random_directions(
    spec: ModelSpec, seed: int = 1, layers: list[int] | None = None
) -> dict[int, np.ndarray]:
    """layer -> float32 [hidden], of a length that changes what comes after it."""
    rng = np.random.default_rng(seed)
    chosen = range(len(spec.layers)) if layers is None else layers
    return {i: (0.3 * rng.standard_normal(spec.hidden)).astype(np.float32) for i in chosen}


def twin_weights(directions: dict[int, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"layers.{i}.control": v for i, v in directions.items()}


def control_tensors(spec: ModelSpec, **options) -> dict[str, tuple]:
    return core_tensors(random_directions(spec, **options))
