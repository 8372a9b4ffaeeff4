"""Adapters and control vectors in the forward path: the twin's, and one result whatever shares the
batch."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from tests.support.adapted import CONTROL, KINDS, LORA, MODELS, Adapted, each_kind, twin_and_bound
from tests.support.compare import assert_same_bits, assert_within
from tests.support.levels import stdout_by_level
from tests.support.tiny_models import random_tokens, unpack

pytestmark = pytest.mark.isa


@each_kind
@pytest.mark.parametrize("name", MODELS)
def test_f32_equals_the_twin(name: str, kind) -> None:
    model = Adapted(name, "f32")
    tokens = random_tokens(model.spec, 130)
    weights = unpack(model.tensors) | kind.weights(model.spec)
    exact, bound = twin_and_bound(model, weights, tokens)
    assert_within(model.logits(tokens, model.add(kind)), exact, bound, name)
    assert np.abs(model.logits(tokens) - exact).max() > 100 * bound, "it does nothing"


@each_kind
@pytest.mark.parametrize("recipe", ["f32", "q4", "mixed"])
@pytest.mark.parametrize("name", MODELS)
def test_alone_in_a_batch_and_cut_anywhere(name: str, recipe: str, kind) -> None:
    """Two of them, one on a part of the model (a vector over an adapter), and none: in one step, in
    any cut, threads 1-3."""
    model = Adapted(name, recipe, kv="kv8")
    tokens = [random_tokens(model.spec, n, seed=n) for n in (90, 33, 90, 1, 65)]

    def chosen_of(m: Adapted) -> list:
        below = m.add(LORA, targets=("q", "v")) if kind is CONTROL else None
        full, few = m.add(kind, seed=1), m.add(kind, below, seed=2, **kind.few)
        return [full, None, few, full, full]

    chosen = chosen_of(model)
    alone = [model.logits(t, a) for t, a in zip(tokens, chosen, strict=True)]
    plain = Adapted(name, recipe, kv="kv8").logits(tokens[1])
    assert_same_bits(alone[1], plain, "with none")
    assert np.abs(alone[0] - model.logits(tokens[0])).max() > 0
    for cut in (1, 7, 64):
        assert_same_bits(model.logits(tokens[0], chosen[0], cut), alone[0], f"cut into {cut}")
    for threads in (1, 2, 3):
        other = Adapted(name, recipe, kv="kv8", threads=threads)
        steps = [(other.runner.sequence(), [int(t) for t in row], "all") for row in tokens]
        got = other.runner.model.forward(steps, adapters=chosen_of(other))
        assert_same_bits(got, np.concatenate(alone), f"one batch, {threads} threads")


@each_kind
@pytest.mark.parametrize("recipe", ["f32", "q8"])
def test_rows_that_nobody_asks_for(recipe: str, kind) -> None:
    """The last layer runs on the wanted rows: each keeps its own."""
    model = Adapted("muse", recipe)
    one, two = model.add(kind, seed=1), model.add(kind, seed=2)
    tokens = [[int(t) for t in random_tokens(model.spec, n, seed=n)] for n in (40, 30, 20, 50)]
    chosen, modes = [one, two, None, two], ["last", "none", "all", "last"]
    steps = [(model.runner.sequence(), t, m) for t, m in zip(tokens, modes, strict=True)]
    got = model.runner.model.forward(steps, adapters=chosen)
    whole = [model.logits(t, a) for t, a in zip(tokens, chosen, strict=True)]
    assert_same_bits(got, np.concatenate([whole[0][-1:], whole[2], whole[3][-1:]]), recipe)


DIGEST_SCRIPT = """
from tests.python.test_adapted_bits import digests
print(digests())
"""


def digests() -> str:
    """One line for all kinds on all models and recipes."""
    out = hashlib.sha256()
    for kind in KINDS.values():
        for name in MODELS:
            for recipe in ("f32", "q8", "q4", "mixed"):
                model = Adapted(name, recipe, kv="kv8")
                tokens = random_tokens(model.spec, 100)
                out.update(model.logits(tokens, model.add(kind), 70).tobytes())
    return out.hexdigest()


def test_every_instruction_set_level_in_fresh_processes() -> None:
    results = stdout_by_level(DIGEST_SCRIPT)
    assert "scalar" in results
    assert len(set(results.values())) == 1, results
