"""Control vectors as a user meets them, on the embedded model: files, calibration, steer."""

from __future__ import annotations

import gc
import json
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from tests.python.test_lora_model import nano_adapter

import musespark
from musespark import ControlVector, CorruptFile, InvalidRequest, UnsupportedModel
from musespark.weights.control_vectors import KIND
from support import gguf_bytes as gguf
from support.model_folder import safetensors_bytes

TEXT = "Once upon a time"
QUESTION = "What is 23 + 45?"
POSITIVE = ["The sun shines and all are glad.", "What a lovely, happy day."]
NEGATIVE = ["The rain falls and all are sad.", "What an awful, gloomy day."]
NEUTRAL = ["Seven and eight make fifteen.", "The table has four legs."]
SETTINGS = {"max_new_tokens": 24, "temperature": 0.8, "seed": 5}
HIDDEN, LAYERS = 192, 8


@pytest.fixture(scope="module")
def model():
    with musespark.load(context=512, threads=1) as loaded:
        yield loaded


def random_vector(seed: int = 1, layers: tuple[int, ...] = (2, 5), size: float = 1.0):
    rng = np.random.default_rng(seed)
    return ControlVector({i: size * rng.standard_normal(HIDDEN) for i in layers})


@pytest.fixture(scope="module")
def calibrated(model) -> ControlVector:
    return ControlVector.calibrate(model, POSITIVE, NEGATIVE, neutral=NEUTRAL, max_kl=0.05)


# ---- a vector and its files ---------------------------------------------------------------------


def test_a_vector_says_what_it_is() -> None:
    given = np.ones(4)
    vector = ControlVector({7: given, 3: given})
    assert (vector.layers, vector.hidden, vector.model, vector.kl) == ((3, 7), 4, "", None)
    given[0] = 9.0
    assert vector.directions[3].tolist() == [1.0] * 4, "a view of the caller's array"
    with pytest.raises(ValueError, match="read-only"):
        vector.directions[3][0] = 2.0
    with pytest.raises(TypeError):
        vector.directions[3] = given
    assert repr(vector) == "<musespark.ControlVector of 4 on layers 3, 7>"
    assert vector.scaled(-0.5).directions[7].tolist() == [-0.5] * 4


@pytest.mark.parametrize(
    ("directions", "text"),
    [
        ({}, "directions: got none, allowed is one or more"),
        ({-1: [1.0]}, "directions: layer: got -1, allowed is an integer >= 0"),
        ({"a": [1.0]}, "directions: layer: got 'a'"),
        ({0: [[1.0]]}, r"directions\[0\]: got shape \(1, 1\), allowed is \(hidden,\)"),
        ({0: []}, r"directions\[0\]: got shape \(0,\)"),
        ({0: [1.0, np.nan]}, r"directions\[0\]: got a number that is not finite"),
        ({0: [1.0], 4: [np.inf]}, r"directions\[4\]: got a number that is not finite"),
        ({0: [1.0, 2.0], 4: [1.0]}, r"directions\[4\]: got 1 numbers, allowed is 2"),
    ],
)
def test_directions_that_are_none(directions, text) -> None:
    with pytest.raises(InvalidRequest, match=text):
        ControlVector(directions)


def test_what_is_saved_is_loaded(calibrated, tmp_path) -> None:
    calibrated.save(tmp_path / "v.safetensors")
    found = ControlVector.load(str(tmp_path / "v.safetensors"))
    assert (found.model, found.max_kl, found.kl) == (calibrated.model, 0.05, calibrated.kl)
    assert found.layers == calibrated.layers == tuple(range(LAYERS - 1))
    for layer, direction in calibrated.directions.items():
        np.testing.assert_array_equal(found.directions[layer], direction)
    random_vector().save(tmp_path / "v.safetensors")  # in its place
    other = ControlVector.load(tmp_path / "v.safetensors")
    assert (other.layers, other.model, other.kl) == ((2, 5), "", None)
    with pytest.raises(musespark.WriteFailed):
        calibrated.save(tmp_path / "no folder" / "v")


def cvector(directions: dict[int, np.ndarray], arch: str = "controlvector", kind: int = 0) -> bytes:
    """A file as llama.cpp's tools/cvector-generator writes it; kind 0 is F32."""
    keys = [
        gguf.key("general.architecture", gguf.STRING, arch),
        gguf.key("controlvector.model_hint", gguf.STRING, "llama"),
        gguf.key("controlvector.layer_count", gguf.I32, len(directions)),
    ]
    infos, data = [], b""
    for layer, direction in directions.items():
        infos.append(gguf.info(f"direction.{layer}", [len(direction)], kind, len(data)))
        data += direction.astype("<f4").tobytes()
        data += bytes(-len(data) % 32)
    return gguf.file_bytes(keys, infos, data)


def test_a_control_vector_of_llama_cpp(tmp_path) -> None:
    """direction.N is added behind block N, blocks counted from 0: as here."""
    directions = {i: np.random.default_rng(i).standard_normal(HIDDEN) for i in (1, 3, 7)}
    (tmp_path / "v.gguf").write_bytes(cvector(directions))
    vector = ControlVector.load(tmp_path / "v.gguf")
    assert (vector.layers, vector.model) == ((1, 3, 7), "")
    for layer, direction in directions.items():
        np.testing.assert_array_equal(vector.directions[layer], direction.astype(np.float32))


def ours(metadata: dict[str, str], tensors: dict[str, np.ndarray]) -> bytes:
    """A safetensors file with metadata."""
    whole = safetensors_bytes(tensors)
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.dumps({"__metadata__": metadata, **json.loads(whole[8 : 8 + size])}).encode()
    return struct.pack("<Q", len(header)) + header + whole[8 + size :]


GOOD, ONE = {"kind": KIND, "version": "1"}, np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (cvector({1: ONE}, arch="llama"), UnsupportedModel, "'llama', not 'controlvector'"),
        (cvector({0: ONE}), CorruptFile, "'direction.0': allowed is direction.N, N from 1"),
        (cvector({1: ONE, 2: np.ones(8)}), CorruptFile, "has 8 numbers, another has 4"),
        (cvector({1: np.full(4, np.nan)}), CorruptFile, "a number that is not finite"),
        (cvector({}), CorruptFile, "there are no directions"),
        (cvector({1: ONE}, kind=1), CorruptFile, r"is F16 \[4\]; F32 of one dimension"),
        (ours({}, {"direction.1": ONE}), UnsupportedModel, "it is no control vector"),
        (ours({**GOOD, "version": "9"}, {"direction.1": ONE}), InvalidRequest, "got '9', allowed"),
        (ours(GOOD, {"direction.x": ONE}), CorruptFile, "allowed is direction.N, N from 0"),
        (ours(GOOD, {"weight": ONE}), CorruptFile, "'weight': allowed is direction.N"),
        (ours(GOOD, {"direction.1": ONE[None]}), CorruptFile, r"is F32 \[1, 4\]; F32 of one"),
        (ours({**GOOD, "kl": "much"}, {"direction.1": ONE}), CorruptFile, "could not convert"),
        (b"no file of either kind, at all", CorruptFile, "header length"),
    ],
)
def test_files_that_are_no_control_vector(data, error, text, tmp_path) -> None:
    path = tmp_path / "v"
    path.write_bytes(data)
    with pytest.raises(error, match=text):
        ControlVector.load(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        ControlVector.load(tmp_path / "other")


# ---- steer --------------------------------------------------------------------------------------


def test_every_request_or_those_that_name_it(model) -> None:
    plain = model.generate(TEXT, **SETTINGS).tokens
    with model.steer(random_vector()) as steering:
        steered = model.generate(TEXT, **SETTINGS).tokens
        assert steered != plain
        assert model.generate(TEXT, steering=steering, **SETTINGS).tokens == steered
        assert model.generate(TEXT, steering="off", **SETTINGS).tokens == plain
        assert "layers 2, 5, strength 1" in repr(steering) and not steering.removed
        assert model.info.adapters[-1].endswith("every request")
    assert steering.removed and "removed" in repr(steering)
    assert model.generate(TEXT, **SETTINGS).tokens == plain
    with model.steer(random_vector(), everywhere=False) as named:
        assert model.generate(TEXT, **SETTINGS).tokens == plain
        assert model.generate(TEXT, steering=named, **SETTINGS).tokens == steered
        named.remove()
        with pytest.raises(InvalidRequest, match="steering: it was removed"):
            model.generate(TEXT, steering=named)
    assert not model.info.adapters


def test_a_batch_mixes(model) -> None:
    one = model.steer(random_vector(1), everywhere=False)
    two = model.steer(random_vector(2), [5], -0.7, everywhere=False)
    with one, two:
        chosen = [one, None, two, one, "off"]
        alone = [model.generate(TEXT, steering=s, **SETTINGS).tokens for s in chosen]
        assert alone[0] == alone[3] and alone[1] == alone[4]
        assert len({alone[0], alone[1], alone[2]}) == 3
        together = model.generate_batch([TEXT] * 5, steering=chosen, **SETTINGS)
        assert [r.tokens for r in together] == alone
        with pytest.raises(InvalidRequest, match="steering: got 2 of them, allowed is one or 3"):
            model.generate_batch([TEXT] * 3, steering=[one, None])


def test_layers_and_strength_are_what_is_added(model) -> None:
    """A range, a list and a strength give the logits of the vector that has just these numbers."""
    ids = model.tokenizer.encode(TEXT)
    vector = random_vector(3, (1, 3, 4, 6))
    same = {i: np.float32(0.5) * vector.directions[i] for i in (3, 4)}
    with model.steer(ControlVector(same)):
        wanted = model.logits(ids)
    for layers in ((3, 5), (2, 4), [4, 3]):
        with model.steer(vector, layers, 0.5) as steering:
            assert steering.layers == (3, 4) and steering.strength == 0.5
            np.testing.assert_array_equal(model.logits(ids), wanted)
            assert np.abs(model.logits(ids, steering="off") - wanted).max() > 0.01
            np.testing.assert_array_equal(model.score(ids, steering=steering), model.score(ids))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"everywhere": "no"}, "everywhere: got 'no', allowed is True or False"),
        ({"check": 3}, "check: got 3, allowed is True or False"),
        ({"layers": (0, 10**12)}, r"layers: got \(0, 1000000000000\), allowed is None"),
    ],
)
def test_what_steer_does_not_know_is_refused(model, given, says) -> None:
    with pytest.raises(InvalidRequest, match=says):
        model.steer(random_vector(), **given)


def test_over_an_adapter(model, tmp_path) -> None:
    """Both at once; a closed adapter takes what was laid over it along."""
    lora = model.load_adapter(nano_adapter(tmp_path / "a", model, 1))
    with model.steer(random_vector()) as steering:
        both = model.generate(TEXT, adapter=lora, **SETTINGS).tokens
        one = model.generate(TEXT, adapter=lora, steering="off", **SETTINGS).tokens
        assert len({both, one, model.generate(TEXT, **SETTINGS).tokens}) == 3
        assert model._engine.stats()["adapters"] == 3
        lora.close()
        assert model._engine.stats()["adapters"] == 1
        with pytest.raises(InvalidRequest, match="is closed"):
            model.generate(TEXT, adapter=lora)
        assert not steering.removed
    assert model._engine.stats()["adapters"] == 0


def test_one_that_is_removed_meanwhile_is_not_an_error_of_others(model, monkeypatch) -> None:
    """Another thread's ``with`` block ends while a request that names nothing asks for its id."""
    steering = model.steer(random_vector())
    monkeypatch.setattr(model._adapters, "steering_of", lambda given: steering)
    assert model._adapters.chosen({}) is not None
    steering.remove()
    assert model._adapters.chosen({}) is None
    with pytest.raises(InvalidRequest, match="it was removed"):
        model._adapters.chosen({"steering": steering})


def test_threads_steer_and_ask(model) -> None:
    """Each thread's requests have its own vectors, while others come and go over one adapter."""
    vectors = [random_vector(i) for i in (1, 2)]
    wanted = []
    for vector in vectors:
        with model.steer(vector):
            wanted.append(model.generate(TEXT, **SETTINGS).tokens)
    wrong: list = []

    def use(index: int) -> None:
        for turn in range(4):
            with model.steer(vectors[index % 2], everywhere=False) as steering:
                got = model.generate(TEXT, steering=steering, **SETTINGS).tokens
            if got != wanted[index % 2]:
                wrong.append((index, turn))

    threads = [threading.Thread(target=use, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and not model.info.adapters


def test_the_last_handle_is_the_vector(model) -> None:
    """One that nobody holds is gone; one of every request stays until it is removed."""
    model.steer(random_vector(), everywhere=False)
    gc.collect()
    assert model._engine.stats()["adapters"] == 0
    model.steer(random_vector())
    gc.collect()
    assert model._engine.stats()["adapters"] == 1
    model._adapters.steering_of(None).remove()
    assert model._engine.stats()["adapters"] == 0


def test_the_model_goes_first() -> None:
    model = musespark.load(context=64, threads=1)
    steering = model.steer(random_vector())
    model.close()
    assert steering.removed
    steering.remove()
    with pytest.raises(musespark.Error, match="closed"):
        model.steer(random_vector())


def test_what_cannot_steer(model, calibrated, tmp_path) -> None:
    wide = ControlVector({2: np.ones(HIDDEN + 1)})
    deep = ControlVector({LAYERS: np.ones(HIDDEN)})
    foreign = ControlVector(calibrated.directions, "0123456789abcdef")
    for given, text in (
        ((wide,), "vector: got width 193, the model has 192"),
        ((deep,), "vector: got layer 8, the model has 0 to 7"),
        ((foreign,), "calibrated for weights 0123456789abcdef, the model has .*check=False"),
        ((3,), "vector: got 3, allowed is a ControlVector or the path of one"),
        ((calibrated, (9, 12)), r"layers: got \(9, 12\), allowed is None, \(first, last\)"),
        ((calibrated, (1, 2, 3)), r"layers: got \(1, 2, 3\)"),
        ((calibrated, [1, 7]), r"layers: got \[1, 7\]"),
        ((calibrated, []), r"layers: got \[\]"),
        ((calibrated, "all"), "layers: got 'all'"),
        ((calibrated, [-1]), "layers: got -1, allowed is an integer >= 0"),
        ((calibrated, None, np.nan), "strength: got nan, allowed is a number"),
    ):
        with pytest.raises(InvalidRequest, match=text):
            model.steer(*given)
    with model.steer(foreign, check=False), pytest.raises(InvalidRequest, match="remove that firs"):
        model.steer(calibrated)
    calibrated.save(tmp_path / "v")
    with model.steer(tmp_path / "v") as steering:
        assert steering.layers == calibrated.layers
        with pytest.raises(InvalidRequest, match="update_weights: adapters are loaded"):
            model.update_weights({})
    for wrong in (steering.checksum, 3, calibrated):
        with pytest.raises(InvalidRequest, match=r"steering: got .*'off' or what this"):
            model.generate(TEXT, steering=wrong)
    with (
        musespark.load(context=64, threads=1) as other,
        other.steer(calibrated) as theirs,
        pytest.raises(InvalidRequest, match="steering: got"),
    ):
        model.generate(TEXT, steering=theirs)


# ---- sessions and prefixes ----------------------------------------------------------------------


def test_a_session_has_one_for_all_its_turns(model, tmp_path) -> None:
    greedy = {"max_new_tokens": 20, "temperature": 0.0}
    with model.steer(random_vector()) as steering:
        session = model.session()
        session.chat(QUESTION, **greedy)
        with pytest.raises(InvalidRequest, match="steering: a session has one for all its turns"):
            session.chat("More?", steering="off")
        plain = model.session(steering="off")
        plain.chat(QUESTION, **greedy)
        session.save(tmp_path / "steered")
        plain.save(tmp_path / "plain")
        second = session.chat("And 7 + 8?", **greedy)
        assert second.usage.cached_tokens > 0
        assert second.tokens == model.chat(session.messages[:-1], **greedy).tokens
        resumed = model.resume(tmp_path / "steered")
        again = resumed.chat("And 7 + 8?", **greedy)
        assert again.tokens == second.tokens and again.usage.cached_tokens > 0
    unsteered = model.resume(tmp_path / "plain").chat("And 7 + 8?", **greedy)
    assert unsteered.usage.cached_tokens > 0
    assert unsteered.tokens == plain.chat("And 7 + 8?", **greedy).tokens
    with pytest.raises(InvalidRequest, match=f"adapter: {steering.checksum} is needed, the model"):
        model.resume(tmp_path / "steered")
    with pytest.raises(InvalidRequest, match="it was removed"):
        session.chat("And now?")


def test_pages_on_disk_are_those_of_the_same_vector(tmp_path) -> None:
    document = "The sun and the moon and the stars. " * 40

    def answer(folder: Path | None, seed: int | None) -> tuple:
        with musespark.load(context=1024, threads=1, prefix_folder=folder) as model:
            if seed is not None:
                model.steer(random_vector(seed))
            result = model.generate(document, max_new_tokens=6, temperature=0.0)
            return result.tokens, result.usage.cached_tokens

    alone = [answer(None, seed)[0] for seed in (None, 1, 2)]
    folder = tmp_path / "p"
    assert [answer(folder, seed) for seed in (None, 1, 2)] == [(t, 0) for t in alone]
    again = [answer(folder, seed) for seed in (None, 1, 2)]
    assert [tokens for tokens, _ in again] == alone
    assert all(cached >= 256 for _, cached in again)


# ---- calibration --------------------------------------------------------------------------------


def states_of(model, text: str, first: int | None = None) -> np.ndarray:
    ids = model._requests.ids(text, "text")
    request = musespark.events.Request(
        tokens=ids, logits="states", logits_from=len(ids) - 1 if first is None else first
    )
    rows = model._engine.submit(request).result().logits.astype(np.float64)
    return rows.mean(0).reshape(LAYERS - 1, HIDDEN)


def test_the_direction_is_the_mean_difference(model, calibrated) -> None:
    wanted = np.mean(
        [
            states_of(model, p) - states_of(model, n)
            for p, n in zip(POSITIVE, NEGATIVE, strict=True)
        ],
        axis=0,
    )
    scale = np.linalg.norm(calibrated.directions[3]) / np.linalg.norm(wanted[3])
    for layer, direction in calibrated.directions.items():
        np.testing.assert_allclose(direction, scale * wanted[layer], rtol=1e-4, atol=1e-6)


def test_the_mean_is_over_what_a_pair_does_not_share(model) -> None:
    ids = [model._requests.ids(t, "t").tolist() for t in (POSITIVE[0], NEGATIVE[0])]
    shared = next(i for i, (a, b) in enumerate(zip(*ids, strict=False)) if a != b)
    assert shared > 0
    vector = ControlVector.calibrate(
        model, POSITIVE[:1], NEGATIVE[:1], neutral=NEUTRAL, pool="mean", layers=[4]
    )
    wanted = states_of(model, POSITIVE[0], shared) - states_of(model, NEGATIVE[0], shared)
    scale = np.linalg.norm(vector.directions[4]) / np.linalg.norm(wanted[4])
    assert vector.layers == (4,)
    np.testing.assert_allclose(vector.directions[4], scale * wanted[4], rtol=1e-4, atol=1e-6)


def kl(before: np.ndarray, after: np.ndarray) -> float:
    """Written out: the mean over rows of sum p (log p - log q)."""
    p, q = (np.exp(x.astype(np.float64) - x.max(1, keepdims=True)) for x in (before, after))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    return float((p * np.log(p / q)).sum(1).mean())


@pytest.mark.parametrize("most", [0.001, 0.05, 1.0])
def test_the_bound_holds_on_the_texts_and_is_used(model, most: float) -> None:
    vector = ControlVector.calibrate(model, POSITIVE, NEGATIVE, neutral=NEUTRAL, max_kl=most)
    assert vector.max_kl == most and 0.9 * most < vector.kl <= most
    assert vector.divergence(model, NEUTRAL) == vector.kl
    ids = [model._requests.ids(text, "t") for text in NEUTRAL]
    before = np.concatenate([model.logits(i) for i in ids])
    with model.steer(vector):
        after = np.concatenate([model.logits(i) for i in ids])
        assert vector.divergence(model, NEUTRAL) == vector.kl, "measured against a steered model"
    assert kl(before, after) == pytest.approx(vector.kl, rel=1e-6)
    assert vector.divergence(model, NEUTRAL, 2.0) > vector.kl
    assert vector.divergence(model, NEUTRAL, 0.0) == 0.0


def test_the_text_of_the_package_serves_where_none_is_given(model) -> None:
    vector = ControlVector.calibrate(model, POSITIVE, NEGATIVE, layers=(2, 3), max_kl=0.02)
    assert vector.layers == (2, 3) and 0 < vector.kl <= 0.02
    assert vector.model == model._weights.identity()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"positive": []}, r"positive: got \[\], allowed is a list of texts"),
        ({"negative": "one"}, "negative: got 'one', allowed is a list of texts"),
        ({"negative": NEGATIVE[:1]}, "negative: got 1 texts, allowed is 2, as many as positive"),
        ({"negative": POSITIVE}, "positive: got texts with the states of the negative ones"),
        ({"neutral": []}, r"neutral: got \[\], allowed is a list of texts"),
        ({"neutral": [NEGATIVE[1]]}, r"neutral\[0\]: it is one of the pairs' texts"),
        ({"max_kl": -1}, "max_kl: got -1, allowed is a number of nats"),
        ({"max_kl": 0}, "max_kl: got 0.0, allowed is more"),
        ({"pool": "first"}, r"pool: got 'first', allowed is one of \['last', 'mean'\]"),
        ({"layers": [7]}, r"layers: got \[7\], allowed is .*\[0, 1, 2, 3, 4, 5, 6\]"),
        ({"positive": [[], [5]]}, r"positive\[0\]: no tokens"),
    ],
)
def test_what_cannot_be_calibrated(model, given, text) -> None:
    told = {"positive": POSITIVE, "negative": NEGATIVE, "neutral": NEUTRAL} | given
    positive, negative = told.pop("positive"), told.pop("negative")
    with pytest.raises(InvalidRequest, match=text):
        ControlVector.calibrate(model, positive, negative, **told)
    assert not model.info.adapters, "a vector was left on"


def test_thresholds_of_the_model_are_not_those_of_a_steered_one(model, monkeypatch) -> None:
    """What was calibrated for the model says nothing of its steered thoughts."""
    asked: list[int] = []
    monkeypatch.setattr(model._requests, "calibrated", lambda: asked.append(1))
    model.chat(QUESTION, max_new_tokens=5)
    assert len(asked) == 1
    with model.steer(random_vector(size=0.01)):
        model.chat(QUESTION, max_new_tokens=5)
        assert len(asked) == 1
        model.chat(QUESTION, max_new_tokens=5, steering="off")
    assert len(asked) == 2
