"""Numbers as quantized checkpoints store them: fields of 32-bit words, float8, e8m0, e2m1."""

from __future__ import annotations

import numpy as np

# e2m1: a sign, two bits of exponent, one of mantissa.
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def _float8(mantissa_bits: int, bias: int) -> np.ndarray:
    code = np.arange(256)
    exponent = code >> mantissa_bits & (1 << 7 - mantissa_bits) - 1
    mantissa = (code & (1 << mantissa_bits) - 1) / (1 << mantissa_bits)
    value = np.ldexp(mantissa + (exponent > 0), np.maximum(exponent, 1) - bias)
    return np.where(code >= 128, -value, value).astype(np.float32)


# float32 [256] of the bytes. e4m3 has no infinity; e5m2 has, as float16 whose upper half it is.
E4M3 = _float8(3, 7)
E4M3[[0x7F, 0xFF]] = np.nan
E5M2 = _float8(2, 15)
E5M2[[0x7C, 0xFC]] = np.inf, -np.inf
E5M2[[0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF]] = np.nan
E8M0 = np.append(np.ldexp(np.float32(1), np.arange(255) - 127), np.nan).astype(np.float32)


def fields(words: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned fields of `bits` (1 to 8) in 32-bit words, side by side from the lowest bit on.

    Words are a 32-bit type [..., w]; the result is uint8 [..., w * 32 // bits]. A field may lie
    across two words; bits left over at the end are dropped.
    """
    data = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return data
    if 8 % bits:
        return _odd_fields(data, bits)
    out = np.empty((*data.shape, 8 // bits), np.uint8)
    for i in range(8 // bits):
        np.bitwise_and(data >> np.uint8(i * bits), np.uint8((1 << bits) - 1), out=out[..., i])
    return out.reshape(*data.shape[:-1], -1)


def fields_of(words: np.ndarray, bits: int, picked: range, add: int | np.uint32 = 0) -> np.ndarray:
    """The `picked` ones of the fields along the last axis; looks at no other words. `add` goes to
    each word first, and may carry from field to field."""
    low, high = picked.start // 32, -(-picked.stop // 32)  # 32 fields are `bits` words
    near = fields(words[..., low * bits : high * bits] + add, bits)
    return near[..., picked.start - 32 * low : picked.stop - 32 * low : picked.step]


def _odd_fields(data: np.ndarray, bits: int) -> np.ndarray:
    count = data.shape[-1] * 8 // bits
    each = np.unpackbits(data, axis=-1, bitorder="little")[..., : count * bits]
    weights = np.left_shift(1, np.arange(bits)).astype(np.uint8)
    return (each.reshape(*data.shape[:-1], count, bits) * weights).sum(-1, dtype=np.uint8)


def nibbles(data: np.ndarray) -> np.ndarray:
    """The two halves of each byte, the low one first: uint8 [..., n] to [..., 2 n]."""
    return np.stack([data & 15, data >> 4], axis=-1).reshape(*data.shape[:-1], -1)


def floats(array: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 of a stored array; `dtype` is what safetensors calls it."""
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    tables = {"F8_E4M3": E4M3, "F8_E5M2": E5M2, "F8_E8M0": E8M0, "U8": E8M0}
    if dtype in tables:
        return tables[dtype][array.view(np.uint8)]
    return array.astype(np.float32)


def are_halves(scales: np.ndarray) -> bool:
    """Whether each row [rows, groups] of floats is f16 numbers times a power of two.

    Rows of one number are too: it can be the row's own scale. NaN and infinity are not.
    """
    if scales.shape[1] == 1:
        return bool(np.isfinite(scales).all())
    if not np.isfinite(scales).all():
        return False
    fraction, exponent = np.frexp(scales)
    mantissa = np.abs(np.ldexp(fraction, 24)).astype(np.int64)
    lowest = mantissa & -mantissa  # its lowest set bit; 0 for 0
    some = mantissa != 0
    if (lowest[some] < 1 << 13).any():  # more than 11 significant bits
        return False
    low = exponent - 24 + np.log2(np.where(some, lowest, 1)).astype(np.int64)
    top = np.where(some, exponent - 1, -(2**20)).max(axis=1)
    return bool((top - np.where(some, low, 2**20).min(axis=1) <= 15 + 24).all())
