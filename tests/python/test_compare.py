"""The comparison helpers reject planted errors: a helper that cannot fail tests nothing."""

import numpy as np
import pytest

from support.compare import assert_same_bits, assert_within

GOOD = np.linspace(-3, 5, 48, dtype=np.float32).reshape(3, 16)


def planted(kind: str) -> np.ndarray:
    bad = GOOD.copy()
    if kind == "sign":
        bad[1, 4] = -bad[1, 4]
    elif kind == "scale":
        bad *= np.float32(1.01)
    elif kind == "nan":
        bad[2, 3] = np.nan
    elif kind == "last lane":
        bad[2, 15] += np.float32(0.5)
    elif kind == "swapped group":
        bad[:, [0, 8]] = bad[:, [8, 0]]
    elif kind == "wrong row":
        bad[1] = bad[0]
    elif kind == "zeros":
        bad[:] = 0
    return bad


KINDS = ["sign", "scale", "nan", "last lane", "swapped group", "wrong row", "zeros"]


@pytest.mark.parametrize("kind", KINDS)
def test_planted_errors_are_found(kind: str) -> None:
    with pytest.raises(AssertionError):
        assert_same_bits(planted(kind), GOOD)
    with pytest.raises(AssertionError):
        assert_within(planted(kind), GOOD, 1e-3, kind)


def test_equal_arrays_pass() -> None:
    assert_same_bits(GOOD.copy(), GOOD)
    assert_within(GOOD + np.float32(1e-6), GOOD, 1e-5, "near")


def test_zero_signs_and_nan_payloads_differ() -> None:
    with pytest.raises(AssertionError):
        assert_same_bits(np.float32([-0.0]), np.float32([0.0]))
    nans = np.uint32([0x7FC00000, 0x7FC00001]).view(np.float32)
    assert_same_bits(nans[:1], nans[:1].copy())
    with pytest.raises(AssertionError):
        assert_same_bits(nans[:1], nans[1:])


def test_a_bound_as_large_as_the_signal_is_refused() -> None:
    with pytest.raises(AssertionError, match="not smaller than the signal"):
        assert_within(np.zeros(4), np.full(4, 0.1), 0.2, "loose")


def test_types_and_shapes_must_match() -> None:
    with pytest.raises(AssertionError, match="dtype"):
        assert_same_bits(GOOD.astype(np.float64), GOOD)
    with pytest.raises(AssertionError, match="shape"):
        assert_same_bits(GOOD[:2], GOOD)
    with pytest.raises(AssertionError, match="nothing"):
        assert_within(GOOD[:0], GOOD[:0], 1.0, "empty")
