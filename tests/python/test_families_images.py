"""Text sides beside vision towers, with images in the prompt, as transformers computes them
(tests/golden/make.py): where rows stand, their rotary positions, who sees whom, what is added."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.golden.cases import CASES
from tests.golden.weights import image_rows
from tests.support.given import Given, grid_places
from tests.support.tiny_models import Runner, pack

from musespark.families import FAMILIES, family_for
from musespark.reference import forward as reference
from support.model_folder import GOLDEN, canonical_weights

WITH_IMAGES = [name for name, case in CASES.items() if case.images]
RUNS = [(name, seed) for name in WITH_IMAGES for seed in CASES[name].seeds]
EVERY = 4
# float32 against float64, as in test_families.py.
CLOSE = 2e-5


def prompt_of(name: str, seed: int) -> tuple[np.ndarray, list[Given], np.ndarray, np.ndarray]:
    """Tokens, the rows in them, and the logits after some positions."""
    case = CASES[name]
    with np.load(GOLDEN / f"{name}.npz") as stored:
        tokens = stored[f"image_tokens_{seed}"].copy()
        logits = stored[f"image_logits_{seed}"]
    spec = family_for(case.config).spec(case.config)
    rows, taps = image_rows(case.images, spec.hidden, case.taps, seed)
    by_axis = bool(spec.ropes and spec.ropes[0].axes)
    given = []
    for i, (first, height, width) in enumerate(case.images):
        tokens[first : first + height * width] = -1 - np.arange(height * width)
        places = grid_places(height, width) if by_axis else None
        advance = max(height, width) if by_axis else height * width
        given.append(Given(first, rows[i], advance, places, [tap[i] for tap in taps]))
    positions = np.unique([*range(0, len(tokens), EVERY), len(tokens) - 1])
    return tokens, given, positions, logits


@pytest.mark.parametrize(("name", "seed"), RUNS)
def test_the_twin_agrees_with_transformers(name: str, seed: int) -> None:
    tokens, given, positions, expected = prompt_of(name, seed)
    spec, weights = canonical_weights(CASES[name], seed)
    found = reference.logits(spec, weights, tokens, given=given)[positions]
    assert np.abs(found - expected).max() < CLOSE * np.ptp(expected)


@pytest.mark.parametrize(("name", "seed"), RUNS)
def test_the_core_agrees_with_transformers(name: str, seed: int) -> None:
    tokens, given, positions, expected = prompt_of(name, seed)
    spec, weights = canonical_weights(CASES[name], seed)
    runner = Runner(spec, pack(weights, "f32"))
    step = (runner.sequence(), tokens.tolist(), "all")
    found = runner.model.forward([step], given=[[span.fields() for span in given]])[positions]
    assert np.abs(found - expected).max() < 2 * CLOSE * np.ptp(expected)


def _turned(spec, given):
    turned = [
        dataclasses.replace(s, places=None if s.places is None else s.places[:, [0, 2, 1]])
        for s in given
    ]
    return spec, turned


def _no_taps(spec, given):
    return spec, [dataclasses.replace(span, taps=[]) for span in given]


def _causal(spec, given):
    return dataclasses.replace(spec, mutual_rows=False), given


PLANTED = {
    "height for width": ("qwen2_vl_flat", _turned),
    "height for width, in turn": ("qwen3_vl_deep", _turned),
    "no taps": ("qwen3_vl_deep", _no_taps),
    "rows see the past alone": ("gemma3_images", _causal),
}


@pytest.mark.parametrize("error", PLANTED)
def test_the_comparison_sees_planted_errors(error: str) -> None:
    name, plant = PLANTED[error]
    tokens, given, positions, expected = prompt_of(name, 11)
    spec, weights = canonical_weights(CASES[name], 11)
    spec, given = plant(spec, given)
    found = reference.logits(spec, weights, tokens, given=given)[positions]
    assert np.abs(found - expected).max() > 100 * CLOSE * np.ptp(expected)


def test_every_family_that_sees_has_a_case() -> None:
    seen = {CASES[name].config["model_type"] for name in WITH_IMAGES}
    sees = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm", "idefics3", "llava", "gemma3"}
    assert {*sees, "muse_glimmer"} <= seen
    assert seen <= {*FAMILIES}
