"""Where the last tokens look: weights of attention, computed again from keys that are kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from musespark.engine import Engine, Request
from musespark.errors import InvalidRequest
from musespark.reference import forward
from support import tiny_models
from support.compare import assert_same_bits
from support.tiny_models import pack, random_tokens, random_weights, unpack

SPANS = [(3, 5), (60, 40), (140, 8)]
KEYS = 53


def everything() -> Any:
    """One layer of three without a window, with sinks and a soft cap."""
    spec = tiny_models.everything()
    last = spec.layers[2]
    capped = replace(last, attention=replace(last.attention, softcap=0.7))
    return replace(spec, layers=[*spec.layers[:2], capped])


SPECS = {"llama": tiny_models.llama, "qwen3": tiny_models.qwen3, "everything": everything}


def engine_of(name: str, recipe: str = "q8", **settings: Any) -> Engine:
    spec = SPECS[name]()
    options = {"threads": 1, "context": 512, "kv": "kv8", "memory_budget": 1 << 28}
    return Engine(spec, pack(random_weights(spec), recipe), **(options | settings))


def looked(engine: Engine, tokens: np.ndarray, spans: Any = SPANS, **more: Any) -> np.ndarray:
    """[layers, rows, keys]."""
    request = Request(tokens=tokens, logits="attention", look_at=spans, **more)
    weights = engine.submit(request).result().logits
    return weights.reshape(-1, min(8, len(tokens)), sum(count for _, count in spans))


def twin(name: str, tokens: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The same of the reference: in place of values each position's own unit vector, so that what
    attention gives are its weights."""
    spec, found = SPECS[name](), []
    attend = forward.attend

    def recorded(q, k, v, a, sinks, seen):
        if a.window == 0:
            each = np.eye(len(q))[:, None].repeat(a.kv_heads, axis=1)
            weights = np.empty((len(q), a.heads, len(q)))
            for head in range(a.heads):  # attend() writes rows as wide as a query
                one = replace(a, heads=1, kv_heads=1)
                kv = head // (a.heads // a.kv_heads)
                wide = np.zeros((len(q), 1, len(q)))
                wide[:, 0, : q.shape[2]] = q[:, head]
                keys = np.zeros((len(q), 1, len(q)))
                keys[:, 0, : q.shape[2]] = k[:, kv]
                sink = None if sinks is None else sinks[head : head + 1]
                weights[:, head] = attend(wide, keys, each[:, :1], one, sink, seen)[:, 0]
            found.append(weights.mean(1))
        return attend(q, k, v, a, sinks, seen)

    monkeypatch.setattr(forward, "attend", recorded)
    forward.logits(spec, unpack(pack(random_weights(spec), "f32")), tokens)
    columns = np.concatenate([np.arange(first, first + count) for first, count in SPANS])
    return np.array([weights[-8:][:, columns] for weights in found])


@pytest.mark.parametrize("name", SPECS)
def test_they_are_those_of_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = random_tokens(SPECS[name](), 150)
    wanted = twin(name, tokens, monkeypatch)
    with engine_of(name, "f32", kv="f32") as engine:
        got = looked(engine, tokens)
    assert got.shape == wanted.shape == (len(wanted), 8, KEYS)
    assert np.abs(got - wanted).max() < 2e-5
    assert wanted.max() > 0.01


@pytest.mark.parametrize("name", SPECS)
def test_same_bits_however_they_are_made(name: str) -> None:
    tokens = random_tokens(SPECS[name](), 150)
    with engine_of(name, prefix_cache=False) as engine:
        alone = looked(engine, tokens)
    for settings in ({"threads": 2}, {"prefill_chunk": 5}, {"prefill_chunk": 64}):
        with engine_of(name, **settings) as engine:
            assert_same_bits(looked(engine, tokens), alone)
            request = Request(tokens=tokens, logits="attention", look_at=SPANS)
            again = engine.submit(request).result()
            assert_same_bits(again.logits.reshape(alone.shape), alone)
            if name != "everything":  # which has windows
                assert again.stats["cached_tokens"] == 128
    with engine_of(name, "q8", kv="f32") as engine:
        assert np.abs(looked(engine, tokens) - alone).max() < 0.02


def test_a_prompt_shorter_than_the_rows() -> None:
    tokens = random_tokens(tiny_models.llama(), 5)
    with engine_of("llama") as engine:
        weights = looked(engine, tokens, [(0, 5)])
    assert weights.shape[1:] == (5, 5)
    assert np.allclose(weights.sum(2), 1, atol=1e-6)
    assert (weights[:, ~np.tri(5, dtype=bool)] == 0).all()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"look_at": []}, "look_at: got 0 spans"),
        ({"look_at": [(0, 1)], "logits": "none"}, "look_at: got 1 spans"),
        ({"look_at": [(0, 1), (10, 1)]}, r"look_at\[1\].first: got 10, the prompt has 10"),
        ({"look_at": [(-1, 1)]}, r"look_at\[0\].first: got -1"),
        ({"look_at": [(4, 7)]}, r"look_at\[0\].count: got 7, allowed is 1 to 6"),
        ({"look_at": [(4, 2**63 - 1)]}, r"look_at\[0\].count"),
        ({"look_at": [(4,)]}, r"look_at: got \(4,\), allowed is pairs"),
        ({"look_at": [(4, "1")]}, "look_at: got '1'"),
        ({"look_at": [(4, 0)]}, r"look_at\[0\].count: got 0"),
        ({"look_at": [(0, 1)] * 11}, "look_at: got 11 spans, the prompt has 10"),
        ({"look_at": [(0, 1)], "logits_from": 1}, "logits_from: got 1"),
        ({"look_at": [(0, 1)], "max_new_tokens": 3}, "max_new_tokens: got 3 with logits"),
    ],
)
def test_what_cannot_be_looked_at(fields: dict, told: str) -> None:
    with engine_of("llama") as engine, pytest.raises(InvalidRequest, match=told):
        engine.submit(Request(tokens=list(range(10)), **({"logits": "attention"} | fields)))


def test_a_model_of_windows_has_nothing_to_look_at() -> None:
    spec = tiny_models.llama()
    layers = [replace(x, attention=replace(x.attention, window=16)) for x in spec.layers]
    spec = replace(spec, layers=layers)
    tensors = pack(random_weights(spec), "q8")
    engine = Engine(spec, tensors, threads=1, context=64, kv="kv8", memory_budget=1 << 26)
    with engine, pytest.raises(InvalidRequest, match="every layer of this model has a window"):
        looked(engine, np.arange(10), [(0, 1)])
