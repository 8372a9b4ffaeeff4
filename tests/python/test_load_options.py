"""What load and the calls refuse at once, by name: options, damaged and missing files, memory."""

from __future__ import annotations

import dataclasses
import errno
import json
import mmap
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path

import numpy as np
import pytest

import musespark
from musespark import options, scoring
from musespark.errors import CorruptFile, InvalidRequest, MemoryBudgetExceeded, UnsupportedModel
from musespark.events import Finished, LogitsRows, collect
from musespark.families import read_config
from musespark.sizes import kv_bytes
from musespark.weights import cache, files, loading, open_model, pack
from musespark.weights.files import (
    AsideFile,
    WriteFailed,
    remove_left_behind,
    write_aside,
    write_whole,
)
from support.chat_folder import chat_folder
from support.gguf_bytes import STRING, file_bytes, key


@pytest.fixture(scope="module")
def model():
    with musespark.load(context=512, threads=1) as loaded:
        yield loaded


@pytest.fixture
def unpacked(monkeypatch):
    """Packing fails the test."""

    def pack_nothing(*args, **kwargs):
        raise AssertionError("it was packed first")

    monkeypatch.setattr(loading, "pack_folder", pack_nothing)


@pytest.mark.parametrize("name", ["threads", "context"])
@pytest.mark.parametrize("wrong", [0, -1, 10**30, 2.0, "5", True, [1]])
def test_counts_are_checked_before_packing(folder, own_cache, unpacked, name, wrong) -> None:
    """A large model was packed for a minute, and then refused; 10**30 was Python's own error."""
    with pytest.raises(InvalidRequest, match=rf"{name}: got .*allowed is 1 to"):
        musespark.load(folder, **{name: wrong})


def test_a_context_beyond_the_model_is_refused_before_packing(folder, own_cache, unpacked) -> None:
    (folder / "tokenizer.json").write_bytes((loading._NANO / "tokenizer.json").read_bytes())
    with pytest.raises(InvalidRequest, match="the model's own"):
        musespark.load(folder, context=2**30)


def test_a_context_of_millions_is_cut_to_what_runs(folder) -> None:
    """Ten million in a config, for "no limit", was refused whatever context was asked for."""
    config = json.loads((folder / "config.json").read_text())
    _, spec, notes = read_config(config | {"max_position_embeddings": 10_000_000})
    assert spec.max_context == 1 << 20
    assert kv_bytes(spec, "kv8", 64) > 0  # the core takes it, and no more
    assert any("10000000, at most 1048576" in note for note in notes)
    with pytest.raises(UnsupportedModel, match="max_context"):
        kv_bytes(dataclasses.replace(spec, max_context=(1 << 20) + 1), "kv8", 64)


def test_a_missing_tokenizer_is_missed_before_packing(folder, own_cache, unpacked) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedModel, match=rf"{folder}: tokenizer\.json is missing"):
        musespark.load(folder)


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("tokenizer.json", '{"version": "1.0"}', "{}: tokenizer.json: field 'model' is missing"),
        ("chat_template.jinja", "{% for %}", "{}: chat_template.jinja: not a valid chat template"),
    ],
)
def test_broken_files_are_met_before_packing(tmp_path, own_cache, unpacked, name, text, what):
    """They left a packed model in the cache, which nothing could use."""
    folder = chat_folder(tmp_path / "m")
    (folder / name).write_text(text)
    with pytest.raises(CorruptFile, match=re.escape(what.format(folder))):
        musespark.load(folder)
    assert not own_cache.exists()


def test_a_packed_file_could_be_read_back(tmp_path) -> None:
    """A folder without a tokenizer, and a file called .gguf, were packed in vain."""
    folder = chat_folder(tmp_path / "m")
    with pytest.raises(InvalidRequest, match=r"out\.gguf: a packed file is .*call it out\.safete"):
        musespark.convert(folder, tmp_path / "out.gguf")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedModel, match=rf"{folder}: tokenizer\.json is missing"):
        musespark.convert(folder, tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, number) -> None:
    """A home that is read-only meant no model at all."""
    folder = chat_folder(tmp_path / "m")
    monkeypatch.setenv("MUSESPARK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with musespark.load(folder, threads=1) as model:
        expected = model.generate("Once", max_new_tokens=8).tokens
        assert not any("cache" in note for note in model.info.notes)
    shutil.rmtree(tmp_path / "cache")

    def refuse(*args, **options):
        raise OSError(number, os.strerror(number), str(tmp_path / "cache"))

    monkeypatch.setattr(cache, "packing_lock", refuse)
    before = set(tmp_path.iterdir())
    with musespark.load(folder, threads=1) as model:
        (note,) = [note for note in model.info.notes if "cache" in note]
        assert f"({os.strerror(number)}): packed into {tmp_path} for this process alone" in note
        assert model.generate("Once", max_new_tokens=8).tokens == expected
        assert set(tmp_path.iterdir()) == before  # nothing lies about, while it runs either
    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(WriteFailed, match="nor is there room for a temporary file; set MUSESPARK_"):
        musespark.load(folder)


PAGE = b"\n<!DOCTYPE html><html><body>Sign in to download</body></html>" + b" " * 200


@pytest.mark.parametrize("name", ["m.gguf", "m.safetensors", "f/config.json"])
def test_a_page_instead_of_a_download_is_recognised(tmp_path, name) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / name).write_bytes(PAGE)
    path = tmp_path / name
    with pytest.raises(CorruptFile, match=f"{name}: a web page"):
        musespark.load(path.parent if "/" in name else path)


def test_files_are_known_by_what_is_in_them(tmp_path) -> None:
    """A packed file under the name of another kind was read as that kind."""
    musespark.convert(None, tmp_path / "nano.safetensors", quantize="q8")
    (tmp_path / "nano.safetensors").rename(tmp_path / "nano.gguf")
    with musespark.load(tmp_path / "nano.gguf", threads=1, context=256) as model:
        assert model.generate("Once", max_new_tokens=2).tokens


def test_what_is_no_model_is_called_what_it_is(tmp_path) -> None:
    folder = chat_folder(tmp_path / "m")
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(CorruptFile, match=r"give the folder, with config\.json and tokenizer"):
        musespark.load(tmp_path / "model.safetensors")
    adapter = tmp_path / "a"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    for look in (musespark.load, musespark.inspect):
        with pytest.raises(InvalidRequest, match=r"is an adapter \(for 'org/base'\), no model"):
            look(adapter)
    empty = tmp_path / "vocabulary.gguf"
    empty.write_bytes(file_bytes([key("general.architecture", STRING, "llama")], []))
    with pytest.raises(UnsupportedModel, match=r"gguf: holds no tensors \(a vocabulary only\)"):
        musespark.inspect(empty)


def test_an_option_that_nobody_knows_is_named(folder) -> None:
    with pytest.raises(InvalidRequest, match="unknown argument 'contxt'; did you mean 'context'"):
        musespark.load(folder, contxt=5)


def test_verify_finds_what_loading_does_not_read(tmp_path) -> None:
    packed = tmp_path / "nano.safetensors"
    shutil.copy(loading.EMBEDDED_PACKED, packed)
    with musespark.load(packed, verify=True, threads=1, context=64, progress=False) as model:
        assert model.generate("Once", max_new_tokens=2).tokens
    loaded = open_model(packed)
    entry = max(loaded.packed.file.entries.values(), key=lambda e: e.end - e.begin)
    loaded.close()
    with open(packed, "r+b") as file:
        file.seek(entry.begin + 5)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(CorruptFile, match="checksum"):
        musespark.load(packed, verify=True, progress=False)


@pytest.mark.parametrize("name", ["verify", "lock_memory", "huge_pages"])
@pytest.mark.parametrize("wrong", [1, 0, None, "yes"])
def test_switches_are_bools(name, wrong) -> None:
    with pytest.raises(InvalidRequest, match=f"{name}: got {wrong!r}, allowed is a bool"):
        musespark.load(**{name: wrong})


# ---- where weights lie --------------------------------------------------------------------------


def in_process(code: str) -> list[str]:
    """The lines that a process of its own prints: locks and limits are of the whole process."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


STATUS = """
def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(name + ":"))
"""
# Root may lock what it likes: the process gives that right up, as capset(2) has it.
WITHOUT_THE_RIGHT = """
import ctypes, resource
class Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]
header, data = Header(0x20080522, 0), (ctypes.c_uint32 * 6)()
libc = ctypes.CDLL(None, use_errno=True)
assert libc.capget(ctypes.byref(header), data) == 0
data[0] &= ~(1 << 14); data[1] &= ~(1 << 14)
assert libc.capset(ctypes.byref(header), data) == 0
resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))
"""
linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks /proc")


@linux
def test_locked_weights_stay_in_memory_until_the_model_is_closed() -> None:
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] < 5 << 20 and os.geteuid() != 0:
        pytest.skip("this process may not lock the weights of Spark Nano")
    code = STATUS + (
        "import musespark\n"
        "model = musespark.load(lock_memory=True, threads=1, context=64)\n"
        "print(model.info.weight_bytes, status('VmLck'), *model.info.notes, sep='\\n')\n"
        "model.close(); del model\n"
        "import gc; gc.collect(); print(status('VmLck'))\n"
    )
    nbytes, locked, *notes, after = in_process(code)
    assert int(nbytes) <= int(locked) < int(nbytes) + (1 << 20)
    assert any(re.fullmatch(r"lock_memory: .*MiB of weights stay in memory", n) for n in notes)
    assert int(after) == 0


@linux
def test_a_limit_of_locked_memory_is_named() -> None:
    code = (
        WITHOUT_THE_RIGHT
        + STATUS
        + (
            "import musespark\n"
            "need = musespark.load(threads=1, context=64).info.weight_bytes\n"
            "try: musespark.load(lock_memory=True, threads=1, context=64)\n"
            "except musespark.MemoryBudgetExceeded as error: print(need, status('VmLck'), error)\n"
        )
    )
    (line,) = in_process(code)
    need, locked, text = line.split(" ", 2)
    assert locked == "0"
    assert re.fullmatch(
        rf"lock_memory: {need} bytes cannot be locked \(.*\): this process may lock 1048576 bytes; "
        r"raise the limit \(ulimit -l, LimitMEMLOCK=\)",
        text,
    )


@linux
def test_weights_in_huge_pages_are_the_same_and_the_file_is_let_go(model) -> None:
    before = model.generate("Once", max_new_tokens=8, temperature=0, logprobs=2)
    path = str(loading.EMBEDDED_PACKED.resolve())
    code = (
        "import musespark\n"
        "model = musespark.load(huge_pages=True, threads=1, context=512)\n"
        "out = model.generate('Once', max_new_tokens=8, temperature=0)\n"
        f"print(out.tokens, {path!r} in open('/proc/self/maps').read())\n"
        "print(*model.info.notes, sep='\\n')\n"
    )
    first, *notes = in_process(code)
    assert first == f"{before.tokens} False"
    assert any(re.fullmatch(r"huge_pages: \d.* copied, \d.* lie in huge pages", n) for n in notes)


def test_a_system_without_huge_pages_is_told(monkeypatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    with pytest.raises(InvalidRequest, match="huge_pages: this system has none"):
        musespark.load(huge_pages=True)


def test_the_command_line_has_both() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "musespark", "generate", "-n", "2", "--huge-pages", "Once"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and "huge_pages:" in done.stderr, done.stderr


# ---- files --------------------------------------------------------------------------------------


def test_a_cached_pack_does_not_map_its_source(folder, own_cache, monkeypatch) -> None:
    open_model(folder, quantize="q8", progress=False).close()
    mapped = []
    real = files.MappedFile._mapped

    def noted(self):
        mapped.append(self.path)
        return real(self)

    monkeypatch.setattr(files.MappedFile, "_mapped", noted)
    open_model(folder, quantize="q8", progress=False).close()
    assert mapped and not [path for path in mapped if folder in path.parents]


def test_no_address_space_is_a_typed_error(folder, own_cache, monkeypatch) -> None:
    def no_memory(*args, **kwargs):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", no_memory)
    with pytest.raises(MemoryBudgetExceeded, match=r"model\.safetensors: no address space to map"):
        open_model(folder, quantize="q8", progress=False)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json"])
def test_a_dangling_link_is_called_one(folder, own_cache, name) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("/nowhere/at-all")
    with pytest.raises(musespark.Error, match="a link to /nowhere/at-all, which is not there"):
        open_model(folder, progress=False)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_git_lfs_pointer_is_called_one(folder, own_cache, name) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1045368\n"
    (folder / name).write_text(text)
    with pytest.raises(CorruptFile, match=rf"{name}: a Git LFS pointer.*git lfs pull"):
        musespark.load(folder, progress=False)


def what_opens(source):
    weights = open_model(source, progress=False)
    sizes = {name: at[:3] for name, at in weights.tensors.items()}
    weights.close()
    return weights.spec, sizes


def test_a_byte_order_mark_is_no_part_of_json(folder, own_cache) -> None:
    config = (folder / "config.json").read_bytes()
    plain = what_opens(folder)
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + config)
    assert what_opens(folder) == plain


def test_a_home_is_expanded(folder, own_cache, monkeypatch) -> None:
    plain = what_opens(folder)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert what_opens(f"~/{folder.name}") == plain


@pytest.mark.parametrize("source", ["", "~/nope", "/tmp/\0x", "./not/there", Path("not-there")])
def test_what_is_not_there_is_said_first(source, monkeypatch) -> None:
    with pytest.raises(InvalidRequest, match="no such file or folder"):
        musespark.load(source)


def test_an_empty_home_is_none(monkeypatch) -> None:
    for name in ("MUSESPARK_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("HOME")
    own = cache.cache_folder()
    monkeypatch.setenv("HOME", "")
    assert cache.cache_folder() == own and own.is_absolute()


def test_an_empty_name_removes_nothing(own_cache) -> None:
    with pytest.raises(InvalidRequest, match="empty name"):
        cache.find("")


# ---- how files are written --------------------------------------------------------------


def test_appended_bytes_are_written_in_whole_huge_pages(tmp_path, monkeypatch) -> None:
    huge, calls, pwrite = 2 << 20, [], os.pwrite

    def seen(fd, data, offset):
        calls.append((offset, len(data)))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", seen)
    sizes = [1, huge - 1, 3 * huge + 5, 7, 2 * huge, huge - 12 + 4096, 0, 100]
    pieces = [bytes([i + 1]) * n for i, n in enumerate(sizes)]
    start = 1000
    with write_aside(tmp_path / "f") as file:
        file.position = start
        for piece in pieces:
            file.write(piece)
        appended = len(calls)
        file.write_at(0, b"h" * start)
    assert (tmp_path / "f").read_bytes() == b"h" * start + b"".join(pieces)
    # All begin at a huge page's start but the first, and end at one.
    assert [at % huge for at, _ in calls[:appended]] == [start] + [0] * (appended - 1)
    assert all((at + n) % huge == 0 for at, n in calls[:appended])


# ---- what a killed process leaves ---------------------------------------------------------------


def test_partial_files_of_the_dead_are_removed(tmp_path) -> None:
    """A terminated conversion left its gigabytes under a hidden name for ever."""
    target = tmp_path / "model[1].safetensors"
    dead = AsideFile(target)
    dead.write(b"half")
    os.close(dead._fd)  # as the end of a process does
    dead._fd = -1
    others = tmp_path / ".other.safetensors.1.ab.partial"
    others.write_bytes(b"not ours")
    living = AsideFile(target)
    with write_aside(target) as file:
        assert not dead.aside.exists() and living.aside.exists()
        file.write(b"whole")
    living.discard()
    remove_left_behind(target)
    assert sorted(p.name for p in tmp_path.iterdir()) == [others.name, target.name]


def test_a_disk_without_room_is_told_before_writing(tmp_path, monkeypatch) -> None:
    folder = chat_folder(tmp_path / "m")

    class Disk:
        f_bavail, f_frsize = 3, 512

    monkeypatch.setattr(os, "statvfs", lambda path: Disk)
    with pytest.raises(WriteFailed, match=r"no room: \d+ bytes are needed, 1536 are free"):
        musespark.convert(folder, tmp_path / "out.safetensors", progress=False)
    assert not (tmp_path / "out.safetensors").exists()
    assert pack.check_disk is files.check_disk


# ---- calls --------------------------------------------------------------------------------------


def test_encoding_counts_against_the_deadline(model, monkeypatch) -> None:
    """A deadline of half a second took the encoding of a long prompt, and then half a second."""
    clock = iter([100.0, 100.3, 200.0, 209.0])
    monkeypatch.setattr(options.time, "monotonic", lambda: next(clock))
    request, *_ = model._text_request("Once", {"deadline": 0.5})
    assert request.deadline == pytest.approx(0.2)
    request, *_ = model._chat_request("Hello", {"deadline": 0.5})
    assert request.deadline == 0
    monkeypatch.undo()
    assert model.chat("Hello", deadline=0, max_new_tokens=9).finish_reason == "deadline"


def test_logits_beyond_memory_are_refused_at_once(model, monkeypatch) -> None:
    monkeypatch.setattr(scoring, "available_memory", lambda: 4 * model.info.vocab * 10)
    assert model.logits([5] * 10).shape == (10, model.info.vocab)
    with pytest.raises(MemoryBudgetExceeded, match="logits of 11 tokens are"):
        model.logits([5] * 11)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 10**30}, "allowed is an integer from 1 to 2147483647"),
        ({"max_new_tokens": 10**5000}, "got a huge int, allowed is an integer from 1 to"),
        ({"min_new_tokens": 10**30}, "allowed is an integer from 0 to 2147483647"),
        ({"top_k": 10**30}, "allowed is an integer from 0 to 2147483647"),
        ({"seed": 10**30}, "allowed is an integer from 0 to"),
        ({"stop": "\ud800"}, "no text has a lone surrogate"),
        ({"stream": "no"}, "stream: got 'no', allowed is True or False"),
        ({"stream": 1}, "stream: got 1"),
    ],
)
def test_wrong_values_give_the_documented_range(model, options, message) -> None:
    for call in (model.generate, model.chat, model.session().chat):
        with pytest.raises(InvalidRequest, match=message):
            call("hi", **options)


@pytest.mark.parametrize("wrong", [None, 5, "abc", [1.5], [None], [[1]], ["a"], [2**70]])
def test_decoding_takes_ids_only(model, wrong) -> None:
    with pytest.raises(InvalidRequest):
        model.tokenizer.decode(wrong)


def test_joined_logits_are_held_once() -> None:
    """Joining by concatenation took twice the memory that logits() had found to be free."""
    events: list = [LogitsRows(8 * i, np.full((8, 4), i, np.float32)) for i in range(5)]
    alive = [weakref.ref(event.values) for event in events]
    events.append(Finished("length", {}))
    logits = collect(events).logits
    assert events == [] and [one() for one in alive] == [None] * 5
    assert np.array_equal(logits, np.repeat(np.arange(5), 8)[:, None] * np.ones(4))


def test_a_device_or_pipe_is_never_replaced(tmp_path: Path) -> None:
    """A rename puts a file in its place, for whoever may: once in that of /dev/full."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(WriteFailed, match="not a regular file"), write_aside(pipe) as file:
        file.write(b"x")
    assert pipe.is_fifo()
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, b"page")
    assert os.read(reader, 9) == b"page"
    os.close(reader)
    for text in (b"one", b"two"):
        write_whole(tmp_path / "page", text)
        assert (tmp_path / "page").read_bytes() == text
    with pytest.raises(WriteFailed):
        write_whole(tmp_path, b"x")


@pytest.mark.parametrize("wrong", [5, None, "", b"a"])
def test_what_is_no_path_is_named(model, folder, wrong: object) -> None:
    calls = {
        "path": [lambda: model.resume(wrong), lambda: model.session().save(wrong)],
        "destination": [lambda: musespark.convert(folder, wrong)],
        "source": [lambda: musespark.inspect(wrong), lambda: musespark.load(wrong)],
    }
    for name, found in calls.items():
        if name == "source" and wrong in (None, ""):  # the embedded model; said to be no file
            continue
        for call in found:
            with pytest.raises(InvalidRequest, match=f"{name}: got {wrong!r}, allowed is a path"):
                call()
