"""From a model folder to a packed file: sources, destinations, what may fail on the way."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import musespark
from musespark.errors import CorruptFile, Error, InvalidRequest, UnsupportedModel
from musespark.weights import WriteFailed, convert, files, open_model
from musespark.weights.cache import cache_folder
from support.model_folder import (
    CASES,
    checkpoint_weights,
    write_folder,
)
from support.packing import CASE, MUSE, unpacked

pytestmark = pytest.mark.usefixtures("own_cache")


def seen(folder: Path) -> Path:
    """With settings for images."""
    (folder / "preprocessor_config.json").write_text("{}")
    return folder


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

    def test_a_vision_tower_that_is_not_run_is_reported(self, tmp_path: Path) -> None:
        vision = {"model.vision_tower.ln_pre.weight": np.ones(16, np.float32)}
        weights = checkpoint_weights(MUSE, 11) | vision
        config = MUSE.config | {"vision_config": MUSE.config["vision_config"] | {"hidden_act": "x"}}
        folder = seen(write_folder(tmp_path / "m", config, weights))
        for _ in range(2):  # packed, then from the cache
            loaded = open_model(folder)
            assert loaded.vision is None
            assert loaded.info["ignored"] == {"vision tower: left out": 1}
            assert "vision tower: left out" in loaded.info["notes"]
            assert [
                n for n in loaded.info["notes"] if "images: not read: " in n and "hidden_act" in n
            ]

    def test_a_vision_tower_without_its_tensors_is_named(self, tmp_path: Path) -> None:
        weights = checkpoint_weights(MUSE, 11)
        loaded = open_model(seen(write_folder(tmp_path / "m", MUSE.config, weights)))
        assert "images: not read: the files hold no vision tower" in loaded.info["notes"]
        part = {"model.vision_tower.ln_pre.weight": np.ones(16, np.float32)}
        with pytest.raises(CorruptFile, match="patch_embedder"):
            open_model(seen(write_folder(tmp_path / "n", MUSE.config, weights | part)))
        loaded = open_model(write_folder(tmp_path / "o", MUSE.config, weights | part))
        assert loaded.vision is None

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
        with pytest.raises(InvalidRequest, match="no/such/folder"):
            open_model("no/such/folder")
        with pytest.raises(InvalidRequest, match=r"config\.json"):
            open_model(tmp_path)
        with pytest.raises(InvalidRequest, match="give its folder"):
            open_model(folder / "model.safetensors")
        (tmp_path / "x.gguf").write_bytes(b"GGUF")
        with pytest.raises(CorruptFile, match=r"x\.gguf"):
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
        monkeypatch.setattr(files, "_HUGE_PAGE", 4096)  # many writes of a small model
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


def test_convert_refuses_to_write_over_any_file_of_its_source(tmp_path):
    """It once took config.json for a destination."""
    nano = Path(__file__).parents[2] / "python" / "musespark" / "nano"
    shutil.copytree(nano, tmp_path, dirs_exist_ok=True)
    before = (tmp_path / "config.json").read_bytes()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        with pytest.raises(InvalidRequest, match="file of the source"):
            convert(tmp_path, tmp_path / name)
    assert (tmp_path / "config.json").read_bytes() == before


def test_errors_are_of_the_package() -> None:
    assert issubclass(WriteFailed, musespark.Error) and issubclass(WriteFailed, OSError)
