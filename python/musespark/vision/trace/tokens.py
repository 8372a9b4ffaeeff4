"""Where in what a model wrote its tokens are, and how probable they were."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any, Protocol


class Decoder(Protocol):
    """What turns ids into text as they come: a stream of :class:`musespark.Tokenizer`."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class TokenText:
    """The text of all tokens, markers included, and which token each character came from.

    ``probabilities``: of each token, None where they were not asked for.
    """

    def __init__(
        self, tokens: Sequence[int], decoder: Decoder | None, logprobs: Sequence[Any] | None = None
    ):
        self._at = 0
        self._ends: list[int] = []
        pieces: list[str] = []
        length = 0
        for token in tokens if decoder else ():
            pieces.append(decoder.push(token))
            length += len(pieces[-1])
            self._ends.append(length)
        self.text = "".join(pieces) + (decoder.flush() if decoder else "")
        known = logprobs is not None and len(logprobs) == len(self._ends)
        self.probabilities = [math.exp(one.logprob) for one in logprobs] if known else None

    def find(self, piece: str) -> int | None:
        """Where a piece of the turn begins; pieces are asked for in their order. None where it is
        not, as that of a model whose text was changed on the way."""
        at = self.text.find(piece, self._at, self._at + len(piece) + 8192) if piece else -1
        if at < 0:
            return None
        self._at = at + len(piece)
        return at

    def span(self, start: int, end: int) -> tuple[int, int]:
        """[first, after the last) token of the characters from start to end."""
        first = bisect_right(self._ends, start)
        return first, max(first + 1, min(bisect_left(self._ends, end) + 1, len(self._ends)))

    def probability(self, spans: Sequence[tuple[int, int]]) -> float | None:
        """Mean probability of the tokens that have characters in these spans."""
        if self.probabilities is None:
            return None
        indices = sorted({i for start, end in spans for i in range(*self.span(start, end))})
        values = [self.probabilities[i] for i in indices if i < len(self.probabilities)]
        return sum(values) / len(values) if values else None
