"""Token ids to text, one id at a time.

Hugging Face tokenizers turn a list of tokens into text with a chain of decoders (byte-level maps,
``▁`` for a space, byte-fallback tokens ``<0xE4>``, ``##`` continuations). Almost every chain in
use gives each token a fixed byte string that depends only on whether the token is the first (or
the last) of the text; :func:`compile_decoder` recognises those chains, so that a stream needs a
table look-up and an incremental UTF-8 decoder per token instead of decoding the text again.

Sources: the decoders of https://github.com/huggingface/tokenizers (``tokenizers/src/decoders``);
the byte map is ``bytes_to_unicode`` of GPT-2 (https://github.com/openai/gpt-2, ``encoder.py``).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_Utf8 = codecs.getincrementaldecoder("utf-8")


def byte_alphabet() -> dict[str, int]:
    """GPT-2's 256 printable characters -> the byte each stands for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(b): b for b in printable}
    others = [b for b in range(256) if b not in set(printable)]
    table.update({chr(256 + i): b for i, b in enumerate(others)})
    return table


_BYTES_OF = byte_alphabet()


def _byte_level(token: str, first: bool, last: bool) -> bytes:
    try:
        return bytes([_BYTES_OF[c] for c in token])
    except KeyError:  # a token outside the alphabet stands for itself, as in tokenizers
        return token.encode()


@dataclass(frozen=True)
class PieceRule:
    """How one token becomes bytes: ``piece(token, first, last)``.

    ``holds_last``: the last token of a text has another piece, so a stream stays one token behind.
    ``strip_start`` characters equal to ``strip_byte`` are removed from the start of the text.
    ``raw_added``: added tokens stand for their own text and do not go through ``piece``.
    """

    piece: Callable[[str, bool, bool], bytes]
    holds_last: bool = False
    strip_start: int = 0
    strip_byte: bytes = b" "
    raw_added: bool = False


@dataclass
class _Chain:
    """The per-token string steps of a decoder sequence, in order."""

    steps: list[Callable[[str, bool, bool], str]] = field(default_factory=list)
    bytes_fallback: bool = False
    holds_last: bool = False

    def piece(self, token: str, first: bool, last: bool) -> bytes:
        for step in self.steps:
            token = step(token, first, last)
        if self.bytes_fallback:
            match = _BYTE_TOKEN.fullmatch(token)
            if match:
                return bytes([int(match[1], 16)])
        return token.encode()


def _word_piece(prefix: str, cleanup: bool) -> Callable[[str, bool, bool], str]:
    def step(token: str, first: bool, last: bool) -> str:
        if not first:
            joined = token.startswith(prefix)
            token = token.removeprefix(prefix) if joined else " " + token
        if cleanup:
            for spaced in (" .", " ?", " !", " ,"):
                token = token.replace(spaced, spaced[1:])
            token = token.replace(" ' ", "'").replace(" n't", "n't").replace(" 'm", "'m")
            token = token.replace(" do not", " don't").replace(" 's", "'s")
            token = token.replace(" 've", "'ve").replace(" 're", "'re")
        return token

    return step


def _strip(content: str, start: int, stop: int) -> Callable[[str, bool, bool], str]:
    def step(token: str, first: bool, last: bool) -> str:
        for _ in range(start):
            token = token.removeprefix(content)
        for _ in range(stop):
            token = token.removesuffix(content)
        return token

    return step


def _metaspace(replacement: str, drop_first: bool) -> Callable[[str, bool, bool], str]:
    def step(token: str, first: bool, last: bool) -> str:
        return token.replace(replacement, "" if first and drop_first else " ")

    return step


def _token_step(spec: dict[str, Any]) -> Callable[[str, bool, bool], str] | None:
    """The string step of one decoder, or None where it is not token-local."""
    kind = spec.get("type")
    if kind == "Replace":
        pattern = spec.get("pattern", {}).get("String")
        if not pattern:
            return None
        content = spec["content"]
        return lambda token, first, last: token.replace(pattern, content)
    if kind == "Metaspace":
        scheme = spec.get("prepend_scheme", "always")
        return _metaspace(spec.get("replacement", "▁"), scheme != "never")
    if kind == "WordPiece":
        return _word_piece(spec.get("prefix", "##"), bool(spec.get("cleanup", True)))
    if kind == "BPEDecoder":
        suffix = spec.get("suffix", "</w>")
        return lambda token, first, last: token.replace(suffix, "" if last else " ")
    if kind == "Strip":
        return _strip(spec["content"], int(spec["start"]), int(spec["stop"]))
    return None


def compile_decoder(spec: dict[str, Any] | None) -> PieceRule | None:
    """The piece rule of tokenizer.json's ``decoder``; None where only a whole text decodes.

    None is returned for connectionist (CTC) decoders, regular-expression replacements and chains
    that edit the text after fusing it; a stream over those gives its text at the end.
    """
    if spec is None:  # tokenizers joins the tokens with spaces
        return PieceRule(lambda token, first, last: (token if first else " " + token).encode())
    parts = spec.get("decoders", []) if spec.get("type") == "Sequence" else [spec]
    if [part.get("type") for part in parts] == ["ByteLevel"]:
        return PieceRule(_byte_level, raw_added=True)
    chain = _Chain()
    strip_start, strip_byte, fused = 0, b" ", False
    for part in parts:
        kind = part.get("type")
        if kind == "Fuse":
            fused = True
        elif fused:
            content = str(part.get("content", "")).encode()
            if kind != "Strip" or part["stop"] or len(content) != 1 or strip_start:
                return None
            strip_start, strip_byte = int(part["start"]), content
        elif kind == "ByteFallback":
            chain.bytes_fallback = True
        else:
            step = _token_step(part)
            if step is None or chain.bytes_fallback:
                return None
            chain.steps.append(step)
            chain.holds_last |= kind == "BPEDecoder"
    return PieceRule(chain.piece, chain.holds_last, strip_start, strip_byte)


class StreamDecoder:
    """Turns ids into text as they come; made by :meth:`Tokenizer.stream`.

    ``push(id)`` returns the text that is certain after this id (often empty in the middle of a
    character), ``flush()`` what is left, a cut character as U+FFFD. The concatenation equals
    ``Tokenizer.decode`` of all ids. Constant time a token, but for the few exotic tokenizers that
    decode only whole texts: those answer at ``flush()``.
    """

    def __init__(
        self,
        token_of: Callable[[int], str],
        rule: PieceRule | None,
        whole: Callable[[list[int]], str],
        *,
        cache: dict[int, bytes],
        added: frozenset[int],
        skip: frozenset[int],
        continuing: bool,
    ):
        self._token_of, self._rule, self._whole = token_of, rule, whole
        self._cache, self._skip = cache, skip
        self._raw = added if rule and rule.raw_added else frozenset()
        self._utf8 = _Utf8("replace")
        self._first = not continuing
        self._strip = rule.strip_start if rule and not continuing else 0
        self._held: int | None = None
        self._ids: list[int] = []

    def push(self, token_id: int) -> str:
        """Text that became certain with this id. Raises InvalidRequest for an id out of range."""
        rule = self._rule
        if token_id in self._skip:
            return ""
        if rule is None:
            self._token_of(token_id)
            self._ids.append(token_id)
            return ""
        if rule.holds_last:
            self._token_of(token_id)
            token_id, self._held = self._held, token_id
            if token_id is None:
                return ""
        return self._utf8.decode(self._piece(token_id, last=False))

    def push_run(self, ids: Sequence[int]) -> str:
        """The text of :meth:`push` of each."""
        rule, cache = self._rule, self._cache
        plain = rule is not None and not (self._first or self._strip or rule.holds_last)
        if plain and self._skip.isdisjoint(ids):
            try:
                return self._utf8.decode(b"".join([cache[i] for i in ids]))
            except KeyError:  # one that no stream has met: below
                pass
        return "".join([self.push(i) for i in ids])

    def flush(self) -> str:
        """The rest of the text; the decoder then starts anew, as continuing the same text."""
        if self._rule is None:
            text, self._ids = (self._whole(self._ids) if self._ids else ""), []
            return text
        data = b""
        if self._held is not None:
            data, self._held = self._piece(self._held, last=True), None
        text = self._utf8.decode(data, final=True)
        self._utf8.reset()
        return text

    def _piece(self, token_id: int, *, last: bool) -> bytes:
        if self._first or last:
            piece = self._compute(token_id, self._first, last)
            self._first = False
        else:
            piece = self._cache.get(token_id)
            if piece is None:
                piece = self._cache[token_id] = self._compute(token_id, False, False)
        while self._strip and piece:
            if not piece.startswith(self._rule.strip_byte):
                self._strip = 0
                break
            piece, self._strip = piece[1:], self._strip - 1
        return piece

    def _compute(self, token_id: int, first: bool, last: bool) -> bytes:
        token = self._token_of(token_id)
        if token_id in self._raw:
            return token.encode()
        return self._rule.piece(token, first, last)


def push_all(decoder: StreamDecoder, ids: Iterable[int]) -> str:
    """The text of all ids through a fresh stream."""
    return decoder.push_run([*ids]) + decoder.flush()
