"""Finding marker strings in text: leftmost first, then longest, as the tokenizers library does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator


class MarkerFinder:
    """Finds any of a fixed set of strings. Built for thousands of markers (Gemma has 6,000), where
    an alternation of regular expressions would try each at every ``<``."""

    def __init__(self, markers: Iterable[str]):
        self.markers = frozenset(m for m in markers if m)
        lengths: dict[str, set[int]] = {}
        for marker in self.markers:
            lengths.setdefault(marker[0], set()).add(len(marker))
        self._lengths = {first: sorted(n, reverse=True) for first, n in lengths.items()}
        starts = "".join(map(re.escape, sorted(lengths)))
        self._starts = re.compile(f"[{starts}]" if starts else r"(?!)")

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Spans (start, end) of the markers, not overlapping."""
        position = 0
        while match := self._starts.search(text, position):
            position = match.start()
            for length in self._lengths[match[0]]:
                if text[position : position + length] in self.markers:
                    yield position, position + length
                    position += length
                    break
            else:
                position += 1

    def split(self, text: str) -> list[tuple[str, bool]]:
        """The text as pieces ``(text, is_marker)``; empty pieces are left out."""
        pieces, end = [], 0
        for start, stop in self.find(text):
            if start > end:
                pieces.append((text[end:start], False))
            pieces.append((text[start:stop], True))
            end = stop
        if end < len(text):
            pieces.append((text[end:], False))
        return pieces
