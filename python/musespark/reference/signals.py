"""Signals of a thought's token, written to be read: the twin of ``csrc/decode/signals.cc``.

In float64 by the textbook; the core sums float32 exponentials in blocks, and agrees within
``TOLERANCE`` where logits are below 100: one unit in the last place of a logit, and what 32
additions of a lane lose.
"""

from __future__ import annotations

import numpy as np

TOP = 20  # DeepConf, arXiv:2508.15260
TOLERANCE = 1e-4


def signals(row: np.ndarray, token: int, close: int) -> tuple[float, float, float, float]:
    """(margin, logprob, entropy, confidence) of ``token``, chosen from the logits ``row`` [vocab],
    where ``close`` is the marker that ends the thought."""
    x = row.astype(np.float64)
    margin = x.max() - x[close]
    logp = x - x.max()
    logp -= np.log(np.exp(logp).sum())
    entropy = -(np.exp(logp) * logp).sum()
    confidence = -np.sort(logp)[::-1][:TOP].mean()
    return float(margin), float(logp[token]), float(entropy), float(confidence)
