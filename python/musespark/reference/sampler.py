"""The sampler, written to be read: the twin of ``csrc/decode/sampler.cc``.

One full sort, no shortcuts. Logits and weights are float32 and sums float64, as in the core; the
only difference is exp, which is NumPy's here (both are within one unit in the last place, so a draw
differs only where the random number falls within about 1e-7 of a border).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_ZERO_WEIGHT = np.float32(-80.0)
_MASK32 = 0xFFFFFFFF


@dataclass(frozen=True)
class Sampling:
    """Parameters; 0 or 1 as given here switch a step off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    stream: int = 0
    logit_bias: Mapping[int, float] | None = None
    allowed_ids: Sequence[int] | None = None


def philox4x32(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Ten rounds of Philox4x32 (Salmon et al., SC 2011)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK32, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK32
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    return [c0, c1, c2, c3]


def uniform(seed: int, stream: int, position: int) -> float:
    """The number in [0, 1) drawn at one place: 53 bits of the first two words."""
    words = philox4x32(
        [position & _MASK32, position >> 32, stream & _MASK32, stream >> 32],
        [seed & _MASK32, seed >> 32],
    )
    return ((words[0] << 32 | words[1]) >> 11) * 2.0**-53


def process(
    row: np.ndarray,
    params: Sampling,
    prompt: Sequence[int] = (),
    completion: Sequence[int] = (),
    blocked: Sequence[int] = (),
    allowed: Sequence[int] | None = None,
) -> np.ndarray:
    """Steps 2 to 5: masks, bias, repetition, presence and frequency penalties. float32 [vocab]."""
    out = row.astype(np.float32).copy()
    f32 = np.float32
    for ids in (params.allowed_ids, allowed):
        if ids is not None:
            mask = np.ones(len(out), bool)
            mask[list(ids)] = False
            out[mask] = -np.inf
    out[list(blocked)] = -np.inf
    for token, bias in (params.logit_bias or {}).items():
        out[token] += f32(bias)
    off = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (
        1,
        0,
        0,
    )
    for token in () if off else sorted({*prompt, *completion}):
        value, r = out[token], f32(params.repetition_penalty)
        value = value / r if value > 0 else value * r
        count = list(completion).count(token)
        if count:
            value = value - (
                f32(params.presence_penalty) + f32(params.frequency_penalty) * f32(count)
            )
        out[token] = value
    return out


def weights(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Step 6: e = exp((l - max) / temperature), 0 where the exponent is -80 or less."""
    with np.errstate(over="ignore"):
        z = ((logits - logits.max()) / np.float32(temperature)).astype(np.float32)
    return np.where(z > _ZERO_WEIGHT, np.exp(np.maximum(z, -100).astype(np.float64)), 0).astype(
        np.float32
    )


def kept(logits: np.ndarray, params: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Steps 6 to 9: the ids that can be drawn, likeliest first (ties by id), and their weights."""
    order = np.lexsort((np.arange(len(logits)), -logits.astype(np.float64)))
    if 0 < params.top_k < len(order):
        order = order[: params.top_k]
    e = weights(logits, params.temperature)[order]
    order, e = order[e > 0], e[e > 0]
    if params.top_p < 1:
        sums = np.cumsum(e, dtype=np.float64)
        count = int(np.argmax(sums >= params.top_p * sums[-1])) + 1
        order, e = order[:count], e[:count]
    if params.min_p > 0:
        enough = e >= np.float32(params.min_p) * e[0]
        order, e = order[enough], e[enough]
    return order, e


def sample(
    row: np.ndarray,
    params: Sampling,
    position: int,
    prompt: Sequence[int] = (),
    completion: Sequence[int] = (),
    blocked: Sequence[int] = (),
    allowed: Sequence[int] | None = None,
) -> int:
    """The token chosen at absolute ``position`` from the logits ``row`` [vocab]."""
    logits = process(row, params, prompt, completion, blocked, allowed)
    if params.temperature == 0:
        return int(np.argmax(logits))
    order, e = kept(logits, params)
    sums = np.cumsum(e, dtype=np.float64)
    target = uniform(params.seed, params.stream, position) * sums[-1]
    return int(order[min(np.searchsorted(sums, target, side="right"), len(order) - 1)])


def log_softmax(row: np.ndarray) -> np.ndarray:
    """What log-probabilities are reported from: the row as the model gave it. float64 [vocab]."""
    x = row.astype(np.float64)
    x = x - x.max()
    return x - np.log(np.exp(x).sum())
