"""Packed weight formats, written to be read: ``csrc/formats/weights.h`` in NumPy.

A quantized matrix is ``W[n, k] ~= row[n] * block[n, k // B] * w8[n, k]``, w8 an int8. Here it
is taken to pieces (:class:`Parts`) and put together again; the search for good codes is left to
the packer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEVELS_Q4 = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int32
)
INT4 = np.arange(-8, 8)
E2M1_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int32)
LEVELS = {"q4": LEVELS_Q4, "q4g32h": INT4, "iq4g32h": LEVELS_Q4, "mxfp4": E2M1_DOUBLED}
BITS = {
    "q8": 8, "q6": 6, "q4": 4, "q8g32h": 8, "q4g32h": 4, "iq4g32h": 4, "mxfp4": 4, "q8g1024h": 8,
}  # fmt: skip
BLOCK = {
    "q8": 64, "q6": 256, "q4": 256, "q8g32h": 32, "q4g32h": 32, "iq4g32h": 32, "mxfp4": 32,
    "q8g1024h": 1024,
}  # fmt: skip
WITH_SUB = ("q6", "q4")
QUANTIZED = tuple(BITS)
G32 = tuple(form for form in QUANTIZED if BLOCK[form] == 32)  # a scale per 32 columns
ROWS = 16  # of a row block


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass
class Parts:
    """A quantized matrix of N x K, Kp = K rounded up to 64, rows padded to Np = 16 n.

    ``codes`` int [Np, Kp]: an int8, the signed 6 bits of q6, or the 4 bits of the others.
    ``sub`` int8 [Np, Kp / 32] (q6 and q4, else None), ``block`` float16 [Np, ceil(Kp / B)],
    ``row`` float32 [Np].
    """

    format: str
    codes: np.ndarray
    sub: np.ndarray | None
    block: np.ndarray
    row: np.ndarray

    def w8(self) -> np.ndarray:
        """The int8 matrix [Np, Kp] as int32: (level * sub + 64) >> 7, or the level alone.

        A sub-scale of -128, which no packer writes, counts as -127.
        """
        codes = self.codes.astype(np.int32)
        level = LEVELS[self.format][codes] if BITS[self.format] == 4 else codes
        if self.sub is None:
            return level.astype(np.int32)
        if self.format == "q6":
            level = 4 * level
        sub = np.repeat(np.maximum(self.sub.astype(np.int32), -127), 32, axis=1)
        return (level * sub + 64) >> 7

    def values(self) -> np.ndarray:
        """float32 [Np, Kp]: (float(w8) * float(block)) * row."""
        block = np.repeat(self.block.astype(np.float32), BLOCK[self.format], axis=1)
        w8 = self.w8().astype(np.float32)
        return (w8 * block[:, : w8.shape[1]]) * self.row[:, None]


def sizes(form: str, rows: int, cols: int) -> dict[str, int]:
    """Bytes of the parts of a row block, in file order, and of all of them (`row_block`, `all`)."""
    kp = ceil_div(cols, 64) * 64
    size = {}
    if form in QUANTIZED:
        size["row"] = 16 * 4
        size["block"] = ceil_div(kp, BLOCK[form]) * 16 * 2
        size["sub"] = kp // 32 * 16 if form in WITH_SUB else 0
        size["gap"] = -sum(size.values()) % 64
    size["codes"] = kp * 2 * {"f32": 32, "bf16": 16, **BITS}[form]
    size["row_block"] = sum(size.values())
    size["all"] = size["row_block"] * ceil_div(rows, ROWS)
    return size


def take_apart(form: str, packed: np.ndarray, rows: int, cols: int) -> Parts:
    """The parts of packed bytes (uint8) of a quantized format."""
    size = sizes(form, rows, cols)
    kp = ceil_div(cols, 64) * 64
    blocks = np.asarray(packed, np.uint8).reshape(-1, size["row_block"])
    cut, at = {}, 0
    for name in ("row", "block", "sub", "gap", "codes"):
        cut[name] = np.ascontiguousarray(blocks[:, at : at + size[name]])
        at += size[name]

    def by_row(values: np.ndarray) -> np.ndarray:  # [row blocks, groups * 16] -> [Np, groups]
        return values.reshape(len(blocks), -1, 16).transpose(0, 2, 1).reshape(len(blocks) * 16, -1)

    row = cut["row"].view(np.float32).reshape(-1)
    block = by_row(cut["block"].view(np.float16))
    sub = by_row(cut["sub"].view(np.int8)) if form in WITH_SUB else None
    # [row blocks, 64-column chunk, vector, row, k % 4]
    vectors = cut["codes"].reshape(len(blocks), kp // 64, -1, 16, 4).astype(np.int32)
    if BITS[form] == 8:
        quads = vectors.astype(np.int8).astype(np.int32)
    else:
        low = vectors[:, :, :8]
        quads = np.concatenate([low & 15, low >> 4], axis=2)
        if form == "q6":
            high = vectors[:, :, 8:]
            bits = np.concatenate([high >> shift & 3 for shift in (0, 2, 4, 6)], axis=2)
            quads = ((quads | bits << 4) ^ 32) - 32
    codes = quads.transpose(0, 3, 1, 2, 4).reshape(len(blocks) * 16, kp)
    return Parts(form, codes, sub, block, row)


def put_together(parts: Parts) -> np.ndarray:
    """The packed bytes (uint8) of the parts."""
    form, (n, kp) = parts.format, parts.codes.shape
    blocks = n // 16

    def by_column(values: np.ndarray) -> np.ndarray:  # [Np, groups] -> bytes [row blocks, ...]
        values = np.ascontiguousarray(values.reshape(blocks, 16, -1).transpose(0, 2, 1))
        return values.reshape(blocks, -1).view(np.uint8)

    # [row blocks, chunk, quad, row, k % 4]
    quads = (
        parts.codes.astype(np.int32).reshape(blocks, 16, kp // 64, 16, 4).transpose(0, 2, 3, 1, 4)
    )
    if BITS[form] == 8:
        vectors = quads
    else:
        vectors = (quads[:, :, :8] & 15) | (quads[:, :, 8:] & 15) << 4
        if form == "q6":
            top = quads >> 4 & 3
            high = sum(top[:, :, 4 * j : 4 * j + 4] << 2 * j for j in range(4))
            vectors = np.concatenate([vectors, high], axis=2)
    size = sizes(form, n, kp)
    pieces = [by_column(parts.row[:, None].astype(np.float32))]
    pieces.append(by_column(parts.block.astype(np.float16)))
    if parts.sub is not None:
        pieces.append(by_column(parts.sub.astype(np.int8)))
    pieces.append(np.zeros((blocks, size["gap"]), np.uint8))
    pieces.append((vectors & 255).astype(np.uint8).reshape(blocks, -1))
    return np.concatenate(pieces, axis=1).reshape(-1)


def float_weights(form: str, packed: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """float32 [rows, cols] of packed f32 or bf16 bytes."""
    blocks = ceil_div(rows, ROWS)
    if form == "f32":
        values = np.ascontiguousarray(packed).view(np.float32).reshape(blocks, -1, 16)
        return values.transpose(0, 2, 1).reshape(blocks * 16, -1)[:rows, :cols]
    pairs = np.ascontiguousarray(packed).view(np.uint16).reshape(blocks, -1, 16, 2)
    bits = pairs.transpose(0, 2, 1, 3).reshape(blocks * 16, -1)[:rows, :cols].astype(np.uint32)
    return (bits << 16).view(np.float32)
