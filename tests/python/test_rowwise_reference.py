"""scalar.cc against the NumPy twin (bit for bit) and against float64 (within derived bounds)."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from musespark._core import testing
from musespark.reference import float32, rowwise
from support.compare import assert_same_bits, assert_within

KINDS = ["silu", "gelu_tanh", "gelu", "relu", "relu2", "quick_gelu"]
SIZES = [1, 2, 15, 16, 17, 31, 33, 64, 100, 257, 1024]
UNIT = 2.0**-24  # half an ulp of 1 in float32
SPECIAL = np.array(
    [0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-40, 3e38, -104.5, 88.8], np.float32
)


def row(n: int, seed: int, special: bool = False) -> np.ndarray:
    rng = np.random.default_rng([n, seed])
    x = (rng.standard_normal(n) * rng.choice([1e-2, 1.0, 20.0])).astype(np.float32)
    if special:
        places = rng.integers(0, n, max(1, n // 6))
        x[places] = rng.choice(SPECIAL, len(places))
    return x


def scalar(name: str, *arguments) -> np.ndarray:
    """What the kernel of that name writes for these arguments, of the first row's size."""
    size = next(a.size for a in arguments if isinstance(a, np.ndarray))
    out = np.empty(size, np.float32)
    getattr(testing, name)("scalar", *arguments, out)
    return out


def test_fma_of_the_twin_rounds_once() -> None:
    """Against exact rational arithmetic, with sums near the middle between two float32."""
    rng = np.random.default_rng(0)
    n = 4000
    a, b = (rng.integers(2**23, 2**24, n).astype(np.float32) for _ in range(2))
    product = [int(x) * int(y) for x, y in zip(a, b, strict=True)]
    # c brings a * b to one bit off the middle of two neighbours, 2^-20 of the last place away.
    c = np.array(
        [float(rng.choice([-1, 1])) * 2.0 ** rng.integers(-10, 60) for _ in range(n)], np.float32
    )
    got = float32.fma(a, b, c)
    for i in range(n):
        true = Fraction(product[i]) + Fraction(float(c[i]))
        low, high = (
            np.nextafter(got[i], np.float32(-np.inf)),
            np.nextafter(got[i], np.float32(np.inf)),
        )
        error = abs(true - Fraction(float(got[i])))
        assert error <= abs(true - Fraction(float(low))) and error <= abs(
            true - Fraction(float(high))
        )
        if error in (abs(true - Fraction(float(low))), abs(true - Fraction(float(high)))):
            assert int(got[i].view(np.uint32)) % 2 == 0, "a tie goes to even"


@pytest.mark.parametrize("special", [False, True], ids=["plain", "special"])
@pytest.mark.parametrize("n", SIZES)
def test_scalar_equals_the_twin(n: int, special: bool) -> None:
    for seed in range(3):
        x, y, z = (row(n, 10 * seed + i, special) for i in range(3))
        pairs = [
            ("rms_norm", scalar("rms_norm", x, y, 1e-6), rowwise.rms_norm(x, y, 1e-6)),
            ("layer_norm", scalar("layer_norm", x, y, z, 1e-5), rowwise.layer_norm(x, y, z, 1e-5)),
            (
                "layer_norm plain",
                scalar("layer_norm", x, None, None, 1e-5),
                rowwise.layer_norm(x, None, None, 1e-5),
            ),
            ("sigmoid_mul", scalar("sigmoid_mul", x, y), rowwise.sigmoid_mul(x, y)),
            ("softcap", scalar("softcap", x, 0.7, 20.0), rowwise.softcap(x, 0.7, 20.0)),
            ("row_max", testing.row_max("scalar", x), np.atleast_1d(rowwise.row_max(x))),
        ]
        for kind in KINDS:
            pairs.append((kind, scalar("activate", kind, x), rowwise.activate(kind, x)))
            product = scalar("activate_mul", kind, x, y)
            pairs.append((f"{kind} * up", product, rowwise.activate_mul(kind, x, y)))
        total, each = rowwise.exp_sum(x, 1.5)
        out = np.empty_like(x)
        pairs.append(("exp_sum", testing.exp_sum("scalar", x, 1.5, out), np.atleast_1d(total)))
        pairs.append(("exponentials", out, each))
        moments = testing.exp_moments("scalar", x, 1.5)
        pairs.append(("exp_moments", moments, rowwise.exp_moments(x, 1.5)))
        maxima = np.empty(64, np.float32)
        testing.lane_maxima("scalar", x, maxima)
        np.testing.assert_array_equal(maxima, rowwise.lane_maxima(x), f"n = {n}, seed {seed}")
        kept = np.empty_like(x)
        count = testing.collect("scalar", x, 0.5, kept)
        pairs.append(("collect", kept[:count], rowwise.collect(x, 0.5)))
        half = n // 2
        for interleaved in (False, True):
            turned = np.array(x)
            testing.rope("scalar", turned, y[:half], z[:half], interleaved)
            pairs.append(("rope", turned, rowwise.rope(x, y[:half], z[:half], interleaved)))
        for name, actual, expected in pairs:
            assert_same_bits(actual, expected, f"{name}, n = {n}, seed {seed}")


@pytest.mark.parametrize("d", range(16, 513, 16))
def test_rotate(d: int) -> None:
    """The twin's bits; orthonormal; float64's values within the rounding of its additions."""
    matrix = rowwise.Exact.rotation(d)
    assert np.abs(matrix @ matrix.T - np.eye(d)).max() < 1e-13
    x = row(d, 3)
    for inverse in (False, True):
        y = np.array(x)
        testing.rotate("scalar", y, inverse)
        assert_same_bits(y, rowwise.rotate(x, inverse), f"rotate {d} {inverse=}")
        # k additions, m multiply-adds with rounded entries, one product, each of at most |x|_1.
        m, width = rowwise.split(d)
        steps = math.log2(width) + 2 * m + 2
        bound = steps * UNIT * np.abs(matrix).max() * np.abs(x).sum()
        assert_within(y, (matrix.T if inverse else matrix) @ x, bound, f"rotate {d}")
        testing.rotate("scalar", y, not inverse)
        assert_within(y, x, 2 * bound * np.sqrt(d), f"rotate {d} there and back")


@pytest.mark.parametrize("n", SIZES)
def test_norms_within_rounding(n: int) -> None:
    """n / 16 additions a lane and the tree, then division, root and products: each half an ulp."""
    x, w, b = row(n, 1), row(n, 2), row(n, 3)
    wide = [v.astype(np.float64) for v in (x, w, b)]
    steps = n / 16 + 12
    expected = rowwise.Exact.rms_norm(wide[0], wide[1], 1e-6)
    actual = scalar("rms_norm", x, w, 1e-6)
    assert_within(actual, expected, steps * UNIT * np.abs(expected), "rms_norm")
    if n > 1:
        expected = rowwise.Exact.layer_norm(*wide, 1e-5)
        actual = scalar("layer_norm", x, w, b, 1e-5)
        # The mean's error, relative to the deviation, comes on top.
        spread = np.abs(wide[0]).max() / np.sqrt(wide[0].var() + 1e-5)
        slope = np.abs(wide[1]) * (1 + np.abs(wide[0]) / wide[0].std())
        bound = steps * UNIT * ((2 + spread) * slope + np.abs(expected))
        assert_within(actual, expected, bound, "layer_norm")
