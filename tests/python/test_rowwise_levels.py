"""Every rowwise kernel of every instruction set gives the bits of scalar.cc."""

from __future__ import annotations

import numpy as np
import pytest

from musespark import _core
from support.compare import assert_same_bits

testing = _core.testing
ACTIVATIONS = ["silu", "gelu_tanh", "gelu", "relu", "relu2", "quick_gelu"]
SIZES = [*range(71), 128, 255, 1000, 4096, 4099]
LEVELS = [isa for isa in testing.kernel_levels() if isa != "scalar"]
SPECIAL = np.array(
    [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        np.nan,
        -np.nan,
        1e-45,
        -1e-45,
        1e-38,
        3.4e38,
        -3.4e38,
        88.7,
        -88.7,
        -87.3,
        -103.9,
        -104.1,
        89.5,
        1e-20,
        0.625,
        -0.625,
        0.62499994,
        9.01,
        10.0,
        11.0,
    ],
    np.float32,
)


def rows(
    n: int, seed: int, offset: int, special: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three rows of n floats, `offset` floats off alignment; special values here and there."""
    rng = np.random.default_rng([n, seed])
    result = []
    for _ in range(3):
        scale = rng.choice([1e-3, 1.0, 30.0])
        row = (rng.standard_normal(n + offset) * scale).astype(np.float32)[offset:]
        if special and n:
            places = rng.integers(0, n, max(1, n // 5))
            row[places] = rng.choice(SPECIAL, len(places))
        result.append(row)
    return tuple(result)


def outcomes(isa: str, n: int, x: np.ndarray, y: np.ndarray, z: np.ndarray):
    """(name, result) of every kernel on these rows, out of place and in place."""

    def run(name, call, *sources):
        # A margin of sevens around the output shows a store outside it.
        frame = np.full(n + 32, 7, np.float32)
        call(*sources, frame[17 : 17 + n])
        assert (frame[:17] == 7).all() and (frame[17 + n :] == 7).all(), f"{name} wrote outside"
        inside = np.array(sources[0])
        call(inside, *sources[1:], inside)
        assert_same_bits(inside, frame[17 : 17 + n], f"{isa} {name} in place, n = {n}")
        return name, inside

    eps = 1e-5
    yield run("rms_norm", lambda a, o: testing.rms_norm(isa, a, y, eps, o), x)
    yield run("rms_norm without weight", lambda a, o: testing.rms_norm(isa, a, None, eps, o), x)
    yield run("layer_norm", lambda a, o: testing.layer_norm(isa, a, y, z, eps, o), x)
    yield run("layer_norm plain", lambda a, o: testing.layer_norm(isa, a, None, None, eps, o), x)
    yield run("add", lambda a, b, o: testing.add(isa, a, b, o), x, y)
    yield run("scale", lambda a, o: testing.scale(isa, a, 0.37, o), x)
    for kind in ACTIVATIONS:
        yield run(kind, lambda a, o, k=kind: testing.activate(isa, k, a, o), x)
        yield run(
            f"{kind} * up", lambda a, b, o, k=kind: testing.activate_mul(isa, k, a, b, o), x, y
        )
    yield run("sigmoid_mul", lambda a, b, o: testing.sigmoid_mul(isa, a, b, o), x, y)
    for mult, cap in ((1.0, 0.0), (0.3, 30.0), (1.0, 1.0)):
        yield run(f"softcap {cap}", lambda a, o, m=mult, c=cap: testing.softcap(isa, a, m, c, o), x)
    yield "row_max", testing.row_max(isa, x)
    top = float(np.nanmax(x[np.isfinite(x)])) if np.isfinite(x).any() else 0.0
    for shift in (top, 0.0):
        yield run("exp_sum", lambda a, o, s=shift: testing.exp_sum(isa, a, s, o), x)
        yield "exp_sum alone", testing.exp_sum(isa, x, shift, None)
        yield "exp_moments", testing.exp_moments(isa, x, shift)
    maxima = np.full(64 + 32, 7, np.float32)
    testing.lane_maxima(isa, x, maxima[16:80])
    assert (maxima[:16] == 7).all() and (maxima[80:] == 7).all()
    yield "lane_maxima", maxima
    for least in (-np.inf, 0.0, 1.0, np.inf):
        kept = np.full(n + 32, 7, np.float32)
        count = testing.collect(isa, x, least, kept[16 : 16 + n])
        assert (kept[:16] == 7).all() and (kept[16 + n :] == 7).all(), "wrote outside"
        yield f"collect {least}", kept[16 : 16 + count]
    half = n // 2
    for interleaved in (False, True):
        turned = np.array(x)
        testing.rope(isa, turned, y[:half], z[:half], interleaved)
        yield f"rope {interleaved}", turned


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("special", [False, True], ids=["plain", "special"])
def test_levels_equal_scalar(isa: str, special: bool) -> None:
    compared = 0
    for n in SIZES:
        for seed, offset in ((0, 0), (1, 3)):
            x, y, z = rows(n, seed, offset, special)
            expected = outcomes("scalar", n, x, y, z)
            for (name, actual), (_, wanted) in zip(
                outcomes(isa, n, x, y, z), expected, strict=True
            ):
                assert_same_bits(actual, wanted, f"{isa} {name}, n = {n}, seed {seed}")
                compared += 1
    assert compared == len(SIZES) * 2 * 36


@pytest.mark.parametrize("isa", LEVELS)
def test_rotate_equals_scalar(isa: str) -> None:
    rng = np.random.default_rng(5)
    for d in range(16, 513, 16):
        for inverse in (False, True):
            for special in (False, True):
                x = rng.standard_normal(d + 1).astype(np.float32)[1:]
                if special:
                    x[rng.integers(0, d, 3)] = rng.choice(SPECIAL, 3)
                expected, actual = np.array(x), np.array(x)
                testing.rotate("scalar", expected, inverse)
                testing.rotate(isa, actual, inverse)
                assert_same_bits(actual, expected, f"{isa} rotate {d}, inverse {inverse}")


@pytest.mark.parametrize("isa", ["scalar", *LEVELS])
def test_every_nan_is_canonical(isa: str) -> None:
    """A NaN that is written has the bits 0x7fc00000, whatever NaN or operation caused it."""
    x = np.array([np.nan, -np.nan, np.inf, -np.inf, 1.0] * 7, np.float32)
    x.view(np.uint32)[0] = 0xFFC12345
    y = np.roll(x, 2)
    nans = 0
    for _, result in outcomes(isa, len(x), x, y, y):
        bits = result.view(np.uint32)[np.isnan(result)]
        assert (bits == 0x7FC00000).all()
        nans += len(bits)
    assert nans > 300


@pytest.mark.parametrize("isa", LEVELS)
def test_random_bit_patterns(isa: str) -> None:
    """Any 32 bits as input of the elementwise kernels."""
    rng = np.random.default_rng(11)
    n = 200_000
    x, y = (rng.integers(0, 2**32, n, dtype=np.uint32).view(np.float32) for _ in range(2))
    calls = [lambda i, o, k=k: testing.activate(i, k, x, o) for k in ACTIVATIONS]
    calls += [
        lambda i, o: testing.softcap(i, x, 1.0, 1.0, o),
        lambda i, o: testing.exp_sum(i, x, 0.0, o),
        lambda i, o: testing.sigmoid_mul(i, x, y, o),
        lambda i, o: testing.add(i, x, y, o),
    ]
    for number, call in enumerate(calls):
        expected, actual = np.empty(n, np.float32), np.empty(n, np.float32)
        call("scalar", expected)
        call(isa, actual)
        assert_same_bits(actual, expected, f"{isa} call {number}")
