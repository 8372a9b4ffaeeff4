"""Every matmul kernel of every instruction set gives the bits of scalar.cc.

The binding puts every buffer before an inaccessible page, so a read or write past what the contract
gives a kernel ends the process, and fills scratch memory with NaN.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

from musespark._core import testing
from musespark.reference import formats, qmatmul
from support.matmul_cases import FORMATS, INPUTS, assert_same, random_case, random_input

LEVELS = [isa for isa in testing.kernel_levels() if isa != "scalar"]
COLS = [1, 3, 4, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 320, 511, 512, 513, 600]
ROWS = [1, 2, 15, 16, 17, 31, 32, 33, 47, 48, 49, 50, 63, 64, 65, 80, 129, 170]
COUNTS = [1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 15, 16, 17, 18, 31, 32, 33, 40]


def check(case, what: str) -> None:
    expected = case.run("scalar")
    for isa in LEVELS:
        assert_same(case.run(isa), expected, f"{isa} {case} {what}")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("cols", COLS)
def test_columns(form: str, cols: int) -> None:
    """Columns around the edges of groups, blocks and panels, with few and many rows."""
    rng = np.random.default_rng(cols)
    cases = 0
    for m in (1, 2, 5, 17):
        check(random_case(rng, form, int(rng.choice(ROWS)), cols, m, "plain"), "columns")
        cases += 1
    assert cases == 4


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("rows", ROWS)
def test_rows(form: str, rows: int) -> None:
    """Outputs around the edges of row blocks."""
    rng = np.random.default_rng(rows)
    cases = 0
    for m in (1, 2, 3, 4, 16, 19):
        check(random_case(rng, form, rows, int(rng.choice(COLS)), m, "plain"), "rows")
        cases += 1
    assert cases == 6


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("count", COUNTS)
def test_counts(form: str, count: int) -> None:
    """Numbers of activation rows around the edges of register and matrix tiles."""
    rng = np.random.default_rng(count)
    cases = 0
    for rows, cols in ((16, 64), (49, 320), (70, 130)):
        check(random_case(rng, form, rows, cols, count, "plain"), "counts")
        cases += 1
    assert cases == 3


@pytest.mark.parametrize("form", FORMATS)
def test_many_rows_and_columns(form: str) -> None:
    """Beyond one pass of activation rows, one panel of columns, and the panels that share them."""
    rng = np.random.default_rng(5)
    shapes = ((33, 2112, 7), (17, 1100, 19), (40, 70, 505), (16, 64, 520), (64, 64, 1029))
    panels = ((330, 1100, 19), (250, 2112, 12), (230, 320, 530))
    for rows, cols, m in shapes + panels:
        check(random_case(rng, form, rows, cols, m, "plain"), "large")


@pytest.mark.parametrize("form", ["f32", "bf16"])
def test_float_bias(form: str) -> None:
    """Added to every output once, a NaN in one form."""
    rng = np.random.default_rng(8)
    for rows, cols, m in ((5, 7, 1), (33, 200, 3), (64, 400, 40), (150, 130, 65)):
        case = random_case(rng, form, rows, cols, m, "plain")
        case.x[0, 0] = np.nan
        bias = rng.standard_normal(rows).astype(np.float32)
        with np.errstate(invalid="ignore"):
            expected = case.run("scalar") + bias
        expected[np.isnan(expected)] = np.nan
        for isa in ("scalar", *LEVELS):
            assert case.run(isa, bias=bias).tobytes() == expected.tobytes(), f"{isa} {case}"


@pytest.mark.parametrize("kind", ["plain", "ones", "outlier"])
def test_blocks_of_1024(kind: str) -> None:
    """q8g1024h around the ends of its blocks, and of the tiles of many rows."""
    rng = np.random.default_rng(6)
    shapes = ((17, 1024, 49), (49, 1023, 64), (80, 1025, 65), (33, 2112, 81), (864, 1088, 97))
    for rows, cols, m in shapes:
        check(random_case(rng, "q8g1024h", rows, cols, m, kind), "blocks")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", INPUTS)
def test_extremes(form: str, kind: str) -> None:
    """Inputs that overflow, underflow, saturate or are not numbers; extreme codes with `ones`."""
    rng = np.random.default_rng(7)
    for rows, cols, m in ((33, 256, 1), (33, 300, 2), (64, 256, 6), (33, 192, 16), (20, 700, 23)):
        check(random_case(rng, form, rows, cols, m, kind), kind)


@pytest.mark.parametrize("form", FORMATS)
def test_any_bytes(form: str) -> None:
    """Bytes no packer writes: scales that are NaN or infinite, sub-scales and codes of -128."""
    rng = np.random.default_rng(9)
    for rows, cols, m in ((33, 256, 1), (17, 65, 3), (50, 320, 7), (70, 192, 18)):
        case = random_case(rng, form, rows, cols, m, "ones")
        case.packed = rng.integers(0, 256, case.packed.size).astype(np.uint8)
        check(case, "any bytes")
    for byte in (0x80, 0x7F, 0xFF):
        case.packed[:] = byte
        check(case, f"all {byte:#x}")


@pytest.mark.parametrize("form", formats.QUANTIZED)
def test_least_codes_and_sub_scales(form: str) -> None:
    """Every code the least a file can hold, and every sub-scale: the largest products there are."""
    rng = np.random.default_rng(10)
    for rows, cols, m in ((33, 256, 1), (17, 320, 3), (40, 128, 19)):
        case = random_case(rng, form, rows, cols, m, "ones")
        parts = formats.take_apart(form, case.packed, rows, cols)
        parts.codes[:] = {8: -128, 6: -32, 4: 0}[formats.BITS[form]]
        if parts.sub is not None:
            parts.sub[:] = -128
        case.packed = formats.put_together(parts)
        x = qmatmul.quantize_rows(case.x, qmatmul.scale_columns(form))
        expected = qmatmul.matmul(x, parts, rows)
        assert_same(case.run("scalar"), expected, f"the twin of {case}")
        check(case, "least codes")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("isa", ["scalar", *LEVELS])
def test_only_the_rows_asked_for_are_written(form: str, isa: str) -> None:
    """Any split into ranges of row blocks gives the whole; nothing else of `out` is touched."""
    rng = np.random.default_rng(11)
    fill = -123.25
    for rows, m in ((50, 1), (50, 3), (150, 1), (81, 17)):
        case = random_case(rng, form, rows, 200, m, "plain")
        whole = case.run("scalar")
        blocks = -(-rows // 16)
        for begin in range(blocks):
            for end in (begin, begin + 1, min(begin + 3, blocks), blocks):
                got = case.run(isa, begin=begin, end=end, ldo=rows + 5, fill=fill)
                expected = np.full((m, rows + 5), fill, np.float32)
                part = slice(begin * 16, min(end * 16, rows))
                expected[:, part] = whole[:, part]
                assert_same(got, expected, f"{isa} {case} blocks {begin}..{end}")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("isa", ["scalar", *LEVELS])
def test_rows_do_not_depend_on_their_company(form: str, isa: str) -> None:
    """A row's result is the same alone and among others."""
    rng = np.random.default_rng(13)
    case = random_case(rng, form, 37, 290, 21, "plain")
    together = case.run(isa)
    x = case.x
    for m in (0, 5, 20):
        case.x = x[m : m + 1]
        assert_same(case.run(isa), together[m : m + 1], f"{isa} {case} row {m}")


@pytest.mark.parametrize("group", [64, 256, 1024])
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("isa", LEVELS)
def test_quantize_rows(isa: str, kind: str, group: int) -> None:
    rng = np.random.default_rng(17)
    for cols in [*COLS, 1023, 1090, 2050]:
        x = random_input(rng, kind, 3, cols)
        expected = testing.quantize_rows(x, group, isa="scalar")
        for part, a, e in zip(
            ("q", "scale", "bias", "half_bias"),
            testing.quantize_rows(x, group, isa=isa),
            expected,
            strict=True,
        ):
            assert a.dtype == e.dtype
            assert a.tobytes() == e.tobytes(), f"{isa} {kind} K={cols}, {group}: {part}"


@pytest.mark.parametrize("isa", ["scalar", *LEVELS])
def test_quantize_ties(isa: str) -> None:
    """Exactly between two integers goes to the even one: 127 in a group makes its scale 1."""
    halves = np.arange(-126, 126, dtype=np.float32) + np.float32(0.5)
    x = np.full((1, 4 * 64), 127, np.float32)
    for g in range(4):
        x[0, 64 * g + 1 : 64 * g + 64] = halves[63 * g : 63 * (g + 1)]
    for group in (64, 256, 1024):
        codes = testing.quantize_rows(x, group, isa=isa)[0]
        np.testing.assert_array_equal(codes, np.rint(x).astype(np.int8))


@pytest.mark.fuzz
def test_fuzz() -> None:
    """Seeded random shapes, formats and inputs; MUSESPARK_FUZZ_CASES sets how many."""
    cases = int(os.environ.get("MUSESPARK_FUZZ_CASES", "300"))
    run = 0
    for seed in range(cases):
        rng = np.random.default_rng([19, seed])
        form = str(rng.choice(FORMATS))
        k = int(rng.integers(1, 1500 if rng.random() < 0.2 else 300))
        m = int(rng.integers(1, 60 if rng.random() < 0.4 else 9))
        case = random_case(rng, form, int(rng.integers(1, 90)), k, m, str(rng.choice(INPUTS)))
        check(case, f"seed {seed}")
        run += 1
    assert run == cases > 0
