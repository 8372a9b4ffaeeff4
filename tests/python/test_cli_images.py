"""Images on the command line: ``musespark trace`` and ``musespark chat --image``."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sight_cases import VOCAB
from tokenizers import Tokenizer

import musespark
from musespark.cli import main
from musespark.errors import InvalidRequest
from musespark.vision.trace import VisualTrace
from support.blind import blind_nano
from support.sight_folder import sight_folder

FAST = ("--quantize", "none", "--threads", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = sight_folder(tmp_path_factory.mktemp("sight") / "m", "qwen2_5_vl")
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    names = [f"<unused{i}>" for i in range(tokenizer.get_vocab_size(), VOCAB)]
    tokenizer.add_tokens(names)  # a random model writes them too
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[Path]:
    rng = np.random.default_rng(4)
    paths = [tmp_path_factory.mktemp("images") / f"{i}.png" for i in range(2)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(path)
    return paths


def run(*arguments: object) -> int:
    return main([str(a) for a in arguments])


def trace(folder: Path, *arguments: object) -> int:
    return run("trace", *arguments, "-m", folder, "--calls", 0, "-n", 4, *FAST)


def test_a_trace_is_printed_and_written(folder, images, tmp_path, capsys) -> None:
    page, picture = tmp_path / "out.html", tmp_path / "out.png"
    assert trace(folder, *images, "Where?", "--html", page, "--png", picture, "--json") == 0
    found = VisualTrace.from_json(capsys.readouterr().out)
    assert len(found.images) == 2 and found.question == "Where?"
    assert found.answer
    assert page.read_text().lower().startswith("<!doctype html>")
    assert Image.open(picture).size == (60, 40)
    assert trace(folder, images[0], "Where?", "--masks", "--heat") == 0
    out = capsys.readouterr().out
    assert out.startswith("Where?\n") and "conclude" in out
    assert "engine attention of" in out
    assert trace(folder, images[0], "Where?", "--masks") == 0
    assert "cited no place" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("{0}.gone", "?"), "image: there is no file"),
        (("{0}", "?", "--png", "/tmp"), "--png: /tmp is a folder"),
        ((__file__, "?"), "not a PNG, JPEG"),
        (("{0}", "?", "--html", "/nowhere/at/all.html"), "--html: there is no folder"),
        (("{0}", "?", "--convention", "nobody"), "convention: 'nobody'"),
        (("{0}", "?", "--calls", "-1"), "calls: -1, must be 0 or more"),
    ],
)
def test_what_cannot_be_traced(folder, images, capsys, arguments, told) -> None:
    given = [a.format(images[0]) for a in arguments]
    assert run("trace", *given, "-m", folder, "-n", 4, *FAST) == 1
    assert told in capsys.readouterr().err


def test_an_answer_stays_where_measuring_fails(
    folder, images, tmp_path, capsys, monkeypatch
) -> None:
    def failing(trace, model):
        raise InvalidRequest("look_at: none")

    monkeypatch.setattr(VisualTrace, "heat", failing)
    page = tmp_path / "page.html"
    assert trace(folder, images[0], "Where?", "--heat", "--html", page) == 1
    told = capsys.readouterr()
    assert "conclude" in told.out and "look_at: none" in told.err
    assert page.exists()


def test_what_cannot_be_is_said_before_a_model_is_loaded(capsys) -> None:
    for wrong in (("--image", "gone.png"), ("--session", "/nowhere/at/all")):
        assert run("chat", "?", *wrong, "-m", "/no/model") == 1
        assert "there is no f" in capsys.readouterr().err


def test_a_model_without_eyes(images, capsys, tmp_path) -> None:
    blind = blind_nano(tmp_path / "m")
    assert run("trace", images[0], "?", "-m", blind, "--threads", 1) == 1
    assert "images:" in capsys.readouterr().err


def test_chat_shows_images_with_the_first_message(folder, images, capsys, monkeypatch) -> None:
    shown = ("--image", images[0], "--image", images[1])
    common = ("-m", folder, "-n", 4, *FAST)
    assert run("chat", "Which?", *shown, "--json", *common) == 0
    one = json.loads(capsys.readouterr().out)
    assert one["images"]["count"] == 2
    assert one["usage"]["image_tokens"] > 0
    with musespark.load(folder, quantize="none", threads=1) as model:
        parts = [{"type": "image", "image": path} for path in images]
        message = {"role": "user", "content": [*parts, {"type": "text", "text": "Which?"}]}
        assert model.chat([message], max_new_tokens=4).content == one["content"]
    lines = f"Which?\n/image {images[0]}\n/image {images[0]}.gone\nAnd this?\n/stats\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert run("chat", *shown, *common) == 1
    assert "there is no file" in capsys.readouterr().err
