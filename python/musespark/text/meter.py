"""The time and size budget of one template rendering; sandbox.py says where it is spent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from musespark.errors import DeadlineExceeded, InvalidRequest

ELEMENT = 16  # what one element of a list is charged, in characters
_TICKS_PER_CHECK = 200
_NODES_LIMIT = 200_000  # parts of one nested value that is printed, compared or serialized


class Meter:
    """The budget of one rendering: ``seconds`` of this thread's CPU time and ``chars`` characters
    of values produced (intermediate ones too; a list element counts as 16)."""

    __slots__ = ("_chars", "_cpu_limit", "_next_check", "_ticks", "chars", "seconds")

    def __init__(self, seconds: float, chars: int):
        self.seconds, self.chars = seconds, chars
        # The wall clock is cheap to read and never behind the CPU time: only when the budget is
        # over by the wall is the thread's CPU time asked for. What was used until then is unknown
        # (at most the budget), so a rendering is stopped after one to two budgets of CPU time.
        self._next_check = time.perf_counter() + seconds
        self._cpu_limit: float | None = None
        self._ticks, self._chars = 0, chars

    def tick(self, count: int = 1) -> None:
        self._ticks += count
        if self._ticks >= _TICKS_PER_CHECK:
            self._ticks = 0
            if time.perf_counter() > self._next_check:
                self._check_time()

    def _check_time(self) -> None:
        used = time.thread_time()
        if self._cpu_limit is None:
            self._cpu_limit = used + 0.8 * self.seconds
        elif used > self._cpu_limit:
            raise DeadlineExceeded(
                f"chat template: rendering took more than its {self.seconds:g} s of CPU time"
            )
        self._next_check = time.perf_counter() + 0.02 * self.seconds

    def charge(self, size: int) -> None:
        """Announce a value of ``size`` characters; large ones also count as time."""
        self._chars -= size
        if self._chars < 0:
            raise InvalidRequest(
                f"chat template: rendering produces more than its {self.chars} characters"
            )
        self.tick(1 + size // 4096)

    def loop(self, items: Any, body: int = 0) -> Iterator[Any]:
        """The items, one tick each; ``body`` is the literal text a round can write."""
        for item in items:
            self.charge(body)
            yield item

    def measure(self, value: Any) -> int:
        """Characters and elements of a nested value; refuses what would explode when printed."""
        count, size, stack = 0, 0, [value]
        while stack:
            item = stack.pop()
            if isinstance(item, (str, bytes)):
                size += len(item)
                continue
            if isinstance(item, dict):
                stack.extend(item)
                stack.extend(item.values())
                count += len(item)
            elif isinstance(item, (list, tuple)):
                stack.extend(item)
                count += len(item)
            if count > _NODES_LIMIT:
                raise InvalidRequest(
                    f"chat template: a nested value has more than {_NODES_LIMIT} parts"
                )
        self.tick(count)
        return size + ELEMENT * count
