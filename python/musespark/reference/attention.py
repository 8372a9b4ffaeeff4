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
GROUP = 32  # channels of a row that share a step, where in 4 bits
KEY_BITS = {"kv8": 8, "kv8v4": 8, "kv4": 4}
VALUE_BITS = {"kv8": 8, "kv8v4": 4, "kv4": 4}
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
    """A sealed page of any format: whole numbers [64, D], scales [64], and the mean key [D].

    What is stored as nibbles stands here as m * level, which is at most 64.
    """

    key_codes: np.ndarray
    value_codes: np.ndarray
    key_mean: np.ndarray
    key_scale: np.ndarray
    value_scale: np.ndarray


def open_page(form: str, dim: int, data: np.ndarray) -> OpenPage:
    """From bytes: K [4 blocks][D][16 tokens] float32, V [64][D] float32 (f32) or float16."""
    keys = data[: 4 * PAGE * dim].view(f32)
    values = data[4 * PAGE * dim :].view(f32 if form == "f32" else np.float16).astype(f32)
    return OpenPage(
        keys.reshape(4, dim, 16).transpose(0, 2, 1).reshape(PAGE, dim), values.reshape(PAGE, dim)
    )


def sealed_page(form: str, dim: int, data: np.ndarray) -> SealedPage:
    """From bytes: codes of K and V, steps of those in 4 bits, then float16s."""
    parts = _Parts(data)
    key_bytes = parts.take(PAGE * dim * KEY_BITS[form] // 8)
    value_bytes = parts.take(PAGE * dim * VALUE_BITS[form] // 8)
    if KEY_BITS[form] == 8:
        keys = key_bytes.astype(np.int32) - 128
    else:  # a byte: channels d and d + 4 of a token
        keys = split(key_bytes.reshape(-1, 16, 4), 1)
    keys = keys.reshape(4, dim // 4, 16, 4).transpose(0, 2, 1, 3).reshape(PAGE, dim)
    if VALUE_BITS[form] == 8:
        values = value_bytes.view(np.int8).astype(np.int32)
    else:  # tokens j and j + 4 of a channel
        values = split(value_bytes.reshape(8, -1, 4), 1)
    values = values.reshape(16, dim // 16, 16, 4).transpose(0, 3, 1, 2).reshape(PAGE, dim)
    if KEY_BITS[form] == 4:
        keys = four_bit_codes(keys, parts.take_steps(dim))
    if VALUE_BITS[form] == 4:
        values = four_bit_codes(values, parts.take_steps(dim))
    halves = parts.take(2 * dim + 4 * PAGE).view(np.float16).astype(f32)
    return SealedPage(
        keys, values, halves[:dim], halves[dim : dim + PAGE], halves[dim + PAGE : dim + 2 * PAGE]
    )


class _Parts:
    """The parts of a page's bytes, one after the other."""

    def __init__(self, data: np.ndarray):
        self._data, self._at = data, 0

    def take(self, count: int) -> np.ndarray:
        self._at += count
        return self._data[self._at - count : self._at]

    def take_steps(self, dim: int) -> np.ndarray:
        """Steps as stored, [64, groups]: a byte has tokens j and j + 32 of a group."""
        groups = -(-dim // GROUP)
        pairs = self.take(groups * PAGE // 2).reshape(groups, PAGE // 2)
        return split(pairs, 1).reshape(groups, PAGE).T


def split(pairs: np.ndarray, axis: int) -> np.ndarray:
    """Low nibbles, then high ones, side by side along a new axis."""
    return np.stack([pairs & 15, pairs >> 4], axis).astype(np.int32)


def four_bit_codes(nibbles: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """m * (nibble - 8 + side) of nibbles [64, D] and steps m - 1 + 8 side [64, groups]."""
    steps = np.repeat(steps, GROUP, axis=1)[:, : nibbles.shape[1]]
    return (steps % 8 + 1) * (nibbles - 8 + steps // 8)


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


def levels_of(x: np.ndarray, inverse: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Levels -8..7, or -7..8 on the positive side, of a group [64, n]; inverse, side: [64]."""
    low = (side - 8).astype(f32)[:, None]
    return np.rint(larger(low, smaller(low + f32(15), x * inverse[:, None])))


def fit_group(x: np.ndarray, amax: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """m 1..8 and side 0, 1 [64] of a group of channels [64, n] of rows of largest magnitude amax.

    Of two steps that reach the group's largest about level 7.25, that with the smaller error.
    """
    highest, lowest = np.maximum(x.max(axis=1), 0), np.minimum(x.min(axis=1), 0)
    side = (highest > -lowest).astype(np.int32)
    reach = larger(highest, -lowest) * (f32(8) / amax)
    sizes, errors = [], []
    for less in (0, 1):
        m = np.maximum(np.clip(np.rint(reach), 1, 8) - less, 1).astype(f32)
        t = amax / f32(58) * m
        levels = levels_of(x, f32(1) / t, side)
        error = np.zeros(PAGE, f32)
        for i in range(x.shape[1]):
            r = fma(-t, levels[:, i], x[:, i])
            error = fma(r, r, error)
        sizes.append(m)
        errors.append(error)
    return np.where(errors[1] < errors[0], sizes[1], sizes[0]).astype(np.int32), side


def row_nibbles(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What 4 bits make of rows [64, D]: m * level, and float16 scales [64] by least squares."""
    with np.errstate(all="ignore"):
        amax = np.abs(x).max(axis=1)
        some = np.isfinite(amax) & (amax > 0)
        x, base = np.where(some[:, None], x, f32(0)), np.where(some, amax, f32(1))
        num, den = np.zeros(PAGE, f32), np.zeros(PAGE, f32)
        groups = []
        for begin in range(0, x.shape[1], GROUP):
            group = x[:, begin : begin + GROUP]
            m, side = fit_group(group, base)
            levels = levels_of(group, f32(1) / (base / f32(58) * m.astype(f32)), side)
            for i in range(group.shape[1]):
                w = m.astype(f32) * levels[:, i]
                num, den = fma(group[:, i], w, num), fma(w, w, den)
            groups.append((group, m, side))
        scale = np.where(some, num / den, np.where(amax == 0, f32(0), NAN))
        scale = scale.astype(np.float16).astype(f32)
        good = scale > 0
        codes = [
            m[:, None] * levels_of(group, f32(1) / (np.where(good, scale, 1) * m.astype(f32)), side)
            for group, m, side in groups
        ]
    return np.where(good[:, None], np.concatenate(codes, axis=1), 0).astype(np.int32), scale


ENCODE = {8: row_codes, 4: row_nibbles}


def seal(form: str, page: OpenPage) -> SealedPage:
    """Keys minus their mean, and values, as whole numbers with one scale a row."""
    with np.errstate(all="ignore"):
        lanes = np.zeros((page.keys.shape[1], 16), f32)
        for block in range(4):
            lanes = lanes + page.keys[16 * block : 16 * block + 16].T
        mean = (tree(lanes) * f32(1 / PAGE)).astype(np.float16).astype(f32)
        key_codes, key_scale = ENCODE[KEY_BITS[form]](page.keys - mean)
    value_codes, value_scale = ENCODE[VALUE_BITS[form]](page.values)
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

    open_pages, sealed_pages: eight each, None where there is none; no sealed ones for f32.
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
