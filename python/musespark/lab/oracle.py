"""Where a thought could have stopped: sentence ends, and what closes a thought there.

The *stable oracle* of a reply that is right is the earliest sentence end from which on every forced
close answers right; a reply that is wrong counts its thinking in full. A forced close keeps what
was written up to there, adds ``formats.CLOSING`` and the end of the channel, and lets the model go
on. The thought's own end needs none: that is the reply itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from .formats import CLOSING

#: A full stop, question or exclamation mark before a space or the end, or a line's end after none.
_SENTENCE = re.compile(r"[.!?](?=\s|$)|(?<![.!?])\n")
#: What a first attempt is followed by (``item.compose``).
_REVIEW = re.compile(r"\n(?:Check|Another way):")


@dataclass(frozen=True)
class Markers:
    """The ids that Muse's protocol is made of, and those of the texts a close needs."""

    start: int
    message: int
    end: int
    closing: tuple[int, ...]
    assistant: tuple[int, ...]
    to_self: tuple[int, ...]

    @classmethod
    def of(cls, marker: Callable[[str], int], encode: Callable[[str], list[int]]) -> Markers:
        """From a tokenizer's two functions: the id of a marker, the ids of a text."""
        return cls(
            marker("<|start|>"),
            marker("<|message|>"),
            marker("<|eom|>"),
            *(tuple(encode(text)) for text in (CLOSING, "assistant", " to=self")),
        )

    @property
    def empty_thought(self) -> list[int]:
        """A thought without words, up to where the model writes its next recipient."""
        return [*self.to_self, self.message, *self.closed()]

    def closed(self) -> list[int]:
        """The end of a channel and the beginning of the next."""
        return [self.end, self.start, *self.assistant]

    def forced(self, written: Sequence[int]) -> list[int]:
        """``written``, cut inside a thought, as a forced close has it."""
        return [*written, *self.closing, *self.closed()]


@dataclass(frozen=True)
class Cut:
    """A sentence end: ``written`` ids of the reply up to there, of which ``thinking`` are of
    thoughts."""

    written: int
    thinking: int


def cuts(ids: Sequence[int], markers: Markers, text_of: Callable[[int], str]) -> list[Cut]:
    """The sentence ends inside the thoughts of a reply, in order, without the last thought's end.

    ``text_of`` gives the text of one token. A sentence that ends inside a token ends behind it.
    """
    found: list[Cut] = []
    thinking = 0
    for first, last in thoughts(ids, markers):
        texts = [text_of(i) for i in ids[first:last]]
        ends = [m.end() for m in _SENTENCE.finditer("".join(texts))]
        length = 0
        for k, text in enumerate(texts, 1):
            before, length = length, length + len(text)
            if any(before < end <= length for end in ends):
                found.append(Cut(first + k, thinking + k))
        thinking += len(texts)
    return [cut for cut in found if cut.thinking < thinking]


def first_attempt(
    ids: Sequence[int], markers: Markers, text_of: Callable[[int], str]
) -> Cut | None:
    """Where the first attempt of a reply's thoughts ends: before the first line that begins a check
    or another way; None where there is none. Of a line that begins inside a token: behind it."""
    thinking = 0
    for first, last in thoughts(ids, markers):
        texts = [text_of(i) for i in ids[first:last]]
        if review := _REVIEW.search("".join(texts)):
            lengths = accumulate(map(len, texts))
            k = next(k for k, length in enumerate(lengths, 1) if length >= review.start())
            return Cut(first + k, thinking + k)
        thinking += len(texts)
    return None


def thinking_tokens(ids: Sequence[int], markers: Markers) -> int:
    """Tokens inside the thoughts of a reply, markers and headers left out."""
    return sum(last - first for first, last in thoughts(ids, markers))


def thoughts(ids: Sequence[int], markers: Markers) -> Iterator[tuple[int, int]]:
    """Where the words of each thought begin and end in the ids of a reply; an open one ends with
    it."""
    header, at = [*markers.to_self, markers.message], 0
    while (begin := _find(ids, header, at)) >= 0:
        first = begin + len(header)
        at = next((i for i in range(first, len(ids)) if ids[i] == markers.end), len(ids))
        yield first, at


def _find(ids: Sequence[int], wanted: Sequence[int], at: int) -> int:
    n = len(wanted)
    return next((i for i in range(at, len(ids) - n + 1) if list(ids[i : i + n]) == wanted), -1)
