"""Long texts: how few tokens one can have, and encoding one in pieces with the same ids.

The tokenizers library encodes a text in one call that nothing can interrupt, seconds for each
megabyte. Two things help, where the tokenizer's own rules allow them:

- No token covers more than some characters, so a text that cannot fit a context is refused unread.
- Byte-level BPE looks inside the pieces that regular expressions cut, and those see no further than
  a character beyond a piece; WordPiece and most Unigram tokenizers look at words between spaces. So
  a text may be cut where a letter is followed by a space and a letter. As nobody can prove that of
  every expression and normalizer, each cut is tried on the text around it first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

PIECE_CHARS = 1 << 16
_AROUND = 256  # characters on each side of a cut that are encoded to try it
_TRIES = 32  # places for one cut; none is found in a text of few words
_CUT = re.compile(r"(?<=[A-Za-z]) (?=[A-Za-z])")
# A character of NFC has at most this many code points before.
_COMPOSED = 4


def _parts(step: Any, key: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer: one, or those of a Sequence."""
    if step is None:
        return []
    if step.get("type") != "Sequence":
        return [step]
    return [part for inner in step.get(key) or [] for part in _parts(inner, key)]


class LongTexts:
    """What one tokenizer.json allows; ``vocabulary`` gives the tokens' texts, when asked for."""

    def __init__(self, data: dict[str, Any], vocabulary: Callable[[], dict[str, int]]):
        model = data["model"]
        self._vocabulary = vocabulary
        self._most: int | None = None
        added = data.get("added_tokens") or []
        normal = _parts(data.get("normalizer"), "normalizers")
        before = _parts(data.get("pre_tokenizer"), "pretokenizers")
        bpe = model.get("type", "BPE") == "BPE"
        strips = any(entry.get("lstrip") or entry.get("rstrip") for entry in added)
        self._composes = bool(normal)
        byte_level = bool(before) and before[-1].get("type") == "ByteLevel"
        byte_level = byte_level and all(map(_is_byte_level_step, before))
        self._bytes_named = _byte_level_names if byte_level else _fallback_names
        composing = all(step.get("type") == "NFC" for step in normal)
        sentencepiece = bool(model.get("byte_fallback")) and all(map(_keeps_length, normal))
        self._bounded = bpe and not strips and ((byte_level and composing) or sentencepiece)
        self._cuttable = (
            ((bpe and byte_level and composing) or _word_by_word(model, normal, before))
            # An added token is found wherever it stands: no longer than what is tried.
            and all(len(str(entry.get("content"))) <= _AROUND for entry in added)
        )

    def at_least(self, chars: int) -> int:
        """Tokens that a text of so many characters has at least; 0 where nothing is known."""
        if not self._bounded or chars < PIECE_CHARS:
            return 0
        if self._most is None:
            names = self._vocabulary()
            whole = all(name in names for name in self._bytes_named())
            self._most = max(map(len, names)) * (_COMPOSED if self._composes else 1) if whole else 0
        return -(-chars // self._most) if self._most else 0

    def pieces(self, text: str, ids: Callable[[str], list[int]]) -> list[str]:
        """The text in pieces whose ids, one after the other, are the whole's."""
        cuts = [0]
        while self._cuttable and len(text) - cuts[-1] > PIECE_CHARS:
            cut = next(self._cuts(text, cuts[-1] + PIECE_CHARS, ids), None)
            if cut is None:
                break
            cuts.append(cut)
        return [text[a:b] for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]

    def _cuts(self, text: str, begin: int, ids: Callable[[str], list[int]]) -> Iterator[int]:
        for match in islice(_CUT.finditer(text, begin), _TRIES):
            cut = match.start()
            left, right = text[max(0, cut - _AROUND) : cut], text[cut : cut + _AROUND]
            if ids(left + right) == ids(left) + ids(right):
                yield cut


_LOCAL = {
    "BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Replace",
    "StripAccents",
}  # fmt: skip
_AT_SPACES = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit"}
_WITHIN_WORDS = {"Digits", "Metaspace", "Punctuation"}


def _word_by_word(
    model: dict[str, Any], normal: list[dict[str, Any]], before: list[dict[str, Any]]
) -> bool:
    """Whether the model sees one word between spaces at a time."""
    kinds = {str(step.get("type")) for step in before}
    spaces = [
        step for step in before if step.get("type") == "Metaspace" and step.get("split", True)
    ]
    divided = bool(kinds & _AT_SPACES) if model.get("type") == "WordPiece" else bool(spaces)
    return (
        model.get("type") in ("WordPiece", "Unigram")
        and divided
        and kinds <= _AT_SPACES | _WITHIN_WORDS
        and all(step.get("type") in _LOCAL for step in normal)
    )


def _is_byte_level_step(step: dict[str, Any]) -> bool:
    kind = step.get("type")
    if kind == "ByteLevel":
        return not step.get("add_prefix_space")
    pattern = (step.get("pattern") or {}).get("Regex", "")
    return kind == "Digits" or (
        kind == "Split" and step.get("behavior") == "Isolated" and "(?<" not in pattern
    )


def _keeps_length(step: dict[str, Any]) -> bool:
    """Whether a normalizer leaves at least as many characters, as SentencePiece's do."""
    kind, pattern = step.get("type"), (step.get("pattern") or {}).get("String")
    return kind == "Prepend" or (kind == "Replace" and pattern == " " and bool(step.get("content")))


def _byte_level_names() -> list[str]:
    """The 256 characters by which byte-level vocabularies name bytes."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*map(chr, shown), *(chr(0x100 + i) for i in range(256 - len(shown)))]


def _fallback_names() -> list[str]:
    return [f"<0x{byte:02X}>" for byte in range(256)]
