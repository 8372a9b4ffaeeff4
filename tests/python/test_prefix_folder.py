"""The prefix folder: what one process computed another reads, with the same bits; and whatever is
wrong with the folder costs time, never a request."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from tests.python.test_lora_model import nano_adapter

import musespark
from musespark.cli import main
from musespark.engine import ARITHMETIC_VERSION
from musespark.errors import CorruptFile, InvalidRequest
from musespark.events import Request
from musespark.prefix_folder import PrefixFolder, page_keys
from musespark.prefix_store import PrefixStore
from musespark.transfers import outgoing
from support import engine_cases as cases

DOCUMENT = [2 + (i * 7 + i // 50) % 2000 for i in range(700)]  # 10 pages and a rest
QUESTION, OTHER = [5, 6, 7, 8], [9, 10, 11]
OPTIONS = {"max_new_tokens": 12, "temperature": 0.9, "seed": 3, "logprobs": 2}


def load(folder: Path | None, **options):
    given = {"kv": "kv8", "threads": 1, "context": 1024} | options
    if folder is not None:
        given["prefix_folder"] = folder
    return musespark.load(**given)


def answer(model, ids, **options):
    result = model.generate(ids, **(OPTIONS | options))
    return (result.tokens, result.logprobs), result.usage.cached_tokens


@pytest.fixture(scope="module")
def cold():
    with load(None, prefix_cache=False) as model:
        yield {
            name: answer(model, DOCUMENT + ids)[0] for name, ids in (("q", QUESTION), ("o", OTHER))
        }


@pytest.fixture
def filled(tmp_path):
    with load(tmp_path / "p") as model:
        answer(model, DOCUMENT + QUESTION)
    return tmp_path / "p"


def pages(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.page"))


# ---- hits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", ["kv8", "kv8v4", "kv4", "f32"])
def test_another_model_reads_what_one_computed(tmp_path, kv):
    with load(None, kv=kv, prefix_cache=False, threads=2) as model:
        wanted = [answer(model, DOCUMENT + ids)[0] for ids in (QUESTION, OTHER)]
    with load(tmp_path / "p", kv=kv) as model:
        found, cached = answer(model, DOCUMENT + QUESTION)
        assert (found, cached) == (wanted[0], 0)
        stats = model.prefix_folder
        assert stats.pages_written == stats.pages > 0 and stats.hits == 0
    with load(tmp_path / "p", kv=kv, threads=2) as model:
        found, cached = answer(model, DOCUMENT + OTHER)
        assert (found, cached) == (wanted[1], 640)
        found, cached = answer(model, DOCUMENT + OTHER)  # from memory now
        assert (found, cached) == (wanted[1], 640)
        stats = model.prefix_folder
        assert (stats.hits, stats.tokens_read, stats.notes) == (1, 640, ())


def test_a_prompt_that_branches_off_earlier_gets_what_it_shares(filled, cold):
    """Nano has layers with a window: pages of the prompt's last step are there, others are not."""
    with load(filled) as model, load(None, prefix_cache=False) as plain:
        for shared in (640, 500, 250, 64, 0):
            ids = DOCUMENT[:shared] + [1] * 70
            found, cached = answer(model, ids)
            assert found == answer(plain, ids)[0] and cached <= shared
            if shared in (640, 500):
                assert cached == shared // 64 * 64, "within the prompt's last 256 tokens"


def test_a_batch_reads_a_document_once(filled):
    with load(filled) as model, load(None, prefix_cache=False) as plain:
        batch = [[*DOCUMENT, 20 + i] for i in range(6)]
        found = model.generate_batch(batch, **OPTIONS)
        wanted = plain.generate_batch(batch, **OPTIONS)
        assert [r.tokens for r in found] == [r.tokens for r in wanted]
        assert {r.usage.cached_tokens for r in found} == {640}
        assert model.prefix_folder.hits == 1


def test_chats_and_sessions_read_it_too(tmp_path):
    text = "Tell me about " + "the sun and the moon and " * 60
    with load(tmp_path / "p") as model:
        wanted = model.chat(text, max_new_tokens=8)
    with load(tmp_path / "p") as model:
        stream = model.session().chat(text, max_new_tokens=8, stream=True)
        list(stream)
        assert stream.result.tokens == wanted.tokens
        assert stream.result.usage.cached_tokens > 256 and model.prefix_folder.hits == 1


@pytest.mark.parametrize("name", sorted(cases.MODELS))
def test_every_kind_of_model_has_the_bits_of_a_cold_run(tmp_path, name):
    """Windows of 100 and 7 among them."""
    prompts = [cases.tokens(500), cases.tokens(430) + cases.tokens(70, seed=9), cases.tokens(300)]
    with cases.make_engine(name, prefix_cache=False) as engine:
        wanted = [run(engine, ids)[0] for ids in prompts]
    for first, second in ((0, 1), (1, 0), (0, 2), (2, 0)):
        folder = tmp_path / f"{first}{second}"
        for at in (first, second):
            with cases.make_engine(name) as engine:
                store = store_of(name, engine, folder)
                found, cached = run(engine, prompts[at], store)
                assert found == wanted[at]
                store.close()
        # Both begin with the same 430 or 300 tokens; 0 after 2 knows 256 of them.
        assert cached == {1: 384, 2: 256}[first + second], (first, second)


def store_of(name, engine, folder, limit=1 << 30):
    return PrefixStore(
        engine, cases.packed(name)[0], folder, limit, {"model": name}, lambda a: None
    )


def run(engine, ids, store=None):
    request = Request(tokens=ids, max_new_tokens=20, logprobs=1)
    base = None if store is None else store.base_for(request)
    then = None if store is None else store.after(request)
    result = engine.submit(request, base=base, then=then).result()
    return (result.tokens, result.logprobs), result.stats["cached_tokens"]


def test_adapters_have_pages_of_their_own(tmp_path):
    with load(None) as model:
        adapter = nano_adapter(tmp_path / "a", model, 1)
    with load(tmp_path / "p") as model, model.load_adapter(adapter, name="a"):
        with_it = answer(model, DOCUMENT, adapter="a")[0]
        assert model.prefix_folder.pages_written > 0  # before the adapter is closed
    with load(tmp_path / "p") as model, model.load_adapter(adapter, name="b"):
        found, cached = answer(model, DOCUMENT)
        assert cached == 0 and found != with_it
        assert answer(model, DOCUMENT, adapter="b") == (with_it, 640)


def test_a_merged_adapter_is_another_model(tmp_path):
    settings = {"quantize": "none", "kv": "f32"}
    with load(None) as model:
        adapter = nano_adapter(tmp_path / "a", model, 1)
    with load(tmp_path / "p", adapter=adapter, **settings) as model:
        answer(model, DOCUMENT)
        session = model.session()
        session.chat("hi", max_new_tokens=4)
        session.save(tmp_path / "s")
    with load(tmp_path / "p", **settings) as model:
        assert answer(model, DOCUMENT)[1] == 0
        with pytest.raises(InvalidRequest, match="saved with model"):
            model.resume(tmp_path / "s")


def test_what_changes_keys_and_values_changes_the_keys(filled):
    with load(filled, kv="kv4") as model:
        assert answer(model, DOCUMENT)[1] == 0
    with load(filled, quantize="q4") as model:
        assert answer(model, DOCUMENT)[1] == 0


def test_a_page_is_keyed_by_all_before_it():
    ids = np.arange(256, dtype=np.int32)
    keys = page_keys(b"root", ids)
    assert len(keys) == len(set(keys)) == 4 == len(page_keys(b"root", ids[:256]))
    assert page_keys(b"root", ids[:255]) == keys[:3]
    for at in (0, 64, 128, 192, 255):
        changed = ids.copy()
        changed[at] += 1
        same = [a == b for a, b in zip(keys, page_keys(b"root", changed), strict=True)]
        assert same == [i < at // 64 for i in range(4)]
    assert not set(keys) & set(page_keys(b"other", ids))


# ---- what is wrong with it -----------------------------------------------------------------------


def test_damage_is_found_said_and_mended(filled, cold):
    choose = random.Random(0)
    before = pages(filled)
    for path in before[:: max(len(before) // 6, 1)]:
        data = bytearray(path.read_bytes())
        data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
        path.write_bytes(data)
    with load(filled) as model:
        found, cached = answer(model, DOCUMENT + OTHER)
        assert found == cold["o"] and cached < 640
        stats = model.prefix_folder
        assert stats.damaged >= 1 and "a damaged page was removed" in stats.notes[0]
        assert str(filled) in str(stats) and stats.notes[0] in str(stats)
    with load(filled) as model:
        assert answer(model, DOCUMENT + OTHER) == (cold["o"], 640)


def test_every_flipped_byte_of_a_page_is_found(tmp_path):
    folder, choose = PrefixFolder(tmp_path, 1 << 30, ARITHMETIC_VERSION), random.Random(1)
    ids = np.arange(64, dtype=np.int32)
    (key,) = page_keys(b"", ids)
    page, out = np.arange(1024, dtype=np.uint8), np.empty(1024, np.uint8)
    folder.write(key, 1, ids, page)
    folder.read(key, 1, ids, out)
    assert (out == page).all()
    path = folder.file(key, 1)
    whole = path.read_bytes()
    assert len(whole) == 384 + 1024
    for at in [*range(384), *(choose.randrange(len(whole)) for _ in range(200))]:
        data = bytearray(whole)
        data[at] ^= 1 << choose.randrange(8)
        path.write_bytes(data)
        with pytest.raises(CorruptFile, match=str(path)):
            folder.read(key, 1, ids, out)
    for data in (b"", whole[:100], whole[:-1], whole + b"\0"):
        path.write_bytes(data)
        with pytest.raises(CorruptFile):
            folder.read(key, 1, ids, out)
    path.write_bytes(whole)
    for other in (ids + 1, ids[::-1]):
        with pytest.raises(CorruptFile, match="tokens is"):
            folder.read(key, 1, other, out)
    with pytest.raises(CorruptFile, match="arithmetic is"):
        PrefixFolder(tmp_path, 1, ARITHMETIC_VERSION + 1).read(key, 1, ids, out)
    with pytest.raises(FileNotFoundError):
        folder.read(key, 0, ids, out)


def test_pages_that_go_while_they_are_read_cost_nothing_else(filled, cold, monkeypatch):
    true, gone = PrefixFolder.read, []

    def read(self, key, *rest):
        if not gone:
            gone.append(key)
            self.remove(key, 0)
        return true(self, key, *rest)

    monkeypatch.setattr(PrefixFolder, "read", read)
    with load(filled) as model:
        found, cached = answer(model, DOCUMENT + OTHER)
        assert found == cold["o"] and cached < 640 and gone


def test_pages_that_can_neither_be_read_nor_removed_stop_nothing(filled, cold, monkeypatch):
    def refused(self, *given):
        raise PermissionError(13, "Permission denied")

    def damaged(self, *given):
        raise CorruptFile("damaged")

    count = len(pages(filled))
    monkeypatch.setattr(PrefixFolder, "remove", lambda *given: None)
    for read, note in ((refused, "not read"), (damaged, "a damaged page")):
        monkeypatch.setattr(PrefixFolder, "read", read)
        with load(filled) as model:
            assert answer(model, DOCUMENT + OTHER) == (cold["o"], 0)
            assert note in model.prefix_folder.notes[0]
    assert len(pages(filled)) >= count, "what could not be read was not removed"


def test_writing_pushes_no_session_out_of_memory(tmp_path):
    """What is on its way to the folder is counted twice while it is held."""

    def kept_of(folder):
        budget = cases.bytes_needed("llama_f32", 403) * 5 // 2
        with cases.make_engine("llama_f32", memory_budget=budget) as engine:
            store = None if folder is None else store_of("llama_f32", engine, folder)
            kept, notes = [], ()
            for seed in range(4):
                request = Request(tokens=cases.tokens(400, seed), max_new_tokens=3, retain=True)
                then = None if store is None else store.after(request)
                kept.append(engine.submit(request, then=then))
                kept[-1].result()
                notes = notes if store is None else store.stats().notes
            lengths = []
            for handle in kept:
                with outgoing(handle.retained) as (sequence, _):
                    lengths.append(len(sequence.tokens))
        return lengths, notes

    without, _ = kept_of(None)
    with_folder, notes = kept_of(tmp_path / "p")
    assert with_folder == without and 0 in without and 402 in without
    assert "had no room" in notes[-1]


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path, cold, monkeypatch):
    def full(self, *given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PrefixFolder, "write", full)
    with load(tmp_path / "p") as model:
        assert answer(model, DOCUMENT + QUESTION)[0] == cold["q"]
        stats = model.prefix_folder
    assert stats.failed_writes == 1 and "No space left" in stats.notes[0]


def test_a_write_that_fails_otherwise_is_not_the_last(tmp_path, monkeypatch):
    """The thread that writes ended by it, and nothing was written from then on."""
    write, given = PrefixFolder.write, []

    def once(self, *page):
        given.append(page)
        if len(given) == 1:
            raise MemoryError("no room for a page")
        write(self, *page)

    monkeypatch.setattr(PrefixFolder, "write", once)
    with load(tmp_path / "p") as model:
        answer(model, DOCUMENT)
        stats = model.prefix_folder
        assert stats.failed_writes == 1 and "no room for a page" in stats.notes[0]
        answer(model, DOCUMENT)
        assert model.prefix_folder.pages_written > 4


@pytest.mark.parametrize(
    "options, message",
    [
        ({"prefix_folder_bytes": 0}, "prefix_folder_bytes: got 0, allowed is an int >= 1"),
        ({"prefix_folder_bytes": True}, "prefix_folder_bytes: got True"),
        ({"prefix_folder": 5}, "prefix_folder: got 5, allowed is a path"),
        ({"prefix_folder": ""}, "prefix_folder: got ''"),
        ({"prefix_cache_bytes": -1}, "prefix_cache_bytes: got -1, allowed is an int >= 0"),
        ({"prefix_cache_bytes": True}, "prefix_cache_bytes: got True"),
        ({"prefix_cache": False, "prefix_folder": "x"}, "goes through prefix_cache, which is off"),
        ({"prefix_folder": "/dev/null/x"}, "prefix_folder: /dev/null/x: Not a directory"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(InvalidRequest, match=message):
        load(None, **options)


# ---- size, processes, ends -----------------------------------------------------------------------


def test_the_least_recently_used_go_first(tmp_path):
    documents = [[i + 2] * 300 for i in range(6)]
    with load(tmp_path / "p") as model:
        answer(model, documents[0])
        one = model.prefix_folder.bytes
    limit = one * 7 // 2
    for at in (1, 2, 0, 3, 4):  # 0 again, from disk
        with load(tmp_path / "p", prefix_folder_bytes=limit) as model:
            answer(model, documents[at])
            assert model.prefix_folder.bytes <= limit
    with load(tmp_path / "p") as model:
        cached = [answer(model, ids)[1] for ids in documents[:5]]
        assert cached[4] == 256 and cached[0] == 256, "used after 1 and 2"
        assert cached[1] == 0


def test_a_paths_end_goes_before_its_beginning(filled):
    whole = sum(path.stat().st_size for path in pages(filled))
    with load(filled, prefix_folder_bytes=whole * 3 // 4) as model:
        answer(model, [3] * 300)
    with load(filled) as model:
        assert 0 <= answer(model, DOCUMENT + OTHER)[1] < 640
        assert model.prefix_folder.damaged == 0


def test_what_killed_writers_left_goes_and_others_are_left_alone(tmp_path):
    folder = PrefixFolder(tmp_path, 1, ARITHMETIC_VERSION)
    ids = np.zeros(64, np.int32)
    (key,) = page_keys(b"", ids)
    folder.write(key, 0, ids, np.zeros(64, np.uint8))
    old, new = (folder.file(key, 0).parent / f".1.{n}.partial" for n in ("a", "b"))
    for path in (old, new, tmp_path / "other.page"):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    assert folder.trim() == 1
    assert not old.exists() and new.exists() and (tmp_path / "other.page").exists()


def test_processes_share_a_folder(tmp_path, cold):
    script = (
        "import sys, musespark\n"
        "from tests.python.test_prefix_folder import *\n"
        "with load(Path(sys.argv[1])) as model:\n"
        "    for ids in (QUESTION, OTHER):\n"
        "        print(answer(model, DOCUMENT + ids)[0][0])\n"
    )
    root = Path(__file__).parents[2]
    paths = [str(root), str(root / "tests"), *filter(None, sys.path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "p")],
            stdout=subprocess.PIPE, text=True, env=environment,
        )
        for _ in range(3)
    ]  # fmt: skip
    wanted = f"{cold['q'][0]}\n{cold['o'][0]}\n"
    assert [run.communicate()[0] for run in runs] == [wanted] * 3
    with load(tmp_path / "p") as model:
        assert answer(model, DOCUMENT + OTHER) == (cold["o"], 640)


def test_a_writer_that_is_killed_leaves_a_folder_that_serves(tmp_path, cold):
    script = (
        "import sys, musespark\n"
        "model = musespark.load(kv='kv8', threads=1, context=1024, prefix_folder=sys.argv[1])\n"
        "model.generate([2] * 500, max_new_tokens=1)\n"
        "print(model.prefix_folder.pages > 0, flush=True)\n"
        "for i in range(1000):\n"
        "    model.generate([2 + i] * 500, max_new_tokens=1)\n"
    )
    choose = random.Random(2)
    for _ in range(4):
        run = [sys.executable, "-c", script, str(tmp_path / "p")]
        with subprocess.Popen(run, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"True\n"
            time.sleep(0.05 + choose.random() * 0.1)
            process.kill()
    with load(tmp_path / "p") as model:
        assert answer(model, [2] * 500)[1] == 448
        assert answer(model, DOCUMENT + QUESTION)[0] == cold["q"]
        assert model.prefix_folder.damaged == 0, "what is under its name is whole"


def test_an_exit_without_close_writes_what_is_left(tmp_path):
    script = (
        "import sys, musespark\n"
        "model = musespark.load(kv='kv8', threads=1, context=1024, prefix_folder=sys.argv[1])\n"
        "model.generate([5] * 500, max_new_tokens=1)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "p")], check=True)
    with load(tmp_path / "p") as model:
        assert answer(model, [5] * 500)[1] == 448


def test_the_command_line_takes_a_folder(tmp_path, capsys):
    text = "Once upon a time a fox lived in the hills and counted stars. " * 30
    given = ["generate", "--prefix-folder", str(tmp_path / "p"), "-n", "3", text]
    assert main(given) == 0
    assert pages(tmp_path / "p")
    first = capsys.readouterr().out
    assert main(given) == 0 and capsys.readouterr().out == first
    assert main(["bench", "--prefix-folder", str(tmp_path / "p")]) != 0
    assert "prefix_cache, which is off" in capsys.readouterr().err


def test_threads_may_ask_at_once(filled, cold):
    found = []
    with load(filled) as model:

        def ask(ids, name):
            found.append(answer(model, DOCUMENT + ids)[0] == cold[name])

        many = [
            threading.Thread(target=ask, args=one) for one in [(QUESTION, "q"), (OTHER, "o")] * 4
        ]
        for thread in many:
            thread.start()
        for thread in many:
            thread.join()
    assert found == [True] * 8
