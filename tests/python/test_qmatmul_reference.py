"""scalar.cc against the NumPy twin (to the bit) and against float64 (within derived bounds)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from musespark import _core
from musespark._core import testing
from musespark.reference import formats, qmatmul
from support.compare import assert_within
from support.matmul_cases import (
    INPUTS,
    Case,
    assert_same,
    random_input,
    random_packed,
    random_parts,
)

SHAPES = [
    (1, 1, 1),
    (5, 63, 2),
    (16, 64, 1),
    (17, 65, 3),
    (33, 256, 2),
    (20, 257, 4),
    (50, 600, 5),
    (17, 1100, 3),
]


@pytest.mark.parametrize("kind", INPUTS)
def test_quantized_rows_are_the_twins(kind: str) -> None:
    rng = np.random.default_rng(1)
    for cols, group in itertools.product((1, 5, 63, 64, 65, 200, 257, 512, 1030), (64, 256, 1024)):
        x = random_input(rng, kind, 4, cols)
        twin = qmatmul.quantize_rows(x, group)
        q, scale, bias, half_bias = testing.quantize_rows(x, group, isa="scalar")
        np.testing.assert_array_equal(q, twin.q)
        assert_same(scale, twin.scale, f"{kind} K={cols}: scale")
        np.testing.assert_array_equal(bias, twin.bias)
        np.testing.assert_array_equal(half_bias, twin.half_bias)


@pytest.mark.parametrize("form", formats.QUANTIZED)
@pytest.mark.parametrize("kind", INPUTS)
def test_matmul_is_the_twins(form: str, kind: str) -> None:
    rng = np.random.default_rng(2)
    for n, k, m in SHAPES:
        parts = random_parts(rng, form, n, k, extreme=kind == "ones")
        x = random_input(rng, kind, m, k)
        case = Case(form, formats.put_together(parts), n, x)
        rows = qmatmul.quantize_rows(x, qmatmul.scale_columns(form))
        expected = qmatmul.matmul(rows, parts, n)
        assert_same(case.run("scalar"), expected, f"{kind} {case}")


@pytest.mark.parametrize("form", ["f32", "bf16"])
def test_float_matmul_is_the_twins(form: str) -> None:
    rng = np.random.default_rng(3)
    for n, k, m in SHAPES:
        packed = random_packed(rng, form, n, k, False)
        case = Case(form, packed, n, random_input(rng, "plain", m, k))
        expected = qmatmul.matmul_float(case.x, formats.float_weights(form, packed, n, k))
        assert_same(case.run("scalar"), expected, str(case))


@pytest.mark.parametrize("form", formats.QUANTIZED)
def test_close_to_float64(form: str) -> None:
    """Against x . W^T of the unpacked weights in float64.

    Rounding an activation to its grid costs at most half a step, amax / 254, each; the float steps
    (at most three a group of 64, and two) each at most 2^-24 of a partial sum, which is at most
    sum |x| |W|. Half a step is widened by 2^-20: scale and x * (127 / amax) are rounded too.
    """
    rng = np.random.default_rng(4)
    for n, k, m in ((33, 256, 3), (20, 700, 2), (16, 2048, 5)):
        packed = np.zeros(_core.packed_nbytes(form, n, k), np.uint8)
        _core.pack(form, rng.standard_normal((n, k)).astype(np.float32), out=packed)
        case = Case(form, packed, n, random_input(rng, "plain", m, k))
        w = _core.unpack(form, packed, n, k).astype(np.float64)
        x = case.x.astype(np.float64)
        groups = [slice(g, min(g + 64, k)) for g in range(0, k, 64)]
        step = sum(
            np.abs(x[:, g]).max(axis=1)[:, None] / 254 * (1 + 2**-20) * np.abs(w[:, g]).sum(axis=1)
            for g in groups
        )
        steps = 3 * len(groups) + 2
        rounding = steps * 2.0**-24 * (1 + 1 / 127) * (np.abs(x) @ np.abs(w).T)
        assert_within(case.run("scalar"), x @ w.T, step + rounding, str(case))


@pytest.mark.parametrize("form", ["f32", "bf16"])
def test_float_weights_close_to_float64(form: str) -> None:
    """One rounding a column: K * 2^-24 * sum |x| |W|."""
    rng = np.random.default_rng(5)
    for n, k, m in ((33, 256, 3), (16, 2048, 5)):
        packed = random_packed(rng, form, n, k, False)
        case = Case(form, packed, n, random_input(rng, "plain", m, k))
        w = formats.float_weights(form, packed, n, k).astype(np.float64)
        x = case.x.astype(np.float64)
        bound = k * 2.0**-24 * (np.abs(x) @ np.abs(w).T)
        assert_within(case.run("scalar"), x @ w.T, bound, str(case))
