"""One progress bar on stderr: only in a terminal, only for what takes more than a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

# Called with (done, total, label); done == total at the end.
ProgressFn = Callable[[int, int, str], None]


class Bar:
    """A :data:`ProgressFn` for amounts in bytes."""

    def __init__(self, stream: TextIO | None = None, patience: float = 1.0):
        self._stream = sys.stderr if stream is None else stream
        self._start = time.monotonic()
        self._drawn = -1.0
        self._before: int | None = None
        self._patience = patience

    def __call__(self, done: int, total: int, label: str) -> None:
        if self._before is None:
            self._before = done  # written before this bar began, by another process
        now = time.monotonic() - self._start
        finished = done >= total
        if not self._stream.isatty() or (self._drawn < 0 and now < self._patience):
            return
        if not finished and now - self._drawn < 0.1:
            return
        share = done / total if total else 1.0
        filled = round(24 * share)
        rate = (done - self._before) / now if now > 0 else 0.0
        left = f"{(total - done) / rate:4.0f} s left" if rate else ""
        self._stream.write(
            f"\r{label} [{'█' * filled}{'░' * (24 - filled)}] {100 * share:3.0f}%  "
            f"{rate / 1e6:,.0f} MB/s  {left}\x1b[K"
        )
        if finished:
            self._stream.write(f"\r{label}: {total / 1e6:,.0f} MB in {now:.1f} s\x1b[K\n")
        self._stream.flush()
        self._drawn = now


def progress_function(progress: bool | ProgressFn | None) -> ProgressFn:
    """None: a :class:`Bar`. False: nothing. A callable: itself."""
    if callable(progress):
        return progress
    if progress is False:
        return lambda done, total, label: None
    return Bar()
