"""The thoughts of a turn that is written, and where their sentences end."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from musespark.thinking.request import token_class

_COUNT, _CONTINUATION = 3, 4  # bits of a token's class, csrc/decode/thinking.h
# What ends a sentence, quotes and brackets after it included, and (group 1) white space behind it.
# A mark before a letter or digit ends none: "3.14".
_END = re.compile(r"(?:[.!?…]+[*_\"'”’»)\]}]*(?=\s|$)|[。！？]+[”’」』）]*|(?=\n))(\s*)")


class ThoughtSpan(NamedTuple):
    """Tokens begin .. end - 1, markers not counted; not ``closed``: the turn ended inside it."""

    begin: int
    end: int
    closed: bool


def thought_spans(tokens: Sequence[int], marks: Mapping[str, Any], first: int) -> list[ThoughtSpan]:
    """The thoughts of ``tokens``, as far as they lie at ``first`` and after it. ``marks``: of
    :func:`musespark.thought_cache.thought_marks`. The twin of csrc/decode/thoughts.cc."""
    spans: list[ThoughtSpan] = []
    begin: int | None = None
    for i, token in enumerate(tokens):
        if begin is None:
            if any(tokens[i + 1 - len(open_) : i + 1] == open_ for open_ in marks["opens"]):
                begin = i + 1
        elif token in marks["closes"]:
            spans.append(ThoughtSpan(begin, i, True))
            begin = None
    if begin is not None:
        spans.append(ThoughtSpan(begin, len(tokens), False))
    return [ThoughtSpan(max(s.begin, first), s.end, s.closed) for s in spans if s.end > first]


def sentence_ends(texts: Sequence[str], pieces: Sequence[bytes]) -> list[int]:
    """How many tokens of a thought there are up to each sentence's end, ascending; the last is the
    thought's own end. ``texts``: what each token adds to the text; ``pieces``: its bytes.

    White space after an end belongs to it as far as it has tokens of its own. An end inside a token
    is behind it, and none is inside a character: tokens that only begin one are left out at last.
    """
    whole, text = whole_characters(pieces), "".join(texts)
    blank, lengths = len(text) - len(text.lstrip()), [*accumulate(map(len, texts))]
    ends: list[int] = []
    for match in _END.finditer(text):
        end, after = match.span(1)
        count = _tokens_to(lengths, end, after)
        if end > blank and whole[count - 1]:
            ends.append(count)
    last = max((i + 1 for i, one in enumerate(whole) if one), default=0)
    if ends and not "".join(texts[ends[-1] : last]).strip():
        ends.pop()
    return [*ends, last] if last else []


def _tokens_to(lengths: Sequence[int], end: int, after: int) -> int:
    """The fewest tokens whose text ends at ``end`` .. ``after``, at the latest place of these; the
    fewest that reach it where a token goes on beyond. ``lengths``: of the text after each token."""
    within = bisect_right(lengths, after)
    reached = lengths[within - 1] if within else 0
    return bisect_left(lengths, max(reached, end)) + 1


def whole_characters(pieces: Sequence[bytes]) -> list[bool]:
    """Whether no character is unfinished after each token; as csrc/decode/thinking.cc."""
    out, needed = [], 0
    for piece in pieces:
        kind = token_class(piece)
        count = kind & _COUNT
        needed = max(0, needed - count) if kind & _CONTINUATION else count
        out.append(needed == 0)
    return out
