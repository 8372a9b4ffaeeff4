"""Sessions on disk: they go on with the same bits; what is wrong with a file is said by name."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from tests.python.test_lora_model import nano_adapter

import musespark
from musespark import _core
from musespark import model as model_module
from musespark import session as session_module
from musespark.cli import chat, main
from musespark.errors import InvalidRequest
from musespark.events import Request
from musespark.memory import choose_context
from musespark.session_file import _HEAD, VERSION
from musespark.sizes import kv_bytes
from musespark.transfers import GivenUp, outgoing, page_sizes, restore
from support import engine_cases as cases
from support.chat_folder import chat_folder
from support.levels import stdout_by_level

FIRST, SECOND = "What is 23 + 45?", "And what is 7 + 8?"
LONG = "Tell me about " + "the sun and the moon and " * 40
SAMPLED = {"max_new_tokens": 40, "temperature": 0.8, "seed": 7}
KINDS = ("kv8", "kv4", "f32")


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    with musespark.load(kv=request.param, threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def kv8():
    with musespark.load(kv="kv8", threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def saved(kv8, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "s"
    turn(kv8.session("Be brief."), path=path)
    return path.read_bytes()


def turn(session, text: str = FIRST, path: Path | None = None, **options):
    result = session.chat(text, **(SAMPLED | options))
    if path is not None:
        session.save(path)
    return result


def check_damaged(model, path: Path, data: bytes, error=musespark.CorruptFile) -> str:
    path.write_bytes(data)
    with pytest.raises(error) as caught:
        model.resume(path)
    return str(caught.value)


# ---- going on -----------------------------------------------------------------------------------


@pytest.mark.parametrize("opening", [FIRST, LONG])
def test_a_resumed_session_goes_on_as_the_one_in_memory(model, tmp_path, opening):
    session = model.session("You are brief.")
    turn(session, opening, tmp_path / "s")
    with musespark.load(kv=model.info.kv, threads=2, prefix_cache=False) as other:
        resumed = other.resume(tmp_path / "s")
        assert (resumed.system, resumed.messages) == (session.system, session.messages)
        for text in (SECOND, LONG):
            here, there = turn(session, text, logprobs=2), turn(resumed, text, logprobs=2)
            assert here.tokens == there.tokens and here.logprobs == there.logprobs
            assert there.usage.cached_tokens == here.usage.cached_tokens > 30
        session.save(tmp_path / "a")
        resumed.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_nothing_but_the_new_tokens_is_computed(model, tmp_path):
    """Of a model with windows too, whose next turn goes on from the prompt's end: thoughts are not
    in the history."""
    session = model.session()
    before = turn(session, LONG, tmp_path / "s")
    with musespark.load(kv=model.info.kv, threads=1, prefix_cache=False) as other:
        resumed = other.resume(tmp_path / "s")
        after = turn(resumed, SECOND)
        assert after.usage.cached_tokens >= before.usage.prompt_tokens


@pytest.mark.parametrize("length", [1, 63, 64, 65, 128, 300, 700])
def test_any_length_comes_back_with_the_same_bytes(model, tmp_path, length):
    def retained(on, count):
        ids = [2 + i % 90 for i in range(count)]
        handle = on._engine.submit(Request(tokens=ids, max_new_tokens=3, retain=True))
        handle.result()
        return ids, handle.retained

    session = model.session()
    ids, session._kept = retained(model, length)
    session.save(tmp_path / "s")
    with musespark.load(kv=model.info.kv, threads=1, prefix_cache=False) as other:
        resumed = other.resume(tmp_path / "s")
        resumed.save(tmp_path / "again")
        assert (tmp_path / "s").read_bytes() == (tmp_path / "again").read_bytes()
        wanted = Request(tokens=[*ids, 5, 6, 7], max_new_tokens=9, logprobs=1)
        here = model._engine.submit(wanted, base=session._kept).result()
        there = other._engine.submit(wanted, base=resumed._kept).result()
        assert (here.tokens, here.logprobs) == (there.tokens, there.logprobs)
        assert there.stats["cached_tokens"] == length


@pytest.mark.parametrize("name", sorted(cases.MODELS))
@pytest.mark.parametrize("length", [200, 256, 300])
def test_the_prompts_end_comes_back_too(name, length):
    """With windows of 100 and 7, a completion longer than them: what a next turn without the
    thought goes on from is a second sequence."""
    prompt = cases.tokens(length)
    with cases.make_engine(name, prefix_cache=False) as one:
        handle = one.submit(Request(tokens=prompt, max_new_tokens=180, retain=True))
        answer = handle.result().tokens
        with outgoing(handle.retained) as (kept, pages):
            sizes = page_sizes(one, kept)
            copies = [page.copy() for page in pages]
        assert [len(page) for page in copies] == sizes and len(kept.tokens) == length + 179

        def read(index, out):
            out[:] = copies[index]

        with cases.make_engine(name, prefix_cache=False, threads=1) as two:
            base = restore(two, kept, None, sizes, read)
            for rest in ([7, 8, 9], [*answer, 7, 8, 9], answer[:70]):
                request = Request(tokens=[*prompt, *rest], max_new_tokens=20, logprobs=2)
                wanted = one.submit(request, base=handle.retained).result()
                found = two.submit(request, base=base).result()
                assert cases.fingerprint(found) == cases.fingerprint(wanted)
                assert found.stats["cached_tokens"] == wanted.stats["cached_tokens"] >= length


def test_a_second_save_of_the_same_pages_is_refused_and_ends_nothing():
    """It ended the first one's transfer, whose next page then failed."""
    with cases.make_engine("llama_f32") as engine:
        handle = engine.submit(Request(tokens=cases.tokens(200), max_new_tokens=0, retain=True))
        handle.result()
        with outgoing(handle.retained) as (_, pages):
            first = next(pages).copy()
            with (
                pytest.raises(InvalidRequest, match="being saved or restored"),
                outgoing(handle.retained),
            ):
                pass
            assert len(list(pages)) == 3 and first.any()


GO_ON = """
import json, sys, musespark
with musespark.load(kv="kv8", threads=2, prefix_cache=False) as model:
    session = model.resume(sys.argv[1])
    result = session.chat(sys.argv[2], max_new_tokens=40, temperature=0.8, seed=7)
    isa = model.info.isa
    print(json.dumps([isa, result.tokens, result.usage.cached_tokens]))
"""


def test_every_instruction_set_goes_on_with_the_same_tokens(kv8, tmp_path):
    session = kv8.session()
    turn(session, LONG, tmp_path / "s")
    wanted = turn(session, SECOND).tokens
    levels = _core.isa_levels()
    some = {levels[0], levels[len(levels) // 2], "avx2", "scalar"} & set(levels)
    outputs = stdout_by_level(GO_ON, str(tmp_path / "s"), SECOND, levels=some)
    for level, out in outputs.items():
        isa, tokens, cached = json.loads(out)
        assert (isa, tuple(tokens)) == (level, wanted) and cached > 100


def test_a_session_without_keys_and_values_is_its_conversation(kv8, tmp_path):
    session = kv8.session("Be brief.")
    session.save(tmp_path / "new")
    assert kv8.resume(tmp_path / "new").messages == [{"role": "system", "content": "Be brief."}]
    turn(session)
    session.close()
    session.save(tmp_path / "closed")
    resumed = kv8.resume(tmp_path / "closed")
    assert turn(resumed, SECOND).tokens == turn(session, SECOND).tokens


def test_pages_that_running_requests_took_are_computed_again(tmp_path, monkeypatch):
    with musespark.load(kv="kv8", threads=1) as model:
        session = model.session()
        turn(session, LONG)
        monkeypatch.setattr(_core.Engine, "read_page", lambda *a: False)
        session.save(tmp_path / "s")
        monkeypatch.undo()
        resumed = model.resume(tmp_path / "s")
        assert resumed._kept is None and resumed.messages == session.messages
        assert turn(resumed, SECOND).tokens == turn(session, SECOND).tokens


def test_saving_and_resuming_hold_no_memory(kv8, tmp_path):
    session = kv8.session()
    turn(session, LONG, tmp_path / "s")
    before = kv8._engine.stats()["retained"]
    resumed = kv8.resume(tmp_path / "s")
    assert kv8._engine.stats()["retained"] == before + 1
    resumed.close()
    for _ in range(20):
        kv8.resume(tmp_path / "s").close()
    data = (tmp_path / "s").read_bytes()
    check_damaged(kv8, tmp_path / "bad", data[:-1] + bytes([data[-1] ^ 1]))
    deadline = time.monotonic() + 10
    while kv8._engine.stats()["retained"] > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert kv8._engine.stats()["retained"] == before


def test_a_turn_under_way_is_not_saved(kv8, tmp_path):
    session = kv8.session()
    stream = session.chat(FIRST, stream=True, max_new_tokens=8)
    with pytest.raises(musespark.InvalidRequest, match="has not ended"):
        session.save(tmp_path / "s")
    stream.close()
    session.messages.append({"role": "user", "content": {1, 2}})
    with pytest.raises(musespark.InvalidRequest, match="messages: cannot be saved"):
        session.save(tmp_path / "s")
    session.messages[-1] = {"role": "user", "content": {1: 2}}
    with pytest.raises(musespark.InvalidRequest, match="messages: cannot be saved"):
        session.save(tmp_path / "s")
    assert not list(tmp_path.iterdir())


# ---- what does not fit --------------------------------------------------------------------------


def test_another_format_context_or_template_is_refused_by_name(kv8, saved, tmp_path):
    path = tmp_path / "s"
    with musespark.load(kv="f32", threads=1) as other:
        text = check_damaged(other, path, saved, musespark.InvalidRequest)
        assert "kv 'kv8'" in text and "'f32'" in text
    small = musespark.load(kv="kv8", threads=1, context=16)
    with small, pytest.raises(musespark.ContextOverflow, match="the context has 16"):
        small.resume(path)
    with musespark.load(kv="kv8", threads=1) as other:
        other.template = other.template.source + " "
        assert "template" in check_damaged(other, path, saved, musespark.InvalidRequest)
    with pytest.raises(FileNotFoundError):
        kv8.resume(tmp_path / "none")
    with pytest.raises(musespark.CorruptFile):
        kv8.resume(tmp_path)


def test_another_model_is_refused_by_name(saved, tmp_path):
    (tmp_path / "s").write_bytes(saved)
    wanted = r"saved with model .*Spark Nano.*other"
    other = musespark.load(chat_folder(tmp_path / "other"), threads=1)
    with other, pytest.raises(musespark.InvalidRequest, match=wanted):
        other.resume(tmp_path / "s")


def test_memory_that_is_not_there_is_named(saved, tmp_path, monkeypatch):
    (tmp_path / "s").write_bytes(saved)

    def tiny(*args, **more):
        return dataclasses.replace(choose_context(*args, **more), budget=1000)

    monkeypatch.setattr(model_module, "choose_context", tiny)
    wanted = r"needs \d+ bytes .* is 1000"
    model = musespark.load(kv="kv8", threads=1)
    with model, pytest.raises(musespark.MemoryBudgetExceeded, match=wanted):
        model.resume(tmp_path / "s")


def test_what_was_pushed_out_of_memory_is_told(tmp_path, monkeypatch, capsys):
    """The file was written without keys and values, and nobody knew."""

    def room_for_one(*args, **more):
        choice = choose_context(*args, **more)
        needs = kv_bytes(args[0], "kv8", choice.context)
        return dataclasses.replace(choice, budget=needs * 11 // 10)

    monkeypatch.setattr(model_module, "choose_context", room_for_one)
    with musespark.load(kv="kv8", threads=1, context=1024, prefix_cache=False) as model:
        session = model.session()
        turn(session)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            session.save(tmp_path / "whole")
        model.generate("x", max_new_tokens=1000)
        with pytest.warns(musespark.SavedWithoutCache, match="bare: saved without keys") as told:
            session.save(tmp_path / "bare")
        assert [Path(w.filename).name for w in told] == [Path(__file__).name]
        assert (tmp_path / "bare").stat().st_size < (tmp_path / "whole").stat().st_size // 2
        resumed = model.resume(tmp_path / "bare")
        assert resumed.messages == session.messages
        repl = chat.Repl.__new__(chat.Repl)
        repl.session, repl.file, repl.passphrase = session, tmp_path / "of the terminal", None
        repl.__exit__()
        assert "of the terminal: saved without keys and values" in capsys.readouterr().err
        before, after = turn(session, SECOND), turn(resumed, SECOND)
        assert before.tokens == after.tokens
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            session.save(tmp_path / "again")
            session.close()
            session.save(tmp_path / "closed")  # whoever closed it knows


def test_what_was_lost_on_the_way_is_told(kv8, tmp_path, monkeypatch):
    """Taken by a request while they were being written, or never made for want of memory; a fork
    of such a session, saved, tells as well."""
    write = session_module.write_session

    def taken(*given, **more):
        if len(given) > 3:
            raise GivenUp
        write(*given, **more)

    session = kv8.session()
    turn(session)
    with monkeypatch.context() as patch:
        patch.setattr(session_module, "write_session", taken)
        with pytest.warns(musespark.SavedWithoutCache):
            session.save(tmp_path / "taken")

    def no_memory():
        raise musespark.MemoryBudgetExceeded("no room")
        yield

    session._settling = no_memory()
    twin = session.fork()
    for name, each in (("never made", session), ("fork", twin)):
        with pytest.warns(musespark.SavedWithoutCache):
            each.save(tmp_path / name)
    turn(session, SECOND)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session.save(tmp_path / "made again")


def test_the_adapter_is_found_by_its_numbers_or_named(kv8, tmp_path):
    folders = [nano_adapter(tmp_path / f"a{i}", kv8, i) for i in (1, 2)]
    with musespark.load(kv="kv8", threads=1) as model:
        session = model.session(adapter=model.load_adapter(folders[0], "one"))
        turn(session, FIRST, tmp_path / "s")
        wanted = turn(session, SECOND).tokens
        turn(model.session(), FIRST, tmp_path / "plain")
    with musespark.load(kv="kv8", threads=1) as model:
        model.load_adapter(folders[1], "one")
        with pytest.raises(musespark.InvalidRequest, match=r"adapter: [0-9a-f]{16} .*'one'"):
            model.resume(tmp_path / "s")
        model.load_adapter(folders[0], "other name")
        resumed = model.resume(tmp_path / "s")
        assert turn(resumed, SECOND).tokens == wanted
    model = musespark.load(kv="kv8", threads=1, adapter=folders[0])
    with model, pytest.raises(musespark.InvalidRequest, match="adapter: none"):
        model.resume(tmp_path / "plain")


def test_other_versions_are_refused_by_name(kv8, saved, tmp_path):
    for at, field, ours in ((8, "version", VERSION), (12, "arithmetic", _core.arithmetic_version)):
        data = bytearray(saved)
        struct.pack_into("<I", data, at, 99)
        text = check_damaged(kv8, tmp_path / "s", bytes(data), musespark.InvalidRequest)
        assert f"{field} 99, {ours} is needed" in text


# ---- damage -------------------------------------------------------------------------------------


def test_every_kind_of_truncation_is_corrupt(kv8, saved, tmp_path):
    header = _HEAD.unpack(saved[: _HEAD.size])[3]
    ends = {0, 1, 8, 63, 64, 65, 64 + header - 1, 64 + header, 64 + header + 5, len(saved) // 2}
    for end in (*ends, len(saved) - 64, len(saved) - 1):
        check_damaged(kv8, tmp_path / "s", saved[:end])
    check_damaged(kv8, tmp_path / "s", saved + b"\0")


def test_every_flipped_byte_is_found(kv8, saved, tmp_path):
    choose, size = random.Random(1), len(saved)
    front = size - sum(s for *_, s in kv8._engine._driver.core.page_list(length=64, prompt=0))
    places = [choose.randrange(min(front, 4096)) for _ in range(1000)]
    places += [choose.randrange(size) for _ in range(1000)]
    path = tmp_path / "s"
    path.write_bytes(saved)
    kv8.resume(path).close()
    with open(path, "r+b", buffering=0) as file:
        for place in places:
            old = saved[place]
            os.pwrite(file.fileno(), bytes([old ^ (1 << choose.randrange(8))]), place)
            with pytest.raises((musespark.CorruptFile, musespark.InvalidRequest)):
                kv8.resume(path)
            os.pwrite(file.fileno(), bytes([old]), place)
    assert kv8.resume(path).messages


# ---- writing ------------------------------------------------------------------------------------

SAVE_FOR_EVER = """
import sys, musespark
with musespark.load(kv="kv8", threads=1, context=1024) as model:
    old, new = (model.resume(p) for p in sys.argv[2:4])
    print("ready", flush=True)
    while True:
        new.save(sys.argv[1])
        old.save(sys.argv[1])
"""


def test_a_killed_save_leaves_the_old_file_or_the_new(kv8, tmp_path):
    path, old, new = tmp_path / "s", tmp_path / "old", tmp_path / "new"
    session = kv8.session()
    turn(session, FIRST, old)
    turn(session, LONG, new)
    whole = {old.read_bytes(), new.read_bytes()}
    path.write_bytes(old.read_bytes())
    choose = random.Random(3)
    for _ in range(50):  # benchmarks/sessions.py --kills: any number
        run = [sys.executable, "-c", SAVE_FOR_EVER, str(path), str(old), str(new)]
        with subprocess.Popen(run, stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(choose.random() * 0.05)
            process.send_signal(signal.SIGKILL)
        assert path.read_bytes() in whole
        kv8.resume(path).close()
    session.save(path)
    assert {p.name for p in tmp_path.iterdir()} == {"s", "old", "new"}


def test_a_full_disk_leaves_the_old_file(kv8, tmp_path):
    session = kv8.session()
    turn(session, FIRST, tmp_path / "s")
    before = (tmp_path / "s").read_bytes()
    turn(session, SECOND)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (100, 5000, len(before) // 2):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(musespark.WriteFailed):
                session.save(tmp_path / "s")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (tmp_path / "s").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    session.save(tmp_path / "s")
    assert kv8.resume(tmp_path / "s").messages == session.messages


# ---- command line -------------------------------------------------------------------------------


def test_chat_goes_on_from_a_file(kv8, tmp_path, capsys):
    chat = ["chat", "--session", str(tmp_path / "s"), "--json", "-n", "40"]
    session, answers = kv8.session("Be brief."), []
    for question, more in ((FIRST, ["--system", "Be brief."]), (SECOND, [])):
        assert main([*chat, question, *more]) == 0
        answers.append(json.loads(capsys.readouterr().out))
        assert answers[-1]["tokens"] == list(session.chat(question, max_new_tokens=40).tokens)
    assert answers[1]["usage"]["cached_tokens"] > 30
    assert main([*chat, FIRST, "--system", "Be long."]) == 1
    assert "--system" in capsys.readouterr().err
    (tmp_path / "s").write_bytes(b"no session")
    assert main([*chat, FIRST]) == 1
    assert (tmp_path / "s").read_bytes() == b"no session"
