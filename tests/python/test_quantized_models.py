"""Models from quantized checkpoints: the logits of the same matrices in floats, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musespark import _core
from musespark.errors import CorruptFile, UnsupportedModel
from musespark.weights import convert, inspect, open_model, pack
from support import quantized as write
from support.run_engine import engine, logits

TOKENS = np.random.default_rng(3).integers(0, 97, 70).astype(np.int32)
LLAMA = {
    "model_type": "llama", "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "rope_theta": 500.0,
}  # fmt: skip
PHI3 = LLAMA | {"model_type": "phi3", "pad_token_id": 0}
GPT_OSS = {
    "model_type": "gpt_oss", "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "num_local_experts": 3, "num_experts_per_tok": 2, "max_position_embeddings": 512,
    "rope_scaling": None, "rope_theta": 500.0, "sliding_window": 32,
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSESPARK_CACHE", str(tmp_path / "cache"))


def linears(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Every linear of a layer (without ``.weight``) and its shape."""
    found = {}
    for i in range(2):
        at = f"model.layers.{i}."
        if config["model_type"] == "phi3":
            found[f"{at}self_attn.qkv_proj"] = (128, 64)
            found[f"{at}mlp.gate_up_proj"] = (192, 64)
        else:
            found |= {f"{at}self_attn.q_proj": (64, 64)}
            found |= {f"{at}self_attn.{x}_proj": (32, 64) for x in "kv"}
            if config["model_type"] == "llama":
                found |= {f"{at}mlp.{x}_proj": (96, 64) for x in ("gate", "up")}
        found[f"{at}self_attn.o_proj"] = (64, 64)
        if config["model_type"] != "gpt_oss":
            found[f"{at}mlp.down_proj"] = (64, 96)
    return found


def around(config: dict[str, Any], rng: np.random.Generator) -> write.Tensors:
    """What is not quantized, in float32."""

    def normal(*shape: int, scale: float = 1.0) -> tuple[str, np.ndarray]:
        return "F32", (rng.standard_normal(shape) * scale).astype(np.float32)

    tensors = {"model.embed_tokens.weight": normal(97, 64), "lm_head.weight": normal(97, 64)}
    tensors["model.norm.weight"] = ("F32", np.ones(64, np.float32))
    for i in range(2):
        at = f"model.layers.{i}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}{norm}.weight"] = normal(64)
        if config["model_type"] == "gpt_oss":
            tensors[f"{at}mlp.router.weight"] = normal(3, 64)
            tensors[f"{at}mlp.router.bias"] = normal(3)
            tensors[f"{at}self_attn.sinks"] = normal(4)
            tensors[f"{at}mlp.experts.gate_up_proj_bias"] = normal(3, 192)
            tensors[f"{at}mlp.experts.down_proj_bias"] = normal(3, 64)
            for x, width in (("q", 64), ("k", 32), ("v", 32), ("o", 64)):
                tensors[f"{at}self_attn.{x}_proj.bias"] = normal(width)
                shape = (64, 64) if x in "qo" else (32, 64)
                tensors[f"{at}self_attn.{x}_proj.weight"] = normal(*shape, scale=0.1)
    return tensors


Written = tuple[write.Tensors, np.ndarray]


def integers(
    writer: Callable[..., write.Tensors], matrix: dict | None = None, **options
) -> Callable[..., Written]:
    """Writes a linear of codes and scales: what `matrix` says of them, `options` of the file."""

    def one(name: str, rng: np.random.Generator, shape: tuple[int, int]) -> Written:
        m = write.random_matrix(rng, *shape, **(matrix or {}))
        m.scales /= np.float32(16 if writer is write.int8 else 1)
        return writer(name, m, **options), m.values

    return one


def eights(**options) -> Callable[..., Written]:
    def one(name: str, rng: np.random.Generator, shape: tuple[int, int]) -> Written:
        return write.fp8(name, rng, *shape, (16, 32), **options)

    return one


def section(form: str, **weights) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
# Kind -> quantization_config, writer of a linear, and what ``auto`` keeps it as (None: not exact).
KINDS: dict[str, tuple[dict[str, Any], Callable[..., Written], str | None]] = {
    "gptq": (GPTQ, integers(write.gptq, bits=4), "q4g32h"),
    "gptq_v2_asymmetric": (
        GPTQ | {"checkpoint_format": "gptq_v2", "sym": False},
        integers(write.gptq, {"symmetric": False}, bits=4, version=2),
        None,
    ),
    "gptq_act_order": (
        GPTQ | {"desc_act": True}, integers(write.gptq, {"order": True}, bits=4, g_idx=True), None,
    ),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"},
        integers(write.awq, {"symmetric": False}),
        None,
    ),
    "fp8": ({"quant_method": "fp8", "weight_block_size": [16, 32]}, eights(), None),
    "packed": (
        section("pack-quantized", num_bits=4, type="int", group_size=32),
        integers(write.compressed, {"dtype": "BF16"}, bits=4, symmetric=True),
        "q4g32h",
    ),
    "int8": (
        section("int-quantized", num_bits=8, type="int", strategy="channel"),
        integers(
            write.int8, {"bits": 8, "group": -1, "dtype": "F32"}, symmetric=True, dtype="F32"
        ),
        "q8g32h",
    ),
    "float8": (
        section("float-quantized", num_bits=8, type="float", strategy="block",
                block_structure=[16, 32]),
        eights(scale="weight_scale", dtype="BF16"),
        None,
    ),
}  # fmt: skip


def both_folders(tmp_path: Path, kind: str, config: dict[str, Any] = LLAMA) -> tuple[Path, Path]:
    """The quantized folder, and the same numbers in float32."""
    quantization, one, _ = KINDS[kind]
    rng = np.random.default_rng(7)
    plain = around(config, rng)
    stored = dict(plain)
    for name, shape in linears(config).items():
        tensors, values = one(name, rng, shape)
        stored |= tensors
        plain[f"{name}.weight"] = ("F32", values)
    quantized = write.write_folder(
        tmp_path / "quantized", config | {"quantization_config": quantization}, stored
    )
    return quantized, write.write_folder(tmp_path / "plain", config, plain)


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


@pytest.mark.parametrize("kind", KINDS)
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
    assert note.endswith(f"kept as {form}: exact" if form else "%")
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
    said = float(note.rpartition(" ")[2].rstrip("%")) / 100
    names = [n for n, v in exact.items() if v.ndim == 2 and n not in ("embed", "head")]
    found = numbers(kept)
    missed = sum(((found[n].astype(np.float64) - exact[n]) ** 2).sum() for n in names)
    whole = sum((exact[n].astype(np.float64) ** 2).sum() for n in names)
    assert said == pytest.approx(np.sqrt(missed / whole), rel=0.02)


def gpt_oss_folders(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(8)
    plain = around(GPT_OSS, rng)
    stored = dict(plain)
    for i in range(2):
        at = f"model.layers.{i}.mlp.experts."
        for name, rows, cols in (("gate_up_proj", 192, 64), ("down_proj", 64, 96)):
            blocks, scales, values = write.mxfp4(rng, 3, rows, cols=cols)
            stored[f"{at}{name}_blocks"] = ("U8", blocks)
            stored[f"{at}{name}_scales"] = ("U8", scales)
            plain[f"{at}{name}"] = ("F32", np.ascontiguousarray(values.transpose(0, 2, 1)))
    config = GPT_OSS | {"quantization_config": {"quant_method": "mxfp4"}}
    quantized = write.write_folder(tmp_path / "quantized", config, stored)
    return quantized, write.write_folder(tmp_path / "plain", GPT_OSS, plain)


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
