"""Spark Nano's tokenizer: byte-level BPE with single digits, Muse markers and whole protocol
strings.

Layout of the ids (frozen; later versions of Nano keep it): 64 special markers, then the protocol
strings
(ordinary text that is one token each), then the 256 bytes, then the merges. Markers are special
tokens, so
text that a user types never becomes one when special tokens are encoded as text; the protocol
strings are
not special, so decoding gives their text back.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 2560
_NAMED = (
    "<|pad|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start|>",
    "<|message|>",
    "<|eom|>",
    "<|eot|>",
    "<|image_start|>",
    "<|patch|>",
    "<|image_end|>",
    "<|video|>",
    "<|vid_start|>",
    "<|vid_end|>",
    "<|vid_frame_separator|>",
)
SPECIAL = _NAMED + tuple(f"<|reserved_{i}|>" for i in range(64 - len(_NAMED)))
PAD, BOS, EOS, START, MESSAGE, EOM, EOT, IMAGE_START, PATCH, IMAGE_END, VIDEO = range(11)

#: Strings of the protocol that are one token each, and ordinary text to the decoder.
STRINGS = (
    "<atem:function_calls>\n",
    "</atem:function_calls>",
    '<atem:invoke name="',
    "</atem:invoke>\n",
    '<atem:parameter name="',
    "</atem:parameter>\n",
    '">',
    '">\n',
    '<tool_output name="',
    "\n</tool_output>",
    " to=self",
    " to=user",
    " to=",
    "Reasoning strength: ",
    '# Valid recipients: "self", ',
    '"user".',
    '.*", ',
    "# Tools\n",
    '{"name": "',
    '", "description": "',
    '", "parameters": {"type": "object", "properties": {"',
    '", "parameters": ',
    '": {"type": "',
    '"string"',
    '"integer"',
    '"number"',
    '"boolean"',
    '"}, "',
    '"}}, "required": ["',
    '"]}}',
    '": "',
    '": ',
    '", "',
    '{"',
    '"}',
    '"]',
    '["',
    '": ["',
    '": {"',
)

#: Operators stand alone, digits are single, a word takes the space before it.
_PATTERN = (
    r"'(?:s|t|re|ve|m|ll|d)\b| ?[+\-*/=<>×÷≠()]| ?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}+\-*/=<>×÷≠()]+|\s+(?!\S)|\s+"
)


def build(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """Train merges on ``texts`` and lay the vocabulary out; deterministic for the same texts."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = _pre_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        max_token_length=16,
    )
    raw.train_from_iterator(texts, trainer)
    vocab, merges = _parts(raw)
    ranked = [t for t in sorted(vocab, key=vocab.get) if t not in STRINGS]
    entries = [*SPECIAL, *STRINGS, *ranked][:vocab_size]
    if len(entries) < vocab_size:
        raise ValueError(
            f"vocab_size: asked for {vocab_size}, the texts give {len(entries)} entries; add texts"
        )
    kept = set(entries)
    merges = [(left, right) for left, right in merges if {left, right, left + right} <= kept]
    return assemble({t: i for i, t in enumerate(entries)}, merges)


def _parts(tokenizer: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [
        tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]
    ]


def assemble(
    vocab: dict[str, int], merges: list[tuple[str, str]], dropout: float | None = None
) -> Tokenizer:
    """The tokenizer of a vocabulary and its merges; ``dropout`` skips merges at random (training
    only)."""
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, dropout=dropout))
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in STRINGS])
    return tokenizer


def with_dropout(tokenizer: Tokenizer, dropout: float) -> Tokenizer:
    """A copy that drops merges at random, so that a model also meets words in smaller pieces."""
    return assemble(*_parts(tokenizer), dropout)


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def words_of(tokenizer: Tokenizer) -> list[str]:
    """The entries that are plain lower-case words (with or without their space): material for
    spelling drills."""
    words = (
        tokenizer.decode([i]).strip()
        for i in range(len(SPECIAL) + len(STRINGS), tokenizer.get_vocab_size())
    )
    return sorted({w for w in words if len(w) > 2 and w.isascii() and w.isalpha() and w.islower()})


def save(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write tokenizer.json and the tokenizer_config.json that transformers reads."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot|>",
        "pad_token": "<|pad|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "model_input_names": ["input_ids", "attention_mask"],
        "extra_special_tokens": [
            t for t in SPECIAL if t not in ("<|begin_of_text|>", "<|eot|>", "<|pad|>")
        ],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def load(folder: str | Path) -> Tokenizer:
    """The tokenizer in ``folder``."""
    return Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
