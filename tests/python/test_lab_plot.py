"""``musespark lab plot``: the curves of a run's logs."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import pytest

from musespark.cli import main
from musespark.lab.plot import drawn, read_log

SVG = "{http://www.w3.org/2000/svg}"


def line(step, loss=1.0, **more):
    return json.dumps({"step": step, "tokens": step * 1000, "loss": loss, **more}) + "\n"


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "a<run>"
    folder.mkdir()
    steps = [(20, 4.0), (40, 2.0), (60, 1.0)]
    log = "".join(line(s, loss, tokens_per_s=100.0 * s) for s, loss in steps)
    (folder / "log.jsonl").write_text(log)
    families = line(40, addition=0.5, dates=0.75) + line(60, addition=0.25)
    (folder / "families.jsonl").write_text(families.replace('"loss": 1.0, ', ""))
    return folder


def curves(svg):
    root = ElementTree.fromstring(svg)
    return [
        [tuple(map(float, pair.split(","))) for pair in one.get("points").split()]
        for one in root.iter(f"{SVG}polyline")
    ]


def test_loss_speed_and_every_task_have_a_curve(run):
    svg = drawn(run)
    loss, speed, addition, dates = curves(svg)
    texts = [one.text for one in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert texts[0] == "a<run>: step 60, 0.1 M tokens"
    assert {"loss: 1", "tokens/s: 6,000", "addition: 0.25", "dates: 0.75"} <= set(texts)
    assert [len(c) for c in (loss, speed, addition, dates)] == [3, 3, 2, 1]
    heights = [y for _, y in loss]  # down is more: half the loss is half as high above the floor
    floor = heights[2] + (heights[2] - heights[1])
    assert floor - heights[0] == pytest.approx(4 * (floor - heights[2]), abs=0.5)
    assert loss[1][0] - loss[0][0] == pytest.approx(loss[2][0] - loss[1][0], abs=0.2)
    assert speed[0][1] > speed[2][1] and addition[0][1] < addition[1][1]


def test_steps_that_were_done_again_count_once(run):
    with (run / "log.jsonl").open("a") as log:
        log.write(line(40, 9.0) + line(60, 8.0) + '{"step": 80, "tok')
    lines = read_log(run / "log.jsonl")
    assert [(one["step"], one["loss"]) for one in lines] == [(20, 4.0), (40, 9.0), (60, 8.0)]
    assert read_log(run / "gone.jsonl") == []


def test_what_is_no_number_is_no_point(run):
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 80, "tokens": 80000, "loss": NaN}\n{"step": 90, "tokens": 90000}\n')
    assert [len(c) for c in curves(drawn(run))[:2]] == [3, 3]


def test_the_command_writes_beside_the_run_or_where_it_is_told(run, tmp_path, capsys):
    assert main(["lab", "plot", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'plot.svg'}\n"
    assert main(["lab", "plot", str(run), "--out", str(tmp_path / "x.svg")]) == 0
    assert (tmp_path / "x.svg").read_text() == (run / "plot.svg").read_text() == drawn(run)


def test_a_run_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["lab", "plot", str(tmp_path / "none")]) == 1
    assert f"RUN: there is no folder {tmp_path / 'none'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "log.jsonl has no line yet"),
        (line(20) + "[]\n", "log.jsonl:2: '[]' is no line with step and tokens"),
        ('{"step": 1}\n', "log.jsonl:1: "),
        ('{"step": "1", "tokens": 3}\n', "log.jsonl:1: "),
    ],
)
def test_what_is_no_log_is_refused_by_line(run, text, said, capsys):
    (run / "log.jsonl").write_text(text)
    assert main(["lab", "plot", str(run)]) == 1
    assert re.search(re.escape(said), capsys.readouterr().err)
    assert not (run / "plot.svg").exists()
