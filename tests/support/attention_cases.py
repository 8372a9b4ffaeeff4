"""Random KV pages and attention calls for the kernel tests."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from musespark import _core

testing = _core.testing
PAGE = 64
SEALED = ("kv8", "kv8v4", "kv4")
FORMATS = ("f32", *SEALED)
MIXED = ("kv8", "kv4", "kv8v4")  # one page after the other
CHUNK = 512


def blank_page(form: str, dim: int) -> np.ndarray:
    """An open page no slot of which was written: every byte 0xff, so every element a NaN."""
    return np.full(testing.open_page_bytes(form, dim), 0xFF, np.uint8)


@dataclass
class Cache:
    """Keys and values [length, dim] of one head, and their pages: open as written, sealed if full.

    Slots past the end hold NaN. Open pages stay beside the sealed ones, as the engine keeps them
    until the page's last token is accepted. ``form``: of every page, or a tuple that pages cycle
    through.
    """

    form: str | tuple[str, ...]
    keys: np.ndarray
    values: np.ndarray
    isa: str = "scalar"
    open: list[np.ndarray] = field(default_factory=list)
    sealed: list[np.ndarray | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        length, dim = self.keys.shape
        for begin in range(0, length, PAGE):
            form = self.form_of(begin // PAGE)
            page = blank_page(form, dim)
            for slot in range(min(PAGE, length - begin)):
                testing.write_token(
                    self.isa,
                    form,
                    slot,
                    self.keys[begin + slot],
                    self.values[begin + slot],
                    page,
                )
            full = form != "f32" and begin + PAGE <= length
            self.open.append(page)
            self.sealed.append(testing.seal_page(self.isa, form, dim, page) if full else None)

    def form_of(self, page: int) -> str:
        return self.form if isinstance(self.form, str) else self.form[page % len(self.form)]

    def forms(self, chunk: int) -> list[str]:
        """Of a chunk's eight pages."""
        return [self.form_of(8 * chunk + i) for i in range(8)]

    def slabs(self, chunk: int) -> tuple[list, list]:
        """The open and sealed slabs of a chunk's eight pages, None past the end."""
        pages = range(8 * chunk, 8 * chunk + 8)
        pick = lambda slabs: [slabs[p] if p < len(slabs) else None for p in pages]  # noqa: E731
        return pick(self.open), pick(self.sealed)


def random_cache(
    form: str | tuple[str, ...], dim: int, length: int, seed: int, isa: str = "scalar"
) -> Cache:
    """Normal keys and values with a large mean in some channels and rows of different size."""
    rng = np.random.default_rng([seed, dim, length])
    keys = rng.standard_normal((length, dim)) + 3 * (rng.random(dim) < 0.1)
    values = rng.standard_normal((length, dim)) * rng.lognormal(0, 0.7, (length, 1))
    values[:, 0] += 2  # so that a long flat average keeps some size
    return Cache(form, keys.astype(np.float32), values.astype(np.float32), isa)


def attend_chunk(
    isa: str, cache: Cache, q: np.ndarray, pos, lo, hi, chunk: int, softcap: float = 0.0
):
    """(max [R], sum [R], o [R, dim]) of one chunk."""
    as_int = lambda values: np.ascontiguousarray(values, np.int64)  # noqa: E731
    opened, sealed = cache.slabs(chunk)
    return testing.attend_chunk(
        isa, cache.forms(chunk), q, as_int(pos), as_int(lo), as_int(hi), chunk, opened, sealed,
        softcap,
        cache.keys.shape[1],
    )  # fmt: skip


def attend(isa: str, cache: Cache, q, pos, lo, hi, softcap: float = 0.0, sink=None) -> np.ndarray:
    """The finished output [R, dim] over all chunks, merged in ascending order."""
    rows, dim = len(q), cache.keys.shape[1]
    state = (
        np.full(rows, -np.inf, np.float32),
        np.zeros(rows, np.float32),
        np.zeros((rows, dim), np.float32),
    )
    for chunk in range(-(-len(cache.keys) // CHUNK)):
        part = attend_chunk(isa, cache, q, pos, lo, hi, chunk, softcap)
        state = testing.attention_merge(isa, *state, *part)
    out = np.full((rows, dim), np.nan, np.float32)
    testing.attention_finish(isa, *state, sink, dim, out)
    return out
