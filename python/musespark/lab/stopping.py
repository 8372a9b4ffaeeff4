"""Runs that are asked to stop: they take a last step and leave a checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def asked_to_stop(act: Callable[[], Any]) -> Iterator[None]:
    """While it lasts Ctrl-C and SIGTERM call ``act``; then they do again what they did before. In
    the main thread alone."""
    before = {
        number: signal.signal(number, lambda *_: act())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            # None: whoever set it did not do so from Python.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
