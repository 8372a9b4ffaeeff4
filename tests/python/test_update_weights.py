"""Weights replaced in a model that runs: the results are those of a model loaded with them."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import musespark
from musespark.errors import Cancelled, InvalidRequest, UnsupportedModel
from musespark.generation import Stream

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
import random_nano_cases as cases  # noqa: E402

from musespark.lab.engine import MusesparkBackend  # noqa: E402

VISION = ("vision_tower", "vision_adapter", "vision_projection")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[tuple[int, str], Path]:
    """Packed files by (seed, recipe)."""
    out = {}
    for seed in (11, 12):
        folder = tmp_path_factory.mktemp(f"seed{seed}")
        cases.write(folder, seed)
        for recipe in ("none", "q8", "q4"):
            out[seed, recipe] = folder.parent / f"{seed}-{recipe}.safetensors"
            musespark.convert(folder, out[seed, recipe], quantize=recipe, progress=False)
    return out


def told(model) -> list[tuple[int, ...]]:
    backend = MusesparkBackend.of(model)
    return [r.tokens for r in backend.reply(cases.items(), cases.NEW_TOKENS)]


@pytest.fixture(scope="module", params=["none", "q8", "q4"])
def quantize(request) -> str:
    return request.param


@pytest.fixture
def model(folders, quantize):
    kv = "f32" if quantize == "none" else "kv8"
    with musespark.load(folders[11, quantize], kv=kv, threads=1) as loaded:
        yield loaded


def test_text_and_pictures_are_those_of_a_model_loaded_so(model, folders, quantize):
    before = told(model)
    identity = model._weights.identity()
    model.update_weights(cases.tensors(12))
    kv = model.info.kv
    with musespark.load(folders[12, quantize], kv=kv, threads=1) as other:
        wanted = told(other)
        assert model.info.weight_formats == other.info.weight_formats
    assert told(model) == wanted
    assert all(a != b for a, b in zip(wanted, before, strict=True))
    assert model._weights.identity() != identity
    assert any("replaced by update_weights" in note for note in model.info.notes)
    model.update_weights(cases.tensors(11))
    assert told(model) == before
    assert sum("replaced by" in note for note in model.info.notes) == 1


@pytest.fixture
def plain(folders):
    with musespark.load(folders[11, "q8"], kv="kv8", threads=1) as loaded:
        yield loaded


def test_without_the_towers_tensors_it_stays(plain):
    given = {n: t for n, t in cases.tensors(12).items() if not any(v in n for v in VISION)}
    assert len(given) < len(cases.tensors(12))
    pixels = cases.items()[2].pictures[0].pixels
    before = plain.encode_image(pixels)
    plain.update_weights(given)
    assert (plain.encode_image(pixels).array == before.array).all()
    with pytest.raises(InvalidRequest, match="another model"):
        plain.chat([{"role": "user", "content": [{"type": "image", "image": before}]}])


def test_what_was_remembered_is_forgotten_and_sessions_go_on(plain):
    session = plain.session()
    session.chat("What is 12 + 30?", max_new_tokens=9)
    fork = session.fork()
    plain.update_weights(cases.tensors(12))
    assert plain.chat("What is 12 + 30?", max_new_tokens=9).usage.cached_tokens == 0
    ours = session.chat("And more?", max_new_tokens=9)
    messages = [*fork.messages, {"role": "user", "content": "And more?"}]
    assert ours.tokens == plain.chat(messages, max_new_tokens=9).tokens
    assert fork.chat("And more?", max_new_tokens=9).tokens == ours.tokens


def test_what_another_engine_kept_is_not_used(folders):
    """Its id is that of something else in the engine that there is now."""
    with musespark.load(folders[11, "q8"], threads=1, prefix_cache=False) as model:

        def asked(base=None):
            options = {"max_new_tokens": 5, "temperature": 0.0}
            request, collector, _ = model._chat_request("What is 7 + 7?", options, retain=True)
            stream = Stream(*model._submit(request, collector, base))
            return stream.drain(), stream.handle.retained

        _, old = asked()
        assert asked(old)[0].usage.cached_tokens > 0
        model.update_weights(cases.tensors(12))
        wanted, new = asked()
        assert new.id == old.id
        given, _ = asked(old)
        assert (given.tokens, given.usage.cached_tokens) == (wanted.tokens, 0)


def test_a_saved_session_is_of_its_weights(plain, tmp_path):
    session = plain.session()
    session.chat("What is 12 + 30?", max_new_tokens=4)
    session.save(tmp_path / "old")
    plain.update_weights(cases.tensors(12))
    with pytest.raises(InvalidRequest, match="model"):
        plain.resume(tmp_path / "old")
    with pytest.warns(musespark.SavedWithoutCache):
        session.save(tmp_path / "new")
    assert plain.resume(tmp_path / "new").messages == session.messages


def test_requests_under_way_are_cancelled(plain):
    """They begin just before the weights change: 1,900 tokens are left to write."""
    streams = []

    def place(weights):
        options = {"max_new_tokens": 1900, "min_new_tokens": 1900, "stream": True}
        streams.extend(plain.generate("a", seed=k, **options) for k in range(8))

    plain._again = replace(plain._again, place=place)
    plain.update_weights(cases.tensors(12))
    for stream in streams:
        with pytest.raises(Cancelled):
            stream.drain()
    assert len(streams) == 8
    assert plain.generate("a", max_new_tokens=4).tokens


EMBED = "model.language_model.embed_tokens.weight"


def changed(**more):
    """The tensors of another seed, with these changes of the embedding or of names."""
    out = cases.tensors(12)
    for name, value in more.items():
        if name == "embed":
            out[EMBED] = value(out[EMBED])
        elif value is None:
            del out[EMBED]
        else:
            out[name] = value
    return out


def with_nan(array):
    array[3, 5] = np.nan
    return array


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (lambda: changed(missing=None), "embed"),
        (lambda: changed(surplus=np.zeros(3, np.float32)), "surplus"),
        (lambda: changed(embed=lambda a: a[:-1]), r"\[2559, 192\], this model has \[2560, 192\]"),
        (lambda: changed(embed=lambda a: a.astype(np.int8)), "dtype int8"),
        (lambda: changed(embed=lambda a: a.astype(np.float64)), "dtype float64"),
        (lambda: changed(embed=with_nan), "not finite"),
        (lambda: changed(**{"lm_head.weight": np.zeros((2560, 192), np.float32)}), "lm_head"),
        (dict, "tensor"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(plain, tensors, said):
    before = plain.generate("a", max_new_tokens=6).tokens
    with pytest.raises(InvalidRequest, match=said):
        plain.update_weights(tensors())
    assert plain.generate("a", max_new_tokens=6).tokens == before


def test_half_precision_is_taken_as_it_is(plain):
    halves = {n: t.astype(np.float16) for n, t in cases.tensors(12).items()}
    plain.update_weights(halves)
    first = told(plain)
    plain.update_weights({n: t.astype(np.float32) for n, t in halves.items()})
    assert told(plain) == first


def test_a_closed_model_and_an_embedding_model_say_what_they_are(folders):
    model = musespark.load(folders[11, "q8"], kv="kv8", threads=1)
    model.close()
    with pytest.raises(musespark.Error, match="closed"):
        model.update_weights(cases.tensors(12))
    model._encoder = object()
    with pytest.raises(UnsupportedModel, match="embedding"):
        model.update_weights({})
