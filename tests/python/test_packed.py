"""The packed container: what is in it, and how damage to it is found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from musespark import _core
from musespark.errors import CorruptFile, InvalidRequest, UnsupportedModel
from musespark.weights import convert, open_model, pack, packed
from musespark.weights.files import write_aside
from musespark.weights.packed import Checksum, checksum_of
from support.model_folder import (
    canonical_weights,
    checkpoint_weights,
    to_bf16,
    write_folder,
)
from support.packing import CASE, MUSE, unpacked

pytestmark = pytest.mark.usefixtures("own_cache")


class TestContainer:
    def test_none_keeps_every_number(self, folder: Path) -> None:
        model = open_model(folder, quantize="none")
        spec, weights = canonical_weights(CASE, 11)
        assert model.spec == spec
        for name, value in unpacked(model).items():
            np.testing.assert_array_equal(value, weights[name], err_msg=name)
        assert set(model.tensors) == set(weights)
        assert model.info["formats"].keys() == {"f32"}

    def test_assets_come_along(self, folder: Path) -> None:
        model = open_model(folder)
        assert set(model.assets) == {"config.json", "tokenizer.json"}
        assert model.assets["tokenizer.json"] == b'{"version": "1.0"}'
        assert json.loads(model.assets["config.json"]) == CASE.config

    def test_every_payload_is_aligned_and_mapped(self, folder: Path) -> None:
        model = open_model(folder, quantize="q4")
        for name, (_, _, cols, data) in model.tensors.items():
            assert data.ctypes.data % 64 == 0, name
            assert np.shares_memory(data, model.packed.file.mapped.bytes), name
            if name.endswith("norm"):
                assert data.dtype == np.float32 and data.shape == (cols,)

    def test_other_readers_can_open_it(self, folder: Path, tmp_path: Path) -> None:
        target = tmp_path / "m.safetensors"
        convert(folder, target, quantize="q8")
        with safetensors.safe_open(target, "numpy") as file:
            head = json.loads(file.metadata()["musespark"])
        assert head["family"] == "llama" and head["quantize"] == "q8"
        tensors = safetensors.numpy.load_file(target)
        assert tensors["layers.0.q"].dtype == np.uint8
        assert tensors["final_norm"].dtype == np.float32

    def test_bf16_and_f16_sources(self, tmp_path: Path) -> None:
        weights = checkpoint_weights(CASE, 11)
        half = {n: to_bf16(w) for n, w in weights.items()}
        model = open_model(write_folder(tmp_path / "b", CASE.config, half), quantize="none")
        assert model.info["formats"].keys() == {"bf16", "f32"}  # vectors are f32
        _, exact = canonical_weights(CASE, 11)
        for name, value in unpacked(model).items():
            wanted = (to_bf16(exact[name]).astype(np.uint32) << 16).view(np.float32)
            np.testing.assert_array_equal(value, wanted, err_msg=name)
        half = {n: w.astype(np.float16) for n, w in weights.items()}
        model = open_model(write_folder(tmp_path / "h", CASE.config, half), quantize="none")
        for name, value in unpacked(model).items():
            wanted = exact[name].astype(np.float16).astype(np.float32)
            np.testing.assert_array_equal(value, wanted, err_msg=name)

    def test_shards_and_one_file_give_the_same_bytes(self, tmp_path: Path) -> None:
        weights = checkpoint_weights(MUSE, 12)
        one = write_folder(tmp_path / "one", MUSE.config, weights)
        many = write_folder(tmp_path / "many", MUSE.config, weights, shards=4)
        for source in (one, many):
            convert(source, tmp_path / f"{source.name}.packed", quantize="q4")
        first, second = (tmp_path / f"{n}.packed" for n in ("one", "many"))
        assert first.read_bytes() == second.read_bytes()

    def test_bytes_do_not_depend_on_threads_or_pieces(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        convert(folder, tmp_path / "a", quantize="q4")
        monkeypatch.setattr(pack, "_PIECE_BYTES", 1)  # one row block at a time
        convert(folder, tmp_path / "b", quantize="q4")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()

    def test_recipes(self, folder: Path) -> None:
        def formats(quantize: str) -> set[str]:
            model = open_model(folder, quantize=quantize)
            return {fmt for fmt, rows, _, _ in model.tensors.values() if rows > 1}

        assert formats("none") == {"f32"} and formats("q8") == {"q8"}
        assert formats("q4") == {"q4", "q6"} and formats("auto") == {"q8"}
        packed = open_model(folder, quantize="q4").tensors
        assert packed["embed"][0] == packed["layers.0.k"][0] == packed["layers.1.v"][0] == "q6"
        assert packed["layers.0.q"][0] == packed["layers.0.o"][0] == "q4"
        shared, own = (512, 2048), (2048, 2048)
        assert pack.matrix_format("q4", "layers.3.v", "BF16", *shared) == "q6"
        assert pack.matrix_format("q4", "layers.3.v", "BF16", *own) == "q4"
        assert pack.matrix_format("q8", "layers.3.v", "BF16", *shared) == "q8"
        big = {"embed": (128_256, 2048)}
        assert pack.resolve_quantize("auto", big, {"BF16"}) == "q4"
        with pytest.raises(InvalidRequest, match="q5"):
            open_model(folder, quantize="q5")

    def test_a_packed_file_is_what_it_is(self, folder: Path, tmp_path: Path) -> None:
        target = tmp_path / "m.safetensors"
        info = convert(folder, target, quantize="q8")
        assert info["path"] == str(target) and info["family"] == "llama"
        for quantize in ("auto", "q8"):
            assert open_model(target, quantize=quantize).info["quantize"] == "q8"
        with pytest.raises(InvalidRequest, match="packed as 'q8'"):
            open_model(target, quantize="q4")
        with pytest.raises(InvalidRequest, match="packed already"):
            convert(target, tmp_path / "again", quantize="q8")

    def test_a_folder_may_hold_a_packed_file(self, folder: Path, tmp_path: Path) -> None:
        home = tmp_path / "home"
        home.mkdir()
        convert(folder, home / "model.safetensors", quantize="q8")
        model = open_model(home)
        assert model.info["cached"] is False and model.info["path"].startswith(str(home))


class TestDamage:
    @pytest.fixture
    def target(self, folder: Path, tmp_path: Path) -> Path:
        path = tmp_path / "m.safetensors"
        convert(folder, path, quantize="q8")
        return path

    def flip(self, path: Path, at: int) -> None:
        data = bytearray(path.read_bytes())
        data[at] ^= 0x10
        path.write_bytes(data)

    def test_verify_finds_a_flipped_bit_in_every_matrix(self, target: Path) -> None:
        model = open_model(target)
        model.verify()
        places = {
            name: model.packed.file.entries[name].begin + 5
            for name, (_, rows, _, _) in model.tensors.items()
            if rows > 1
        }
        model.close()
        for name, at in places.items():
            self.flip(target, at)
            with pytest.raises(CorruptFile, match=f"{name!r} has checksum"):
                open_model(target).verify()
            self.flip(target, at)
        open_model(target).verify()

    def test_opening_finds_a_flipped_bit_in_header_vectors_and_assets(self, target: Path) -> None:
        file = open_model(target).packed.file
        places = [8 + 20, 8 + len(file.header) // 2]
        places += [file.entries[n].begin + 2 for n in ("final_norm", "asset/config.json")]
        for at in places:
            self.flip(target, at)
            with pytest.raises((CorruptFile, UnsupportedModel)):
                open_model(target)
            self.flip(target, at)

    def test_verify_finds_a_scale_no_packer_writes(self, target: Path) -> None:
        """Its checksum is right: the scale is what whoever made the file wrote."""
        entry = open_model(target).packed.file.entries["embed"]
        data = bytearray(target.read_bytes())
        data[entry.begin : entry.begin + 4] = np.float32(np.nan).tobytes()
        target.write_bytes(data)
        found = checksum_of(bytes(data[entry.begin : entry.end]))
        self.rewrite(target, lambda head, _: head["tensors"]["embed"].update(checksum=found))
        with pytest.raises(CorruptFile, match="'embed': row 0: the scale is not finite"):
            open_model(target).verify()

    def rewrite(self, path: Path, change) -> None:
        """Changes the packed header and makes its checksum right again."""
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop("__metadata__")
        head = json.loads(metadata["musespark"])
        change(head, header)
        encoded = packed._encode(head, header)
        path.write_bytes(encoded + data[8 + length :])

    @pytest.mark.parametrize(
        ("key", "value", "error", "message"),
        [
            ("arithmetic", 99, UnsupportedModel, "arithmetic 99, this musespark has"),
            ("version", 2, UnsupportedModel, "version 2, this musespark has 1"),
            ("version", "1", CorruptFile, "version"),
            ("spec", {}, CorruptFile, "spec"),
            ("tensors", {}, CorruptFile, "missing"),
            ("tensors", [], CorruptFile, "tensors"),
            ("assets", {}, CorruptFile, "asset/config.json"),
            ("assets", {"x": {"bytes": 3}}, CorruptFile, "asset/x"),
            ("notes", [1], CorruptFile, "notes"),
            ("family", None, CorruptFile, "family"),
        ],
    )
    def test_headers_that_contradict(self, target: Path, key, value, error, message) -> None:
        self.rewrite(target, lambda head, table: head.update({key: value}))
        with pytest.raises(error, match=message):
            open_model(target)

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("format", "q4", "bytes of U8"),
            ("format", "q3", "format"),
            ("rows", 48, "rows and cols"),
            ("cols", 2**50, "rows and cols"),
            ("checksum", 1, "checksum"),
        ],
    )
    def test_tensors_that_contradict(self, target: Path, field, value, message) -> None:
        self.rewrite(target, lambda head, table: head["tensors"]["embed"].update({field: value}))
        with pytest.raises(CorruptFile, match=message):
            open_model(target)

    def test_a_spec_that_asks_for_other_shapes(self, target: Path) -> None:
        def change(head: dict, table: dict) -> None:
            head["spec"]["vocab"] += 16

        self.rewrite(target, change)
        with pytest.raises(CorruptFile, match="embed"):
            open_model(target)

    def test_matrices_that_are_not_aligned(self, target: Path) -> None:
        data = target.read_bytes()
        size = int.from_bytes(data[:8], "little")
        target.write_bytes(
            (size + 1).to_bytes(8, "little") + data[8 : 8 + size] + b" " + data[8 + size :]
        )
        with pytest.raises(CorruptFile, match="no multiple of 64"):
            open_model(target)

    def test_two_tensors_exchanged(self, target: Path) -> None:
        """Equal sizes, so only the checksum over the table can tell."""
        data = target.read_bytes()
        first, second = b'"layers.0.k":', b'"layers.0.v":'
        swapped = data.replace(first, b"#1").replace(second, first).replace(b"#1", second)
        assert len(swapped) == len(data) and swapped != data
        target.write_bytes(swapped)
        with pytest.raises(CorruptFile, match="checksum"):
            open_model(target)


def test_checksums_do_not_depend_on_how_bytes_arrive() -> None:
    data = np.random.default_rng(3).integers(0, 256, 5_300_000, np.uint8)
    whole = checksum_of(data)
    for step in (1_000_003, 1 << 20, 64, 3_000_000):
        checksum = Checksum()
        for at in range(0, data.size if step > 64 else 6400, step):
            checksum.update(data[at : at + step])
        assert checksum.hex() == (whole if step > 64 else checksum_of(data[:6400]))
    changed = data.copy()
    changed[4_444_444] ^= 1
    assert checksum_of(changed) != whole
    assert checksum_of(b"") == f"{_core.checksum(b''):016x}"


def test_a_header_that_outgrows_its_room_is_not_written(tmp_path: Path) -> None:
    """It would lie over the first matrix."""
    notes = iter([[], ["a note of more than a line" * 10]])
    path = tmp_path / "model.safetensors"
    with (
        pytest.raises(ValueError, match=r"has \d+ bytes, \d+ were planned"),
        write_aside(path) as file,
    ):
        packed.write_packed(
            file,
            spec={},
            family="",
            quantize="q8",
            notes=lambda: next(notes),
            assets={},
            planned=[packed.Planned("v", "f32", 1, 16, True)],
            payload=lambda _: [np.zeros(16, np.float32)],
        )
    assert not any(tmp_path.iterdir())
