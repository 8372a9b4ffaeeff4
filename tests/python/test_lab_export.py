"""An exported folder: what transformers makes of it and what we make of it are the same tokens
(needs torch and transformers)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the lab needs torch")
transformers = pytest.importorskip(
    "transformers", minversion="5.17", reason="the lab needs transformers"
)

from musespark.lab import network  # noqa: E402
from musespark.lab.backends import TransformersBackend  # noqa: E402
from musespark.lab.engine import MusesparkBackend  # noqa: E402
from musespark.lab.evaluate import items_for  # noqa: E402
from musespark.lab.export import export  # noqa: E402

pytestmark = [pytest.mark.lab, pytest.mark.slow]
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A network of Nano's shape with random weights, spread so that no two tokens come close."""
    out = tmp_path_factory.mktemp("export")
    model = network.create("nano", seed=3)
    draw = torch.Generator().manual_seed(4)
    for name, tensor in model.named_parameters():
        if tensor.ndim > 1:
            tensor.data.normal_(0, 0.12 if "embed_tokens" in name else 0.09, generator=draw)
    state = {"model": model.state_dict(), "average": {}, "step": 7, "tokens": 8, "size": "nano"}
    torch.save(state, out / "last.pt")
    facts = export(out / "last.pt", out / "model", torch.float32)
    assert facts["step"] == 7
    return out / "model"


def test_the_folder_says_how_pictures_are_prepared_and_how_long_it_was_trained(folder):
    assert json.loads((folder / "training.json").read_text())["tokens"] == 8
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    assert (settings["patch_size"], settings["max_image_tokens"]) == (8, 64)
    assert settings["image_processor_type"] == "MuseGlimmerImageProcessor"


def test_greedy_tokens_of_text_tools_and_pictures_are_those_of_transformers(folder):
    tasks = ["addition", "tool_call", "counting", "codes", "comparing"]
    items = items_for(tasks, ["easy"], ["medium"], 2, seed=5)
    theirs = TransformersBackend(folder, batch=4).reply(items, 24)
    ours = MusesparkBackend(folder, quantize="none", kv="f32")
    try:
        replies = ours.reply(items, 24)
    finally:
        ours.close()
    assert {i.modality for i in items} == {"text", "tools", "vision"}
    assert [r.tokens for r in replies] == [r.tokens for r in theirs]
    # They depend on what is shown: no two of them are the same.
    assert len({r.tokens for r in replies}) == len(items)
