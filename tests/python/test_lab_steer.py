"""``musespark lab steer``: what a pair is, and the command on a few items of the embedded model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import musespark
from musespark.cli import main as musespark_main
from musespark.errors import InvalidRequest
from musespark.lab.bench_thinking import TASKS, spread
from musespark.lab.engine import MusesparkBackend
from musespark.lab.item import LEVELS
from musespark.lab.steer import _up_to_thought, main, pair_of, prompt_of, table


@pytest.fixture(scope="module")
def backend():
    backend = MusesparkBackend(None, threads=1)
    yield backend
    backend.close()


def test_a_pair_is_one_problem_at_two_lengths(backend) -> None:
    """Each behind its own prompt; the long thought is cut to the length of the short one."""
    items = [
        replace(item, effort=effort)
        for item in spread(list(TASKS), list(LEVELS), 12, 3, calibration=True)
        for effort in ("medium", "xhigh")
    ]
    replies = backend.reply(items, 300, options={"thinking_policy": "off"})
    made = 0
    for k in range(0, len(items), 2):
        (short, long), (brief, lengthy) = items[k : k + 2], replies[k : k + 2]
        found = pair_of(backend, short, brief, long, lengthy)
        if found is None:
            continue
        made += 1
        positive, negative = found
        for ids, item, reply in ((positive, short, brief), (negative, long, lengthy)):
            prompt = prompt_of(backend, item)
            assert ids[: len(prompt)] == prompt
            begun = ids[len(prompt) :]
            assert [int(t) for t in reply.tokens][: len(begun)] == begun
        (begun, whole), (_, longer) = (
            _up_to_thought(backend, *one) for one in ((short, brief), (long, lengthy))
        )
        assert positive == begun + whole and len(whole) < len(longer)
        assert negative[-len(whole) :] == longer[: len(whole)]
        assert pair_of(backend, long, lengthy, short, brief) is None, "the wrong way round"
    assert made >= 3


def test_the_command_makes_a_vector_and_measures_it(tmp_path, capsys) -> None:
    out, rows = tmp_path / "v.safetensors", tmp_path / "rows.json"
    few = ["--pairs", "15", "--n", "6", "--strengths", "1,2", "--layers", "2-4", "--seed", "5"]
    more = ["--threads", "1", "--max-kl", "0.05", "--max-new-tokens", "200", "--levels", "easy"]
    assert (
        musespark_main(["lab", "steer", *few, *more, "--out", str(out), "--json", str(rows)]) == 0
    )
    vector, report = musespark.ControlVector.load(out), json.loads(rows.read_text())
    assert vector.layers == (2, 3, 4) and 0 < vector.kl <= vector.max_kl == 0.05
    assert report["model"] == vector.model and report["kl"] == vector.kl and report["pairs"] > 0
    assert [(row["policy"], row["effort"]) for row in report["rows"]] == [
        *(("effort", e) for e in ("low", "medium", "high", "xhigh")),
        ("steered 1", "xhigh"),
        ("steered 2", "xhigh"),
    ]
    assert all(row["n"] == 6 for row in report["rows"])
    assert table(report["rows"]) in capsys.readouterr().out
    with musespark.load(context=64, threads=1) as model, model.steer(out) as steering:
        assert steering.layers == (2, 3, 4)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["--short", "high", "--long", "high"], "--short: got high, allowed is an effort below hi"),
        (["--pairs", "9"], "--pairs: got 9, allowed is 10 or more"),
        (["--layers", "3"], "--layers: got '3', allowed is FIRST-LAST"),
        (["--strengths", "1,x"], "--strengths: got '1,x', allowed is numbers"),
        (["--strengths", "nan"], "--strengths: got nan, allowed is numbers"),
        (["--max-kl", "-1"], "--max-kl: got -1.0, allowed is a number of nats"),
        (["--out", "no/such/folder/v"], "--out: there is no folder"),
    ],
)
def test_what_cannot_be_asked(given, text) -> None:
    with pytest.raises(InvalidRequest, match=text):
        main(given)
