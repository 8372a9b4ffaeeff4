"""Rounding to q4 with importance and error feedback, written to be read: ``csrc/formats/pack.h``.

Float32 in the packer's own order of operations, so that :func:`pack_q4` gives its bits. The twin of
the Cholesky factor is :func:`factor_products`, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .formats import LEVELS_Q4, Parts, ceil_div

F = np.float32
GROUP, BLOCK = 32, 256
TRIALS = (0.76, 0.82, 0.88, 0.93, 0.97, 1.0, 1.03, 1.07, 1.12)
SUB_STEPS = (0, 1, -1, 2, -2)
_BORDERS = ((LEVELS_Q4[1:] + LEVELS_Q4[:-1]) / 2).astype(F)
_SMALLEST_ROW = F(1e-30)


def factor_products(products: np.ndarray, damping: float) -> np.ndarray:
    """factor [n, n] of the inputs' products X^T X (upper triangle).

    H = products + damping * mean(diagonal) * I = M M^T with M upper triangular: the usual lower
    factor with rows and columns in reverse. factor[i, k] = M[i, k] / M[k, k] above the diagonal.
    """
    upper = np.triu(products.astype(np.float64))
    h = upper + np.triu(upper, 1).T
    mean = np.diag(h).mean()
    h = h / mean + damping * np.eye(len(h))
    m = np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
    return np.triu(m / np.diag(m), 1).astype(F)


def proxy_loss(weights: np.ndarray, packed: np.ndarray, products: np.ndarray) -> float:
    """tr((W - Q) H (W - Q)^T): the squared error of all outputs over the inputs in `products`."""
    upper = np.triu(products.astype(np.float64))
    missed = weights.astype(np.float64) - packed
    return float(((missed @ (upper + np.triu(upper, 1).T)) * missed).sum())


def fit_scale(u: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """The scale of each row of u [rows, n <= 32] with the least weighed squared error, of trial
    scales with both signs, each refitted to the levels it gives."""
    best, best_gain = np.zeros(len(u), F), np.zeros(len(u), F)
    amax = np.abs(u).max(1)
    for trial in TRIALS:
        inverse = F(127) / (amax * F(trial))
        for signed in (inverse, -inverse):
            dot, square = np.zeros(len(u), F), np.zeros(len(u), F)
            for k in range(u.shape[1]):
                place = (u[:, k] * signed)[:, None] > _BORDERS  # not a number: the lowest level
                level = LEVELS_Q4[place.sum(1)].astype(F)
                weighed = level * importance[k]
                dot = dot + u[:, k] * weighed
                square = square + level * weighed
            scale = dot / square
            gain = dot * scale
            better = gain > best_gain
            best, best_gain = np.where(better, scale, best), np.where(better, gain, best_gain)
    return best


@dataclass
class Table:
    """The 16 int8 values of each row's sub-scale, ascending once multiplied by `sign`."""

    sign: np.ndarray
    values: np.ndarray
    borders: np.ndarray

    @classmethod
    def of(cls, sub: np.ndarray) -> Table:
        sign = np.where(sub < 0, F(-1), F(1))
        w8 = (sub.astype(np.int32)[:, None] * LEVELS_Q4 + 64) >> 7
        values = w8.astype(F) * sign[:, None]
        return cls(sign, values, (values[:, 1:] + values[:, :-1]) * F(0.5))

    def nearest(self, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(code, w8) of t [rows], in units of w8."""
        turned = t * self.sign
        code = (turned[:, None] > self.borders).sum(1)
        return code, self.values[np.arange(len(t)), code] * self.sign


def choose_sub(t: np.ndarray, middle: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """The sub-scale within 2 of `middle` with the least weighed squared error of t [rows, n]."""
    best, best_error = np.zeros(len(t), F), np.full(len(t), 3e38, F)
    for step in SUB_STEPS:
        sub = np.clip(middle + F(step), F(-127), F(127))
        table, error = Table.of(sub), np.zeros(len(t), F)
        for k in range(t.shape[1]):
            miss = (t[:, k] - table.nearest(t[:, k])[1]) * table.sign
            error = error + miss * miss * importance[k]
        better = error < best_error
        best, best_error = np.where(better, sub, best), np.where(better, error, best_error)
    return best


class _Packer:
    def __init__(self, weights: np.ndarray, importance: np.ndarray, factor: np.ndarray | None):
        rows, self.cols = weights.shape
        self.importance, self.factor = importance, factor
        amax = np.abs(weights).max(1)
        alive = amax >= _SMALLEST_ROW
        unit = np.where(alive, F(1) / np.where(alive, amax, F(1)), F(0))
        self.exact = weights * unit[:, None]
        self.u, self.missed = self.exact.copy(), np.zeros_like(self.exact)
        blocks, padded = ceil_div(self.cols, BLOCK), ceil_div(self.cols, 64) * 64
        self.scales = np.zeros((rows, ceil_div(self.cols, GROUP)), F)
        self.codes = np.zeros((rows, padded), np.int32)
        self.sub = np.zeros((rows, padded // GROUP), np.int8)
        self.block = np.zeros((rows, ceil_div(padded, BLOCK)), np.float16)
        for first in range(0, self.cols, GROUP):
            self.fit(first)
        steps = [self.step_of(b) for b in range(blocks)]
        self.largest = np.max(steps, axis=0)
        self.row = np.where(alive, amax * self.largest, F(0))

    def columns(self, first: int) -> slice:
        return slice(first, min(self.cols, first + GROUP))

    def fit(self, first: int) -> None:
        at = self.columns(first)
        self.scales[:, first // GROUP] = fit_scale(self.u[:, at], self.importance[at])

    def step_of(self, block: int) -> np.ndarray:
        groups = self.scales[:, block * BLOCK // GROUP : (block + 1) * BLOCK // GROUP]
        return np.abs(groups).max(1) * F(128 / 127)

    def carry(self, begin: int, end: int, columns: slice) -> None:
        """u of `columns` += what columns begin .. end - 1 missed, each times its factor."""
        if self.factor is not None:
            for i in range(begin, end):
                self.u[:, columns] += self.missed[:, i : i + 1] * self.factor[i, columns]

    def run(self) -> None:
        for b, first in enumerate(range(0, self.cols, BLOCK)):
            end = min(self.cols, first + BLOCK)
            self.carry(0, first, slice(first, end))
            if self.factor is not None:
                for group in range(first, end, GROUP):
                    self.fit(group)
            ratio = np.divide(self.step_of(b), self.largest, out=np.zeros_like(self.largest),
                              where=self.largest != 0)  # fmt: skip
            self.block[:, b] = ratio.astype(np.float16)
            step = self.block[:, b].astype(F) * self.largest
            for group in range(first, end, GROUP):
                self.carry(first, group, self.columns(group))
                if self.factor is not None and group > first:
                    self.fit(group)
                self.encode(group, step)

    def encode(self, first: int, step: np.ndarray) -> None:
        at = self.columns(first)
        inverse = np.divide(F(1), step, out=np.zeros_like(step), where=step != 0)
        middle = np.rint(self.scales[:, first // GROUP] * inverse * F(128))
        t = self.u[:, at] * inverse[:, None]
        sub = choose_sub(t, middle, self.importance[at])
        self.sub[:, first // GROUP] = sub.astype(np.int8)
        table = Table.of(sub)
        for k in range(at.start, at.stop):
            self.codes[:, k], w8 = table.nearest(self.u[:, k] * inverse)
            self.missed[:, k] = self.exact[:, k] - w8 * step
            self.carry(k, k + 1, slice(k + 1, at.stop))


def pack_q4(
    weights: np.ndarray, importance: np.ndarray | None = None, factor: np.ndarray | None = None
) -> Parts:
    """float32 weights [n, k] as q4: Parts of n rows. `importance` [k] is what the squared error of
    a column counts, `factor` [k, k] feeds errors forward (:func:`factor_products`)."""
    weighs = np.ones(weights.shape[1], F) if importance is None else importance.astype(F)
    with np.errstate(divide="ignore", invalid="ignore"):
        packer = _Packer(weights.astype(F), weighs, factor)
        packer.run()
    return Parts("q4", packer.codes, packer.sub, packer.block, packer.row)
