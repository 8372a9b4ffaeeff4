"""Control vectors in the forward path, beside what test_adapted_bits.py says of them."""

from __future__ import annotations

import numpy as np
import pytest
from tests.support.adapted import CONTROL, LORA, MODELS, Adapted, twin_and_bound
from tests.support.compare import assert_same_bits, assert_within
from tests.support.lora import random_adapter
from tests.support.steering import random_directions, twin_weights
from tests.support.tiny_models import random_tokens, unpack

from musespark.errors import CorruptFile
from musespark.weights.control_vectors import core_tensors

pytestmark = pytest.mark.isa


@pytest.mark.parametrize("layer", ["first", "last"])
@pytest.mark.parametrize("name", MODELS)
def test_one_layer_by_itself(name: str, layer: str) -> None:
    model = Adapted(name, "f32")
    chosen = {"layers": [0 if layer == "first" else len(model.spec.layers) - 1]}
    tokens = random_tokens(model.spec, 130)
    weights = unpack(model.tensors) | twin_weights(random_directions(model.spec, **chosen))
    exact, bound = twin_and_bound(model, weights, tokens)
    assert_within(model.logits(tokens, model.add(CONTROL, **chosen)), exact, bound, name)
    assert np.abs(model.logits(tokens) - exact).max() > 100 * bound, "the vector does nothing"


@pytest.mark.parametrize("name", ["llama", "muse"])
def test_over_an_adapter_equals_the_twin_with_both(name: str) -> None:
    """Beside the adapter's matrices; and a vector over another one takes its place."""
    model = Adapted(name, "f32")
    tokens = random_tokens(model.spec, 90)
    lora, vector = random_adapter(model.spec, seed=3), random_directions(model.spec, seed=2)
    exact, bound = twin_and_bound(
        model, unpack(model.tensors) | lora | twin_weights(vector), tokens
    )
    both = model.add(CONTROL, model.add(LORA, seed=3), seed=2)
    assert_within(model.logits(tokens, both), exact, bound, name)
    replaced = model.add(CONTROL, model.add(CONTROL, model.add(LORA, seed=3), seed=5), seed=2)
    assert_same_bits(model.logits(tokens, replaced), model.logits(tokens, both), "replaced")


@pytest.mark.parametrize("name", MODELS)
def test_a_vector_of_zeros_changes_no_bit(name: str) -> None:
    """The norm that is made again is the one that was fused."""
    model = Adapted(name, "q8")
    zeros = {i: np.zeros(model.spec.hidden, np.float32) for i in range(len(model.spec.layers))}
    tokens = random_tokens(model.spec, 80)
    got = model.logits(tokens, model.runner.model.adapter(core_tensors(zeros)))
    assert_same_bits(got, model.logits(tokens), "zeros")


def test_states_have_the_vector_of_their_layer_in() -> None:
    """The row after a layer, with it and without it, differs by the vector: one addition."""
    model = Adapted("llama", "f32")
    tokens = [int(t) for t in random_tokens(model.spec, 40)]
    direction = random_directions(model.spec, layers=[0])
    steering = model.runner.model.adapter(core_tensors(direction))
    found = []
    for adapter in (None, steering):
        step = [(model.runner.sequence(), tokens, "none")]
        states = model.runner.model.forward(step, adapters=[adapter], states=[([0], 0)])[1][0]
        found.append(states.reshape(len(tokens), model.spec.hidden))
    assert_same_bits(found[1], found[0] + direction[0], "after layer 0")


@pytest.mark.parametrize(
    ("name", "form", "cols", "cut", "text"),
    [
        ("layers.0.control", "f32", 47, 0, r"is f32 1 x 47; f32 1 x 48 is needed"),
        ("layers.0.control", "bf16", 48, 0, r"is bf16 1 x 48; f32 1 x 48 is needed"),
        ("layers.0.control", "f32", 48, 4, r"188 bytes; 192 are needed"),
        ("layers.2.control", "f32", 48, 0, r"'layers.2.control' is not one of this model's"),
    ],
)
def test_tensors_that_do_not_fit(name: str, form: str, cols: int, cut: int, text: str) -> None:
    model = Adapted("llama", "f32")
    data = np.zeros(4 * cols - cut, np.uint8)
    with pytest.raises(CorruptFile, match=text):
        model.runner.model.adapter({name: (form, 1, cols, data)})
