"""Comparisons for numeric tests. tests/python/test_compare.py plants errors they must reject."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

_WORDS = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def bits_of(array: ArrayLike) -> np.ndarray:
    """A float array's bit patterns as unsigned integers; integer arrays as they are."""
    array = np.ascontiguousarray(array)
    if array.dtype.kind != "f":
        return array
    return array.view(_WORDS[array.dtype.itemsize])


def assert_same_bits(actual: ArrayLike, expected: ArrayLike, what: str = "values") -> None:
    """Equal shape, type and every bit: NaN equals only the same NaN, -0 is not 0."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype, (
        f"{what}: dtype {actual.dtype}, expected {expected.dtype}"
    )
    assert actual.shape == expected.shape, (
        f"{what}: shape {actual.shape}, expected {expected.shape}"
    )
    different = np.argwhere(bits_of(actual) != bits_of(expected))
    if len(different):
        at = tuple(int(i) for i in different[0])
        raise AssertionError(
            f"{what}: {len(different)} of {actual.size} differ; first at {at}: "
            f"{actual[at]!r}, expected {expected[at]!r}"
        )


def assert_within(actual: ArrayLike, expected: ArrayLike, bound: ArrayLike, what: str) -> None:
    """|actual - expected| <= bound everywhere, computed in float64; any NaN fails.

    ``bound`` broadcasts, is in the unit of the values and must be derived, not tuned. A bound that
    reaches the largest expected magnitude would accept zeros, so it is refused.
    """
    actual = np.asarray(actual, np.float64)
    expected = np.asarray(expected, np.float64)
    bound = np.broadcast_to(np.asarray(bound, np.float64), expected.shape)
    assert actual.shape == expected.shape, (
        f"{what}: shape {actual.shape}, expected {expected.shape}"
    )
    assert actual.size > 0, f"{what}: nothing to compare"
    signal = float(np.max(np.abs(expected)))
    assert float(np.max(bound)) < signal or signal == 0.0, (
        f"{what}: the bound {float(np.max(bound)):.3g} is not smaller than the signal {signal:.3g}"
    )
    bad = ~(np.abs(actual - expected) <= bound)
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise AssertionError(
            f"{what}: {int(bad.sum())} of {actual.size} outside; first at {at}: {actual[at]!r}, "
            f"expected {expected[at]!r} within {bound[at]:.3g}"
        )


def ulp_errors(actual: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Errors of float64 results in their units in the last place, against np.longdouble values."""
    exact = np.asarray(exact, np.longdouble)
    unit = np.spacing(np.maximum(np.abs(exact.astype(np.float64)), np.finfo(np.float64).tiny))
    return np.abs((actual.astype(np.longdouble) - exact) / unit).astype(np.float64)
