"""Calibrated stoppers: the fit, what the threshold promises, and that the engine keeps to it."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

import musespark
from musespark import Stopper, ThinkingPolicy
from musespark.errors import InvalidRequest
from musespark.lab import calibrate
from musespark.lab.backends import Reply
from musespark.lab.bench_thinking import spread
from musespark.lab.calibrate import (
    Borders,
    borders_of,
    exits,
    fit,
    fitted_hopeless,
    fitted_stopper,
    main,
    saved,
    score,
    threshold,
    watch,
)
from musespark.lab.closes import End, Trace, Tracer, Trial
from musespark.lab.evaluate import items_for
from musespark.lab.item import is_calibration, is_evaluation
from musespark.results import ThoughtSignals
from musespark.thinking.stopper import FEATURES
from musespark.thinking.thresholds import key_of, read_thresholds

# ---- the fit -------------------------------------------------------------------------------------


def drawn(n: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Features of unlike scales and labels that follow weights 1, -0.02, 0 and a bias of 0.5."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 3)) * [1, 50, 3] + [2, 10, 0]
    p = 1 / (1 + np.exp(-(0.5 + features @ [1, -0.02, 0])))
    return features, rng.random(n) < p


def test_a_fit_finds_the_weights_that_labels_follow() -> None:
    features, labels = drawn(40_000)
    weights, bias = fit(features, labels)
    # Standard errors of the maximum-likelihood estimate: 0.02, 4e-4, 7e-3, 0.05.
    np.testing.assert_allclose(weights, [1, -0.02, 0], atol=0.08)
    np.testing.assert_allclose(weights[1], -0.02, atol=2e-3)
    assert bias == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize("ridge", [0.1, 1.0, 30.0])
def test_a_fit_is_where_the_penalized_loss_is_least(ridge: float) -> None:
    features, labels = drawn(200)
    weights, bias = fit(features, labels, ridge)
    deviation, mean = features.std(axis=0), features.mean(axis=0)

    def loss(w: np.ndarray, b: float) -> float:
        z = features @ w + b
        scaled, middle = w * deviation, b + mean @ w
        penalty = ridge * (scaled @ scaled) + 1e-3 * ridge * middle**2
        return float(np.logaddexp(0, z).sum() - z[labels].sum() + penalty / 2)

    least = loss(weights, bias)
    for step in (1e-4, -1e-4):
        assert loss(weights, bias + step) > least
        for i in range(3):
            moved = weights + step * np.eye(3)[i] / deviation
            assert loss(moved, bias) > least
    assert np.abs(weights * deviation).max() < 10 / ridge + 2


@pytest.mark.parametrize("labels", [[True] * 6, [False] * 6, [False] * 3 + [True] * 3])
def test_a_fit_of_what_can_be_told_apart_is_finite(labels: list[bool]) -> None:
    features = np.array([[1.0, 5.0, i] for i in range(6)])  # two that never change
    weights, bias = fit(features, np.array(labels))
    assert np.isfinite([*weights, bias]).all() and weights[0] == weights[1] == 0
    p = 1 / (1 + np.exp(-(features @ weights + bias)))
    assert ((p > 0.5) == labels).all()


# ---- the promise ---------------------------------------------------------------------------------


def test_a_threshold_lies_above_the_score_of_its_rank() -> None:
    scores = np.arange(1, 20) / 20  # 19: at a rate of 5% the largest, at 10% the second
    assert threshold(scores, 0.05) == pytest.approx(0.95, abs=1e-8)
    assert threshold(scores, 0.05) > 0.95
    assert threshold(scores, 0.1) == pytest.approx(0.9, abs=1e-8)
    assert threshold(scores[:18], 0.05) is None, "18 problems cannot promise 5%"
    assert threshold(np.append(scores[:-1], 1.0), 0.05) is None, "nothing is above 1"
    assert threshold(np.full(19, -math.inf), 0.05) == 0.0, "no premature border at all"
    assert threshold(np.full(19, 0.3), 0.5) > 0.3, "ties are all below it"


@pytest.mark.parametrize("rate", [0.05, 0.2])
@pytest.mark.parametrize("n", [19, 50, 99])
def test_the_next_score_reaches_a_threshold_no_more_often_than_asked(rate: float, n: int) -> None:
    """Over 4,000 draws the share's standard error is below 0.0064 (rate 0.2) and 0.0035 (0.05);
    five of them let one in 3.5 million good threshold rules fail."""
    rng, reached, draws = np.random.default_rng(n), 0, 4000
    for _ in range(draws):
        scores = rng.beta(2, 5, n + 1)
        scores[rng.random(n + 1) < 0.3] = -math.inf  # problems without a premature border
        at = threshold(scores[:-1], rate)
        reached += at is not None and scores[-1] >= at
    assert reached / draws <= rate + 5 * math.sqrt(rate * (1 - rate) / draws)


# ---- borders -------------------------------------------------------------------------------------


def signals_of(n: int, borders: list[int]) -> ThoughtSignals:
    rows = np.arange(4 * n, dtype=np.float32).reshape(4, n)
    ends = np.isin(np.arange(1, n + 1), borders)
    return ThoughtSignals(*rows, ends, np.zeros(n, bool))


def trial(at: int, right: bool, answer: int = 5) -> Trial:
    return Trial(at, at + 3, 3, 4, (answer,), (-0.1, -0.2), right, False)


def reply_of(n: int, places: list[int]) -> Reply:
    return Reply("", thinking_tokens=n, signals=signals_of(n, places))


def test_a_thought_may_end_where_its_close_is_right() -> None:
    told = [True, False, True, True]
    places = [10, 20, 30, 40]
    trials = tuple(trial(at, right) for at, right in zip(places, told, strict=True))
    trace = Trace(End(True, 50), 30, trials, {})
    found = borders_of(reply_of(50, places), trace, 8, 1)
    assert found.at.tolist() == places
    assert found.may_end.tolist() == told
    assert found.premature.tolist() == [False, True, False, False]
    far = borders_of(reply_of(50, places), trace, 8, 15)
    assert far.at.tolist() == [20, 40] and far.may_end.tolist() == [False, True]
    wrong = borders_of(reply_of(50, places), replace(trace, whole=End(False, 50)), 8, 1)
    assert wrong.may_end.tolist() == told and not wrong.premature.any()
    streak = found.features[:, FEATURES.index("trial_streak")]
    np.testing.assert_allclose(streak, np.log1p([1, 2, 3, 4]))


def test_a_turn_that_ends_inside_its_thought_has_no_border_there() -> None:
    """Spark Nano ended a turn so: there is no token behind the border whose signals could tell."""
    trace = Trace(End(False, 31), 31, (trial(10, False), trial(30, False)), {})
    assert borders_of(reply_of(30, [10, 30]), trace, 8, 1).at.tolist() == [10]


def test_a_problem_scores_its_worst_premature_border() -> None:
    stopper = Stopper({"tokens": 1.0})
    features = np.zeros((3, len(FEATURES)))
    features[:, FEATURES.index("tokens")] = [-1.0, 0.5, 2.0]
    problem = Borders(np.array([5, 9, 14]), features, np.array([False, False, True]), True, 20)
    assert score([stopper], problem) == pytest.approx(1 / (1 + math.exp(-0.5)))
    assert score([stopper], replace(problem, right=False)) == -math.inf
    assert exits([replace(stopper, threshold=0.5)], problem) == 1
    assert exits([replace(stopper, threshold=0.9)], problem) is None
    hopeless = Stopper({"tokens": -2.0})
    assert score([stopper, hopeless], problem) == pytest.approx(1 / (1 + math.exp(-2.0)))
    assert exits([replace(one, threshold=0.85) for one in (stopper, hopeless)], problem) == 0


def test_a_hopeless_thought_is_told_by_its_features() -> None:
    def problem(right: bool, margin: float) -> Borders:
        features = np.zeros((2, len(FEATURES)))
        features[:, FEATURES.index("margin")] = margin
        return Borders(np.array([5, 9]), features, np.zeros(2, bool), right, 20)

    problems = [problem(k % 2 == 0, (k % 2) * 4.0 + k * 0.01) for k in range(20)]
    found = fitted_hopeless(problems)
    assert found is not None and found.weights["margin"] > 0.5
    assert found.probabilities(problems[0].features).max() < 0.2
    assert found.probabilities(problems[1].features).min() > 0.8
    assert fitted_hopeless(problems[::2]) is None and fitted_hopeless(problems[1::2]) is None


def test_what_stoppers_save_at_their_own_threshold() -> None:
    """The first border of each is premature. One is sure of the second alone; together with one
    that is as sure of the first, nothing may be ended."""
    features = np.zeros((2, len(FEATURES)))
    features[:, FEATURES.index("tokens")] = [-3.0, 3.0]
    may_end = np.array([False, True])
    problems = [Borders(np.array([5, 9]), features, may_end, True, 20) for _ in range(30)]
    good, bad = Stopper({"tokens": 1.0}), Stopper({"tokens": -1.0})
    assert saved([good], problems, 0.1) == 30 * (20 - 9)
    assert saved([good, bad], problems, 0.1) == 0
    assert saved([good], problems[:5], 0.1) == 0  # too few for the rate


def test_nothing_to_fit_on_is_said() -> None:
    nothing = borders_of(reply_of(3, []), Trace(End(True, 3), 3, (), {}), 8, 1)
    assert len(nothing.at) == 0 and nothing.features.shape == (0, len(FEATURES))
    with pytest.raises(InvalidRequest, match="no reply is right and has a border"):
        fitted_stopper([nothing])


# ---- the engine ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tracer():
    backend = Tracer(None, threads=1)
    yield backend
    backend.close()


@pytest.mark.parametrize("every", [1, 12])
def test_the_engine_ends_thoughts_at_the_borders_that_are_read_off(tracer, every: int) -> None:
    items = items_for(["word_problem", "table", "addition"], ["middle"], ["xhigh"], 3, seed=3)
    problems = watch(tracer, items, 8, every, 200)
    stopper = fitted_stopper([replace(one, right=True) for one in problems])
    hopeless = fitted_hopeless([replace(one, right=k % 2 == 0) for k, one in enumerate(problems)])
    assert hopeless is not None
    both = (stopper, hopeless)
    scores = [np.max([s.probabilities(one.features) for s in both], axis=0) for one in problems]
    ended = set()
    for share in (0.3, 0.6, 0.9):
        at = float(np.quantile(np.concatenate(scores), share)) + 1e-7
        sure, given_up = (replace(one, threshold=at) for one in both)
        policy = ThinkingPolicy(stopper=sure, hopeless=given_up, trials=8, every=every, loop=0)
        options = {"thinking_policy": policy, "thinking_closing_message": ""}
        replies = tracer.reply(items, 200, options=options)
        for problem, reply in zip(problems, replies, strict=True):
            end = exits([sure, given_up], problem)
            wanted = problem.thinking if end is None else int(problem.at[end])
            assert reply.thinking_tokens == wanted
            ended.add(end)
    assert len(ended) > 2 and None in ended


def test_the_command_writes_what_auto_then_uses(own_cache, capsys) -> None:
    given = ["--n", "42", "--tasks", "addition,word_problem", "--every", "8", "--threads", "1"]
    main([*given, "--rate", "0.05"])
    told = capsys.readouterr().out
    (path,) = own_cache.glob("thinking/*.json")
    found = read_thresholds(path)
    assert f"wrote {path}" in told and "21 problems fitted, 21 calibrated" in told
    assert found.efforts == ["high", "xhigh"]
    assert found.rate == 0.05 and 0.05 in found.thresholds and 0.01 not in found.thresholds
    assert (found.trials, found.every, found.problems) == (8, 8, 42)
    with musespark.load(threads=1) as model:
        assert found.model == key_of(model._weights, model._again.kv)
        answer = model.chat("What is 23 + 45 - 12?", reasoning_effort="high")
        assert answer.thinking_policy == "calibrated 0.05"


def test_what_was_found_is_kept_where_the_rate_asked_for_gets_no_threshold(
    own_cache, capsys, monkeypatch
) -> None:
    """Items were answered and closed for hours."""

    def hardly(scores: np.ndarray, rate: float) -> float | None:
        possible = not scores.any()  # what is asked first: whether so many items can have one
        return threshold(scores, rate) if possible or rate >= 0.3 else None

    monkeypatch.setattr(calibrate, "threshold", hardly)
    monkeypatch.setattr(calibrate, "RATES", (0.1, 0.3, 0.5))
    given = ["--n", "12", "--tasks", "addition", "--every", "8", "--threads", "1"]
    main([*given, "--rate", "0.2"])
    told = capsys.readouterr().out
    assert "rate 0.2: too few problems" in told and "premature_exits alone" in told
    (path,) = own_cache.glob("thinking/*.json")
    found = read_thresholds(path)
    assert found.rate is None and sorted(found.thresholds) == [0.3, 0.5]
    with musespark.load(threads=1) as model:
        high = {"reasoning_effort": "high"}
        assert model.chat("3+4?", **high).thinking_policy == "loop"
        exits = model.chat("3+4?", **high, premature_exits=0.3)
        assert exits.thinking_policy == "calibrated 0.3"
    given[1] = "10"
    with pytest.raises(InvalidRequest, match=r"--n: got 10 items, but .* on 12; --replace takes"):
        main([*given, "--rate", "0.3"])
    given[1] = "14"
    with pytest.raises(InvalidRequest, match=r"--efforts: got medium, but .* high, xhigh now"):
        main([*given, "--rate", "0.3", "--efforts", "medium"])
    assert read_thresholds(path) == found
    given[1] = "10"
    main([*given, "--rate", "0.3", "--replace"])
    assert read_thresholds(path).problems == 10


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rate", "1.5"], "--rate: got 1.5, allowed is a number"),
        (["--n", "30"], "--rate: got 0.01 with 30 items, allowed are 197 items or more"),
        (["--every", "0"], "--every: got 0, allowed is 1 or more"),
        (["--efforts", "huge"], "--efforts: got 'huge'"),
        (["--items", "none.jsonl"], "--tasks: has no effect with --items"),
        (["--out", "/nowhere/at/all.json"], "--out: there is no folder"),
    ],
)
def test_what_the_command_refuses(arguments: list[str], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        main(["--tasks", "addition", *arguments])


def test_own_items_keep_their_effort_and_take_turns_without_one(tmp_path) -> None:
    path, line = tmp_path / "items.jsonl", {"messages": "3+4?", "answer": "7", "kind": "number"}
    lines = [line | {"effort": "low"}, line, line | {"effort": "low"}, line]
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    items = calibrate._items(calibrate._arguments(["--items", str(path)]))
    assert [i.effort for i in items] == ["low", "xhigh", "low", "xhigh"]
    path.write_text(json.dumps(lines[0]) + "\n")
    assert [i.effort for i in calibrate._items(calibrate._arguments(["--items", str(path)]))] == [
        "low"
    ]


# ---- the split -----------------------------------------------------------------------------------


def test_no_problem_is_calibrated_on_and_compared_on() -> None:
    tasks, levels = ["addition", "sorting", "word_problem"], ["easy", "middle", "hard"]
    mine = {(i.task, i.key) for i in spread(tasks, levels, 300, 1, calibration=True)}
    theirs = {(i.task, i.key) for i in spread(tasks, levels, 300, 1)}
    assert len(mine) > 200 and len(theirs) > 200 and not mine & theirs
    assert all(is_evaluation(*one) and is_calibration(*one) for one in mine)
    assert not any(is_calibration(*one) for one in theirs)
