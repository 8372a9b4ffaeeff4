"""The core that runs in one thread and is heard in another (csrc/decode/runner.h)."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from support import run_engine, tiny_models

SLICE_S = 0.02
AHEAD_S = 0.1  # csrc/decode/runner.h
PROMPT = np.arange(1, 9, dtype=np.int32)


def make_core(**more: Any) -> Any:
    spec = tiny_models.llama()
    packed = run_engine.pack_weights(tiny_models.random_weights(spec))
    return run_engine.engine(spec, packed, context=4096, prefix_cache=False, **more)


@pytest.fixture
def core() -> Any:
    return make_core()


@contextmanager
def running(core: Any) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=core.run, args=(SLICE_S,))
    late = threading.Timer(30, core.end_events)  # or take_events would wait for what never comes
    thread.start()
    late.start()
    try:
        yield thread
    finally:
        late.cancel()
        core.cancel_all()
        core.stop()
        thread.join(20)
        assert not thread.is_alive()


def ask(core: Any, count: int) -> int:
    return core.submit(PROMPT, params={"max_new_tokens": count, "temperature": 0.0})


def told(events: Sequence[tuple]) -> dict[int, list[int]]:
    found: defaultdict[int, list[int]] = defaultdict(list)
    for kind, request, ids, *_ in events:
        if kind == "tokens":
            found[request] += ids
    return found


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not what():
        assert time.monotonic() < end
        time.sleep(0.002)


def until_it_waits(core: Any) -> int:
    """Steps that a run has taken when it takes no more."""
    seen: list[int] = []
    while len(seen) < 4 or len(set(seen[-4:])) > 1:
        seen.append(core.stats()["steps"])
        time.sleep(AHEAD_S)
    return seen[-1]


def test_it_goes_on_while_nobody_takes_events_but_not_without_end(core) -> None:
    ask(core, 4000)
    with running(core):
        steps = until_it_waits(core)
        assert core.has_work()
        events = core.take_events()
        assert len(events) > 2  # it did not wait for the first to be taken
        assert len(told(events)[0]) == steps
        until(lambda: core.stats()["steps"] > steps)


def test_stop_ends_a_run_that_waits(core) -> None:
    ask(core, 4000)
    with running(core) as thread:
        until_it_waits(core)
        core.stop()
        thread.join(20)
        assert not thread.is_alive()


def test_all_tokens_come_in_order_whoever_ends(core) -> None:
    counts = [3, 40, 41, 200, 7, 120]
    alone = run_engine.greedy(core, PROMPT, max(counts))
    ids = [ask(core, count) for count in counts]
    events: list[tuple] = []
    with running(core):
        while sum(kind == "finished" for kind, *_ in events) < len(ids):
            events += core.take_events()
    found = told(events)
    assert [found[one] for one in ids] == [alone[:count] for count in counts]
    ended = [request for kind, request, *_ in events if kind == "finished"]
    assert sorted(ended) == sorted(ids)


def test_the_first_token_is_told_of_at_once(core) -> None:
    first = ask(core, 400)
    assert told(core.run_until(60.0)) == {first: run_engine.greedy(make_core(), PROMPT, 1)}
    second = ask(core, 400)
    assert [*told(core.run_until(60.0))] == [second]


def test_an_end_does_not_cut_what_others_write(core) -> None:
    """Those that go on are told of when their time is over, not each time that another ends."""
    long = ask(core, 400)
    for count in range(2, 12):
        ask(core, count)
    events: list[tuple] = []
    ends = 0
    while ends < 10:
        events += core.run_until(60.0)
        ends = sum(kind == "finished" for kind, *_ in events)
    assert len(told(events)[long]) == 1  # for which somebody waits
    while core.has_work():
        events += core.run_until(60.0)
    assert sum(kind == "tokens" and request == long for kind, request, *_ in events) == 2
    assert len(told(events)[long]) == 400


@pytest.mark.parametrize("pause", [0.0, 0.08])
def test_who_goes_on_is_told_of_in_time_though_others_end(core, pause: float) -> None:
    """However late the next call comes."""
    long, calls = ask(core, 4000), 0
    core.run_until(0.05)  # its first token
    events: list[tuple] = []
    while long not in told(events):
        ask(core, 1)
        events = core.run_until(0.05)
        calls += 1
        time.sleep(pause)
        assert calls < 4 or not pause
    assert not [one for one in events if one[:2] == ("finished", long)]


def test_stop_lasts(core) -> None:
    ask(core, 4000)
    with running(core) as thread:
        core.stop()
        thread.join(20)
        assert not thread.is_alive() and core.has_work()
        core.run(SLICE_S)
        assert core.has_work()
        core.end_events()
        while core.take_events() is not None:
            pass
        assert core.take_events() is None


def test_what_is_stopped_tells_what_was_written() -> None:
    """Though it returned early, as others ended at each step."""
    core = make_core(prefill_chunk=len(PROMPT))
    long, *_ = [ask(core, count) for count in (4000, *[1] * 4000)]
    with running(core) as thread:
        until_it_waits(core)
        core.stop()
        thread.join(20)
        core.end_events()
        events: list[tuple] = []
        while (some := core.take_events()) is not None:
            events += some
        assert len(told(events)[long]) == core.stats()["steps"]
