"""Choosing experts, against the twin and at its edges: ties, infinities, NaN, underflow."""

from __future__ import annotations

import numpy as np
import pytest

from musespark import _core
from musespark.families.spec import MlpSpec
from musespark.reference.experts import route

pytestmark = pytest.mark.isa
choose = _core.testing.choose_experts
KINDS = ("softmax", "softmax_chosen", "sigmoid")


@pytest.mark.parametrize("chosen", [1, 2, 8, 61])
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_twin(kind: str, renormalize: bool, chosen: int) -> None:
    rng = np.random.default_rng(3)
    logits = rng.standard_normal((200, 61)).astype(np.float32) * 2
    correction = rng.standard_normal(61).astype(np.float32) * np.float32(0.2)
    spec = MlpSpec(
        router=kind,
        router_renormalize=renormalize,
        experts_per_token=chosen,
        router_scale=0.5,
        routed_scale=2.5,
    )
    exact_experts, exact = route(logits.astype(np.float64), spec, correction.astype(np.float64))
    experts, weights = choose(
        logits,
        scores=kind,
        chosen=chosen,
        renormalize=renormalize,
        correction=correction,
        scale=0.5,
        routed_scale=2.5,
    )
    # No two scores of this seed are so near that float32 could not tell them apart.
    assert np.array_equal(experts, exact_experts)
    # A score is an exponential and a quotient, its sum of at most 61 terms once more.
    assert np.abs(weights - exact).max() < 2.5 * 64 * 2.0**-24
    assert weights.max() > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_ties_go_to_the_lower_index(kind: str) -> None:
    logits = np.zeros((1, 40), np.float32)
    assert choose(logits, scores=kind, chosen=3)[0].tolist() == [[0, 1, 2]]
    logits[0, [7, 21, 22, 39]] = 1.5
    assert choose(logits, scores=kind, chosen=3)[0].tolist() == [[7, 21, 22]]
    logits[0, 30] = 2.0
    assert choose(logits, scores=kind, chosen=3)[0].tolist() == [[7, 21, 30]]


def test_correction_chooses_and_does_not_weigh() -> None:
    logits = np.array([[0.0, 1.0, 2.0, 3.0]], np.float32)
    correction = np.array([9, 0, 0, 0], np.float32)
    experts, weights = choose(logits, scores="sigmoid", chosen=2, correction=correction)
    assert experts.tolist() == [[0, 3]]
    assert weights[0, 0] == 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_not_a_number_loses(kind: str) -> None:
    """Rows of a broken model still choose as many experts as there should be, each once."""
    logits = np.full((1, 6), np.nan, np.float32)
    assert choose(logits, scores=kind, chosen=3)[0].tolist() == [[0, 1, 2]]
    if kind != "softmax":  # one of them makes all its scores so
        logits[0, 4] = -5.0
        assert choose(logits, scores=kind, chosen=3)[0].tolist() == [[0, 1, 4]]
        logits[0, 4:] = -np.inf  # is a number
        assert choose(logits, scores=kind, chosen=1)[0].tolist() == [[4]]


def test_scores_that_underflow_are_not_divided_by_zero() -> None:
    logits = np.full((1, 5), -200.0, np.float32)
    experts, weights = choose(logits, scores="sigmoid", chosen=2, renormalize=True)
    assert experts.tolist() == [[0, 1]]
    assert weights.tolist() == [[0.0, 0.0]]
