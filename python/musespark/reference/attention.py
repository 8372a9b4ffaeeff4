"""Twins of the attention kernels (``csrc/kernels/attention/attention.h``, ``formats/kv_page.h``).

Pages are read from their bytes into plain arrays; ``attend_chunk``, ``merge`` and ``finish`` then
follow the contract one operation a line, in float32, with the kernels' bits. ``attend_exact`` is
attention as the textbook has it, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from musespark.reference.float32 import (
    canonical,
    exp,
    f32,
    fma,
    larger,
    smaller,
    tanh,
    tree,
    tree_max,
)

PAGE = 64  # positions of a page
CHUNK = 512  # positions merged at once
TINY = f32(1e-30)
NAN = f32(np.nan)


@dataclass
class OpenPage:
    """Keys and values of 64 slots, [64, D] float32 each."""

    keys: np.ndarray
    values: np.ndarray


@dataclass
class SealedPage:
    """A kv8 page: int8 codes [64, D], scales [64], and the mean key [D], as float32."""

    key_codes: np.ndarray
    value_codes: np.ndarray
    key_mean: np.ndarray
    key_scale: np.ndarray
    value_scale: np.ndarray


def open_page(form: str, dim: int, data: np.ndarray) -> OpenPage:
    """From bytes: K [4 blocks][D][16 tokens], V [64][D]; float32 or (kv8) float16."""
    numbers = data.view(np.float32 if form == "f32" else np.float16).astype(f32)
    keys, values = numbers[: PAGE * dim], numbers[PAGE * dim :]
    return OpenPage(
        keys.reshape(4, dim, 16).transpose(0, 2, 1).reshape(PAGE, dim), values.reshape(PAGE, dim)
    )


def sealed_page(dim: int, data: np.ndarray) -> SealedPage:
    """From bytes: K [4 blocks][D/4][16 tokens][4] + 128, V [16 quads][D/16][16 d][4], f16s."""
    key_bytes, value_bytes = data[: PAGE * dim], data[PAGE * dim : 2 * PAGE * dim]
    halves = data[2 * PAGE * dim : 2 * PAGE * dim + 2 * dim + 256].view(np.float16).astype(f32)
    keys = key_bytes.reshape(4, dim // 4, 16, 4).transpose(0, 2, 1, 3).reshape(PAGE, dim)
    values = value_bytes.view(np.int8).reshape(16, dim // 16, 16, 4)
    return SealedPage(
        keys.astype(np.int32) - 128,
        values.transpose(0, 3, 1, 2).reshape(PAGE, dim).astype(np.int32),
        halves[:dim],
        halves[dim : dim + PAGE],
        halves[dim + PAGE : dim + 2 * PAGE],
    )


def to_half(x: np.ndarray) -> np.ndarray:
    """The nearest float16, clamped to +-65504, as float32."""
    return larger(f32(-65504), smaller(f32(65504), x)).astype(np.float16).astype(f32)


def row_codes(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes [64, D] and float16 scales [64] of rows: amax / 127, round(x / scale)."""
    with np.errstate(all="ignore"):
        amax = np.abs(x).max(axis=1)  # a NaN is the largest
        scale = np.where(np.isfinite(amax), amax / f32(127), NAN).astype(np.float16).astype(f32)
        good = scale > 0
        ratio = x / np.where(good, scale, f32(1))[:, None]
        codes = np.rint(np.clip(np.nan_to_num(ratio), -127, 127)).astype(np.int32)
    return np.where(good[:, None], codes, 0), scale


def seal(page: OpenPage) -> SealedPage:
    """Keys minus their mean, and values, as codes with one scale a row."""
    with np.errstate(all="ignore"):
        lanes = np.zeros((page.keys.shape[1], 16), f32)
        for block in range(4):
            lanes = lanes + page.keys[16 * block : 16 * block + 16].T
        mean = (tree(lanes) * f32(1 / PAGE)).astype(np.float16).astype(f32)
        key_codes, key_scale = row_codes(page.keys - mean)
    value_codes, value_scale = row_codes(page.values)
    return SealedPage(key_codes, value_codes, mean, key_scale, value_scale)


def quantize_query(q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes [D] of a query row and their scale amax / 127."""
    amax = np.abs(q).max()
    if not np.isfinite(amax):
        return np.zeros(len(q), np.int32), NAN
    if amax < TINY:
        return np.zeros(len(q), np.int32), f32(0)
    codes = np.rint(np.clip(q * (f32(127) / amax), -127, 127))
    return codes.astype(np.int32), amax / f32(127)


def open_scores(q: np.ndarray, page: OpenPage) -> np.ndarray:
    """q . k for 64 slots: one fma chain each, d ascending."""
    s = np.zeros(PAGE, f32)
    for d in range(len(q)):
        s = fma(q[d], page.keys[:, d], s)
    return s


def sealed_scores(q: np.ndarray, page: SealedPage) -> np.ndarray:
    """The integer product times both scales, plus q . mean."""
    u = f32(0)
    for d in range(len(q)):
        u = fma(q[d], page.key_mean[d], u)
    codes, scale = quantize_query(q)
    dot = page.key_codes @ codes
    return fma(dot.astype(f32), scale * page.key_scale, u)


def add_open_values(o: np.ndarray, p: np.ndarray, page: OpenPage, slots: range) -> np.ndarray:
    """o += p_j v_j, j ascending."""
    for j in slots:
        o = fma(p[j], page.values[j], o)
    return o


def add_sealed_values(
    o: np.ndarray, p: np.ndarray, page: SealedPage, slots: range, steps: int
) -> np.ndarray:
    """o += (sum of P_j codes) * step, P_j = p_j scale_j in `steps` steps of the page's largest."""
    weights = p[slots.start : slots.stop] * np.abs(page.value_scale[slots.start : slots.stop])
    largest = weights.max()
    if not np.isfinite(largest):
        return np.full_like(o, NAN)
    if largest < TINY:
        return o
    levels = np.rint(weights * (f32(steps) / largest)).astype(np.int64)
    total = levels @ page.value_codes[slots.start : slots.stop].astype(np.int64)
    return fma(total.astype(np.int32).astype(f32), largest / f32(steps), o)


def attend_row(q, own, first, last, chunk, open_pages, sealed_pages, softcap):
    """(max, sum, o) of one row over first..last of a chunk; pages before `own`: sealed."""
    o = np.zeros(len(q), f32)
    if first > last:
        return f32(-np.inf), f32(0), o
    score = np.full(CHUNK, -np.inf, f32)
    for page in range(first // PAGE, last // PAGE + 1):
        read_sealed = sealed_pages[page] is not None and page < own
        s = (
            sealed_scores(q, sealed_pages[page])
            if read_sealed
            else open_scores(q, open_pages[page])
        )
        if softcap > 0:
            s = f32(softcap) * tanh(s / f32(softcap))
        score[PAGE * page : PAGE * page + PAGE] = s
    visible = (np.arange(CHUNK) >= first) & (np.arange(CHUNK) <= last)
    score[~visible] = -np.inf
    lanes = np.full(16, -np.inf, f32)
    for block in score.reshape(-1, 16):
        lanes = larger(block, lanes)
    maximum = tree_max(lanes)
    p = np.where(visible, exp(score - maximum), f32(0))
    lanes = np.zeros(16, f32)
    for block in p.reshape(-1, 16):
        lanes = lanes + block
    for page in range(first // PAGE, last // PAGE + 1):
        begin = PAGE * page
        slots = range(max(first - begin, 0), min(last - begin, PAGE - 1) + 1)
        share = p[begin : begin + PAGE]
        if sealed_pages[page] is not None and page < own:
            steps = 65535 if chunk == 0 and page == 0 else 255
            o = add_sealed_values(o, share, sealed_pages[page], slots, steps)
        else:
            o = add_open_values(o, share, open_pages[page], slots)
    return maximum, canonical(tree(lanes)), canonical(o)


def attend_chunk(q, pos, lo, hi, chunk, open_pages, sealed_pages, softcap=0.0):
    """(max [R], sum [R], o [R, D]) of queries [R, D] over positions 512 chunk .. + 511.

    open_pages, sealed_pages: eight each, None where there is none; sealed ones only for kv8.
    """
    base = chunk * CHUNK
    parts = []
    with np.errstate(all="ignore"):
        for r in range(len(q)):
            first, last = max(lo[r], base) - base, min(hi[r], base + CHUNK - 1) - base
            own = pos[r] // PAGE - base // PAGE
            parts.append(
                attend_row(q[r], own, first, last, chunk, open_pages, sealed_pages, softcap)
            )
    return tuple(np.array(part, f32) for part in zip(*parts, strict=True))


def merge(state, other):
    """Two partials (max [R], sum [R], o [R, D]) as one; an empty one changes nothing."""
    with np.errstate(all="ignore"):
        m = larger(state[0], other[0])
        a, b = exp(state[0] - m), exp(other[0] - m)
        total = canonical(fma(state[1], a, other[1] * b))
        o = canonical(fma(state[2], a[:, None], other[2] * b[:, None]))
    result = [m, total, o]
    for kept, empty in ((other, state), (state, other)):
        rows = np.isneginf(empty[0]) & (empty[1] == 0)
        for part, value in zip(result, kept, strict=True):
            part[rows] = value[rows]
    return tuple(result)


def finish(state, sink=None):
    """o / sum, with exp(sink - max) added to the sum where a layer has sinks; empty rows 0."""
    maximum, total, o = state
    empty = np.isneginf(maximum) & (total == 0)
    scale = np.ones_like(total)
    with np.errstate(all="ignore"):
        if sink is not None:
            m = larger(maximum, sink)
            scale = exp(maximum - m)
            total = fma(total, scale, exp(sink - m))
        out = canonical(o * scale[:, None] / total[:, None])
    out[empty] = 0
    return out


def attend_exact(q, keys, values, lo, hi, softcap=0.0, sink=None) -> np.ndarray:
    """Attention of queries [R, D] over keys, values [N, D], float64; row r sees lo[r]..hi[r]."""
    out = np.zeros((len(q), values.shape[1]))
    for r in range(len(q)):
        if lo[r] > hi[r]:
            continue
        s = keys[lo[r] : hi[r] + 1] @ q[r]
        if softcap > 0:
            s = softcap * np.tanh(s / softcap)
        top = s.max() if sink is None else max(s.max(), sink[r])
        p = np.exp(s - top)
        total = p.sum() + (0.0 if sink is None else np.exp(sink[r] - top))
        out[r] = p @ values[lo[r] : hi[r] + 1] / total
    return out
