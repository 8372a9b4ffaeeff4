"""Adapters in the forward path, beside what test_adapted_bits.py says of them."""

from __future__ import annotations

import numpy as np
import pytest
from tests.support.adapted import LORA, Adapted, twin_and_bound
from tests.support.compare import assert_same_bits, assert_within
from tests.support.lora import adapter_tensors, random_adapter
from tests.support.tiny_models import random_tokens, unpack

from musespark import _core
from musespark.reference import forward as reference

pytestmark = pytest.mark.isa


@pytest.mark.parametrize("target", ["q", "k", "v", "attn_gate", "o", "gate", "up", "down"])
def test_each_matrix_by_itself(target: str) -> None:
    model = Adapted("muse", "f32")
    tokens = random_tokens(model.spec, 70)
    weights = unpack(model.tensors) | random_adapter(model.spec, targets=(target,))
    exact, bound = twin_and_bound(model, weights, tokens)
    assert_within(model.logits(tokens, model.add(LORA, targets=(target,))), exact, bound, target)
    assert np.abs(model.logits(tokens) - exact).max() > 100 * bound


@pytest.mark.parametrize("recipe", ["q8", "q4", "mixed"])
@pytest.mark.parametrize("name", ["llama", "muse", "everything"])
def test_packed_weights_stay_near_the_twin(name: str, recipe: str) -> None:
    """The bound of the model alone: activations are rounded, the adapter's inputs are not."""
    model = Adapted(name, recipe)
    tokens = random_tokens(model.spec, 150)
    weights = unpack(model.tensors) | random_adapter(model.spec)
    exact = reference.logits(model.spec, weights, tokens)
    bound = 3 * 0.007 * (7 * len(model.spec.layers) + 1) ** 0.5

    def error(found: np.ndarray) -> float:
        return float(np.sqrt(np.mean((found - exact) ** 2)) / exact.std())

    assert error(model.logits(tokens, model.add(LORA))) < bound
    assert error(model.logits(tokens)) > 2 * bound, "the adapter does nothing"


def test_an_adapter_of_zeros_changes_no_bit() -> None:
    model = Adapted("muse", "q8")
    weights = random_adapter(model.spec)
    zeros = {n: w if n.endswith("_a") else np.zeros_like(w) for n, w in weights.items()}
    tokens = random_tokens(model.spec, 80)
    got = model.logits(tokens, model.runner.model.adapter(adapter_tensors(zeros)))
    assert_same_bits(got, model.logits(tokens), "B = 0")


def test_numbers_that_bf16_holds_are_kept_so() -> None:
    """And give the bits that they give as f32."""
    model = Adapted("llama", "q8")
    weights = {
        n: (w.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
        for n, w in random_adapter(model.spec).items()
    }
    short = adapter_tensors(weights)
    assert {t[0] for t in short.values()} == {"bf16"}
    long = {}
    for name, value in weights.items():
        data = np.empty(_core.packed_nbytes("f32", *value.shape), np.uint8)
        _core.pack("f32", value, out=data)
        long[name] = ("f32", *value.shape, data)
    tokens = random_tokens(model.spec, 70)
    got = [model.logits(tokens, model.runner.model.adapter(t)) for t in (short, long)]
    assert_same_bits(got[0], got[1], "bf16 and f32")
