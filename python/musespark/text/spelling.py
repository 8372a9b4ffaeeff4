"""Marker strings in streamed text: found as soon as they are whole, held back while they may be.
And the tokens that can spell a text."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise, product
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from musespark.text.tokenizer import Tokenizer

_LONGEST = 12  # characters of a text of which all spellings are told, up to 2^11


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


def spellings(tokenizer: Tokenizer, text: str) -> list[list[int]]:
    """All sequences of ids that decode to a short text of ASCII behind other text, the encoder's
    own first: a model is trained on that one and may sample any. The encoder's alone where the
    text is longer than 12 characters, or where tokens have no bytes of their own."""
    own = tokenizer.encode_pieces([(text, False)])
    if len(text) > _LONGEST or not text.isascii():
        return [own]
    found = [own]
    for cuts in product((False, True), repeat=len(text) - 1):
        ends = [0, *(i for i, cut in enumerate(cuts, 1) if cut), len(text)]
        ids = [_ids_of(tokenizer, text[a:b]) for a, b in pairwise(ends)]
        found += [list(one) for one in product(*ids) if list(one) != own]
    return found


def _ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens that are this text, by the ways in which vocabularies write a space and a byte."""
    names = {text, *(text.replace(" ", space) for space in "\u0120\u2581")}
    if len(text) == 1:
        names.add(f"<0x{ord(text):02X}>")
    ids = {found for name in names if (found := tokenizer.find(name)) is not None}
    return sorted(i for i in ids if tokenizer.token_bytes(i) == text.encode())
