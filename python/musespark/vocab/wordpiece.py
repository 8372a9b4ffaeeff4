"""WordPiece vocabularies (``tokenizer.ggml.model`` = ``bert``): BERT, MiniLM, bge.

llama.cpp's converter writes ``▁word`` for a token that begins a word and drops the ``##`` of one
that continues it; control tokens stay (in older files: whatever stands in square brackets).
"""

from __future__ import annotations

from typing import Any

from musespark.errors import CorruptFile
from musespark.vocab.keys import VocabularyKeys
from musespark.vocab.spm import SPACE
from musespark.vocab.vocabulary import (
    CONTROL,
    UNKNOWN,
    Vocabulary,
    around_text,
    read_vocabulary,
    tokenizer_json,
)

_DEFAULTS = {"bos": 101, "unk": 100, "sep": 102, "pad": 0, "mask": 103}


def wordpiece_tokenizer(keys: VocabularyKeys) -> tuple[Vocabulary, dict[str, Any]]:
    """The vocabulary (tokens in BERT's own spelling) and tokenizer.json of a BERT file."""
    vocabulary = read_vocabulary(keys, _DEFAULTS)
    for role in ("bos", "unk", "sep"):
        if role not in vocabulary.roles:
            raise CorruptFile(f"tokenizer.ggml.{role}_token_id: missing")
        # They are special whatever type the file gives them.
        vocabulary.types[vocabulary.roles[role]] = CONTROL
    special = set(vocabulary.of_type(CONTROL, UNKNOWN))
    tokens = [_spelling(t, i in special) for i, t in enumerate(vocabulary.tokens)]
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        at = next(i for i, token in enumerate(tokens) if ids[token] != i)
        raise CorruptFile(f"tokenizer.ggml.tokens[{at}]: {tokens[at]!r:.60} is there twice")
    vocabulary.tokens, vocabulary.ids = tokens, ids
    lowercase = keys.flag("tokenizer.ggml.normalizer.lowercase") is not False
    accents = keys.flag("tokenizer.ggml.normalizer.strip_accents")
    after = ["sep"] if keys.flag("tokenizer.ggml.add_sep_token") is not False else []
    before = ["bos"] if keys.flag("tokenizer.ggml.add_bos_token") is not False else []
    return vocabulary, tokenizer_json(
        vocabulary,
        normalizer={
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": accents,  # null: as lowercase
            "lowercase": lowercase,
        },
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor=around_text(vocabulary, before, after),
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
        model={
            "type": "WordPiece",
            "unk_token": tokens[vocabulary.roles["unk"]],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": ids,
        },
    )


def _spelling(token: str, special: bool) -> str:
    if special or (len(token) > 2 and token[0] == "[" and token[-1] == "]"):
        return token
    return token[1:] if token.startswith(SPACE) and len(token) > 1 else "##" + token
