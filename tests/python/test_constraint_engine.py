"""Constraints in the engine: what they allow is written, once each, whatever runs beside them."""

from __future__ import annotations

import dataclasses
import threading
import time

import numpy as np
import pytest

from musespark.errors import Error, InvalidRequest
from musespark.events import Request
from support.engine_cases import bytes_needed, make_engine, packed, tokens

VOCAB = packed("muse_kv8")[0].vocab
BYTES = (VOCAB + 7) // 8


def bits(ids) -> bytes:
    out = bytearray(BYTES)
    for token in ids:
        out[token >> 3] |= 1 << (token & 7)
    return bytes(out)


class Residues:
    """Allows ids that leave the remainder of the sum so far by seven: a function of the tokens."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.calls: list[list[int]] = []

    def __call__(self, new: list[int]) -> bytes:
        self.calls.append(new)
        self.seen += new
        return bits(range(sum(self.seen) % 7, VOCAB, 7))


def keeps(ids: list[int]) -> bool:
    return all(token % 7 == sum(ids[:i]) % 7 for i, token in enumerate(ids))


def constrained(count: int, **more) -> Request:
    given = {"max_new_tokens": 40, "temperature": 1.0, "seed": count, "constraint": Residues()}
    return Request(tokens=tokens(count, seed=count), **(given | more))


def alone(count: int, **more) -> list[int]:
    with make_engine(threads=1) as engine:
        return engine.submit(constrained(count, **more)).result().tokens


def test_only_allowed_ids_each_token_told_once() -> None:
    with make_engine() as engine:
        for temperature in (0.0, 1.0):
            request = constrained(65, temperature=temperature)
            result = engine.submit(request).result()
            assert len(result.tokens) == 40 and result.reason == "length"
            assert keeps(result.tokens)
            assert request.constraint.calls == [[], *([token] for token in result.tokens[:-1])]
        free = engine.submit(dataclasses.replace(request, constraint=None)).result()
        assert not keeps(free.tokens)


def test_one_result_whatever_runs_beside_it() -> None:
    """Threads, a batch of constrained and free sequences, and preemption."""
    counts = (1, 31, 64, 130)
    wanted = [alone(count) for count in counts]
    with make_engine(threads=2) as engine:
        free = [engine.submit(constrained(count, constraint=None)) for count in (9, 70)]
        handles = [engine.submit(constrained(count)) for count in counts]
        assert [handle.result().tokens for handle in handles] == wanted
        for handle in free:
            handle.result()


def test_a_preempted_sequence_goes_on_with_its_constraint() -> None:
    def few() -> list[Request]:
        return [constrained(90 + i, max_new_tokens=None) for i in range(5)]

    with make_engine(context=700) as engine:
        wanted = [engine.submit(request).result().tokens for request in few()]
    budget = 2 * bytes_needed("muse_kv8", 700)
    with make_engine(context=700, memory_budget=budget) as engine:
        handles = [engine.submit(request) for request in few()]
        assert [handle.result().tokens for handle in handles] == wanted
        assert engine.stats()["preemptions"] > 0, "the budget was not tight"
    assert all(map(keeps, wanted))


def test_allowed_ids_and_constraint_both_hold() -> None:
    with make_engine() as engine:
        both = engine.submit(
            Request(
                tokens=[1, 2],
                max_new_tokens=20,
                temperature=1.0,
                allowed_ids=range(50),
                constraint=lambda new: bits(range(45, 60)),
            )
        )
        assert set(both.result().tokens) <= set(range(45, 50))


def test_everything_and_the_end() -> None:
    """None allows all; empty bytes end the sequence without an id for its end."""
    with make_engine() as engine:
        plain = engine.submit(Request(tokens=[3], max_new_tokens=9)).result().tokens
        seen: list[int] = []

        def nine(new: list[int]) -> bytes | None:
            seen.extend(new)
            return b"" if len(seen) == 5 else None

        result = engine.submit(Request(tokens=[3], max_new_tokens=9, constraint=nine)).result()
        assert (result.tokens, result.reason) == (plain[:5], "stop")


def test_short_and_long_answers() -> None:
    """Ids behind the end of the bytes are not allowed; bits behind the vocabulary say nothing."""
    with make_engine() as engine:
        short = Request(tokens=[3], max_new_tokens=5, constraint=lambda new: b"\x06")
        assert set(engine.submit(short).result().tokens) <= {1, 2}
        bits_behind = b"\x06" + bytes((VOCAB + 63) // 64 * 8 - 1) + b"\xff" * 50
        long = Request(tokens=[3], max_new_tokens=5, constraint=lambda new: bits_behind)
        assert set(engine.submit(long).result().tokens) <= {1, 2}


@pytest.mark.parametrize(
    ("constraint", "says"),
    [
        (lambda new: 1 / 0, "the constraint raised ZeroDivisionError: division by zero"),
        (lambda new: "all", "constraint's answer: got 'all', allowed is bytes or None"),
        (lambda new: [1][len(new) + 1], "IndexError"),
    ],
)
def test_what_fails_ends_its_own_request(constraint, says: str) -> None:
    with make_engine() as engine:
        beside = engine.submit(constrained(31))
        with pytest.raises(InvalidRequest, match=says):
            engine.submit(constrained(20, constraint=constraint)).result()
        assert beside.result().tokens == alone(31)
        assert engine.stats()["running"] == 0


def test_nothing_allowed_is_said() -> None:
    with make_engine() as engine, pytest.raises(Error, match="no token is left to choose from"):
        engine.submit(constrained(5, constraint=lambda new: bytes(BYTES))).result()


def test_refused_at_once() -> None:
    with make_engine() as engine:
        with pytest.raises(InvalidRequest, match="constraint: got 5, allowed is something that"):
            engine.submit(constrained(5, constraint=5))
        with pytest.raises(InvalidRequest, match="constraint: given with logits"):
            request = Request(tokens=[1], logits="all", constraint=Residues())
            engine.submit(request)


def test_it_is_given_up_at_the_end_also_of_a_retained_sequence() -> None:
    class Noted:
        def __init__(self, gone: threading.Event):
            self.gone = gone

        def __call__(self, new: list[int]) -> None:
            return None

        def __del__(self) -> None:
            self.gone.set()

    with make_engine() as engine:
        for more in ({}, {"retain": True}, {"max_new_tokens": 500}):
            gone = threading.Event()
            handle = engine.submit(
                Request(**{"tokens": [1], "max_new_tokens": 3, **more}, constraint=Noted(gone))
            )
            if "max_new_tokens" in more:
                handle.cancel()
            handle.result()
            assert gone.wait(10), more


def test_other_threads_of_python_do_not_block_it() -> None:
    """Calls that look at the engine while constraints run: nobody waits for ever."""
    stop = threading.Event()
    with make_engine() as engine:

        def look() -> None:
            while not stop.is_set():
                engine.stats()

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            began = time.monotonic()
            handles = [engine.submit(constrained(count)) for count in (3, 4, 5)]
            results = [handle.result().tokens for handle in handles]
            assert time.monotonic() - began < 60
        finally:
            stop.set()
            watcher.join()
    assert all(map(keeps, results)) and np.mean([len(r) for r in results]) == 40
