"""``musespark lab generate``: what it writes is what ``lab eval --items`` reads and asks."""

from __future__ import annotations

import json

import numpy as np
import pytest

from musespark.cli import main
from musespark.errors import InvalidRequest
from musespark.lab.evaluate import items_for
from musespark.lab.generate import write_items
from musespark.lab.grading import grade
from musespark.lab.item import LEVELS, is_evaluation
from musespark.lab.items_file import read_items
from musespark.lab.tasks import EVALUATED, split_of


@pytest.mark.parametrize("task", EVALUATED)
def test_every_task_comes_back_as_it_was(tmp_path, task):
    items = items_for([task], LEVELS, ["high"], 3, seed=5)
    back = read_items(write_items(items, tmp_path / "out"), ["high"])
    assert len(back) == len(items) >= 3
    for ours, theirs in zip(items, back, strict=True):
        for name in ("task", "level", "effort", "key", "messages", "checker", "tools", "calls"):
            assert getattr(ours, name) == getattr(theirs, name), name
        assert grade(theirs, ours.answer, ours.calls)
        assert not grade(theirs, ours.answer + " x", [{"name": "x", "arguments": {}}])
        for mine, read in zip(ours.pictures or [], theirs.pictures or [], strict=True):
            assert np.array_equal(mine.pixels, read.pixels)


@pytest.mark.parametrize("split", ["train", "evaluation"])
def test_the_command_draws_from_the_side_it_was_asked_for(tmp_path, split, capsys):
    folder = tmp_path / "a" / "b"
    argv = ["lab", "generate", str(folder), "--task", "counting,dates", "--level", "easy"]
    assert main([*argv, "--n", "4", "--seed", "3", "--split", split]) == 0
    lines = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    assert f"{len(lines)} items of the {split} side, seed 3" in capsys.readouterr().out
    assert sum(line["task"] == "counting" for line in lines) == 4
    for line in lines:
        assert is_evaluation(split_of(line["task"]), line["key"]) == (split == "evaluation")
    files = {p.name for p in folder.glob("*.png")}
    assert files == {name for line in lines for name in line.get("images", [])}
    if split == "evaluation":  # those of `lab eval` with the same seed
        wanted = items_for(["counting", "dates"], ["easy"], ["low"], 4, seed=3)
        assert [line["key"] for line in lines] == [i.key for i in wanted]


def test_what_is_there_is_not_written_over(tmp_path, capsys):
    items = items_for(["addition"], ["easy"], ["low"], 1, seed=5)
    path = write_items(items, tmp_path)
    before = path.read_bytes()
    with pytest.raises(InvalidRequest, match=r"items.jsonl is there already"):
        write_items(items, tmp_path)
    assert path.read_bytes() == before
    assert main(["lab", "generate", str(tmp_path / "new"), "--n", "0"]) == 1
    assert "--n: got 0" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_fewer_than_wanted_is_said(tmp_path, capsys):
    given = ["--tasks", "multiplication", "--levels", "easy", "--n", "60"]
    assert main(["lab", "generate", str(tmp_path), *given]) == 0
    told, warned = capsys.readouterr()
    count = int(told.split(" items")[0])
    assert count < 60
    assert f"fewer than wanted: multiplication/easy: {count} of 60" in warned
