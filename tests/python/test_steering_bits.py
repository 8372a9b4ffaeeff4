"""Control vectors in the forward path: against the twin, and one result in whatever batch."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from tests.support.compare import assert_same_bits, assert_within
from tests.support.levels import stdout_by_level
from tests.support.lora import adapter_tensors, random_adapter
from tests.support.steering import control_tensors, random_directions, twin_weights
from tests.support.tiny_models import (
    SPECS,
    Runner,
    pack,
    random_tokens,
    random_weights,
    unpack,
)

from musespark.errors import CorruptFile
from musespark.reference import forward as reference
from musespark.weights.control_vectors import core_tensors

pytestmark = pytest.mark.isa

NAMES = ("llama", "muse", "everything", "experts")


class Steered:
    """A tiny model and control vectors on it."""

    def __init__(self, name: str, recipe: str, kv: str = "f32", threads: int = 1):
        self.spec = SPECS[name]()
        self.tensors = pack(random_weights(self.spec, seed=6), recipe)
        self.runner = Runner(self.spec, self.tensors, kv=kv, threads=threads)

    def steering(self, over=None, **options):
        return self.runner.model.adapter(control_tensors(self.spec, **options), over)

    def lora(self, **options):
        return self.runner.model.adapter(adapter_tensors(random_adapter(self.spec, **options)))

    def logits(self, tokens, adapter=None, cut=10_000):
        """All logits of a fresh sequence, fed in pieces of `cut`."""
        sequence, rows = self.runner.sequence(), []
        for at in range(0, len(tokens), cut):
            piece = [int(t) for t in tokens[at : at + cut]]
            step = [(sequence, piece, "all")]
            rows.append(self.runner.model.forward(step, adapters=[adapter]))
            sequence.accept(sequence.length)
        return np.concatenate(rows)


def bound_of(model: Steered, weights: dict, tokens) -> tuple[np.ndarray, float]:
    """The twin's logits, and the bound of the model alone (test_model_reference.py)."""
    exact = reference.logits(model.spec, weights, tokens)
    single = reference.logits(model.spec, weights, tokens, np.float32)
    bound = 8 * float(np.abs(single - exact).max()) + 2.0**-22 * float(np.abs(exact).max())
    assert bound < 1e-4 * np.ptp(exact), "the bound says nothing"
    return exact, bound


@pytest.mark.parametrize("layers", [None, "first", "last"])
@pytest.mark.parametrize("name", NAMES)
def test_f32_equals_the_twin(name: str, layers: str | None) -> None:
    model = Steered(name, "f32")
    last = len(model.spec.layers) - 1
    chosen = {"layers": {None: None, "first": [0], "last": [last]}[layers]}
    tokens = random_tokens(model.spec, 130)
    weights = unpack(model.tensors) | twin_weights(random_directions(model.spec, **chosen))
    exact, bound = bound_of(model, weights, tokens)
    assert_within(model.logits(tokens, model.steering(**chosen)), exact, bound, name)
    assert np.abs(model.logits(tokens) - exact).max() > 100 * bound, "the vector does nothing"


@pytest.mark.parametrize("name", ["llama", "muse"])
def test_over_an_adapter_equals_the_twin_with_both(name: str) -> None:
    """Beside the adapter's matrices; and a vector over another one takes its place."""
    model = Steered(name, "f32")
    tokens = random_tokens(model.spec, 90)
    lora, vector = random_adapter(model.spec, seed=3), random_directions(model.spec, seed=2)
    exact, bound = bound_of(model, unpack(model.tensors) | lora | twin_weights(vector), tokens)
    both = model.steering(model.lora(seed=3), seed=2)
    assert_within(model.logits(tokens, both), exact, bound, name)
    replaced = model.steering(model.steering(model.lora(seed=3), seed=5), seed=2)
    assert_same_bits(model.logits(tokens, replaced), model.logits(tokens, both), "replaced")


@pytest.mark.parametrize("recipe", ["f32", "q4", "mixed"])
@pytest.mark.parametrize("name", NAMES)
def test_alone_in_a_batch_and_cut_anywhere(name: str, recipe: str) -> None:
    """Two vectors, one over an adapter, and none: in one step, in any cut, threads 1-3."""
    model = Steered(name, recipe, kv="kv8")
    tokens = [random_tokens(model.spec, n, seed=n) for n in (90, 33, 90, 1, 65)]

    def chosen_of(m: Steered):
        every, few = m.steering(seed=1), m.steering(m.lora(targets=("q", "v")), seed=2, layers=[1])
        return [every, None, few, every, every]

    chosen = chosen_of(model)
    alone = [model.logits(t, a) for t, a in zip(tokens, chosen, strict=True)]
    plain = Steered(name, recipe, kv="kv8").logits(tokens[1])
    assert_same_bits(alone[1], plain, "without a vector")
    assert np.abs(alone[0] - model.logits(tokens[0])).max() > 0
    for cut in (1, 7, 64):
        assert_same_bits(model.logits(tokens[0], chosen[0], cut), alone[0], f"cut into {cut}")
    for threads in (1, 2, 3):
        other = Steered(name, recipe, kv="kv8", threads=threads)
        steps = [(other.runner.sequence(), [int(t) for t in row], "all") for row in tokens]
        got = other.runner.model.forward(steps, adapters=chosen_of(other))
        assert_same_bits(got, np.concatenate(alone), f"one batch, {threads} threads")


@pytest.mark.parametrize("recipe", ["f32", "q8"])
def test_rows_that_nobody_asks_for(recipe: str) -> None:
    """The last layer runs on the wanted rows: each keeps its own vector."""
    model = Steered("muse", recipe)
    one, two = model.steering(seed=1), model.steering(seed=2)
    tokens = [[int(t) for t in random_tokens(model.spec, n, seed=n)] for n in (40, 30, 20, 50)]
    chosen, modes = [one, two, None, two], ["last", "none", "all", "last"]
    steps = [(model.runner.sequence(), t, m) for t, m in zip(tokens, modes, strict=True)]
    got = model.runner.model.forward(steps, adapters=chosen)
    whole = [model.logits(t, a) for t, a in zip(tokens, chosen, strict=True)]
    assert_same_bits(got, np.concatenate([whole[0][-1:], whole[2], whole[3][-1:]]), recipe)


@pytest.mark.parametrize("name", NAMES)
def test_a_vector_of_zeros_changes_no_bit(name: str) -> None:
    """The norm that is made again is the one that was fused."""
    model = Steered(name, "q8")
    zeros = {i: np.zeros(model.spec.hidden, np.float32) for i in range(len(model.spec.layers))}
    tokens = random_tokens(model.spec, 80)
    got = model.logits(tokens, model.runner.model.adapter(core_tensors(zeros)))
    assert_same_bits(got, model.logits(tokens), "zeros")


def test_states_have_the_vector_of_their_layer_in() -> None:
    """The row after a layer, with it and without it, differs by the vector: one addition."""
    model = Steered("llama", "f32")
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
    model = Steered("llama", "f32")
    data = np.zeros(4 * cols - cut, np.uint8)
    with pytest.raises(CorruptFile, match=text):
        model.runner.model.adapter({name: (form, 1, cols, data)})


DIGEST_SCRIPT = """
from tests.python.test_steering_bits import digests
print(digests())
"""


def digests() -> str:
    """One line for vectors on all models and recipes."""
    out = hashlib.sha256()
    for name in NAMES:
        for recipe in ("f32", "q8", "q4", "mixed"):
            model = Steered(name, recipe, kv="kv8")
            tokens = random_tokens(model.spec, 100)
            out.update(model.logits(tokens, model.steering(), 70).tobytes())
    return out.hexdigest()


def test_every_instruction_set_level_in_fresh_processes() -> None:
    results = stdout_by_level(DIGEST_SCRIPT)
    assert "scalar" in results
    assert len(set(results.values())) == 1, results
