"""Rows in place of embeddings through the model: against the twin, the same bits in any steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.support import given as g
from tests.support.compare import assert_same_bits, assert_within
from tests.support.tiny_models import SPECS, Runner, muse, pack, random_weights

from musespark.errors import InvalidRequest, UnsupportedModel
from musespark.reference import forward as reference

pytestmark = pytest.mark.isa


def _interleaved():
    return g.axes(SPECS["llama"](), interleaved=True)


# name: spec, length, spans (first, count, width, taps)
CASES = {
    "plain": (SPECS["llama"], 150, [(3, 40, 0, 0)]),
    "first and last": (SPECS["everything"], 90, [(0, 20, 0, 0), (20, 5, 0, 0), (80, 10, 0, 0)]),
    "embeddings are normed, rows are not": (muse, 90, [(7, 20, 0, 0)]),
    "three axes": (g.qwen, 200, [(5, 48, 8, 0), (100, 60, 6, 0), (160, 30, 0, 0)]),
    "axes in turn, taps": (_interleaved, 100, [(64, 12, 4, 1)]),
    "taps": (muse, 80, [(2, 30, 0, 3), (60, 4, 0, 1)]),
    "mutual": (g.gemma, 300, [(4, 50, 0, 0), (120, 130, 0, 0)]),
}


def case(name: str):
    make, length, spans = CASES[name]
    spec = make()
    given = [g.given_rows(spec, f, n, width=w, taps=t) for f, n, w, t in spans]
    return spec, given, g.prompt(spec, length, given)


def run(runner: Runner, given: list, tokens: np.ndarray, cuts=None) -> np.ndarray:
    """All logits, in steps of the lengths of `cuts`, the last one for what is left."""
    fields = [span.fields() for span in given]
    sequence, rows, at = runner.sequence(), [], 0
    for cut in [*(cuts or []), len(tokens)]:
        piece = [int(t) for t in tokens[at : at + cut]]
        if piece:
            rows.append(runner.model.forward([(sequence, piece, "all")], given=[fields]))
            sequence.accept(sequence.length)
        at += len(piece)
    return np.concatenate(rows)


@pytest.mark.parametrize("name", CASES)
def test_f32_equals_the_twin(name: str) -> None:
    spec, given, tokens = case(name)
    weights = random_weights(spec)
    exact = reference.logits(spec, weights, tokens, given=given)
    single = reference.logits(spec, weights, tokens, np.float32, given=given)
    bound = 8 * np.abs(single - exact).max() + 2.0**-22 * np.abs(exact).max()
    assert bound < 1e-4 * np.ptp(exact), "the bound says nothing"
    actual = run(Runner(spec, pack(weights, "f32")), given, tokens)
    assert_within(actual, exact, bound, name)


PLANTED = {
    "rows scaled": ("mutual", lambda spec, s: [replace(s[0], rows=s[0].rows * 1.01), *s[1:]]),
    "a row late": ("three axes", lambda spec, s: [replace(s[0], first=s[0].first + 1), *s[1:]]),
    "one axis": ("three axes", lambda spec, s: [replace(s[0], places=None), *s[1:]]),
    "no gap": ("three axes", lambda spec, s: [replace(s[0], advance=s[0].count), *s[1:]]),
    "no tap": ("axes in turn, taps", lambda spec, s: [replace(s[0], taps=[])]),
    "tap late": ("taps", lambda spec, s: [replace(s[0], taps=s[0].taps[1:]), *s[1:]]),
}


@pytest.mark.parametrize("error", PLANTED)
def test_the_comparison_sees_planted_errors(error: str) -> None:
    name, plant = PLANTED[error]
    spec, given, tokens = case(name)
    weights = random_weights(spec)
    exact = reference.logits(spec, weights, tokens, given=given)
    wrong = reference.logits(spec, weights, tokens, given=plant(spec, given))
    assert np.abs(wrong - exact).max() > 1e-3 * np.ptp(exact)


def test_rows_that_see_each_other_differ_from_those_that_do_not() -> None:
    spec, given, tokens = case("mutual")
    weights = random_weights(spec)
    exact = reference.logits(spec, weights, tokens, given=given)
    causal = reference.logits(replace(spec, mutual_rows=False), weights, tokens, given=given)
    assert np.abs(causal - exact).max() > 1e-2 * np.ptp(exact)


CUTS = {
    "three axes": [[1] * 6 + [30, 64, 64], [5, 48, 47], [199]],
    "taps": [[1, 2, 3, 20, 30], [64]],
    "mutual": [[4, 50, 66, 130], [54, 1, 200], [3, 1, 51, 195, 49]],
}


@pytest.mark.parametrize("kv", ["f32", "kv8", "kv8v4", "kv4"])
@pytest.mark.parametrize("name", CUTS)
def test_steps_do_not_change_bits(name: str, kv: str) -> None:
    spec, given, tokens = case(name)
    tensors = pack(random_weights(spec), "q8")
    whole = run(Runner(spec, tensors, kv=kv), given, tokens)
    for cuts in CUTS[name]:
        runner = Runner(spec, tensors, kv=kv, threads=2)
        assert_same_bits(run(runner, given, tokens, cuts), whole, f"{name}, {kv}, {cuts}")


@pytest.mark.parametrize("kv", ["f32", "kv8"])
def test_a_batch_does_not_change_bits(kv: str) -> None:
    """Two sequences with given rows, at other places, and one without, in one step."""
    spec, given, tokens = case("three axes")
    runner = Runner(spec, pack(random_weights(spec), "q4"), kv=kv)
    other = [g.given_rows(spec, 90, 12, width=3, seed=2)]
    plain = g.prompt(spec, 130, [], seed=8)
    others = g.prompt(spec, 140, other, seed=9)
    alone = [run(runner, given, tokens), run(runner, [], plain), run(runner, other, others)]
    spans = [(runner.sequence(), [int(t) for t in ids], "all") for ids in (tokens, plain, others)]
    fields = [[span.fields() for span in one] for one in (given, [], other)]
    together = runner.model.forward(spans, given=fields)
    assert_same_bits(together, np.concatenate(alone), "three sequences in a step")


def test_text_alone_is_the_same_with_and_without_axes() -> None:
    plain = SPECS["qwen3"]()
    tensors = pack(random_weights(plain), "q8")
    tokens = g.prompt(plain, 100, [])
    first = Runner(plain, tensors, kv="kv8").logits(tokens)
    assert_same_bits(Runner(g.axes(plain), tensors, kv="kv8").logits(tokens), first, "text")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict.fromkeys(["places", "rows", "taps"]) | {"count": 0}, r"given\[0\]\.count: got 0"),
        ({"first": -1}, r"given\[0\]\.first: got -1"),
        ({"advance": 0}, r"given\[0\]\.advance: got 0, allowed is 1 to 48"),
        ({"advance": 49}, r"given\[0\]\.advance: got 49"),
        ({"places": None}, r"given\[0\]\.advance: got 8, allowed is count without places"),
        ({"places": np.full((48, 3), 48, np.int32)}, r"given\[0\]\.places: got 48"),
        ({"places": np.zeros((47, 3), np.int32)}, r"given\[0\]\.places: got shape \(47, 3\)"),
        ({"rows": np.zeros((48, 79), np.float32)}, r"given\[0\]\.rows: got shape \(48, 79\)"),
        ({"rows": np.zeros((48, 80))}, r"given\[0\]\.rows"),
        ({"rows": None}, "span 0, given rows 5 to 52 are not there"),
        ({"taps": [np.zeros((48, 80), np.float32)] * 2}, r"given\[0\]\.taps: got 2"),
        ({"more": 1}, "more"),
    ],
)
def test_refusals(change: dict, says: str) -> None:
    spec, given, tokens = case("three axes")
    runner = Runner(spec, pack(random_weights(spec), "q8"))
    fields = [span.fields() for span in given]
    if "places" in change or "rows" in change:
        fields = fields[:1]
    fields[0] = fields[0] | change
    with pytest.raises(InvalidRequest, match=says):
        runner.model.forward([(runner.sequence(), tokens.tolist(), "all")], given=[fields])


def test_places_need_axes_and_spans_their_order() -> None:
    spec = SPECS["qwen3"]()
    runner = Runner(spec, pack(random_weights(spec), "q8"))
    wide = g.given_rows(spec, 5, 12, width=4)
    with pytest.raises(InvalidRequest, match=r"given\[0\]\.places: got 12, allowed is none"):
        run(runner, [wide], g.prompt(spec, 40, [wide]))
    two = [g.given_rows(spec, 5, 12), g.given_rows(spec, 16, 3)]
    with pytest.raises(InvalidRequest, match=r"given\[1\]\.first: got 16, allowed is 17 to"):
        run(runner, two, g.prompt(spec, 40, two))


def test_mutual_rows_are_not_cut() -> None:
    spec, given, tokens = case("mutual")
    runner = Runner(spec, pack(random_weights(spec), "q8"))
    with pytest.raises(InvalidRequest, match="see each other; the step ends at 30"):
        run(runner, given, tokens, [30])


def test_a_spec_with_wrong_axes_is_refused() -> None:
    spec = SPECS["everything"]()
    wrong = replace(spec, ropes=[replace(spec.ropes[0], axes=(0,) * 6), spec.ropes[1]])
    with pytest.raises(UnsupportedModel, match="all ropes have axes, or none has"):
        Runner(wrong, pack(random_weights(spec), "f32"))
    wrong = replace(spec, ropes=[replace(r, axes=(0, 1)) for r in spec.ropes])
    with pytest.raises(UnsupportedModel, match=r"ropes\[0\]\.axes is 2"):
        Runner(wrong, pack(random_weights(spec), "f32"))


def test_taps_do_not_go_with_residual_gates() -> None:
    spec = SPECS["experts"]()
    given = [g.given_rows(spec, 2, 3, taps=2)]
    with pytest.raises(InvalidRequest, match=r"taps: got 2, allowed is none: layer \d has"):
        run(Runner(spec, pack(random_weights(spec), "f32")), given, g.prompt(spec, 9, given))
