"""``load(drafter=)``: folders, packed files, what is refused, what the model says of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import musespark
from musespark.cli import main
from musespark.drafters import SHIPPED, give_drafter, open_drafter
from musespark.errors import InvalidRequest, MemoryBudgetExceeded, UnsupportedModel
from musespark.sizes import kv_bytes
from musespark.weights import open_model
from support.bert_models import folder_of
from support.chat_folder import chat_folder
from support.drafters import drafter_folder

NANO = Path(musespark.__file__).parent / "nano"
TEXTS = ["What is 17 + 25?", "Sort 3, 1, 2.", "Say hello."]
QUESTIONS = [f"What is {a} + {b}?" for a, b in ((4731, 2868), (519, 7460), (36, 88), (905, 1207))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drafter_folder(tmp_path_factory.mktemp("drafter"))


@pytest.fixture(scope="module")
def model(folder: Path):
    with musespark.load(threads=1, drafter=folder, context=1024) as model:
        yield model


def test_the_same_answers_as_without(model: musespark.Model) -> None:
    found = [model.chat(text, max_new_tokens=60) for text in TEXTS]
    with musespark.load(threads=1, context=1024) as plain:
        for text, one in zip(TEXTS, found, strict=True):
            wanted = plain.chat(text, max_new_tokens=60)
            assert one.tokens == wanted.tokens and one.content == wanted.content
    off = [model.chat(text, max_new_tokens=60, speculation="off") for text in TEXTS]
    assert [one.tokens for one in off] == [one.tokens for one in found]
    assert all(one.timings.drafter_passes == 0 for one in off)
    assert sum(one.timings.drafter_passes for one in found) > 0


def test_a_session_drafts_in_each_turn(model: musespark.Model) -> None:
    with musespark.load(threads=1, context=1024) as plain:
        for text in ("What is 2 + 2?", "And 3 more?"):
            session, other = model.session(), plain.session()
            assert session.chat(text, max_new_tokens=40).tokens == (
                other.chat(text, max_new_tokens=40).tokens
            )


def test_nano_comes_with_one_that_writes_several_tokens_a_pass() -> None:
    assert SHIPPED.stat().st_size <= 1_000_000
    more = {"reasoning_effort": "medium", "max_new_tokens": 200, "thinking_policy": "off"}
    with musespark.load(threads=1, drafter="own", prefix_cache=False) as model:
        asked = [model._chat_request(text, more)[0] for text in QUESTIONS]
        plain, eager = (
            [model._engine.submit(replace(one, **how)).result() for one in asked]
            for how in ({"draft_tokens": 0}, {"draft_tokens": 16, "draft_eagerly": True})
        )
    assert [one.tokens for one in eager] == [one.tokens for one in plain]
    passes = sum(one.stats["drafter_passes"] for one in eager)
    right = sum(one.stats["drafter_accepted_tokens"] for one in eager)
    assert passes > 0 and 1 + right / passes >= 2.5


def test_own_is_the_folder_in_the_models(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(NANO, tmp_path / "model", ignore=shutil.ignore_patterns("packed", "examples"))
    with pytest.raises(InvalidRequest, match=r"drafter: got 'own', but none comes with .*model"):
        musespark.load(tmp_path / "model", drafter="own")
    shutil.copytree(folder, tmp_path / "model" / "drafter")
    with musespark.load(tmp_path / "model", drafter="own", quantize="q8", threads=1) as model:
        assert any(note.startswith("drafter: ") for note in model.info.notes)


def test_the_model_says_so(model: musespark.Model, folder: Path) -> None:
    notes = [note for note in model.info.notes if note.startswith("drafter: ")]
    assert len(notes) == 1 and str(folder) in notes[0] and "blocks of 8" in notes[0]


def test_weights_may_be_replaced_under_it(model: musespark.Model) -> None:
    """Drafts of the old weights are worse; the results are the new ones'."""
    before = model.generate("one two", max_new_tokens=30)
    state = dict(musespark_weights())
    model.update_weights(state)
    assert model.generate("one two", max_new_tokens=30).tokens == before.tokens


def musespark_weights():
    """Nano's own, as update_weights takes them."""
    from musespark.weights.safetensors import SafetensorsFile

    file = SafetensorsFile(NANO / "model.safetensors")
    for name in file.entries:
        bits = np.array(file.array(name))
        yield name, (bits.astype(np.uint32) << 16).view(np.float32)


def test_a_packed_drafter_is_taken_too(folder: Path, tmp_path: Path) -> None:
    packed = tmp_path / "drafter.safetensors"
    report = musespark.convert(folder, packed, quantize="q4")
    assert report["family"] == "muse_glimmer_assistant" and packed.stat().st_size < 1 << 20
    with musespark.load(threads=1, drafter=packed, context=512) as model:
        result = model.chat("What is 17 + 25?", max_new_tokens=60)
        assert result.timings.drafter_passes > 0
    found = musespark.inspect(folder)
    assert found["family"] == "muse_glimmer_assistant" and found["parameters"] > 100_000


def test_a_smaller_model_may_draft() -> None:
    """Spark Nano for itself: its drafts are right."""
    with musespark.load(threads=1, drafter=NANO, context=512) as model:
        found = model.chat("What is 17 + 25?", max_new_tokens=60)
        assert any(note.startswith("drafter: ") for note in model.info.notes)
    with musespark.load(threads=1, context=512) as plain:
        assert found.tokens == plain.chat("What is 17 + 25?", max_new_tokens=60).tokens


def test_what_it_takes_is_counted_for_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights, and its keys and values of texts as long as the context."""

    def least(context: int) -> int:
        weights = open_model(None)
        try:
            give_drafter(weights, drafts, context)
            return weights.beside
        finally:
            weights.drafter = None
            weights.close()

    drafts = open_drafter(NANO)
    try:
        bytes_of = [kv_bytes(drafts.spec, "kv8", n) for n in (300, 2048)]
        assert [least(300), least(2048)] == [drafts.info["bytes"] + n for n in bytes_of]
        assert bytes_of[1] - bytes_of[0] > 100_000
    finally:
        drafts.close()
    monkeypatch.setenv("MUSESPARK_MEMORY", "20MiB")
    with pytest.raises(MemoryBudgetExceeded, match=r"the drafter [\d.]+ MiB, the rest"):
        musespark.load(threads=1, drafter=NANO, context=2048)


def test_what_it_takes_is_counted_before_the_model_is_packed(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model alone would fit."""
    monkeypatch.setenv("MUSESPARK_MEMORY", "70MiB")
    drafter = NANO / "packed" / "nano-q8.safetensors"
    with pytest.raises(MemoryBudgetExceeded, match=r"the drafter [\d.]+ MiB, the rest"):
        musespark.load(NANO, threads=1, drafter=drafter, context=2048)
    assert not list(own_cache.rglob("*.safetensors")), "packed first, refused then"
    musespark.load(NANO, threads=1, context=2048).close()


def padded(folder: Path, source: Path, more: int) -> Path:
    """``source`` with so many ids to spare, which no text has."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] += more
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(source / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        spare = np.repeat(tensors[name].mean(0, keepdims=True), more, 0)
        tensors[name] = np.concatenate([tensors[name], spare])
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("larger", ["model", "drafter"])
def test_families_that_pad_their_vocabularies_draft_for_each_other(
    tmp_path: Path, larger: str
) -> None:
    own = chat_folder(tmp_path / "own")
    other = padded(tmp_path / "padded", own, 21)
    source, drafter = (other, own) if larger == "model" else (own, other)
    given = {"threads": 1, "quantize": "none"}
    with musespark.load(source, drafter=drafter, **given) as model:
        found = model.generate("one two three", max_new_tokens=60)
    with musespark.load(source, **given) as plain:
        assert found.tokens == plain.generate("one two three", max_new_tokens=60).tokens
    assert found.timings.drafter_accepted > 0


def test_a_model_with_other_tokens_is_refused(tmp_path: Path) -> None:
    own, other = chat_folder(tmp_path / "own"), chat_folder(tmp_path / "other", None, ("<a>",))
    told = json.loads((other / "tokenizer.json").read_text())
    ids = told["model"]["vocab"]
    one, two = list(ids)[40:42]
    given = {"threads": 1, "quantize": "none"}
    # A marker where the other has none costs a draft and no more.
    musespark.load(own, drafter=other, **given).close()
    ids[one], ids[two] = ids[two], ids[one]
    (other / "tokenizer.json").write_text(json.dumps(told))
    says = f"drafter: token {min(ids[one], ids[two])} is .*, the model's is "
    with pytest.raises(InvalidRequest, match=says):
        musespark.load(own, drafter=other, **given)


def test_what_is_no_drafter_of_this_model_is_refused(folder: Path, tmp_path: Path) -> None:
    encoder = folder_of(tmp_path / "bert", "plain", 11)
    with pytest.raises(InvalidRequest, match=r"drafter: got .* \(bert\), which writes no text"):
        musespark.load(threads=1, drafter=encoder)
    with pytest.raises(InvalidRequest, match="writes no text"):
        musespark.load(encoder, threads=1, drafter=folder)
    with pytest.raises(UnsupportedModel, match="is a block drafter, which writes nothing"):
        musespark.load(folder)
    for change, message in (
        ({"hidden_size": 128}, "hidden is 128, the model's is 192"),
        ({"mask_token_id": 2560}, "mask_token is 2560, the model's vocabulary has 2560"),
        ({"target_layer_ids": [7]}, "target_layers has 7; allowed is 6"),
    ):
        wrong = drafter_folder(tmp_path / str(len(message)), **change)
        with pytest.raises(InvalidRequest, match=message):
            musespark.load(threads=1, drafter=wrong)
    with pytest.raises(InvalidRequest, match="source"):
        musespark.load(threads=1, drafter=tmp_path / "nothing")


def test_timings_add_up(model: musespark.Model) -> None:
    timings = model.generate("one two three four", max_new_tokens=80).timings
    assert timings.drafter_accepted <= timings.accepted_tokens <= timings.drafted_tokens


def test_the_command_takes_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for more in ([], ["--drafter", str(folder)]):
        assert main(["generate", "one two", "-n", "20", "--json", "--context", "256", *more]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["tokens"] == found[1]["tokens"]
    assert found[0]["timings"]["drafter_passes"] == 0
