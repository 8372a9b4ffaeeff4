"""Every attention kernel of every instruction set gives the bits of scalar.cc.

Slots that were never written hold NaN, scratch and results start as NaN (the binding sees to it),
so a kernel that reads what a row does not see is found out.
"""

from __future__ import annotations

import numpy as np
import pytest

from musespark._core import testing
from musespark.reference import attention
from support.attention_cases import (
    CHUNK,
    FORMATS,
    MIXED,
    SEALED,
    attend,
    attend_chunk,
    blank_page,
    random_cache,
)
from support.compare import assert_same_bits

LEVELS = [isa for isa in testing.kernel_levels() if isa != "scalar"]
DIMS = [16, 32, 48, 64, 80, 96, 112, 128, 192, 256]


def queries(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    """Rows a little longer than the head, as they lie in a projection's output."""
    return (rng.standard_normal((rows, dim + 3)) / np.sqrt(dim) * 2).astype(np.float32)


def assert_same_parts(actual, expected, what: str) -> None:
    for part, a, e in zip(("max", "sum", "o"), actual, expected, strict=True):
        assert_same_bits(a, e, f"{what}: {part}")


def prefill_rows(length: int, count: int, group: int, window: int):
    """pos, lo, hi of the last `count` positions, `group` heads each."""
    pos = np.repeat(np.arange(length - count, length), group)
    return pos, np.maximum(0, pos - window + 1), pos


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("form", [*FORMATS, MIXED])
@pytest.mark.parametrize("dim", DIMS)
def test_rows_and_lengths(isa: str, form: str | tuple[str, ...], dim: int) -> None:
    """1 to 40 rows, partial pages, one and two chunks; causal, and a window beginning in a page."""
    rng = np.random.default_rng(dim)
    cases = 0
    for rows in (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 24, 40):
        group = int(rng.choice([g for g in (1, 2, 3, 4, 5, 8) if rows % g == 0]))
        length = int(rng.choice([rows // group, 17, 63, 64, 65, 150, 512, 513, 575, 700]))
        length = max(length, rows // group)
        cache = random_cache(form, dim, length, rows)
        q = queries(rng, rows, dim)
        for window in (1 << 40, 40, 130):
            pos, lo, hi = prefill_rows(length, rows // group, group, window)
            for chunk in range(-(-length // CHUNK)):
                args = (cache, q, pos, lo, hi, chunk)
                assert_same_parts(
                    attend_chunk(isa, *args),
                    attend_chunk("scalar", *args),
                    f"{isa} {form} D={dim} rows={rows} length={length} window={window} {chunk=}",
                )
                cases += 1
    assert cases >= 39


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("seed", range(4))
def test_any_rows(isa: str, form: str, seed: int) -> None:
    """Rows in no order with windows of any place and size, some empty, two blocks of rows."""
    rng = np.random.default_rng([99, seed])
    dim = int(rng.choice(DIMS))
    length = 512 + 90
    cache = random_cache(form, dim, length, seed)
    rows = 100
    q = queries(rng, rows, dim)
    pos = rng.integers(0, length, rows)
    lo = np.maximum(0, pos - rng.integers(0, 600, rows))
    hi = pos - rng.integers(-1, 2, rows).clip(0) * rng.integers(0, 60, rows)
    for chunk in (0, 1):
        for softcap in (0.0, 3.0):
            args = (cache, q, pos, lo, hi, chunk, softcap)
            actual, expected = attend_chunk(isa, *args), attend_chunk("scalar", *args)
            assert_same_parts(actual, expected, f"{isa} {form} D={dim} {chunk=} {softcap=}")
    empty = lo > hi
    assert (expected[1][empty] == 0).all() and np.isneginf(expected[0][empty]).all()


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("form", FORMATS)
def test_special_values(isa: str, form: str) -> None:
    """NaN and infinity in queries, keys and values; huge and tiny scores; zero rows."""
    dim, length, rows = 48, 200, 12
    rng = np.random.default_rng(3)
    for trial in range(40):
        cache = random_cache(form, dim, length, trial)
        cache.keys[rng.integers(0, length, 2), rng.integers(0, dim, 2)] = rng.choice(
            [np.nan, np.inf, -np.inf, 3e38, 1e-42, 7e4], 2
        )
        cache.values[rng.integers(0, length, 2), rng.integers(0, dim, 2)] = rng.choice(
            [np.nan, np.inf, -np.inf, 3e38, 1e-42, 7e4], 2
        )
        cache.values[rng.integers(0, length)] = 0
        cache.keys[64:80] = 0
        cache = type(cache)(form, cache.keys, cache.values)
        q = queries(rng, rows, dim) * np.float32(rng.choice([1, 1e-3, 300, 1e30]))
        q[0] = 0
        q[1] = 1e-33
        q[2, 5] = rng.choice([np.nan, np.inf, -np.inf, -np.nan])
        pos, lo, hi = prefill_rows(length, rows, 1, int(rng.choice([1 << 40, 70, 3])))
        for softcap in (0.0, 30.0):
            args = (cache, q, pos, lo, hi, 0, softcap)
            with np.errstate(all="ignore"):
                actual, expected = attend_chunk(isa, *args), attend_chunk("scalar", *args)
            assert_same_parts(actual, expected, f"{isa} {form} {trial=} {softcap=}")


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("dim", DIMS)
def test_pages(isa: str, dim: int) -> None:
    """Written and sealed pages, for any float32 as key and value."""
    rng = np.random.default_rng(dim)
    for scale in (1.0, 1e-3, 1e-6, 1e4, None):
        if scale is None:
            bits = rng.integers(0, 2**32, (2, 64, dim), dtype=np.uint32)
            data = bits.view(np.float32)
        else:
            data = (rng.standard_normal((2, 64, dim)) * scale).astype(np.float32)
            data[:, 7] = 0
        for form in FORMATS:
            pages = []
            for level in ("scalar", isa):
                page = blank_page(form, dim)
                for slot in rng.permutation(64):
                    testing.write_token(level, form, int(slot), data[0, slot], data[1, slot], page)
                pages.append(page)
            assert_same_bits(pages[1], pages[0], f"{isa} {form} open page, D={dim}, {scale=}")
            if form == "f32":
                continue
            sealed = [testing.seal_page(level, form, dim, pages[0]) for level in ("scalar", isa)]
            assert_same_bits(sealed[1], sealed[0], f"{isa} {form} sealed page, D={dim}, {scale=}")


def any_sealed_page(rng: np.random.Generator, form: str, dim: int) -> np.ndarray:
    """Random codes and steps; mean and scales of ordinary size, some scales zero or NaN."""
    page = rng.integers(0, 256, testing.sealed_page_bytes(form, dim), dtype=np.uint8)
    bits = attention.KEY_BITS[form], attention.VALUE_BITS[form]
    at = 64 * dim * sum(bits) // 8 + bits.count(4) * 32 * -(-dim // 32)
    halves = page[at : at + 2 * dim + 256].view(np.float16)
    halves[:dim] = rng.standard_normal(dim)
    halves[dim:] = rng.lognormal(-6, 1, 128)
    halves[dim + rng.integers(0, 128, 3)] = [0, np.nan, 1e-7]
    return page


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("form", SEALED)
@pytest.mark.parametrize("dim", DIMS)
def test_any_sealed_bytes(isa: str, form: str, dim: int) -> None:
    """Every pair of nibble and step, also those that sealing never writes together."""
    rng = np.random.default_rng([7, dim])
    pages = [any_sealed_page(rng, form, dim) for _ in range(8)]
    q = queries(rng, 9, dim)
    lo = rng.integers(0, 300, 9)
    hi = lo + rng.integers(0, 212, 9)
    args = (form, q, np.full(9, 600), lo, hi, 0, [None] * 8, pages, 0.0, dim)
    actual, expected = testing.attend_chunk(isa, *args), testing.attend_chunk("scalar", *args)
    assert_same_parts(actual, expected, f"{isa} {form} D={dim}")
    if form != "kv8":
        twin = attention.sealed_page(form, dim, pages[0])
        assert np.abs(twin.value_codes).max() == 64


def random_partials(rng: np.random.Generator, rows: int, dim: int) -> tuple:
    """(max, sum, o) with empty, infinite and NaN rows among them."""
    m = (rng.standard_normal(rows) * 40).astype(np.float32)
    s = rng.uniform(0.5, 300, rows).astype(np.float32)
    o = rng.standard_normal((rows, dim)).astype(np.float32)
    m[:4], s[:4], o[:4] = -np.inf, 0, 0
    m[4:8] = rng.choice([np.inf, -np.inf, np.nan], 4)
    s[8] = o[9, 3] = np.nan
    order = rng.permutation(rows)
    return m[order], s[order], o[order]


@pytest.mark.parametrize("isa", LEVELS)
def test_merge_and_finish(isa: str) -> None:
    """Random partials, with empty, infinite and NaN ones among them, with and without sinks."""
    rng = np.random.default_rng(17)
    rows = 64
    for dim in (16, 48, 128):
        for _ in range(20):
            state, other = random_partials(rng, rows, dim), random_partials(rng, rows, dim)
            merged = [testing.attention_merge(i, *state, *other) for i in ("scalar", isa)]
            assert_same_parts(merged[1], merged[0], f"{isa} merge D={dim}")
            sink = (rng.standard_normal(rows) * 20).astype(np.float32)
            sink[:3] = [-np.inf, np.inf, np.nan]
            for used in (dim, dim - 5):
                for given in (None, sink):
                    out = np.full((2, rows, dim + 1), 7, np.float32)
                    for i, level in enumerate(("scalar", isa)):
                        testing.attention_finish(level, *merged[0], given, used, out[i])
                    assert_same_bits(out[1], out[0], f"{isa} finish D={dim}, {used} written")
                    assert (out[:, :, used:] == 7).all()


@pytest.mark.parametrize("isa", ["scalar", *LEVELS])
@pytest.mark.parametrize("form", FORMATS)
def test_rows_do_not_depend_on_the_call(isa: str, form: str) -> None:
    """One row alone, in any company and any order of rows, has the same bits."""
    rng = np.random.default_rng(23)
    dim, length, group = 64, 200, 2
    cache = random_cache(form, dim, length, 1)
    pos, lo, hi = prefill_rows(length, 70, group, 100)
    q = queries(rng, len(pos), dim)
    whole = attend(isa, cache, q, pos, lo, hi)
    for rows in (slice(0, 1), slice(5, 12), slice(60, 61), rng.permutation(len(pos))):
        part = attend(isa, cache, q[rows], pos[rows], lo[rows], hi[rows])
        assert_same_bits(part, whole[rows], f"{isa} {form} rows {rows}")


@pytest.mark.parametrize("isa", ["scalar", *LEVELS])
@pytest.mark.parametrize("form", SEALED)
def test_own_page_open_earlier_sealed(isa: str, form: str) -> None:
    """In one call over a page border: a prefix that ends anywhere gives each row the same bits."""
    rng = np.random.default_rng(29)
    dim = 48
    whole = random_cache(form, dim, 150, 2)
    pos, lo, hi = prefill_rows(150, 100, 1, 1 << 40)
    q = queries(rng, 100, dim)
    expected = attend(isa, whole, q, pos, lo, hi)
    for length in (51, 64, 65, 127, 128, 129):
        cache = type(whole)(form, whole.keys[:length], whole.values[:length])
        rows = pos < length
        actual = attend(isa, cache, q[rows], pos[rows], lo[rows], hi[rows])
        assert_same_bits(actual, expected[rows], f"{isa} {form} length {length}")
