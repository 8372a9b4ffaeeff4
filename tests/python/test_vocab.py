"""Tokenizers from GGUF vocabularies: the ids of llama.cpp, and nothing but errors for the rest."""

from __future__ import annotations

import contextlib
import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from golden.pretokenizer_cases import OWN_WORDS, TEXTS
from musespark.assets import template_of, tokenizer_of
from musespark.errors import CorruptFile, Error, UnsupportedModel
from musespark.text import Tokenizer
from musespark.vocab import PRE_TOKENIZERS, TOKENIZER_MODELS, tokenizer_assets
from musespark.weights.gguf import GgufFile
from support import gguf_vocabularies as zoo

GOLDEN = json.loads(
    (Path(__file__).parent.parent / "golden" / "pretokenizers.json").read_text(encoding="utf-8")
)["words"]
_G = "tokenizer.ggml."
_SEPARATOR = "\n__ggml_vocab_test__\n"


def built(metadata: dict[str, Any]) -> Tokenizer:
    return tokenizer_of(tokenizer_assets(metadata))


# ---- real vocabularies -------------------------------------------------------------------------


def read_cases(folder: Path, name: str) -> list[tuple[str, list[int]]]:
    texts = (folder / f"{name}.inp").read_bytes().decode().split(_SEPARATOR)
    lines = (folder / f"{name}.out").read_text().split("\n")
    assert len(texts) == len(lines) > 40
    return [(t, [int(i) for i in line.split()]) for t, line in zip(texts, lines, strict=True)]


@cache
def real(path: Path) -> Tokenizer:
    file = GgufFile(path)
    try:
        return built(file.metadata)
    finally:
        file.close()


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "phi-3"])
def test_real_vocabularies_give_the_ids_of_llama_cpp(name: str, shared_data: Path) -> None:
    path = shared_data / "tokenizers" / f"ggml-vocab-{name}.gguf"
    for text, ids in read_cases(path.parent, path.name):
        assert real(path).encode(text) == ids, text
        assert real(path).decode(ids) == text


def test_every_vocabulary_at_hand_is_tested(shared_data: Path) -> None:
    found = {p.name for p in (shared_data / "tokenizers").glob("*.inp")}
    tested = {"gpt-2", "llama-spm", "phi-3", "llama-bpe"}
    assert found == {f"ggml-vocab-{name}.gguf.inp" for name in tested}


def _consistent(cases: list[tuple[list[str], list[int]]], known: dict[str, tuple]) -> bool:
    """Whether one assignment word -> ids explains all cases: each word always the same ids, no two
    words equal ones, at most one id a byte. Depth first over the words of the first case."""
    if not cases:
        return True
    (words, ids), rest = cases[0], cases[1:]
    if not words or not ids:
        return not words and not ids and _consistent(rest, known)
    word = words[0]
    if word in known:
        n = len(known[word])
        return tuple(ids[:n]) == known[word] and _consistent([(words[1:], ids[n:]), *rest], known)
    taken = set(known.values())
    for n in range(1, min(len(word.encode()), len(ids) - len(words) + 1) + 1):
        guess = tuple(ids[:n])
        if guess not in taken and _consistent(
            [(words[1:], ids[n:]), *rest], {**known, word: guess}
        ):
            return True
    return False


@pytest.mark.parametrize(("pre", "expected"), [("llama-bpe", True), ("qwen2", False)])
def test_llama3_ids_fit_the_words(pre: str, expected: bool, shared_data: Path) -> None:
    """Of Llama 3 only the expected ids are at hand, not the vocabulary: the words of our
    pre-tokenizer must explain them, and those of another model's must not."""
    cases = read_cases(shared_data / "tokenizers", "ggml-vocab-llama-bpe.gguf")
    worded = sorted(((words_of(pre, t), ids) for t, ids in cases), key=lambda c: len(c[0]))
    assert _consistent(worded, {}) is expected


# ---- pre-tokenizers ----------------------------------------------------------------------------


@cache
def splitter(pre: str) -> pre_tokenizers.PreTokenizer:
    data = json.loads(tokenizer_assets(zoo.bpe(pre))["tokenizer.json"])
    data["pre_tokenizer"]["pretokenizers"].pop()  # ByteLevel respells, it does not split
    return tokenizers.Tokenizer.from_str(json.dumps(data)).pre_tokenizer


def words_of(pre: str, text: str) -> list[str]:
    return [word for word, _ in splitter(pre).pre_tokenize_str(text)]


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_words_are_those_of_llama_cpp(pre: str) -> None:
    own = OWN_WORDS.get(pre, {})
    compared = 0
    for text, lengths in zip(TEXTS, GOLDEN[pre], strict=True):
        words = words_of(pre, text)
        assert "".join(words) == text
        if text in own:
            assert words == own[text]
        else:
            assert [len(word.encode()) for word in words] == lengths, text
            compared += 1
    assert compared >= 30


def test_the_golden_words_tell_pre_tokenizers_apart() -> None:
    kinds = {json.dumps(words) for words in GOLDEN.values()}
    assert len(kinds) >= 18


def test_unknown_pre_tokenizer_is_named_with_the_known_ones() -> None:
    with pytest.raises(UnsupportedModel, match=r"'gpt-9'.*known are default.*llama-bpe.*qwen2"):
        built(zoo.bpe("gpt-9"))
    assert built(zoo.bpe(None)).encode("hello!")


# ---- kinds -------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*"abcdehlortw ", "hello", " world", "é", "🙂", "▁"])).map("".join))
def test_spm_merges_by_score(text: str) -> None:
    metadata = zoo.spm()
    ours = built(metadata)
    scores = dict(
        zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"], strict=1)
    )
    for i, kind in enumerate(metadata["tokenizer.ggml.token_type"]):
        if kind not in (zoo.NORMAL, zoo.UNUSED):
            del scores[metadata["tokenizer.ggml.tokens"][i]]
    if "  " in text:  # a user-defined token, taken out first
        return
    ids = ours.encode(text)
    assert [ours.token(i) for i in ids] == zoo.spm_pieces(text, scores)
    assert ours.decode(ids) == text.replace("▁", " ")


def test_spm_keys() -> None:
    ours = built(zoo.spm())
    hello = [ours.id("▁hell"), ours.id("o")]
    assert ours.encode("hello", add_special=True) == [1, *hello]
    assert ours.encode("a  b") == [ours.id(t) for t in ("▁", "a", "  ", "▁", "b")]
    assert ours.encode("hello<|end|>hello", parse_special=True) == [
        *hello,
        ours.id("<|end|>"),
        *hello,
    ]
    assert ours.id("<|end|>") not in ours.encode("hello<|end|>hello")
    assert (ours.bos_token, ours.eos_token, ours.eos_ids) == (
        "<s>",
        "</s>",
        (2, ours.id("<|end|>")),
    )
    bare = built(
        zoo.spm(
            **{
                "tokenizer.ggml.add_space_prefix": np.bool_(False),
                "tokenizer.ggml.add_bos_token": False,
                "tokenizer.ggml.add_eos_token": True,
            }
        )
    )
    assert [bare.token(i) for i in bare.encode("hello", add_special=True)] == ["hell", "o", "</s>"]
    assert bare.decode(bare.encode(" hello")) == " hello"


def test_no_text_merges_into_a_byte_token() -> None:
    """Pieces that would make ``<0x41>``: typed, it stays six characters."""
    metadata = zoo.spm(**{_G + "add_space_prefix": False})
    pieces = ["<", "0", "x", "4", "1", ">", "<0", "<0x", "<0x4", "<0x41"]
    metadata[_G + "tokens"] += pieces
    metadata[_G + "token_type"] = [*metadata[_G + "token_type"], *[zoo.NORMAL] * len(pieces)]
    metadata[_G + "scores"] = [*metadata[_G + "scores"], *[-9.0] * len(pieces)]
    ours = built(metadata)
    ids = ours.encode("<0x41>")
    assert [ours.token(i) for i in ids] == ["<0x41", ">"]
    assert ours.decode(ids) == "<0x41>"


def test_phi3_markers_take_the_space_after_them() -> None:
    ours = built(zoo.spm(**{"general.architecture": "phi3"}))
    end = ours.id("<|end|>")
    assert ours.encode("<|end|>\nhello", parse_special=True) == [end, *ours.encode("hello")]


def test_bpe_keys() -> None:
    ours = built(zoo.bpe("llama-bpe"))
    bos, eot = ours.id("<|begin_of_text|>"), ours.id("<|eot_id|>")
    assert ours.encode("hello", add_special=True) == [bos, ours.id("hello")]
    assert ours.encode("123456") == [ours.id("123"), *map(ours.id, "456")]
    assert set(ours.eos_ids) == {ours.eos_ids[0], eot, ours.id("<|eom_id|>")}
    assert ours.eos_ids[0] == ours.id("<|end_of_text|>")
    assert ours.decode(ours.encode("naïve 🙂\n")) == "naïve 🙂\n"
    assert ours.markers["<think>"] not in ours.special_ids
    assert eot not in ours.encode("<|eot_id|>")
    # a whole word that is a token is taken whole only where the model does so
    longer = [*zoo.bpe("llama-bpe")["tokenizer.ggml.tokens"][:-1], "Ġcat"]
    for pre, whole in (("llama-bpe", True), ("gpt-2", False)):
        other = built(zoo.bpe(pre, **{"tokenizer.ggml.tokens": longer}))
        assert (other.encode(" cat") == [other.id("Ġcat")]) is whole
    said = built(zoo.bpe("llama-bpe", **{"tokenizer.ggml.add_bos_token": False}))
    assert said.encode("hello", add_special=True) == said.encode("hello")


def test_gemma4() -> None:
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{b:02X}>" for b in range(256))]
    types = [3, 3, 3, 2] + [zoo.BYTE] * 256 + [1] * 6
    metadata = {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": [*tokens, "▁", "a", "b", "\n", "▁a", "\n\n"],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": ["▁ a", "\n \n"],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.add_bos_token": False,
    }
    ours = built(metadata)
    ids = ours.encode("b a\n\né", add_special=True)
    assert [ours.token(i) for i in ids] == ["<bos>", "b", "▁a", "\n\n", "<0xC3>", "<0xA9>"]
    assert ours.decode(ids[1:]) == "b a\n\né"


def test_bert() -> None:
    ours = built(zoo.bert())
    ids = ours.encode("Héllo, UNABLE worlds 你!", add_special=True)
    words = ["[CLS]", "hello", ",", "un", "##able", "world", "##s", "你", "!", "[SEP]"]
    assert [ours.token(i) for i in ids] == words
    assert ours.encode("zebra hello") == [ours.id("[UNK]"), ours.id("hello")]
    assert ours.find("[unused0]") == 5
    cased = built(zoo.bert(**{"tokenizer.ggml.normalizer.lowercase": False}))
    assert cased.encode("Hello") == [cased.id("[UNK]")]


def test_kinds_that_are_not_known_are_named() -> None:
    for kind in ("rwkv", "t5", "plamo2", ""):
        with pytest.raises(UnsupportedModel, match=f"{kind!r}.*llama, gpt2, gemma4, bert"):
            tokenizer_assets({"tokenizer.ggml.model": kind})
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.ggml\.model: missing"):
        tokenizer_assets({})
    assert TOKENIZER_MODELS == ("llama", "gpt2", "gemma4", "bert")


# ---- configuration -----------------------------------------------------------------------------


def test_generation_defaults() -> None:
    files = tokenizer_assets(
        zoo.bpe(
            **{
                "general.sampling.temp": 0.6,
                "general.sampling.top_k": np.int32(20),
                "general.sampling.top_p": 0.95,
                "general.sampling.penalty_repeat": 1.1,
                "tokenizer.ggml.eot_token_id": 5,
            }
        )
    )
    defaults = json.loads(files["generation_config.json"])
    assert defaults["eos_token_id"][1] == 5
    assert {k: defaults[k] for k in defaults if k != "eos_token_id"} == {
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "repetition_penalty": 1.1,
    }
    greedy = tokenizer_assets(zoo.bpe(**{"general.sampling.temp": 0.0}))
    assert json.loads(greedy["generation_config.json"])["do_sample"] is False


def test_harmony_end_is_no_end_of_turn() -> None:
    metadata = zoo.bpe()
    control = ["<|return|>", "<|call|>", "<|end|>"]
    metadata["tokenizer.ggml.tokens"] += control
    metadata["tokenizer.ggml.token_type"] += [zoo.CONTROL] * 3
    ours = built(metadata)
    assert {ours.id("<|return|>"), ours.id("<|call|>")} <= set(ours.eos_ids)
    assert ours.id("<|end|>") not in ours.eos_ids


def test_chat_templates() -> None:
    assert template_of(tokenizer_assets(zoo.bpe())) is None
    one = {"tokenizer.chat_template": "D{{ messages[0].content }}"}
    template = template_of(tokenizer_assets(zoo.bpe(**one)))
    assert template is not None and template.render("x") == "Dx"
    named = {
        **one,
        "tokenizer.chat_templates": ["tool_use"],
        "tokenizer.chat_template.tool_use": "T{{ tools|length }}",
    }
    template = template_of(tokenizer_assets(zoo.bpe(**named)))
    assert template is not None
    assert template.render("x") == "Dx"
    assert template.render("x", tools=[{"name": "f"}]) == "T1"
    del named["tokenizer.chat_template.tool_use"]
    with pytest.raises(CorruptFile, match=r"tokenizer\.chat_templates names 'tool_use'"):
        tokenizer_assets(zoo.bpe(**named))


# ---- what nobody vouches for -------------------------------------------------------------------


def _nested_pieces(letters: int, longest: int) -> dict[str, Any]:
    """SentencePiece pieces x, xx, xxx … of each letter: every cut of every one is a merge."""
    runs = [chr(0x4E00 + i) * n for i in range(letters) for n in range(1, longest + 1)]
    return {
        **zoo.spm(),
        _G + "tokens": ["<unk>", "<s>", "</s>", *runs],
        _G + "token_type": np.array([2, 3, 3] + [1] * len(runs), np.int32),
    }


HOSTILE: dict[str, tuple[Any, str]] = {
    "tokens missing": (zoo.bpe(**{_G + "tokens": None}), "tokens: missing"),
    "tokens empty": (zoo.bpe(**{_G + "tokens": []}), "tokens: missing or empty"),
    "tokens a string": (zoo.bpe(**{_G + "tokens": "abc"}), "tokens: expected an array"),
    "tokens of numbers": (
        zoo.bpe(**{_G + "tokens": np.arange(9), _G + "token_type": None}),
        r"tokens\[0\]: expected a str",
    ),
    "too many tokens": (zoo.bpe(**{_G + "tokens": np.zeros(3 << 20, np.int8)}), "tokens: 3145728"),
    "duplicate": (
        zoo.bpe(**{_G + "tokens": ["a", "b", "a"], _G + "token_type": None}),
        r"tokens\[0\]: 'a'.*again as 2",
    ),
    "long token": (
        zoo.bpe(**{_G + "tokens": ["a" * 5000], _G + "token_type": None}),
        r"tokens\[0\]: 5000 characters",
    ),
    "invalid UTF-8": (
        zoo.bpe(**{_G + "tokens": ["a", b"\xff"], _G + "token_type": None}),
        r"tokens\[1\]: not valid UTF-8",
    ),
    "surrogate": (
        zoo.bpe(**{_G + "tokens": ["a", "\ud800"], _G + "token_type": None}),
        r"tokens\[1\]: not valid UTF-8",
    ),
    "type count": (zoo.bpe(**{_G + "token_type": [1]}), "token_type: 1 entries, but"),
    "type value": (zoo.spm(**{_G + "token_type": [9] * 283}), r"token_type\[0\]: 9"),
    "types of floats": (zoo.spm(**{_G + "token_type": [1.5] * 283}), "token_type: expected"),
    "types of text": (zoo.spm(**{_G + "token_type": ["x"] * 283}), "token_type: expected"),
    "types 2-d": (zoo.spm(**{_G + "token_type": np.ones((283, 1))}), "token_type: expected an arr"),
    "bos out of range": (zoo.bpe(**{_G + "bos_token_id": 10**6}), "bos_token_id: token id 1000000"),
    "eos negative": (zoo.bpe(**{_G + "eos_token_id": -1}), "eos_token_id: token id -1"),
    "unk a string": (zoo.spm(**{_G + "unknown_token_id": "0"}), "unknown_token_id: expected"),
    "bos a flag": (zoo.spm(**{_G + "bos_token_id": True}), "bos_token_id: expected"),
    "add_bos a number": (zoo.spm(**{_G + "add_bos_token": 1}), "add_bos_token: expected a bool"),
    "scores missing": (zoo.spm(**{_G + "scores": None}), "scores: missing"),
    "scores short": (zoo.spm(**{_G + "scores": [0.5] * 10}), "scores: 10 entries, but"),
    "scores NaN": (zoo.spm(**{_G + "scores": [float("nan")] * 283}), r"scores\[0\]: not a number"),
    "scores ragged": (zoo.spm(**{_G + "scores": [[1], 2] + [0] * 281}), "scores: expected"),
    "merges missing": (zoo.bpe(**{_G + "merges": None}), "merges: missing"),
    "merge alone": (zoo.bpe(**{_G + "merges": ["ab"]}), r"merges\[0\]: 'ab' is not two"),
    "merge of strangers": (zoo.bpe(**{_G + "merges": ["a b"]}), r"merges\[0\]: 'a b' is not two"),
    "merge empty": (zoo.bpe(**{_G + "merges": ["h e", ""]}), r"merges\[1\]: '' is not two"),
    "merges numbers": (zoo.bpe(**{_G + "merges": [1, 2]}), r"merges\[0\]: expected a string"),
    "model a number": (zoo.bpe(**{_G + "model": 5}), "model: expected a string"),
    "types before tokens": (
        zoo.bpe(**{_G + "tokens": [b"\xff"] * 5000}),
        "token_type: .* entries, but tokenizer.ggml.tokens has 5000",
    ),
    "scores before tokens": (
        zoo.spm(**{_G + "tokens": [b"\xff"] * 5000}),
        "scores: .* entries, but tokenizer.ggml.tokens has 5000",
    ),
    "pre a list": (zoo.bpe(**{_G + "pre": ["gpt-2"]}), "pre: expected a string, got an array of 1"),
    "eos wanted": (
        zoo.bpe(**{_G + "add_eos_token": True, _G + "eos_token_id": None}),
        "add_eos_token is true, but",
    ),
    "template bytes": (zoo.bpe(**{"tokenizer.chat_template": b"\xff"}), "chat_template: not valid"),
    "temperature NaN": (zoo.bpe(**{"general.sampling.temp": float("nan")}), "sampling.temp: nan"),
    "top_k negative": (zoo.bpe(**{"general.sampling.top_k": -1}), "sampling.top_k: -1"),
    "bert spelled twice": (
        zoo.bert(**{_G + "tokens": [*zoo.bert()[_G + "tokens"][:-1], "##able"][:15]}),
        None,
    ),
    "bert without CLS": (
        zoo.bert(**{_G + "bos_token_id": None}),
        "bos_token_id: missing",
    ),
    "quadratic pieces": (
        {
            **zoo.spm(),
            _G + "tokens": [f"{i:04d}" + "a" * 4000 for i in range(283)],
        },
        "too long to merge",
    ),
    "pieces inside pieces": (
        {**_nested_pieces(30, 60), _G + "scores": np.zeros(3 + 30 * 60, np.float32)},
        "merges have more than 8 times",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_metadata_is_refused_by_name(name: str) -> None:
    metadata, message = HOSTILE[name]
    metadata = {key: value for key, value in metadata.items() if value is not None}
    begin = time.perf_counter()
    if message is None:
        tokenizer_of(tokenizer_assets(metadata))
    else:
        with pytest.raises(CorruptFile, match=message):
            tokenizer_assets(metadata)
    assert time.perf_counter() - begin < 2.0


def test_pieces_inside_pieces_are_merged_where_they_are_few() -> None:
    metadata = {**_nested_pieces(200, 10), _G + "scores": np.zeros(3 + 2000, np.float32)}
    assert built(metadata).vocab_size == 2003


def test_a_tokenizer_has_a_limit_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("musespark.vocab.assets.MAX_TOKENIZER_BYTES", 1000)
    with pytest.raises(CorruptFile, match=r"bytes as tokenizer\.json, more than the limit of 1000"):
        tokenizer_assets(zoo.bpe())


def test_empty_tokens_keep_their_ids() -> None:
    metadata = zoo.bpe()
    metadata[_G + "tokens"][-1] = ""
    ours = built(metadata)
    assert ours.token(ours.vocab_size - 1) == f"[EMPTY_{ours.vocab_size - 1}]"


_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.lists(st.one_of(st.text(max_size=4), st.integers(), st.binary(max_size=3)), max_size=6),
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_value_loads_or_raises_an_error_of_ours(data: st.DataObject) -> None:
    metadata = data.draw(st.sampled_from([zoo.spm, zoo.bpe, zoo.bert]))()
    extra = [_G + "add_space_prefix", _G + "add_bos_token", "tokenizer.chat_template"]
    extra += ["tokenizer.chat_templates", "general.sampling.temp", _G + "eot_token_id"]
    for key in data.draw(st.lists(st.sampled_from([*metadata, *extra]), min_size=1, max_size=3)):
        metadata[key] = data.draw(_values)
    with contextlib.suppress(Error):
        tokenizer_of(tokenizer_assets(metadata)).encode("hello <s>")


def test_a_large_vocabulary() -> None:
    """150,000 tokens and as many merges; about 0.5 s on an idle machine."""
    tokens = [*zoo.bpe()[_G + "tokens"]]
    letters = [t for t in tokens if len(t) == 1]
    seen, merges = set(tokens), []
    for left in letters:
        for right in letters:
            if left + right not in seen:
                merges.append(f"{left} {right}")
    pairs = [m.replace(" ", "") for m in merges]
    triples = [p + c for p in pairs[:350] for c in letters]
    merges += [f"{t[:-1]} {t[-1]}" for t in triples]
    metadata = zoo.bpe(**{_G + "tokens": list(dict.fromkeys([*tokens, *pairs, *triples]))})
    metadata[_G + "merges"] = merges
    del metadata[_G + "token_type"]
    files = tokenizer_assets(metadata)
    assert len(metadata[_G + "tokens"]) > 150_000
    assert Tokenizer.from_json(files["tokenizer.json"]).encode("hello")
