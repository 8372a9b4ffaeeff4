"""exp, tanh and the activations against float64 over the whole range of float32, in steps.

The stated bounds (csrc/kernels/detail/scalar_math.inl) are in units in the result's last place.
"""

from __future__ import annotations

import numpy as np
import pytest

from musespark._core import testing
from musespark.reference import rowwise

LEVELS = testing.kernel_levels()
STEP = 509  # every 509th of all float32: eight million of them
TINY = 2.0**-126


def floats(low: float, high: float) -> np.ndarray:
    """Every STEP-th float32 of [low, high], 0 <= low < high, and their negatives."""
    first, last = (int(np.float32(v).view(np.uint32)) for v in (low, high))
    positive = np.arange(first, last + 1, STEP, dtype=np.uint32).view(np.float32)
    return np.concatenate([positive, -positive])


def ulps(actual: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """|actual - expected| in float32 units in the last place of the expected value."""
    unit = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(expected), TINY))) - 23)
    return np.abs(actual.astype(np.float64) - expected) / unit


def exp_of(isa: str, x: np.ndarray) -> np.ndarray:
    out = np.empty_like(x)
    testing.exp_sum(isa, x, 0.0, out)
    return out


@pytest.mark.parametrize("isa", LEVELS)
def test_exp(isa: str) -> None:
    x = floats(0.0, 88.72)
    actual, expected = exp_of(isa, x), np.exp(x.astype(np.float64))
    assert ulps(actual, expected).max() < 1.0
    subnormal = -np.linspace(87.3, 104.5, 1_000_000).astype(np.float32)
    assert ulps(exp_of(isa, subnormal), np.exp(subnormal.astype(np.float64))).max() < 1.0
    edges = np.array([0, -0.0, np.inf, -np.inf, 88.8, 1e30, -103.99, -1e30], np.float32)
    assert exp_of(isa, edges).tolist() == [1, 1, np.inf, 0, np.inf, np.inf, 0, 0]
    assert exp_of(isa, np.array([np.nan], np.float32)).view(np.uint32)[0] == 0x7FC00000


@pytest.mark.parametrize("isa", LEVELS)
def test_tanh(isa: str) -> None:
    x = floats(0.0, 20.0)
    actual = np.empty_like(x)
    testing.softcap(isa, x, 1.0, 1.0, actual)
    assert ulps(actual, np.tanh(x.astype(np.float64))).max() < 2.0
    assert (np.signbit(actual) == np.signbit(x)).all()
    edges = np.array([np.inf, -np.inf, 9.1, 1e-45, -1e-45], np.float32)
    actual = np.empty_like(edges)
    testing.softcap(isa, edges, 1.0, 1.0, actual)
    assert actual.tolist() == [1, -1, 1, edges[3], edges[4]]


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize(
    ("kind", "steps"),
    [("silu", 2), ("gelu_tanh", 2), ("gelu", 5), ("quick_gelu", 2), ("relu", 0), ("relu2", 1)],
)
def test_activations(isa: str, kind: str, steps: int) -> None:
    """Within `steps` half ulps of the argument (relu2: of the result).

    The tails of gelu are small differences from 0: e^(-z^2) carries the rounding of z^2, so their
    error is counted against the argument, not against themselves. gelu's polynomial of nine terms
    adds some roundings of its own.
    """
    x = floats(1e-30, 80.0)[::3]
    actual = np.empty_like(x)
    testing.activate(isa, kind, x, actual)
    expected = rowwise.Exact.activation(kind, x.astype(np.float64))
    size = np.maximum(np.abs(x), np.abs(expected))
    assert (np.abs(actual - expected) <= steps * 2.0**-24 * size).all()
