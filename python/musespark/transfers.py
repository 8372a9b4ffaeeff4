"""Keys and values of a retained sequence out of the engine and into it, page by page."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from musespark.driver import CLOSED_MEANWHILE
from musespark.engine import Engine, Retained
from musespark.errors import Cancelled, InvalidRequest
from musespark.events import Kept

# How long a wait is deaf to Ctrl-C.
_DEAF_S = 0.05
_COPIERS = 2  # threads that read, check and copy: one is bound by its checksums


class GivenUp(Exception):  # noqa: N818 - not an error: the sequence can be computed again
    """Running requests needed the memory: the sequence has lost its pages."""


@contextlib.contextmanager
def known(
    engine: Engine, tokens: np.ndarray, most: int, adapter: int | None
) -> Iterator[tuple[Kept, Callable[[int, np.ndarray], None]]]:
    """What the engine keeps of past prompts: the longest sequence that the prompt ``tokens`` begins
    with, at most ``most`` of them, and how to read its page i. :class:`GivenUp` as
    :func:`outgoing`."""
    retained = Retained(engine._driver, [])
    try:
        engine._driver.take(retained._ids, "begin_export", tokens, most=most, adapter=adapter)
        try:
            _wait(retained)
            core = retained._driver.check()
            said = core.saved(retained.id)

            def read(index: int, out: np.ndarray) -> None:
                if not core.read_page(retained.id, index, out):
                    raise GivenUp

            yield Kept(said["tokens"], said["prompt"], said["short_rope"]), read
        finally:
            retained._driver.quietly("end_transfer", retained.id)
    finally:
        retained.release()


@contextlib.contextmanager
def outgoing(retained: Retained) -> Iterator[tuple[Kept, Iterator[np.ndarray]]]:
    """What a retained sequence is, and its pages in the order of csrc/cache/saved_pages.h.

    A page is uint8, and overwritten by the next one. The sequence may be used meanwhile, and may
    lose its pages: then the iterator raises :class:`GivenUp`. No tokens where it has lost them
    before. One at a time for a sequence.
    """
    mine = True
    try:
        try:
            core = retained._driver.ask("begin_save", retained.id)
        except InvalidRequest:  # its pages are under way for somebody else
            mine = False
            raise
        _wait(retained)
        said = core.saved(retained.id)
        kept = Kept(said["tokens"], said["prompt"], said["short_rope"])
        yield kept, _pages(retained, kept)
    finally:
        if mine:
            retained._driver.quietly("end_transfer", retained.id)


def _pages(retained: Retained, kept: Kept) -> Iterator[np.ndarray]:
    if not len(kept.tokens):
        return
    core = retained._driver.check()
    sizes = _sizes(core, kept)
    room = np.empty(max(sizes), np.uint8)
    for i, size in enumerate(sizes):
        if not core.read_page(retained.id, i, room[:size]):
            raise GivenUp
        yield room[:size]


def page_sizes(engine: Engine, kept: Kept) -> list[int]:
    """Bytes of each page of a sequence as this engine lays it out."""
    if not len(kept.tokens):
        return []
    return _sizes(engine._driver.check(), kept)


def _sizes(core: Any, kept: Kept) -> list[int]:
    pages = core.page_list(length=len(kept.tokens), prompt=kept.prompt)
    return [size for _, _, size in pages]


def restore(
    engine: Engine,
    kept: Kept,
    adapter: int | None,
    sizes: list[int],
    read: Callable[[int, np.ndarray], None],
) -> Retained:
    """A retained sequence of these tokens, made by the adapter. ``read(i, out)`` gives page i, of
    ``sizes[i]`` bytes; it is called in several threads.

    Raises ContextOverflow, MemoryBudgetExceeded, and whatever ``read`` raises. The pages may be
    lost on the way as those of any retained sequence; it is then computed again when used.
    """
    driver = engine._driver
    retained = Retained(driver, [])
    try:
        rest = {"prompt": kept.prompt, "short_rope": kept.short_rope, "adapter": adapter}
        driver.take(retained._ids, "begin_restore", kept.tokens, **rest)
        try:
            _wait(retained)
            _fill(retained, sizes, read)
        finally:
            driver.quietly("end_transfer", retained.id)
    except BaseException:  # a damaged page, or Ctrl-C
        retained.release()
        raise
    return retained


def _fill(retained: Retained, sizes: list[int], read: Callable[[int, np.ndarray], None]) -> None:
    core, request = retained._driver.check(), retained.id
    left, over = iter(range(len(sizes))), threading.Event()

    def copy(_worker: int) -> None:
        room = np.empty(max(sizes), np.uint8)
        try:
            for i in left:  # one iterator: each page goes to one thread
                page = room[: sizes[i]]
                if over.is_set():
                    return
                read(i, page)
                if not core.write_page(request, i, page):
                    return
        except BaseException:
            over.set()
            raise

    with ThreadPoolExecutor(_COPIERS) as threads:
        try:
            list(threads.map(copy, range(_COPIERS)))
        finally:
            over.set()


def _wait(retained: Retained) -> None:
    """Until the engine's thread has made the pages reachable."""
    driver = retained._driver
    core = driver.check()
    while not core.wait_transfer(retained.id, _DEAF_S):
        if driver.closed:
            raise Cancelled(CLOSED_MEANWHILE)
        driver.check()
