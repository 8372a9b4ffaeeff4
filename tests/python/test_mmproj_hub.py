"""Projector files on a hub and on the command line: which one comes, and what is said of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from musespark import inspect
from musespark.cli import main
from musespark.errors import HubUnavailable, InvalidRequest
from musespark.vision.opening import why_blind
from musespark.weights import hubheaders, open_model

gguf = pytest.importorskip("gguf")
from support.fake_hub import FakeHub  # noqa: E402
from support.mmproj_models import model_folder, write_pair  # noqa: E402

pytest_plugins = ("support.hub_fixtures",)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """name -> the pair's folder."""
    made = {}
    for name in ("idefics3", "gemma3"):
        root = tmp_path_factory.mktemp(name)
        (root / "hf").mkdir()
        model_folder(root / "hf", name)
        write_pair(root / "hf", name, root / "pair")
        made[name] = root / "pair"
    return made


def add(fake: FakeHub, files: Path, *projectors: str, **more: bytes) -> None:
    stored = {"model.gguf": (files / "model.gguf").read_bytes()} | more
    tower = (files / "mmproj-model.gguf").read_bytes()
    fake.add("org/sees", stored | dict.fromkeys(projectors, tower))


def opened(source: str = "org/sees", **options: Any) -> Any:
    return open_model(source, progress=False, **options)


def here(tmp_path: Path) -> set[str]:
    return {path.name for path in tmp_path.glob("hub/**/*.gguf")}


def test_the_one_beside_a_model_comes_with_it(fake, files, tmp_path) -> None:
    add(fake, files["idefics3"], "model-mmproj-f16.gguf", **{"sub/mmproj-other.gguf": b"GGUF"})
    model = opened()
    assert model.vision is not None and model.info["family"] == "smolvlm"
    assert here(tmp_path) == {"model.gguf", "model-mmproj-f16.gguf"}
    asked = len(fake.asked)
    assert opened().vision is not None  # all is here
    assert len(fake.asked) - asked <= 2
    assert opened(mmproj=False).vision is None


def test_it_is_not_fetched_where_nobody_wants_it(fake, files, tmp_path) -> None:
    add(fake, files["idefics3"], "mmproj.gguf")
    assert opened(mmproj=False).vision is None
    assert here(tmp_path) == {"model.gguf"}


def test_of_several_one_is_named(fake, files, tmp_path) -> None:
    add(fake, files["idefics3"], "mmproj-F16.gguf", "mmproj-F32.gguf")
    model = opened()
    said = "2 mmproj files lie beside the model; name one as mmproj: org/sees/mmproj-F16.gguf, org"
    assert model.vision is None and said in why_blind(model)
    assert here(tmp_path) == {"model.gguf"}
    assert opened(mmproj="org/sees/mmproj-F32.gguf").vision is not None
    assert here(tmp_path) == {"model.gguf", "mmproj-F32.gguf"}
    assert said in why_blind(opened())  # whatever the cache has
    assert opened(str(files["idefics3"]), mmproj="org/sees/mmproj-F32.gguf").vision is not None


def test_one_of_another_model_is_left_aside(fake, files, tmp_path) -> None:
    tower = (files["gemma3"] / "mmproj-model.gguf").read_bytes()
    add(fake, files["idefics3"], **{"mmproj.gguf": tower})
    model = opened()
    assert model.vision is None and "it belongs to another model" in why_blind(model)
    with pytest.raises(InvalidRequest, match="it belongs to another model"):
        opened(mmproj="org/sees/mmproj.gguf")


def test_headers_tell_of_both(fake, files, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(hubheaders, "_FIRST_BYTES", 1000)
    add(fake, files["idefics3"], "mmproj.gguf")
    found, local = inspect("org/sees"), inspect(files["idefics3"] / "model.gguf")
    assert not here(tmp_path)
    for key in ("family", "parameters", "weights", "tensors"):
        assert found[key] == local[key], key
    text = inspect("org/sees", mmproj=False)
    assert text["parameters"] < found["parameters"]
    add(fake, files["idefics3"], "mmproj-a.gguf", "mmproj-b.gguf")
    assert any("2 mmproj files" in note for note in inspect("org/sees")["notes"])


def test_a_model_that_does_not_fit_with_its_tower_is_not_fetched(fake, files, tmp_path) -> None:
    add(fake, files["idefics3"], "mmproj.gguf")
    text, both = (inspect("org/sees", mmproj=m)["weights"]["q8"] for m in (False, None))
    seen: list[int] = []

    def admit(spec: Any, weights: dict[str, int], recipe: str) -> None:
        seen.append(weights["q8"])
        raise InvalidRequest("too large")

    for mmproj in (False, None):
        with pytest.raises(InvalidRequest, match="too large"):
            open_model("org/sees", mmproj=mmproj, admit=admit, progress=False)
    assert seen == [text, both] and text < both and not here(tmp_path)


def test_a_hub_that_is_away_and_a_cache_that_has_both(fake, files, monkeypatch) -> None:
    add(fake, files["idefics3"], "mmproj.gguf")
    assert opened().vision is not None
    fake.status = 503
    model = opened()
    assert model.vision is not None and any("not asked" in note for note in model.info["notes"])
    with pytest.raises(HubUnavailable):
        opened(mmproj="org/other/mmproj.gguf")


# ---- the command line ---------------------------------------------------------------------------


def run(*arguments: Any) -> int:
    return main([str(a) for a in arguments])


def test_commands_take_a_projector(fake, files, tmp_path, capsys) -> None:
    pair = files["idefics3"]
    model, tower = pair / "model.gguf", tmp_path / "elsewhere.gguf"
    tower.write_bytes((pair / "mmproj-model.gguf").read_bytes())
    for flags, family in (((), "smolvlm"), (("--no-mmproj",), "llama")):
        assert run("inspect", model, *flags) == 0
        assert re.search(rf"^family +{family}$", capsys.readouterr().out, re.MULTILINE)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "model.gguf").write_bytes(model.read_bytes())
    packed = tmp_path / "both.safetensors"
    given = ("--mmproj", tower, "--quantize", "q8")
    assert run("convert", alone / "model.gguf", packed, *given) == 0
    assert "vision tower:" in capsys.readouterr().out
    assert open_model(packed).vision is not None
    asked = ("generate", "-m", alone / "model.gguf", "-n", 2, "hello")
    assert run(*asked, "--mmproj", tower) == 0
    assert run(*asked, "--mmproj", tmp_path / "none.gguf") == 1
    assert "no such file, and no hub id of one" in capsys.readouterr().err
    assert run("estimate", alone / "model.gguf", "--mmproj", tower, "--json") == 0


def test_a_command_says_what_was_left_aside(fake, files, tmp_path, capsys) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name, source in (("model", "idefics3"), ("mmproj-model", "gemma3")):
        data = (files[source] / f"{name}.gguf").read_bytes()
        (folder / f"{name}.gguf").write_bytes(data)
    asked = ("generate", "-m", folder / "model.gguf", "-n", 2, "hello")
    assert run(*asked) == 0
    assert "images: not read: " in capsys.readouterr().err
    assert run(*asked, "--no-mmproj") == 0
    assert "images" not in capsys.readouterr().err
