"""Every JSON file a model carries goes through one reader with one set of limits."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from musespark import untrusted
from musespark.assets import json_asset, tokenizer_of
from musespark.errors import CorruptFile
from musespark.text import ChatTemplate, Tokenizer
from musespark.untrusted import parse_json, parse_json_object, read_json_object
from musespark.weights import open_model
from musespark.weights.safetensors import open_sharded

BAD = {
    "no JSON": (b'{"a": ', "not JSON at character"),
    "not UTF-8": (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
    "a key twice": (b'{"a": {"b": 1, "b": 2}}', "'b' stands twice"),
    "NaN": (b'{"a": NaN}', "NaN is not JSON"),
    "infinity": (b'{"a": -Infinity}', "-Infinity is not JSON"),
    "a float beyond range": (b'{"a": 1e999}', "1e999 is too large"),
    "a huge integer": (b'{"a": 1' + b"0" * 5000 + b"}", "a number of 5001 digits"),
    "deep": (b'{"a": ' + b"[" * 40 + b"]" * 40 + b"}", "nested more than 32"),
    "very deep": (b'{"a": ' + b"[" * 100_000, "nested more than 32"),
    "a list": (b"[1]", "object is needed, not list"),
}


def tokenizer_file(folder: Path, data: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(data)
    Tokenizer.load(folder)


def beside_the_tokenizer(folder: Path, data: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(b'{"model": {}}')
    (folder / "generation_config.json").write_bytes(data)
    Tokenizer.load(folder)


def template_config(folder: Path, data: bytes) -> None:
    (folder / "tokenizer_config.json").write_bytes(data)
    ChatTemplate(folder)


def template_file(folder: Path, data: bytes) -> None:
    (folder / "chat_template.json").write_bytes(data)
    ChatTemplate(folder)


def model_config(folder: Path, data: bytes) -> None:
    (folder / "config.json").write_bytes(data)
    open_model(folder)


def shard_index(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors.index.json").write_bytes(data)
    open_sharded(folder / "model.safetensors.index.json")


READERS = [
    tokenizer_file,
    beside_the_tokenizer,
    template_config,
    template_file,
    model_config,
    shard_index,
    lambda folder, data: Tokenizer.from_json(data),
    lambda folder, data: tokenizer_of({"tokenizer.json": data}),
    lambda folder, data: json_asset({"generation_config.json": data}, "generation_config.json"),
]


@pytest.mark.parametrize("kind", BAD)
def test_every_reader_refuses_it_in_the_same_words(tmp_path: Path, kind: str) -> None:
    data, message = BAD[kind]
    for number, read in enumerate(READERS):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(CorruptFile, match=message):
            read(folder, data)


def test_files_beyond_their_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"a": "x" * 100}))
    assert read_json_object(path, 200) == {"a": "x" * 100}
    with pytest.raises(CorruptFile, match="more than 50 bytes"):
        read_json_object(path, 50)
    with pytest.raises(CorruptFile, match="limit of 50"):
        parse_json(path.read_bytes(), "x", 50)


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tokenizer_config.json")
    with pytest.raises(CorruptFile, match="not a regular file"):
        read_json_object(tmp_path / "tokenizer_config.json")


def test_what_real_files_hold_is_read() -> None:
    limit = 1000000000000000019884624838656  # transformers' "no limit"
    text = json.dumps({"model_max_length": limit, "eps": 1e-6, "text": "ä\n", "none": None})
    for data in (text, text.encode()):
        assert parse_json_object(data, "x")["model_max_length"] == limit
    nested = json.dumps({"a": [[[[[1, 2.5, -3]]]]]}).encode()
    assert parse_json(nested, "x") == json.loads(nested)
    assert untrusted.MAX_TOKENIZER_BYTES > untrusted.MAX_CONFIG_BYTES
