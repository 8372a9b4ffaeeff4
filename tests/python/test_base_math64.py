"""exp, log, pow, sin and cos within their documented errors, and the same bits everywhere.

The reference is long double where that is wider than double (64 bits or more of mantissa).
"""

import hashlib
import math

import numpy as np
import pytest

from musespark._core import testing
from support.compare import ulp_errors

LIMIT = 1.0  # units in the last place, as csrc/base/math64.h promises

pytestmark = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 63, reason="no long double wider than double to compare with"
)


def spread(low: float, high: float, count: int = 200_000, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, count)


def log_spread(low: float, high: float, count: int = 200_000, seed: int = 8) -> np.ndarray:
    return np.exp2(spread(math.log2(low), math.log2(high), count, seed))


def worst(name: str, actual: np.ndarray, exact: np.ndarray) -> float:
    errors = ulp_errors(actual, exact)
    assert np.isfinite(errors).all(), name
    return float(errors.max())


@pytest.mark.parametrize(("low", "high"), [(-708, 709.7), (-1, 1), (-1e-9, 1e-9), (-0.35, 0.35)])
def test_exp(low: float, high: float) -> None:
    x = spread(low, high)
    assert worst("exp", testing.exp(x), np.exp(x.astype(np.longdouble))) < LIMIT


@pytest.mark.parametrize(
    ("low", "high"), [(1e-300, 1e300), (0.5, 2.0), (0.999999, 1.000001), (5e-324, 1e-307)]
)
def test_log(low: float, high: float) -> None:
    x = log_spread(low, high) if low > 0.9 or low < 0.1 else spread(low, high)
    assert worst("log", testing.log(x), np.log(x.astype(np.longdouble))) < LIMIT


def test_pow_of_rope_bases_and_everything_else() -> None:
    bases = np.repeat([1e4, 5e5, 1e6, 1e7, 2.0, 0.1], 20_000)
    exponents = spread(-1, 1, len(bases))
    bases = np.concatenate([bases, log_spread(1e-12, 1e12)])
    exponents = np.concatenate([exponents, spread(-25, 25)])
    exact = np.power(bases.astype(np.longdouble), exponents.astype(np.longdouble))
    # np.longdouble's pow is itself good to about half a unit of its 64 bits.
    assert worst("pow", testing.pow(bases, exponents), exact) < LIMIT


@pytest.mark.parametrize("high", [1e-3, 0.8, 7.0, 1000.0, 2.0**20])
def test_sin_and_cos(high: float) -> None:
    x = spread(-high, high)
    assert worst("sin", testing.sin(x), np.sin(x.astype(np.longdouble))) < LIMIT
    assert worst("cos", testing.cos(x), np.cos(x.astype(np.longdouble))) < LIMIT


def test_sin_and_cos_of_integers_and_near_multiples_of_half_pi() -> None:
    """Positions are integers; next to k pi/2 the result is all cancellation."""
    k = np.arange(1, 667_000, 3, dtype=np.float64)
    near = k * (math.pi / 2)
    x = np.concatenate([np.arange(0, 1 << 20, 5, dtype=np.float64), near, np.nextafter(near, 0)])
    x = x[np.abs(x) <= 2.0**20]
    wide = x.astype(np.longdouble)
    assert worst("sin", testing.sin(x), np.sin(wide)) < LIMIT
    assert worst("cos", testing.cos(x), np.cos(wide)) < LIMIT


def test_special_values() -> None:
    inf, nan = math.inf, math.nan
    one = lambda f, *v: float(f(*(np.array([a], np.float64) for a in v))[0])  # noqa: E731
    assert one(testing.exp, 0.0) == 1.0
    assert one(testing.exp, 1000.0) == inf
    assert one(testing.exp, inf) == inf
    assert one(testing.exp, -inf) == 0.0
    assert one(testing.exp, -745.2) == 0.0
    assert one(testing.exp, -745.0) == 5e-324
    assert one(testing.log, 0.0) == -inf
    assert one(testing.log, -0.0) == -inf
    assert one(testing.log, 1.0) == 0.0
    assert one(testing.log, inf) == inf
    assert math.copysign(1.0, one(testing.sin, -0.0)) == -1.0
    assert one(testing.cos, 0.0) == 1.0
    assert one(testing.pow, 5.0, 0.0) == 1.0
    assert one(testing.pow, 10.0, 2.0) == 100.0
    assert one(testing.pow, 0.0, 2.0) == 0.0
    assert one(testing.pow, 0.0, -2.0) == inf
    assert one(testing.pow, 10.0, 400.0) == inf
    assert one(testing.pow, 10.0, -400.0) == 0.0
    assert one(testing.pow, 2.0, inf) == inf
    assert one(testing.pow, 0.5, inf) == 0.0
    for value in (
        one(testing.exp, nan),
        one(testing.log, nan),
        one(testing.log, -1.0),
        one(testing.pow, -2.0, 2.0),
        one(testing.pow, nan, 2.0),
        one(testing.pow, 2.0, nan),
        one(testing.sin, 2.0**20 + 1),
        one(testing.sin, nan),
        one(testing.cos, inf),
    ):
        assert math.isnan(value)


def test_bits_are_frozen() -> None:
    """The bits are part of the arithmetic version: a changed constant or order shows here."""
    x = np.arange(-4000, 4000) * 0.0625
    digest = hashlib.sha256()
    for values in (
        testing.exp(x),
        testing.log(np.abs(x) + 0.03125),
        testing.sin(x * 1000),
        testing.cos(x * 1000),
        testing.pow(np.abs(x) + 0.5, x / 100),
    ):
        digest.update(values.tobytes())
    assert digest.hexdigest() == (
        "ecacc7868173ac893532037dcb8d136688367b4b65a504c0d1ed793926906696"
    )
