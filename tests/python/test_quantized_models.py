"""Models from quantized checkpoints: the logits of the same matrices in floats, to the bit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musespark import _core
from musespark.errors import CorruptFile, InvalidRequest, UnsupportedModel
from musespark.weights import convert, inspect, open_model, pack
from musespark.weights.model_source import understand
from musespark.weights.safetensors import Checkpoint, SafetensorsFile
from support import quantized as write
from support.quantized_models import (
    GPTQ,
    KINDS,
    LLAMA,
    PHI3,
    around,
    both_folders,
    gpt_oss_folders,
    linears,
)
from support.run_engine import engine, logits

TOKENS = np.random.default_rng(3).integers(0, 97, 70).astype(np.int32)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSESPARK_CACHE", str(tmp_path / "cache"))


def opened(path: Path, quantize: str = "auto"):
    return open_model(path, quantize=quantize, progress=False)


def numbers(model) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(data) if rows == 1 else _core.unpack(fmt, data, rows, cols)
        for name, (fmt, rows, cols, data) in model.tensors.items()
    }


def logits_of(model) -> np.ndarray:
    found = logits(engine(model.spec, model.tensors, context=128), TOKENS)
    assert np.isfinite(found).all() and np.ptp(found) > 0.1
    return found


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "mixed"])
@pytest.mark.parametrize("config", [LLAMA, PHI3], ids=["llama", "phi3"])
def test_the_numbers_of_the_floats(kind: str, config: dict[str, Any], tmp_path: Path) -> None:
    """phi3 cuts q, k, v, gate and up out of one matrix each."""
    quantized, plain = both_folders(tmp_path, kind, config)
    expected, found = opened(plain, "none"), opened(quantized, "none")
    np.testing.assert_array_equal(logits_of(found), logits_of(expected))
    exact = numbers(expected)
    kept = opened(quantized)
    assert kept.info["quantize"] == "kept" and kept.info["quantize_auto"]
    form = KINDS[kind][2]
    if form is not None:
        formats = {fmt for name, (fmt, *_) in kept.tensors.items() if name.endswith(".q")}
        assert formats == {form}
        for name, value in numbers(kept).items():
            if name not in ("embed", "head"):
                np.testing.assert_array_equal(value, exact[name], err_msg=name)
    (note,) = kept.info["notes"]
    assert note.endswith(f"kept as {form}: exact" if form else "rows of each matrix")
    # Activations are rounded to 8 bits now. Logits that have nothing to do with it are at 1.4.
    distance = logits_of(kept) - logits_of(expected)
    assert np.linalg.norm(distance) < 0.2 * np.linalg.norm(logits_of(expected))


@pytest.mark.parametrize("recipe", ["q4", "q8"])
def test_other_recipes_pack_the_floats(recipe: str, tmp_path: Path) -> None:
    quantized, plain = both_folders(tmp_path, "awq")
    found, expected = opened(quantized, recipe), opened(plain, recipe)
    assert found.info["formats"] == expected.info["formats"]
    for name, (_, _, _, data) in expected.tensors.items():
        np.testing.assert_array_equal(found.tensors[name][3], data, err_msg=name)


def test_the_error_that_is_said(tmp_path: Path) -> None:
    quantized, plain = both_folders(tmp_path, "awq")
    kept, exact = opened(quantized), numbers(opened(plain, "none"))
    (note,) = kept.info["notes"]
    assert note.startswith("AWQ 4 bits (14 tensors) kept as q6: relative error ")
    said = float(re.search(r"error ([\d.]+)%, measured", note)[1]) / 100
    names = [n for n, v in exact.items() if v.ndim == 2 and n not in ("embed", "head")]
    found = numbers(kept)
    missed = sum(((found[n].astype(np.float64) - exact[n]) ** 2).sum() for n in names)
    whole = sum((exact[n].astype(np.float64) ** 2).sum() for n in names)
    assert said == pytest.approx(np.sqrt(missed / whole), rel=0.02)


def settings_beside(folder: Path, name: str, settings: dict[str, Any]) -> Path:
    """The folder with its quantization settings in a file of their own, as older tools wrote it."""
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / name).write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("kind", "file", "settings"),
    [
        ("gptq", "quantize_config.json", {"bits": 4, "group_size": 32, "model_name_or_path": ""}),
        (
            "gptq_v2_asymmetric",
            "quantize_config.json",
            GPTQ | {"checkpoint_format": "gptq_v2", "sym": False, "desc_act": False},
        ),
        ("awq", "quant_config.json", {"w_bit": 4, "q_group_size": 32, "zero_point": True}),
        ("awq", "quantize_config.json", {"w_bit": 4, "q_group_size": 32, "version": "GEMM"}),
    ],
)
def test_settings_in_a_file_of_their_own(
    kind: str, file: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    quantized, plain = both_folders(tmp_path, kind)
    said_in_config = numbers(opened(quantized))
    folder = settings_beside(quantized, file, settings)
    found = opened(folder, "none")
    np.testing.assert_array_equal(logits_of(found), logits_of(opened(plain, "none")))
    kept = opened(folder)
    assert kept.info["quantize"] == "kept" and file in kept.assets
    for name, value in numbers(kept).items():
        np.testing.assert_array_equal(value, said_in_config[name], err_msg=name)


def test_settings_of_both_files(tmp_path: Path) -> None:
    """config.json is stronger; what is wrong in the other file is said of the other file."""
    quantized, plain = both_folders(tmp_path, "gptq")
    (quantized / "quantize_config.json").write_text('{"bits": 77}')
    expected = logits_of(opened(plain, "none"))
    np.testing.assert_array_equal(logits_of(opened(quantized, "none")), expected)
    settings_beside(quantized, "quantize_config.json", {"bits": 77})
    with pytest.raises(UnsupportedModel, match=r"quantized: quantize_config\.json\.bits is 77"):
        opened(quantized)
    (quantized / "quantize_config.json").write_text("[4]")
    with pytest.raises(UnsupportedModel, match=r"quantize_config\.json: an object is needed"):
        opened(quantized)


def test_one_file_of_another_name(tmp_path: Path) -> None:
    """As the same tools named it; of two such files none is chosen."""
    quantized, plain = both_folders(tmp_path, "gptq")
    other = quantized / "gptq_model-4bit-32g.safetensors"
    (quantized / "model.safetensors").rename(other)
    expected = logits_of(opened(plain, "none"))
    np.testing.assert_array_equal(logits_of(opened(quantized, "none")), expected)
    (quantized / "second.safetensors").write_bytes(other.read_bytes())
    with pytest.raises(InvalidRequest, match=r"gptq_model-4bit-32g\.safetensors, second"):
        opened(quantized)


def test_gpt_oss(tmp_path: Path) -> None:
    quantized, plain = gpt_oss_folders(tmp_path)
    expected = opened(plain, "none")
    np.testing.assert_array_equal(logits_of(opened(quantized, "none")), logits_of(expected))
    kept, exact = opened(quantized), numbers(expected)
    experts = [name for name in exact if ".experts." in name and exact[name].ndim == 2]
    assert len(experts) == 18 and {kept.tensors[name][0] for name in experts} == {"mxfp4"}
    found = numbers(kept)
    for name in experts:
        np.testing.assert_array_equal(found[name], exact[name], err_msg=name)
    assert kept.info["notes"] == ["MXFP4 stacks (18 tensors) kept as mxfp4: exact"]


def test_inspect_and_convert(tmp_path: Path) -> None:
    quantized, _ = both_folders(tmp_path, "gptq")
    info = inspect(quantized)
    assert info["formats"].keys() == {"GPTQ 4 bits", "F32"} and not info["packed"]
    assert info["weights"].keys() == {"q4", "q8", "none", "kept"}
    down = next(t for t in info["tensors"] if t["name"] == "layers.0.down")
    nbytes = 64 * 96 // 2 + 3 * 64 // 2 + 3 * 64 * 2
    assert down["shape"] == [64, 96] and down["bytes"] == nbytes
    packed = tmp_path / "m.safetensors"
    assert convert(quantized, packed, quantize="auto", progress=False)["quantize"] == "kept"
    assert inspect(packed, verify=True)["formats"].keys() == {"q4g32h", "q8", "f32"}


def test_pieces_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("gptq", "awq", "fp8"):
        quantized, _ = both_folders(tmp_path / kind, kind)
        whole, cut = tmp_path / kind / "whole", tmp_path / kind / "cut"
        convert(quantized, whole, quantize="auto", progress=False)
        with monkeypatch.context() as small:
            small.setattr(pack, "_PIECE_BYTES", 1)
            convert(quantized, cut, quantize="auto", progress=False)
        assert whole.read_bytes() == cut.read_bytes()


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    """The zero biases of old AutoGPTQ files; scales of activations."""
    rng = np.random.default_rng(1)
    stored = around(LLAMA, rng)
    for name, shape in linears(LLAMA).items():
        tensors, _ = KINDS["gptq"][1](name, rng, shape)
        stored |= tensors | {f"{name}.bias": ("F16", np.zeros(shape[0], np.float16))}
    config = LLAMA | {"quantization_config": GPTQ}
    model = opened(write.write_folder(tmp_path / "biased", config, stored))
    assert model.info["ignored"] == {"biases that hold only zeros": 14}
    stored["model.layers.0.mlp.up_proj.bias"][1][3] = 1
    folder = write.write_folder(tmp_path / "really biased", config, stored)
    with pytest.raises(CorruptFile, match=r"'model.layers.0.mlp.up_proj.bias' is not a part"):
        opened(folder)
    config, stored = LLAMA | {"quantization_config": KINDS["float8"][0]}, around(LLAMA, rng)
    for name, shape in linears(LLAMA).items():
        stored |= KINDS["float8"][1](name, rng, shape)[0]
        stored[f"{name}.input_scale"] = ("F32", np.ones(1, np.float32))
    model = opened(write.write_folder(tmp_path / "static", config, stored))
    assert model.info["ignored"] == {"scales of activations, which stay as they are here": 14}


def test_configs_that_do_not_tell(tmp_path: Path) -> None:
    quantized, _ = both_folders(tmp_path, "gptq")
    tensors = (quantized / "model.safetensors").read_bytes()
    bare = write.write_folder(tmp_path / "bare", LLAMA, {})
    (bare / "model.safetensors").write_bytes(tensors)
    with pytest.raises(UnsupportedModel, match=r"qweight'.* config.json has no quantization_conf"):
        opened(bare)
    other = LLAMA | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (write.write_folder(tmp_path / "other", other, {}) / "model.safetensors").write_bytes(tensors)
    with pytest.raises(UnsupportedModel, match=r"quant_method is 'bitsandbytes': supported are"):
        opened(tmp_path / "other")
    wrong = LLAMA | {"hidden_size": 128, "quantization_config": GPTQ}
    (write.write_folder(tmp_path / "wrong", wrong, {}) / "model.safetensors").write_bytes(tensors)
    with pytest.raises(CorruptFile, match=r"has shape .* the config asks for"):
        opened(tmp_path / "wrong")
    stored = around(LLAMA, np.random.default_rng(2))
    for name, shape in linears(LLAMA).items():
        stored[f"{name}.weight"] = ("F8_E4M3", np.zeros(shape, np.uint8))
    with pytest.raises(UnsupportedModel, match=r"has dtype F8_E4M3; weights may be F32"):
        opened(write.write_folder(tmp_path / "eights", LLAMA, stored))


def test_a_mix_of_formats(tmp_path: Path) -> None:
    quantized, plain = both_folders(tmp_path, "mixed")
    expected, found = opened(plain, "none"), opened(quantized, "none")
    np.testing.assert_array_equal(logits_of(found), logits_of(expected))
    kept = opened(quantized)
    assert kept.info["formats"].keys() == {"q4g32h", "q8g32h", "mxfp4", "q6", "q8", "f32"}
    assert len(kept.info["notes"]) == 6


@pytest.mark.parametrize("kind", KINDS)
def test_headers_alone_tell_what_packing_takes(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a model on a hub. The guess is right where the config tells of zeros and order."""
    quantized, _ = both_folders(tmp_path, kind)
    expected = understand(quantized).plan("kept")

    def unread(self: Checkpoint, name: str) -> np.ndarray:
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(Checkpoint, "array", unread)
    headers = Checkpoint([SafetensorsFile(quantized / "model.safetensors")])
    found = understand(quantized, headers)
    assert found.recipe("auto") == "kept"
    if kind == "mixed":
        assert len(found.plan("kept")) == len(expected)
    else:
        assert found.plan("kept") == expected
