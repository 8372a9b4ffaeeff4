"""Attention over whole texts in 8 bits: the scalar kernel against its twin and against float64, all
levels against the scalar one."""

from __future__ import annotations

import numpy as np
import pytest

from musespark._core import testing
from musespark.reference import whole_attention as twin
from support.matmul_cases import assert_same

LEVELS = [isa for isa in testing.kernel_levels() if isa != "scalar"]
LOG2_E = np.float32(float.fromhex("0x1.715476p+0"))
KINDS = ("plain", "peaks", "flat", "shifted", "outliers", "huge", "tiny", "nan", "inf")
# (keys, queries, channels): around the ends of pages, of tiles of rows and of channels.
SHAPES = [(1, 1, 8), (63, 3, 16), (64, 16, 64), (65, 17, 72), (130, 33, 32), (200, 48, 80),
          (257, 65, 128), (100, 5, 100)]  # fmt: skip


def case(rng: np.random.Generator, kind: str, n: int, rows: int, dim: int) -> tuple:
    """k, v [n, dim + 3], of which dim count, and q [rows, dim]."""
    k, v = (rng.standard_normal((n, dim + 3)).astype(np.float32) for _ in range(2))
    q = rng.standard_normal((rows, dim)).astype(np.float32)
    if kind == "peaks":
        q *= 30
    elif kind == "flat":
        q *= np.float32(1e-3)
    elif kind == "shifted":
        k += 100
        v -= 50
    elif kind == "outliers":
        k[:, rng.integers(dim)] *= 50
        v[rng.integers(n)] *= 50
    elif kind == "huge":
        k, v, q = (x * np.float32(1e37) for x in (k, v, q))
    elif kind == "tiny":
        k, v, q = (x * np.float32(1e-33) for x in (k, v, q))
    elif kind in ("nan", "inf"):
        q[rng.integers(rows), rng.integers(dim)] = np.float32(kind)
        if dim % 16 == 0:
            v[rng.integers(n), rng.integers(dim)] = np.float32(kind)
        if rng.integers(3) == 0:
            k[rng.integers(n), rng.integers(dim)] = np.float32(kind)
    return k, v, q


def exact(k: np.ndarray, v: np.ndarray, q: np.ndarray) -> np.ndarray:
    k, v, q = (x.astype(np.float64) for x in (k, v, q))
    scores = q @ k.T / np.sqrt(q.shape[1])
    p = np.exp(scores - scores.max(1, keepdims=True))
    return p @ v / p.sum(1, keepdims=True)


def factor(dim: int) -> np.float32:
    return np.float32(dim**-0.5) * LOG2_E


@pytest.mark.parametrize("kind", KINDS)
def test_scalar_is_the_twin(kind: str) -> None:
    rng = np.random.default_rng(1)
    for n, rows, dim in SHAPES:
        k, v, q = case(rng, kind, n, rows, dim)
        got = testing.whole_attention("scalar", k, v, q, factor(dim))
        with np.errstate(all="ignore"):
            expected = twin.attend(twin.pack(k[:, :dim], v[:, :dim]), q, factor(dim))
        assert_same(got, expected, f"{kind} {n} {rows} {dim}")


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_levels_are_the_scalar_one(isa: str, kind: str) -> None:
    rng = np.random.default_rng(2)
    for n, rows, dim in [*SHAPES, (300, 100, 64), (70, 20, 512)]:
        k, v, q = case(rng, kind, n, rows, dim)
        expected = testing.whole_attention("scalar", k, v, q, factor(dim))
        got = testing.whole_attention(isa, k, v, q, factor(dim))
        assert got.tobytes() == expected.tobytes(), f"{isa} {kind} {n} {rows} {dim}"


@pytest.mark.parametrize("isa", LEVELS)
def test_more_pages_than_a_sum_takes(isa: str) -> None:
    """Two sums of int32, the first as large as it gets on the way."""
    rng = np.random.default_rng(3)
    n = 512 * 64 + 100
    k = np.zeros((n, 16), np.float32)
    v = np.repeat(rng.choice(np.array([-1, 1], np.float32), (1, 16)), n, axis=0)
    v[n // 3 :] *= np.float32(-0.5)
    q = rng.standard_normal((3, 16)).astype(np.float32)
    expected = testing.whole_attention("scalar", k, v, q, factor(16))
    np.testing.assert_allclose(expected, np.repeat(v.mean(0)[None], 3, 0), atol=5e-3)
    assert testing.whole_attention(isa, k, v, q, factor(16)).tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", ["plain", "shifted"])
def test_near_float64(kind: str) -> None:
    """Relative to the length of a row less the mean of the values: the error of 8 bits."""
    rng = np.random.default_rng(4)
    k, v, q = case(rng, kind, 700, 40, 64)
    k, v = np.ascontiguousarray(k[:, :64]), np.ascontiguousarray(v[:, :64])
    got = testing.whole_attention("scalar", k, v, q, factor(64)).astype(np.float64)
    expected, mean = exact(k, v, q), v.mean(0)
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected - mean)
    assert error < 0.02


def test_many_small_weights_beside_a_large_one() -> None:
    """A key that is looked at as much as a thousand others together leaves these their half."""
    n, dim = 1025, 16
    k, v = np.zeros((n, dim), np.float32), np.zeros((n, dim), np.float32)
    k[0, 0], v[1:, 0] = np.log(1024.0), 1
    q = np.zeros((1, dim), np.float32)
    q[0, 0] = 1
    got = testing.whole_attention("scalar", k, v, q, LOG2_E)
    assert got[0, 0] == pytest.approx(0.5, abs=0.01)
