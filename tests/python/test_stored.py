"""Stored number types: the core, its NumPy twin and gguf-py give the same bits for every code."""

from __future__ import annotations

import numpy as np
import pytest

from musespark import _core
from musespark.errors import CorruptFile, InvalidRequest
from musespark.reference import stored

gguf = pytest.importorskip("gguf")

TYPES = list(stored.TYPES)
BLOCK_TYPES = [name for name in TYPES if name not in ("f32", "f16", "bf16")]
EXACT = {"q4_0": "q4g32h", "iq4_nl": "iq4g32h", "q8_0": "q8g32h", "mxfp4": "mxfp4"}
# Where the f16 numbers of a block stand (mxfp4 has a one-byte exponent instead).
F16_AT = {
    "q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2), "q8_0": (0,), "iq4_nl": (0,),
    "mxfp4": (), "q2_k": (80, 82), "q3_k": (108,), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,),
    "iq4_xs": (0,),
}  # fmt: skip


def gguf_decode(name: str, rows: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        kind = gguf.GGMLQuantizationType[name.upper()]
        return gguf.quants.dequantize(rows, kind).astype(np.float32).reshape(len(rows), -1)


def same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal to the bit; a NaN (of a NaN or infinite scale) is any NaN."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype == np.float32
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(actual), nan)
    np.testing.assert_array_equal(actual.view(np.uint32)[~nan], expected.view(np.uint32)[~nan])


def all_agree(name: str, rows: np.ndarray) -> None:
    expected = gguf_decode(name, rows)
    same_bits(_core.decode(name, rows), expected)
    with np.errstate(all="ignore"):
        same_bits(stored.decode(name, rows), expected)


def blocks(name: str, count: int, scales: np.ndarray, seed: int) -> np.ndarray:
    """Random blocks, one a row, with f16 bits drawn from `scales`."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (count, stored.TYPES[name][0]), np.uint8)
    for at in F16_AT[name]:
        drawn = rng.choice(scales, count).astype("<u2")
        rows[:, at : at + 2] = drawn.view(np.uint8).reshape(count, 2)
    return rows


ORDINARY = np.float16([0.001, 0.0173, 0.5, 1.0, 3.0, -0.01]).view(np.uint16)
# Zeros, subnormals, the largest, infinities, NaNs, both signs.
EXTREME = np.array([0, 1, 2, 0x3FF, 0x400, 0x7BFF, 0x7C00, 0x7C01, 0x7E00, 0xFFFF], np.uint16)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_random_blocks(name: str) -> None:
    all_agree(name, blocks(name, 600, ORDINARY, 1))
    both_signs = np.concatenate([EXTREME, EXTREME | 0x8000])
    all_agree(name, blocks(name, 600, both_signs, 2))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_every_byte_in_every_place(name: str) -> None:
    """256 blocks for each byte of a block: that byte takes every value, the rest are random."""
    size = stored.TYPES[name][0]
    rows = np.repeat(blocks(name, size, ORDINARY, 3), 256, axis=0)
    rows[np.arange(len(rows)), np.repeat(np.arange(size), 256)] = np.tile(np.arange(256), size)
    all_agree(name, rows)


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_every_half(name: str) -> None:
    rows = np.arange(65536, dtype="<u2").view(np.uint8).reshape(256, 512)
    all_agree(name, rows)
    same_bits(_core.decode(name, rows.view(np.uint16)), _core.decode(name, rows))


def test_floats_are_copied() -> None:
    rows = np.random.default_rng(4).standard_normal((5, 7)).astype(np.float32)
    np.testing.assert_array_equal(_core.decode("f32", rows), rows)
    np.testing.assert_array_equal(_core.decode("f32", rows.view(np.uint8)), rows)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_rows_of_several_blocks_and_strides(name: str) -> None:
    size = stored.TYPES[name][0]
    wide = blocks(name, 33, ORDINARY, 5).reshape(11, 3 * size)
    expected = gguf_decode(name, np.ascontiguousarray(wide))
    same_bits(_core.decode(name, wide[::2]), expected[::2])
    values = expected.shape[1] // 3
    same_bits(_core.decode(name, wide[:, size : 2 * size]), expected[:, values : 2 * values])


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("form", ["f32", "bf16", "q8", "q6", "q4", "q4g32h"])
def test_packing_blocks_is_packing_their_values(name: str, form: str) -> None:
    if EXACT.get(name) == form:
        return
    size = stored.TYPES[name][0]
    rng = np.random.default_rng(6)
    if name in BLOCK_TYPES:
        rows = blocks(name, 19 * 2, np.float16([0.01, 0.02]).view(np.uint16), 7)
        if name == "mxfp4":
            rows[:, 0] = rng.integers(118, 130, len(rows))
        rows = rows.reshape(19, 2 * size)
    else:
        plain = rng.standard_normal((19, 70)).astype(np.float32)
        rows = plain if name == "f32" else plain.astype(np.float16).view(np.uint16)
        rows = rows.view(np.uint8)
    values = _core.decode(name, rows)
    expected = np.empty(_core.packed_nbytes(form, *values.shape), np.uint8)
    for quick in (False, True):
        _core.pack(form, values, out=expected, quick=quick)
        actual = np.empty_like(expected)
        _core.pack(form, rows, dtype=name, out=actual, threads=2, quick=quick)
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", EXACT)
def test_blocks_that_a_format_holds_are_repacked_exactly(name: str) -> None:
    rows = blocks(name, 37 * 5, ORDINARY, 9)
    if name == "mxfp4":
        rows[:, 0] = np.random.default_rng(9).integers(110, 130, len(rows))
    rows = rows.reshape(37, -1)
    packed = np.empty(_core.packed_nbytes(EXACT[name], 37, 160), np.uint8)
    _core.pack(EXACT[name], rows, dtype=name, out=packed, threads=2)
    np.testing.assert_array_equal(
        _core.unpack(EXACT[name], packed, 37, 160), _core.decode(name, rows)
    )


def test_iq4_xs_keeps_its_codes() -> None:
    """Only the scales move, to the nearest f16; those that have no f16 are packed as floats are."""
    rows = blocks("iq4_xs", 37 * 2, ORDINARY, 10).reshape(37, -1)
    packed = np.empty(_core.packed_nbytes("iq4g32h", 37, 512), np.uint8)
    _core.pack("iq4g32h", rows, dtype="iq4_xs", out=packed, threads=2)
    exact = _core.decode("iq4_xs", rows)
    found = _core.unpack("iq4g32h", packed, 37, 512)
    assert (np.abs(found - exact) <= np.abs(exact) * 2.0**-11).all()
    assert (found != exact).any()
    rows[20, :2] = np.float16([60000]).view(np.uint8)
    rows[20, 2:8] = 255  # scales 31
    _core.pack("iq4g32h", rows, dtype="iq4_xs", out=packed)
    exact = _core.decode("iq4_xs", rows)
    found = _core.unpack("iq4g32h", packed, 37, 512)
    np.testing.assert_allclose(found[20, :256], exact[20, :256], rtol=0.02, atol=1e6)


def test_arguments_that_do_not_fit_are_refused() -> None:
    rows = np.zeros((2, 36), np.uint8)
    for array, dtype, message in [
        (rows, "q9_9", "'q9_9' is not one of f32, f16"),
        (rows[:, :35], "q4_0", "a row has 35 bytes, a block of q4_0 has 18"),
        (rows[0], "q4_0", "not 2-D"),
        (rows.view(np.float32), "q4_0", "expected uint8"),
        (rows[:, 1:5], "f32", "not aligned"),
        (rows[:, ::2], "q4_0", "side by side"),
    ]:
        with pytest.raises(InvalidRequest, match=message):
            _core.decode(dtype, array)


def test_strings_end_inside_the_buffer() -> None:
    def string(data: bytes) -> bytes:
        return len(data).to_bytes(8, "little") + data

    data = b"xy" + string(b"") + string(b"abc") + string(b"d")
    np.testing.assert_array_equal(_core.string_ends(data, 2, 3), [10, 21, 30])
    assert _core.string_ends(data, 30, 0).tolist() == []
    for cut in range(30):
        with pytest.raises(CorruptFile):
            _core.string_ends(data[:cut], 2, 3)
    for begin, count in [(2, 2**60), (2, -1), (-1, 1), (31, 0), (2, 4)]:
        with pytest.raises(CorruptFile):
            _core.string_ends(data, begin, count)
    hostile = (2**64 - 1).to_bytes(8, "little") + bytes(8)
    with pytest.raises(CorruptFile, match="string 0 of 1 has 18446744073709551615 bytes"):
        _core.string_ends(hostile, 0, 1)
