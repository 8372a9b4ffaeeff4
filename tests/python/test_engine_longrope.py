"""Ropes with two sets of factors: a sequence takes the short ones up to a length, then the long.

Which set depends on the tokens a sequence has, never on how they came to be there.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from musespark.engine import Engine, Request
from musespark.errors import UnsupportedModel
from musespark.families.spec import ModelSpec, RopeSpec
from musespark.reference import forward as reference
from support import run_engine, tiny_models
from support.compare import assert_same_bits, assert_within

BORDER = 70  # inside the second page


def longrope(window: int = 0) -> ModelSpec:
    rope = RopeSpec(
        dim=12,
        theta=500.0,
        scaling="factors",
        original_context=BORDER,
        factors=(1.0, 2.0, 3.0, 4.5, 7.0, 9.0),
        short_factors=(1.0, 1.1, 1.2, 1.3, 1.4, 1.5),
        attention_factor=1.2,
    )
    spec = tiny_models.llama()
    layers = [
        dataclasses.replace(
            layer, attention=dataclasses.replace(layer.attention, window=window * (i % 2))
        )
        for i, layer in enumerate(spec.layers)
    ]
    return dataclasses.replace(spec, ropes=[rope], layers=layers)


def make_engine(spec: ModelSpec, fmt: str = "f32", kv: str = "f32", **settings) -> Engine:
    tensors = run_engine.pack_weights(tiny_models.random_weights(spec), fmt)
    defaults = {"threads": 1, "context": 512, "memory_budget": 1 << 26, "kv": kv}
    return Engine(spec, tensors, **(defaults | settings))


def all_logits(engine: Engine, tokens: np.ndarray) -> np.ndarray:
    return engine.submit(Request(tokens=tokens, logits="all")).result().logits


@pytest.mark.parametrize("length", [BORDER - 1, BORDER, BORDER + 1, 130])
def test_logits_equal_the_twin_on_both_sides(length: int) -> None:
    spec = longrope()
    weights = tiny_models.random_weights(spec)
    tokens = tiny_models.random_tokens(spec, length)
    exact = reference.logits(spec, weights, tokens)
    always_long = dataclasses.replace(spec.ropes[0], short_factors=())
    other = reference.logits(dataclasses.replace(spec, ropes=[always_long]), weights, tokens)
    if length <= BORDER:
        assert np.abs(other - exact).max() > 0.01 * np.ptp(exact), "the factors make no difference"
    else:
        assert_same_bits(other, exact)
    with make_engine(spec) as engine:
        assert_within(all_logits(engine, tokens), exact, 2e-5 * np.ptp(exact), f"{length} tokens")


@pytest.mark.parametrize("window", [0, 30])
@pytest.mark.parametrize("chunk", [16, 512])
def test_generating_across_the_border_is_computed_again(window: int, chunk: int) -> None:
    """Each token is the one that a fresh request for everything before it gives."""
    spec = longrope(window)
    prompt = tiny_models.random_tokens(spec, BORDER - 9)
    with make_engine(spec, "q8", "kv8", prefill_chunk=chunk) as engine:
        request = Request(tokens=prompt, max_new_tokens=24, logprobs=1)
        others = [
            engine.submit(Request(tokens=tiny_models.random_tokens(spec, n), max_new_tokens=40))
            for n in (3, 60, 90)
        ]
        result = engine.submit(request).result()
        for other in others:
            other.result()
        for i, token in enumerate(result.tokens):
            before = np.concatenate([prompt, result.tokens[:i]]).astype(np.int32)
            last = engine.submit(Request(tokens=before, logits="last")).result().logits
            assert int(last.argmax()) == token, f"token {i}, after {len(before)}"
            fresh = engine.submit(Request(tokens=before, max_new_tokens=1, logprobs=1)).result()
            assert fresh.logprobs[0] == result.logprobs[i], f"token {i}, after {len(before)}"


@pytest.mark.parametrize("kept", [BORDER - 5, BORDER + 5])
@pytest.mark.parametrize("more", [2, 60])
def test_a_shared_prefix_is_used_on_one_side_only(kept: int, more: int) -> None:
    spec = longrope()
    tokens = tiny_models.random_tokens(spec, kept + more)
    with make_engine(spec, "q8", "kv8") as engine:
        first = engine.submit(Request(tokens=tokens[:kept], max_new_tokens=0, retain=True))
        first.result()
        base = first.retained
        request = Request(tokens=tokens, max_new_tokens=2, logprobs=1)
        shared = engine.submit(request, base=base).result()
        alone = engine.submit(request).result()
        assert shared.tokens == alone.tokens
        assert shared.logprobs == alone.logprobs
        same_side = (kept <= BORDER) == (len(tokens) <= BORDER)
        assert (shared.stats["cached_tokens"] > 0) == same_side
        base.release()


def test_sequences_that_outgrow_what_they_share_have_memory_of_their_own() -> None:
    spec = longrope()
    prompt = tiny_models.random_tokens(spec, BORDER - 3)
    heads = sum(layer.attention.kv_heads for layer in spec.layers)
    page = 64 * heads * 2 * 16 * 4  # keys and values of 12 padded to 16, f32
    # Four with their first page in common and one more each; with the long factors two each.
    with make_engine(spec, "q8", memory_budget=5 * page) as engine:
        short = Request(tokens=prompt, max_new_tokens=1)
        cached = [engine.submit(short).result().stats["cached_tokens"] for _ in range(2)]
        assert cached == [0, 64]
        request = Request(tokens=prompt, max_new_tokens=10, logprobs=1)
        results = [handle.result() for handle in [engine.submit(request) for _ in range(4)]]
        assert all(result.logprobs == results[0].logprobs for result in results)


def test_ropes_must_agree_on_the_border() -> None:
    spec = longrope()
    other = dataclasses.replace(spec.ropes[0], original_context=BORDER + 1)
    with pytest.raises(UnsupportedModel, match=r"ropes\[1\]\.original_context is 71"):
        make_engine(dataclasses.replace(spec, ropes=[*spec.ropes, other]))
