"""Which rows of a head's keys stay when some must go: csrc/ops/choose_rows.h, in numpy."""

from __future__ import annotations

import numpy as np

_IMPORTANCE, _ALIKE, _AROUND = 0.1, 0.5, 3


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def choose_rows(keys: np.ndarray, queries: np.ndarray, keep: int) -> np.ndarray:
    """Indices [keep], ascending, of ``keys`` [rows, d] that stay; ``queries`` [count, group, d]
    are those of the last rows, scaled as attention takes them."""
    rows, last = len(keys), len(queries)
    looked_at, spare = _importance(keys[: rows - last], queries), _redundancy(keys)[: rows - last]
    score = _IMPORTANCE * looked_at - (1 - _IMPORTANCE) * _softmax(spare)
    best = np.argsort(-score, kind="stable")[: keep - last]
    return np.concatenate([np.sort(best), np.arange(rows - last, rows)])


def _importance(keys: np.ndarray, queries: np.ndarray) -> np.ndarray:
    scores = (queries @ keys.T).max(1)  # the head of the group that looks most
    mean = _softmax(scores).mean(0)
    padded = np.pad(mean, _AROUND, constant_values=-np.inf)
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * _AROUND + 1).max(1)


def _redundancy(keys: np.ndarray) -> np.ndarray:
    unit = keys / (np.linalg.norm(keys, axis=1, keepdims=True) + 1e-8)
    alike = unit @ unit.T
    np.fill_diagonal(alike, 0)
    for row in alike:
        close = np.flatnonzero(row > _ALIKE)
        if len(close):
            row[close[-1]] = 0  # of several that are alike the latest stays
    return alike.mean(0)
