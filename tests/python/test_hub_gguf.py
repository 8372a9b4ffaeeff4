"""GGUF models on a hub: what their headers say, before gigabytes come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import musespark
from musespark.errors import CorruptFile, HubUnavailable, MemoryBudgetExceeded, UnsupportedModel
from musespark.weights import hub, hubheaders, hubtransfer, inspect, look, open_model
from musespark.weights.gguf import EndsEarly, GgufFile
from musespark.weights.hubids import HubId

gguf = pytest.importorskip("gguf")
from support.fake_hub import LFS_BYTES, FakeHub  # noqa: E402
from support.gguf_models import (  # noqa: E402
    CASES,
    byte_vocabulary,
    checkpoint_of,
    quantized,
    write_gguf,
)

pytest_plugins = ("support.hub_fixtures",)

CONFIG = CASES["llama"] | {"vocab_size": 258}
# Wide enough that a download of the weights is told from one of their header.
WIDE = CONFIG | {"intermediate_size": 8192}


def file_bytes(tmp_path: Path, config=CONFIG, vocabulary=byte_vocabulary) -> bytes:
    path = tmp_path / "made.gguf"
    path.unlink(missing_ok=True)
    write_gguf(path, config, checkpoint_of(config), quantized("Q8_0"), vocabulary)
    return path.read_bytes()


def received(fake: FakeHub) -> int:
    """Bytes of large files that were asked for, at most."""
    total = 0
    for asked in fake.asked:
        if asked.method == "GET" and asked.server == "storage":
            if asked.range is None:
                return 1 << 40
            first, last = asked.range.removeprefix("bytes=").split("-")
            total += int(last) + 1 - int(first)
    return total


def test_inspect_reads_the_header_alone(fake, tmp_path, monkeypatch):
    data = file_bytes(tmp_path, WIDE)
    assert len(data) > 2 * LFS_BYTES
    fake.add("org/tiny", {"tiny-Q8_0.gguf": data}, card={"license": "mit"})
    monkeypatch.setattr(hubheaders, "_FIRST_BYTES", 1000)  # so that it must ask again
    found, local = look("org/tiny"), look(tmp_path / "made.gguf")
    assert received(fake) < 200_000 and fake.count("GET", "storage") > 1
    assert not list(tmp_path.glob("hub/**/*.gguf"))
    for key in ("family", "parameters", "bytes", "formats", "weights", "layers", "tensors"):
        assert found.report[key] == local.report[key], key
    assert found.spec == local.spec and found.weights == local.weights
    assert found.report["licence"] == "mit (the hub)"
    assert found.report["notes"][-1] == "the weights are on the hub: only their headers were read"
    assert musespark.inspect("org/tiny")["memory"].largest[0][2] > 0


def test_split_files_and_small_tensors_that_are_read(fake, tmp_path):
    """The factors of rotations are a tensor, and part of the model's description."""
    config = CASES["llama_llama3"]
    write_gguf(tmp_path / "m.gguf", config, checkpoint_of(config), split_max_tensors=5)
    files = sorted(tmp_path.glob("m-*.gguf"))
    assert len(files) == 5
    fake.add("org/tiny", {path.name: path.read_bytes() for path in files})
    found = look("org/tiny")
    assert found.spec == look(files[0]).spec and found.spec.ropes[0].scaling == "llama3"
    fake.add("org/mixed", {p.name: p.read_bytes() * (1 if p == files[0] else 0) for p in files})
    with pytest.raises(HubUnavailable, match=r"m-00002-of-00005\.gguf"):
        hubheaders.remote_gguf(hub.snapshot_of(HubId("org/mixed")), files[0].name)


@pytest.mark.parametrize("ask", [inspect, open_model, musespark.load])
def test_what_is_not_supported_is_refused_by_its_header(fake, tmp_path, ask):
    data = file_bytes(tmp_path, WIDE)
    other = data.replace(b"llama", b"nobod")
    fake.add("org/tiny", {"tiny-Q8_0.gguf": other})
    with pytest.raises(UnsupportedModel, match=r"org/tiny/tiny-Q8_0\.gguf.*'nobod': supported"):
        ask("org/tiny")
    assert received(fake) <= hubheaders._FIRST_BYTES


def test_a_type_of_tensors_a_tokenizer_and_a_size_are_refused_by_the_header(
    fake, tmp_path, monkeypatch
):
    data = file_bytes(tmp_path, WIDE)
    at = data.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 16
    fake.add("org/type", {"a-Q8_0.gguf": data[:at] + (19).to_bytes(4, "little") + data[at + 4 :]})
    with pytest.raises(UnsupportedModel, match=r"type IQ1_S \(19\)"):
        open_model("org/type")
    fake.add("org/bare", {"a-Q8_0.gguf": file_bytes(tmp_path, WIDE, lambda *_: None)})
    with pytest.raises(UnsupportedModel, match=r"org/bare/a-Q8_0\.gguf.*tokenizer\.json is miss"):
        musespark.load("org/bare")
    fake.add("org/large", {"a-Q8_0.gguf": data})
    monkeypatch.setenv("MUSESPARK_MEMORY", "1M")
    with pytest.raises(MemoryBudgetExceeded, match=r"weights 3\.[0-9] MiB"):
        musespark.load("org/large")
    assert received(fake) <= 3 * hubheaders._FIRST_BYTES
    monkeypatch.delenv("MUSESPARK_MEMORY")
    with musespark.load("org/large", threads=1, context=64) as model:
        assert model.generate("the", max_new_tokens=2).tokens


def test_a_damaged_header_is_not_asked_for_again_and_again(fake, tmp_path):
    data = file_bytes(tmp_path, WIDE)
    fake.add("org/magic", {"a-Q8_0.gguf": b"GGUX" + data[4:]})
    with pytest.raises(CorruptFile, match="magic is"):
        inspect("org/magic")
    assert received(fake) <= hubheaders._FIRST_BYTES
    fake.add("org/short", {"a-Q8_0.gguf": data[:3000]})
    with pytest.raises(EndsEarly, match=r"org/short/a-Q8_0\.gguf: .* (are left|has 0 bytes)"):
        inspect("org/short")


def test_a_hub_without_ranges_still_serves(fake, tmp_path, monkeypatch):
    def no_ranges(*_):
        raise HubUnavailable("the answer is 200")

    fake.add("org/tiny", {"tiny-Q8_0.gguf": file_bytes(tmp_path)})
    monkeypatch.setattr(hubheaders.transfer, "read_range", no_ranges)
    report = inspect("org/tiny")
    assert report["family"] is None and "the answer is 200" in report["notes"]
    np.testing.assert_array_equal(
        open_model("org/tiny").tensors["embed"][3],
        open_model(tmp_path / "made.gguf").tensors["embed"][3],
    )


def test_ranges(fake):
    data = np.random.default_rng(1).bytes(LFS_BYTES + 1000)
    commit = fake.add("org/tiny", {"a.gguf": data, "b.gguf": b"short"})
    hub_id = HubId("org/tiny")

    def read(name: str, begin: int, end: int):
        return hubtransfer.read_range(hub_id, commit, name, begin, end)

    assert read("a.gguf", 5, 70_000) == (data[5:70_000], len(data))
    assert read("a.gguf", 0, 1 << 30) == (data, len(data))
    assert read("b.gguf", 0, 100) == (b"short", 5)
    with pytest.raises(HubUnavailable, match=r"reading bytes 9 to 10 of b\.gguf"):
        read("b.gguf", 9, 10)
    fake.break_after, fake.breaks = 1000, 1
    with pytest.raises(HubUnavailable):
        read("a.gguf", 0, 70_000)


def test_an_answer_of_the_whole_file_is_not_received(fake, monkeypatch):
    data = bytes(LFS_BYTES)
    commit = fake.add("org/tiny", {"a.gguf": data})
    real = hubtransfer._streamed

    def without_range(session, url, headers):
        return real(session, url, {k: v for k, v in headers.items() if k != "range"})

    monkeypatch.setattr(hubtransfer, "_streamed", without_range)
    with pytest.raises(HubUnavailable, match="the answer is 200 with range ''"):
        hubtransfer.read_range(HubId("org/tiny"), commit, "a.gguf", 0, 10)


def test_a_header_that_ends_early_is_told_from_a_damaged_one(tmp_path):
    """Every cut of a header is the former."""
    file_bytes(tmp_path)
    whole = GgufFile(tmp_path / "made.gguf")
    header = whole._header_bytes
    for at in range(8, header, 97):
        cut = hubheaders._Beginning(whole.mapped.bytes[:at], whole.mapped.nbytes)
        with pytest.raises(EndsEarly):
            GgufFile(whole.path, cut)
    cut = hubheaders._Beginning(whole.mapped.bytes[:header], whole.mapped.nbytes)
    assert GgufFile(whole.path, cut).entries == whole.entries
