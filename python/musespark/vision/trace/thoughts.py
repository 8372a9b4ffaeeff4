"""Thoughts as steps: sentences, and what each of them does.

Which kind a sentence is, is guessed from English words in it. The guess is only for reading along:
a trace marks steps whose kind is known otherwise as ``exact``.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# The first that matches counts. Whole words, so that "already" does not read.
_WORDS = [
    ("conclude", r"therefore|thus|hence|in conclusion|so the answer|(?:final|the) answer|overall"),
    ("zoom", r"zoom\w*|look(?:ing)? closer|closer look|crop\w*|enlarg\w*|magnif\w*"),
    (
        "compare",
        r"compar\w*|differen\w*|same as|whereas|unlike|versus|both|than|closer to|match(?:es)?",
    ),
    (
        "read",
        r"reads?|reading|sa(?:ys|id)|text|label(?:led|ed|s)?|written|letters?|digits?|words?"
        r"|captions?|titles?|spell\w*|not readable",
    ),
    (
        "locate",
        r"locat\w*|find|found|where|position\w*|left|right|top|bottom|corner|cent(?:er|re)"
        r"|above|below|behind|beside|next to|between|under",
    ),
]
_KINDS = [(kind, re.compile(rf"\b(?:{words})\b", re.IGNORECASE)) for kind, words in _WORDS]
# Where a sentence may end: a full stop before white space, one of CJK, or the end of a line.
_ENDS = re.compile(r"[.!?][\"')\]]?(?=\s)|[。！？]|\n")
MAX_STEPS = 1000  # of one text


@dataclass(frozen=True)
class Sentence:
    """text[start:end], white space around it left out; ``kind`` as guessed."""

    start: int
    end: int
    kind: str


def kind_of(sentence: str, has_regions: bool) -> str:
    """The kind of a sentence by its words; one that names a place locates if it does no more."""
    for kind, words in _KINDS:
        if words.search(sentence):
            return kind
    return "locate" if has_regions else "look"


def sentences(text: str, keep: Sequence[tuple[int, int]]) -> list[Sentence]:
    """The sentences of a text, joined where neighbours are of one kind.

    ``keep``: spans, ascending, that no sentence ends inside; those with a span stand alone, but
    for lines of one list. Beyond MAX_STEPS the rest is one.
    """
    out: list[Sentence] = []
    starts = [start for start, _ in keep]
    for start, end in _pieces(text, keep):
        inside = bisect_right(starts, end) > bisect_right(starts, start - 1)
        kind = kind_of(text[start:end], inside)
        before = out[-1] if out else None
        if before and (
            len(out) == MAX_STEPS
            or (kind == before.kind and _joins(text, before, start, inside, starts))
        ):
            out[-1] = Sentence(before.start, end, before.kind)
        else:
            out.append(Sentence(start, end, kind))
    return out


def _joins(text: str, before: Sentence, start: int, inside: bool, starts: Sequence[int]) -> bool:
    """Whether a sentence goes with the one before it, of the same kind."""
    had = bisect_right(starts, before.end) > bisect_right(starts, before.start - 1)
    if not had and not inside:
        return True
    ended = text[before.end - 1] in ".!?。！？"  # else the line of a list
    return had and inside and not ended and "\n\n" not in text[before.end : start]


def _pieces(text: str, keep: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    at, index = 0, 0
    for match in _ENDS.finditer(text):
        end = match.end()
        while index < len(keep) and keep[index][1] <= match.start():
            index += 1
        if index < len(keep) and keep[index][0] < match.start() < keep[index][1]:
            continue
        yield from _trimmed(text, at, end)
        at = end
    yield from _trimmed(text, at, len(text))


def _trimmed(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    end = start + len(piece.strip())
    if end > start:
        yield start, end
