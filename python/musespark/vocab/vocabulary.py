"""What every kind of GGUF vocabulary shares: tokens with their types, special ids, added tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from musespark.errors import CorruptFile
from musespark.vocab.keys import MAX_TOKENS, VocabularyKeys

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
# Keys of special ids; llama.cpp spells the separator's so.
_ROLE_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
}


@dataclass
class Vocabulary:
    """Tokens by id, their types (int64 [n]) and the ids of special roles (bos, eos, eot, …)."""

    tokens: list[str]
    types: np.ndarray
    roles: dict[str, int]
    ids: dict[str, int] = field(default_factory=dict)

    def of_type(self, *kinds: int) -> list[int]:
        """The ids of tokens of these types, ascending."""
        return np.flatnonzero(np.isin(self.types, kinds)).tolist()

    def added_tokens(self) -> list[dict[str, Any]]:
        """tokenizer.json's ``added_tokens``: those found in a text before anything else is done.

        Control and unknown tokens are special; user-defined ones are ordinary text of one piece.
        """
        kinds = self.types.tolist()
        return [
            {
                "id": i,
                "content": self.tokens[i],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": kinds[i] != USER_DEFINED,
            }
            for i in self.of_type(UNKNOWN, CONTROL, USER_DEFINED)
        ]


def count_tokens(keys: VocabularyKeys) -> int:
    """The size of a file's vocabulary, before any of it is decoded."""
    count = keys.length("tokenizer.ggml.tokens", MAX_TOKENS)
    if not count:
        raise CorruptFile("tokenizer.ggml.tokens: missing or empty")
    return count


def read_vocabulary(keys: VocabularyKeys, defaults: dict[str, int]) -> Vocabulary:
    """The vocabulary of a file. ``defaults``: ids of roles that the kind has where no key says so
    and such a token is there. Raises CorruptFile naming the field."""
    count = count_tokens(keys)
    types = keys.numbers("tokenizer.ggml.token_type", "int", count)
    tokens = keys.strings("tokenizer.ggml.tokens", MAX_TOKENS) or []
    if "" in tokens:  # as llama.cpp names them, so that ids stay distinct
        tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        at = next(i for i, token in enumerate(tokens) if ids[token] != i)
        raise CorruptFile(
            f"tokenizer.ggml.tokens[{at}]: {tokens[at]!r:.60} is there again as {ids[tokens[at]]}"
        )
    if types is None:
        types = np.full(count, NORMAL, np.int64)
    known = (types >= 0) & (types <= BYTE)  # 0 is "undefined"
    if not known.all():
        at = int(np.argmin(known))
        raise CorruptFile(f"tokenizer.ggml.token_type[{at}]: {types[at]}, allowed is 0 to {BYTE}")
    roles = {role: i for role, i in defaults.items() if i < len(tokens)}
    for role, key in _ROLE_KEYS.items():
        found = keys.token_id(key, len(tokens))
        if found is not None:
            roles[role] = found
    return Vocabulary(tokens, types, roles, ids)


def around_text(
    vocabulary: Vocabulary, before: list[str], after: list[str]
) -> dict[str, Any] | None:
    """The post-processor that puts the tokens of these roles around a text; None for no roles."""
    if not before and not after:
        return None

    def pieces(roles: list[str]) -> list[dict[str, Any]]:
        names = [vocabulary.tokens[vocabulary.roles[role]] for role in roles]
        return [{"SpecialToken": {"id": name, "type_id": 0}} for name in names]

    used = {vocabulary.tokens[i]: i for i in (vocabulary.roles[r] for r in (*before, *after))}
    single = [*pieces(before), {"Sequence": {"id": "A", "type_id": 0}}, *pieces(after)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}, *pieces(after)],
        "special_tokens": {
            name: {"id": name, "ids": [i], "tokens": [name]} for name, i in used.items()
        },
    }


def tokenizer_json(vocabulary: Vocabulary, **parts: Any) -> dict[str, Any]:
    """A tokenizer.json with these parts (normalizer, pre_tokenizer, model, decoder, …)."""
    empty = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder"))
    whole = {"version": "1.0", "truncation": None, "padding": None}
    return {**whole, "added_tokens": vocabulary.added_tokens(), **empty, **parts}
