"""Rows in place of embeddings through the engine: asked for when they are needed and not before,
and the same result whatever happens to the request."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from tests.support import given as g
from tests.support import tiny_models
from tests.support.tiny_models import pack, random_weights

from musespark import _core
from musespark.errors import InvalidRequest, MemoryBudgetExceeded

MODELS = {"three axes": g.qwen, "mutual": g.gemma, "windows": tiny_models.muse}
SPANS = [(5, 48), (130, 96)]
LENGTH = 260


def core_of(name: str, **settings: Any) -> Any:
    spec = MODELS[name]()
    options = {"threads": 1, "context": 512, "kv": "kv8", "memory_budget": 1 << 28, **settings}
    return _core.Engine(asdict(spec), pack(random_weights(spec), "q8"), **options)


def spans_of(name: str, seed: int = 1) -> list[g.Given]:
    spec = MODELS[name]()
    width = 8 if name == "three axes" else 0
    return [g.given_rows(spec, first, count, width=width, seed=seed) for first, count in SPANS]


class Driven:
    """A core engine driven by hand, its rows provided when asked for."""

    def __init__(self, core: Any, name: str):
        self.core, self.spec = core, MODELS[name]()
        self.given: dict[int, list[g.Given]] = {}
        self.tokens: dict[int, list[int]] = {}
        self.stats: dict[int, Any] = {}
        self.wanted: list[tuple[int, int]] = []

    def submit(
        self, spans: list[g.Given], *, lazy: bool = True, base=None, seed=5, length=LENGTH, **more
    ) -> int:
        ids = g.prompt(self.spec, length, spans, seed)
        params = {"max_new_tokens": 12, "given": [s.fields(rows=not lazy) for s in spans], **more}
        request = self.core.submit(ids, params=params, base=base)
        self.given[request], self.tokens[request] = spans, []
        return request

    def run(self) -> None:
        while self.core.has_work() and not self.core.waits_for_rows():
            self.take(self.core.run_until(0.2))

    def take(self, events: list[tuple]) -> None:
        for kind, request, *rest in events:
            if kind == "tokens":
                self.tokens[request] += rest[0]
            elif kind == "rows_wanted":
                self.wanted.append((request, rest[0]))
                self.provide(request, rest[0])
            else:
                assert kind == "finished" and rest[1] is None, (kind, rest)
                self.stats[request] = rest[2]

    def provide(self, request: int, index: int) -> None:
        span = self.given[request][index]
        self.core.provide_rows(request, index, span.rows, span.taps or [])


def alone(name: str, spans: list[g.Given], **more: Any) -> list[int]:
    driven = Driven(core_of(name, prefix_cache=False), name)
    request = driven.submit(spans, lazy=False, **more)
    driven.run()
    assert driven.wanted == []
    return driven.tokens[request]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk", [7, 64, 512])
def test_rows_are_asked_for_once_and_chunks_change_nothing(name: str, chunk: int) -> None:
    driven = Driven(core_of(name, prefill_chunk=chunk, threads=2), name)
    request = driven.submit(spans_of(name))
    driven.run()
    assert driven.wanted == [(request, 0), (request, 1)]
    assert driven.tokens[request] == alone(name, spans_of(name))
    assert len(driven.tokens[request]) == 12


@pytest.mark.parametrize("name", MODELS)
def test_other_rows_give_other_tokens(name: str) -> None:
    assert alone(name, spans_of(name, seed=2)) != alone(name, spans_of(name))


@pytest.mark.parametrize("name", MODELS)
def test_known_rows_are_not_asked_for(name: str) -> None:
    """A second prompt that goes on behind the rows finds their keys and values; one with other
    rows, though all its text is the same, finds those before them alone."""
    driven = Driven(core_of(name), name)
    driven.submit(spans_of(name))
    driven.run()
    driven.wanted.clear()
    again = driven.submit(spans_of(name), length=300)
    driven.run()
    assert driven.wanted == []
    assert driven.stats[again]["cached_tokens"] == 256
    assert driven.tokens[again] == alone(name, spans_of(name), length=300)
    spans = spans_of(name)
    spans[1] = spans_of(name, seed=2)[1]
    other = driven.submit(spans, length=300)
    driven.run()
    assert driven.wanted == [(other, 1)]
    assert driven.stats[other]["cached_tokens"] == 128
    assert driven.tokens[other] == alone(name, spans, length=300)


@pytest.mark.parametrize("name", MODELS)
def test_a_base_shares_rows(name: str) -> None:
    driven = Driven(core_of(name, prefix_cache=False), name)
    base = driven.submit(spans_of(name), retain=True)
    driven.run()
    driven.wanted.clear()
    again = driven.submit(spans_of(name), length=300, base=base)
    driven.run()
    assert driven.wanted == []
    assert driven.stats[again]["cached_tokens"] == LENGTH
    assert driven.tokens[again] == alone(name, spans_of(name), length=300)


@pytest.mark.parametrize("name", MODELS)
def test_a_preempted_request_keeps_its_rows(name: str) -> None:
    """Two that grow in room for one and a prompt: one is computed again, without asking."""
    tight = {"prefill_chunk": 16, "prefix_cache": False, "kv": "f32"}

    def needed(more: int) -> int:
        with pytest.raises(MemoryBudgetExceeded) as refused:
            core = core_of(name, memory_budget=1, **tight)
            Driven(core, name).submit(spans_of(name), max_new_tokens=more)
        return int(str(refused.value).split("needs ")[1].split(" bytes")[0])

    driven = Driven(core_of(name, memory_budget=needed(1) + needed(252), **tight), name)
    free: dict[str, Any] = {"max_new_tokens": None}
    requests = [driven.submit(spans_of(name, seed), seed=seed, **free) for seed in (1, 2)]
    driven.run()
    assert sum(driven.stats[r]["preemptions"] for r in requests) > 0
    assert sorted(driven.wanted) == [(r, i) for r in requests for i in (0, 1)]
    for request, seed in zip(requests, (1, 2), strict=True):
        one = Driven(core_of(name, **tight), name)
        same = one.submit(spans_of(name, seed), seed=seed, **free)
        one.run()
        assert driven.tokens[request] == one.tokens[same]


def test_who_has_rows_goes_on_while_others_wait() -> None:
    name = "three axes"
    driven = Driven(core_of(name), name)
    slow = driven.submit(spans_of(name))
    provide, driven.provide = driven.provide, lambda *_: None
    driven.run()
    assert driven.core.waits_for_rows()
    quick = driven.submit([], length=70)
    driven.run()
    assert len(driven.tokens[quick]) == 12
    assert driven.core.stats()["running"] == 1
    for index in (1, 0):
        provide(slow, index)
    driven.run()
    assert driven.tokens[slow] == alone(name, spans_of(name))
    assert driven.wanted == [(slow, 0), (slow, 1)]


def test_a_waiting_request_can_be_cancelled_and_meets_its_deadline() -> None:
    name = "mutual"
    driven = Driven(core_of(name), name)
    driven.provide = lambda *_: None
    waiting = driven.submit(spans_of(name))
    due = driven.submit(spans_of(name, 2), deadline_s=0.05)
    driven.run()
    driven.core.cancel(waiting)
    while driven.core.has_work():
        driven.take(driven.core.run_until(0.05))
    assert set(driven.stats) == {waiting, due}
    driven.core.provide_rows(waiting, 0, spans_of(name)[0].rows)  # too late: nothing happens


def test_refusals() -> None:
    name = "three axes"
    driven = Driven(core_of(name), name)
    spans = spans_of(name)
    ids = g.prompt(driven.spec, LENGTH, spans)

    def refuse(tokens: np.ndarray, given: list, says: str, **params: Any) -> None:
        fields = [span.fields(rows=False) for span in given]
        with pytest.raises(InvalidRequest, match=says):
            driven.core.submit(tokens, params={"given": fields, **params})

    refuse(ids, spans, "rows are given up to 226, which have no next", logits="score")
    refuse(ids, spans[:1], r"tokens\[130\]: got -\d+, allowed is a token id: no row is given")
    refuse(np.abs(ids) % 70, spans, r"tokens\[5\]: got \d+, allowed is a negative id")
    refuse(ids, [], r"tokens\[5\]: got -\d+, allowed is a token id from 0 to 76")
    refuse(ids, [spans[0], replace(spans[1], first=200)], r"given\[1\].count: got 96, allowed")
    driven.provide = lambda *_: None
    request = driven.submit(spans)
    driven.run()
    with pytest.raises(InvalidRequest, match=r"index: got 2, the request has 2 spans"):
        driven.core.provide_rows(request, 2, spans[0].rows)
    with pytest.raises(InvalidRequest, match=r"rows: got 96, given\[0\] has 48"):
        driven.core.provide_rows(request, 0, spans[1].rows)
    with pytest.raises(InvalidRequest, match=r"taps: got 2, allowed is at most 1"):
        driven.core.provide_rows(request, 0, spans[0].rows, [spans[0].rows] * 2)


def test_penalties_see_text_alone() -> None:
    """Negative ids would be far outside the tables of what was seen."""
    name = "windows"
    spans = spans_of(name)
    params = {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2}
    driven = Driven(core_of(name), name)
    request = driven.submit(spans, **params)
    driven.run()
    assert driven.tokens[request] == alone(name, spans, **params)
