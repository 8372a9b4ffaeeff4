"""Control vectors in the engine: over adapters, and the states they come from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from musespark.engine import Engine, Request
from musespark.errors import InvalidRequest
from musespark.reference import forward as reference
from support import engine_cases as cases
from support import tiny_models
from support.adapted import CONTROL, LORA, add
from support.engine_cases import tokens
from support.steering import control_tensors, random_directions, twin_weights

SPEC = cases.packed("muse_kv8")[0]


def test_prefixes_are_those_of_the_same_vector_over_the_same_adapter() -> None:
    """Each goes on from what it has computed itself, and from nothing else."""
    prompt = tokens(200)
    with cases.make_engine() as engine:
        lora = add(engine, LORA)
        chosen = [
            None,
            lora,
            add(engine, CONTROL),
            add(engine, CONTROL, seed=2),
            add(engine, CONTROL, lora),
        ]
        request = Request(tokens=prompt, max_new_tokens=8, temperature=1.0, logprobs=1)
        first = [engine.submit(dataclasses.replace(request, adapter=a)).result() for a in chosen]
        assert [one.stats["cached_tokens"] for one in first] == [0] * 5
        again = [engine.submit(dataclasses.replace(request, adapter=a)).result() for a in chosen]
        assert all(one.stats["cached_tokens"] >= 128 for one in again)
        assert [one.logprobs for one in again] == [one.logprobs for one in first]
        assert len({tuple(one.logprobs) for one in first}) == 5, "vectors that do nothing"


def test_it_outlives_the_adapter_that_it_is_laid_over() -> None:
    with cases.make_engine() as engine:
        lora = add(engine, LORA)
        both = add(engine, CONTROL, lora)
        request = Request(tokens=tokens(50), max_new_tokens=12, adapter=both)
        wanted = engine.submit(request).result().tokens
        engine.remove_adapter(lora)
        assert engine.submit(request).result().tokens == wanted
        with pytest.raises(InvalidRequest, match=f"over: got {lora}, allowed is an adapter that"):
            add(engine, CONTROL, lora)


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
