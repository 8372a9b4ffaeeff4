"""Ctrl-C wherever it may strike: nothing stays behind, and what was interrupted can go on."""

from __future__ import annotations

import contextlib
import dis
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

import pytest

import musespark
from musespark import driver as driver_module
from musespark import engine as engine_module
from musespark import session as session_module
from musespark.contemplating import run as contemplating_run
from musespark.contemplating import streams as contemplating_streams
from musespark.engine import Engine, Request
from support import engine_cases as cases
from support.engine_cases import tokens

QUESTION = "What is 23 + 45?"


def _points(code: CodeType) -> dict[int, bool]:
    """Offset of each instruction -> whether Python looks for signals just before it."""
    found, before = {}, None
    for instruction in dis.get_instructions(code):
        found[instruction.offset] = before is not None and (
            before.startswith("CALL") or before == "RESUME"
        )
        before = instruction.opname
    return found


class _Striker:
    """Raises KeyboardInterrupt at the n-th place of some functions where a signal can strike."""

    def __init__(self, functions: set[CodeType], strike_at: int) -> None:
        self.points = {code: _points(code) for code in functions}
        self.left, self.struck = strike_at, False

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code not in self.points or self.struck:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "opcode" and self.points[frame.f_code].get(frame.f_lasti):
            self.left -= 1
            if self.left < 0:
                self.struck = True
                raise KeyboardInterrupt
        return self


def strikes(functions: list[Any], call: Callable[[], Any]) -> Iterator[BaseException | None]:
    """Calls `call` again and again, interrupted one place later each time; at last not at all.

    Yields what was raised, and holds it meanwhile, as an interactive Python holds the last error.
    """
    codes = {function.__code__ for function in functions}
    for strike_at in range(1000):
        striker = _Striker(codes, strike_at)
        before, error = sys.gettrace(), None
        sys.settrace(striker)
        try:
            call()
        except KeyboardInterrupt as caught:
            error = caught
        finally:
            sys.settrace(before)
        yield error
        if not striker.struck:
            assert strike_at > 5, "the functions were never struck"
            return
    raise AssertionError("interrupted 1000 times and not through")


def quiet(engine: Engine, kept: int = 0) -> bool:
    """Whether in the end nothing runs and no more than `kept` sequences are held."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        stats = engine.stats()
        left = [stats[key] for key in ("running", "waiting", "kv_bytes_used")]
        if stats["retained"] == kept and not any(left[: 2 if kept else 3]):
            return True
        time.sleep(0.002)
    return False


@pytest.mark.parametrize("prompt", [3, 200])
def test_an_interrupted_submit_leaves_nothing(prompt: int) -> None:
    """It once left pages retained that nobody could release, and a request nobody waited for."""
    request = Request(tokens=tokens(prompt), max_new_tokens=800, temperature=1.0, retain=True)
    functions = [
        engine_module.Driver.submit,
        driver_module.note_id,
        engine_module.Engine.submit,
        engine_module.Handle.__init__,
    ]
    handles: list = []
    with cases.make_engine() as engine:
        for error in strikes(functions, lambda: handles.append(engine.submit(request))):
            if error is not None:
                assert not handles
                assert quiet(engine), error
        handles.pop().cancel()


def test_an_interrupted_fork_leaves_nothing() -> None:
    with cases.make_engine() as engine:
        handle = engine.submit(Request(tokens=tokens(70), max_new_tokens=2, retain=True))
        handle.result()
        functions = [
            engine_module.Retained.fork,
            engine_module.Driver.take,
            driver_module.note_id,
        ]
        twins: list = []
        for error in strikes(functions, lambda: twins.append(handle.retained.fork())):
            if error is None:
                twins.pop().release()
            assert quiet(engine, kept=1), error


def test_an_interrupted_release_is_done_by_the_next() -> None:
    request = Request(tokens=tokens(70), max_new_tokens=2, retain=True)
    functions = [engine_module.Retained.release, engine_module.Driver.quietly]
    made: list = []

    def release() -> None:
        made.append(engine.submit(request))
        made[-1].result()
        made[-1].retained.release()

    with cases.make_engine() as engine:
        for error in strikes(functions, release):
            made.pop().retained.release()
            assert quiet(engine), error


def test_an_interrupted_close_finishes_when_called_again() -> None:
    """The first call's interrupt once made every later close() return at once, thread or not."""
    engines: list[Engine] = []

    def close() -> None:
        engines.append(cases.make_engine(threads=1))
        engines[-1].submit(Request(tokens=[1], temperature=1.0))
        engines[-1].close()

    functions = [engine_module.Engine.close, engine_module.Driver.stop]
    for error in strikes(functions, close):
        engine = engines.pop()
        engine.close()
        assert not [one for one in engine._driver.threads if one.is_alive()], error
        assert engine.closed


def test_an_interrupted_start_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    functions = [
        engine_module.Engine.__init__,
        engine_module.Driver.__init__,
        engine_module.Driver.start,
    ]
    made: list[Engine] = []
    for error in strikes(functions, lambda: made.append(cases.make_engine(threads=1))):
        if made:
            made.pop().close()
        for thread in set(threading.enumerate()) - before:
            thread.join(10)
            assert not thread.is_alive()
        assert not [d for d in driver_module._running if before.isdisjoint(d.threads)], error


# ---- sessions -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    with musespark.load(context=512, threads=1) as loaded:
        yield loaded


def test_a_session_survives_an_interrupt_anywhere(model) -> None:
    """An interrupt while the turn was taken in once left pages released and still referred to."""
    functions = [
        session_module.Session.chat,
        session_module.Session._take,
        session_module.SessionStream._run,
        session_module.SessionStream._end,
        session_module.SessionStream.__init__,
    ]
    session = model.session()
    session.chat(QUESTION, max_new_tokens=4)
    for error in strikes(functions, lambda: session.chat("And 2 + 2?", max_new_tokens=2)):
        turns = [m["role"] for m in session.messages]
        assert turns in (["user", "assistant"], ["user", "assistant"] * 2), error
        assert quiet(model._engine, kept=1), error
        messages = [*session.messages, {"role": "user", "content": "And 1 + 1?"}]
        got = session.chat("And 1 + 1?", max_new_tokens=2)
        assert got.tokens == model.chat(messages, max_new_tokens=2).tokens
        del session.messages[2:]
    session.close()
    session.close()
    assert quiet(model._engine)


def test_an_interrupted_contemplation_leaves_nothing(model) -> None:
    functions = [
        contemplating_run.Contemplation._begin,
        contemplating_run.Contemplation._submit,
        contemplating_run.Contemplation.advance,
        contemplating_streams.contemplate,
        contemplating_streams.ContemplationStream.__init__,
        contemplating_streams.ContemplationStream._run,
        contemplating_streams.ContemplationStream.go_on,
    ]
    given = {"mode": "contemplating", "n_agents": 2, "seed": 1, "max_new_tokens": 2}
    wanted = model.chat(QUESTION, **given).tokens
    found = []
    for error in strikes(functions, lambda: found.append(model.chat(QUESTION, **given).tokens)):
        assert quiet(model._engine), error
    assert found and all(tokens == wanted for tokens in found)


def test_a_session_closed_during_a_turn_keeps_no_memory(model) -> None:
    """The turn counts, but its keys and values are given back when it ends."""
    session = model.session()
    for _ in range(2):
        stream = session.chat(QUESTION, max_new_tokens=8, stream=True)
        next(stream)
        session.close()
        for _ in stream:
            pass
        assert quiet(model._engine)
    assert len(session.messages) == 4
    with session:
        session.chat("And 1 + 1?", max_new_tokens=2)
        assert quiet(model._engine, kept=1)
    assert quiet(model._engine)


def test_a_turn_that_ctrl_c_ends_is_forgotten_at_once(model) -> None:
    session = model.session()
    timer = threading.Timer(0.05, signal.raise_signal, [signal.SIGINT])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt) as held:  # as an interactive Python holds it
            while True:
                session.chat("Tell me a story.", min_new_tokens=300, max_new_tokens=300)
                session.close()
                session.messages.clear()
    finally:
        timer.cancel()
        with contextlib.suppress(KeyboardInterrupt):
            timer.join()
        signal.signal(signal.SIGINT, before)
    session.close()
    assert quiet(model._engine), held
    session.messages.clear()
    assert session.chat(QUESTION, max_new_tokens=4).tokens == (
        model.chat(QUESTION, max_new_tokens=4).tokens
    )
