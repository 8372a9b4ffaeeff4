"""Random packed matrices and inputs for the matmul tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from musespark import _core
from musespark.reference import formats

testing = _core.testing
FORMATS = _core.weight_formats
INPUTS = ("plain", "tiny", "huge", "inf", "nan", "zeros", "ones", "outlier", "group_of_zeros")


@dataclass
class Case:
    """Packed rows x K weights and x float32 [M, K]."""

    form: str
    packed: np.ndarray
    rows: int
    x: np.ndarray

    def run(self, isa: str, **options) -> np.ndarray:
        return testing.matmul(self.form, self.packed, self.rows, self.x, isa=isa, **options)

    def __str__(self) -> str:
        m, k = self.x.shape
        return f"{self.form} N={self.rows} K={k} M={m}"


_CODES = {"q8": (-127, 127), "q8g1024h": (-127, 127), "q8g32h": (-128, 127), "q6": (-32, 31)}


def code_range(form: str) -> tuple[int, int]:
    """The least and the largest code; q8g32h takes every int8."""
    return _CODES.get(form, (0, 15))


def _extreme_codes(form: str) -> tuple[int, int]:
    """Of the least and the largest level."""
    if formats.BITS[form] != 4:
        return code_range(form)
    return int(formats.LEVELS[form].argmin()), int(formats.LEVELS[form].argmax())


def random_parts(
    rng: np.random.Generator, form: str, n: int, k: int, extreme: bool
) -> formats.Parts:
    """Codes and scales of a packed file; `extreme`: every w8 as large as it gets."""
    np_, kp = -(-n // 16) * 16, -(-k // 64) * 64
    low, high = code_range(form)
    codes = rng.integers(low, high + 1, (np_, kp))
    sub = None
    if form in formats.WITH_SUB:
        sub = rng.integers(-127, 128, (np_, kp // 32)).astype(np.int8)
    if extreme:
        # Long runs of one sign are what saturating or wrapping sums trip over.
        codes = np.repeat(rng.choice(_extreme_codes(form), (np_, kp // 32)), 32, axis=1)
        if sub is not None:
            sub = rng.choice(np.array([-127, 127], np.int8), sub.shape)
    blocks = -(-kp // formats.BLOCK[form])
    block = rng.standard_normal((np_, blocks)).astype(np.float16)
    row = rng.standard_normal(np_).astype(np.float32)
    return formats.Parts(form, codes, sub, block, row)


def random_packed(rng: np.random.Generator, form: str, n: int, k: int, extreme: bool) -> np.ndarray:
    if form in formats.QUANTIZED:
        return formats.put_together(random_parts(rng, form, n, k, extreme))
    packed = np.zeros(_core.packed_nbytes(form, n, k), np.uint8)
    _core.pack(form, rng.standard_normal((n, k)).astype(np.float32), out=packed)
    return packed


def random_input(rng: np.random.Generator, kind: str, m: int, k: int) -> np.ndarray:
    x = rng.standard_normal((m, k)).astype(np.float32)
    if kind == "tiny":
        x *= np.float32(10.0) ** rng.integers(-38, -28, (m, 1)).astype(np.float32)
    elif kind == "huge":
        x = np.where(x > 0, np.float32(3e38), np.float32(-3e38))
    elif kind in ("inf", "nan"):
        x[rng.integers(m), rng.integers(k)] = np.float32(kind)
    elif kind == "zeros":
        x[:] = 0
    elif kind == "ones":
        x = np.repeat(rng.choice(np.array([-1, 1], np.float32), (m, -(-k // 32))), 32, axis=1)[
            :, :k
        ]
    elif kind == "outlier":
        x[:, rng.integers(k)] *= 1000
    elif kind == "group_of_zeros":
        x[:, : min(k, 64)] = 0
    return np.ascontiguousarray(x)


def random_case(rng: np.random.Generator, form: str, n: int, k: int, m: int, kind: str) -> Case:
    extreme = kind == "ones"
    return Case(form, random_packed(rng, form, n, k, extreme), n, random_input(rng, kind, m, k))


def assert_same(actual: np.ndarray, expected: np.ndarray, what: str) -> None:
    """Every bit equal; a NaN equals any NaN (kernels do not promise which one)."""
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, not {expected.shape}"
    same = actual.view(np.uint32) == expected.view(np.uint32)
    same |= np.isnan(actual) & np.isnan(expected)
    if not same.all():
        at = tuple(int(i) for i in np.argwhere(~same)[0])
        raise AssertionError(
            f"{what}: {int((~same).sum())} of {same.size} differ, first at {at}: "
            f"{actual[at]!r}, expected {expected[at]!r}"
        )
