"""Packed weight formats: sizes, codecs over every code and sub-scale, and the packers."""

from __future__ import annotations

import numpy as np
import pytest

from musespark import _core
from musespark.errors import CorruptFile, InvalidRequest
from musespark.reference import formats
from support.compare import assert_within
from support.levels import stdout_by_level
from support.matmul_cases import FORMATS, random_parts

SHAPES = [(1, 1), (3, 31), (16, 64), (17, 65), (33, 256), (20, 257), (50, 700)]


def pack(form: str, weights: np.ndarray, **options) -> np.ndarray:
    out = np.full(_core.packed_nbytes(form, *weights.shape), 0xAA, np.uint8)
    _core.pack(form, weights, out=out, **options)
    return out


def relative_error(weights: np.ndarray, form: str) -> float:
    """Root mean square error over root mean square, in percent."""
    got = _core.unpack(form, pack(form, weights), *weights.shape).astype(np.float64)
    exact = weights.astype(np.float64)
    return float(100 * np.sqrt(((got - exact) ** 2).sum() / (exact**2).sum()))


@pytest.mark.parametrize("form", FORMATS)
def test_sizes(form: str) -> None:
    for rows, cols in SHAPES:
        assert _core.packed_nbytes(form, rows, cols) == formats.sizes(form, rows, cols)["all"]
        assert _core.packed_nbytes(form, rows, cols) % 64 == 0


def test_bad_sizes() -> None:
    for rows, cols in ((0, 1), (1, 0), (-1, 5), (1 << 40, 1 << 40), (2**62, 1)):
        with pytest.raises(InvalidRequest):
            _core.packed_nbytes("q4", rows, cols)
    with pytest.raises(InvalidRequest, match=r"q5.*f32, bf16, q8, q6, q4"):
        _core.packed_nbytes("q5", 1, 1)


@pytest.mark.parametrize("form", ["q4", "q6"])
def test_every_code_and_sub_scale(form: str) -> None:
    """(level * sub + 64) >> 7 for all codes times all sub-scales, through the packed bytes."""
    codes = np.arange(16) if form == "q4" else np.arange(-32, 32)
    cols = -(-len(codes) // 32) * 32
    subs = np.arange(-128, 128)
    n, kp = -(-len(subs) // 16) * 16, max(64, cols)
    parts = random_parts(np.random.default_rng(0), form, n, kp, extreme=False)
    parts.codes[:] = np.resize(codes, kp)[None, :]
    parts.sub[:] = np.resize(subs, n)[:, None]
    parts.block[:] = 1
    parts.row[:] = 1
    got = _core.unpack(form, formats.put_together(parts), n, kp)
    level = formats.LEVELS_Q4[parts.codes] if form == "q4" else 4 * parts.codes
    counted = np.maximum(np.resize(subs, n), -127)[:, None]  # -128 as -127
    exact = np.floor_divide(level * counted + 64, 128)
    assert np.abs(exact).max() <= 127
    assert len(np.unique(np.resize(subs, n))) == 256
    np.testing.assert_array_equal(got, exact.astype(np.float32))


@pytest.mark.parametrize("form", ["q8", *formats.G32])
def test_every_code(form: str) -> None:
    """Formats without sub-scales, -128 of q8 too: no packer writes it, a file may."""
    codes = np.arange(-128, 128) if formats.BITS[form] == 8 else np.arange(16)
    parts = random_parts(np.random.default_rng(0), form, 16, 256, extreme=False)
    parts.codes[:] = np.resize(codes, 256)[None, :]
    parts.block[:] = 1
    parts.row[:] = 1
    got = _core.unpack(form, formats.put_together(parts), 16, 256)
    level = parts.codes if formats.BITS[form] == 8 else formats.LEVELS[form][parts.codes]
    np.testing.assert_array_equal(got, level.astype(np.float32))


@pytest.mark.parametrize("form", formats.QUANTIZED)
def test_unpack_is_the_twins(form: str) -> None:
    rng = np.random.default_rng(1)
    for n, k in SHAPES:
        parts = random_parts(rng, form, n, k, extreme=False)
        packed = formats.put_together(parts)
        again = formats.take_apart(form, packed, n, k)
        np.testing.assert_array_equal(again.codes, parts.codes)
        got = _core.unpack(form, packed, n, k)
        np.testing.assert_array_equal(got, parts.values()[:n, :k])


@pytest.mark.parametrize("form", ["f32", "bf16"])
def test_float_formats(form: str) -> None:
    """f32 exactly, bf16 rounded to nearest even."""
    rng = np.random.default_rng(2)
    for n, k in SHAPES:
        w = rng.standard_normal((n, k)).astype(np.float32)
        packed = pack(form, w)
        expected = w
        if form == "bf16":
            bits = w.view(np.uint32).astype(np.uint64)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16
            expected = rounded.astype(np.uint32).view(np.float32)
        np.testing.assert_array_equal(_core.unpack(form, packed, n, k), expected)
        np.testing.assert_array_equal(formats.float_weights(form, packed, n, k), expected)


@pytest.mark.parametrize("form", FORMATS)
def test_sources(form: str) -> None:
    """bf16 and f16 bits pack as the floats they stand for; rows may be strided."""
    rng = np.random.default_rng(3)
    w = rng.standard_normal((37, 200)).astype(np.float16)
    expected = pack(form, w.astype(np.float32))
    np.testing.assert_array_equal(pack(form, w.view(np.uint16), dtype="f16"), expected)
    bits = (rng.standard_normal((37, 200)).astype(np.float32).view(np.uint32) >> 16).astype(
        np.uint16
    )
    floats = (bits.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(pack(form, bits, dtype="bf16"), pack(form, floats))
    wide = np.zeros((37, 300), np.float32)
    wide[:, 50:250] = w
    np.testing.assert_array_equal(pack(form, wide[:, 50:250]), expected)
    every_other = np.zeros((74, 200), np.float32)
    every_other[::2] = w
    np.testing.assert_array_equal(pack(form, every_other[::2]), expected)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("form", FORMATS)
def test_row_blocks_do_not_know_of_each_other(form: str, quick: bool) -> None:
    """One packer makes several, the last of them of three rows; columns in two tiles."""
    w = np.random.default_rng(8).standard_normal((16 * 42 + 3, 300)).astype(np.float32)
    whole = pack(form, w, quick=quick).reshape(43, -1)
    for block in (0, 1, 41, 42):
        alone = pack(form, w[16 * block : 16 * block + 16], quick=quick)
        np.testing.assert_array_equal(whole[block], alone, err_msg=str(block))
    np.testing.assert_array_equal(pack(form, w, quick=quick, threads=3), whole.reshape(-1))


# Relative error on normal numbers that a quick search may add to the thorough one's.
QUICK = {"q6": 1.25, "q4": 1.08, "q4g32h": 1.08, "iq4g32h": 1.08, "mxfp4": 1.25}


@pytest.mark.parametrize("form", QUICK)
def test_a_quick_search_is_a_little_worse(form: str) -> None:
    w = np.random.default_rng(9).standard_normal((64, 512)).astype(np.float32)
    errors = [
        np.sqrt(((_core.unpack(form, pack(form, w, quick=quick), 64, 512) - w) ** 2).mean())
        for quick in (False, True)
    ]
    assert errors[0] < errors[1] <= errors[0] * QUICK[form], errors


@pytest.mark.parametrize("form", FORMATS)
def test_check_of_packed_bytes(form: str) -> None:
    """What packers write passes; scales, sub-scales and padding they do not write are found."""
    rng = np.random.default_rng(7)
    n, k = 20, 70
    packed = _aligned(pack(form, rng.standard_normal((n, k)).astype(np.float32)))

    def check(data: np.ndarray) -> None:
        _core.check_packed(form, data, n, k, what="W")

    check(packed)
    with pytest.raises(CorruptFile, match=r"W: .* takes"):
        check(packed[:-64])
    if form not in formats.QUANTIZED:
        return
    parts = formats.take_apart(form, packed, n, k)
    changes = {
        r"W: row 3: the scale is not": ("row", 3, np.nan),
        r"W: row 19, block 0: the scale": ("block", (19, 0), np.inf),
        r"W: row 20: scales of a row past": ("row", 20, 1),
        r"W: row 21: scales of a row past": ("block", (21, 0), 1),
        r"W: row 31, column 2: a code": ("codes", (31, 2), 1),
        r"W: row 1, column 70: a code": ("codes", (1, 70), 1),
    }
    if parts.sub is not None:
        changes[r"W: row 4, group 2: the sub-scale is -128"] = ("sub", (4, 2), -128)
        changes[r"W: row 31: scales of a row past"] = ("sub", (31, 0), 1)
    for message, (part, at, value) in changes.items():
        wrong = formats.take_apart(form, packed, n, k)
        getattr(wrong, part)[at] = value
        with pytest.raises(CorruptFile, match=message):
            check(_aligned(formats.put_together(wrong)))
    size = formats.sizes(form, n, k)
    if size["gap"]:
        wrong = _aligned(packed)
        wrong[size["row"] + size["block"] + size["sub"]] = 1
        with pytest.raises(CorruptFile, match="bytes before the codes"):
            check(wrong)


def _aligned(data: np.ndarray) -> np.ndarray:
    """A copy that begins at a multiple of 64."""
    room = np.empty(data.size + 64, np.uint8)
    start = -room.ctypes.data % 64
    room[start : start + data.size] = data
    return room[start : start + data.size]


# q4: the errors that settled the format (benchmarks/formats.py), plus 1 percent of themselves. The
# others: what they have, plus 5 percent.
LIMITS = {
    ("q4", "gaussian"): 7.35 * 1.01, ("q4", "laplace"): 8.49 * 1.01, ("q4", "t5"): 8.56 * 1.01,
    ("q6", "gaussian"): 2.2, ("q6", "laplace"): 2.8, ("q6", "t5"): 2.9,
    ("q8", "gaussian"): 0.62, ("q8", "laplace"): 0.82, ("q8", "t5"): 0.86,
    ("q8g32h", "gaussian"): 0.56, ("q8g32h", "laplace"): 0.71, ("q8g32h", "t5"): 0.71,
    ("q8g1024h", "gaussian"): 0.83, ("q8g1024h", "laplace"): 1.28, ("q8g1024h", "t5"): 1.57,
    ("q4g32h", "gaussian"): 8.5, ("q4g32h", "laplace"): 10.7, ("q4g32h", "t5"): 10.8,
    ("iq4g32h", "gaussian"): 7.7, ("iq4g32h", "laplace"): 8.9, ("iq4g32h", "t5"): 8.95,
    ("mxfp4", "gaussian"): 9.55, ("mxfp4", "laplace"): 9.85, ("mxfp4", "t5"): 9.85,
}  # fmt: skip


@pytest.mark.parametrize(("form", "kind"), list(LIMITS))
def test_packing_error(form: str, kind: str) -> None:
    rng = np.random.default_rng(4)
    draw = {
        "gaussian": lambda shape: rng.standard_normal(shape),
        "laplace": lambda shape: rng.laplace(size=shape),
        "t5": lambda shape: rng.standard_t(5, size=shape),
    }[kind]
    assert relative_error(draw((256, 2048)).astype(np.float32), form) <= LIMITS[form, kind]


@pytest.mark.parametrize("form", formats.QUANTIZED)
def test_every_weight_is_near(form: str) -> None:
    """No weight is off by more than half the widest gap between levels, at the group's scale.

    A scale search may clip the largest magnitude by up to a quarter, hence that share of it.
    """
    rng = np.random.default_rng(5)
    w = rng.standard_normal((33, 512)).astype(np.float32)
    got = _core.unpack(form, pack(form, w), *w.shape)
    width = min(w.shape[1], formats.BLOCK[form]) if formats.BITS[form] == 8 else 32
    amax = np.repeat(np.abs(w).reshape(33, -1, width).max(axis=2), width, axis=1)
    share = {8: 0.51 / 127, 6: 0.11, 4: 0.25}[formats.BITS[form]]
    assert_within(got, w, share * amax, form)


@pytest.mark.parametrize("form", FORMATS)
def test_special_matrices(form: str) -> None:
    """Zeros stay zeros; rows of any magnitude keep their relative error; tiny rows become zeros."""
    zeros = np.zeros((18, 100), np.float32)
    np.testing.assert_array_equal(_core.unpack(form, pack(form, zeros), 18, 100), zeros)
    rng = np.random.default_rng(6)
    w = rng.standard_normal((16, 256)).astype(np.float32)
    one_row_zero = w.copy()
    one_row_zero[3] = 0
    got = _core.unpack(form, pack(form, one_row_zero), 16, 256)
    np.testing.assert_array_equal(got[3], 0)
    for scale in (1e-25, 1e-6, 1.0, 1e6, 1e30):
        # Times a power of two: the same codes, so the same relative error, whatever the magnitude.
        factor = np.float32(2.0 ** round(np.log2(scale)))
        error = relative_error(w * factor, form)
        assert error == pytest.approx(relative_error(w, form), rel=1e-3, abs=1e-9), scale
    if form in formats.QUANTIZED:
        tiny = _core.unpack(form, pack(form, w * np.float32(1e-36)), 16, 256)
        np.testing.assert_array_equal(tiny, 0)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(form: str, value: float) -> None:
    w = np.ones((20, 70), np.float32)
    w[17, 66] = value
    with pytest.raises(InvalidRequest, match="row 17, column 66"):
        pack(form, w, threads=2)


def test_bad_arguments() -> None:
    w = np.ones((4, 8), np.float32)
    out = np.zeros(_core.packed_nbytes("q4", 4, 8), np.uint8)
    for arguments in (
        {"array": w.astype(np.float64)},
        {"array": w, "dtype": "bf16"},
        {"array": w.reshape(-1)},
        {"array": np.asfortranarray(np.ones((4, 8), np.float32))},
        {"array": w, "out": out[:-1]},
        {"array": w, "out": np.zeros(2 * len(out), np.uint8)[::2]},
        {"array": w, "threads": 0},
    ):
        with pytest.raises(InvalidRequest):
            _core.pack("q4", **{"out": out, **arguments})
    with pytest.raises(InvalidRequest):
        _core.unpack("q4", out[:-64], 4, 8)
    out.flags.writeable = False
    with pytest.raises((BufferError, ValueError)):
        _core.pack("q4", w, out=out)


DIGEST = """
import sys
import numpy as np
from musespark import _core
rng = np.random.default_rng(8)
for rows, cols in ((50, 700), (16, 64), (5, 33)):
    w = rng.standard_t(5, size=(rows, cols)).astype(np.float32)
    for form in _core.weight_formats:
        for threads in (1, 2, 5):
            out = np.zeros(_core.packed_nbytes(form, rows, cols), np.uint8)
            _core.pack(form, w, out=out, threads=threads)
            print(form, rows, cols, format(_core.checksum(out), "016x"))
for form in _core.weight_formats:
    out = np.zeros(_core.packed_nbytes(form, *w.shape), np.uint8)
    _core.pack(form, w, out=out, quick=True)
    print("quick", form, format(_core.checksum(out), "016x"))
"""


def test_same_bytes_on_every_level_and_thread_count() -> None:
    """A fresh process for each instruction set; and the bytes of today, so that they stay."""
    outputs = stdout_by_level(DIGEST)
    assert len(set(outputs.values())) == 1, outputs
    lines = outputs["scalar"].split("\n")
    assert len(lines) == 10 * len(FORMATS)
    by_threads = {tuple(lines[i : i + 3]) for i in range(0, 9 * len(FORMATS), 3)}
    assert all(len(set(group)) == 1 for group in by_threads)
