"""The rule of three phases on curves whose shape is known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from musespark.errors import CorruptFile, InvalidRequest
from musespark.lab import curve

RISING = np.linspace(0.5, 0.9, 200)


def noisy(values, seed=1, spread=2.0):
    return np.asarray(values) + np.random.default_rng(seed).normal(0, spread, len(values))


def piecewise(*points):
    return np.interp(np.arange(200), np.linspace(0, 199, len(points)), points)


def test_up_down_up_is_three_phases():
    found = curve.three_phases(noisy(piecewise(60, 90, 50, 80)), RISING)
    assert found["observed"]
    assert found["segmented"] < found["monotone"] - 100
    assert found["slopes"][0] > 0 > found["slopes"][1]
    assert found["knots"] == pytest.approx((1 / 3, 2 / 3), abs=0.06)


@pytest.mark.parametrize(
    "points", [(60, 90), (90, 60), (60, 60), (60, 85, 90), (90, 60, 58, 40), (60, 90, 50)]
)
def test_what_rises_or_falls_or_comes_down_once_is_not(points):
    assert not curve.three_phases(noisy(piecewise(*points)), RISING)["observed"]


def test_longer_again_without_higher_accuracy_is_not():
    lengths = noisy(piecewise(60, 90, 50, 80))
    assert not curve.three_phases(lengths, RISING[::-1])["observed"]
    assert not curve.three_phases(lengths, np.full(200, 0.7))["observed"]


def test_a_line_keeps_the_signs_it_is_given():
    falling = curve.best_line(noisy(piecewise(60, 90)), (-1, -1))
    assert falling.slopes == (0.0, 0.0)
    straight = curve.best_line(piecewise(10, 30), (1,))
    assert straight.slopes == pytest.approx((20.0,))


def test_each_piece_costs_a_slope_and_a_knot():
    """Schwarz 1978: where more pieces fit no better, the criterion differs by their price alone."""
    straight = piecewise(10, 30)
    one, two, three = (curve.best_line(straight, (1,) * count).bic for count in (1, 2, 3))
    price = 2 * np.log(len(straight))
    assert (two - one, three - one) == pytest.approx((price, 2 * price))


def test_monotone_lines_of_three_pieces_fit_a_bend():
    assert len(curve.monotone(piecewise(10, 80, 80, 90)).slopes) == 3


def test_against_log_steps():
    steps = [10, 20, 40, 80, 160]
    at, slope, r2 = curve.against_log_steps(steps, [0.1 + 0.2 * np.log(s) for s in steps])
    assert (at, slope, r2) == pytest.approx((0.1, 0.2, 1.0))
    assert curve.against_log_steps(steps, [0.5] * 5)[2] == 0
    assert curve.against_log_steps(steps, [1, 0, 1, 0, 1])[2] < 0.1


@pytest.mark.parametrize(("lengths", "correct"), [([1.0] * 29, [1.0] * 29), ([1.0] * 40, [1.0])])
def test_too_short_a_run_is_refused(lengths, correct):
    with pytest.raises(InvalidRequest, match="steps: got"):
        curve.three_phases(lengths, correct)


def test_the_command_counts_seeds(tmp_path, capsys):
    for seed, points in enumerate([(60, 90, 50, 80), (60, 90, 50, 80), (60, 90)]):
        folder = tmp_path / f"seed{seed}"
        folder.mkdir()
        lengths = noisy(piecewise(*points), seed)
        rows = [
            {"step": k + 1, "tokens": t, "correct": c}
            for k, (t, c) in enumerate(zip(lengths, RISING, strict=True))
        ]
        rows += [
            {"step": s, "level": level, "pass_at_1": 0.1 * k + less, "pass_at_16": 0.5 + 0.1 * k}
            for level, less, steps in (("easy", 0.3, (0, 12, 25, 50)), ("hard", 0, (100, 142, 200)))
            for k, s in enumerate(steps)
        ]
        (folder / "rl.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    out = tmp_path / "found.json"
    curve.main([*(str(tmp_path / f"seed{k}") for k in range(3)), "--json", str(out)])
    told = capsys.readouterr().out
    assert "three phases in 2 of 3 runs: observed" in told
    found = json.loads(out.read_text())
    assert [f["observed"] for f in found] == [True, True, False]
    for fits in (found[0]["pass_at_1"], found[0]["pass_at_16"]):  # a line for each level
        assert {level: fit["r2"] > 0.99 for level, fit in fits.items()} == {"easy": 1, "hard": 1}
    curve.main([str(tmp_path / "seed0"), str(tmp_path / "seed1")])
    assert "2 of 2 runs: not observed" in capsys.readouterr().out  # the rule asks for three seeds


def test_of_what_a_run_wrote_twice_the_later_counts(tmp_path):
    """A run that was ended goes on from a checkpoint some steps before its last line."""
    log = tmp_path / "rl.jsonl"

    def line(step, tokens):
        return json.dumps({"step": step, "tokens": tokens, "correct": 0.5}) + "\n"

    passed = json.dumps({"step": 2, "level": "easy", "pass_at_1": 0.5}) + "\n"
    log.write_text(line(1, 5) + line(2, 6) + passed + line(3, 7) + passed + line(3, 8) + '{"st')
    rows = curve._rows(log)
    assert [(r["step"], r.get("tokens")) for r in rows] == [(1, 5), (2, 6), (2, None), (3, 8)]
    log.write_text("[]\n")
    with pytest.raises(CorruptFile, match="a line of steps"):
        curve._rows(log)


def test_a_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InvalidRequest, match=r"there is no .*rl\.jsonl"):
        curve.main([str(tmp_path)])
