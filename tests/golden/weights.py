"""Random weights that are a pure function of (seed, name, shape), for the golden fixtures.

The bits come from Philox counters by integer arithmetic alone, so they are the same with every
version of NumPy and on every machine, and the fixtures need not store any weight.
"""

from __future__ import annotations

import zlib

import numpy as np


def uniform(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 in [-1, 1), multiples of 2^-23."""
    bits = np.random.Philox(key=[seed, zlib.crc32(name.encode())])
    raw = np.asarray(bits.random_raw(int(np.prod(shape))), dtype=np.uint64)
    values = (raw >> np.uint64(40)).astype(np.int64) - (1 << 23)
    return (values.astype(np.float32) / np.float32(1 << 23)).reshape(shape)


def random_weight(
    seed: int, name: str, shape: tuple[int, ...], centered_norms: bool, tied: bool
) -> np.ndarray:
    """One tensor of a checkpoint, scaled by what its name says it is.

    Matrices keep the size of what they multiply, a little enlarged so that attention is far from
    uniform and logits far from equal; norm weights lie around 1 (or 0 where zero-centred).
    """
    u = uniform(seed, name, shape)
    if name.endswith("model.norm.weight") and tied:
        # Signs at random: a tied head would else see mostly the token just read and repeat it.
        return np.float32(1.5) * u
    if name.endswith("norm.weight") and len(shape) == 1:
        # The final norm of muse_glimmer is an ordinary one beside its zero-centred others.
        center = 0.0 if centered_norms and not name.endswith("model.norm.weight") else 1.0
        return np.float32(center) + np.float32(0.4) * u
    if name.endswith(".bias"):
        return np.float32(0.5) * u
    if name.endswith("embed_tokens.weight"):
        return np.float32(1.7) * u
    gain = 3.0 if name.endswith(("q_proj.weight", "k_proj.weight", "lm_head.weight")) else 1.8
    return np.float32(gain / np.sqrt(shape[-1])) * u
