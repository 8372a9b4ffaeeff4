"""Adapters and control vectors in the engine: who gets one, and what is never mixed."""

from __future__ import annotations

import dataclasses

import pytest

from musespark.engine import Engine, Request
from support import engine_cases as cases
from support.adapted import CONTROL, LORA, Kind, add, each_kind
from support.engine_cases import tokens


def answers(engine: Engine, requests: list[Request]) -> list[str]:
    handles = [engine.submit(request) for request in requests]
    return [cases.fingerprint(handle.result()) for handle in handles]


def varied(chosen: list[int | None]) -> list[Request]:
    """The requests of engine_cases, each with another one, and again with none."""
    requests = cases.requests(130)
    adapted = [
        dataclasses.replace(request, adapter=chosen[i % len(chosen)])
        for i, request in enumerate(requests)
    ]
    return adapted + requests


def chosen_of(engine: Engine, kind: Kind) -> list[int | None]:
    """Of a vector one over an adapter too."""
    chosen = [add(engine, kind, seed=1), None, add(engine, kind, seed=2, **kind.few)]
    over = [add(engine, kind, add(engine, LORA), seed=3)] if kind is CONTROL else []
    return [*chosen, *over]


@each_kind
def test_together_as_alone(kind) -> None:
    with cases.make_engine() as engine:
        chosen = chosen_of(engine, kind)
        requests = varied(chosen)
        alone = [cases.fingerprint(engine.submit(r).result()) for r in requests]
        n = len(requests) // 2
        same = [alone[i] == alone[n + i] for i in range(n)]
        without = [chosen[i % len(chosen)] is None for i in range(n)]
        assert all(one for one, none in zip(same, without, strict=True) if none)
        assert sum(same) - sum(without) < n // 3, "they do nothing"
        assert answers(engine, requests) == alone
    with cases.make_engine() as plain:
        plainly = [cases.fingerprint(plain.submit(r).result()) for r in cases.requests(130)]
        assert plainly == alone[n:]
    with cases.make_engine(prefill_chunk=33, threads=1) as other:
        assert answers(other, varied(chosen_of(other, kind))) == alone


@each_kind
def test_preempted_sequences_keep_theirs(kind) -> None:
    def few(engine: Engine) -> list[Request]:
        chosen = [add(engine, kind, seed=1), None, add(engine, kind, seed=2)]
        return [
            Request(tokens=tokens(90, seed=i), temperature=0.8, seed=i, adapter=chosen[i % 3])
            for i in range(5)
        ]

    with cases.make_engine(context=700) as engine:
        wanted = [cases.fingerprint(engine.submit(r).result()) for r in few(engine)]
    budget = 2 * cases.bytes_needed("muse_kv8", 700)
    with cases.make_engine(context=700, memory_budget=budget) as engine:
        assert answers(engine, few(engine)) == wanted
        assert engine.stats()["preemptions"] > 0, "the budget was not tight"


@each_kind
@pytest.mark.parametrize("forked", [False, True])
def test_a_base_is_reused_by_what_made_it_alone(kind, forked: bool) -> None:
    with cases.make_engine(prefix_cache=False) as engine:
        one, two = add(engine, kind, seed=1), add(engine, kind, seed=2)
        prompt = tokens(200)
        for made_with in (one, None):
            request = Request(tokens=prompt, max_new_tokens=5, retain=True, adapter=made_with)
            first = engine.submit(request)
            first.result()
            base = first.retained.fork() if forked else first.retained
            for chosen in (one, two, None):
                request = Request(
                    tokens=[*prompt, 3, 4], max_new_tokens=8, temperature=1.0, adapter=chosen
                )
                fresh = engine.submit(request).result()
                again = engine.submit(request, base=base).result()
                assert again.tokens == fresh.tokens
                assert (again.stats["cached_tokens"] > 0) == (chosen == made_with)
            base.release()
            first.retained.release()
