"""The packed container, packing, its cache, and what happens when writing fails."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

import musespark
from musespark import _core
from musespark.errors import CorruptFile, Error, InvalidRequest, UnsupportedModel
from musespark.weights import WriteFailed, convert, files, inspect, open_model, pack, packed
from musespark.weights.cache import cache_folder
from musespark.weights.packed import Checksum, checksum_of
from musespark.weights.progress import Bar
from support.model_folder import (
    CASES,
    canonical_weights,
    checkpoint_weights,
    safetensors_bytes,
    to_bf16,
    write_folder,
)

CASE = CASES["llama_llama3_biases"]
MUSE = CASES["muse_defaults"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setenv("MUSESPARK_CACHE", str(cache))
    return cache


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = write_folder(tmp_path / "model", CASE.config, checkpoint_weights(CASE, 11))
    (made / "tokenizer.json").write_text('{"version": "1.0"}')
    (made / "notes.txt").write_text("not part of a model")
    return made


def unpacked(model) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(data) if rows == 1 else _core.unpack(fmt, data, rows, cols)
        for name, (fmt, rows, cols, data) in model.tensors.items()
    }


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
        assert open_model(folder, quantize="q4").tensors["embed"][0] == "q6"
        big = {"embed": (128_256, 2048)}
        assert pack.resolve_quantize("auto", big) == "q4"
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

    def test_two_tensors_exchanged(self, target: Path) -> None:
        """Equal sizes, so only the checksum over the table can tell."""
        data = target.read_bytes()
        first, second = b'"layers.0.k":', b'"layers.0.v":'
        swapped = data.replace(first, b"#1").replace(second, first).replace(b"#1", second)
        assert len(swapped) == len(data) and swapped != data
        target.write_bytes(swapped)
        with pytest.raises(CorruptFile, match="checksum"):
            open_model(target)


class TestSources:
    def test_tied_in_the_config_but_two_matrices_in_the_file(self, tmp_path: Path) -> None:
        case = CASES["llama_plain"]
        weights = checkpoint_weights(case, 11)
        embed = weights["model.embed_tokens.weight"]
        same = write_folder(tmp_path / "s", case.config, weights | {"lm_head.weight": embed.copy()})
        assert open_model(same).spec.tied_head and "head" not in open_model(same).tensors
        other = write_folder(tmp_path / "o", case.config, weights | {"lm_head.weight": embed + 1})
        model = open_model(other, quantize="none")
        assert not model.spec.tied_head
        np.testing.assert_array_equal(unpacked(model)["head"], embed + 1)

    def test_the_vision_tower_is_reported(self, tmp_path: Path) -> None:
        vision = {"model.vision_tower.ln_pre.weight": np.ones(16, np.float32)}
        weights = checkpoint_weights(MUSE, 11) | vision
        folder = write_folder(tmp_path / "m", MUSE.config, weights)
        for _ in range(2):  # packed, then from the cache
            info = open_model(folder).info
            assert info["ignored"] == {"vision tower: not yet run": 1}
            assert "vision tower: not yet run" in info["notes"]

    def test_errors_name_tensor_and_both_values(self, tmp_path: Path) -> None:
        weights = checkpoint_weights(CASE, 11)
        name = "model.layers.1.mlp.up_proj.weight"
        bad = write_folder(tmp_path / "a", CASE.config, weights | {name: np.ones((88, 47), "f4")})
        with pytest.raises(CorruptFile, match=r"up_proj.*\[88, 47\].*\[88, 48\]"):
            open_model(bad)
        integers = weights | {name: np.ones((88, 48), np.uint8)}
        with pytest.raises(UnsupportedModel, match=r"up_proj.*U8"):
            open_model(write_folder(tmp_path / "b", CASE.config, integers))
        for i, holed in enumerate(("model.norm.weight", name)):
            value = weights[holed].copy()
            value.flat[3] = np.nan
            nan = write_folder(tmp_path / f"n{i}", CASE.config, weights | {holed: value})
            with pytest.raises(CorruptFile, match="not finite"):
                open_model(nan)

    def test_what_is_no_model(self, tmp_path: Path, folder: Path) -> None:
        with pytest.raises(InvalidRequest, match="hub ids are not"):
            open_model("meta-llama/Llama-3.2-1B")
        with pytest.raises(InvalidRequest, match=r"config\.json"):
            open_model(tmp_path)
        with pytest.raises(InvalidRequest, match="give its folder"):
            open_model(folder / "model.safetensors")
        (tmp_path / "x.gguf").write_bytes(b"GGUF")
        with pytest.raises(UnsupportedModel, match="GGUF"):
            open_model(tmp_path / "x.gguf")
        pickled = tmp_path / "p"
        pickled.mkdir()
        (pickled / "config.json").write_text(json.dumps(CASE.config))
        (pickled / "pytorch_model.bin").write_bytes(b"\x80\x02")
        with pytest.raises(InvalidRequest, match="never read"):
            open_model(pickled)
        (folder / "config.json").write_text('{"model_type": "llama", "model_type": "qwen3"}')
        with pytest.raises(CorruptFile, match="twice"):
            open_model(folder)


class TestCache:
    def packed_files(self) -> list[Path]:
        return sorted((cache_folder() / "packed").glob("*.safetensors"))

    def test_packed_once(self, folder: Path) -> None:
        first = open_model(folder)
        assert first.info["cached"] is False
        (path,) = self.packed_files()
        assert first.info["path"] == str(path)
        before = path.stat().st_mtime_ns
        second = open_model(folder)
        assert second.info["cached"] is True and path.stat().st_mtime_ns == before
        open_model(folder, quantize="q4")
        assert len(self.packed_files()) == 2

    def test_a_changed_source_is_packed_again(self, folder: Path) -> None:
        open_model(folder)
        weights = checkpoint_weights(CASE, 12)
        (folder / "model.safetensors").write_bytes(safetensors_bytes(weights))
        np.testing.assert_array_equal(
            unpacked(open_model(folder))["final_norm"], canonical_weights(CASE, 12)[1]["final_norm"]
        )
        (folder / "tokenizer.json").write_text('{"version": "2.0"}')
        assert open_model(folder).assets["tokenizer.json"] == b'{"version": "2.0"}'

    def test_a_damaged_cache_file_is_made_again(self, folder: Path) -> None:
        open_model(folder)
        (path,) = self.packed_files()
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        assert open_model(folder).info["cached"] is False
        assert path.read_bytes() == whole

    def test_what_a_killed_process_left_is_removed(self, folder: Path) -> None:
        open_model(folder)
        (path,) = self.packed_files()
        path.unlink()
        left = path.parent / f".{path.name}.1.abcd.partial"
        left.write_bytes(b"half")
        open_model(folder)
        assert not left.exists()

    def test_many_at_once_pack_once(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []
        real = pack.pack_checkpoint
        monkeypatch.setattr(
            pack, "pack_checkpoint", lambda *a, **k: (calls.append(1), real(*a, **k))[1]
        )
        threads = [threading.Thread(target=open_model, args=(folder,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(calls) == 1 and len(self.packed_files()) == 1

    def test_a_cache_that_cannot_be_used(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("MUSESPARK_CACHE", str(tmp_path / "file"))
        with pytest.raises(WriteFailed, match="MUSESPARK_CACHE"):
            open_model(folder)

    def test_where_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("MUSESPARK_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", "/x")
        assert cache_folder() == Path("/x/musespark")
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", "/h")
        assert cache_folder() == Path("/h/.cache/musespark")


class TestFailures:
    """Whatever ends the writing, nothing is left and what was there before stays."""

    @pytest.mark.parametrize("after", [0, 1, 5])
    def test_full_disk(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
    ) -> None:
        target = tmp_path / "out" / "m.safetensors"
        target.parent.mkdir()
        target.write_bytes(b"before")
        real, count = os.pwrite, [0]

        def full(fd: int, data: memoryview, offset: int) -> int:
            count[0] += 1
            if count[0] > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(fd, data, offset)

        monkeypatch.setattr(files.os, "pwrite", full)
        with pytest.raises(WriteFailed, match="No space left") as raised:
            convert(folder, target, quantize="q8")
        assert raised.value.errno == errno.ENOSPC and isinstance(raised.value, Error)
        assert str(target) in str(raised.value)
        assert [p.name for p in target.parent.iterdir()] == ["m.safetensors"]
        assert target.read_bytes() == b"before"
        with pytest.raises(WriteFailed):
            open_model(folder)
        assert list(cache_folder().rglob("*.safetensors")) == []
        assert list(cache_folder().rglob("*.partial")) == []

    def test_interrupt(self, folder: Path, tmp_path: Path) -> None:
        def interrupt(done: int, total: int, label: str) -> None:
            if done > total // 2:
                raise KeyboardInterrupt

        target = tmp_path / "out" / "m.safetensors"
        target.parent.mkdir()
        with pytest.raises(KeyboardInterrupt):
            convert(folder, target, quantize="q8", progress=interrupt)
        assert list(target.parent.iterdir()) == []

    def test_a_real_limit_of_the_system(self, folder: Path, tmp_path: Path) -> None:
        """A file-size limit makes write() itself fail, in a process of its own."""
        target = tmp_path / "out" / "m.safetensors"
        target.parent.mkdir()
        code = (
            "import sys, resource, signal\n"
            "from musespark.weights import convert, WriteFailed\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))\n"
            "try:\n    convert(sys.argv[1], sys.argv[2], quantize='q8')\n"
            "except WriteFailed as error:\n    print(error)\n"
        )
        assert resource.RLIMIT_FSIZE is not None and signal.SIGXFSZ is not None
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder), str(target)],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            timeout=120,
        )
        assert "File too large" in done.stdout, done.stderr
        assert list(target.parent.iterdir()) == []

    def test_destinations_that_cannot_be(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidRequest, match="is a folder"):
            convert(folder, tmp_path)
        with pytest.raises(InvalidRequest, match="does not exist"):
            convert(folder, tmp_path / "absent" / "m")
        before = (folder / "model.safetensors").read_bytes()
        with pytest.raises(InvalidRequest, match="file of the source"):
            convert(folder, folder / "model.safetensors")
        assert (folder / "model.safetensors").read_bytes() == before


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


def test_the_bar_is_quiet_unless_in_a_terminal_and_long(capsys: pytest.CaptureFixture) -> None:
    class Terminal:
        text = ""

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> None:
            self.text += text

        def flush(self) -> None: ...

    Bar()(1, 2, "packing")
    assert capsys.readouterr().err == ""
    quick, slow = Terminal(), Terminal()
    Bar(quick)(2, 2, "packing")
    assert quick.text == ""
    bar = Bar(slow, patience=0.0)
    bar(50, 100, "packing")
    bar(100, 100, "packing")
    assert "packing" in slow.text and "50%" in slow.text and slow.text.endswith("\n")


def test_errors_are_of_the_package() -> None:
    assert issubclass(WriteFailed, musespark.Error) and issubclass(WriteFailed, OSError)


class TestInspect:
    def test_a_folder_is_not_packed_for_it(self, folder: Path) -> None:
        report = inspect(folder, verify=True)
        assert report["packed"] is False and not cache_folder().exists()
        assert report["formats"].keys() == {"F32"} and report["files"][0] == "config.json"
        assert "no checksums" in report["verified"]
        assert {t["name"] for t in report["tensors"]} == set(canonical_weights(CASE, 11)[1])

    def test_a_packed_file(self, folder: Path, tmp_path: Path) -> None:
        target = tmp_path / "m.safetensors"
        info = convert(folder, target, quantize="q4")
        report = inspect(target, verify=True)
        assert report["verified"] == "every checksum" and report["quantize"] == "q4"
        assert sum(t["bytes"] for t in report["tensors"]) == report["bytes"] == info["bytes"]
        assert report["parameters"] == inspect(folder)["parameters"]
        data = bytearray(target.read_bytes())
        data[len(data) // 2] ^= 1
        target.write_bytes(data)
        with pytest.raises(CorruptFile, match="checksum"):
            inspect(target, verify=True)

    def test_what_cannot_be_packed_is_refused(self, folder: Path) -> None:
        weights = checkpoint_weights(CASE, 11)
        name = "model.norm.weight"
        (folder / "model.safetensors").write_bytes(
            safetensors_bytes(weights | {name: np.ones(7, np.float32)})
        )
        with pytest.raises(CorruptFile, match=r"model\.norm"):
            inspect(folder)


def test_convert_refuses_to_write_over_any_file_of_its_source(tmp_path):
    """It once took config.json for a destination."""
    nano = Path(__file__).parents[2] / "python" / "musespark" / "nano"
    shutil.copytree(nano, tmp_path, dirs_exist_ok=True)
    before = (tmp_path / "config.json").read_bytes()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        with pytest.raises(InvalidRequest, match="file of the source"):
            convert(tmp_path, tmp_path / name)
    assert (tmp_path / "config.json").read_bytes() == before
