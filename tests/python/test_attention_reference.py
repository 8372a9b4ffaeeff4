"""scalar.cc against the NumPy twin, bit for bit; pages; accuracy against float64 attention."""

from __future__ import annotations

import numpy as np
import pytest

from musespark._core import testing
from musespark.reference import attention
from support.attention_cases import Cache, attend, attend_chunk, blank_page, random_cache
from support.compare import assert_same_bits, assert_within

UNIT = 2.0**-24  # half an ulp of 1 in float32
HALF = 2.0**-11  # half an ulp of 1 in float16
EVERYTHING = 1 << 40


def twin_pages(cache: Cache, chunk: int) -> tuple[list, list]:
    """The chunk's pages as the twin wants them."""
    dim = cache.keys.shape[1]
    opened, sealed = cache.slabs(chunk)
    return (
        [None if page is None else attention.open_page(cache.form, dim, page) for page in opened],
        [None if page is None else attention.sealed_page(dim, page) for page in sealed],
    )


def last_rows(length: int, count: int, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """pos, lo, hi of the last `count` positions under a window."""
    pos = np.arange(length - count, length)
    return pos, np.maximum(0, pos - window + 1), pos


def random_queries(rows: int, dim: int, seed: int, size: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng([seed, rows, dim])
    return (rng.standard_normal((rows, dim)) * size / np.sqrt(dim)).astype(np.float32)


@pytest.mark.parametrize("form", ["f32", "kv8"])
@pytest.mark.parametrize("dim", [16, 48, 64])
@pytest.mark.parametrize("length", [1, 64, 65, 150, 600])
def test_scalar_equals_the_twin(form: str, dim: int, length: int) -> None:
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


@pytest.mark.parametrize("form", ["f32", "kv8"])
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


@pytest.mark.parametrize("dim", [16, 48, 128, 256])
def test_sealed_page_equals_the_twin(dim: int) -> None:
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
        cache = Cache("kv8", keys, values)
        opened = attention.open_page("kv8", dim, cache.open[0])
        assert_same_bits(opened.values, attention.to_half(values), "values as f16")
        expected, actual = attention.seal(opened), attention.sealed_page(dim, cache.sealed[0])
        for name in ("key_codes", "value_codes", "key_mean", "key_scale", "value_scale"):
            assert_same_bits(getattr(actual, name), getattr(expected, name), f"{name}, D={dim}")


def test_sealing_is_a_function_of_the_rows_alone() -> None:
    """Not of the order of writing, of what a slot held before, or of the buffer; and nothing else
    of the open page is needed or changed."""
    rng = np.random.default_rng(12)
    dim = 80
    keys, values = rng.standard_normal((2, 64, dim)).astype(np.float32)
    pages = []
    for order in (range(64), reversed(range(64)), rng.permutation(64)):
        page = blank_page("kv8", dim)
        for slot in order:  # drafts first, then what is accepted
            testing.write_token("scalar", "kv8", int(slot), values[slot] * 9, keys[slot], page)
        for slot in range(64):
            testing.write_token("scalar", "kv8", slot, keys[slot], values[slot], page)
        before = page.copy()
        sealed = testing.seal_page("scalar", dim, page)
        assert_same_bits(page, before, "the open page")
        pages.append(sealed)
    assert_same_bits(pages[1], pages[0], "sealed")
    assert_same_bits(pages[2], pages[0], "sealed")
    assert (pages[0][64 * 2 * dim + 2 * dim + 256 :] == 0).all(), "padding is zero"


def test_bytes_per_token() -> None:
    for dim in range(16, 513, 16):
        payload = 64 * 2 * dim + 2 * dim + 256
        assert testing.sealed_page_bytes(dim) == -(-payload // 64) * 64
        assert testing.open_page_bytes("kv8", dim) == 64 * 2 * dim * 2
        assert testing.open_page_bytes("f32", dim) == 64 * 2 * dim * 4
    assert 64 * 2 * 128 + 2 * 128 + 256 == 264 * 64
    assert testing.sealed_page_bytes(128) <= 266 * 64


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


def kv8_bound(q, keys, values, lo, hi, dim) -> np.ndarray:
    """What the format may cost, per row and channel, to six standard deviations of the roundings.

    A key's code is off by a uniform half step, so is the query's: the score's error is a sum of D
    independent ones. Weights shift by e^(2 error). A value is off by half its scale, P by half a
    step of its page's largest weight (steps 65535 on page 0, else 255). f16 storage adds 2^-11.
    """
    bounds = np.zeros((len(q), dim))
    for r in range(len(q)):
        span = slice(lo[r], hi[r] + 1)
        k, v = keys[span], values[span]
        mean = keys.mean(axis=0)
        centred = k - mean
        key_step = np.abs(centred).max(axis=1) / 127
        query_step = np.abs(q[r]).max() / 127
        variance = (q[r] @ q[r]) * key_step**2 / 12 + (centred**2).sum(axis=1) * query_step**2 / 12
        half_error = HALF * np.abs(k) @ np.abs(q[r])
        delta = (6 * np.sqrt(variance) + half_error).max()
        s = k @ q[r]
        p = np.exp(s - s.max())
        p /= p.sum()
        bounds[r] += (np.exp(2 * delta) - 1) * (p @ np.abs(v))
        value_step = np.abs(v).max(axis=1) / 127
        bounds[r] += p @ (0.5 * value_step[:, None] + HALF * np.abs(v))
        positions = np.arange(lo[r], hi[r] + 1)
        for page in np.unique(positions // 64):
            on_page = positions // 64 == page
            step = (p * value_step)[on_page].max() / (65535 if page == 0 else 255)
            codes = np.abs(v[on_page] / np.maximum(value_step[on_page], 1e-30)[:, None])
            bounds[r] += 0.5 * step * codes.sum(axis=0) * np.exp(2 * delta)
    return bounds


@pytest.mark.parametrize("dim", [16, 64, 128])
@pytest.mark.parametrize("length", [130, 1100])
def test_kv8_against_float64(dim: int, length: int) -> None:
    cache = random_cache("kv8", dim, length, 6)
    q = random_queries(8, dim, 7, 1.0)
    for window in (EVERYTHING, 100):
        pos, lo, hi = last_rows(length, 8, window)
        actual = attend("scalar", cache, q, pos, lo, hi)
        wide = [v.astype(np.float64) for v in (q, cache.keys, cache.values)]
        expected = attention.attend_exact(*wide, lo, hi)
        bound = kv8_bound(*wide, lo, hi, dim)
        assert_within(actual, expected, bound, f"kv8 D={dim} {length=} {window=}")
        # The bound is loose; the error itself must be small beside the signal.
        error = np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2))
        assert error < 0.03, f"relative error {error:.4f}"


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
