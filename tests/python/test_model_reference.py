"""The forward path against its NumPy twin, and the rope tables against the formulas."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.support.compare import assert_same_bits, assert_within
from tests.support.tiny_models import (
    SPECS,
    Runner,
    muse,
    pack,
    random_tokens,
    random_weights,
    unpack,
)

from musespark import _core
from musespark.families.spec import ModelSpec, RopeSpec
from musespark.reference import forward as reference

pytestmark = pytest.mark.isa


def float32_bound(spec: ModelSpec, weights: dict, tokens: np.ndarray, exact: np.ndarray) -> float:
    """Largest error allowed of float32 arithmetic: eight times that of the twin run in float32,
    which makes as many roundings in another order, plus 2^-22 of the largest logit."""
    single = reference.logits(spec, weights, tokens, np.float32)
    return 8 * float(np.abs(single - exact).max()) + 2.0**-22 * float(np.abs(exact).max())


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("length", [1, 2, 64, 65, 300])
def test_f32_equals_the_twin(name: str, length: int) -> None:
    spec = SPECS[name]()
    weights = random_weights(spec)
    tokens = random_tokens(spec, length)
    exact = reference.logits(spec, weights, tokens)
    bound = float32_bound(spec, weights, tokens, exact)
    assert bound < 1e-4 * np.ptp(exact), "the bound says nothing"
    actual = Runner(spec, pack(weights, "f32")).logits(tokens)
    assert_within(actual, exact, bound, f"{name}, {length} tokens")


@pytest.mark.parametrize("name", SPECS)
def test_f32_beyond_merge_chunks(name: str) -> None:
    """1,100 positions: three merge chunks of 512 and 18 pages."""
    spec = SPECS[name]()
    weights = random_weights(spec, seed=2)
    tokens = random_tokens(spec, 1100)
    exact = reference.logits(spec, weights, tokens)
    actual = Runner(spec, pack(weights, "f32"), threads=2).logits(tokens)
    assert_within(actual, exact, float32_bound(spec, weights, tokens, exact), name)


@pytest.mark.parametrize("kv", ["f32", "kv8"])
@pytest.mark.parametrize("recipe", ["f32", "bf16", "q8", "q6", "q4", "mixed"])
@pytest.mark.parametrize("name", SPECS)
def test_packed_formats_stay_near_the_twin(name: str, recipe: str, kv: str) -> None:
    """Against the twin on the unpacked numbers only activations, keys and values are rounded.

    Eight bits over groups of 64 leave about 0.7% of noise in each input (largest of 64 normals near
    2.6 sigma, over 127 * sqrt(12)); four matrix inputs a layer and keys, values and probabilities
    add up to under 0.7% * sqrt(7 layers + 1), and a factor of three is left for what
    non-linearities and norms make of it. A dropped bias, scale or norm is tens of percent.

    Where a router's choice is nearly a tie the noise decides it, and such rows are elsewhere: a
    model with experts is judged by its lower quartile of rows.
    """
    spec = SPECS[name]()
    tensors = pack(random_weights(spec, seed=3), recipe)
    tokens = random_tokens(spec, 150)
    exact = reference.logits(spec, unpack(tensors), tokens)
    actual = Runner(spec, tensors, kv=kv).logits(tokens)
    rows = np.mean((actual - exact) ** 2, axis=-1)
    routed = any(layer.mlp.kind == "experts" for layer in spec.layers)
    error = float(np.sqrt(np.quantile(rows, 0.25) if routed else np.mean(rows)) / exact.std())
    rounded = recipe not in ("f32", "bf16") or kv == "kv8"
    bound = 3 * 0.007 * (7 * len(spec.layers) + 1) ** 0.5 if rounded else 2e-5
    assert error < bound, f"relative error {error:.4g}, bound {bound:.4g}"


def test_the_comparison_sees_an_off_by_one_window() -> None:
    """The twin with a window one longer must be outside the bound used above."""
    spec, wider = muse(20), muse(21)
    weights = random_weights(spec)
    tokens = random_tokens(spec, 100)
    exact = reference.logits(spec, weights, tokens)
    wrong = reference.logits(wider, weights, tokens)
    assert np.abs(wrong - exact).max() > 20 * float32_bound(spec, weights, tokens, exact)


@pytest.mark.parametrize("name", SPECS)
def test_last_and_none_agree_with_all(name: str) -> None:
    """Rows that nobody asks for are left out of the last layer; the others keep their bits."""
    spec = SPECS[name]()
    runner = Runner(spec, pack(random_weights(spec), "q4"), kv="kv8")
    tokens = [int(t) for t in random_tokens(spec, 90)]
    every = runner.logits(tokens)
    one = runner.sequence()
    two = runner.sequence()
    three = runner.sequence()
    out = runner.model.forward(
        [(one, tokens, "last"), (two, tokens[:70], "none"), (three, tokens[:40], "all")]
    )
    assert_same_bits(out, np.concatenate([every[-1:], every[:40]]), "last, none and all in a step")
    assert runner.model.forward([(two, tokens[70:], "last")]).shape == (1, spec.vocab)
    nothing = runner.model.forward([(three, tokens[40:], "none")])
    assert nothing.shape == (0, spec.vocab)
    after = [runner.model.forward([(s, [3], "last")]) for s in (one, two, three)]
    assert_same_bits(after[1], after[0], "after a prefill whose logits nobody wanted")
    assert_same_bits(after[2], after[0], "after a prefill whose logits nobody wanted")


ROPES = {
    "plain": RopeSpec(dim=64, theta=500000.0),
    "linear": RopeSpec(dim=64, theta=10000.0, scaling="linear", factor=4.0),
    "llama3": RopeSpec(
        dim=64, theta=500000.0, scaling="llama3", factor=32.0, original_context=8192
    ),
    "yarn": RopeSpec(
        dim=128,
        theta=1000000.0,
        scaling="yarn",
        factor=4.0,
        original_context=32768,
        attention_factor=1.1386,
    ),
}


@pytest.mark.parametrize("name", ROPES)
def test_rope_tables(name: str) -> None:
    """Each entry is the correctly rounded cosine or sine of the float32 angle, within one unit."""
    rope = ROPES[name]
    spec = dataclasses.asdict(dataclasses.replace(muse(), ropes=[rope]))
    positions = 5000
    actual = _core.testing.rope_table(spec, positions)
    expected = np.stack(reference.rope_tables(rope, reference.rope_places(positions)))
    # An inverse frequency may differ by a unit in the last place (library powers): the angle then
    # moves by 2^-23 of itself.
    angle = np.arange(positions)[:, None] * reference.inverse_frequencies(rope).astype(np.float64)
    bound = 2.0**-23 * rope.attention_factor * (1 + angle)
    assert_within(actual, expected, np.broadcast_to(bound, expected.shape), name)
    close = np.abs(actual - expected) <= 2.0**-23 * rope.attention_factor
    assert close.mean() > 0.9, "most frequencies are the same float32 numbers"


def test_rope_frequencies_are_those_of_transformers() -> None:
    """Recorded from transformers 5.23, ROPE_INIT_FUNCTIONS, for the configurations above."""
    llama3 = reference.inverse_frequencies(ROPES["llama3"])
    assert llama3.dtype == np.float32
    assert llama3[0] == 1.0
    assert llama3[-1] == pytest.approx(500000.0 ** (-62 / 64) / 32, rel=1e-6)
