"""Attention over whole texts in 8 bits, written to be read: ``csrc/kernels/attention/whole.h``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from musespark.reference.float32 import canonical, f32, fma, larger, smaller

PAGE, SUM_PAGES = 64, 512
TINY, MOST = f32(1e-30), f32(1e30)
TOP = f32(float.fromhex("0x1.dffa3ap+3"))  # log2 32752
EXP2 = [
    f32(float.fromhex(c))
    for c in ("0x1.fff692p-1", "0x1.62f31ap-1", "0x1.f0de1ap-3", "0x1.c3f76p-5")
]


@dataclass
class WholeHead:
    """``keys`` and ``values`` int32 [n, D]; scales float32 by page and by channel."""

    keys: np.ndarray
    values: np.ndarray
    key_scale: np.ndarray
    value_scale: np.ndarray
    value_mean: np.ndarray


def codes_of(x: np.ndarray, amax: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes of x and their scales, amax the largest magnitude of those that share one."""
    finite = np.isfinite(amax)
    used = finite & (amax >= TINY)
    scale = np.where(used, amax / f32(127), np.where(finite, f32(0), f32(np.nan))).astype(f32)
    inverse = np.where(used, f32(127) / amax, f32(0)).astype(f32)
    limited = larger(np.full_like(x, -127), smaller(np.full_like(x, 127), x * inverse))
    return np.where(used, np.rint(limited), 0).astype(np.int32), scale


def mean_of(x: np.ndarray) -> np.ndarray:
    total = np.zeros(x.shape[1], f32)
    for row in x:
        total = total + row
    return canonical(total * (f32(1) / f32(len(x))))


def pack(k: np.ndarray, v: np.ndarray) -> WholeHead:
    """Keys and values float32 [n, D] of one head."""
    k, mean = k - mean_of(k), mean_of(v)
    pages = [codes_of(p, np.abs(p).max()) for p in np.split(k, range(PAGE, len(k), PAGE))]
    values, scale = codes_of(v - mean, np.abs(v - mean).max(0))
    keys = np.concatenate([codes for codes, _ in pages])
    return WholeHead(keys, values, np.array([s for _, s in pages], f32), scale, mean)


def exp2_codes(t: np.ndarray) -> np.ndarray:
    """2^t of -2 <= t <= TOP, rounded to integers."""
    shift = f32(1.5 * 2**23)
    r = (t + shift) - shift
    p = np.full_like(t, EXP2[3])
    for c in EXP2[2::-1]:
        p = fma(p, t - r, np.full_like(t, c))
    return np.rint(np.ldexp(p, r.astype(np.int32))).astype(np.int64)


def attend(head: WholeHead, q: np.ndarray, factor: float) -> np.ndarray:
    """float32 [rows, D] of queries [rows, D]."""
    return np.stack([_row(head, row, f32(factor)) for row in q])


def _row(head: WholeHead, q: np.ndarray, factor: np.float32) -> np.ndarray:
    code, scale = codes_of(q, np.abs(q).max())
    of_page = (scale * factor) * head.key_scale
    if not (of_page < MOST).all():
        return np.full(len(q), np.nan, f32)
    n = len(head.keys)
    c = np.repeat(of_page, PAGE)[:n]
    dots = (head.keys @ code).astype(f32)
    base = TOP - (dots * c).max()
    t = larger(np.full(n, -2, f32), smaller(np.full(n, TOP), fma(dots, c, np.full(n, base))))
    weights = exp2_codes(t)
    total, a = f32(0), np.zeros(len(q), f32)
    for first in range(0, n, SUM_PAGES * PAGE):
        own = slice(first, first + SUM_PAGES * PAGE)
        total = total + weights[own].sum().astype(f32)
        low = ((weights[own] & 255) @ head.values[own]).astype(f32)
        high = ((weights[own] >> 8) @ head.values[own]).astype(f32)
        a = a + fma(high, np.full_like(high, 256), low)
    return canonical(fma(a, head.value_scale * (f32(1) / total), head.value_mean))
