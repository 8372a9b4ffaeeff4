"""The GGUF reader: every kind of metadata, agreement with gguf-py, and hostile files."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from musespark.errors import CorruptFile, UnsupportedModel
from musespark.weights import gguf
from musespark.weights.gguf import GgufFile, is_gguf
from support.gguf_bytes import (
    ARRAY,
    BOOL,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    STRING,
    U8,
    U16,
    U32,
    U64,
    file_bytes,
    info,
    key,
    string,
)  # fmt: skip

VALUES = [
    (U8, 255), (I8, -128), (U16, 65535), (I16, -32768), (U32, 2**32 - 1), (I32, -(2**31)),
    (F32, 0.5), (BOOL, 1), (U64, 2**64 - 1), (I64, -(2**63)), (F64, 1e300),
]  # fmt: skip
DTYPES = {U8: "u1", I8: "i1", U16: "u2", I16: "i2", U32: "u4", I32: "i4", F32: "f4", BOOL: "?",
          U64: "u8", I64: "i8", F64: "f8"}  # fmt: skip


@pytest.fixture
def opened(tmp_path: Path):
    def open_bytes(data: bytes) -> GgufFile:
        path = tmp_path / "x.gguf"
        path.write_bytes(data)
        return GgufFile(path)

    return open_bytes


class TestMetadata:
    def test_every_scalar(self, opened) -> None:
        keys = [key(f"k{kind}", kind, value) for kind, value in VALUES]
        metadata = opened(file_bytes(keys)).metadata
        for kind, value in VALUES:
            found = metadata[f"k{kind}"]
            assert found == value and type(found) is (bool if kind == BOOL else type(value))
        assert list(metadata) == [f"k{kind}" for kind, _ in VALUES] and len(metadata) == 11
        assert metadata.get("absent") is None and metadata.length("k4") is None

    def test_every_array_at_every_alignment(self, opened) -> None:
        for shift in range(4):
            keys = [key("s", STRING, "x" * shift)]
            keys += [
                key(f"k{kind}", ARRAY, (kind, [value, 0, 1][:count]))
                for kind, value in VALUES
                for count in [3]
            ]
            metadata = opened(file_bytes(keys)).metadata
            for kind, value in VALUES:
                found = metadata[f"k{kind}"]
                np.testing.assert_array_equal(found, np.array([value, 0, 1], DTYPES[kind]))
                assert found.dtype == DTYPES[kind] and metadata.length(f"k{kind}") == 3

    def test_strings(self, opened) -> None:
        keys = [
            key("text", STRING, "h\u00e9llo\0"),
            key("bytes", STRING, b"\xff\xfe"),
            key("texts", ARRAY, (STRING, ["", "a", "\u4e16\u754c"])),
            key("mixed", ARRAY, (STRING, ["a", b"\xff"])),
            key("none", ARRAY, (STRING, [])),
            key("nothing", ARRAY, (U32, [])),
        ]
        metadata = opened(file_bytes(keys)).metadata
        assert metadata["text"] == "h\u00e9llo\0" and metadata["bytes"] == b"\xff\xfe"
        assert metadata["texts"] == ["", "a", "\u4e16\u754c"]
        assert metadata["mixed"] == [b"a", b"\xff"]
        assert metadata["none"] == [] and metadata["nothing"].shape == (0,)

    def test_nested_arrays(self, opened) -> None:
        inner = [(U16, [1, 2]), (STRING, ["x", "y"]), (ARRAY, [(U8, [7])])]
        metadata = opened(
            file_bytes([key("deep", ARRAY, (ARRAY, inner)), key("z", U8, 5)])
        ).metadata
        numbers, texts, arrays = metadata["deep"]
        assert numbers.tolist() == [1, 2] and texts == ["x", "y"] and arrays[0].tolist() == [7]
        assert metadata["z"] == 5

    def test_a_large_vocabulary_opens_at_once(self, opened) -> None:
        tokens = b"".join(string(f"token{i}") for i in range(300_000))
        keys = [string("t") + struct.pack("<IIQ", ARRAY, STRING, 300_000) + tokens, key("z", U8, 1)]
        start = time.perf_counter()
        metadata = opened(file_bytes(keys)).metadata
        assert metadata["z"] == 1
        assert time.perf_counter() - start < 0.5
        assert metadata["t"][299_999] == "token299999" and metadata.length("t") == 300_000


DATA = np.arange(512, dtype=np.uint8).tobytes()


class TestTensors:
    def test_shapes_types_and_bytes(self, opened) -> None:
        infos = [
            info("a", [2, 3], 0, 0),
            info("q", [64, 2, 1], 8, 32),
            info("b", [5], 30, 192),
        ]
        file = opened(file_bytes([], infos, DATA))
        a, q, b = (file.entries[name] for name in "aqb")
        assert (a.dtype, a.shape, a.row_bytes) == ("F32", (3, 2), 8)
        assert (q.dtype, q.shape, q.row_bytes) == ("Q8_0", (1, 2, 64), 68)
        assert (b.dtype, b.shape, b.row_bytes) == ("BF16", (5,), 10)
        assert file.array("a").tobytes() == DATA[:24] and file.array("a").shape == (3, 8)
        assert file.array("q").tobytes() == DATA[32:168] and file.array("q").shape == (1, 2, 68)
        assert file.array("b").tobytes() == DATA[192:202]

    @pytest.mark.parametrize("alignment", [8, 64, 4096])
    def test_alignment(self, opened, alignment: int) -> None:
        infos = [info("a", [2], 0, alignment), info("b", [1], 0, 0)]
        keys = [key("general.alignment", U32, alignment)]
        file = opened(file_bytes(keys, infos, bytes(alignment) + DATA, alignment=alignment))
        assert file.entries["a"].begin % alignment == 0
        assert file.array("a").tobytes() == DATA[:8]

    @pytest.mark.parametrize("version", [2, 3])
    def test_versions(self, opened, version: int) -> None:
        file = opened(file_bytes([], [info("a", [2], 0, 0)], DATA, version=version))
        assert file.version == version and file.array("a").tobytes() == DATA[:8]

    def test_agrees_with_gguf_py(self, tmp_path: Path) -> None:
        gguf = pytest.importorskip("gguf")
        writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
        writer.add_block_count(3)
        writer.add_token_list(["a", "b"])
        writer.add_custom_alignment(128)
        values = np.random.default_rng(1).standard_normal((6, 64)).astype(np.float32)
        for kind in ("Q4_0", "Q8_0", "F16"):
            found = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(kind, gguf.quants.quantize(values, found), raw_dtype=found)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        file, theirs = GgufFile(tmp_path / "m.gguf"), gguf.GGUFReader(tmp_path / "m.gguf")
        assert file.metadata["general.architecture"] == "llama" and file.alignment == 128
        assert file.metadata["llama.block_count"] == 3
        for tensor in theirs.tensors:
            entry = file.entries[tensor.name]
            assert entry.dtype == tensor.tensor_type.name and entry.begin == tensor.data_offset
            assert entry.shape == tuple(int(n) for n in reversed(tensor.shape))
            assert file.array(tensor.name).tobytes() == tensor.data.tobytes()


HUGE = 2**60
_ARRAY_HEAD = string("k") + struct.pack("<I", ARRAY)
HOSTILE = {
    "too short for a version": (b"GGUF\3\0", "version at byte 4 takes 4 bytes, 2 are left"),
    "another magic": (b"GGML" + bytes(40), "magic is b'GGML'"),
    "tensor count": (file_bytes(tensor_count=HUGE), f"tensor_count is {HUGE}"),
    "key count": (file_bytes(key_count=HUGE), f"metadata_kv_count is {HUGE}"),
    "key count of 43 bytes": (
        file_bytes([bytes(19)], key_count=3, alignment=1), "metadata_kv_count is 3; at most 1 fit",
    ),
    "key length": (
        file_bytes([struct.pack("<Q", HUGE) + bytes(30)], key_count=1), f"length is {HUGE}",
    ),
    "empty key": (file_bytes([key("", U8, 1)]), "key 0 is empty"),
    "key that is not UTF-8": (file_bytes([key(b"a\xff", U8, 1)]), "key 0: not UTF-8 at byte 1"),
    "two keys": (file_bytes([key("k", U8, 1), key("k", U8, 2)]), "key 'k' stands twice"),
    "value type": (
        file_bytes([string("k") + struct.pack("<I", 13) + bytes(20)]), "key 'k': type is 13",
    ),
    "boolean": (file_bytes([key("k", BOOL, 2)]), "key 'k': a boolean is 2"),
    "booleans": (file_bytes([key("k", ARRAY, (BOOL, [1, 7]))]), "a boolean is neither 0 nor 1"),
    "string length": (
        file_bytes([string("k") + struct.pack("<IQ", STRING, 2**64 - 1) + bytes(20)]),
        "length is 18446744073709551615",
    ),
    "array type": (
        file_bytes([_ARRAY_HEAD + struct.pack("<IQ", 99, 1) + bytes(20)]), "items is 99",
    ),
    "array count": (
        file_bytes([_ARRAY_HEAD + struct.pack("<IQ", F64, HUGE) + bytes(20)]),
        f"number of items is {HUGE}",
    ),
    "array of strings": (
        file_bytes([_ARRAY_HEAD + struct.pack("<IQ", STRING, HUGE) + bytes(20)]),
        f"number of items is {HUGE}",
    ),
    "string in an array": (
        file_bytes([_ARRAY_HEAD + struct.pack("<IQQ", STRING, 1, HUGE) + bytes(20)]),
        f"string 0 of 1 has {HUGE} bytes",
    ),
    "array of arrays": (
        file_bytes([_ARRAY_HEAD + struct.pack("<IQ", ARRAY, HUGE) + bytes(20)]),
        f"number of items is {HUGE}",
    ),
    "nesting": (
        file_bytes([_ARRAY_HEAD + struct.pack("<IQ", ARRAY, 1) * 200]), "nested more than 4 deep",
    ),
    "alignment 0": (file_bytes([key("general.alignment", U32, 0)]), "general.alignment is 0"),
    "alignment 48": (file_bytes([key("general.alignment", U32, 48)]), "general.alignment is 48"),
    "alignment 2^31": (
        file_bytes([key("general.alignment", U32, 2**31)]), "general.alignment is 2147483648",
    ),
    "alignment text": (
        file_bytes([key("general.alignment", STRING, "32")]), "general.alignment is '32'",
    ),
    "dimensions": (
        file_bytes([], [string("a") + struct.pack("<I", 2**31) + bytes(40)]),
        "tensor 'a': number of dimensions is 2147483648",
    ),
    "no dimensions": (file_bytes([], [info("a", [], 0, 0)]), "number of dimensions is 0"),
    "length 0": (file_bytes([], [info("a", [0, 4], 0, 0)], DATA), "none may be 0"),
    "product": (
        file_bytes([], [info("a", [2**32, 2**32], 0, 0)], DATA), "73786976294838206464 bytes of",
    ),
    "product that wraps": (
        file_bytes([], [info("a", [2**33, 2**33, 4, 1], 0, 0)], DATA), "bytes of F32",
    ),
    "beyond the end": (file_bytes([], [info("a", [129], 0, 0)], DATA), "end at byte 580, the file"),
    "offset": (file_bytes([], [info("a", [1], 0, 2**63)], DATA), "the file at"),
    "offset not aligned": (file_bytes([], [info("a", [1], 0, 4)], DATA), "offset is 4, no"),
    "half a block": (file_bytes([], [info("a", [33], 8, 0)], DATA), "a multiple of 32"),
    "two tensors": (
        file_bytes([], [info("a", [1], 0, 0), info("a", [1], 0, 32)], DATA), "'a' stands twice",
    ),
    "overlap": (
        file_bytes([], [info("a", [9], 0, 0), info("b", [1], 0, 32)], DATA),
        "'b' begins at byte 128, 'a' ends at byte 132",
    ),
}  # fmt: skip


class TestHostile:
    @pytest.mark.parametrize("name", HOSTILE)
    def test_is_refused_at_once_by_name(self, opened, name: str) -> None:
        data, message = HOSTILE[name]
        start = time.thread_time()
        with pytest.raises(CorruptFile) as caught:
            opened(data)
        assert time.thread_time() - start < 0.1
        assert message in str(caught.value) and "x.gguf: " in str(caught.value)

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (file_bytes(version=1), "GGUF version is 1, supported are 2 and 3"),
            (file_bytes(version=4), "GGUF version is 4"),
            (file_bytes(version=0x03000000), "version is 3 in big-endian order"),
            (file_bytes([], [info("a", [256], 16, 0)], DATA), "type IQ2_XXS (16); supported are"),
            (file_bytes([], [info("a", [256], 4, 0)], DATA), "type Q4_2 (4)"),
            (file_bytes([], [info("a", [256], 2**32 - 1, 0)], DATA), "type unknown (4294967295)"),
        ],
    )
    def test_is_not_supported_by_name(self, opened, data: bytes, message: str) -> None:
        with pytest.raises(UnsupportedModel) as caught:
            opened(data)
        assert message in str(caught.value)

    def test_every_cut_is_refused(self, opened) -> None:
        keys = [key("a", U8, 1), key("b", ARRAY, (STRING, ["x", "yy"])), key("c", F64, 1.0)]
        whole = file_bytes(keys, [info("t", [4], 0, 0), info("u", [32], 2, 32)], DATA[:50])
        file = opened(whole)
        assert len(file.entries) == 2
        for length in range(len(whole)):
            with pytest.raises(CorruptFile):
                opened(whole[:length])

    def test_a_long_file_of_claims_takes_no_memory(self, tmp_path: Path) -> None:
        """8 MB that are a million empty strings, read in a process that may not grow by 64 MB."""
        strings = string("k") + struct.pack("<IIQ", ARRAY, STRING, 10**6) + bytes(8 * 10**6)
        path = tmp_path / "x.gguf"
        path.write_bytes(file_bytes([strings], tensor_count=HUGE))
        program = (
            "import resource, sys\n"
            "from pathlib import Path\n"
            "from musespark.errors import CorruptFile\n"
            "from musespark.weights.gguf import GgufFile\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "try:\n    GgufFile(Path(sys.argv[1]))\n"
            "except CorruptFile as error:\n    print(error)\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
        )
        run = subprocess.run(
            [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
        )
        message, grown = run.stdout.strip().rsplit("\n", 1)
        assert "tensor_count is" in message
        assert int(grown) * 1024 < 8 * 10**6 + (64 << 20)

    def test_too_many_of_anything(self, opened) -> None:
        keys = [key(f"k{i}", U8, 1) for i in range(16_385)]
        with pytest.raises(CorruptFile, match=r"metadata_kv_count is 16385.*limit is 16384"):
            opened(file_bytes(keys))
        inner = struct.pack("<IQ", U8, 0) * 16_385
        nested = _ARRAY_HEAD + struct.pack("<IQ", ARRAY, 16_385) + inner
        with pytest.raises(CorruptFile, match=r"number of items is 16385.*limit is 16384"):
            opened(file_bytes([nested]))
        inner = struct.pack("<IQ", U8, 0) * 10_000
        both = [
            string(name) + struct.pack("<IIQ", ARRAY, ARRAY, 10_000) + inner for name in ("a", "b")
        ]
        opened(file_bytes(both[:1]))
        with pytest.raises(CorruptFile, match=r"'b': number of items is 10000.*limit is 6384"):
            opened(file_bytes(both))

    def test_depth_of_arrays(self, opened) -> None:
        inner = struct.pack("<IQ", U8, 0)
        opened(file_bytes([_ARRAY_HEAD + struct.pack("<IQ", ARRAY, 1) * 3 + inner]))
        with pytest.raises(CorruptFile, match="nested more than 4 deep"):
            opened(file_bytes([_ARRAY_HEAD + struct.pack("<IQ", ARRAY, 1) * 4 + inner]))

    def test_a_header_beyond_its_limit(self, opened, monkeypatch: pytest.MonkeyPatch) -> None:
        data = file_bytes([key("a", STRING, "x" * 200)])
        opened(data)
        monkeypatch.setattr(gguf, "MAX_HEADER_BYTES", 200)
        with pytest.raises(CorruptFile, match="takes 200 bytes"):
            opened(data)


def test_what_a_gguf_file_is(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"GGUF")
    (tmp_path / "b.bin").write_bytes(b"GG")
    assert is_gguf(tmp_path / "a.bin") and not is_gguf(tmp_path / "b.bin")
    assert is_gguf(tmp_path / "x.GGUF") and not is_gguf(tmp_path)
