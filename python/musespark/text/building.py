"""Instances of the tokenizers library from tokenizer.json, and the same file with other names."""

from __future__ import annotations

import ctypes
from typing import Any

import tokenizers

from musespark.errors import CorruptFile

# From this many characters on, what building leaves behind in the heap is worth giving back: 80 MB
# with 128,000 tokens (glibc keeps small blocks for ever, unless it is told to).
_TRIM_FROM = 1 << 17


def build(text: str, source: str) -> tokenizers.Tokenizer:
    """A tokenizers instance from tokenizer.json; CorruptFile where the library refuses."""
    try:
        built = tokenizers.Tokenizer.from_str(text)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in the Rust library derives from BaseException
        raise CorruptFile(f"{source}: tokenizers cannot load it: {error}") from error
    # A file may ask for truncation or padding; a model's prompt is never silently cut or filled.
    built.no_truncation()
    built.no_padding()
    if len(text) >= _TRIM_FROM:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)
    return built


def rename_in_model(model: dict[str, Any], names: dict[int, str]) -> None:
    """Give the vocabulary entries with these ids other names, and drop merges that touch them."""
    vocab = model.get("vocab")
    if isinstance(vocab, list):  # Unigram: (piece, score), the id is the index
        for token_id, name in names.items():
            if token_id < len(vocab):
                vocab[token_id] = [name, vocab[token_id][1]]
        return
    if not isinstance(vocab, dict):
        return
    gone = {token: names[i] for token, i in vocab.items() if i in names}
    if not gone:
        return
    model["vocab"] = {gone.get(token, token): i for token, i in vocab.items()}
    if model.get("unk_token") in gone:
        model["unk_token"] = gone[model["unk_token"]]
    prefix = model.get("continuing_subword_prefix") or ""

    def survives(merge: Any) -> bool:
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        joined = left + (right.removeprefix(prefix) if prefix else right)
        return left not in gone and right not in gone and joined not in gone

    if model.get("merges"):
        model["merges"] = [merge for merge in model["merges"] if survives(merge)]
