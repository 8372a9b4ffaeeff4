"""The tokenizer of a model: text to ids, ids to text, and what counts as a marker.

A *marker* is an added token that means something to the model beside its letters: every token
flagged special (``<|eot|>``), and the unflagged ones that look like tags (``<think>``,
``<tool_call>``, DeepSeek's ``<｜User｜>``). ``encode(text)`` never yields a marker's id, whatever
the text says. This is a security property, so it does not rest on options of the tokenizers
library (``encode_special_tokens`` leaves unflagged tokens like ``<think>`` active, and a unigram
or word-level model finds ``</s>`` in its own vocabulary). Instead a second instance of the
tokenizer is built in which every marker carries a random name, in the added tokens, in the model's
vocabulary and its merges: plain text cannot spell it, and the ids stay the same. Text that should
contain some markers is encoded by writing their random names, so that everything else (merges
across borders, prefix spaces, stripping) happens exactly as in the original tokenizer.

The unknown-token id is the exception: text that the vocabulary lacks yields it.
"""

from __future__ import annotations

import json
import operator
import os
import re
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from musespark.errors import CorruptFile, InvalidRequest
from musespark.text.building import build, rename_in_model
from musespark.text.decoding import StreamDecoder, compile_decoder, push_all
from musespark.text.long_texts import LongTexts
from musespark.text.markers import MarkerFinder
from musespark.untrusted import (
    MAX_TOKENIZER_BYTES,
    parse_json_object,
    read_json_object,
    read_small_file,
)
from musespark.vocab import OUTLINE, Outline, rest_of

# From this many characters on a text is encoded in a batch of one, which lets other Python threads
# run meanwhile: tokenizers holds the interpreter lock while it encodes a single text.
_LONG_TEXT = 8192
_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# Used only where no configuration file names the token.
_USUAL_BOS = ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>")
_USUAL_EOS = ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>")


# A tag: an opening angle bracket with a name, or a name in square brackets.
_TAG = re.compile(r"</?[^\W\d]|<[|｜]|\[/?[A-Z][A-Z_ ]*\]$")


def is_marker(content: str, special: bool) -> bool:
    """Whether an added token is a marker: flagged special, or it looks like a tag.

    Other unflagged tokens are ordinary text and stay active when encoding: GPT-NeoX adds runs of
    spaces, DeepSeek single letters, Spark Nano pieces of JSON.
    """
    return special or _TAG.match(content.strip()) is not None


class Tokenizer:
    """Text to ids and back; see the module's docstring for what ``encode`` guarantees.

    Attributes: ``vocab_size`` (one more than the largest id), ``bos_id`` and ``bos_token``
    (None where the model has none), ``eos_ids`` (every id that ends a text or turn according to
    the configuration) and ``eos_token``, ``special_tokens`` (role -> text, for chat templates),
    ``markers`` (text -> id).

    Made by :meth:`load` and :meth:`from_json`; ``data`` is consumed, and ``text`` may be the JSON
    that it was parsed from. With ``tokens`` (:meth:`from_outline`) ``data`` lacks the vocabulary,
    and ``text`` is read and built when a text has to be encoded.
    """

    def __init__(
        self,
        data: dict[str, Any],
        *,
        config: dict[str, Any] | None = None,
        generation_config: dict[str, Any] | None = None,
        source: str = "tokenizer.json",
        text: str | None = None,
        tokens: list[str | None] | None = None,
    ):
        if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
            raise CorruptFile(f"{source}: field 'model' is missing")
        config, generation_config = config or {}, generation_config or {}
        if data["model"].get("dropout"):  # a training aid; encoding must have one result
            data["model"]["dropout"] = text = None
        self.source = source
        self._text = text or json.dumps(data, ensure_ascii=False)
        self._building = threading.Lock()
        self._built_full = None if tokens else build(self._text, source)
        self._built_plain: tokenizers.Tokenizer | None = None
        self._tokens = tokens or []
        self._ids = {token: i for i, token in enumerate(self._tokens) if token is not None}
        self._rule = compile_decoder(data.get("decoder"))
        try:
            self._collect_markers(data, config)
            self._long = LongTexts(data, self._vocabulary)
            self._name_markers(data)
            if tokens:
                self._rest = data
            else:
                self._built_plain, self._text = self._build_plain(data), ""
        except (TypeError, KeyError, ValueError, AttributeError, IndexError) as error:
            if isinstance(error, CorruptFile):
                raise
            raise CorruptFile(
                f"{source}: inconsistent added tokens or vocabulary: {error!r}"
            ) from error
        self._pieces: dict[int, bytes] = {}
        self._control: dict[frozenset[str], frozenset[str]] = {}
        self._name_ends(data, config, generation_config)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """From a model folder or a tokenizer.json; tokenizer_config.json, special_tokens_map.json
        and generation_config.json beside it are read where present.

        Raises CorruptFile for a missing, broken or oversized file.
        """
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise CorruptFile(f"{file}: no such file; a tokenizer.json is needed")
        beside = {}
        for name in ("special_tokens_map", "tokenizer_config", "generation_config"):
            other = file.parent / f"{name}.json"
            beside[name] = read_json_object(other) if other.is_file() else {}
        return cls.from_json(
            read_small_file(file, MAX_TOKENIZER_BYTES),
            config={**beside["special_tokens_map"], **beside["tokenizer_config"]},
            generation_config=beside["generation_config"],
            source=str(file),
        )

    @classmethod
    def from_json(
        cls,
        text: str | bytes,
        *,
        config: dict[str, Any] | None = None,
        generation_config: dict[str, Any] | None = None,
        source: str = "tokenizer.json",
    ) -> Tokenizer:
        """From the contents of a tokenizer.json (as a packed model file carries it)."""
        data = parse_json_object(text, source, MAX_TOKENIZER_BYTES)
        return cls(
            data,
            config=config,
            generation_config=generation_config,
            source=source,
            text=text if isinstance(text, str) else text.decode("utf-8-sig"),
        )

    @classmethod
    def from_outline(
        cls,
        outline: Outline,
        text: bytes,
        *,
        config: dict[str, Any] | None = None,
        generation_config: dict[str, Any] | None = None,
        source: str = "tokenizer.json",
    ) -> Tokenizer:
        """From what a packed model file carries: the contents of a tokenizer.json and its outline.

        The former is read when it is needed; CorruptFile then where it is not what the outline is
        of, which a packer never writes.
        """
        return cls(
            outline.rest,
            config=config,
            generation_config=generation_config,
            source=source,
            text=text.decode("utf-8-sig"),
            tokens=outline.tokens,
        )

    # ---- construction -------------------------------------------------------------------------

    @property
    def _full(self) -> tokenizers.Tokenizer:
        """The instance in which markers are themselves."""
        with self._building:
            if self._built_full is None:
                self._built_full = build(self._text, self.source)
            return self._built_full

    @property
    def _plain(self) -> tokenizers.Tokenizer:
        """The instance in which no text spells a marker."""
        with self._building:
            if self._built_plain is None:
                data = parse_json_object(self._text, self.source, MAX_TOKENIZER_BYTES)
                if not isinstance(data.get("model"), dict) or rest_of(data) != self._rest:
                    raise CorruptFile(f"{self.source}: {OUTLINE} is not its outline")
                self._built_plain = self._build_plain(data)
            return self._built_plain

    def _vocabulary(self) -> dict[str, int]:
        return self._ids or self._full.get_vocab()

    def _collect_markers(self, data: dict[str, Any], config: dict[str, Any]) -> None:
        flagged: set[str] = set()
        for role in _ROLES:
            flagged.add(token_text(config.get(f"{role}_token")))
        extra = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
        flagged.update(
            token_text(t) for t in (extra.values() if isinstance(extra, dict) else extra)
        )
        for entry in (config.get("added_tokens_decoder") or {}).values():
            if entry.get("special"):
                flagged.add(token_text(entry))
        self.markers: dict[str, int] = {}
        added, special = set(), set()
        for entry in data.get("added_tokens") or []:
            content, token_id = str(entry["content"]), int(entry["id"])
            if self.find(content) != token_id:
                raise CorruptFile(
                    f"{self.source}: added token {content!r} has id {token_id}, "
                    f"the tokenizer gives it {self.find(content)}"
                )
            added.add(token_id)
            is_special = bool(entry.get("special")) or content in flagged
            if is_special:
                special.add(token_id)
            if is_marker(content, is_special):
                self.markers[content] = token_id
        self._added, self._special = frozenset(added), frozenset(special)
        vocab = self._tokens or data["model"].get("vocab")
        ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
        self.vocab_size = 1 + max([max(ids, default=-1), *added])
        if not self.vocab_size:
            raise CorruptFile(f"{self.source}: the vocabulary is empty")

    def _name_markers(self, data: dict[str, Any]) -> None:
        """Random names for the markers, for the instance in which no text spells one."""
        # The random part cannot be guessed, and a private-use first character that no other added
        # token contains keeps a neighbouring added token from swallowing the start of a name.
        used = {c for entry in data.get("added_tokens") or [] for c in entry["content"]}
        first = next(c for c in map(chr, range(0xF0000, 0xFFFFD)) if c not in used)
        self._names = {
            content: first + "".join(chr(97 + b % 26) for b in os.urandom(32))
            for content in self.markers
        }
        unknown = data["model"].get("unk_token")
        unknown_id = data["model"].get("unk_id")
        if unknown is None and isinstance(unknown_id, int):
            vocab = data["model"].get("vocab")
            unknown = self._tokens[unknown_id] if self._tokens else vocab[unknown_id][0]
        # Markers whose id plain text must not yield: all but the unknown token.
        self._forbidden = frozenset(i for c, i in self.markers.items() if c != unknown)
        self._finder = MarkerFinder(self.markers)

    def _build_plain(self, data: dict[str, Any]) -> tokenizers.Tokenizer:
        """Consumes ``data``."""
        names_by_id = {self.markers[content]: name for content, name in self._names.items()}
        for entry in data.get("added_tokens") or []:
            entry["content"] = self._names.get(entry["content"], entry["content"])
        rename_in_model(data["model"], names_by_id)
        text = json.dumps(data, ensure_ascii=False)
        data["model"].clear()  # the vocabulary: before the library builds its own
        return build(text, self.source)

    def _name_ends(self, data: dict, config: dict, generation: dict) -> None:
        self.special_tokens = {
            f"{role}_token": token_text(config[f"{role}_token"])
            for role in _ROLES
            if config.get(f"{role}_token") is not None
        }
        known = self.markers
        if "bos_token" not in self.special_tokens and "bos_token" not in config:
            first = _template_start(data.get("post_processor"))
            candidates = [first] if first else [t for t in _USUAL_BOS if t in known]
            if candidates:
                self.special_tokens["bos_token"] = candidates[0]
        if "eos_token" not in self.special_tokens and "eos_token" not in config:
            usual = [t for t in _USUAL_EOS if t in known]
            if usual:
                self.special_tokens["eos_token"] = usual[0]
        self.bos_token = self.special_tokens.get("bos_token")
        self.eos_token = self.special_tokens.get("eos_token")
        self.bos_id = self.find(self.bos_token) if self.bos_token else None
        ends = generation.get("eos_token_id")
        ends = list(ends) if isinstance(ends, list) else ([] if ends is None else [ends])
        own = self.find(self.eos_token) if self.eos_token else None
        if own is not None and own not in ends:
            ends.append(own)
        for end in ends:
            if not isinstance(end, int) or isinstance(end, bool) or end < 0:
                raise CorruptFile(f"{self.source}: generation_config eos_token_id {end!r}")
        self.eos_ids: tuple[int, ...] = tuple(ends)

    # ---- ids ----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.vocab_size

    def __repr__(self) -> str:
        return f"Tokenizer({self.source!r}, vocab_size={self.vocab_size})"

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids flagged special, left out by ``decode(..., skip_special=True)``."""
        return self._special

    def find(self, token: str) -> int | None:
        """The id of a token given in the vocabulary's own spelling, or None."""
        return self._ids.get(token) if self._ids else self._full.token_to_id(token)

    def id(self, token: str) -> int:
        """As :meth:`find`; raises InvalidRequest for a token that is not in the vocabulary."""
        found = self.find(token)
        if found is None:
            raise InvalidRequest(f"token {token!r} is not in the vocabulary of {self.source}")
        return found

    def token(self, token_id: int) -> str:
        """The vocabulary's spelling of an id; raises InvalidRequest for an id it does not have."""
        try:
            found = self._spelling(token_id) if token_id >= 0 else None
        except (IndexError, OverflowError, TypeError):
            found = None
        if found is None:
            raise InvalidRequest(
                f"token id {token_id!r} is not in the vocabulary "
                f"(vocabulary size {self.vocab_size})"
            )
        return found

    def _spelling(self, token_id: int) -> str | None:
        return self._tokens[token_id] if self._tokens else self._full.id_to_token(token_id)

    def token_bytes(self, token_id: int) -> bytes | None:
        """The bytes an id adds in the middle of a text; None where the tokenizer decodes only whole
        texts. For tokens inside a character these are not valid UTF-8 by themselves."""
        if self._rule is None:
            self.token(token_id)
            return None
        return self.stream(continuing=True)._piece(token_id, last=False)

    def all_bytes(self) -> list[bytes] | None:
        """:meth:`token_bytes` of all ids, those without text included; None where they depend."""
        if self._rule is None or self._rule.holds_last:
            return None
        ids, piece = range(self.vocab_size), self.stream(continuing=True)._compute
        return [b"" if self._spelling(i) is None else piece(i, False, False) for i in ids]

    # ---- text to ids --------------------------------------------------------------------------

    def encode(
        self, text: str, *, add_special: bool = False, parse_special: bool = False
    ) -> list[int]:
        """Text -> ids. ``parse_special``: markers spelled in the text become their ids; without it
        they are ordinary text. ``add_special``: what the model's file adds around a text (BOS)."""
        if not isinstance(text, str):
            raise InvalidRequest(f"text must be a str, not {type(text).__name__}")
        if not parse_special:
            return self.encode_pieces([(text, False)], add_special=add_special)
        return list(_encode(self._full, text, add_special).ids)

    def encode_pieces(
        self, pieces: Iterable[tuple[str, bool]], *, add_special: bool = False
    ) -> list[int]:
        """One text in pieces ``(text, is_marker)`` -> ids, encoded as a whole.

        A marker piece must be exactly the text of a marker (InvalidRequest otherwise); all other
        pieces are ordinary text, whatever they spell. Equal to ``encode(joined,
        parse_special=True)`` where the other pieces spell no marker.
        """
        parts: list[str] = []
        expected = 0
        for text, marker in pieces:
            if not marker:
                parts.append(text)
                continue
            if text not in self._names:
                raise InvalidRequest(f"piece {text!r} is not a marker of {self.source}")
            expected += self.markers[text] in self._forbidden
            parts.append(self._names[text])
        encoding = self._encode_plain("".join(parts))
        found = sum(map(self._forbidden.__contains__, encoding.ids))
        if found != expected:  # unreachable unless a tokenizer rewrites names; never let it pass
            raise InvalidRequest(
                f"{self.source}: {expected} markers were written but {found} encoded; "
                "this tokenizer cannot keep markers and text apart"
            )
        if add_special:
            encoding = self._plain.post_process(encoding, None, True)
        return list(encoding.ids)

    def _encode_plain(self, text: str) -> tokenizers.Encoding:
        if len(text) < _LONG_TEXT:
            return _encode(self._plain, text, False)
        try:
            pieces = self._long.pieces(text, lambda part: _encode(self._plain, part, False).ids)
            encoded = [_encode(self._plain, piece, False) for piece in pieces]
        except InvalidRequest:
            return _encode(self._plain, text, False)  # its message counts from the beginning
        return encoded[0] if len(encoded) == 1 else tokenizers.Encoding.merge(encoded)

    def at_least(self, chars: int) -> int:
        """Tokens that a text of so many characters has at least, 0 where nothing is known: what
        is far too long need not be encoded to be refused."""
        return self._long.at_least(chars)

    def split_markers(self, text: str) -> list[tuple[str, bool]]:
        """A trusted text as the pieces of :meth:`encode_pieces`: leftmost, longest markers."""
        return self._finder.split(text)

    def control_markers(self, template_literals: frozenset[str]) -> frozenset[str]:
        """The markers that steer a chat: all but unflagged tags like Gemma's ``<table>`` that the
        template never writes; those are words of the vocabulary, in whoever's text."""
        found = self._control.get(template_literals)
        if found is None:
            found = frozenset(
                marker
                for marker, token_id in self.markers.items()
                if token_id in self._special
                or "|" in marker
                or "｜" in marker
                or any(marker.strip() in literal for literal in template_literals)
            )
            self._control = {template_literals: found}  # one template at a time
        return found

    # ---- ids to text --------------------------------------------------------------------------

    def decode(
        self, ids: Sequence[int], *, skip_special: bool = False, continuing: bool = False
    ) -> str:
        """Ids -> text; what :meth:`stream` gives for the same ids, concatenated.

        Equals ``tokenizers.Tokenizer.decode`` with three intended differences: a broken run of
        byte-fallback tokens loses only its broken bytes (U+FFFD for each maximal ill-formed part,
        as everywhere in Unicode), added tokens of byte-level tokenizers decode to their own text,
        and ids outside the vocabulary raise InvalidRequest instead of vanishing.
        """
        try:
            ids = [operator.index(token_id) for token_id in ids]
        except TypeError:
            raise InvalidRequest(f"ids: got {ids!r:.60}, allowed is a list of ids") from None
        return push_all(self.stream(skip_special=skip_special, continuing=continuing), ids)

    def stream(self, *, skip_special: bool = False, continuing: bool = False) -> StreamDecoder:
        """A decoder for ids that come one at a time. ``continuing``: the ids continue a text, so
        that the space with which a SentencePiece text begins is a real one and kept."""

        def whole(ids: list[int]) -> str:
            return self._full.decode(ids, skip_special_tokens=False)

        return StreamDecoder(
            self.token,
            self._rule,
            whole,
            cache=self._pieces,
            added=self._added,
            skip=self._special if skip_special else frozenset(),
            continuing=continuing,
        )


def _encode(tokenizer: tokenizers.Tokenizer, text: str, add_special: bool) -> tokenizers.Encoding:
    try:
        if len(text) >= _LONG_TEXT:
            return tokenizer.encode_batch([text], add_special_tokens=add_special)[0]
        return tokenizer.encode(text, add_special_tokens=add_special)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises bare Exception, and Rust panics
        for index, char in enumerate(text):
            if "\ud800" <= char <= "\udfff":
                raise InvalidRequest(f"text has a lone surrogate at index {index}") from error
        raise InvalidRequest(f"the tokenizer cannot encode the text: {error}") from error


def token_text(token: Any) -> str:
    """The text of a token given as a string or as a serialized AddedToken."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _template_start(processor: Any) -> str | None:
    """The special token that the post-processor puts before a single text, if any."""
    if not isinstance(processor, dict):
        return None
    if processor.get("type") == "Sequence":
        found = [_template_start(p) for p in processor.get("processors") or []]
        return next((token for token in found if token), None)
    single = processor.get("single") if processor.get("type") == "TemplateProcessing" else None
    first = single[0] if isinstance(single, list) and single else None
    if isinstance(first, dict) and isinstance(first.get("SpecialToken"), dict):
        return str(first["SpecialToken"].get("id"))
    return None
