"""Models from GGUF files: the same weights as from a folder, to the bit, and refusals by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import musespark
from musespark import _core
from musespark.errors import CorruptFile, InvalidRequest, UnsupportedModel
from musespark.families import read_config
from musespark.families.tensors import canonical_shapes
from musespark.reference import stored
from musespark.weights import convert, inspect, open_model, pack, packing_error
from support.model_folder import write_folder
from support.run_engine import engine, logits

gguf = pytest.importorskip("gguf")
from support.gguf_models import (  # noqa: E402
    CASES,
    byte_vocabulary,
    checkpoint_of,
    plain,
    quantized,
    write_gguf,
)

TOKENS = np.random.default_rng(3).integers(0, 97, 70).astype(np.int32)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSESPARK_CACHE", str(tmp_path / "cache"))


def logits_of(path: Path, quantize: str = "none") -> np.ndarray:
    model = open_model(path, quantize=quantize, progress=False)
    return logits(engine(model.spec, model.tensors, context=128), TOKENS)


def numbers(model) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(data) if rows == 1 else _core.unpack(fmt, data, rows, cols)
        for name, (fmt, rows, cols, data) in model.tensors.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_the_folder_to_the_bit(name: str, tmp_path: Path) -> None:
    config = CASES[name]
    weights = checkpoint_of(config)
    folder = write_folder(tmp_path / "hf", config, weights)
    file = write_gguf(tmp_path / "m.gguf", config, weights)
    expected = logits_of(folder)
    assert np.isfinite(expected).all() and np.ptp(expected) > 0.1
    np.testing.assert_array_equal(logits_of(file), expected)


def test_every_type_stands_in_the_guide(repository: Path) -> None:
    guide = (repository / "python/musespark/docs/models.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| GGUF types \| (.*?);", guide, re.M)
    assert set(row.lower().split()) == set(stored.TYPES)


def test_frequency_factors_of_unusual_parameters(tmp_path: Path) -> None:
    """Where the usual llama3 parameters do not explain the numbers they are taken as they are."""
    config = CASES["llama_llama3"]
    unusual = dict(config["rope_scaling"]) | {"low_freq_factor": 0.5, "high_freq_factor": 9.0}
    config = config | {"rope_scaling": unusual}
    weights = checkpoint_of(config)
    file = write_gguf(tmp_path / "m.gguf", config, weights)
    (rope,) = open_model(file, quantize="none", progress=False).spec.ropes
    assert rope.scaling == "factors" and len(set(rope.factors)) > 2
    expected = logits_of(write_folder(tmp_path / "hf", config, weights))
    assert np.abs(logits_of(file) - expected).max() < 1e-4 * np.ptp(expected)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q5_1"])
def test_stored_numbers_arrive_exactly(kind: str, tmp_path: Path) -> None:
    """``none`` keeps every number that gguf-py reads, also through the order of rows of llama."""
    config = CASES["llama"]
    weights = checkpoint_of(config)
    file = write_gguf(tmp_path / "m.gguf", config, weights, quantized(kind))
    found = numbers(open_model(file, quantize="none", progress=False))
    rounded = {
        name: w if w.ndim == 1 else gguf.quants.dequantize(*quantized(kind)(name, w))
        for name, w in weights.items()
    }
    folder = write_folder(tmp_path / "hf", config, rounded)
    expected = numbers(open_model(folder, quantize="none", progress=False))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    np.testing.assert_array_equal(logits_of(file, "q8"), logits_of(folder, "q8"))


@pytest.mark.parametrize("quantize", ["none", "auto"])
def test_vectors_in_blocks_arrive_in_our_order(quantize: str, tmp_path: Path) -> None:
    config = CASES["llama"] | {"attention_bias": True}
    weights = checkpoint_of(config)

    def encode(name: str, weight: np.ndarray):
        return quantized("Q8_0")(name, weight[None])[0][0], gguf.GGMLQuantizationType.Q8_0

    def biases_in_blocks(name: str, weight: np.ndarray):
        return encode(name, weight) if name.endswith(".bias") else plain(name, weight)

    file = write_gguf(tmp_path / "m.gguf", config, weights, biases_in_blocks)
    found = numbers(open_model(file, quantize=quantize, progress=False))
    rounded = {
        name: gguf.quants.dequantize(*encode(name, w)) if name.endswith(".bias") else w
        for name, w in weights.items()
    }
    folder = write_folder(tmp_path / "hf", config, rounded)
    expected = numbers(open_model(folder, quantize="none", progress=False))
    for name in ("q_bias", "k_bias", "v_bias", "o_bias"):
        np.testing.assert_array_equal(found[f"layers.1.{name}"], expected[f"layers.1.{name}"])


def test_auto_keeps_the_precision_of_the_file_and_says_the_error(tmp_path: Path) -> None:
    config = CASES["qwen3"]
    file = write_gguf(tmp_path / "m.gguf", config, checkpoint_of(config), quantized("Q5_0"))
    model = open_model(file, progress=False)
    assert model.info["quantize"] == "gguf"
    (note,) = model.info["notes"]
    assert note.startswith("Q5_0 (16 tensors) kept as q6: relative error ")
    said = float(re.search(r"error ([\d.]+)%, measured on up to 64 rows of each", note)[1]) / 100
    exact = numbers(open_model(file, quantize="none", progress=False))
    found = numbers(model)
    matrices = [name for name, value in exact.items() if value.ndim == 2]
    missed = sum(((found[n].astype(np.float64) - exact[n]) ** 2).sum() for n in matrices)
    whole = sum((exact[n].astype(np.float64) ** 2).sum() for n in matrices)
    assert said == pytest.approx(np.sqrt(missed / whole), rel=0.05)
    # Floats have no precision to keep: as from a folder.
    floats = write_gguf(tmp_path / "f.gguf", config, checkpoint_of(config))
    assert open_model(floats, progress=False).info["quantize"] == "q8"


def test_exact_is_said_only_of_what_a_format_always_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of zeros where it was measured, nor of rows that happen to lose nothing."""
    config = CASES["qwen3"]

    def note(kind: str, quantize: str = "auto") -> str:
        def encode(name: str, weight: np.ndarray):
            if weight.ndim == 2:
                weight = weight * (np.arange(len(weight)) // 16 == 2)[:, None]
                weight = weight if len(weight) > 64 else np.zeros_like(weight)
            return quantized(kind)(name, weight)

        file = write_gguf(tmp_path / f"{kind}.gguf", config, checkpoint_of(config), encode)
        notes = open_model(file, quantize=quantize, progress=False).info["notes"]
        (said,) = {one.partition(": ")[2] for one in notes}
        return said

    assert note("Q5_0") == note("Q8_0", "q4") == note("Q8_0", "q8") == "not measured (zeros)"
    assert note("Q8_0") == note("Q5_0", "none") == "exact"
    monkeypatch.setattr(packing_error, "squares", lambda *_: (0.0, 1.0))
    rows = "measured on up to 64 rows of each matrix"
    assert note("Q5_1") == f"relative error 0.00%, {rows}"


def test_the_error_is_measured_within_packing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the very bytes that are written: it was a second packing, before the progress began."""
    config = CASES["qwen3"]
    file = write_gguf(tmp_path / "m.gguf", config, checkpoint_of(config), quantized("Q5_0"))
    packed_rows, real = [0], pack._core.pack

    def counted(form: str, array: np.ndarray, **more: Any) -> None:
        packed_rows[0] += len(array)
        real(form, array, **more)

    monkeypatch.setattr(pack._core, "pack", counted)
    made = []
    for i, threads in enumerate((1, 3)):
        monkeypatch.setattr(pack._core, "count_cores", lambda n=threads: {"usable": n})
        packed_rows[0] = 0
        convert(file, tmp_path / f"{i}.safetensors", quantize="auto", progress=False)
        made.append((tmp_path / f"{i}.safetensors").read_bytes())
    (note,) = open_model(tmp_path / "0.safetensors").info["notes"]
    assert "relative error" in note
    matrices = [p for p in open_model(tmp_path / "0.safetensors").tensors.values() if p[1] > 1]
    assert packed_rows[0] == sum(rows for _, rows, _, _ in matrices)
    assert made[0] == made[1]
    with safe_open(tmp_path / "0.safetensors", "np") as other:  # another reader takes the padding
        assert len(list(other.keys())) > 16


def test_convert_and_inspect(tmp_path: Path) -> None:
    config = CASES["llama"]
    file = write_gguf(tmp_path / "m.gguf", config, checkpoint_of(config), quantized("Q8_0"))
    info = inspect(file)
    assert info["family"] == "llama" and not info["packed"]
    assert info["formats"].keys() == {"Q8_0", "F32"} and info["vocab"] == 97
    q = next(t for t in info["tensors"] if t["name"] == "layers.0.q")
    assert q == {"name": "layers.0.q", "format": "Q8_0", "shape": [64, 64], "bytes": 64 * 68}
    packed = tmp_path / "m.safetensors"
    convert(file, packed, quantize="q8", progress=False)
    np.testing.assert_array_equal(logits_of(packed, "auto"), logits_of(file, "q8"))
    with pytest.raises(InvalidRequest, match="is a file of the source"):
        convert(file, file, progress=False)


def test_load_and_generate(tmp_path: Path) -> None:
    config = CASES["llama"] | {"vocab_size": 258}
    weights = checkpoint_of(config)
    file = write_gguf(tmp_path / "m.gguf", config, weights, quantized("Q8_0"), byte_vocabulary)
    with musespark.load(file, progress=False) as model:
        assert model.tokenizer.encode("the") == [256, 68]
        first = model.generate("the", max_new_tokens=12, temperature=0)
        assert len(first.tokens) == 12 or first.finish_reason == "stop"
        assert model.template is not None and "kept as q8g32h: exact" in model.info.notes[0]
    packed = tmp_path / "m.safetensors"
    musespark.convert(file, packed, quantize="auto", progress=False)
    with musespark.load(packed) as model:
        assert model.generate("the", max_new_tokens=12, temperature=0).tokens == first.tokens
    bare = write_gguf(tmp_path / "bare.gguf", config, weights)
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.json is missing"):
        musespark.load(bare, progress=False)


def test_a_folder_with_one_gguf_model(tmp_path: Path) -> None:
    config = CASES["qwen3"]
    file = write_gguf(tmp_path / "m.gguf", config, checkpoint_of(config))
    (tmp_path / "mmproj-m.gguf").write_bytes(file.read_bytes())  # by its name no model
    np.testing.assert_array_equal(logits_of(tmp_path), logits_of(file))
    write_gguf(tmp_path / "other.gguf", config, checkpoint_of(config))
    with pytest.raises(InvalidRequest, match=r"2 GGUF models; give one: m\.gguf, other\.gguf"):
        open_model(tmp_path)


def test_split_files(tmp_path: Path) -> None:
    config = CASES["llama"]
    weights = checkpoint_of(config)
    one = write_gguf(tmp_path / "one.gguf", config, weights)
    folder = tmp_path / "parts"
    folder.mkdir()
    write_gguf(folder / "m.gguf", config, weights, split_max_tensors=5)
    first = folder / "m-00001-of-00005.gguf"
    assert sorted(p.name for p in folder.iterdir())[0] == first.name
    for source in (first, folder):
        np.testing.assert_array_equal(logits_of(source), logits_of(one))
    with pytest.raises(InvalidRequest, match="part 3 of 5; give part 1"):
        open_model(folder / "m-00003-of-00005.gguf")
    (folder / "m-00004-of-00005.gguf").rename(tmp_path / "kept")
    with pytest.raises(CorruptFile, match=r"part 4 of 5, m-00004-of-00005\.gguf, is missing"):
        open_model(first)
    (folder / "m-00005-of-00005.gguf").rename(folder / "m-00004-of-00005.gguf")
    (tmp_path / "kept").rename(folder / "m-00005-of-00005.gguf")
    with pytest.raises(CorruptFile, match=r"split\.no and split\.count are 4 and 5"):
        open_model(first)
    first.rename(folder / "x.gguf")
    with pytest.raises(CorruptFile, match="must end in -00001-of-00005"):
        open_model(folder / "x.gguf")


def _key(key: str, value: Any, method: str) -> Callable[[Any], None]:
    return lambda writer: getattr(writer, method)(key, value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (_key("llama.logit_scale", 2.0, "add_float32"), "llama.logit_scale is 2.0: this key is"),
        (_key("llama.expert_shared_count", 1, "add_uint32"), "expert_shared_count is 1: this key"),
        (_key("llama.attention.value_length", 8, "add_uint32"), "value_length is 8: key heads"),
        (
            _key("llama.rope.scaling.type", "dynamic", "add_string"),
            "rope.scaling.type is 'dynamic': supported are none, linear, yarn, longrope",
        ),
    ],
)
def test_what_is_not_supported_is_named(more: Callable, message: str, tmp_path: Path) -> None:
    config = CASES["llama"]
    file = write_gguf(tmp_path / "m.gguf", config, checkpoint_of(config), more=more)
    with pytest.raises(UnsupportedModel, match=message):
        open_model(file)


def test_a_theta_that_is_not_said_is_that_of_llama_cpp(tmp_path: Path) -> None:
    """Not the family's default, which is what a config.json without one means."""
    config = {**CASES["llama"], "model_type": "smollm3", "num_hidden_layers": 1}
    del config["rope_theta"]
    file = write_gguf(tmp_path / "m.gguf", config, checkpoint_of(config))
    assert open_model(file, progress=False).spec.ropes[0].theta == 10000.0
    assert read_config(config)[1].ropes[0].theta == 2000000.0


def test_keys_without_effect_are_taken(tmp_path: Path) -> None:
    def more(writer: Any) -> None:
        writer.add_uint32("llama.expert_count", 0)
        writer.add_bool("llama.attention.causal", True)
        writer.add_bool("llama.rope.scaling.finetuned", True)
        writer.add_uint32("another.block_count", 99)

    config = CASES["llama"]
    open_model(write_gguf(tmp_path / "m.gguf", config, checkpoint_of(config), more=more))


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedModel, match=r"general\.architecture is 'mamba': state space"):
        open_model(tmp_path / "m.gguf")


def test_tensors_must_be_those_of_the_model(tmp_path: Path) -> None:
    config = CASES["llama"]
    weights = checkpoint_of(config)

    def refused(tensors: dict[str, np.ndarray], message: str) -> None:
        with pytest.raises(CorruptFile, match=message):
            open_model(write_gguf(tmp_path / "m.gguf", config, tensors))

    name = "model.layers.1.mlp.up_proj.weight"
    refused({n: w for n, w in weights.items() if n != name}, "'blk.1.ffn_up.weight' is missing")
    extra = weights | {"model.layers.1.self_attn.q_proj.bias": np.zeros(64, np.float32)}
    refused(extra, "'blk.1.attn_q.bias' is not a part")
    refused(weights | {name: weights[name][:-1]}, "has shape .95, 64., the config asks for .96, 64")
    holed = weights[name].copy()
    holed[90, 7] = np.nan
    refused(weights | {name: holed}, "is not finite")


def test_scales_that_are_not_finite_are_named(tmp_path: Path) -> None:
    def spoil(name: str, weight: np.ndarray):
        data, kind = quantized("Q8_0")(name, weight)
        if name == "blk.1.ffn_down.weight":
            data[40, 34:36] = np.uint8([0, 0x7C])
        return data, kind

    config = CASES["llama"]
    file = write_gguf(tmp_path / "m.gguf", config, checkpoint_of(config), spoil)
    for quantize in ("auto", "none", "q4"):
        with pytest.raises(CorruptFile, match=r"'blk\.1\.ffn_down\.weight'.*is not finite"):
            open_model(file, quantize=quantize, progress=False)


def test_mxfp4_scales_too_far_apart_are_named(tmp_path: Path) -> None:
    def encode(name: str, weight: np.ndarray):
        if weight.ndim == 1:
            return plain(name, weight)
        blocks = np.full((weight.shape[0], weight.shape[1] // 32, 17), 0x55, np.uint8)
        blocks[:, :, 0] = 120
        if name == "blk.1.ffn_down.weight":
            blocks[40, :, 0] = [20, 120, 160]
        return blocks.reshape(weight.shape[0], -1), gguf.GGMLQuantizationType.MXFP4

    config = CASES["llama"]
    file = write_gguf(tmp_path / "m.gguf", config, checkpoint_of(config), encode)
    with pytest.raises(
        UnsupportedModel, match=r"'blk\.1\.ffn_down\.weight', rows from 0: .*row 40"
    ):
        open_model(file, progress=False)
    open_model(file, quantize="q8", progress=False)


@pytest.mark.parametrize("kind", sorted(set(stored.TYPES) - {"f32", "f16", "bf16"}))
def test_every_type_is_loaded(kind: str, tmp_path: Path) -> None:
    """Random blocks with small scales: gguf-py cannot quantize to all types."""
    config = CASES["llama"] | {"hidden_size": 256, "intermediate_size": 512}
    rng = np.random.default_rng(8)
    size = stored.TYPES[kind][0]
    found = gguf.GGMLQuantizationType[kind.upper()]
    values = gguf.GGML_QUANT_SIZES[found][0]

    def encode(name: str, weight: np.ndarray):
        if weight.ndim == 1:
            return plain(name, weight)
        rows, cols = weight.shape
        blocks = rng.integers(0, 256, (rows, cols // values, size), np.uint8)
        for at in _SCALES[kind]:
            blocks[:, :, at : at + 2] = np.frombuffer(np.float16(0.003).tobytes(), np.uint8)
        if kind == "mxfp4":
            blocks[:, :, 0] = rng.integers(116, 124, blocks.shape[:2])
        return blocks.reshape(rows, -1), found

    file = write_gguf(tmp_path / "m.gguf", config, checkpoint_of(config), encode)
    exact = numbers(open_model(file, quantize="none", progress=False))
    kept = open_model(file, progress=False)
    assert kept.info["quantize"] == "gguf"
    for name, value in numbers(kept).items():
        error = np.sqrt(((value - exact[name]) ** 2).sum() / (exact[name] ** 2).sum())
        assert error <= (0 if value.ndim == 1 else _ERROR.get(kind, 0)), f"{name}: {error}"
    assert canonical_shapes(kept.spec).keys() == exact.keys()


# Relative error of random codes in the format that keeps a type; 0 for those that are not here.
_ERROR = {
    "iq4_xs": 0.0004, "q2_k": 0.12, "q3_k": 0.16, "q4_1": 0.03, "q4_k": 0.03, "q5_0": 0.03,
    "q5_1": 0.03, "q5_k": 0.03, "q6_k": 0.01,
}  # fmt: skip
_SCALES = {
    "q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2), "q8_0": (0,), "iq4_nl": (0,),
    "mxfp4": (), "q2_k": (80, 82), "q3_k": (108,), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,),
    "iq4_xs": (0,),
}  # fmt: skip
