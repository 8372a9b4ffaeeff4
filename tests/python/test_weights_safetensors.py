"""The safetensors reader: valid files come through as they are, everything else is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from musespark.errors import CorruptFile, Error, UnsupportedModel
from musespark.untrusted import parse_json
from musespark.weights.safetensors import MAX_HEADER_BYTES, SafetensorsFile, open_sharded
from support.model_folder import safetensors_bytes

A = np.arange(12, dtype=np.float32).reshape(3, 4)
B = np.arange(6, dtype=np.uint16)


def write(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(encoded) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + encoded + data)
    return path


def entry(dtype: object, shape: object, begin: object, end: object) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_views_without_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors_bytes({"a": A, "b": B}, {"note": "x"}))
    file = SafetensorsFile(path)
    assert file.metadata == {"note": "x"} and set(file.entries) == {"a", "b"}
    assert file.entries["b"].dtype == "BF16" and file.entries["a"].shape == (3, 4)
    np.testing.assert_array_equal(file.array("a"), A)
    np.testing.assert_array_equal(file.array("b"), B)
    assert np.shares_memory(file.array("a"), file.mapped.bytes)
    assert not file.array("a").flags.writeable
    view = file.array("a")
    file.close()
    np.testing.assert_array_equal(view, A)  # a view keeps the map


def test_files_of_the_reference_library(tmp_path: Path) -> None:
    tensors = {
        "x": np.random.default_rng(1).standard_normal((5, 7)).astype(np.float32),
        "half": np.linspace(-1, 1, 9).astype(np.float16),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})
    file = SafetensorsFile(path)
    for name, value in tensors.items():
        np.testing.assert_array_equal(file.array(name), value)
        assert file.array(name).shape == value.shape


DATA = bytes(64)
HOSTILE = {
    "end past the file": ({"a": entry("F32", [32], 0, 128)}, "data_offsets end at byte"),
    "end before begin": ({"a": entry("F32", [2], 8, 0)}, "not a range"),
    "negative offset": ({"a": entry("F32", [2], -8, 0)}, "not a range"),
    "huge offset": ({"a": entry("F32", [2], 2**63, 2**63 + 8)}, "not a range"),
    "float offset": ({"a": entry("F32", [2], 0.0, 8)}, "not a range"),
    "true as offset": ({"a": entry("U8", [1], False, True)}, "not a range"),
    "shape too large": ({"a": entry("F32", [17], 0, 64)}, "takes 68 bytes"),
    "shape product beyond 64 bits": ({"a": entry("F32", [2**40, 2**40], 0, 64)}, "takes"),
    "negative shape": ({"a": entry("F32", [-4, -4], 0, 64)}, "not a list of lengths"),
    "shape is a number": ({"a": entry("F32", 16, 0, 64)}, "not a list of lengths"),
    "nine dimensions": ({"a": entry("F32", [1] * 8 + [16], 0, 64)}, "not a list of lengths"),
    "unknown dtype": ({"a": entry("F33", [16], 0, 64)}, "dtype 'F33'"),
    "dtype is a list": ({"a": entry(["F32"], [16], 0, 64)}, "dtype"),
    "overlap": ({"a": entry("F32", [8], 0, 32), "b": entry("F32", [9], 28, 64)}, "overlaps"),
    "the same bytes twice": (
        {"a": entry("F32", [16], 0, 64), "b": entry("F32", [16], 0, 64)},
        "overlaps",
    ),
    "gap": ({"a": entry("F32", [4], 0, 16), "b": entry("F32", [4], 48, 64)}, "gap"),
    "gap at the start": ({"a": entry("F32", [4], 48, 64)}, "gap"),
    "bytes left over": ({"a": entry("F32", [4], 0, 16)}, "the last tensor ends"),
    "surplus key": ({"a": entry("F32", [16], 0, 64) | {"x": 1}}, "exactly dtype"),
    "missing key": ({"a": {"dtype": "F32", "shape": [16]}}, "exactly dtype"),
    "entry is a list": ({"a": [1]}, "exactly dtype"),
    "header is a list": ([1, 2], "does not begin"),
    "metadata is not strings": (
        {"__metadata__": {"a": 1}, "a": entry("F32", [16], 0, 64)},
        "__metadata__",
    ),
    "metadata is a list": ({"__metadata__": [], "a": entry("F32", [16], 0, 64)}, "__metadata__"),
    "long name": ({"a" * 600: entry("F32", [16], 0, 64)}, "name is longer"),
    "duplicate name": (
        b'{"a":{"dtype":"F32","shape":[16],"data_offsets":[0,64]},'
        b'"a":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}',
        "twice",
    ),
    "not JSON": (b'{"a": nope}', "not JSON"),
    "not UTF-8": (b'{"\xff": 1}', "UTF-8"),
    "NaN": (b'{"a": NaN}', "NaN"),
    "number of 5000 digits": (b'{"a": ' + b"9" * 5000 + b"}", "5000 digits"),
    "nested deeply": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested"),
    "nested below the parser's limit": (b'{"a":' + b"[" * 200 + b"]" * 200 + b"}", "nested"),
    "two objects": (b'{} {"a": 1}', "not JSON"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers(name: str, tmp_path: Path) -> None:
    header, message = HOSTILE[name]
    path = write(tmp_path / "a.safetensors", header, DATA)
    with pytest.raises(CorruptFile, match=message) as raised:
        SafetensorsFile(path)
    assert "a.safetensors" in str(raised.value)


@pytest.mark.parametrize("length", [0, 1, 65, 10**6, MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1])
def test_hostile_header_lengths(length: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {}, b"x" * 30, length)
    with pytest.raises(CorruptFile, match="header"):
        SafetensorsFile(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = safetensors_bytes({"a": A, "b": B})
    path = tmp_path / "a.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptFile):
            SafetensorsFile(path)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    with pytest.raises(CorruptFile, match="regular"):
        SafetensorsFile(pipe)
    with pytest.raises((CorruptFile, IsADirectoryError)):
        SafetensorsFile(tmp_path)
    with pytest.raises(FileNotFoundError):
        SafetensorsFile(tmp_path / "absent.safetensors")


def test_other_types_are_known_but_are_no_weights(tmp_path: Path) -> None:
    header = {"a": entry("F64", [2], 0, 16), "b": entry("BOOL", [48], 16, 64)}
    file = SafetensorsFile(write(tmp_path / "a.safetensors", header, DATA))
    for name in header:
        with pytest.raises(UnsupportedModel, match="dtype"):
            file.array(name)


def test_an_odd_offset_is_served_from_a_copy(tmp_path: Path) -> None:
    header = {"a": entry("U8", [3], 0, 3), "b": entry("F32", [2], 3, 11)}
    data = bytes(3) + np.array([1.5, -2], np.float32).tobytes()
    file = SafetensorsFile(write(tmp_path / "a.safetensors", header, data))
    np.testing.assert_array_equal(file.array("b"), np.array([1.5, -2], np.float32))
    assert file.entries["b"].begin % 4 and file.array("b").flags.aligned


class TestShards:
    def folder(self, tmp_path: Path, weight_map: object = None) -> Path:
        (tmp_path / "m-1.safetensors").write_bytes(safetensors_bytes({"a": A}))
        (tmp_path / "m-2.safetensors").write_bytes(safetensors_bytes({"b": B, "c": A}))
        usual = {"a": "m-1.safetensors", "b": "m-2.safetensors", "c": "m-2.safetensors"}
        index = tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": usual if weight_map is None else weight_map}))
        return index

    def test_tensors_of_all_shards(self, tmp_path: Path) -> None:
        checkpoint = open_sharded(self.folder(tmp_path))
        assert set(checkpoint.file_of) == {"a", "b", "c"}
        np.testing.assert_array_equal(checkpoint.array("b"), B)

    @pytest.mark.parametrize(
        "shard",
        ["../m-1.safetensors", "/etc/passwd", "x/../m-1.safetensors", "..", ".safetensors",
         "m-1.bin", "m\\1.safetensors", "m-1.safetensors\0", "", 7, None],
    )  # fmt: skip
    def test_names_that_leave_the_folder_are_refused(self, shard: object, tmp_path: Path) -> None:
        with pytest.raises(CorruptFile, match="plain name"):
            open_sharded(self.folder(tmp_path, {"a": shard}))

    @pytest.mark.parametrize(
        ("weight_map", "message"),
        [
            ({}, "empty"),
            ([], "empty"),
            ({"a": "m-3.safetensors"}, "not in the folder"),
            ({"a": "m-2.safetensors", "b": "m-2.safetensors"}, "'a' is not in shard"),
            ({"a": "m-1.safetensors", "b": "m-2.safetensors"}, "'c' is not in the index"),
            ({"a": "m-1.safetensors", "z": "m-1.safetensors"}, "'z' is not in shard"),
            (
                {"a": "m-1.safetensors", "b": "m-2.safetensors", "c": "m-1.safetensors"},
                "'c' is not in shard m-1",
            ),
        ],
    )
    def test_index_and_shards_must_agree(self, weight_map, message: str, tmp_path: Path) -> None:
        with pytest.raises(CorruptFile, match=message):
            open_sharded(self.folder(tmp_path, weight_map))

    def test_a_tensor_in_two_shards_is_refused(self, tmp_path: Path) -> None:
        index = self.folder(tmp_path)
        (tmp_path / "m-1.safetensors").write_bytes(safetensors_bytes({"a": A, "b": B}))
        with pytest.raises(CorruptFile, match="is also in"):
            open_sharded(index)

    def test_a_bad_shard_is_named(self, tmp_path: Path) -> None:
        index = self.folder(tmp_path)
        (tmp_path / "m-2.safetensors").write_bytes(b"short")
        with pytest.raises(CorruptFile, match=r"m-2\.safetensors"):
            open_sharded(index)


def test_json_keeps_what_is_valid() -> None:
    text = '{"a": [1, 2.5, {"b": null}], "é": "\\u00e9"}'
    assert parse_json(text.encode(), "x") == json.loads(text)
    with pytest.raises(Error, match="x: "):
        parse_json(b"", "x")
