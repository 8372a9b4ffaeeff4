"""Formats that hold what others quantized: every code and scale of GGUF blocks, to the bit."""

from __future__ import annotations

import gguf
import gguf.quants
import numpy as np
import pytest

from musespark import _core
from musespark.errors import InvalidRequest, UnsupportedModel
from musespark.reference import formats

KIND = gguf.GGMLQuantizationType
SOURCES = {
    "q8g32h": KIND.Q8_0,
    "q4g32h": KIND.Q4_0,
    "iq4g32h": KIND.IQ4_NL,
    "mxfp4": KIND.MXFP4,
}  # fmt: skip
FINITE_HALVES = np.arange(65536, dtype=np.uint16)
FINITE_HALVES = FINITE_HALVES[np.isfinite(FINITE_HALVES.view(np.float16))]


def blocks_of(form: str, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """GGUF bytes [rows, ...] of codes [rows, cols] and scales [rows, cols / 32]."""
    rows = len(codes)
    codes = codes.astype(np.uint8).reshape(rows, -1, 32)
    if formats.BITS[form] == 4:
        codes = codes[:, :, :16] | codes[:, :, 16:] << 4
    scales = np.ascontiguousarray(scales).view(np.uint8).reshape(rows, codes.shape[1], -1)
    return np.concatenate([scales, codes], axis=2).reshape(rows, -1)


def random_blocks(rng: np.random.Generator, form: str, rows: int, cols: int) -> np.ndarray:
    low, high = (-128, 127) if form == "q8g32h" else (0, 15)
    codes = rng.integers(low, high + 1, (rows, cols)).astype(np.int8)
    if form == "mxfp4":
        scales = rng.integers(90, 130, (rows, cols // 32)).astype(np.uint8)
    else:
        scales = rng.choice(FINITE_HALVES, (rows, cols // 32))
    return blocks_of(form, codes, scales)


def pack(form: str, blocks: np.ndarray, rows: int, cols: int, **options) -> np.ndarray:
    out = np.full(_core.packed_nbytes(form, rows, cols), 0xAA, np.uint8)
    _core.pack_blocks(form, blocks, rows=rows, cols=cols, out=out, **options)
    return out


def check_exact(form: str, blocks: np.ndarray, rows: int, cols: int) -> None:
    packed = pack(form, blocks, rows, cols)
    got = _core.unpack(form, packed, rows, cols)
    expected = gguf.quants.dequantize(blocks, SOURCES[form])
    np.testing.assert_array_equal(got, expected)
    twin = formats.take_apart(form, packed, rows, cols)
    np.testing.assert_array_equal(twin.values()[:rows, :cols], expected)
    np.testing.assert_array_equal(formats.put_together(twin), packed)


@pytest.mark.parametrize("form", SOURCES)
@pytest.mark.parametrize("shape", [(1, 32), (3, 64), (16, 96), (17, 320), (50, 1056)])
def test_random_blocks(form: str, shape: tuple[int, int]) -> None:
    check_exact(form, random_blocks(np.random.default_rng(1), form, *shape), *shape)


@pytest.mark.parametrize("form", SOURCES)
def test_every_code_in_every_column(form: str) -> None:
    """Each code in each of the 64 columns and 16 rows of a chunk."""
    codes = np.arange(-128, 128) if form == "q8g32h" else np.arange(16)
    grid = codes[(np.arange(len(codes))[:, None] + np.arange(16 * 64)) % len(codes)]
    grid = grid.reshape(-1, 64).astype(np.int8)
    one = np.uint8(128) if form == "mxfp4" else np.float16(1)
    check_exact(form, blocks_of(form, grid, np.full((len(grid), 2), one)), len(grid), 64)


@pytest.mark.parametrize("form", ["q8g32h", "q4g32h", "iq4g32h"])
def test_every_finite_scale(form: str) -> None:
    """Negative ones, subnormal ones and both zeros among them."""
    scales = np.resize(FINITE_HALVES, (-(-len(FINITE_HALVES) // 128), 128))
    codes = np.resize(np.arange(-8, 8) if form == "q8g32h" else np.arange(16), (len(scales), 4096))
    check_exact(form, blocks_of(form, codes, scales), len(scales), 4096)


def test_every_exponent_of_mxfp4() -> None:
    """Alone in its row each of 0 to 252, where every level is a float; above it is refused."""
    exponents = np.arange(253, dtype=np.uint8)[:, None]
    codes = np.resize(np.arange(16), (253, 32))
    check_exact("mxfp4", blocks_of("mxfp4", codes, exponents), 253, 32)
    for bad in (253, 254, 255):
        exponents = np.full((3, 2), 127, np.uint8)
        exponents[2, 1] = bad
        blocks = blocks_of("mxfp4", np.zeros((3, 64)), exponents)
        with pytest.raises(InvalidRequest, match="row 2, block 1"):
            pack("mxfp4", blocks, 3, 64)


def test_range_of_a_row_of_mxfp4() -> None:
    """40 binades fit wherever they lie, 41 do not; a block of zeros has no exponent."""
    codes = np.resize(np.arange(16), (1, 96))
    for low in (0, 1, 60, 100, 128, 213):
        exponents = np.array([[low, low + 39, low + 20]], np.uint8)
        check_exact("mxfp4", blocks_of("mxfp4", codes, exponents), 1, 96)
        exponents[0, 1] += 1 if low < 213 else 0
        exponents[0, 0] -= 0 if low < 213 else 1
        wide = blocks_of("mxfp4", codes, exponents)
        with pytest.raises(UnsupportedModel, match=r"row 0 reach from 2\^.* to 2\^.* f16 from"):
            pack("mxfp4", wide, 1, 96)
    zeros = codes.copy()
    zeros[:, :32] = np.resize([0, 8], 32)
    check_exact("mxfp4", blocks_of("mxfp4", zeros, np.array([[0, 200, 190]], np.uint8)), 1, 96)


@pytest.mark.parametrize("form", ["q8g32h", "q4g32h", "iq4g32h"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scales_that_are_not_finite(form: str, bad: float) -> None:
    scales = np.ones((20, 3), np.float16)
    scales[18, 2] = bad
    blocks = blocks_of(form, np.zeros((20, 96)), scales)
    for threads in (1, 2):
        with pytest.raises(InvalidRequest, match="row 18, block 2"):
            pack(form, blocks, 20, 96, threads=threads)


@pytest.mark.parametrize("form", SOURCES)
def test_codes_pack_as_blocks_do(form: str) -> None:
    rng = np.random.default_rng(2)
    low, high = (-128, 127) if form == "q8g32h" else (0, 15)
    codes = rng.integers(low, high + 1, (19, 160)).astype(np.int8)
    if form == "mxfp4":
        scales, dtype = rng.integers(90, 130, (19, 5)).astype(np.uint8), "e8m0"
    else:
        scales, dtype = rng.choice(FINITE_HALVES, (19, 5)).view(np.float16), "f16"
    expected = pack(form, blocks_of(form, codes, scales), 19, 160)
    out = np.empty_like(expected)
    _core.pack_codes(form, codes, scales, out=out, scale_dtype=dtype, threads=2)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("form", SOURCES)
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_codes_with_other_scales(form: str, dtype: str) -> None:
    """bfloat16 and float32 scales of at most 11 bits, 27 binades in a row; a short last group."""
    rng = np.random.default_rng(3)
    for cols in (1, 31, 33, 100):
        codes = rng.integers(0, 16, (17, cols)).astype(np.int8)
        groups = -(-cols // 32)
        exponent = rng.integers(-80, 80, (17, 1)) + rng.integers(0, 27, (17, groups))
        scales = np.ldexp(rng.integers(-255, 256, (17, groups)) / 256, exponent).astype(np.float32)
        given = (scales.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bf16" else scales
        out = np.empty(_core.packed_nbytes(form, 17, cols), np.uint8)
        _core.pack_codes(form, codes, given, out=out, scale_dtype=dtype)
        level = codes if form == "q8g32h" else formats.LEVELS[form][codes]
        expected = level.astype(np.float32) * np.repeat(scales, 32, axis=1)[:, :cols]
        np.testing.assert_array_equal(_core.unpack(form, out, 17, cols), expected)


@pytest.mark.parametrize("form", SOURCES)
def test_a_row_of_one_scale_keeps_all_its_bits(form: str) -> None:
    """Blocks of zeros among the others, which need no scale."""
    rng = np.random.default_rng(5)
    codes = rng.integers(0, 16, (17, 100)).astype(np.int8)
    level = codes if form == "q8g32h" else formats.LEVELS[form][codes]
    zero = 0 if form == "q8g32h" else np.flatnonzero(formats.LEVELS[form] == 0)
    for row, first, end in ((3, 32, 64), (4, 0, 96), (5, 64, 100), (6, 0, 100)):
        if np.size(zero):  # iq4g32h has no zero
            codes[row, first:end] = np.min(zero)
            level[row, first:end] = 0
    scales = (rng.standard_normal((17, 1)) * 10.0 ** rng.integers(-20, 20, (17, 1))).astype("f4")
    out = np.empty(_core.packed_nbytes(form, 17, 100), np.uint8)
    each = np.ascontiguousarray(np.repeat(scales, 4, axis=1))
    _core.pack_codes(form, codes, each, out=out, scale_dtype="f32")
    expected = level.astype(np.float32) * scales
    np.testing.assert_array_equal(_core.unpack(form, out, 17, 100), expected)


def test_codes_that_do_not_fit() -> None:
    out = np.empty(_core.packed_nbytes("q4g32h", 3, 40), np.uint8)
    codes = np.ones((3, 40), np.int8)
    scales = np.ones((3, 2), np.float32)

    def pack_codes(**changes) -> None:
        given = {"codes": codes, "scales": scales, "scale_dtype": "f32", "out": out} | changes
        _core.pack_codes(given.pop("format", "q4g32h"), **given)

    pack_codes()
    fine = scales.copy()
    fine[2, 1] = 1 + 2**-11
    with pytest.raises(UnsupportedModel, match=r"row 2, block 1 has 12 significant bits"):
        pack_codes(scales=fine)
    for bad in (16, -1):
        wrong = codes.copy()
        wrong[1, 33] = bad
        with pytest.raises(InvalidRequest, match=f"row 1, column 33 is {bad}, allowed is 0 to 15"):
            pack_codes(codes=wrong)
    with pytest.raises(InvalidRequest, match="row 2, block 1"):
        fine[2, 1] = 3e38
        pack_codes(scales=fine)
    for changes in (
        {"format": "q4"},
        {"format": "f32"},
        {"scale_dtype": "f16"},
        {"scale_dtype": "e8m0", "scales": np.ones((3, 2), np.uint8)},
        {"scales": scales[:, :1].copy()},
        {"scales": scales.reshape(-1)},
        {"codes": codes.astype(np.int16)},
        {"codes": codes.reshape(-1)},
        {"out": out[:-64]},
    ):
        with pytest.raises(InvalidRequest):
            pack_codes(**changes)


def test_blocks_that_do_not_fit() -> None:
    blocks = random_blocks(np.random.default_rng(4), "q4g32h", 3, 64)
    out = np.empty(_core.packed_nbytes("q4g32h", 3, 64), np.uint8)
    for changes in (
        {"format": "q4"},
        {"format": "bf16"},
        {"format": "q8g32h"},
        {"blocks": blocks[:, :-1].copy()},
        {"cols": 63},
        {"cols": 40},
        {"rows": 0},
        {"rows": 2**62},
        {"out": out[:-64]},
    ):
        given = {"format": "q4g32h", "blocks": blocks, "rows": 3, "cols": 64, "out": out} | changes
        with pytest.raises(InvalidRequest):
            _core.pack_blocks(given.pop("format"), given.pop("blocks"), **given)


@pytest.mark.parametrize("form", SOURCES)
def test_any_bytes(form: str) -> None:
    """Random blocks are refused or come through exactly; both happen."""
    rng = np.random.default_rng(5)
    outcomes = set()
    for _ in range(150):
        rows, cols = int(rng.integers(1, 20)), 32 * int(rng.integers(1, 6))
        nbytes = gguf.GGML_QUANT_SIZES[SOURCES[form]][1]
        blocks = rng.integers(0, 256, (rows, cols // 32 * nbytes)).astype(np.uint8)
        try:
            check_exact(form, blocks, rows, cols)
            outcomes.add("exact")
        except (InvalidRequest, UnsupportedModel):
            outcomes.add("refused")
    assert outcomes == {"exact", "refused"}
