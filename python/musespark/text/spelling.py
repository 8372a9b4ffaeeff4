"""Marker strings in streamed text: found as soon as they are whole, held back while they may be."""

from __future__ import annotations

from collections.abc import Collection


def first_of(text: str, names: Collection[str]) -> tuple[int, str | None]:
    """Where the first of these strings begins, and which it is; (-1, None) for none."""
    found = [(at, -len(name), name) for name in names if (at := text.find(name)) >= 0]
    if not found:
        return -1, None
    at, _, name = min(found)
    return at, name


def overlap(text: str, names: Collection[str]) -> int:
    """The length of the longest end of ``text`` that begins one of these strings."""
    longest = min(len(text), max(map(len, names), default=1) - 1)
    return next(
        (n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in names)), 0
    )
