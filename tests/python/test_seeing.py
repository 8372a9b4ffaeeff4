"""Whole models that see, from pixels to tokens: as transformers says, and nothing made twice."""

from __future__ import annotations

import contextlib
import functools
import json
import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import sight_cases

import musespark
from musespark.errors import CorruptFile, UnsupportedModel
from musespark.results import ImageUse
from musespark.vision.opening import open_eyes, why_blind
from musespark.vision.tower import VisionTower
from musespark.weights import open_model, packed
from support.sight_folder import CASES, golden, greedy, messages, sight_folder

FEW = ("qwen3_vl", "gemma3", "idefics3")  # taps and axes, mutual rows, tiles
# Letters alone, so that what was said is the same tokens when it is read again.
_OTHERS = dict.fromkeys(range(94, sight_cases.VOCAB), -1e4)
FOUR: dict[str, Any] = {"max_new_tokens": 4, "logit_bias": _OTHERS}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """name -> the loaded model of a case, as stored."""
    models: dict[str, musespark.Model] = {}

    def open_one(name: str) -> musespark.Model:
        if name not in models:
            folder = sight_folder(tmp_path_factory.mktemp("sight") / name, name)
            models[name] = musespark.load(folder, quantize="none", kv="f32", threads=2)
        return models[name]

    yield open_one
    for model in models.values():
        model.close()


@pytest.fixture
def tower_calls(monkeypatch) -> Callable[[musespark.Model], int]:
    """How often a model's tower was run, since the test began."""
    counts: dict[int, int] = {}
    encode = VisionTower.encode

    def counted(self, *given):
        counts[id(self)] = counts.get(id(self), 0) + 1
        return encode(self, *given)

    monkeypatch.setattr(VisionTower, "encode", counted)
    return lambda model: counts.get(id(model._eyes.tower), 0)


@pytest.mark.parametrize("count", range(sight_cases.MOST_IMAGES + 1))
@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_transformers(opened, name: str, count: int) -> None:
    model, expected = opened(name), golden(name)
    request, _ = model._requests.chat(messages(name, count), {})
    ids = request.tokens.copy()
    rows = ids < 0
    ids[rows] = sight_cases.ID[CASES[name].image_token]
    assert np.array_equal(ids, expected[f"prompt_{count}"])
    result = greedy(model, name, count)
    assert list(result.tokens) == expected[f"tokens_{count}"].tolist()
    assert result.usage.image_tokens == rows.sum()
    assert (result.images.count if result.images else 0) == count


# ---- nothing twice ------------------------------------------------------------------------------


def new_tokens(first: Any, second: Any) -> int:
    """Of a turn's prompt that no turn before had."""
    return second.usage.prompt_tokens - first.usage.prompt_tokens - len(first.tokens) + 1


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", FEW)
def test_a_follow_up_encodes_nothing_and_computes_the_new_text(
    opened, tower_calls, name: str, count: int
) -> None:
    model = opened(name)
    session = model.session()
    *_, last = messages(name, count)
    first = session.chat(last, **FOUR)
    before = tower_calls(model)
    second = session.chat("And now?", **FOUR)
    assert tower_calls(model) == before
    images = last_images(last)
    assert (second.images.count, second.images.known) == (images, images)
    assert second.usage.prompt_tokens - second.usage.cached_tokens <= new_tokens(first, second)
    third = session.chat("And then?", **FOUR)
    assert (tower_calls(model), third.images.known) == (before, images)
    # The same words to a model that has seen nothing: from memory alone nothing differs.
    alone = model.chat([*session.messages[:-1]], **FOUR)
    assert alone.tokens == third.tokens


def last_images(message: dict) -> int:
    return sum(part["type"] == "image" for part in message["content"])


@pytest.mark.parametrize("name", FEW)
def test_what_was_asked_in_one_chat_is_known_in_the_next(opened, tower_calls, name: str) -> None:
    model = opened(name)
    talk = messages(name, 2)
    first = greedy(model, name, 2)
    before = tower_calls(model)
    again = [*talk, first.message, {"role": "user", "content": "And now?"}]
    second = model.chat(again, **FOUR)
    assert (tower_calls(model), second.images.encoded) == (before, 0)
    assert second.usage.cached_tokens > 0


@pytest.mark.parametrize("name", FEW)
def test_a_session_from_a_file_encodes_nothing(opened, tower_calls, tmp_path, name: str) -> None:
    model = opened(name)
    session = model.session()
    first = session.chat(messages(name, 2)[0], **FOUR)
    session.save(tmp_path / "s")
    expected = session.chat("And now?", **FOUR, logprobs=1)
    folder = sight_folder(tmp_path / "m", name)
    with musespark.load(folder, quantize="none", kv="f32", threads=1) as other:
        resumed = other.resume(tmp_path / "s")
        found = resumed.chat("And now?", **FOUR, logprobs=1)
        assert tower_calls(other) == 0
        assert found.images == ImageUse(count=2, tokens=first.usage.image_tokens)
        assert found.usage.prompt_tokens - found.usage.cached_tokens <= new_tokens(first, found)
        assert (found.tokens, found.logprobs) == (expected.tokens, expected.logprobs)
        # Its messages hold the images: they can be computed again.
        fresh = other.chat(resumed.messages[:-1], **FOUR, logprobs=1)
        assert fresh.tokens == expected.tokens


def test_folders_remember_for_the_next_process(tmp_path, tower_calls) -> None:
    name = "qwen3_vl"
    folder = sight_folder(tmp_path / "m", name)
    where = {"image_folder": tmp_path / "i", "quantize": "none", "kv": "f32", "threads": 1}
    with musespark.load(folder, **where) as model:
        expected = greedy(model, name, 2, logprobs=1)
        assert (expected.images.encoded, tower_calls(model)) == (2, 1)  # both in one batch
        embedding = model.encode_image(CASES[name].image(0))
    with musespark.load(folder, **where) as model:
        found = greedy(model, name, 2, logprobs=1)
        assert (found.images.from_disk, tower_calls(model)) == (2, 0)
        assert (found.tokens, found.logprobs) == (expected.tokens, expected.logprobs)
        again = model.encode_image(CASES[name].image(0))
        assert np.array_equal(again.array, embedding.array)
        assert len(again.taps) == 2
        assert [t.tobytes() for t in again.taps] == [t.tobytes() for t in embedding.taps]
    # Other settings of the processor are other rows.
    other = sight_folder(tmp_path / "o", name, image_mean=[0.4, 0.5, 0.6])
    with musespark.load(other, **where) as model:
        assert greedy(model, name, 1).images.from_disk == 0


def test_a_folder_of_prefixes_spares_the_tower(tmp_path, tower_calls) -> None:
    name = "gemma3"
    folder = sight_folder(tmp_path / "m", name)
    where = {"prefix_folder": tmp_path / "p", "quantize": "none", "kv": "kv8", "threads": 1}
    text = {"type": "text", "text": "word " * 40}
    talk = [{"role": "user", "content": [*messages(name, 2)[0]["content"], text]}]
    with musespark.load(folder, **where) as model:
        expected = model.chat(talk, **FOUR, logprobs=1)
        assert tower_calls(model) == 1
    with musespark.load(folder, **where) as model:
        found = model.chat(talk, **FOUR, logprobs=1)
        assert (tower_calls(model), found.images.known) == (0, 2)
        assert (found.tokens, found.logprobs) == (expected.tokens, expected.logprobs)


def test_forks_and_batches_share_what_was_seen(opened, tower_calls) -> None:
    name = "idefics3"
    model = opened(name)
    session = model.session()
    session.chat(messages(name, 2)[0], **FOUR)
    before = tower_calls(model)
    forks = [session.fork() for _ in range(3)]
    said = [fork.chat(f"Number {i}?", **FOUR) for i, fork in enumerate(forks)]
    assert tower_calls(model) == before
    assert {result.images.known for result in said} == {2}
    batch = model.chat_batch([messages(name, n) for n in range(5)], **FOUR, logprobs=1)
    alone = [model.chat(messages(name, n), **FOUR, logprobs=1) for n in range(5)]
    assert [r.logprobs for r in batch] == [r.logprobs for r in alone]


# ---- packed -------------------------------------------------------------------------------------


def test_a_packed_file_sees(opened, tmp_path) -> None:
    name = "qwen3_vl"
    folder = sight_folder(tmp_path / "m", name)
    said = musespark.convert(folder, tmp_path / "p.safetensors", quantize="none")
    assert not said["ignored"]
    with musespark.load(tmp_path / "p.safetensors", kv="f32", threads=1) as model:
        assert list(greedy(model, name, 3).tokens) == golden(name)["tokens_3"].tolist()
    report = musespark.inspect(tmp_path / "p.safetensors", verify=True)
    names = {tensor["name"] for tensor in report["tensors"]}
    assert {"vision.patch", "vision.taps.1.1", "layers.0.q"} <= names


def numbers_of(values: Any, *path: Any) -> Iterator[tuple]:
    """Where numbers, words and switches stand in a nested value; of a list in its first entry."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from numbers_of(value, *path, key)
    elif isinstance(values, list):
        yield from numbers_of(values[0], *path, 0) if values else ()
    else:
        yield path


def test_a_tower_that_a_file_makes_up_is_refused(tmp_path) -> None:
    """Its checksum is right: whoever made the file wrote it so."""
    name = "qwen3_vl"
    path = tmp_path / "p.safetensors"
    musespark.convert(sight_folder(tmp_path / "m", name), path, quantize="none")
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = header.pop("__metadata__")["musespark"]
    places = [*numbers_of(json.loads(text)["vision"])]
    assert len(places) > 60
    refused = 0
    for *way, last in places:
        for wrong in (-1, 0, 2**39, 1e308, "x", None, [], {}):
            head = json.loads(text)
            inner = functools.reduce(operator.getitem, way, head["vision"])
            if wrong == inner[last]:
                continue
            inner[last] = wrong
            path.write_bytes(packed._encode(head, header) + data[8 + length :])
            try:
                weights = open_model(path)
            except (CorruptFile, UnsupportedModel):
                refused += 1
                continue
            with contextlib.closing(weights):
                eyes = open_eyes(weights, 1, cache_bytes=0, folder=None)
                refused += eyes is None
                assert eyes or why_blind(weights)
    assert refused > 7 * len(places)


@pytest.mark.parametrize("name", FEW)
def test_packed_to_8_bits_the_rows_stay(opened, tmp_path, name: str) -> None:
    exact = opened(name)
    with musespark.load(sight_folder(tmp_path / "m", name), quantize="q8", threads=1) as model:
        assert model.info.weight_formats["q8"] > 0
        for i in range(2):
            wanted, found = (m.encode_image(CASES[name].image(i)).array for m in (exact, model))
            cosine = (wanted * found).sum() / np.sqrt((wanted**2).sum() * (found**2).sum())
            assert 0.999 < cosine < 1 - 1e-9


def test_the_tower_is_counted_and_placed_with_the_weights(opened, tmp_path) -> None:
    name = "qwen3_vl"
    folder = sight_folder(tmp_path / "m", name)
    one = musespark.estimate(folder, context=64).needs[0]
    with musespark.load(folder, quantize=one.quantize, huge_pages=True, threads=1) as model:
        assert model.info.weight_bytes == one.weights
        assert greedy(model, name, 1).images.encoded == 1
