"""A tokenizer from the outline of its file: the same tokenizer, built when a text needs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import musespark
from musespark.assets import tokenizer_of
from musespark.errors import CorruptFile, InvalidRequest
from musespark.text import Tokenizer
from musespark.text import tokenizer as tokenizer_module
from musespark.vocab import OUTLINE, make_outline, read_outline
from musespark.weights import loading
from support.tokenizers_zoo import ZOO

NANO = Path(__file__).parents[2] / "python" / "musespark" / "nano"
KINDS = [*sorted(ZOO), "nano"]
TEXTS = ["", "hello the  world\n\né你🙂", "<s>a</s><|eot|> <unk>[CLS]<think>", "x" * 300]


def file_of(kind: str) -> bytes:
    if kind == "nano":
        return (NANO / "tokenizer.json").read_bytes()
    return ZOO[kind]().to_str().encode()


def both(kind: str) -> tuple[Tokenizer, Tokenizer]:
    """Of the whole file, and of its outline."""
    text = file_of(kind)
    outline = make_outline(text)
    assert outline is not None
    return Tokenizer.from_json(text), Tokenizer.from_outline(read_outline(outline), text)


@pytest.mark.parametrize("kind", KINDS)
def test_an_outline_gives_the_same_tokenizer(kind: str) -> None:
    whole, late = both(kind)
    for name in ("markers", "vocab_size", "bos_id", "eos_ids", "special_tokens", "special_ids"):
        assert getattr(late, name) == getattr(whole, name), name
    for token_id in range(-1, whole.vocab_size + 1):
        try:
            token = whole.token(token_id)
        except InvalidRequest:
            with pytest.raises(InvalidRequest):
                late.token(token_id)
            continue
        assert late.token(token_id) == token
        assert late.find(token) == whole.find(token)
        assert late.token_bytes(token_id) == whole.token_bytes(token_id)
    assert late.find("no such token") is None
    for text in TEXTS:
        for options in ({}, {"add_special": True}, {"parse_special": True}):
            ids = whole.encode(text, **options)
            assert late.encode(text, **options) == ids
            assert late.decode(ids) == whole.decode(ids)
        assert late.split_markers(text) == whole.split_markers(text)
        pieces = whole.split_markers(text)
        assert late.encode_pieces(pieces) == whole.encode_pieces(pieces)


def test_nothing_is_built_before_a_text_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    text = file_of("nano")
    assets = {"tokenizer.json": text, OUTLINE: make_outline(text) or b""}
    built = []
    build = tokenizer_module.build
    monkeypatch.setattr(tokenizer_module, "build", lambda *a: built.append(a) or build(*a))
    tokenizer = tokenizer_of(assets)
    assert tokenizer.decode([70, 71, 72]) and tokenizer.eos_ids and tokenizer.markers
    assert not built
    tokenizer.encode("one text")
    tokenizer.encode("another")
    assert len(built) == 1
    tokenizer.encode("markers are parsed by the other instance", parse_special=True)
    assert len(built) == 2


def test_a_packed_model_carries_the_outline_of_a_large_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_OUTLINE_FROM", 0)
    musespark.convert(NANO, tmp_path / "nano.safetensors", quantize="q8")
    options = {"max_new_tokens": 8, "temperature": 0}
    with (
        musespark.load(tmp_path / "nano.safetensors", threads=1) as model,
        musespark.load() as nano,
    ):
        assert model.tokenizer._built_full is model.tokenizer._built_plain is None
        assert nano.tokenizer._built_plain is not None
        assert model.chat("2 + 3", **options).text == nano.chat("2 + 3", **options).text


def test_an_outline_of_another_file_is_refused() -> None:
    """Its markers would not be those of the file that encodes."""
    text = file_of("nano")
    outline = json.loads(make_outline(text) or b"")
    added = outline["rest"]["added_tokens"]
    marker = added.pop(next(i for i, entry in enumerate(added) if entry["special"]))
    tokenizer = Tokenizer.from_outline(read_outline(json.dumps(outline).encode()), text)
    assert marker["content"] not in tokenizer.markers
    with pytest.raises(CorruptFile, match=OUTLINE):
        tokenizer.encode("text")


def test_broken_outlines() -> None:
    good = json.loads(make_outline(file_of("nano")) or b"")
    for change in (
        {"rest": []},
        {"rest": {}},
        {"tokens": "abc"},
        {"tokens": [1]},
        {"tokens": None},
    ):
        with pytest.raises(CorruptFile, match=OUTLINE):
            read_outline(json.dumps(good | change).encode())
    for tokens in ([], good["tokens"][:3]):
        with pytest.raises(CorruptFile):
            changed = json.dumps(good | {"tokens": tokens}).encode()
            Tokenizer.from_outline(read_outline(changed), file_of("nano"))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b'{"version": "1.0"}',
        b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}',
        b'{"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 4000000}, "unk_token": "a"}}',
        b'{"model": {"type": "BPE", "dropout": 0.5, "vocab": {"a": 0}, "merges": []}}',
    ],
)
def test_no_outline_is_made_of_what_must_be_read_at_once(text: bytes) -> None:
    assert make_outline(text) is None
