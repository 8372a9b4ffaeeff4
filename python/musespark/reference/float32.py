"""Float32 arithmetic as the kernels do it, step by step: exact fma, lane sums, exp, tanh.

Every function takes and gives float32 arrays and has the bits of ``csrc/kernels/detail``
(``scalar_math.inl``), NaN payloads apart; NaNs become canonical where a kernel writes its result.
"""

from __future__ import annotations

import numpy as np

f32 = np.float32

LOG2_E = f32(float.fromhex("0x1.715476p+0"))
LN2_HIGH = f32(float.fromhex("0x1.62e4p-1"))  # 15 bits: its product with |n| < 2^8 is exact
LN2_LOW = f32(float.fromhex("0x1.7f7d1cp-20"))
SHIFT = f32(1.5 * 2**23)  # adding it rounds to an integer in the last bits
EXP = [f32(float.fromhex(c)) for c in (
    "0x1.fffffcp-2", "0x1.555492p-3", "0x1.5558f2p-5", "0x1.123a2p-7", "0x1.6a23dp-10",
)]  # fmt: skip
TANH = [f32(float.fromhex(c)) for c in (
    "-0x1.555534p-2", "0x1.110768p-3", "-0x1.b84448p-5", "0x1.5256d8p-6", "-0x1.76ac1ap-8",
)]  # fmt: skip


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c rounded once, elementwise.

    The product of two float32 is exact in float64. Their sum with c is rounded to odd there (the
    even neighbour of an inexact sum is replaced by the odd one), after which rounding to float32
    gives what a single rounding would: float64 has more than twice 24 + 2 bits.
    """
    with np.errstate(all="ignore"):
        product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
        addend = np.asarray(c, np.float64)
        total = product + addend
        shadow = total - product
        error = (product - (total - shadow)) + (addend - shadow)
        even = (total.view(np.int64) & 1) == 0
        wrong = even & (error != 0) & np.isfinite(total) & np.isfinite(error)
        odd = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
        return np.where(wrong, odd, total).astype(f32)


def canonical(x: np.ndarray) -> np.ndarray:
    """Every NaN as 0x7fc00000."""
    x = np.array(x, f32)
    x.view(np.uint32)[np.isnan(x)] = 0x7FC00000
    return x


def tree(lanes: np.ndarray) -> np.ndarray:
    """The fixed tree over the last axis, 16 lanes: l[i] += l[i + 8], + 4, + 2, + 1."""
    lanes = np.array(lanes, f32)
    for half in (8, 4, 2, 1):
        lanes[..., :half] = lanes[..., :half] + lanes[..., half : 2 * half]
    return lanes[..., 0]


def tree_max(lanes: np.ndarray) -> np.ndarray:
    """The same tree with larger(l[i + half], l[i])."""
    lanes = np.array(lanes, f32)
    for half in (8, 4, 2, 1):
        lanes[..., :half] = larger(lanes[..., half : 2 * half], lanes[..., :half])
    return lanes[..., 0]


def larger(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a > b ? a : b; a NaN on either side gives b."""
    return np.where(a > b, a, b).astype(f32)


def smaller(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a < b ? a : b; a NaN on either side gives b."""
    return np.where(a < b, a, b).astype(f32)


def in_lanes(x: np.ndarray, fill: float) -> np.ndarray:
    """A row as [blocks, 16]: element i in block i // 16, lane i % 16, `fill` past the end."""
    blocks = -(-len(x) // 16)
    padded = np.full(blocks * 16, fill, f32)
    padded[: len(x)] = x
    return padded.reshape(blocks, 16)


def lane_sum(x: np.ndarray) -> np.ndarray:
    """The sum of a row: 16 lanes from +0, ascending, then the tree."""
    lanes = np.zeros(16, f32)
    for block in in_lanes(x, 0.0):
        lanes = lanes + block
    return tree(lanes)


def lane_dot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The same with lane = fma(x, y, lane)."""
    lanes = np.zeros(16, f32)
    for a, b in zip(in_lanes(x, 0.0), in_lanes(y, 0.0), strict=True):
        lanes = fma(a, b, lanes)
    return tree(lanes)


def lane_max(x: np.ndarray) -> np.ndarray:
    """The maximum of a row, NaN never taken; -inf for an empty one."""
    lanes = np.full(16, -np.inf, f32)
    for block in in_lanes(x, -np.inf):
        lanes = larger(block, lanes)
    return tree_max(lanes)


def exp(x: np.ndarray) -> np.ndarray:
    """e^x = 2^n e^r with n the nearest integer to x / ln 2; within 1 ulp."""
    x = np.asarray(x, f32)
    x = larger(f32(-104), smaller(f32(89), x))
    with np.errstate(all="ignore"):
        n = fma(x, LOG2_E, SHIFT) - SHIFT
        r = fma(n, -LN2_HIGH, x)
        r = fma(n, -LN2_LOW, r)
        p = np.full_like(r, EXP[4])
        for c in (EXP[3], EXP[2], EXP[1], EXP[0], f32(1), f32(1)):
            p = fma(p, r, c)
        # Exact in float64, so the cast is the one rounding.
        return np.ldexp(p.astype(np.float64), np.nan_to_num(n).astype(np.int32)).astype(f32)


def tanh(x: np.ndarray) -> np.ndarray:
    """A polynomial below 0.625, 1 - 2 / (e^2a + 1) above; within 2 ulp."""
    x = np.asarray(x, f32)
    a = smaller(f32(10), np.abs(x))
    with np.errstate(all="ignore"):
        u = a * a
        p = np.full_like(u, TANH[4])
        for c in (TANH[3], TANH[2], TANH[1], TANH[0]):
            p = fma(p, u, c)
        small = fma(p * u, a, a)
        large = f32(1) - f32(2) / (exp(a + a) + f32(1))
        return np.copysign(np.where(a < f32(0.625), small, large), x).astype(f32)
