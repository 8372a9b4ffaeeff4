"""The packing cache: packed once, found again, and the bar meanwhile."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from musespark.weights import WriteFailed, open_model, pack
from musespark.weights.cache import cache_folder
from musespark.weights.progress import Bar
from support.model_folder import (
    canonical_weights,
    checkpoint_weights,
    safetensors_bytes,
)
from support.packing import CASE, unpacked

pytestmark = pytest.mark.usefixtures("own_cache")


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
