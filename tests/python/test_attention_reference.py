"""scalar.cc against the NumPy twin, bit for bit; pages; accuracy against float64 attention."""

from __future__ import annotations

import numpy as np
import pytest

from musespark._core import testing
from musespark.reference import attention
from support.attention_cases import (
    FORMATS,
    MIXED,
    SEALED,
    Cache,
    attend,
    attend_chunk,
    blank_page,
    random_cache,
)
from support.compare import assert_same_bits, assert_within

UNIT = 2.0**-24  # half an ulp of 1 in float32
HALF = 2.0**-11  # half an ulp of 1 in float16
EVERYTHING = 1 << 40


def twin_pages(cache: Cache, chunk: int) -> tuple[list, list]:
    """The chunk's pages as the twin wants them."""
    dim = cache.keys.shape[1]
    forms = cache.forms(chunk)

    def read(how, slabs):
        pairs = zip(forms, slabs, strict=True)
        return [None if page is None else how(form, dim, page) for form, page in pairs]

    opened, sealed = cache.slabs(chunk)
    return read(attention.open_page, opened), read(attention.sealed_page, sealed)


def last_rows(length: int, count: int, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """pos, lo, hi of the last `count` positions under a window."""
    pos = np.arange(length - count, length)
    return pos, np.maximum(0, pos - window + 1), pos


def random_queries(rows: int, dim: int, seed: int, size: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng([seed, rows, dim])
    return (rng.standard_normal((rows, dim)) * size / np.sqrt(dim)).astype(np.float32)


@pytest.mark.parametrize("form", [*FORMATS, MIXED])
@pytest.mark.parametrize("dim", [16, 48, 64])
@pytest.mark.parametrize("length", [1, 64, 65, 150, 600])
def test_scalar_equals_the_twin(form: str | tuple[str, ...], dim: int, length: int) -> None:
    cache = random_cache(form, dim, length, 4)
    rows = min(length, 3)
    for seed, (window, softcap) in enumerate([(EVERYTHING, 0.0), (90, 5.0)]):
        q = random_queries(rows, dim, seed, 2.0)
        pos, lo, hi = last_rows(length, rows, window)
        for chunk in range(-(-length // 512)):
            actual = attend_chunk("scalar", cache, q, pos, lo, hi, chunk, softcap)
            expected = attention.attend_chunk(
                q, pos, lo, hi, chunk, *twin_pages(cache, chunk), softcap
            )
            for part, a, e in zip(("max", "sum", "o"), actual, expected, strict=True):
                assert_same_bits(a, e, f"{form} D={dim} length={length} {chunk=} {part}")


@pytest.mark.parametrize("form", FORMATS)
def test_special_values_equal_the_twin(form: str) -> None:
    """NaN, infinities, zero rows and huge scores."""
    rng = np.random.default_rng(8)
    dim, length = 16, 140
    for trial in range(12):
        cache = random_cache(form, dim, length, trial)
        special = [np.nan, np.inf, -np.inf, 7e4, 1e-42, 3e38]
        cache.keys[rng.integers(length), rng.integers(dim)] = rng.choice(special)
        cache.values[rng.integers(length), rng.integers(dim)] = rng.choice(special)
        cache.values[3] = 0
        cache = Cache(form, cache.keys, cache.values)
        q = random_queries(4, dim, trial, float(rng.choice([1.0, 300.0, 1e30])))
        q[0] = 0
        q[1, 2] = rng.choice(special)
        pos, lo, hi = last_rows(length, 4, int(rng.choice([EVERYTHING, 20])))
        actual = attend_chunk("scalar", cache, q, pos, lo, hi, 0, 30.0)
        expected = attention.attend_chunk(q, pos, lo, hi, 0, *twin_pages(cache, 0), 30.0)
        for part, a, e in zip(("max", "sum", "o"), actual, expected, strict=True):
            assert_same_bits(a, e, f"{form} {trial=} {part}")


def test_merge_and_finish_equal_the_twin() -> None:
    rng = np.random.default_rng(9)
    rows, dim = 40, 16

    def partials():
        m = (rng.standard_normal(rows) * 30).astype(np.float32)
        s = rng.uniform(0.5, 400, rows).astype(np.float32)
        o = rng.standard_normal((rows, dim)).astype(np.float32)
        m[:5], s[:5], o[:5] = -np.inf, 0, 0
        m[5:8] = [np.inf, -np.inf, np.nan]
        order = rng.permutation(rows)
        return m[order], s[order], o[order]

    for _ in range(20):
        state, other = partials(), partials()
        merged = testing.attention_merge("scalar", *state, *other)
        for part, a, e in zip(
            ("max", "sum", "o"), merged, attention.merge(state, other), strict=True
        ):
            assert_same_bits(np.isnan(a), np.isnan(e), f"merge {part}")
            assert_same_bits(np.nan_to_num(a), np.nan_to_num(e), f"merge {part}")
        sink = (rng.standard_normal(rows) * 20).astype(np.float32)
        for given in (None, sink):
            out = np.empty((rows, dim), np.float32)
            testing.attention_finish("scalar", *merged, given, dim, out)
            assert_same_bits(out, attention.finish(merged, given), "finish")


@pytest.mark.parametrize("form", SEALED)
@pytest.mark.parametrize("dim", [16, 48, 128, 256])
def test_sealed_page_equals_the_twin(form: str, dim: int) -> None:
    """Codes, scales and mean; rows of zeros, tiny rows, rows with NaN and infinity."""
    rng = np.random.default_rng(dim)
    for trial in range(8):
        keys, values = (rng.standard_normal((2, 64, dim)) * rng.choice([1e-4, 1, 300])).astype(
            np.float32
        )
        values[5] = 0
        values[6] = 1e-7
        if trial % 2:
            keys[9, 3], values[10, 2] = rng.choice([np.nan, np.inf, 1e6], 2)
        cache = Cache(form, keys, values)
        opened = attention.open_page(form, dim, cache.open[0])
        assert_same_bits(opened.values, attention.to_half(values), "values as f16")
        expected = attention.seal(form, opened)
        actual = attention.sealed_page(form, dim, cache.sealed[0])
        for name in ("key_codes", "value_codes", "key_mean", "key_scale", "value_scale"):
            what = f"{form} {name}, D={dim}"
            assert_same_bits(getattr(actual, name), getattr(expected, name), what)


@pytest.mark.parametrize("form", SEALED)
def test_sealing_is_a_function_of_the_rows_alone(form: str) -> None:
    """Not of the order of writing, of what a slot held before, or of the buffer; and nothing else
    of the open page is needed or changed."""
    rng = np.random.default_rng(12)
    dim = 80
    keys, values = rng.standard_normal((2, 64, dim)).astype(np.float32)
    pages = []
    for order in (range(64), reversed(range(64)), rng.permutation(64)):
        page = blank_page(form, dim)
        for slot in order:  # drafts first, then what is accepted
            testing.write_token("scalar", form, int(slot), values[slot] * 9, keys[slot], page)
        for slot in range(64):
            testing.write_token("scalar", form, slot, keys[slot], values[slot], page)
        before = page.copy()
        sealed = testing.seal_page("scalar", form, dim, page)
        assert_same_bits(page, before, "the open page")
        pages.append(sealed)
    assert_same_bits(pages[1], pages[0], "sealed")
    assert_same_bits(pages[2], pages[0], "sealed")
    assert (pages[0][payload_bytes(form, dim) :] == 0).all(), "padding is zero"


def payload_bytes(form: str, dim: int) -> int:
    """Codes, steps of what is in 4 bits (half a byte a row and 32 channels), mean, scales."""
    bits = attention.KEY_BITS[form], attention.VALUE_BITS[form]
    steps = bits.count(4) * 32 * -(-dim // 32)
    return 64 * dim * sum(bits) // 8 + steps + 2 * dim + 4 * 64


def test_bytes_per_token() -> None:
    for dim in range(16, 513, 16):
        for form in SEALED:
            payload = payload_bytes(form, dim)
            assert testing.sealed_page_bytes(form, dim) == -(-payload // 64) * 64
            assert testing.open_page_bytes(form, dim) == 64 * dim * (4 + 2)
        assert testing.open_page_bytes("f32", dim) == 64 * 2 * dim * 4
        assert testing.sealed_page_bytes("f32", dim) == 0
    per_token = {form: testing.sealed_page_bytes(form, 128) / 64 for form in SEALED}
    assert per_token == {"kv8": 264, "kv8v4": 202, "kv4": 140}
    assert per_token["kv8"] <= 266 and per_token["kv8v4"] <= 204 and per_token["kv4"] <= 146
    per_token = {form: testing.sealed_page_bytes(form, 64) / 64 for form in SEALED}
    assert per_token == {"kv8": 134, "kv8v4": 103, "kv4": 72}


def four_bit_rows(x: np.ndarray) -> np.ndarray:
    """What a kv4 page keeps of values [64, D]."""
    sealed = attention.sealed_page("kv4", x.shape[1], Cache("kv4", x, x).sealed[0])
    return sealed.value_codes * sealed.value_scale[:, None].astype(np.float64)


@pytest.mark.parametrize("dim", [16, 48, 64, 128, 512])
def test_four_bits_of_any_row(dim: int) -> None:
    """m is within half of 8 a / amax, so the group's largest is reached within (m + 1/2) 7.25
    steps of amax / 58, and clipped by at most 0.0970 amax (m = 8, 7 levels on its side; rounding
    inside costs 0.0690). The smaller step and the fitted scale only lower the sum of squares; f16
    scale and values cost 2^-11 each."""
    rng = np.random.default_rng(dim)
    spike = np.zeros((64, dim))
    spike[np.arange(64), rng.integers(0, dim, 64)] = rng.choice([-1, 1], 64)
    kinds = {
        "normal": rng.standard_normal((64, dim)),
        "heavy": rng.standard_t(2, (64, dim)),
        "uniform": rng.uniform(-1, 1, (64, dim)),
        "signs": rng.choice([-1.0, 1.0], (64, dim)),
        "spike": spike,
        "spikes on ground": spike * 50 + rng.standard_normal((64, dim)),
        "steps": np.repeat(2.0 ** -rng.integers(0, 6, (64, dim // 16)), 16, axis=1),
    }
    for kind, rows in kinds.items():
        x = rows.astype(np.float32)
        error = np.linalg.norm(four_bit_rows(x) - x, axis=1)
        worst = (0.0970 + 2 * HALF) * np.abs(x).max(axis=1) * np.sqrt(dim)
        assert (error <= worst).all(), f"{kind}: {(error / worst).max():.3f} of the bound"


@pytest.mark.parametrize("dim", [64, 128])
def test_four_bits_lose_less_than_q4_0(dim: int) -> None:
    """Of normal rows, as the rotation makes them; Q4_0 has 4.5 bits a value, this 4.38 or 4.25."""
    x = np.random.default_rng(dim).standard_normal((64 * 20, dim)).astype(np.float32)
    ours = np.concatenate([four_bit_rows(part) for part in x.reshape(20, 64, dim)])
    groups = x.reshape(-1, 32)
    extreme = np.take_along_axis(groups, np.abs(groups).argmax(1)[:, None], 1)
    scale = (extreme / -8).astype(np.float16).astype(np.float32)
    theirs = np.clip(np.floor(groups / scale + 8.5), 0, 15) * scale - 8 * scale
    lost, reference = ((ours - x) ** 2).sum(), ((theirs - groups) ** 2).sum()
    assert lost < 0.995 * reference, f"{lost / reference:.3f}"


@pytest.mark.parametrize("dim", [16, 64, 128])
@pytest.mark.parametrize("length", [70, 1100])
@pytest.mark.parametrize("softcap", [0.0, 4.0])
@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
def test_f32_against_float64(dim: int, length: int, softcap: float, sinks: bool) -> None:
    """D roundings a score; then length / 16 additions and length multiply-adds."""
    cache = random_cache("f32", dim, length, 6)
    q = random_queries(8, dim, 7, 2.0)
    pos, lo, hi = last_rows(length, 8, 300 if softcap else EVERYTHING)
    sink = np.linspace(-2, 6, 8).astype(np.float32) if sinks else None
    actual = attend("scalar", cache, q, pos, lo, hi, softcap, sink)
    wide = [v.astype(np.float64) for v in (q, cache.keys, cache.values)]
    expected = attention.attend_exact(*wide, lo, hi, softcap, sink)
    score_error = UNIT * (dim * (np.abs(wide[0]) @ np.abs(wide[1]).T).max() + 8)
    # |p| and its sum each shift by the score's error, and by their own roundings.
    steps = 2 * score_error + UNIT * (2 * length + 20)
    assert_within(actual, expected, steps * np.abs(wide[2]).max(), f"f32 D={dim} {length=}")


# Steps that reach a row's largest magnitude, by bits.
REACH = {8: 127, 4: 7.25}


def sealed_bound(form, q, keys, values, lo, hi, softcap, sink) -> np.ndarray:
    """What the format may cost, per row and channel, to six standard deviations of the roundings.

    A key's code is off by a uniform half step, so is the query's: the score's error is a sum of D
    independent ones, of variance s2 (a cap makes it smaller). A weight then changes by e^error - 1,
    which is error + at most error^2: the first moves the output by independent shares of v - o, the
    second by s2 on average with a standard deviation of sqrt(2) s2, and their sum by as much again.
    A value is off by half its step (in 4 bits the largest may be clipped: 0.0970 of it, 0.704
    steps), P by half a step of its page's largest weight (steps 65535 on page 0, else 255), which
    errors of scores make larger. f16 storage adds 2^-11.
    """
    key_bits, value_bits = attention.KEY_BITS[form], attention.VALUE_BITS[form]
    off = 0.5 if value_bits == 8 else 0.704
    bounds = np.zeros((len(q), keys.shape[1]))
    for r in range(len(q)):
        span = slice(lo[r], hi[r] + 1)
        k, v = keys[span], values[span]
        centred = k - keys.mean(axis=0)
        key_step = np.abs(centred).max(axis=1) / REACH[key_bits]
        query_step = np.abs(q[r]).max() / 127
        variance = (q[r] @ q[r]) * key_step**2 / 12 + (centred**2).sum(axis=1) * query_step**2 / 12
        half = (HALF * np.abs(k) @ np.abs(q[r])).max()
        s = k @ q[r]
        s = softcap * np.tanh(s / softcap) if softcap else s
        p = np.exp(s - s.max())
        p /= p.sum() + (0 if sink is None else np.exp(sink[r] - s.max()))
        size = p @ np.abs(v)
        s2 = variance.max()
        bounds[r] += 6 * np.sqrt((p**2 * variance) @ (v - p @ v) ** 2)
        bounds[r] += 2 * s2 * (size + 6 * np.sqrt(2 * (p**2) @ v**2))
        bounds[r] += (np.exp(2 * half) - 1) * size
        value_step = np.abs(v).max(axis=1) / REACH[value_bits]
        bounds[r] += p @ (off * value_step[:, None] + HALF * np.abs(v))
        positions = np.arange(lo[r], hi[r] + 1)
        for page in np.unique(positions // 64):
            on_page = positions // 64 == page
            step = (p * value_step)[on_page].max() / (65535 if page == 0 else 255)
            codes = np.abs(v[on_page] / np.maximum(value_step[on_page], 1e-30)[:, None])
            bounds[r] += 0.5 * step * codes.sum(axis=0) * np.exp(12 * np.sqrt(s2))
    return bounds


# Beside the signal; measured: 0.0101, 0.0669 and 0.0896 at most.
LARGEST_ERROR = {"kv8": 0.013, "kv8v4": 0.08, "kv4": 0.11}


@pytest.mark.parametrize("form", SEALED)
@pytest.mark.parametrize("dim", [16, 64, 128])
@pytest.mark.parametrize("length", [130, 1100])
@pytest.mark.parametrize("softcap", [0.0, 4.0])
def test_sealed_against_float64(form: str, dim: int, length: int, softcap: float) -> None:
    """With a cap and with sinks, which see the mean's share of a score like any other."""
    cache = random_cache(form, dim, length, 6)
    q = random_queries(8, dim, 7, 1.0)
    sink = np.linspace(-2, 6, 8).astype(np.float32) if softcap else None
    for window in (EVERYTHING, 100):
        pos, lo, hi = last_rows(length, 8, window)
        actual = attend("scalar", cache, q, pos, lo, hi, softcap, sink)
        wide = [v.astype(np.float64) for v in (q, cache.keys, cache.values)]
        expected = attention.attend_exact(*wide, lo, hi, softcap, sink)
        bound = sealed_bound(form, *wide, lo, hi, softcap, sink)
        assert_within(actual, expected, bound, f"{form} D={dim} {length=} {window=}")
        error = np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2))
        assert error < LARGEST_ERROR[form], f"relative error {error:.4f}"


def test_page_0_keeps_small_weights_beside_a_sink() -> None:
    """A first token with nearly all the weight: 8 bits would round the others' away, 16 do not."""
    rng = np.random.default_rng(2)
    dim, length = 32, 128
    keys, values = rng.standard_normal((2, length, dim)).astype(np.float32)
    keys[0] = 0
    keys[0, 0] = 9
    keys[1:, 0] = 0
    values[0] = 0.01  # sinks have small values, but not small enough
    values[1:, 1] += 3
    q = np.zeros((1, dim), np.float32)
    q[0, 0] = 1
    last = np.array([length - 1])
    cache = Cache("kv8", keys, values)
    actual = attend("scalar", cache, q, last, np.array([0]), np.array([63]))
    expected = attention.attend_exact(
        q.astype(np.float64), keys.astype(np.float64), values.astype(np.float64), [0], [63]
    )
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error < 0.02, f"relative error {error:.4f}"
