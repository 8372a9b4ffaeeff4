"""Hub ids, against a hub on this machine: what is fetched, what is not, and every way to fail."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub.file_download
import huggingface_hub.utils
import numpy as np
import pytest
from huggingface_hub import constants

from musespark.errors import (
    AccessDenied,
    CorruptFile,
    HubUnavailable,
    InvalidRequest,
    UnsupportedModel,
)
from musespark.weights import WriteFailed, hub, hubtransfer, loading, open_model
from musespark.weights.hubfiles import choose_files, safe_files
from musespark.weights.hubids import HubId, parse_hub_id
from support.fake_hub import LFS_BYTES, FakeHub, etag_of
from support.hub_cases import CASE, model_files

pytest_plugins = ("support.hub_fixtures",)

ASSETS = loading.ASSETS


@pytest.fixture
def no_network(monkeypatch):
    """Fails whatever as much as imports the hub's client anew or opens a connection."""
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


def opened(source: str, **options) -> dict:
    loaded = open_model(source, **options)
    info = loaded.info
    loaded.close()
    return info


def snapshot_files(tmp_path: Path) -> set[str]:
    found = (tmp_path / "hub").glob("models--*/snapshots/*/**/*")
    return {path.name for path in found if path.is_file()}


# ---- ids ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("org/name", HubId("org/name")),
        ("org/Name-1.5B_x", HubId("org/Name-1.5B_x")),
        ("org/name@main", HubId("org/name", "main")),
        ("org/name@refs/pr/1", HubId("org/name", "refs/pr/1")),
        ("org/name@v1.0:Q4_K_M", HubId("org/name", "v1.0", quant="Q4_K_M")),
        ("org/name:Q4_K_M", HubId("org/name", quant="Q4_K_M")),
        ("org/name:Q4_K_M@v1", HubId("org/name", "v1", quant="Q4_K_M")),
        ("org/name/a-Q4_0.gguf", HubId("org/name", file="a-Q4_0.gguf")),
        ("org/name/a-Q4_0.GGUF@" + "a" * 40, HubId("org/name", "a" * 40, file="a-Q4_0.GGUF")),
        ("hf://org/name", HubId("org/name")),
        ("hf://org/model.safetensors", HubId("org/model.safetensors")),
    ],
)
def test_ids(text, wanted):
    assert parse_hub_id(text) == wanted
    assert parse_hub_id(str(wanted)) == wanted or text.startswith("hf://")


PATHS = [
    "name", "./org/name", "../org/name", "/org/name", "~/org/name", "~org/name", ".org/name",
    "org\\name", "C:\\org\\name", "C:/name", "org/name/", "org//name", "a/b/c", "a/b/c.safetensors",
    "a/b/c/d.gguf", "org/model.safetensors", "org/model.gguf", "org/config.json", "org/x.bin", "",
    "org/na me", "org/name?x=1", "org/../name", "org/..", "-org/name", "org/name-", "org/na--me",
    "http://host/org/name", "https://host/name", "file:///org/name", "org/\u00e9t\u00e9", "o/n\0",
    "o" * 300 + "/" + "n" * 300,
]  # fmt: skip


@pytest.mark.parametrize("text", PATHS, ids=range(len(PATHS)))
def test_what_looks_like_a_path_is_no_id_and_goes_to_no_network(text, no_network):
    assert parse_hub_id(text) is None
    with pytest.raises(InvalidRequest, match="no such file or folder"):
        open_model(text)
    with pytest.raises(InvalidRequest, match="no such file or folder"):
        open_model(Path("org/name"))  # a path object is a path


@pytest.mark.parametrize(
    "text", ["org/name@", "org/name:", "org/name@a..b", "org/name@a//b", "org/name@-x",
             "org/name:a b", "org/name:Q4@v1:Q5", "org/name/x.gguf:Q4", "hf://name", "hf://a/b/c"],
)  # fmt: skip
def test_an_id_with_an_odd_part_is_refused_at_once(text, no_network):
    with pytest.raises(InvalidRequest, match="is no hub id"):
        open_model(text)


def test_a_path_that_exists_wins_and_a_folder_beside_it_keeps_ids_out(fake, tmp_path, no_network):
    folder = tmp_path / "org" / "name"
    folder.mkdir(parents=True)
    for name, data in model_files().items():
        (folder / name).write_bytes(data)
    assert opened("org/name")["source"] == "org/name"
    with pytest.raises(InvalidRequest, match=r"looks like a path.*hf://"):
        open_model("org/typo")
    assert fake.asked == []


# ---- what is fetched ----------------------------------------------------------------------------


def test_a_model_is_fetched_once_and_only_what_it_needs(fake, tmp_path):
    extra = {
        "pytorch_model.bin": b"pickle",
        "consolidated.safetensors": b"x",
        "tf_model.h5": b"x",
        "model.onnx": b"x",
        "generation_config.json": b"{}",
        "original/x.safetensors": b"x",
    }
    commit = fake.add("org/tiny", model_files(**extra), card={"license": "apache-2.0"})
    info = opened("org/tiny")
    assert info["source"] == f"org/tiny@{commit}"
    assert "licence: apache-2.0 (as the hub says)" in info["notes"]
    assert snapshot_files(tmp_path) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    fake.asked.clear()
    assert opened("org/tiny") == info | {"cached": True}
    assert [a.path.split("?")[0] for a in fake.asked] == ["/api/models/org/tiny"]
    assert opened(info["source"])["source"] == info["source"], "the name loads the same again"


def test_the_weights_are_those_of_a_folder(fake, tmp_path):
    fake.add("org/tiny", model_files(shards=3))
    folder = tmp_path / "plain"
    folder.mkdir()
    for name, data in model_files(shards=3).items():
        (folder / name).write_bytes(data)
    ours, plain = open_model("org/tiny"), open_model(folder)
    for name, (*_, view) in plain.tensors.items():
        np.testing.assert_array_equal(ours.tensors[name][3], view)
    assert len(plain.tensors) > 10


def test_revisions(fake):
    old = fake.add("org/tiny", model_files(1))
    new = fake.add("org/tiny", model_files(2))
    request = fake.add("org/tiny", model_files(3), branch="refs/pr/1")
    assert opened("org/tiny")["source"].endswith(new)
    assert opened(f"org/tiny@{old}")["source"].endswith(old)
    assert opened("org/tiny@refs/pr/1")["source"].endswith(request)
    with pytest.raises(InvalidRequest, match="org/tiny has no revision 'v9'"):
        open_model("org/tiny@v9")


def test_a_model_that_cannot_run_is_refused_before_its_weights_come(fake, tmp_path):
    files = model_files() | {"config.json": b'{"model_type": "mystery"}'}
    fake.add("org/tiny", files)
    with pytest.raises(UnsupportedModel, match="mystery"):
        open_model("org/tiny")
    assert fake.count(part="model.safetensors") == 0
    fake.add("org/bin", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    with pytest.raises(UnsupportedModel, match=r"pytorch_model\.bin is pickled.*never read"):
        open_model("org/bin")
    assert fake.count(part="org/bin/resolve") == 0


def test_a_hostile_listing_writes_nothing_elsewhere(fake, tmp_path):
    listing = {
        "../../x.gguf": 1,
        "/etc/x.gguf": 1,
        "a/../../x.gguf": 1,
        "a\\x.gguf": 1,
        "ok.gguf": 1,
        ".../x.gguf": 1,
        "a/./x.gguf": 1,
        "x\0.gguf": 1,
        "d/ok-Q4_0.gguf": 1,
        "": 1,
    }
    assert set(safe_files(listing)) == {"ok.gguf", "d/ok-Q4_0.gguf"}
    fake.add("org/evil", {"../../evil-Q4_0.gguf": b"x"})
    with pytest.raises(UnsupportedModel, match="no GGUF file"):
        open_model("org/evil")
    for shard in ("../../evil.safetensors", "sub/evil.safetensors"):
        index = {"weight_map": {"a": shard}}
        files = model_files() | {"model.safetensors.index.json": json.dumps(index).encode()}
        del files["model.safetensors"]
        fake.add("org/tiny", files | {"sub/evil.safetensors": b"x"})
        with pytest.raises(CorruptFile, match=r"evil\.safetensors' is not among the files"):
            open_model("org/tiny")


def test_progress_counts_the_bytes_that_come(fake):
    big = model_files(padding=b"") | {"config.json": json.dumps(CASE.config).encode()}
    fake.add("org/tiny", big)
    seen: list[tuple[int, int, str]] = []
    opened("org/tiny", progress=lambda *step: seen.append(step))
    ours = [(done, total) for done, total, label in seen if label == "downloading org/tiny"]
    size = len(big["model.safetensors"])
    assert ours[-1] == (size, size)
    assert all(total == size for _, total in ours)
    assert [done for done, _ in ours] == sorted(done for done, _ in ours)
    with pytest.raises(ZeroDivisionError):  # what the caller's function raises is the caller's
        fake.add("org/other", model_files(2))
        open_model("org/other", progress=lambda *step: 1 // 0)


# ---- GGUF --------------------------------------------------------------------------------------

GGUF = {
    "README.md": b"", "a-Q4_K_M.gguf": b"GGUF" * 10, "a-Q8_0.gguf": b"GGUF" * 20,
    "mmproj-a-f16.gguf": b"GGUF", "UD/a-Q4_K_XL-00001-of-00002.gguf": b"1" * 50,
    "UD/a-Q4_K_XL-00002-of-00002.gguf": b"2" * 50, "a-BF16-00001-of-00002.gguf": b"half of it",
}  # fmt: skip


def chosen(text: str, files: dict[str, bytes] = GGUF) -> tuple[str, ...]:
    sizes = {name: len(data) for name, data in files.items()}
    return choose_files(sizes, parse_hub_id(text), ASSETS).weights


def test_gguf_choices():
    assert chosen("o/n:Q4_K_M") == chosen("o/n:q4_k_m") == ("a-Q4_K_M.gguf",)
    assert chosen("o/n/a-Q8_0.gguf") == ("a-Q8_0.gguf",)
    assert chosen("o/n/mmproj-a-f16.gguf") == ("mmproj-a-f16.gguf",)
    splits = ("UD/a-Q4_K_XL-00001-of-00002.gguf", "UD/a-Q4_K_XL-00002-of-00002.gguf")
    assert chosen("o/n:Q4_K_XL") == splits
    assert chosen("o/n", {"only-Q4_0.gguf": b"x", "mmproj.gguf": b"y"}) == ("only-Q4_0.gguf",)
    assert chosen("o/n", model_files(**GGUF)) == ("model.safetensors",)


@pytest.mark.parametrize("text, message", [
    ("o/n", "several GGUF files and none was chosen"),
    ("o/n:Q5_K_M", "no one GGUF file of 'Q5_K_M'"),
    ("o/n:Q4", "no one GGUF file of 'Q4'"), ("o/n/b.gguf", "no GGUF file 'b.gguf'"),
])  # fmt: skip
def test_a_missing_choice_lists_what_there_is(text, message):
    with pytest.raises(InvalidRequest, match=message) as caught:
        chosen(text)
    listed = str(caught.value).splitlines()[1:]
    ids = [line.split()[0] for line in listed]
    assert ids == ["o/n:Q4_K_XL", "o/n/a-Q4_K_M.gguf", "o/n/a-Q8_0.gguf"]
    assert "in 2 files" in listed[0] and "0.00 GB" in listed[1]
    assert [len(chosen(one)) for one in ids] == [2, 1, 1], "what is listed can be chosen"


def test_gguf_of_a_repository_without_any(fake):
    with pytest.raises(InvalidRequest, match="no GGUF file at all"):
        chosen("o/n:Q4_0", model_files())


def test_one_gguf_file_is_all_that_comes(fake, tmp_path):
    commit = fake.add("org/tiny", GGUF)
    q8 = HubId("org/tiny", quant="Q8_0")
    found = hub.fetch(q8, ASSETS, lambda *step: None, lambda *_: None, projector=False)
    assert found.path.read_bytes() == GGUF["a-Q8_0.gguf"]
    assert found.name == f"org/tiny:Q8_0@{commit}"
    assert snapshot_files(tmp_path) == {"a-Q8_0.gguf"}


def test_a_gguf_file_of_a_hub_loads_as_the_same_file_here(fake, tmp_path):
    pytest.importorskip("gguf")
    from support import gguf_models

    config = next(iter(gguf_models.CASES.values()))
    path = tmp_path / "local.gguf"
    gguf_models.write_gguf(path, config, gguf_models.checkpoint_of(config))
    files = {"tiny-F32.gguf": path.read_bytes(), "tiny-Q4_0.gguf": b"GGUF but not it"}
    commit = fake.add("org/tiny", files)
    ours, local = open_model("org/tiny:F32"), open_model(path)
    assert ours.info["source"] == f"org/tiny:F32@{commit}"
    for name, (*_, view) in local.tensors.items():
        np.testing.assert_array_equal(ours.tensors[name][3], view)
    assert fake.count(part="Q4_0") == 0
    with pytest.raises(UnsupportedModel, match="GGUF version"):
        open_model("org/tiny/tiny-Q4_0.gguf")


def test_offline_too_several_gguf_files_leave_a_choice(fake, monkeypatch):
    fake.add("org/tiny", GGUF)
    for quant in ("Q8_0", "Q4_K_M"):
        wanted = HubId("org/tiny", quant=quant)
        hub.fetch(wanted, ASSETS, lambda *step: None, lambda *_: None)
    fake.status = 503
    with pytest.raises(InvalidRequest, match="the cached snapshot of org/tiny has several GGUF"):
        hub.fetch(HubId("org/tiny"), ASSETS, lambda *step: None, lambda *_: None)
    with pytest.raises(HubUnavailable, match="is not whole"):
        hub.fetch(HubId("org/tiny", quant="Q4_K_XL"), ASSETS, lambda *s: None, lambda *_: None)


# ---- without a network -------------------------------------------------------------------------


@pytest.fixture(params=["offline mode", "nobody there", "hub down"])
def unreachable(request, monkeypatch):
    """Makes the hub unreachable, once it is called."""

    def cut(fake: FakeHub) -> None:
        if request.param == "offline mode":
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
            getattr(sys.modules["huggingface_hub.utils._http"], "reset_sessions", lambda: None)()
        elif request.param == "nobody there":
            monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        else:
            fake.status = 503

    return cut


def test_without_the_hub_a_whole_snapshot_serves_and_says_so(fake, unreachable):
    commit = fake.add("org/tiny", model_files(shards=2))
    before = opened("org/tiny")
    unreachable(fake)
    info = opened("org/tiny")
    assert info["source"] == before["source"]
    assert any(
        n.startswith(f"hub: not asked, the cached snapshot {commit[:12]}") for n in info["notes"]
    )
    assert opened(f"org/tiny@{commit}")["source"] == before["source"]
    with pytest.raises(HubUnavailable, match="the cache has no snapshot of org/tiny@v9"):
        open_model("org/tiny@v9")
    with pytest.raises(HubUnavailable, match="the cache has no snapshot of org/never"):
        open_model("org/never")


def test_a_snapshot_that_is_not_whole_does_not_serve(fake, tmp_path, unreachable):
    commit = fake.add("org/tiny", model_files(shards=2))
    opened("org/tiny")
    next((tmp_path / "hub").glob("**/model-00002-of-00002.safetensors")).unlink()
    unreachable(fake)
    with pytest.raises(HubUnavailable, match=rf"{commit[:12]} of org/tiny is not whole.*00002"):
        open_model("org/tiny")


def test_an_unfinished_update_leaves_the_older_snapshot_in_its_place(fake, monkeypatch):
    old = fake.add("org/tiny", model_files(1, shards=2))
    opened("org/tiny")
    new = fake.add("org/tiny", model_files(2, shards=2))
    del fake.repos["org/tiny"].commits[new]["model-00002-of-00002.safetensors"]
    listing = model_files(2, shards=2)
    real = hub.snapshot_of

    def complete_list(hub_id):
        found = real(hub_id)
        found.files.update({name: len(data) for name, data in listing.items()})
        return found

    monkeypatch.setattr(hub, "snapshot_of", complete_list)
    with pytest.raises(HubUnavailable, match="model-00002-of-00002"):
        open_model("org/tiny")
    monkeypatch.setattr(hub, "snapshot_of", real)
    fake.status = 503
    assert opened("org/tiny")["source"].endswith(old)


# ---- failures ----------------------------------------------------------------------------------


def test_no_such_model_and_private_ones(fake, monkeypatch):
    with pytest.raises(InvalidRequest, match=r"has no model 'org/none', or it is private.*hf auth"):
        open_model("org/none")
    fake.add("org/secret", model_files(), private=True)
    with pytest.raises(InvalidRequest, match="or it is private"):
        open_model("org/secret")
    monkeypatch.setenv("HF_TOKEN", "friend")
    assert opened("org/secret")["source"].startswith("org/secret@")


def test_gated_models_say_how_to_log_in(fake, monkeypatch):
    fake.add("org/gated", model_files(), gated=True)
    for token in ("", "stranger"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(
            AccessDenied, match=r"gated: ask for access at http.*/org/gated.*HF_TOKEN"
        ):
            open_model("org/gated")
    monkeypatch.setenv("HF_TOKEN", "friend")
    assert opened("org/gated")["source"].startswith("org/gated@")


CHUNK = 1 << 16  # what is not a whole one when the connection breaks is lost
BIG = np.random.default_rng(1).bytes(3 * LFS_BYTES)


@pytest.fixture
def resumable(monkeypatch):
    monkeypatch.setattr(hubtransfer, "_RESUMABLE", LFS_BYTES)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK)


def fetch_big(**options) -> Path:
    fetched = hub.fetch(HubId("org/big"), ASSETS, options.get("progress", lambda *s: None), print)
    return fetched.path


def test_a_broken_connection_is_taken_up_at_the_byte_where_it_broke(fake, resumable, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "friend")
    fake.add("org/big", {"big-Q4_0.gguf": BIG})
    fake.break_after, fake.breaks = 2_000_000, 1
    assert fetch_big().read_bytes() == BIG
    stored = [a for a in fake.asked if a.server == "storage"]
    assert [a.range for a in stored] == [None, f"bytes={2_000_000 // CHUNK * CHUNK}-"]
    assert all(a.token is None for a in stored), "the token goes to the hub alone"
    assert any(a.token == "Bearer friend" for a in fake.asked)


def test_a_download_that_was_stopped_goes_on_the_next_time(fake, resumable, tmp_path):
    fake.add("org/big", {"big-Q4_0.gguf": BIG})

    def stop(done, total, label):
        if done > 1_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_big(progress=stop)
    assert snapshot_files(tmp_path) == set(), "nothing partial counts as whole"
    here = next((tmp_path / "hub").glob("**/*.incomplete")).stat().st_size
    assert here >= 1_000_000
    fake.asked.clear()
    seen: list[int] = []
    assert fetch_big(progress=lambda done, total, label: seen.append(done)).read_bytes() == BIG
    assert [a.range for a in fake.asked if a.server == "storage"] == [f"bytes={here}-"]
    assert seen[0] == here and seen[-1] == len(BIG)
    assert not list((tmp_path / "hub").glob("**/*.incomplete"))


def test_a_hub_that_breaks_off_for_good_is_an_error_that_keeps_what_came(fake, resumable, tmp_path):
    fake.add("org/big", {"big-Q4_0.gguf": BIG})
    fake.break_after, fake.breaks = CHUNK + 1, 10**9

    def give_up(done, total, label):  # each attempt brings a little: the library would go on
        if done > 4 * CHUNK:
            fake.status = 502

    with pytest.raises(HubUnavailable, match=r"downloading big-Q4_0\.gguf of org/big"):
        fetch_big(progress=give_up)
    assert next((tmp_path / "hub").glob("**/*.incomplete")).stat().st_size == 5 * CHUNK
    assert snapshot_files(tmp_path) == set()


def test_a_connection_is_made_anew_as_long_as_bytes_come(tmp_path, monkeypatch):
    """Versions of the library differ in which breaks they mend themselves; the last brings none."""
    begun: list[int] = []

    def http_get(url, file, *, resume_size, headers, expected_size):
        begun.append(resume_size)
        file.write(bytes(100) if len(begun) < 4 else b"")
        raise ConnectionError("gone")

    monkeypatch.setattr(huggingface_hub.file_download, "http_get", http_get)
    monkeypatch.setattr(hubtransfer, "_PAUSE_S", 0)
    part = hubtransfer._Partial(tmp_path / "part", lambda done: None)
    with part, pytest.raises(ConnectionError):
        hubtransfer._receive("http://x", part, {}, 1000)
    assert begun == [0, 100, 200, 300]


def test_the_librarys_own_bars_are_off_meanwhile_and_then_as_before(fake, resumable):
    fake.add("org/big", {"big-Q4_0.gguf": BIG})
    name, seen = "huggingface_hub.http_get", []

    def look(*step):
        seen.append(huggingface_hub.utils.are_progress_bars_disabled(name))

    fetch_big(progress=look)
    assert seen[1:-1] and all(seen[1:-1])
    assert not huggingface_hub.utils.are_progress_bars_disabled(name)


def test_two_at_once_download_once(fake, resumable):
    fake.add("org/big", {"big-Q4_0.gguf": BIG})
    entered, go_on = threading.Event(), threading.Event()

    def hold(done, total, label):
        if done:
            entered.set()
            go_on.wait(30)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(fetch_big, progress=hold)
        assert entered.wait(30)
        second = pool.submit(fetch_big)
        time.sleep(0.1)  # it waits for the lock, or would by now have asked for the bytes
        go_on.set()
        assert first.result().read_bytes() == second.result().read_bytes() == BIG
    assert fake.count(part="storage") == 1


def test_bytes_that_are_not_what_the_checksum_names_are_refused(fake, resumable, tmp_path):
    fake.add("org/big", {"big-Q4_0.gguf": BIG})
    fake.forged[etag_of(BIG)] = BIG[:-1] + bytes([BIG[-1] ^ 1])
    with pytest.raises(CorruptFile, match="checksum"):
        fetch_big()
    assert snapshot_files(tmp_path) == set()
    fake.forged.clear()
    assert fetch_big().read_bytes() == BIG


def test_a_cached_file_of_another_length_is_fetched_again(fake, resumable):
    fake.add("org/big", {"big-Q4_0.gguf": BIG})
    path = fetch_big()
    os.truncate(path.resolve(), 1000)
    assert fetch_big().read_bytes() == BIG


def test_a_content_of_another_length_is_fetched_again_too(fake, resumable):
    """The snapshot has no name for it yet: the library would link it as it is."""
    fake.add("org/big", {"big-Q4_0.gguf": BIG})
    path = fetch_big()
    os.truncate(path.resolve(), 1000)
    path.unlink()
    assert fetch_big().read_bytes() == BIG


def test_a_damaged_file_is_counted_with_those_to_come(fake, resumable, monkeypatch, tmp_path):
    """Bytes that come again need room and are shown as any others."""
    fake.add("org/big", {"big-Q4_0.gguf": BIG})
    os.truncate(fetch_big().resolve(), 1000)
    with monkeypatch.context() as full:
        usage = shutil.disk_usage(tmp_path)
        full.setattr(hubtransfer.shutil, "disk_usage", lambda p: usage._replace(free=1000))
        with pytest.raises(WriteFailed, match="org/big needs"):
            fetch_big()
    seen: list[tuple[int, int]] = []
    fetch_big(progress=lambda done, total, label: seen.append((done, total)))
    assert seen[-1] == (len(BIG), len(BIG))


def test_a_full_disk_is_said_before_the_first_byte(fake, resumable, monkeypatch, tmp_path):
    fake.add("org/big", {"big-Q4_0.gguf": BIG})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(hubtransfer.shutil, "disk_usage", lambda p: usage._replace(free=1000))
    with pytest.raises(WriteFailed, match=r"org/big needs 0\.00 GB and .* HF_HOME") as caught:
        fetch_big()
    assert caught.value.errno == errno.ENOSPC
    assert fake.count(part="storage") == 0


def test_a_disk_that_fills_up_meanwhile(fake, resumable, monkeypatch):
    fake.add("org/big", {"big-Q4_0.gguf": BIG})

    def full(self, data):
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(hubtransfer._Partial, "write", full)
    with pytest.raises(WriteFailed, match="No space left"):
        fetch_big()


def test_contents_shared_by_two_commits_come_once(fake, resumable, monkeypatch, tmp_path):
    fake.add("org/big", {"big-Q4_0.gguf": BIG})
    first = fetch_big()
    fake.add("org/big", {"big-Q4_0.gguf": BIG, "README.md": b"new"})
    fake.asked.clear()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(hubtransfer.shutil, "disk_usage", lambda p: usage._replace(free=1000))
    second = fetch_big()
    assert first != second and second.read_bytes() == BIG
    assert fake.count(part="storage") == 0


def test_an_answer_that_makes_no_sense(fake, monkeypatch):
    fake.add("org/tiny", model_files())
    fake.repos["org/tiny"].branches["main"] = "not-a-commit"
    fake.repos["org/tiny"].commits["not-a-commit"] = model_files()
    with pytest.raises(CorruptFile, match="the hub names the commit 'not-a-commit'"):
        open_model("org/tiny")
    fake.status = 200  # a page of some other server
    with pytest.raises(HubUnavailable, match="asking for org/tiny"):
        open_model("org/tiny")


# ---- a process of its own ------------------------------------------------------------------------


def test_the_environment_decides_and_nothing_is_imported_before_it_is_named(fake, tmp_path):
    """HF_HOME, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, and the command line."""
    fake.add("org/secret", model_files(), private=True)
    code = (
        "import sys, musespark; from musespark.weights import open_model;"
        "assert 'huggingface_hub' not in sys.modules;"
        "print(open_model('org/secret').info['source'])"
    )
    env = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": fake.url(),
           "HF_TOKEN": "friend", "HF_HUB_OFFLINE": "0"}  # fmt: skip
    env.pop("HF_HUB_CACHE", None)

    def run(**more: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-c", code], env=env | more, capture_output=True,
                              text=True, timeout=120)  # fmt: skip

    first = run()
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("org/secret@")
    assert first.stderr == "", "no bars and no warnings outside a terminal"
    assert (tmp_path / "home" / "hub" / "models--org--secret").is_dir()
    fake.asked.clear()
    assert run(HF_HUB_OFFLINE="1").stdout == first.stdout
    assert fake.asked == []
