"""engine.py: its threads, handles, many threads, event loops, and how things end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from musespark import driver as driver_module
from musespark import engine as engine_module
from musespark.engine import Engine, Finished, Request, Tokens
from musespark.errors import Cancelled, Error
from support import engine_cases as cases
from support.engine_cases import tokens


@pytest.fixture(scope="module")
def engine():
    with cases.make_engine("muse_kv8", context=4096) as engine:
        yield engine


# --- threads and loops -------------------------------------------------------------------------


def test_many_threads(engine: Engine) -> None:
    """16 threads, 8 requests each, all batched by one driver: everyone gets their own tokens."""

    def make(thread: int, i: int) -> Request:
        return Request(
            tokens=tokens(1 + (thread * 7 + i * 31) % 90, seed=thread),
            max_new_tokens=5 + i,
            temperature=1.0,
            seed=thread * 100 + i,
        )

    wanted = {
        (t, i): engine.submit(make(t, i)).result().tokens for t in range(16) for i in range(8)
    }
    got: dict = {}
    start = threading.Barrier(16)

    def work(thread: int) -> None:
        start.wait()
        for i in range(8):
            handle = engine.submit(make(thread, i))
            if i == 3:
                handle.cancel()
            result = handle.result()
            got[thread, i] = (result.reason, result.tokens)

    threads = [threading.Thread(target=work, args=(t,)) for t in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(got) == 128
    for key, (reason, ids) in got.items():
        if reason == "cancelled":
            assert key[1] == 3 and ids == wanted[key][: len(ids)]
        else:
            assert ids == wanted[key], key
    assert engine.stats()["running"] == engine.stats()["waiting"] == 0


def test_an_event_loop(engine: Engine) -> None:
    made = [Request(tokens=tokens(9, i), max_new_tokens=15, temperature=1.0) for i in range(8)]
    wanted = [engine.submit(r).result().tokens for r in made]

    async def streamed(request: Request) -> list[int]:
        out: list[int] = []
        async for event in engine.submit(request):
            if isinstance(event, Tokens):
                out += event.ids
        return out

    async def both() -> list:
        return await asyncio.gather(
            *(streamed(r) for r in made), *(engine.submit(r).aresult() for r in made)
        )

    got = asyncio.run(both())
    assert got[:8] == wanted and [r.tokens for r in got[8:]] == wanted


def test_cancelling_a_task_cancels_its_request(engine: Engine) -> None:
    async def main() -> None:
        handle = engine.submit(Request(tokens=[1], temperature=1.0))
        task = asyncio.ensure_future(handle.aresult())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # asyncio closes an abandoned generator in its own time; by then the request has ended.
        await asyncio.get_running_loop().shutdown_asyncgens()

    asyncio.run(main())
    assert wait_until(lambda: engine.stats()["running"] == 0)


def test_a_loop_that_is_gone_does_not_stop_the_driver(engine: Engine) -> None:
    loop = asyncio.new_event_loop()
    handle = engine.submit(Request(tokens=[1], temperature=1.0, max_new_tokens=3000))
    waiting = loop.create_task(handle.stream.aget())
    loop.run_until_complete(asyncio.sleep(0))
    ready = handle.stream._waiter
    loop.run_until_complete(waiting)
    handle.stream._waiter = ready  # as if the loop had been closed while it waited
    loop.close()
    assert engine.submit(Request(tokens=[1], max_new_tokens=2)).result().reason == "length"
    handle.cancel()
    assert list(handle)[-1].reason in ("cancelled", "length")


def wait_until(condition, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.005)
    return False


def test_leaving_an_iteration_cancels(engine: Engine) -> None:
    for event in engine.submit(Request(tokens=[1], temperature=1.0)):
        assert isinstance(event, Tokens)
        break
    gc.collect()
    assert wait_until(lambda: engine.stats()["running"] == 0)


def test_dropping_a_handle_cancels_and_releases(engine: Engine) -> None:
    handle = engine.submit(Request(tokens=tokens(100), temperature=1.0, retain=True))
    assert handle.retained is not None
    del handle
    gc.collect()
    assert wait_until(lambda: engine.stats()["running"] == engine.stats()["retained"] == 0)
    assert wait_until(lambda: engine.stats()["kv_bytes_used"] == 0)


def test_idle_uses_no_cpu(engine: Engine) -> None:
    engine.submit(Request(tokens=[1], max_new_tokens=3)).result()
    time.sleep(0.3)  # the pool's threads spin for a moment before they sleep
    before = time.process_time()
    time.sleep(1.0)
    assert time.process_time() - before < 0.02


# --- the end -----------------------------------------------------------------------------------


def test_close_ends_everything() -> None:
    engine = cases.make_engine(context=4096)
    handle = engine.submit(Request(tokens=[1], temperature=1.0))
    failures = []

    def wait() -> None:
        try:
            handle.result()
        except Error as error:
            failures.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    engine.close()
    engine.close()
    waiter.join(20)
    assert not waiter.is_alive()
    assert not failures or isinstance(failures[0], Cancelled)
    assert engine.closed
    with pytest.raises(Error, match="closed"):
        engine.submit(Request(tokens=[1]))
    with pytest.raises(Error, match="closed"):
        engine.stats()
    handle.cancel()


@pytest.mark.parametrize("fails", [None, "_park", "_deliver"])
def test_close_lets_go_of_the_tensors(monkeypatch, fails: str | None) -> None:
    """After a failure in either thread too."""

    def planted(*_: object) -> None:
        raise RuntimeError("planted")

    if fails is not None:
        monkeypatch.setattr(engine_module.Driver, fails, planted)
    spec, tensors, kv = cases.packed("llama_f32")
    data = bytearray(bytes(tensors["head"][3]))
    import numpy as np

    raw = bytearray(len(data) + 64)
    start = -np.frombuffer(raw, np.uint8).ctypes.data % 64
    view = memoryview(raw)[start : start + len(data)]
    view[:] = data
    head = (*tensors["head"][:3], view)
    engine = Engine(
        spec, tensors | {"head": head}, threads=1, context=64, kv=kv, memory_budget=1 << 22
    )
    if fails == "_park":  # as soon as there is nothing to do
        for thread in engine._driver.threads:
            thread.join(20)
    else:
        with pytest.raises(BufferError):
            view.release()
    with contextlib.nullcontext() if fails is None else pytest.raises(Error, match="planted"):
        engine.submit(Request(tokens=[1])).result()
    engine.close()
    assert not [one for one in engine._driver.threads if one.is_alive()]
    view.release()


def test_a_collected_engine_ends_its_threads() -> None:
    engine = cases.make_engine()
    threads = engine._driver.threads
    engine.submit(Request(tokens=[1], max_new_tokens=2)).result()
    del engine
    gc.collect()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def test_a_handle_keeps_its_engine() -> None:
    handle = cases.make_engine().submit(Request(tokens=[1], max_new_tokens=50))
    gc.collect()
    assert len(handle.result().tokens) == 50


class BrokenCore:
    """A core that raises after two slices: in the thread that runs it, or in that which takes what
    it tells."""

    def __init__(self, error: BaseException, where: str) -> None:
        self.error, self.where, self.ids = error, where, 0
        self.events: queue.SimpleQueue[list | None] = queue.SimpleQueue()
        self.cancelled, self.stopped = threading.Event(), threading.Event()
        self.ended_in_time = True

    def submit(self, tokens, *, params, base):
        self.ids += 1
        return self.ids - 1

    def run(self, seconds: float) -> None:
        for _ in range(2):
            time.sleep(0.02)
            self.events.put([("tokens", 0, [1], None, None)])
        if self.where == "run":
            raise self.error
        self.events.put([])
        self.ended_in_time = self.cancelled.wait(5) and self.stopped.wait(5)
        time.sleep(0.2)

    def take_events(self) -> list | None:
        events = self.events.get()
        if events == []:
            raise self.error
        return events

    def stop(self) -> None:
        self.stopped.set()

    def end_events(self) -> None:
        self.events.put(None)

    def has_work(self) -> bool:
        return True

    def waits_for_rows(self) -> bool:
        return False

    def cancel(self, request: int) -> None:
        pass

    def cancel_all(self) -> None:
        self.cancelled.set()


@pytest.mark.parametrize(
    "error", [RuntimeError("planted"), MemoryError("planted"), SystemExit("planted")]
)
@pytest.mark.parametrize("where", ["run", "take_events"])
def test_a_fault_reaches_every_waiting_caller(error: BaseException, where: str) -> None:
    core = BrokenCore(error, where)
    driver = engine_module.Driver(core)
    handles = [engine_module.Handle(driver, False, None) for _ in range(4)]
    for handle in handles:
        driver.submit(handle, None, {}, None)
    driver.start()
    heard: list[BaseException] = []

    def wait(handle) -> None:
        try:
            handle.result()
        except Error as caught:
            heard.append(caught)

    async def await_it() -> None:
        with pytest.raises(Error, match="planted"):
            await handles[3].aresult()

    threads = [threading.Thread(target=wait, args=(h,)) for h in handles[:3]]
    for thread in threads:
        thread.start()
    asyncio.run(await_it())
    for thread in threads:
        thread.join(20)
    assert len(heard) == 3
    assert all("planted" in str(e) and e.__cause__ is error for e in heard)
    with pytest.raises(Error, match="planted"):
        driver.submit(engine_module.Handle(driver, False, None), None, {}, None)
    stepping, telling = driver.threads
    end = time.monotonic() + 20
    while driver in driver_module._running:  # whom the interpreter's end waits for
        assert time.monotonic() < end
        time.sleep(0.01)
    assert not stepping.is_alive() and core.ended_in_time
    telling.join(20)
    assert not telling.is_alive()


# --- whole processes ---------------------------------------------------------------------------

# A suite started in the background has SIGINT ignored, and children inherit that.
HEAD = """
import contextlib, os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from support import engine_cases as cases
from musespark.engine import Request
engine = cases.make_engine("muse_kv8", context=4096)
endless = Request(tokens=[1], temperature=1.0, logprobs=1)
"""


def start(code: str) -> subprocess.Popen:
    support = Path(cases.__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(support), *sys.path])}
    return subprocess.Popen(
        [sys.executable, "-u", "-c", HEAD + textwrap.dedent(code)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


COMPUTING = "Request(tokens=[1] * 4000, logits='score')"
# Its rows are never made.
UNMADE = "GivenRows(first=2, count=4, advance=4, places=None, make=lambda: never.wait())"
STUCK = f"Request(tokens=[1, 1, -1, -2, -3, -4, 1], given=[{UNMADE}])"


@pytest.mark.parametrize("wait", ["handle.result()", "list(handle)", "for e in handle: pass"])
@pytest.mark.parametrize("request_", [COMPUTING, STUCK], ids=["computing", "stuck"])
def test_ctrl_c_while_waiting(request_: str, wait: str) -> None:
    """KeyboardInterrupt comes at once, the request ends, and the engine still works."""
    process = start(
        f"""
        import musespark.engine
        from musespark.events import GivenRows
        musespark.engine.ALIVE_S = 1000  # nothing else ends a wait
        never = threading.Event()
        handles = []  # an interrupt in a handle's finalizer would be lost, as in any finalizer
        print("waiting")
        try:
            while True:
                handles.append(handle := engine.submit({request_}))
                {wait}
        except KeyboardInterrupt:
            print("interrupted")
        for _ in range(2000):
            if not engine.stats()["running"]: break
            time.sleep(0.005)
        print("running", engine.stats()["running"])
        never.set()
        print("again", len(engine.submit(Request(tokens=[1], max_new_tokens=3)).result().tokens))
        """
    )
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.splitlines() == ["interrupted", "running 0", "again 3"]


GENERATING = """
def quiet():
    with contextlib.suppress(Exception):
        h2.result()
handle = engine.submit(endless)
next(iter(handle))
h2 = engine.submit(endless)
"""


@pytest.mark.parametrize(
    "ending",
    [
        "",
        "sys.exit(0)",
        "del engine",
        "threading.Thread(target=quiet, daemon=True).start(); time.sleep(0.05)",
    ],
)
def test_leaving_python_while_generating(ending: str) -> None:
    process = start(f"{GENERATING}\n{ending}")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")


def test_after_fork() -> None:
    """The child gets an error that says why, and ends normally; the parent's engine goes on."""
    process = start(
        """
        handle = engine.submit(endless)
        child = os.fork()
        if child == 0:
            for attempt in (lambda: engine.submit(endless), engine.stats, handle.result):
                try:
                    attempt()
                    print("no error")
                except Exception as error:
                    print("child:", type(error).__name__, "fork" in str(error))
            engine.close()
            sys.exit(3)
        _, status = os.waitpid(child, 0)
        print("status", os.waitstatus_to_exitcode(status))
        print("parent", len(engine.submit(Request(tokens=[1], max_new_tokens=4)).result().tokens))
        """
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.splitlines() == ["child: Error True"] * 3 + ["status 3", "parent 4"]


def test_finished_is_the_last_event(engine: Engine) -> None:
    events = list(engine.submit(Request(tokens=[1], max_new_tokens=3)))
    assert isinstance(events[-1], Finished)
    assert sum(isinstance(e, Finished) for e in events) == 1


def test_a_second_iteration_is_refused(engine: Engine) -> None:
    handle = engine.submit(Request(tokens=[1], max_new_tokens=3))
    handle.result()
    with pytest.raises(Error, match="iterated once"):
        handle.result()
    with pytest.raises(Error, match="iterated once"):
        asyncio.run(handle.aresult())
