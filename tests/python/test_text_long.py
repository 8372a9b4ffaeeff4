"""Long texts: refused unread where they cannot fit, and encoded in pieces with the same ids."""

from __future__ import annotations

import random

import pytest
import tokenizers

import musespark
from musespark.text import Tokenizer, long_texts
from musespark.text import tokenizer as tokenizer_module
from support import tokenizers_zoo

WORDS = ["the", "fox", "Straße", "日本語", "it's", "42", "3.14", "x+=1", "\n\n", "\t", "e\u0301",
         "🙂", "<|eot|>", "A", "HELLO", 'arguments": {"', 'type": "object', "2b"]  # fmt: skip


WORD_BY_WORD = ("unigram", "word_piece")


@pytest.fixture(scope="module")
def model():
    with musespark.load(context=512, threads=1) as loaded:
        yield loaded


def of(built: tokenizers.Tokenizer) -> Tokenizer:
    return Tokenizer.from_json(built.to_str())


def text(words: int, seed: int) -> str:
    chosen = random.Random(seed)
    return "".join(
        chosen.choice(WORDS) + " " * chosen.choice([1, 1, 1, 2, 3]) for _ in range(words)
    )


@pytest.mark.parametrize(
    "made", [None, "byte_level", "ignoring_merges", "merging_markers", *WORD_BY_WORD]
)
def test_pieces_give_the_ids_of_the_whole(model, monkeypatch, made) -> None:
    tokenizer = model.tokenizer if made is None else of(getattr(tokenizers_zoo, made)())
    for seed in range(8):
        given = text(4000, seed)
        whole = tokenizer._plain.encode(given, add_special_tokens=False).ids
        monkeypatch.setattr(long_texts, "PIECE_CHARS", 100 + 37 * seed)
        pieces = tokenizer._long.pieces(
            given, lambda part: tokenizer._plain.encode(part, add_special_tokens=False).ids
        )
        assert "".join(pieces) == given
        if made is None or made in WORD_BY_WORD:
            assert len(pieces) > 20
        assert tokenizer.encode(given) == whole


def test_a_tokenizer_whose_words_have_spaces_is_not_cut(monkeypatch) -> None:
    """SentencePiece merges over spaces, and a Unigram without words weighs the whole text."""
    monkeypatch.setattr(long_texts, "PIECE_CHARS", 50)
    whole, bare, words = tokenizers_zoo.unigram(), tokenizers_zoo.unigram(), word_piece_of_texts()
    whole.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(split=False)
    bare.pre_tokenizer = tokenizers.pre_tokenizers.Split("b", "isolated")
    for made in (tokenizers_zoo.sentencepiece_bpe(), whole, bare, words):
        tokenizer = of(made)
        assert tokenizer._long.pieces("ab cd " * 100, list) == ["ab cd " * 100]


def word_piece_of_texts() -> tokenizers.Tokenizer:
    """A WordPiece that nothing divides into words."""
    built = tokenizers_zoo.word_piece()
    built.pre_tokenizer = tokenizers.pre_tokenizers.Digits()
    return built


@pytest.mark.parametrize("made", WORD_BY_WORD)
def test_ctrl_c_takes_effect_between_words(monkeypatch, made) -> None:
    tokenizer, seen = of(getattr(tokenizers_zoo, made)()), []
    real = tokenizer_module._encode

    def interrupted(inner, given, add_special):
        seen.append(len(given))
        if len(seen) == 8:
            raise KeyboardInterrupt
        return real(inner, given, add_special)

    monkeypatch.setattr(tokenizer_module, "_encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tokenizer.encode("word " * 200_000)
    assert max(seen) < 2 * long_texts.PIECE_CHARS


def test_a_cut_that_changes_ids_is_not_made(monkeypatch) -> None:
    """An added token over the only place for a cut."""
    data = tokenizers_zoo.byte_level()
    data.add_tokens([tokenizers.AddedToken("ab cd", normalized=False)])
    tokenizer = of(data)
    monkeypatch.setattr(long_texts, "PIECE_CHARS", 50)
    given = "-" * 60 + "ab cd" + "-" * 60
    assert tokenizer.encode(given) == tokenizer._plain.encode(given, add_special_tokens=False).ids
    assert tokenizer._long.pieces(given, tokenizer.encode) == [given]


def test_ctrl_c_takes_effect_between_pieces(model, monkeypatch) -> None:
    """It was deaf for half a minute: one call of the library cannot be interrupted."""
    seen: list[int] = []
    real = tokenizer_module._encode

    def interrupted(tokenizer, given, add_special):
        seen.append(len(given))
        if len(seen) == 8:
            raise KeyboardInterrupt
        return real(tokenizer, given, add_special)

    monkeypatch.setattr(tokenizer_module, "_encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.tokenizer.encode("word " * 200_000)
    assert max(seen) < 2 * long_texts.PIECE_CHARS


def test_what_cannot_fit_is_refused_unread(model, monkeypatch) -> None:
    """20 MB were encoded for 54 seconds only to be told that they overflow."""

    def unreachable(tokenizer, text, *rest):
        assert len(text) < 1000, "the text was encoded"  # headers and markers may be
        return encode(tokenizer, text, *rest)

    encode = tokenizer_module._encode

    monkeypatch.setattr(tokenizer_module, "_encode", unreachable)
    long = "word " * 1_000_000
    for ask in (model.generate, model.score, model.logits, model.chat):
        with pytest.raises(musespark.ContextOverflow, match="characters, at least") as caught:
            ask(long)
        assert caught.value.limit == 512 < caught.value.needed


@pytest.mark.parametrize("made", ["byte_level", "sentencepiece_bpe", "unigram", "word_piece"])
def test_the_bound_is_one(monkeypatch, made) -> None:
    monkeypatch.setattr(long_texts, "PIECE_CHARS", 10)
    tokenizer = of(getattr(tokenizers_zoo, made)())
    for seed in range(4):
        given = text(200, seed)
        assert tokenizer.at_least(len(given)) <= len(tokenizer.encode(given))
    assert (tokenizer.at_least(1000) > 0) == (made in ("byte_level", "sentencepiece_bpe"))
