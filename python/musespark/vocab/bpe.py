"""Byte-pair vocabularies: byte-level with a pre-tokenizer (``gpt2``), and Gemma 4's on ``▁`` text.

The keys are ``tokenizer.ggml.merges`` (``"left right"``, best first) and ``tokenizer.ggml.pre``, a
name that llama.cpp's converter gives for the way the text is cut into words (pretokenizers.py).
"""

from __future__ import annotations

from typing import Any

from musespark.errors import CorruptFile, UnsupportedModel
from musespark.vocab.keys import MAX_MERGES, VocabularyKeys
from musespark.vocab.pretokenizers import PRE_TOKENIZERS, PreTokenizer
from musespark.vocab.spm import SPACE, merging_model, spaced_decoder
from musespark.vocab.vocabulary import (
    Vocabulary,
    around_text,
    read_vocabulary,
    tokenizer_json,
)

# Two in vocabularies in use, whose merges are one for each token or all that their ranks allow.
_MERGES_A_TOKEN = 64


def bpe_tokenizer(keys: VocabularyKeys) -> tuple[Vocabulary, dict[str, Any]]:
    """The vocabulary and tokenizer.json of a byte-level BPE file."""
    pre = pre_tokenizer_of(keys.text("tokenizer.ggml.pre"))
    vocabulary = read_vocabulary(keys, {})
    words = [
        {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
        for p in pre.patterns
    ]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    return vocabulary, tokenizer_json(
        vocabulary,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [*words, byte_level]},
        post_processor=_added(keys, vocabulary, bos=pre.add_bos, sep=pre.add_sep),
        decoder=byte_level,
        model=merging_model(
            vocabulary,
            read_merges(keys, vocabulary),
            fuse_unk=False,
            ignore_merges=pre.ignore_merges,
        ),
    )


def gemma4_tokenizer(keys: VocabularyKeys) -> tuple[Vocabulary, dict[str, Any]]:
    """The vocabulary and tokenizer.json of a Gemma 4 file: merges on ``▁`` text, byte fallback."""
    vocabulary = read_vocabulary(keys, {})
    unknown = vocabulary.roles.get("unk")
    return vocabulary, tokenizer_json(
        vocabulary,
        normalizer={"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        # llama.cpp: Gemma 4 begins with BOS whatever add_bos_token says
        post_processor=around_text(vocabulary, ["bos"] if "bos" in vocabulary.roles else [], []),
        decoder=spaced_decoder(strip=False),
        model=merging_model(
            vocabulary,
            read_merges(keys, vocabulary),
            unk_token=None if unknown is None else vocabulary.tokens[unknown],
            byte_fallback=True,
        ),
    )


def pre_tokenizer_of(name: str | None) -> PreTokenizer:
    """The pre-tokenizer called so; a file that names none was made before llama.cpp did (2024)."""
    found = PRE_TOKENIZERS.get("default" if name is None else name)
    if found is None:
        raise UnsupportedModel(
            f"tokenizer.ggml.pre: {name!r} is not known; known are {', '.join(PRE_TOKENIZERS)}"
        )
    return found


def read_merges(keys: VocabularyKeys, vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The merges as pairs; of equal ones the first counts. CorruptFile for parts or results that
    are no tokens."""
    limit = min(MAX_MERGES, _MERGES_A_TOKEN * len(vocabulary.tokens))
    lines = keys.strings("tokenizer.ggml.merges", limit)
    if lines is None:
        raise CorruptFile("tokenizer.ggml.merges: missing")
    ids = vocabulary.ids
    pairs = [tuple(line.split(" ", 1)) for line in lines]
    for i, pair in enumerate(pairs):
        left, right = pair if len(pair) == 2 else ("", "")
        if left not in ids or right not in ids or left + right not in ids:
            raise CorruptFile(
                f"tokenizer.ggml.merges[{i}]: {lines[i]!r:.60} is not two tokens that make a token"
            )
    return list(dict.fromkeys(pairs))


def _added(keys: VocabularyKeys, vocabulary: Vocabulary, *, bos: bool, sep: bool) -> dict | None:
    """What goes around a text: BOS, and SEP or EOS."""
    wanted = {"bos": bos, "eos": False, "sep": sep}
    for role in wanted:
        said = keys.flag(f"tokenizer.ggml.add_{role}_token")
        wanted[role] = wanted[role] if said is None else said
        if said and role not in vocabulary.roles:
            raise CorruptFile(f"tokenizer.ggml.add_{role}_token is true, but no id is given for it")
    have = [role for role, add in wanted.items() if add and role in vocabulary.roles]
    before = [role for role in have if role == "bos"]
    return around_text(vocabulary, before, [role for role in have if role != "bos"])
