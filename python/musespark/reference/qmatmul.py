"""The quantized matmul, written to be read: the arithmetic of ``csrc/kernels/qmatmul/qmatmul.h``.

Float32 steps in the order of the contract, integers exact: the bits are those of the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from musespark.reference.float32 import fma
from musespark.reference.formats import BLOCK, G32, Parts

f32 = np.float32
GROUP = 64  # columns by which scales are stored


@dataclass
class Activations:
    """q int8 [M, Kp], scale float32 [M, Kp / 64], bias int32 [M, Kp / 64] = -128 * sum of q.

    ``half_bias`` int32 [M, Kp / 32]: the same of 32 columns. With a scale per 256 columns both hold
    the sum of all 256 in their first group, and zeros in the others.
    """

    q: np.ndarray
    scale: np.ndarray
    bias: np.ndarray
    half_bias: np.ndarray


def scale_columns(form: str) -> int:
    """Columns that share an activation scale before a matrix of this format."""
    return BLOCK[form] if BLOCK[form] > GROUP else GROUP


def quantize_rows(x: np.ndarray, columns: int) -> Activations:
    """Rows float32 [M, K] to int8 with one scale per ``columns``, 64 or 256.

    Columns that hold anything not finite have scale NaN and codes 0; below 1e-30 scale 0.
    """
    m, k = x.shape
    groups, per_scale = -(-k // GROUP), columns // GROUP
    scales = -(-groups // per_scale)
    padded = np.zeros((m, scales * columns), f32)
    padded[:, :k] = x
    padded = padded.reshape(m, scales, columns)
    with np.errstate(all="ignore"):
        amax = np.abs(padded).max(axis=2)  # NaN if any is
        finite = np.isfinite(amax)
        used = finite & (amax >= f32(1e-30))
        scale = np.where(used, amax / f32(127), f32(0)).astype(f32)
        scale = np.where(finite, scale, f32(np.nan)).astype(f32)
        inverse = np.where(used, f32(127) / amax, f32(0)).astype(f32)
        codes = np.rint(np.where(used[..., None], padded, f32(0)) * inverse[..., None])
    q = np.clip(codes, -127, 127).astype(np.int8).reshape(m, -1)
    bias = -128 * q.astype(np.int32).reshape(m, -1, 32).sum(axis=2, dtype=np.int32)
    if per_scale > 1:
        of_scale = bias.reshape(m, scales, -1).sum(axis=2, dtype=np.int32)
        bias[:] = 0
        bias[:, :: 2 * per_scale] = of_scale
    half_bias = bias[:, : 2 * groups].copy()
    return Activations(
        q[:, : groups * GROUP].copy(),
        np.repeat(scale, per_scale, axis=1)[:, :groups].copy(),
        half_bias.reshape(m, groups, 2).sum(axis=2, dtype=np.int32),
        half_bias,
    )


def matmul(x: Activations, w: Parts, rows: int) -> np.ndarray:
    """float32 [M, rows]."""
    if w.format in G32:
        return _matmul_g32(x, w, rows)
    columns = BLOCK[w.format]
    q, w8 = x.q.astype(np.int32), w.w8()[:rows]
    total = np.zeros((len(q), rows), f32)
    with np.errstate(all="ignore"):
        for block in range(w.block.shape[1]):
            own = slice(block * columns, (block + 1) * columns)
            exact = q[:, own] @ w8[:, own].T
            f = exact.astype(f32) * x.scale[:, own.start // GROUP, None]
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
