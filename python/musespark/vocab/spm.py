"""SentencePiece vocabularies (``tokenizer.ggml.model`` = ``llama``): Llama 1 and 2, Mistral, Gemma
to the third, Phi-3.

A text is encoded as llama.cpp does it (``llm_tokenizer_spm``): spaces become ``▁``, with one put
before the text; starting from characters, the neighbouring pair whose concatenation is the piece of
the highest score is merged, the leftmost of equals, until none is left; characters that are no
piece become bytes ``<0x..>``. As ranked merges this is: a merge for every way to cut a piece in two
pieces, ordered by the piece's score. What a rank cannot say is "leftmost first" between different
pieces of one score; there the lower id goes first.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import numpy as np

from musespark.errors import CorruptFile, UnsupportedModel
from musespark.vocab.keys import VocabularyKeys
from musespark.vocab.vocabulary import (
    BYTE,
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
    around_text,
    count_tokens,
    read_vocabulary,
    tokenizer_json,
)

SPACE = "▁"
_DEFAULTS = {"bos": 1, "eos": 2, "unk": 0}
# For each character of a vocabulary: to cut Llama's pieces everywhere copies 6.3, and its merges
# have 2.0. Short pieces one inside the other could give a thousand times as many.
_MOST_CUT, _MOST_MERGED = 64, 8
_FEW_CHARS = 4096  # a vocabulary of fewer may have what is allowed to these


def spm_tokenizer(keys: VocabularyKeys) -> tuple[Vocabulary, dict[str, Any]]:
    """The vocabulary and tokenizer.json of a SentencePiece file."""
    scores = _scores(keys)
    vocabulary = read_vocabulary(keys, _DEFAULTS)
    if keys.flag("tokenizer.ggml.remove_extra_whitespaces"):
        raise UnsupportedModel(
            "tokenizer.ggml.remove_extra_whitespaces is true, which is not supported for "
            "SentencePiece vocabularies with merges"
        )
    prefix = keys.flag("tokenizer.ggml.add_space_prefix") is not False
    roles = vocabulary.roles
    before = ["bos"] if keys.flag("tokenizer.ggml.add_bos_token") is not False else []
    after = ["eos"] if keys.flag("tokenizer.ggml.add_eos_token") else []
    for role in (*before, *after):
        if role not in roles:
            raise CorruptFile(f"tokenizer.ggml.{role}_token_id: missing, but it is to be added")
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    steps = [{"type": "Prepend", "prepend": SPACE}, replace] if prefix else [replace]
    unknown = vocabulary.tokens[roles["unk"]] if "unk" in roles else None
    return vocabulary, tokenizer_json(
        vocabulary,
        normalizer={"type": "Sequence", "normalizers": steps},
        post_processor=around_text(vocabulary, before, after),
        decoder=spaced_decoder(strip=prefix),
        model=merging_model(
            vocabulary, merges_by_score(vocabulary, scores), unk_token=unknown, byte_fallback=True
        ),
    )


def _scores(keys: VocabularyKeys) -> np.ndarray:
    scores = keys.numbers("tokenizer.ggml.scores", "float", count_tokens(keys))
    if scores is None:
        raise CorruptFile("tokenizer.ggml.scores: missing")
    if np.isnan(scores).any():
        at = int(np.argmax(np.isnan(scores)))
        raise CorruptFile(f"tokenizer.ggml.scores[{at}]: not a number")
    return scores


def merging_model(
    vocabulary: Vocabulary, merges: list[tuple[str, str]], **more: Any
) -> dict[str, Any]:
    """tokenizer.json's BPE model."""
    plain = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": False,
        "ignore_merges": False,
    }
    return {**plain, **more, "vocab": vocabulary.ids, "merges": _written(merges)}


def _written(merges: list[tuple[str, str]]) -> list[str] | list[tuple[str, str]]:
    """Merges as ``"left right"``, which loads twice as fast, where no token has a space; in that
    form tokenizers takes a line that begins with ``#version`` for a comment."""
    lines = [f"{left} {right}" for left, right in merges]
    text = "\n" + "\n".join(lines)
    return merges if text.count(" ") != len(lines) or "\n#version" in text else lines


def spaced_decoder(*, strip: bool) -> dict[str, Any]:
    """``▁`` to spaces, byte tokens to bytes; ``strip``: without the space put before the text."""
    chain: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if strip:
        chain.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": chain}


def merges_by_score(vocabulary: Vocabulary, scores: np.ndarray) -> list[tuple[str, str]]:
    """Every cut of every piece in two pieces, best piece first.

    Control, unknown, user-defined and byte tokens are no pieces: no text merges into them.
    CorruptFile where cuts or merges are many times what a vocabulary of that size has.
    """
    apart = {vocabulary.tokens[i] for i in vocabulary.of_type(UNKNOWN, CONTROL, USER_DEFINED, BYTE)}
    tokens, pieces = vocabulary.tokens, vocabulary.ids.keys() - apart
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces))
    chars = max(_FEW_CHARS, int(lengths.sum()))
    if int((lengths * lengths).sum()) > _MOST_CUT * chars:
        raise CorruptFile(
            f"tokenizer.ggml.tokens: pieces of up to {lengths.max()} characters, too long to merge"
        )
    merges, merged = [], 0
    for i in np.argsort(-scores, kind="stable").tolist():
        piece = tokens[i]
        if piece not in pieces:
            continue
        before = len(merges)
        for cut, left in enumerate(accumulate(piece[:-1]), 1):
            if left in pieces and piece[cut:] in pieces:
                merges.append((left, piece[cut:]))
        merged += len(piece) * (len(merges) - before)
        if merged > _MOST_MERGED * chars:
            raise CorruptFile(
                f"tokenizer.ggml.tokens: the pieces' merges have more than {_MOST_MERGED} times "
                f"the {chars} characters that are allowed for"
            )
    return merges
