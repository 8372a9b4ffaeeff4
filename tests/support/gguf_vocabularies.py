"""Small GGUF vocabularies as metadata, and SentencePiece encoding written to be read."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from musespark.text.decoding import byte_alphabet

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)


def spm(**more: Any) -> dict[str, Any]:
    """Llama's kind: bytes, letters, pieces with scores, a user-defined run and a control token."""
    pieces = ["▁", *"abcdehlortw", "he", "ll", "hell", "▁hell", "o▁", "▁wor", "ld", "▁w", "or"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces]
    tokens += ["<|end|>", "  ", "[PAD9]"]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(pieces)
    scores = [0.0] * 259 + [-1000.0] * 12 + [-float(i) for i in range(1, len(pieces) - 11)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([*types, CONTROL, USER, UNUSED], np.int32),
        "tokenizer.ggml.scores": np.array([*scores, 0.0, 0.0, 0.0], np.float32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **more,
    }


def bpe(pre: str | None = "gpt-2", **more: Any) -> dict[str, Any]:
    """Byte-level: all bytes, a few merges, Llama 3's control tokens and a user-defined tag."""
    merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "1 2", "12 3", "c a", "ca t"]
    tokens = [*byte_alphabet(), *(m.replace(" ", "") for m in merges)]
    control = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"]
    types = [NORMAL] * len(tokens) + [CONTROL] * len(control) + [USER, UNUSED]
    tokens += [*control, "<think>", "[PAD0]"]
    found = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": tokens.index(control[0]),
        "tokenizer.ggml.eos_token_id": tokens.index(control[1]),
    }
    return found | ({} if pre is None else {"tokenizer.ggml.pre": pre}) | more


def bert(**more: Any) -> dict[str, Any]:
    """As llama.cpp's converter writes BERT: ``▁`` begins a word, ``##`` is gone."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]"]
    tokens += ["▁hello", "▁world", "▁un", "able", "▁a", "s", "▁,", "▁你", "▁!"]
    types = [CONTROL] * 5 + [NORMAL] * (len(tokens) - 5)
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.mask_token_id": 4,
        **more,
    }


def spm_pieces(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece merging by score: the best neighbouring pair, the leftmost of equals, again and
    again; what is no piece in the end becomes bytes."""
    symbols = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        pairs = [
            (scores[a + b], -i) for i, (a, b) in enumerate(pairwise(symbols)) if a + b in scores
        ]
        if not pairs:
            break
        i = -max(pairs)[1]
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    return [
        token
        for s in symbols
        for token in ([s] if s in scores else [f"<0x{b:02X}>" for b in s.encode()])
    ]
