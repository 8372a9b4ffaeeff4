"""Small tokenizers of every kind in use, with hostile vocabularies, for the text tests."""

from __future__ import annotations

import json
from collections.abc import Callable

import tokenizers
from tokenizers import (
    AddedToken,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

MARKERS = ["<s>", "</s>", "<|eot|>", "<|start|>"]
TAGS = ["<think>", "</think>", "<tool_call>"]
CORPUS = [
    "Once upon a time there was a little model. It said: hello, world! It's 12 + 30 = 42.",
    "Größe, naïve café, 你好世界, 🙂 emoji, <b>bold</b> [x] {y} a|b s start eot think tool_call",
    "the <|eot|> marker </s> and <think> are spelled here </think> <s> <|start|> <tool_call>",
]


def _markers(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    tokenizer.add_special_tokens([AddedToken(m, normalized=False, special=True) for m in MARKERS])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in TAGS])
    return tokenizer


def byte_level() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=MARKERS, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["  ", "    ", "\n\n"])  # ordinary runs, as GPT-NeoX has them
    return _markers(tokenizer)


def merging_markers() -> tokenizers.Tokenizer:
    """Byte-level BPE whose merges spell its own marker: plain text would give the marker's id."""
    data = json.loads(byte_level().to_str())
    vocab, merges, whole = data["model"]["vocab"], data["model"]["merges"], "<"
    for char in "|eot|>":
        merges.append([whole, char])
        whole += char
        vocab.setdefault(whole, max(max(vocab.values()), 500) + 1)
    data["pre_tokenizer"] = {**data["pre_tokenizer"], "use_regex": False}
    return tokenizers.Tokenizer.from_str(json.dumps(data))


def ignoring_merges() -> tokenizers.Tokenizer:
    """Llama-3's ``ignore_merges``: a whole word of the vocabulary is taken as it is."""
    data = json.loads(byte_level().to_str())
    data["model"]["ignore_merges"] = True
    data["pre_tokenizer"] = {**data["pre_tokenizer"], "use_regex": False}
    return tokenizers.Tokenizer.from_str(json.dumps(data))


def sentencepiece_bpe(scheme: str = "first") -> tokenizers.Tokenizer:
    """Llama's kind: ``▁`` for spaces, byte fallback, markers inside the vocabulary."""
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(CORPUS[:1], trainers.BpeTrainer(vocab_size=150))
    learned = json.loads(trained.to_str())["model"]
    vocab = {t: i for i, t in enumerate(["<unk>", "<s>", "</s>", *bytes_])}
    for token in learned["vocab"]:
        vocab.setdefault(token, len(vocab))
    merges = [tuple(merge) for merge in learned["merges"]]
    for left, right in (("<", "/"), ("</", "s"), ("</s", ">")):  # a hostile path to the marker
        for token in (left, right, left + right):
            vocab.setdefault(token, len(vocab))
        merges.append((left, right))
    model = models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = tokenizers.Tokenizer(model)
    chain = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if scheme == "legacy":
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence([*chain, decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["<unk>"])
    _markers(tokenizer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def unigram() -> tokenizers.Tokenizer:
    """T5's kind: the marker is the best piece of its own vocabulary (score 0)."""
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("<|eot|>", 0.0)]
    letters = sorted({c for text in CORPUS for c in text if c != " "} | {"▁"})
    pieces += [(c, -6.0) for c in letters] + [
        ("▁the", -3.0),
        ("▁a", -3.0),
        ("lo", -4.0),
        ("<s", -3.0),
    ]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>"])
    return _markers(tokenizer)


def word_piece() -> tokenizers.Tokenizer:
    letters = sorted({c for text in CORPUS for c in text.lower() if c != " "})
    vocab = [
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *letters,
        *("##" + c for c in letters),
        "hello",
        "##llo",
        "</s>",
    ]
    model = models.WordPiece({t: i for i, t in enumerate(dict.fromkeys(vocab))}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[UNK]", "[CLS]", "[SEP]"])
    _markers(tokenizer)
    pairs = [(t, tokenizer.token_to_id(t)) for t in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=pairs)
    return tokenizer


def word_level() -> tokenizers.Tokenizer:
    """No decoder at all, and the markers are words of the vocabulary."""
    words = ["[UNK]", *MARKERS, *TAGS, "hello", "world", "the", "a", "."]
    model = models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _markers(tokenizer)


def clip() -> tokenizers.Tokenizer:
    """CLIP's kind: ``</w>`` ends a word."""
    tokenizer = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<s>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>"], end_of_word_suffix="</w>")
    tokenizer.train_from_iterator(CORPUS, trainer)
    return _markers(tokenizer)


def stripping() -> tokenizers.Tokenizer:
    """Markers that swallow white space or match only whole words, and one matched after
    normalization."""
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_special_tokens(
        [
            AddedToken("<|l|>", lstrip=True, normalized=False, special=True),
            AddedToken("<|r|>", rstrip=True, normalized=False, special=True),
            AddedToken("<|n|>", normalized=True, special=True),
            AddedToken("<|w|>", single_word=True, normalized=False, special=True),
        ]
    )
    return tokenizer


def whole_text() -> tokenizers.Tokenizer:
    """A decoder that looks at the whole text: nothing can be streamed."""
    tokenizer = byte_level()
    tokenizer.decoder = decoders.CTC(pad_token="<s>", word_delimiter_token="|")
    return tokenizer


ZOO: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "byte_level": byte_level,
    "merging_markers": merging_markers,
    "ignoring_merges": ignoring_merges,
    "spm_first": sentencepiece_bpe,
    "spm_always": lambda: sentencepiece_bpe("always"),
    "spm_never": lambda: sentencepiece_bpe("never"),
    "spm_legacy": lambda: sentencepiece_bpe("legacy"),
    "unigram": unigram,
    "word_piece": word_piece,
    "word_level": word_level,
    "clip": clip,
    "stripping": stripping,
    "whole_text": whole_text,
}
