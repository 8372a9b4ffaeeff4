"""Stop strings in streamed text."""

from __future__ import annotations

from collections.abc import Sequence

from musespark.errors import InvalidRequest


class StopStrings:
    """Cuts streamed text at the first stop string, wherever the pieces' borders are.

    The first is the one that is complete earliest; of several complete at the same character the
    longest. :meth:`feed` returns the text that can no longer be part of a stop string.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        if isinstance(strings, str) or not all(isinstance(s, str) and s for s in strings):
            raise InvalidRequest(f"stop: got {strings!r}, allowed is a list of non-empty strings")
        self._strings = tuple(strings)
        self._held = ""
        self.stopped: str | None = None  # the stop string that was met

    def __bool__(self) -> bool:
        return bool(self._strings)

    def feed(self, text: str) -> str:
        if self.stopped is not None:
            return ""
        text = self._held + text
        found = [(at + len(s), at, s) for s in self._strings if (at := text.find(s)) >= 0]
        if found:
            _, start, self.stopped = min(found)
            self._held = ""
            return text[:start]
        keep = max((self._overlap(text, s) for s in self._strings), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        longest = min(len(stop) - 1, len(text))
        return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
