"""How far something is, on standard error."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_EVERY = 0.2  # seconds between two drawings


class Bar:
    """Items done: in a terminal only."""

    def __init__(self, label: str, stream: TextIO | None = None):
        self._label, self._stream = label, stream or sys.stderr
        self._begin = self._drawn = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        ended = done >= total
        if not self._stream.isatty() or (not ended and now - self._drawn < _EVERY):
            return
        self._drawn, filled = now, 24 * done // max(1, total)
        rate = done / (now - self._begin) if now > self._begin else 0.0
        left = f"{(total - done) / rate:.0f} s left" if rate and not ended else ""
        bar = "█" * filled + "░" * (24 - filled)
        end = "\n" if ended else ""
        told = f"\r{self._label} [{bar}] {done}/{total}  {rate:.1f} items/s  {left}\x1b[K{end}"
        self._stream.write(told)
        self._stream.flush()


class Status:
    """One line that changes: rewritten in a terminal, else a line for each text that is kept."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._drawn = 0.0

    def __call__(self, text: str, *, kept: bool = False) -> None:
        now = time.monotonic()
        if not self._stream.isatty():
            self._write(f"{text}\n" if kept else "")
        elif kept or now - self._drawn >= _EVERY:
            self._drawn = now
            self._write(f"\r{text}\x1b[K")

    def end(self, text: str) -> None:
        """The last text, a line of its own."""
        self._write(f"\r{text}\x1b[K\n" if self._stream.isatty() else f"{text}\n")

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
