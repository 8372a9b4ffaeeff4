"""GGUF models that see: projector files (mmproj) beside them, as llama.cpp writes the pair."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import processor_cases
import pytest
import sight_cases

import musespark
from musespark import _core
from musespark.errors import InvalidRequest, UnsupportedModel
from musespark.vision.opening import why_blind
from musespark.weights import open_model
from support.sight_folder import BYTES_ALONE, CASES, golden, greedy

gguf = pytest.importorskip("gguf")
from support.gguf_models import plain, quantized  # noqa: E402
from support.mmproj_models import (  # noqa: E402
    PAIRS,
    model_folder,
    write_pair,
    write_projector,
    write_text,
)

AS_STORED: dict[str, Any] = {"quantize": "none", "kv": "f32", "threads": 2, "progress": False}
# A picture in which Qwen2.5-VL has several windows of 112 pixels.
LARGE = processor_cases.scene(260, 190, seed=7)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUSESPARK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory, cache):
    """name -> (the model as a folder of transformers, a folder with the pair)."""
    made: dict[str, tuple[Path, Path]] = {}

    def one(name: str) -> tuple[Path, Path]:
        if name not in made:
            root = tmp_path_factory.mktemp("mmproj")
            (root / "hf").mkdir()
            model_folder(root / "hf", name)
            write_pair(root / "hf", name, root / "pair")
            made[name] = root / "hf", root / "pair"
        return made[name]

    return one


@pytest.fixture
def pair(folders, tmp_path) -> Any:
    """name -> a pair's folder of one's own."""

    def copied(name: str) -> Path:
        return Path(shutil.copytree(folders(name)[1], tmp_path / f"{name} copy"))

    return copied


# ---- the same as a folder -----------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRS)
def test_rows_and_tokens_are_those_of_the_folder(folders, name: str) -> None:
    folder, files = folders(name)
    sight = PAIRS[name].sight
    with musespark.load(folder, **AS_STORED) as theirs:
        rows = [theirs.encode_image(picture) for picture in (CASES[sight].image(1), LARGE)]
        said = [greedy(theirs, sight, count) for count in (0, 2, 4)]
        family = theirs.info.family
    with musespark.load(files / "model.gguf", **AS_STORED) as ours:  # the tower lies beside it
        assert ours.info.family == family
        for row, picture in zip(rows, (CASES[sight].image(1), LARGE), strict=True):
            found = ours.encode_image(picture)
            # The two frames of a patch of Muse's come as their sum.
            bound = 2e-6 if name == "muse_glimmer" else 0
            for a, b in zip((row.array, *row.taps), (found.array, *found.taps), strict=True):
                assert np.abs(a - b).max() <= bound * np.ptp(a)
        for one, count in zip(said, (0, 2, 4), strict=True):
            found = greedy(ours, sight, count)
            assert list(found.tokens) == list(one.tokens)
            assert found.usage.prompt_tokens == one.usage.prompt_tokens
            assert found.usage.image_tokens == one.usage.image_tokens
            assert found.usage.image_tokens or not count


def _scaled(writer: Any) -> None:
    """As the files of Gemma 3 from 4B on say it."""
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(8.0)


@pytest.mark.parametrize("name", PAIRS)
def test_the_text_is_what_it_is_alone(folders, tmp_path, name: str) -> None:
    """But for rows of an image that see each other, and the family that has a name for both."""
    folder, files = folders(name)
    more = {"more": _scaled} if name == "gemma3" else {}
    text = write_text(folder, name, tmp_path / "text.gguf", **more)
    alone = open_model(text, quantize="none", progress=False)
    both = open_model(text, quantize="none", mmproj=files / "mmproj-model.gguf", progress=False)
    assert both.spec == dataclasses.replace(alone.spec, mutual_rows=name == "gemma3")
    assert alone.tensors.keys() == both.tensors.keys()
    for tensor, (form, rows, cols, data) in alone.tensors.items():
        assert both.tensors[tensor][:3] == (form, rows, cols)
        np.testing.assert_array_equal(np.asarray(both.tensors[tensor][3]), np.asarray(data))
    assert "images: read with mmproj-model.gguf" in both.info["notes"]
    assert set(alone.info["notes"]) <= set(both.info["notes"])


@pytest.mark.parametrize("name", ["idefics3", "llava"])
def test_tokens_are_those_of_transformers(folders, name: str) -> None:
    """Where the files say all of the case of make_sight.py."""
    with musespark.load(folders(name)[1] / "model.gguf", **AS_STORED) as model:
        for count in (1, 3):
            found = list(greedy(model, PAIRS[name].sight, count).tokens)
            assert found == golden(PAIRS[name].sight)[f"tokens_{count}"].tolist()


def test_an_older_file_of_llava(folders, tmp_path) -> None:
    """ffn_up and ffn_down the other way round, and a key that says which layer is read."""
    folder, files = folders("llava")
    old = write_projector(folder, "llava", tmp_path / "mmproj.gguf", older=True)
    new = files / "mmproj-model.gguf"
    rows = []
    for path in (new, old):
        with musespark.load(files / "model.gguf", mmproj=path, **AS_STORED) as model:
            rows.append(model.encode_image(LARGE).array)
    np.testing.assert_array_equal(*rows)
    # With all layers there, the key alone says which is read.
    more = {
        "clip.vision.block_count": lambda w: w.add_uint32("clip.vision.block_count", 4),
        "clip.vision.feature_layer": lambda w: w.add_array("clip.vision.feature_layer", [2]),
    }

    def another_layer(tensors: dict[str, np.ndarray]) -> None:
        blocks = sorted({n.split(".")[2] for n in tensors if n.startswith("v.blk.")})
        last = f"v.blk.{blocks[-1]}."
        for number in range(len(blocks), 4):
            for n in [n for n in tensors if n.startswith(last)]:
                tensors[n.replace(last, f"v.blk.{number}.")] = tensors[n] + 1

    path = tmp_path / "mmproj-all.gguf"
    write_projector(folder, "llava", path, keys=more, tensors=another_layer)
    with musespark.load(files / "model.gguf", mmproj=path, **AS_STORED) as model:
        np.testing.assert_array_equal(model.encode_image(LARGE).array, rows[0])


def test_an_older_file_of_qwen(folders, tmp_path) -> None:
    """No inner width, products the other way round, and a placeholder for positions."""
    folder, files = folders("qwen2_vl")

    def as_it_was(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if ".ffn_up." in name]:
            other = name.replace("ffn_up", "ffn_down")
            tensors[name], tensors[other] = tensors[other], tensors[name]
        tensors["v.position_embd.weight"] = np.zeros((10, 10), np.float32)

    keys = {
        "clip.vision.feed_forward_length": lambda w: w.add_vision_feed_forward_length(0),
        "clip.has_qwen2vl_merger": lambda w: w.add_bool("clip.has_qwen2vl_merger", True),
        "clip.use_silu": lambda w: w.add_bool("clip.use_silu", False),
        "general.type": None,
    }
    old = tmp_path / "mmproj.gguf"
    write_projector(folder, "qwen2_vl", old, keys=keys, tensors=as_it_was)
    rows = []
    for path in (files / "mmproj-model.gguf", old):
        with musespark.load(files / "model.gguf", mmproj=path, **AS_STORED) as model:
            rows.append(model.encode_image(LARGE).array)
    np.testing.assert_array_equal(*rows)


# Of the tower's matrices those of 192 columns can be blocks.
STORED = {
    "idefics3": {"head.0": "mm.model.fc.weight"},
    "qwen2_5_vl": {"head.0": "mm.0.weight", "head.1": "mm.2.weight"},
    "gemma3": {"head.0": "mm.input_projection.weight"},
}


_FLOATS, _BLOCKS = ("F16", "BF16"), ("Q8_0", "Q4_0", "Q5_1")
# The converter writes no blocks of Gemma's matrix, which is stored turned.
TYPES = [(n, kind) for n in STORED for kind in _FLOATS + (() if n == "gemma3" else _BLOCKS)]


@pytest.mark.parametrize(("name", "kind"), TYPES)
def test_tensors_of_every_type(folders, tmp_path, name: str, kind: str) -> None:
    folder, files = folders(name)
    stored: dict[str, np.ndarray] = {}

    def encode(tensor: str, value: np.ndarray) -> tuple[np.ndarray, Any]:
        if value.ndim < 2 or (value.shape[-1] % 32 and kind in _BLOCKS):
            return plain(tensor, value)
        data, found = quantized(kind)(tensor, value)
        stored[tensor] = gguf.quants.dequantize(data, found)
        return data, found

    path = write_projector(folder, name, tmp_path / "mmproj.gguf", encode)
    model = open_model(files / "model.gguf", quantize="none", mmproj=path, progress=False)
    for tensor, theirs in STORED[name].items():
        form, rows, cols, data = model.tower[tensor]
        numbers = stored[theirs].T if name == "gemma3" else stored[theirs]
        np.testing.assert_array_equal(_core.unpack(form, data, rows, cols), numbers)
    model.close()


def test_a_pair_becomes_one_packed_file(folders, tmp_path) -> None:
    _, files = folders("qwen3_vl")
    target = tmp_path / "one.safetensors"
    info = musespark.convert(files / "model.gguf", target, quantize="q8", progress=False)
    assert info["family"] == "qwen3_vl" and info["tower"] is not None
    options = {**AS_STORED, "quantize": "auto"}
    with musespark.load(target, **options) as model:
        other = musespark.load(files / "model.gguf", **{**AS_STORED, "quantize": "q8"})
        with other:
            a, b = model.encode_image(LARGE), other.encode_image(LARGE)
            np.testing.assert_array_equal(a.array, b.array)
            tokens = [greedy(one, "qwen3_vl", 2).tokens for one in (model, other)]
            assert tokens[0] == tokens[1]
    with pytest.raises(InvalidRequest, match=r"mmproj: .* goes with a GGUF model; what .*one"):
        musespark.load(target, mmproj=files / "mmproj-model.gguf", **options)
    with pytest.raises(InvalidRequest, match="is a file of the source"):
        musespark.convert(files / "model.gguf", files / "mmproj-model.gguf", progress=False)


def test_settings_that_a_file_says(folders, tmp_path) -> None:
    """Limits of pixels, where they are there; else those of transformers' class."""
    folder, files = folders("qwen2_vl")

    def tokens(**keys: Any) -> int:
        path = write_projector(folder, "qwen2_vl", tmp_path / "mmproj.gguf", keys=keys)
        with musespark.load(files / "model.gguf", mmproj=path, **AS_STORED) as model:
            return len(model.encode_image(LARGE).array)

    plainly = tokens()
    few = tokens(
        least=lambda w: w.add_uint32("clip.vision.image_min_pixels", 64),
        most=lambda w: w.add_uint32("clip.vision.image_max_pixels", 4096),
    )
    assert plainly == (260 // 8) * (190 // 8 + 1) and few <= 64


def test_an_image_that_a_file_wants_padded(folders, tmp_path) -> None:
    folder, files = folders("llava")
    ours = Path(shutil.copytree(folder, tmp_path / "hf"))
    settings = json.loads((ours / "preprocessor_config.json").read_text())
    settings |= {"do_pad": True, "image_processor_type": "LlavaImageProcessor"}
    (ours / "preprocessor_config.json").write_text(json.dumps(settings))
    aspect = "clip.vision.image_aspect_ratio"
    said = {aspect: lambda w: w.add_string(aspect, "pad")}
    path = write_projector(folder, "llava", tmp_path / "mmproj.gguf", keys=said)
    with (
        musespark.load(ours, **AS_STORED) as theirs,
        musespark.load(files / "model.gguf", mmproj=path, **AS_STORED) as padded,
        musespark.load(files / "model.gguf", **AS_STORED) as cropped,
    ):
        rows = [model.encode_image(LARGE).array for model in (theirs, padded, cropped)]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert np.abs(rows[1] - rows[2]).max() > 0.01


def test_windows_that_a_file_says(folders, tmp_path) -> None:
    """The converter writes none: they have 112 pixels."""
    folder, files = folders("qwen2_5_vl")
    key = "clip.vision.window_size"
    rows = []
    for pixels in (112, 56):
        said = {key: lambda w, n=pixels: w.add_uint32(key, n)}
        path = write_projector(folder, "qwen2_5_vl", tmp_path / f"{pixels}.gguf", keys=said)
        with musespark.load(files / "model.gguf", mmproj=path, **AS_STORED) as model:
            rows.append(model.encode_image(LARGE).array)
    with musespark.load(files / "model.gguf", **AS_STORED) as model:
        np.testing.assert_array_equal(model.encode_image(LARGE).array, rows[0])
    assert np.abs(rows[0] - rows[1]).max() > 1e-4


# ---- which file goes with a model ---------------------------------------------------------------


def blind(model: musespark.Model) -> str:
    with pytest.raises(UnsupportedModel) as error:
        model.encode_image(LARGE)
    return str(error.value)


def test_the_one_beside_a_model_is_found(pair) -> None:
    files = pair("idefics3")
    for source in (files / "model.gguf", files):
        model = open_model(source, progress=False)
        assert model.vision is not None
        assert "images: read with mmproj-model.gguf, found beside the model" in model.info["notes"]
    model = open_model(files, mmproj=False, progress=False)
    assert model.vision is None and model.info["family"] == "llama"
    assert why_blind(model) == "this model has no vision tower; it reads text alone"
    (files / "mmproj-model.gguf").rename(files / "Some-MMPROJ-f16.GGUF")
    assert open_model(files, progress=False).vision is not None


def test_of_several_none_is_chosen(pair) -> None:
    files = pair("idefics3")
    shutil.copy(files / "mmproj-model.gguf", files / "mmproj-F16.gguf")
    with musespark.load(files / "model.gguf", **AS_STORED) as model:
        said = "2 mmproj files lie beside the model; name one as mmproj: mmproj-F16.gguf, mmproj-"
        assert said in blind(model)
        assert greedy(model, "idefics3", 0).tokens  # and it is a model of text
    named = musespark.load(files / "model.gguf", mmproj=files / "mmproj-F16.gguf", **AS_STORED)
    with named as model:
        assert len(model.encode_image(LARGE).array)
    # What is noted is what lies there now, not what did when the model was packed.
    (files / "mmproj-F16.gguf").unlink()
    (files / "mmproj-model.gguf").unlink()
    with musespark.load(files / "model.gguf", **AS_STORED) as model:
        assert "this model has no vision tower" in blind(model)


MISFITS = {
    "of another architecture": (
        "gemma3",
        "idefics3",
        r"projector_type 'idefics3' goes with general.architecture 'llama', the model's is 'gemma3'"
        ": it belongs to another model",
    ),
    "of an architecture of the same family": (
        "qwen3_vl",
        "qwen2_vl",
        "goes with general.architecture 'qwen2vl', the model's is 'qwen3vl'",
    ),
}


@pytest.mark.parametrize("what", MISFITS)
def test_one_of_another_model(pair, folders, what: str) -> None:
    text, tower, message = MISFITS[what]
    files, other = pair(text), folders(tower)[1] / "mmproj-model.gguf"
    with pytest.raises(InvalidRequest, match=message):
        musespark.load(files / "model.gguf", mmproj=other, **AS_STORED)
    shutil.copy(other, files / "mmproj-model.gguf")
    with musespark.load(files / "model.gguf", **AS_STORED) as model:  # nobody named it
        assert "it belongs to another model" in blind(model)
        assert greedy(model, text, 0).tokens


def _narrower(tensors: dict[str, np.ndarray]) -> None:
    tensors["mm.model.fc.weight"] = tensors["mm.model.fc.weight"][:36]


def test_one_whose_rows_have_another_width(pair, folders) -> None:
    folder, files = folders("idefics3")[0], pair("idefics3")
    width = {"clip.vision.projection_dim": lambda w: w.add_vision_projection_dim(36)}
    path = files / "mmproj-model.gguf"
    write_projector(folder, "idefics3", path, keys=width, tensors=_narrower)
    message = r"makes rows of 36 \(tensor 'mm.model.fc.weight'\), the model's have 40 \(llama.emb"
    with pytest.raises(InvalidRequest, match=message):
        open_model(files, mmproj=path, progress=False)
    model = open_model(files, progress=False)
    assert model.vision is None and "makes rows of 36" in why_blind(model)


def test_one_with_another_number_of_taps(pair, folders) -> None:
    folder, files = folders("qwen3_vl")[0], pair("qwen3_vl")
    write_text(folder, "qwen3_vl", files / "model.gguf", more=lambda w: None)
    write_projector(
        folder,
        "qwen3_vl",
        files / "mmproj-model.gguf",
        keys={
            "clip.vision.is_deepstack_layers": lambda w: w.add_vision_is_deepstack_layers(
                [True, False, False, False]
            )
        },
        tensors=lambda t: [t.pop(n) for n in list(t) if n.startswith("v.deepstack.2.")],
    )
    with pytest.raises(InvalidRequest, match=r"has 1 deep stack layers, .*n_deepstack_layers is 2"):
        open_model(files, mmproj=files / "mmproj-model.gguf", progress=False)


def test_the_text_must_know_the_marks_around_an_image(pair, folders) -> None:
    folder, files = folders("idefics3")[0], pair("idefics3")
    write_text(folder, "idefics3", files / "model.gguf", lacking=["<fake_token_around_image>"])
    with pytest.raises(
        InvalidRequest, match="the model's vocabulary has no '<fake_token_around_image>': it bel"
    ):
        open_model(files, mmproj=files / "mmproj-model.gguf", progress=False)
    assert "no '<fake_token_around_image>'" in why_blind(open_model(files, progress=False))


def test_a_token_for_rows_is_made_where_there_is_none(pair, folders) -> None:
    """Some texts of Gemma 3 are written without it."""
    folder, files = folders("gemma3")[0], pair("gemma3")
    row = "<image_soft_token>"
    with musespark.load(files / "model.gguf", **AS_STORED) as model:
        wanted = greedy(model, "gemma3", 2).tokens
        said = model.chat(row, max_new_tokens=3, **BYTES_ALONE).tokens
    write_text(folder, "gemma3", files / "model.gguf", lacking=[row])
    with musespark.load(files / "model.gguf", **AS_STORED) as model:
        assert greedy(model, "gemma3", 2).tokens == wanted
        assert model.tokenizer.markers[row] == model.tokenizer.vocab_size - 1
        # Text that spells it stays text.
        assert model.chat(row, max_new_tokens=3, **BYTES_ALONE).tokens == said
        with pytest.raises(InvalidRequest, match=str(sight_cases.VOCAB)):
            model.generate([model.tokenizer.markers[row]])  # no row of the embedding


def test_llava_beside_a_text_that_knows_no_image(pair, folders) -> None:
    """Nothing tells its text from another llama: taken only where it is named."""
    folder, files = folders("llava")[0], pair("llava")
    write_text(folder, "llava", files / "model.gguf", lacking=["<image>"])
    assert "no '<image>'" in why_blind(open_model(files, progress=False))
    path = files / "mmproj-model.gguf"
    assert open_model(files, mmproj=path, progress=False).vision is not None


@pytest.mark.parametrize(
    ("mmproj", "message"),
    [
        (True, "mmproj: got True, allowed is a path or hub id, None"),
        ("", "mmproj: got '', allowed"),
        (5, "mmproj: got 5, allowed"),
        ("/nowhere/mmproj.gguf", "no such file, and no hub id of one"),
        ("org/name", "no such file, and no hub id of one"),
    ],
)
def test_what_mmproj_may_be(folders, mmproj: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        musespark.load(folders("idefics3")[1] / "model.gguf", mmproj=mmproj)


def test_a_projector_goes_with_gguf_models_alone(folders) -> None:
    folder, files = folders("idefics3")
    path = files / "mmproj-model.gguf"
    for source in (folder, None):
        with pytest.raises(InvalidRequest, match=r"mmproj: .* goes with a GGUF model"):
            musespark.load(source, mmproj=path)
    with pytest.raises(UnsupportedModel, match=r"'mmproj': only a 'model'.*beside .* as mmproj="):
        musespark.load(path)


def test_the_tower_is_counted(folders) -> None:
    path = folders("qwen3_vl")[1] / "model.gguf"
    whole, text = musespark.inspect(path), musespark.inspect(path, mmproj=False)
    assert whole["parameters"] > text["parameters"] and whole["weights"] != text["weights"]
    names = {tensor["name"] for tensor in whole["tensors"]}
    assert {"embed", "vision.patch", "vision.taps.1.0"} <= names
    needs = [musespark.estimate(path, quantize="q8", mmproj=m).needs[0] for m in (None, False)]
    assert needs[0].weights > needs[1].weights
