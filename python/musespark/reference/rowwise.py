"""Twins of the rowwise kernels (``csrc/kernels/rowwise/rowwise.h``) over one row of float32.

Bit for bit what the kernels give. ``Exact`` holds the same functions in float64, as the textbook
has them: what the float32 ones are measured against.
"""

from __future__ import annotations

import math

import numpy as np

from musespark.reference.float32 import (
    canonical,
    exp,
    f32,
    fma,
    lane_dot,
    lane_max,
    lane_sum,
    larger,
    tanh,
)

ERFC = [f32(float.fromhex(c)) for c in (
    "0x1.5a7f3ep-4", "0x1.5d9ffp-4", "0x1.2fcc86p-4", "0x1.b82adep-4", "-0x1.83af1p-5",
    "0x1.186e7ep-2", "-0x1.06491p-2", "0x1.f1373ap-3", "-0x1.094334p-4",
)]  # fmt: skip
ERFC_SLOPE = f32(0.3)
SQRT_HALF = f32(math.sqrt(0.5))
GELU_INNER = f32(2 * math.sqrt(2 / math.pi))
GELU_CUBE = f32(0.044715)


def _inverse_deviation(sum_of_squares: np.ndarray, n: int, eps: float) -> np.ndarray:
    return f32(1) / np.sqrt(sum_of_squares / f32(n) + f32(eps))


def rms_norm(x: np.ndarray, weight: np.ndarray | None, eps: float) -> np.ndarray:
    """x / sqrt(mean(x^2) + eps), times the weight."""
    with np.errstate(all="ignore"):
        y = x * _inverse_deviation(lane_dot(x, x), len(x), eps)
        return canonical(y if weight is None else y * weight)


def layer_norm(
    x: np.ndarray, weight: np.ndarray | None, bias: np.ndarray | None, eps: float
) -> np.ndarray:
    """(x - mean) / sqrt(var + eps), times the weight, plus the bias."""
    with np.errstate(all="ignore"):
        centred = x - lane_sum(x) / f32(len(x))
        y = centred * _inverse_deviation(lane_dot(centred, centred), len(x), eps)
        w = np.ones_like(x) if weight is None else weight
        return canonical(y * w if bias is None else fma(y, w, bias))


def activation(kind: str, x: np.ndarray) -> np.ndarray:
    """silu, gelu_tanh, gelu, quick_gelu, relu or relu2 of each element, not yet canonical."""
    one = f32(1)
    with np.errstate(all="ignore"):
        if kind == "silu":
            return x / (one + exp(-x))
        if kind == "gelu_tanh":  # 0.5 (1 + tanh u) = sigmoid(2 u)
            inner = fma((x * x) * x, GELU_CUBE, x) * GELU_INNER
            return x / (one + exp(-inner))
        if kind == "gelu":  # x Phi(x), the tail of Phi by a polynomial in 1 / (1 + z slope)
            z = np.abs(x) * SQRT_HALF
            t = one / fma(z, ERFC_SLOPE, one)
            p = np.full_like(t, ERFC[8])
            for c in ERFC[7::-1]:
                p = fma(p, t, c)
            tail = exp(-(z * z)) * (t * p)
            return x * np.where(x < 0, tail, one - tail)
        if kind == "relu":
            return larger(f32(0), x)
        if kind == "relu2":
            return larger(f32(0), x) * larger(f32(0), x)
        if kind == "quick_gelu":
            return x / (one + exp(-(f32(1.702) * x)))
    known = "silu, gelu_tanh, gelu, relu, relu2, quick_gelu"
    raise ValueError(f"activation {kind!r}: known are {known}")


def activate(kind: str, x: np.ndarray) -> np.ndarray:
    """f(x)."""
    return canonical(activation(kind, x))


def activate_mul(kind: str, gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """f(gate) * up."""
    with np.errstate(all="ignore"):
        return canonical(activation(kind, gate) * up)


def sigmoid_mul(x: np.ndarray, gate: np.ndarray) -> np.ndarray:
    """x * sigmoid(gate)."""
    with np.errstate(all="ignore"):
        return canonical(x * (f32(1) / (f32(1) + exp(-gate))))


def softcap(x: np.ndarray, mult: float, cap: float) -> np.ndarray:
    """cap * tanh(x * mult / cap); without a cap x * mult."""
    with np.errstate(all="ignore"):
        y = x * f32(mult)
        return canonical(y if cap == 0 else f32(cap) * tanh(y / f32(cap)))


def rope(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, interleaved: bool) -> np.ndarray:
    """Pairs (i, i + half), or (2i, 2i + 1), turned by their angle; what lies behind them stays."""
    half = len(cos)
    out = np.array(x, f32)
    first = slice(0, 2 * half, 2) if interleaved else slice(0, half)
    second = slice(1, 2 * half, 2) if interleaved else slice(half, 2 * half)
    with np.errstate(all="ignore"):
        out[first] = canonical(fma(-x[second], sin, x[first] * cos))
        out[second] = canonical(fma(x[first], sin, x[second] * cos))
    return out


def split(d: int) -> tuple[int, int]:
    """d = m * 2^k with m odd, as (m, 2^k)."""
    width = d & -d
    return d // width, width


def dct(m: int) -> np.ndarray:
    """The orthonormal DCT-II matrix [m, m] in float64."""
    a, i = np.arange(m)[:, None], np.arange(m)[None, :]
    matrix = np.sqrt(2 / m) * np.cos(np.pi * a * (2 * i + 1) / (2 * m))
    matrix[0] = np.sqrt(1 / m)
    return matrix


def rotate(x: np.ndarray, inverse: bool) -> np.ndarray:
    """R x (R^T x): Walsh-Hadamard over 2^k, then DCT-II over m, then 1 / sqrt(2^k)."""
    m, width = split(len(x))
    blocks = np.array(x, f32).reshape(m, width)
    with np.errstate(all="ignore"):
        stride = 1
        while stride < width:
            pairs = blocks.reshape(m, width // (2 * stride), 2, stride)
            a, b = pairs[:, :, 0], pairs[:, :, 1]
            blocks = np.stack([a + b, a - b], axis=2).reshape(m, width)
            stride *= 2
        if m > 1:
            matrix = dct(m).astype(f32)
            # cos(pi / 2) is exactly zero; the library's is not.
            matrix[np.abs(matrix) < 1e-9] = 0
            matrix = matrix.T if inverse else matrix
            mixed = np.zeros_like(blocks)
            for i in range(m):
                mixed = fma(matrix[:, i : i + 1], blocks[i : i + 1], mixed)
            blocks = mixed
        return canonical(blocks * f32(1 / math.sqrt(width))).reshape(-1)


def row_max(x: np.ndarray) -> np.ndarray:
    """The largest element, NaN never taken."""
    return lane_max(x)


def exp_sum(x: np.ndarray, maximum: float) -> tuple[np.ndarray, np.ndarray]:
    """(sum, exponentials) of x - maximum."""
    with np.errstate(all="ignore"):
        e = exp(x - f32(maximum))
        return canonical(lane_sum(e)), canonical(e)


def exp_moments(x: np.ndarray, maximum: float) -> np.ndarray:
    """The sums of e = exp(z) and of z * e, z = max(-104, x - maximum)."""
    with np.errstate(all="ignore"):
        d = x - f32(maximum)
        z = np.where(f32(-104) > d, f32(-104), d)
        e = exp(z)
        return canonical(np.stack([lane_sum(e), lane_dot(z, e)]))


def lane_maxima(x: np.ndarray) -> np.ndarray:
    """Of 64 lanes, the largest element of each; -infinity where it has none."""
    padded = np.full(-(-max(len(x), 1) // 64) * 64, -np.inf, f32)
    padded[: len(x)] = np.where(np.isnan(x), -np.inf, x)
    return padded.reshape(-1, 64).max(axis=0)


def collect(x: np.ndarray, least: float) -> np.ndarray:
    """What is at least that, in its order."""
    with np.errstate(all="ignore"):
        return x[x >= f32(least)]


class Exact:
    """The same in float64, by the textbook; ``np.float64`` rows in and out."""

    @staticmethod
    def rms_norm(x, weight, eps):
        y = x / np.sqrt(np.mean(x * x) + eps)
        return y if weight is None else y * weight

    @staticmethod
    def layer_norm(x, weight, bias, eps):
        y = (x - x.mean()) / np.sqrt(x.var() + eps)
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    @staticmethod
    def activation(kind, x):
        if kind == "silu":
            return x / (1 + np.exp(-x))
        if kind == "gelu_tanh":
            return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        if kind == "gelu":
            return 0.5 * x * np.array([math.erfc(-v / math.sqrt(2)) for v in x])
        if kind == "quick_gelu":
            return x / (1 + np.exp(-1.702 * x))
        y = np.maximum(x, 0)
        return y if kind == "relu" else y * y

    @staticmethod
    def rotation(d: int) -> np.ndarray:
        """R as a [d, d] matrix."""
        m, width = split(d)
        hadamard = np.array([[1.0]])
        while len(hadamard) < width:
            hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
        return np.kron(dct(m), hadamard / math.sqrt(width))
