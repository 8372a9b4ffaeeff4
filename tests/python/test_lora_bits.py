"""Adapters in the forward path: against the twin, and one result whatever shares the batch."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from tests.support.compare import assert_same_bits, assert_within
from tests.support.levels import stdout_by_level
from tests.support.lora import adapter_tensors, random_adapter
from tests.support.tiny_models import (
    SPECS,
    Runner,
    pack,
    random_tokens,
    random_weights,
    unpack,
)

from musespark import _core
from musespark.reference import forward as reference

pytestmark = pytest.mark.isa

NAMES = ("llama", "muse", "everything", "experts")


class Adapted:
    """A tiny model and adapters on it."""

    def __init__(self, name: str, recipe: str, kv: str = "f32", threads: int = 1):
        self.spec = SPECS[name]()
        self.tensors = pack(random_weights(self.spec, seed=6), recipe)
        self.runner = Runner(self.spec, self.tensors, kv=kv, threads=threads)

    def adapter(self, **options):
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


def twin(model: Adapted, tokens, dtype=np.float64, **options) -> np.ndarray:
    weights = unpack(model.tensors) | random_adapter(model.spec, **options)
    return reference.logits(model.spec, weights, tokens, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_f32_equals_the_twin(name: str) -> None:
    """The bound is that of the model alone (test_model_reference.py)."""
    model = Adapted(name, "f32")
    tokens = random_tokens(model.spec, 130)
    exact = twin(model, tokens)
    single = twin(model, tokens, np.float32)
    bound = 8 * float(np.abs(single - exact).max()) + 2.0**-22 * float(np.abs(exact).max())
    assert bound < 1e-4 * np.ptp(exact), "the bound says nothing"
    assert_within(model.logits(tokens, model.adapter()), exact, bound, name)
    without = model.logits(tokens)
    assert np.abs(without - exact).max() > 100 * bound, "the adapter does nothing"


@pytest.mark.parametrize("target", ["q", "k", "v", "attn_gate", "o", "gate", "up", "down"])
def test_each_matrix_by_itself(target: str) -> None:
    model = Adapted("muse", "f32")
    tokens = random_tokens(model.spec, 70)
    exact = twin(model, tokens, targets=(target,))
    single = twin(model, tokens, np.float32, targets=(target,))
    bound = 8 * float(np.abs(single - exact).max()) + 2.0**-22 * float(np.abs(exact).max())
    assert_within(model.logits(tokens, model.adapter(targets=(target,))), exact, bound, target)
    assert np.abs(model.logits(tokens) - exact).max() > 100 * bound


@pytest.mark.parametrize("recipe", ["q8", "q4", "mixed"])
@pytest.mark.parametrize("name", ["llama", "muse", "everything"])
def test_packed_weights_stay_near_the_twin(name: str, recipe: str) -> None:
    """The bound of the model alone: activations are rounded, the adapter's inputs are not."""
    model = Adapted(name, recipe)
    tokens = random_tokens(model.spec, 150)
    exact = twin(model, tokens)
    bound = 3 * 0.007 * (7 * len(model.spec.layers) + 1) ** 0.5

    def error(found: np.ndarray) -> float:
        return float(np.sqrt(np.mean((found - exact) ** 2)) / exact.std())

    assert error(model.logits(tokens, model.adapter())) < bound
    assert error(model.logits(tokens)) > 2 * bound, "the adapter does nothing"


@pytest.mark.parametrize("recipe", ["f32", "q4", "mixed"])
@pytest.mark.parametrize("name", NAMES)
def test_alone_in_a_batch_and_cut_anywhere(name: str, recipe: str) -> None:
    """Two adapters, one on a few matrices only, and none: in one step, in any cut, threads 1-3."""
    model = Adapted(name, recipe, kv="kv8")
    tokens = [random_tokens(model.spec, n, seed=n) for n in (90, 33, 90, 1, 65)]

    def adapters_of(m: Adapted):
        full, few = m.adapter(seed=1), m.adapter(seed=2, targets=("v", "down", "up"))
        return [full, None, few, full, full]

    chosen = adapters_of(model)
    alone = [model.logits(t, a) for t, a in zip(tokens, chosen, strict=True)]
    plain = Adapted(name, recipe, kv="kv8").logits(tokens[1])
    assert_same_bits(alone[1], plain, "without an adapter")
    assert np.abs(alone[0] - model.logits(tokens[0])).max() > 0
    for cut in (1, 7, 64):
        assert_same_bits(model.logits(tokens[0], chosen[0], cut), alone[0], f"cut into {cut}")
    for threads in (1, 2, 3):
        other = Adapted(name, recipe, kv="kv8", threads=threads)
        steps = [(other.runner.sequence(), [int(t) for t in row], "all") for row in tokens]
        got = other.runner.model.forward(steps, adapters=adapters_of(other))
        assert_same_bits(got, np.concatenate(alone), f"one batch, {threads} threads")


@pytest.mark.parametrize("recipe", ["f32", "q8"])
def test_rows_that_nobody_asks_for(recipe: str) -> None:
    """The last layer runs on the wanted rows: each keeps its own adapter."""
    model = Adapted("muse", recipe)
    one, two = model.adapter(seed=1), model.adapter(seed=2)
    tokens = [[int(t) for t in random_tokens(model.spec, n, seed=n)] for n in (40, 30, 20, 50)]
    chosen, modes = [one, two, None, two], ["last", "none", "all", "last"]
    steps = [(model.runner.sequence(), t, m) for t, m in zip(tokens, modes, strict=True)]
    got = model.runner.model.forward(steps, adapters=chosen)
    whole = [model.logits(t, a) for t, a in zip(tokens, chosen, strict=True)]
    assert_same_bits(got, np.concatenate([whole[0][-1:], whole[2], whole[3][-1:]]), recipe)


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


DIGEST_SCRIPT = """
from tests.python.test_lora_bits import digests
print(digests())
"""


def digests() -> str:
    """One line for adapters on all models and recipes."""
    out = hashlib.sha256()
    for name in NAMES:
        for recipe in ("f32", "q8", "q4", "mixed"):
            model = Adapted(name, recipe, kv="kv8")
            tokens = random_tokens(model.spec, 100)
            out.update(model.logits(tokens, model.adapter(), 70).tobytes())
    return out.hexdigest()


def test_every_instruction_set_level_in_fresh_processes() -> None:
    results = stdout_by_level(DIGEST_SCRIPT)
    assert "scalar" in results
    assert len(set(results.values())) == 1, results
