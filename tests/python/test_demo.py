"""``musespark demo``: what it asks, what it says of the answers, what it writes."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import musespark
from musespark.cli import main
from musespark.cli.demo import _Demo
from musespark.lab.evaluate import items_for
from musespark.lab.items_file import read_items

NANO = Path(musespark.__file__).parent / "nano"
EXAMPLES = NANO / "examples"
SIGHT = {
    "image_processor_type": "MuseGlimmerImageProcessor",
    "patch_size": 8,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "resample": 1,
    "max_image_tokens": 64,
}


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MUSESPARK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def nano(path: Path, *, sees: bool) -> Path:
    """The embedded model's folder, whether or not it sees."""
    path.mkdir()
    for file in NANO.glob("*.*"):
        if file.is_file() and not file.name.endswith("preprocessor_config.json"):
            shutil.copyfile(file, path / file.name)
    if sees:
        (path / "preprocessor_config.json").write_text(json.dumps(SIGHT))
    return path


def demo(*arguments: object) -> int:
    return main(["demo", "--threads", "1", *map(str, arguments)])


def test_a_seeing_model_writes_pages_and_pictures(tmp_path, capsys):
    folder, out = nano(tmp_path / "nano", sees=True), tmp_path / "new" / "out"
    assert demo("-m", folder, "--seed", 3, "--out", out) == 0
    printed = capsys.readouterr().out
    names = {"drawn.html", "drawn.png", "window.html", "window.png"}
    assert {path.name for path in out.iterdir()} == names
    assert all(str(out / name) in printed for name in names)
    assert Image.open(out / "window.png").size == (512, 512)
    item = read_items(EXAMPLES / "items.jsonl", ["medium"])[0]
    assert f"true box: {item.answer}" in printed
    assert "tokens/s" in printed and "--seed 3 draws them again" in printed
    with musespark.load(folder, threads=1) as model:  # as it was said, the first time
        question = printed.split("\n> ")[1].splitlines()[0]
        thought = model.chat(question, reasoning_effort="high", max_new_tokens=400)
        pixels = item.pictures[0].original
        parts = [{"type": "image", "image": pixels}, item.messages[0]["content"][1]]
        seen = model.chat([{"role": "user", "content": parts}], max_new_tokens=400)
    for result in (thought, seen):
        said = f"{result.reasoning}\n{result.content}\n[true"
        assert said in printed
    assert demo("-m", folder, "--seed", 3, "--out", out) == 0
    again = capsys.readouterr().out
    questions = re.compile(r"^> .*$", re.MULTILINE)
    assert questions.findall(again) == questions.findall(printed)


def test_a_model_that_does_not_see_says_so(tmp_path, capsys):
    out = tmp_path / "out"
    assert demo("-m", nano(tmp_path / "nano", sees=False), "--out", out) == 0
    printed = capsys.readouterr().out
    assert "This model does not see (images: this model comes without" in printed
    assert "tokens/s" in printed
    assert not out.exists()


def test_verdicts_are_those_of_the_answers(capsys, monkeypatch):
    """A sum that Nano can, against its answer and against another."""
    right = items_for(["addition"], ["easy"], ["high"], 1, seed=1)[0]
    drawn = _Demo._drawn
    for item, verdict in ((right, "right"), (replace(right, answer="-1"), "wrong")):

        def given(self, task, *more, item=item):
            return item if task == "word_problem" else drawn(self, task, *more)

        monkeypatch.setattr(_Demo, "_drawn", given)
        assert demo() == 0
        told = f"\n{right.answer}\n[true answer: {item.answer}: {verdict}]"
        assert told in capsys.readouterr().out


def test_the_tool_runs_and_its_answer_is_shown(capsys):
    assert demo("--seed", 1) == 0
    printed = capsys.readouterr().out
    asked = re.search(r"> Use the calculator for (\d+)([+*-])(\d+)\.", printed)
    value = str(eval(asked[1] + asked[2] + asked[3]))
    called = re.search(r'name="expression">([^<]*)<', printed)
    assert f"= calculate: {eval(called[1])}\n" in printed
    assert f"[true answer: {value}: " in printed


def test_without_a_folder_a_new_one_is_made(tmp_path, capsys):
    folder = nano(tmp_path / "nano", sees=True)
    assert demo("-m", folder) == 0
    assert demo("-m", folder) == 0
    made = list(tmp_path.glob("musespark-demo-*"))
    assert len(made) == 2 and all((one / "drawn.html").is_file() for one in made)


def test_without_pillow_pages_alone_are_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    out = tmp_path / "out"
    assert demo("-m", nano(tmp_path / "nano", sees=True), "--out", out) == 0
    assert [path.name for path in out.iterdir()] == ["drawn.html"]
    told = capsys.readouterr().err
    assert "to_png needs Pillow" in told and "The picture of the package is left out" in told


@pytest.mark.parametrize("below", ["", "a", "a/b"])
def test_where_no_folder_can_be_is_said_before_anything_is_asked(tmp_path, capsys, below):
    (tmp_path / "x").write_text("")
    assert demo("--out", tmp_path / "x" / below) == 1
    told = capsys.readouterr()
    assert f"--out: {tmp_path / 'x'} is no folder" in told.err and told.out == ""


def test_a_folder_that_cannot_be_written_to(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    assert demo("--out", tmp_path / "a" / "b") == 1
    told = capsys.readouterr()
    assert f"--out: {tmp_path} cannot be written to" in told.err and told.out == ""


def test_the_picture_of_the_package_is_an_exercise_of_the_evaluation_side():
    shipped = read_items(EXAMPLES / "items.jsonl", ["medium"])
    drawn = items_for(["buttons"], ["easy"], ["medium"], 1, seed=8)
    for item, wanted in zip(shipped, drawn, strict=True):
        assert (item.key, item.answer) == (wanted.key, wanted.answer)
        assert item.messages == wanted.messages
        assert np.array_equal(item.pictures[0].original, wanted.pictures[0].pixels)
    assert (EXAMPLES / "window.png").stat().st_size < 10_000
