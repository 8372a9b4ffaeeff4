"""The quantized matmul, written to be read: the arithmetic of ``csrc/kernels/qmatmul/qmatmul.h``.

Float32 steps in the order of the contract, integers exact: the bits are those of the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from musespark.reference.float32 import fma
from musespark.reference.formats import BLOCK, G32, Parts

f32 = np.float32
GROUP = 64  # columns that share one activation scale


@dataclass
class Activations:
    """q int8 [M, Kp], scale float32 [M, Kp / 64], bias int32 [M, Kp / 64] = -128 * sum of q.

    ``half_bias`` int32 [M, Kp / 32]: the same of 32 columns.
    """

    q: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    half_bias: np.ndarray


def quantize_rows(x: np.ndarray) -> Activations:
    """Rows float32 [M, K] to int8 with one scale per 64 columns.

    A group that holds anything not finite has scale NaN and codes 0; one below 1e-30 scale 0.
    """
    m, k = x.shape
    groups = -(-k // GROUP)
    padded = np.zeros((m, groups * GROUP), f32)
    padded[:, :k] = x
    padded = padded.reshape(m, groups, GROUP)
    with np.errstate(all="ignore"):
        amax = np.abs(padded).max(axis=2)  # NaN if any is
        finite = np.isfinite(amax)
        used = finite & (amax >= f32(1e-30))
        scale = np.where(used, amax / f32(127), f32(0)).astype(f32)
        scale = np.where(finite, scale, f32(np.nan)).astype(f32)
        inverse = np.where(used, f32(127) / amax, f32(0)).astype(f32)
        codes = np.rint(np.where(used[..., None], padded, f32(0)) * inverse[..., None])
    q = np.clip(codes, -127, 127).astype(np.int8)
    half_bias = -128 * q.astype(np.int32).reshape(m, 2 * groups, 32).sum(axis=2, dtype=np.int32)
    bias = half_bias.reshape(m, groups, 2).sum(axis=2, dtype=np.int32)
    return Activations(q.reshape(m, -1), scale, bias, half_bias)


def matmul(x: Activations, w: Parts, rows: int) -> np.ndarray:
    """float32 [M, rows]."""
    if w.format in G32:
        return _matmul_g32(x, w, rows)
    per_block = BLOCK[w.format] // GROUP
    m, groups = x.scale.shape
    q = x.q.astype(np.int32).reshape(m, groups, GROUP)
    w8 = w.w8()[:rows].reshape(rows, groups, GROUP)
    sums = np.einsum("mgk,ngk->gmn", q, w8)  # exact int32
    total = np.zeros((m, rows), f32)
    with np.errstate(all="ignore"):
        for block in range(w.block.shape[1]):
            f = np.zeros((m, rows), f32)
            for g in range(block * per_block, min(groups, (block + 1) * per_block)):
                f = fma(sums[g].astype(f32), x.scale[:, g : g + 1], f)
            total = fma(f, w.block[:rows, block].astype(f32)[None, :], total)
        return total * w.row[:rows][None, :]


def _matmul_g32(x: Activations, w: Parts, rows: int) -> np.ndarray:
    """Formats with a scale per 32 columns, two in each activation group."""
    m, groups = x.scale.shape
    q = x.q.astype(np.int32).reshape(m, groups, 2, 32)
    w8 = w.w8()[:rows].reshape(rows, groups, 2, 32)
    sums = np.einsum("mghk,nghk->ghmn", q, w8).astype(f32)  # exact
    block = w.block[:rows].astype(f32).T.reshape(groups, 2, 1, rows)
    total = np.zeros((m, rows), f32)
    with np.errstate(all="ignore"):
        for g in range(groups):
            t = fma(sums[g, 1], block[g, 1], sums[g, 0] * block[g, 0])
            total = fma(t, x.scale[:, g : g + 1], total)
        return total * w.row[:rows][None, :]


def matmul_float(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """float32 [M, N] of x [M, K] and w [N, K]: one fma chain per output, columns ascending."""
    acc = np.zeros((len(x), len(w)), f32)
    with np.errstate(all="ignore"):
        for k in range(x.shape[1]):
            acc = fma(x[:, k : k + 1], w[None, :, k], acc)
    return acc
