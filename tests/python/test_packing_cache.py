"""The packing cache as its user sees it: listing, removing, waiting for another process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from musespark import machine
from musespark.cli import main
from musespark.errors import InvalidRequest
from musespark.weights import cache, open_model
from support.model_folder import CASES, checkpoint_weights, write_folder

CASE = CASES["llama_plain"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSESPARK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "My model", CASE.config, checkpoint_weights(CASE, 1))


HOLD = """
import sys, time
from pathlib import Path
from musespark.weights.cache import packing_lock
with packing_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def holder(path: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_what_was_made_from_what_is_shown_and_orphans_can_go(folder: Path, capsys) -> None:
    """Entries of folders that were moved or removed looked like all others, for ever."""
    open_model(folder, quantize="q8").close()
    moved = folder.with_name("moved")
    folder.rename(moved)
    open_model(moved, quantize="q4").close()
    found = {entry.name[:8]: (entry.source, entry.stale) for entry in cache.entries()}
    assert found == {"My-model": (str(folder), True), "moved-q4": (str(moved), False)}
    assert main(["cache"]) == 0
    shown = capsys.readouterr().out
    assert f"of {folder} (gone)\n" in shown and f"of {moved}\n" in shown
    assert main(["cache", "--stale"]) == 0
    assert "removed 1 file," in capsys.readouterr().out
    assert [entry.source for entry in cache.entries()] == [str(moved)]


def test_names_say_what_they_are_and_no_lock_stays(folder: Path) -> None:
    for quantize in ("q8", "q4"):
        open_model(folder, quantize=quantize).close()
    names = sorted(entry.name for entry in cache.entries())
    assert len(names) == 2
    assert names[0].startswith("My-model-q4-") and names[1].startswith("My-model-q8-")
    assert {p.suffix for p in cache.packed_folder().iterdir()} == {".safetensors"}


def test_another_tokenizer_is_another_model(folder: Path) -> None:
    """A file beside the weights is packed with them."""
    tokenizer = folder / "tokenizer.json"
    for text in ("{}", '{"a": 1}'):
        tokenizer.write_text(text)
        opened = open_model(folder, quantize="q8")
        assert opened.assets["tokenizer.json"].decode() == text
        opened.close()


def test_list_remove_and_clear(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["cache"]) == 0
    assert "0 packed models, 0 B" in capsys.readouterr().out
    for quantize in ("none", "q8", "q4"):
        open_model(folder, quantize=quantize).close()
    left = cache.packed_folder() / ".x.safetensors.7.abcd.partial"
    left.write_bytes(bytes(2048))
    (cache.packed_folder() / "old.lock").write_bytes(b"")
    assert "3, " in machine.doctor()["packed models"]
    assert main(["cache"]) == 0
    text = capsys.readouterr().out
    assert "3 packed models" in text and "2 files, 2.0 KiB" in text
    assert main(["cache", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["entries"]) == 5
    assert main(["cache", "--remove", "My-model-q8", "My-model-q8"]) == 0
    assert "removed 1 file," in capsys.readouterr().out
    assert main(["cache", "--remove", "My"]) == 1
    assert "2 names begin so" in capsys.readouterr().err
    with pytest.raises(InvalidRequest, match="nothing of that name"):
        cache.find("other")
    assert main(["cache", "--clear"]) == 0
    assert list(cache.packed_folder().iterdir()) == []


def test_a_model_in_use_survives_its_removal(folder: Path) -> None:
    model = open_model(folder)
    (entry,) = cache.entries()
    assert cache.remove(entry) and not cache.entries()
    model.verify()


def test_the_time_of_last_use(folder: Path) -> None:
    open_model(folder).close()
    (entry,) = cache.entries()
    os.utime(entry.path, (1000, 1000))
    assert cache.entries()[0].used == 1000
    open_model(folder).close()
    assert cache.entries()[0].used > time.time() - 100


def test_waiting_for_another_process_is_said(folder: Path) -> None:
    open_model(folder).close()
    (entry,) = cache.entries()
    cache.remove(entry)
    process = holder(entry.path)
    partial = entry.path.parent / f".{entry.path.name}.1.ab.partial"
    partial.write_bytes(bytes(500))
    seen: list[tuple] = []

    def progress(done: int, total: int, label: str) -> None:
        seen.append((done, total, label))
        if len(seen) == 2:
            process.communicate("go\n", timeout=30)

    open_model(folder, progress=progress).close()
    waited = [report for report in seen if "waiting" in report[2]]
    assert waited[0][0] == 500 and waited[0][1] > 500
    assert waited[-1][0] == waited[-1][1]
    assert "packing into" in seen[-1][2]


def test_what_is_being_packed_is_left_alone(folder: Path, capsys: pytest.CaptureFixture) -> None:
    path = cache.packed_folder() / "model-q8-0.safetensors"
    process = holder(path)
    partial = path.parent / f".{path.name}.1.ab.partial"
    partial.write_bytes(b"half")
    assert main(["cache", "--clear"]) == 1
    assert "is packing" in capsys.readouterr().err
    assert partial.exists()
    process.kill()  # as a process that dies: its lock goes, its files stay
    process.wait()
    assert main(["cache", "--clear"]) == 0
    assert list(path.parent.iterdir()) == []


def test_never_two_hold_the_lock(tmp_path: Path) -> None:
    """Each holder removes the lock file; who waited on it must not take that for the lock."""
    path, inside, most = tmp_path / "x.safetensors", [0], [0]
    cache_poll, cache._POLL_S = cache._POLL_S, 0.0

    def work() -> None:
        for _ in range(40):
            with cache.packing_lock(path):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.0002)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        cache._POLL_S = cache_poll
    assert most[0] == 1
    assert not list(tmp_path.glob("*.lock"))
