"""Prompts' beginnings on disk for one model: read before a request runs, written after it.

The engine keeps what past prompts began with in memory (csrc/cache/prefix_tree.h); this is the same
on disk, so that another process, or this one tomorrow, computes only what is new. What is on disk
and not in memory comes back as a retained sequence that the request goes on from. Whatever is wrong
with the folder costs time, never a request; what was wrong is counted and said.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from musespark.engine import ARITHMETIC_VERSION, Engine, Retained
from musespark.errors import CorruptFile, InvalidRequest, MemoryBudgetExceeded
from musespark.events import Kept, Request
from musespark.families.spec import ModelSpec
from musespark.prefix_folder import PAGE_TOKENS, VERSION, PrefixFolder, page_keys
from musespark.results import human_bytes
from musespark.sizes import LAST_MESSAGE
from musespark.transfers import GivenUp, known, restore
from musespark.weights import LoadedWeights

# A shorter beginning is computed as fast as it is read, and not worth its files.
LEAST_PAGES = 4
_MOST_NOTES = 20


@dataclass
class PrefixFolderStats:
    """What a model read from its prefix folder and wrote to it. ``notes`` say what was wrong, the
    latest ones; ``damaged`` pages were removed, and computed again."""

    path: str
    limit: int
    pages: int = 0
    bytes: int = 0
    hits: int = 0
    tokens_read: int = 0
    pages_written: int = 0
    pages_removed: int = 0
    damaged: int = 0
    failed_writes: int = 0
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{self.path}: {self.pages:,} pages, {human_bytes(self.bytes)} of "
            f"{human_bytes(self.limit)}; read {self.tokens_read:,} tokens in {self.hits:,} hits, "
            f"wrote {self.pages_written:,} pages, removed {self.pages_removed:,}; damaged "
            f"{self.damaged:,}, failed writes {self.failed_writes:,}"
        ]
        return "\n".join([*lines, *self.notes])


class NoPrefixes:
    """Of a model without a folder."""

    def base_for(self, request: Request) -> Retained | None:
        """As :meth:`PrefixStore.base_for`, and so on."""
        return None

    def after(self, request: Request) -> Callable[[], None] | None:
        return None

    def stats(self) -> PrefixFolderStats | None:
        return None

    def close(self) -> None:
        pass


class PrefixStore(NoPrefixes):
    """The folder of one model. Thread-safe.

    ``identity``: what keys and values depend on beside tokens and adapter. ``checksum_of`` the
    adapter with an id of the engine.
    """

    def __init__(
        self,
        engine: Engine,
        spec: ModelSpec,
        folder: Path,
        limit: int,
        identity: dict[str, Any],
        checksum_of: Callable[[int | None], str | None],
    ):
        if spec.bidirectional:
            raise InvalidRequest("prefix_folder: an embedding model keeps no keys and values")
        try:
            self._folder = PrefixFolder(folder, limit, ARITHMETIC_VERSION)
        except OSError as error:
            raise InvalidRequest(f"prefix_folder: {folder}: {error.strerror}") from error
        self._engine, self._identity, self._checksum_of = engine, identity, checksum_of
        short = [rope.original_context for rope in spec.ropes if rope.short_factors]
        self._short_up_to = max(short, default=0)
        self._windows: list[int] = engine._driver.check().windows()
        self._reading = threading.Lock()
        # What was read last, until a request has used it: a batch reads it once.
        self._recent: tuple[list[bytes], int | None, Retained] | None = None
        self._saving = threading.Lock()
        self._to_save: queue.SimpleQueue[tuple[np.ndarray, int | None, str | None]]
        self._to_save = queue.SimpleQueue()
        self._saver: threading.Thread | None = None
        self._counting = threading.Lock()
        self._counts = PrefixFolderStats(str(folder), limit)
        _stores.add(self)

    # ---- reading ------------------------------------------------------------------------------

    def base_for(self, request: Request) -> Retained | None:
        """What a request goes on from: what the folder has of its prompt, where that is more than
        what the engine has."""
        tokens, adapter = np.asarray(request.tokens, np.int32), request.adapter
        keys = self._keys(tokens, self._checksum_of(adapter))
        keys = keys[: (len(tokens) - 1) // PAGE_TOKENS]  # the last token is always computed
        if len(keys) < LEAST_PAGES or not (self._windows[0] or self._folder.has(keys[0], 0)):
            return None
        with self._reading:
            before = len(keys) + 1
            while before > (count := self._usable(keys)) >= LEAST_PAGES:
                before = count  # a page that cannot be read, nor removed, ends it
                recent = self._recent  # once: a request that ends meanwhile sets it to None
                if recent is not None and recent[:2] == (keys[:count], adapter):
                    return recent[2]
                try:
                    with known(self._engine, tokens, count * PAGE_TOKENS, adapter) as (kept, _):
                        if len(kept.tokens) > (count - LEAST_PAGES) * PAGE_TOKENS:
                            return None
                    base = self._read(tokens, keys[:count], adapter)
                except _Gone:
                    self._sweep(tokens, keys[:count])
                    continue
                except MemoryBudgetExceeded as error:
                    self._note(f"not read: {error}")
                    return None
                self._recent = (keys[:count], adapter, base)
                return base
        return None

    def _usable(self, keys: Sequence[bytes]) -> int:
        """How many pages a sequence can go on from: their files are there in every class, those of
        a window as far as it reaches."""
        count, has = len(keys), self._folder.has
        for page_class in [c for c, window in enumerate(self._windows) if window == 0]:
            there = (i for i in range(count) if not has(keys[i], page_class))
            count = next(there, count)
        again = True
        while again and count:
            again = False
            for page_class, window in enumerate(self._windows):
                first = _first_page(window, count)
                gone = next((i for i in range(first, count) if not has(keys[i], page_class)), None)
                if gone is not None:  # any longer path sees that page too
                    count, again = gone, True
        return count

    def _read(self, tokens: np.ndarray, keys: list[bytes], adapter: int | None) -> Retained:
        length = len(keys) * PAGE_TOKENS
        kept = Kept(tokens[:length], 0, self._is_short(tokens))
        pages = self._engine._driver.check().page_list(length=length, prompt=0)

        def read(number: int, out: np.ndarray) -> None:
            page_class, index, _ = pages[number]
            if not self._read_page(tokens, keys[index], page_class, index, out):
                raise _Gone

        base = restore(self._engine, kept, adapter, [size for *_, size in pages], read)
        self._folder.used(keys, len(self._windows))
        self._count(hits=1, tokens_read=length)
        return base

    def _read_page(
        self, tokens: np.ndarray, key: bytes, page_class: int, index: int, out: np.ndarray
    ) -> bool:
        """Whether page ``index`` could be read into ``out``. A damaged one is removed."""
        try:
            self._folder.read(key, page_class, _tokens_of(tokens, index), out)
            return True
        except CorruptFile as error:
            self._folder.remove(key, page_class)
            self._note(f"a damaged page was removed: {error}", damaged=1)
        except FileNotFoundError:  # another process removed it
            pass
        except OSError as error:
            self._note(f"not read: {error}")
        return False

    def _sweep(self, tokens: np.ndarray, keys: list[bytes]) -> None:
        """Removes every damaged page of a path: where one is, there may be more, and what is there
        is not written again."""
        length = len(keys) * PAGE_TOKENS
        for page_class, index, size in self._engine._driver.check().page_list(
            length=length, prompt=0
        ):
            if self._folder.has(keys[index], page_class):
                self._read_page(tokens, keys[index], page_class, index, np.empty(size, np.uint8))

    # ---- writing ------------------------------------------------------------------------------

    def after(self, request: Request) -> Callable[[], None]:
        """What is to be called at the request's end, where the engine tells of it."""
        checksum = self._checksum_of(request.adapter)
        tokens = np.asarray(request.tokens, np.int32)
        return functools.partial(self._remember, tokens, request.adapter, checksum)

    def _remember(self, tokens: np.ndarray, adapter: int | None, checksum: str | None) -> None:
        """Writes what the engine has of a prompt, soon and in another thread."""
        self._recent = None  # what it read is in the engine's memory now
        if len(tokens) < LEAST_PAGES * PAGE_TOKENS:
            return
        self._to_save.put((tokens, adapter, checksum))
        with self._saving:
            if self._saver is None:
                self._saver = threading.Thread(target=self._save_all, name="musespark-prefixes")
                self._saver.daemon = True
                try:
                    self._saver.start()
                except RuntimeError:  # the interpreter is ending: too late
                    self._saver = None

    def _save_all(self) -> None:
        while True:
            with self._saving:
                try:
                    one = self._to_save.get_nowait()
                except queue.Empty:
                    self._saver = None
                    return
            try:
                self._save(*one)
                self._count(pages_removed=self._folder.trim())
            except GivenUp:  # the engine needed the memory
                self._note("not written: running requests needed the memory")
            except Exception as error:  # of the disk; the adapter was closed at once; no memory
                self._note(f"not written: {type(error).__name__}: {error}", failed_writes=1)

    def _save(self, tokens: np.ndarray, adapter: int | None, checksum: str | None) -> None:
        keys = self._keys(tokens, checksum)
        # Through windows only the end of a path is seen. The next prompt may differ in its last
        # message, so the engine keeps what is in sight of its pages; so does this.
        first = max(-(-(len(tokens) - LAST_MESSAGE) // PAGE_TOKENS), 1)
        ends = range(len(keys), first - 1, -1)
        for count in ends if any(self._windows) else [len(keys)]:
            if not all(self._there(keys, count)):
                self._save_path(tokens, adapter, keys, count)

    def _there(self, keys: list[bytes], count: int) -> Iterator[bool]:
        """Whether each page is there that a sequence of so many pages goes on from."""
        for page_class, window in enumerate(self._windows):
            for key in keys[_first_page(window, count) : count]:
                yield self._folder.has(key, page_class)

    def _save_path(
        self, tokens: np.ndarray, adapter: int | None, keys: list[bytes], count: int
    ) -> None:
        with known(self._engine, tokens, count * PAGE_TOKENS, adapter) as (kept, read):
            length = len(kept.tokens)
            if length < LEAST_PAGES * PAGE_TOKENS:
                if count == len(keys):
                    self._note("not written: the engine had no room to keep it")
                return
            pages = self._engine._driver.check().page_list(length=length, prompt=0)
            for number, (page_class, index, size) in enumerate(pages):
                if self._folder.has(keys[index], page_class):
                    continue
                page = np.empty(size, np.uint8)
                read(number, page)
                self._folder.write(keys[index], page_class, _tokens_of(tokens, index), page)
                self._count(pages_written=1)
        self._folder.used(keys[: length // PAGE_TOKENS], len(self._windows))

    def flush(self) -> None:
        """Waits until everything is written."""
        while (saver := self._saver) is not None and saver.is_alive():  # in a fork it is not
            saver.join()

    def close(self) -> None:
        """Writes what is left; before the engine is closed."""
        self.flush()
        self._recent = None

    # ---- what it is ---------------------------------------------------------------------------

    def stats(self) -> PrefixFolderStats:
        self.flush()
        with self._counting:
            found = PrefixFolderStats(**vars(self._counts))
        found.pages, found.bytes = self._folder.usage()
        return found

    def _keys(self, tokens: np.ndarray, checksum: str | None) -> list[bytes]:
        root = self._identity | {
            "version": VERSION,
            "arithmetic": ARITHMETIC_VERSION,
            "adapter": checksum,
            "short_rope": self._is_short(tokens),
        }
        text = json.dumps(root, sort_keys=True).encode()
        return page_keys(hashlib.blake2b(text, digest_size=32).digest(), tokens)

    def _is_short(self, tokens: np.ndarray) -> bool:
        """Whether a prompt is made with the ropes' short factors: csrc/decode/schedule.cc."""
        return len(tokens) <= self._short_up_to

    def _count(self, **more: int) -> None:
        with self._counting:
            for name, count in more.items():
                setattr(self._counts, name, getattr(self._counts, name) + count)

    def _note(self, note: str, **more: int) -> None:
        self._count(**more)
        with self._counting:
            self._counts.notes = (*self._counts.notes, note)[-_MOST_NOTES:]


class _Gone(Exception):  # noqa: N818 - a page that was there is not
    pass


def _tokens_of(tokens: np.ndarray, index: int) -> np.ndarray:
    """Those of a page."""
    return tokens[index * PAGE_TOKENS : (index + 1) * PAGE_TOKENS]


def _first_page(window: int, pages: int) -> int:
    """The first page that a query after so many pages sees: csrc/cache/sequence.h."""
    return 0 if window == 0 else max(pages * PAGE_TOKENS - window + 1, 0) // PAGE_TOKENS


_stores: weakref.WeakSet[PrefixStore] = weakref.WeakSet()


@atexit.register
def _flush_all() -> None:
    """Before the engines end: they register earlier, so they go later."""
    for store in list(_stores):
        store.flush()


def prefixes_in(
    engine: Engine,
    weights: LoadedWeights,
    folder: tuple[Path, int] | None,
    kv: str,
    checksum_of: Callable[[int | None], str | None],
) -> NoPrefixes:
    """What a model keeps in a folder of so many bytes; ``kv``: its formats of keys and values."""
    if folder is None:
        return NoPrefixes()
    identity = {"model": weights.identity(), "kv": kv}
    return PrefixStore(engine, weights.spec, *folder, identity, checksum_of)
