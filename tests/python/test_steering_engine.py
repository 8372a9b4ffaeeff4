"""Control vectors in the engine: who gets one, what is never mixed, the states they come from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from musespark.engine import Engine, Request
from musespark.errors import InvalidRequest
from musespark.reference import forward as reference
from support import engine_cases as cases
from support import tiny_models
from support.engine_cases import tokens
from support.lora import adapter_tensors, random_adapter
from support.steering import control_tensors, random_directions, twin_weights

SPEC = cases.packed("muse_kv8")[0]


def add(engine: Engine, seed: int = 1, over: int | None = None, **options) -> int:
    ids: list[int] = []
    engine.add_adapter(ids, control_tensors(SPEC, seed=seed, **options), over=over)
    return ids[0]


def add_lora(engine: Engine) -> int:
    ids: list[int] = []
    engine.add_adapter(ids, adapter_tensors(random_adapter(SPEC, 1)))
    return ids[0]


def varied(chosen: list[int | None]) -> list[Request]:
    """The requests of engine_cases, each with another vector, and again with none."""
    requests = cases.requests(130)
    steered = [
        dataclasses.replace(request, adapter=chosen[i % len(chosen)])
        for i, request in enumerate(requests)
    ]
    return steered + requests


def answers(engine: Engine, requests: list[Request]) -> list[str]:
    handles = [engine.submit(request) for request in requests]
    return [cases.fingerprint(handle.result()) for handle in handles]


def steerings(engine: Engine) -> list[int | None]:
    return [add(engine, 1), None, add(engine, 2, layers=[1]), add(engine, 3, add_lora(engine))]


def test_together_as_alone() -> None:
    with cases.make_engine() as engine:
        requests = varied(steerings(engine))
        alone = [cases.fingerprint(engine.submit(r).result()) for r in requests]
        n = len(requests) // 2
        assert all(alone[i] != alone[n + i] for i in (3, 6, 7, 8)), "vectors that do nothing"
        assert all(alone[i] == alone[n + i] for i in (1, 5, 9))
        assert answers(engine, requests) == alone
    with cases.make_engine() as plain:
        assert [cases.fingerprint(plain.submit(r).result()) for r in cases.requests(130)] == alone[
            n:
        ]
    with cases.make_engine(prefill_chunk=33, threads=1) as other:
        assert answers(other, varied(steerings(other))) == alone


def test_preempted_sequences_keep_their_vectors() -> None:
    def few(engine: Engine) -> list[Request]:
        chosen = [add(engine, 1), None, add(engine, 2)]
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


def test_prefixes_are_those_of_the_same_vector_over_the_same_adapter() -> None:
    """Each goes on from what it has computed itself, and from nothing else."""
    prompt = tokens(200)
    with cases.make_engine() as engine:
        lora = add_lora(engine)
        chosen = [None, lora, add(engine, 1), add(engine, 2), add(engine, 1, lora)]
        request = Request(tokens=prompt, max_new_tokens=8, temperature=1.0, logprobs=1)
        first = [engine.submit(dataclasses.replace(request, adapter=a)).result() for a in chosen]
        assert [one.stats["cached_tokens"] for one in first] == [0] * 5
        again = [engine.submit(dataclasses.replace(request, adapter=a)).result() for a in chosen]
        assert all(one.stats["cached_tokens"] >= 128 for one in again)
        assert [one.logprobs for one in again] == [one.logprobs for one in first]
        assert len({tuple(one.logprobs) for one in first}) == 5, "vectors that do nothing"


def test_a_base_is_reused_by_the_vector_that_made_it_alone() -> None:
    with cases.make_engine(prefix_cache=False) as engine:
        one, two, prompt = add(engine, 1), add(engine, 2), tokens(200)
        for made_with in (one, None):
            request = Request(tokens=prompt, max_new_tokens=5, retain=True, adapter=made_with)
            handle = engine.submit(request)
            handle.result()
            for steering in (one, two, None):
                request = Request(tokens=[*prompt, 3, 4], max_new_tokens=8, adapter=steering)
                got = engine.submit(request, base=handle.retained).result()
                assert got.tokens == engine.submit(request).result().tokens
                assert (got.stats["cached_tokens"] > 0) == (steering == made_with)
            handle.retained.release()


def test_it_outlives_the_adapter_that_it_is_laid_over() -> None:
    with cases.make_engine() as engine:
        lora = add_lora(engine)
        both = add(engine, 1, lora)
        request = Request(tokens=tokens(50), max_new_tokens=12, adapter=both)
        wanted = engine.submit(request).result().tokens
        engine.remove_adapter(lora)
        assert engine.submit(request).result().tokens == wanted
        with pytest.raises(InvalidRequest, match=f"over: got {lora}, allowed is an adapter that"):
            add(engine, 1, lora)


# ---- states -------------------------------------------------------------------------------------


def test_states_are_the_twins_residuals() -> None:
    """Of every layer but the last, from any token on, steered or not."""
    spec, prompt = cases.packed("llama_f32")[0], tokens(150)
    weights = tiny_models.unpack(cases.packed("llama_f32")[1])
    vector = random_directions(spec, seed=4)
    with cases.make_engine("llama_f32") as engine:
        ids: list[int] = []
        engine.add_adapter(ids, control_tensors(spec, seed=4))
        for adapter, more in ((None, {}), (ids[0], twin_weights(vector))):
            *every, _ = reference.residuals(spec, weights | more, prompt)
            wanted = np.concatenate(every, axis=1)
            for first in (0, 70, 149):
                request = Request(tokens=prompt, logits="states", logits_from=first)
                got = engine.submit(dataclasses.replace(request, adapter=adapter)).result().logits
                assert got.shape == (150 - first, (len(spec.layers) - 1) * spec.hidden)
                assert np.abs(got - wanted[first:]).max() < 1e-4 * np.abs(wanted).max()


def test_states_are_the_same_however_they_are_computed() -> None:
    """Cut into chunks, behind a prefix that is known, in a batch, and on any threads."""
    prompt = tokens(300)
    request = Request(tokens=prompt, logits="states", logits_from=250)
    whole = dataclasses.replace(request, logits_from=0)
    with cases.make_engine(prefix_cache=False) as engine:
        every = engine.submit(whole).result().logits
    with cases.make_engine(prefill_chunk=37, threads=1) as engine:
        first = engine.submit(request).result()
        again = engine.submit(request).result()
        assert (first.stats["cached_tokens"], again.stats["cached_tokens"]) == (0, 192)
        others = [engine.submit(r) for r in cases.requests(130)[:4]]
        beside = engine.submit(whole).result().logits
        for handle in others:
            handle.result()
    for found in (first.logits, again.logits):
        np.testing.assert_array_equal(found, every[250:])
    np.testing.assert_array_equal(beside, every)


def test_what_states_do_not_go_with() -> None:
    with cases.make_engine() as engine:
        for wrong, text in (
            ({"logits_from": 5}, "logits_from: got 5, allowed is 0 to 4"),
            ({"max_new_tokens": 3}, "max_new_tokens: got 3 with logits"),
        ):
            with pytest.raises(InvalidRequest, match=text):
                engine.submit(Request(tokens=tokens(5), logits="states", **wrong))
    spec = dataclasses.replace(SPEC, layers=SPEC.layers[:1])
    packed = tiny_models.pack(tiny_models.random_weights(spec), "f32")
    settings = {"threads": 1, "context": 64, "kv": "f32", "memory_budget": 1 << 24}
    with (
        Engine(spec, packed, **settings) as engine,
        pytest.raises(InvalidRequest, match="all layers but the last; the model has one"),
    ):
        engine.submit(Request(tokens=tokens(5), logits="states"))
