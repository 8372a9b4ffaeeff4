"""Readers of quantized checkpoints: every format against matrices written from its definition."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from musespark import _core
from musespark.errors import CorruptFile, UnsupportedModel
from musespark.weights.quantized import numbers
from musespark.weights.quantized.config import METHODS, read_quantization
from musespark.weights.quantized.linear import Stored
from musespark.weights.quantized.source import QuantizedSource
from musespark.weights.safetensors import Checkpoint, SafetensorsFile
from support import quantized as write


def source_of(tmp_path: Path, section: dict, tensors: write.Tensors) -> QuantizedSource:
    path = tmp_path / "model.safetensors"
    path.write_bytes(write.safetensors_bytes(tensors))
    stored = Stored(Checkpoint([SafetensorsFile(path)]))
    reader, _ = read_quantization({"quantization_config": section})
    assert reader is not None
    return QuantizedSource(stored, reader(stored))


def check(rows, expected: np.ndarray, kept: tuple[str, bool]) -> None:
    """All rows at once, in odd pieces and with steps; packed as they are kept."""
    assert rows.shape == expected.shape
    np.testing.assert_array_equal(np.asarray(rows), expected)
    for part in (slice(0, 1), slice(3, 17), slice(5, None, 2), slice(1, 16, 3)):
        np.testing.assert_array_equal(np.asarray(rows[part]), expected[part])
        np.testing.assert_array_equal(np.asarray(rows[part][:5:2]), expected[part][:5:2])
    assert (rows.kept.form, rows.kept.exact) == kept
    form, exact = kept
    out = np.empty(_core.packed_nbytes(form, *expected.shape), np.uint8)
    rows.pack(form, out, 2)
    got = _core.unpack(form, out, *expected.shape)
    if exact:
        np.testing.assert_array_equal(got, expected)
    else:
        error = np.sqrt(((got - expected) ** 2).sum() / (expected**2).sum())
        assert error < {"q6": 0.02, "q8": 0.012}[form]


# --- Numbers -------------------------------------------------------------------------------------


def test_every_float8() -> None:
    for byte in range(256):
        if byte & 127 < 127:
            assert numbers.E4M3[byte] == write.e4m3(byte)
        if byte & 127 < 0x7C:
            assert numbers.E5M2[byte] == write.e5m2(byte)
    halves = (np.arange(256, dtype=np.uint16) << 8).view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(numbers.E5M2, halves)
    assert np.isnan(numbers.E4M3[[127, 255]]).all() and np.isnan(numbers.E8M0[255])
    assert numbers.E4M3[126] == 448 and np.signbit(numbers.E4M3[128])
    np.testing.assert_array_equal(numbers.E8M0[:255], 2.0 ** (np.arange(255.0) - 127))


@pytest.mark.parametrize("bits", range(1, 9))
def test_fields_of_every_width(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (5, 64))
    words = write.along(codes, bits)
    np.testing.assert_array_equal(numbers.fields(words, bits), codes)
    np.testing.assert_array_equal(numbers.fields(words.T.copy().T, bits), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_fields_picked_out_of_a_row(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, 70))
    words = write.along(codes, bits)
    for picked in (range(70), range(33, 34), range(31, 65), range(5, 70, 7), range(64, 70)):
        found = numbers.fields_of(words, bits, picked)
        np.testing.assert_array_equal(found, codes[:, picked.start : picked.stop : picked.step])


def test_scales_that_f16_holds() -> None:
    fine = np.array([[1.0, 0.0, 2.0**-39, -0.75], [1e30, 2e30, 0, 0]], np.float32)
    fine[1] = np.ldexp(np.float32(2047), [90, 80, 70, 62])
    assert numbers.are_halves(fine)
    wide = fine.copy()
    wide[0, 2] = 2.0**-40
    assert not numbers.are_halves(wide)
    long = fine.copy()
    long[1, 1] = np.float32(1 + 2**-11)
    assert not numbers.are_halves(long)
    assert numbers.are_halves(long[:, 1:2])
    for bad in (np.nan, np.inf):
        fine[0, 1] = bad
        assert not numbers.are_halves(fine)
        assert not numbers.are_halves(fine[:, 1:2])


# --- GPTQ ----------------------------------------------------------------------------------------

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, 64, -1])
def test_gptq(tmp_path: Path, version: int, bits: int, symmetric: bool, group: int) -> None:
    rng = np.random.default_rng(bits)
    m = write.random_matrix(rng, 32, 96, bits=bits, group=group, symmetric=symmetric)
    form = "gptq" if version == 1 else "gptq_v2"
    section = GPTQ | {"bits": bits, "group_size": group, "checkpoint_format": form}
    source = source_of(tmp_path, section, write.gptq("a.b", m, bits, version=version))
    kept = ("q4g32h", True) if symmetric or bits < 4 else ("q6", False)
    if bits == 8:
        kept = ("q8g32h", True) if symmetric else ("q8", False)
    check(source.array("a.b.weight"), m.values, kept)
    assert source.entry("a.b.weight").shape == (32, 96)
    assert set(source.file_of) == {"a.b.weight"}


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_gptq_in_another_order(tmp_path: Path, bits: int) -> None:
    rng = np.random.default_rng(1)
    m = write.random_matrix(rng, 32, 96, bits=bits, order=True)
    section = GPTQ | {"bits": bits, "desc_act": True}
    source = source_of(tmp_path, section, write.gptq("x", m, bits, g_idx=True))
    check(source.array("x.weight"), m.values, ("q8" if bits == 8 else "q6", False))


def test_gptq_with_the_natural_order_written_out(tmp_path: Path) -> None:
    m = write.random_matrix(np.random.default_rng(2), 32, 128, group=64)
    tensors = write.gptq("x", m, 4, g_idx=True)
    source = source_of(tmp_path, GPTQ | {"group_size": 64, "desc_act": True}, tensors)
    check(source.array("x.weight"), m.values, ("q4g32h", True))


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("group", [32, -1])
def test_gptq_with_wider_scales(tmp_path: Path, dtype: str, group: int) -> None:
    m = write.random_matrix(np.random.default_rng(3), 32, 96, group=group, dtype=dtype)
    source = source_of(tmp_path, GPTQ | {"group_size": group}, write.gptq("x", m, 4, dtype=dtype))
    exact = dtype == "BF16" or group == -1
    check(source.array("x.weight"), m.values, ("q4g32h", True) if exact else ("q6", False))


def test_gptq_groups_of_other_sizes(tmp_path: Path) -> None:
    """16 columns do not fill a block of ours; 40 lie across its edge; the last may be short."""
    for group, cols in ((16, 96), (40, 96), (64, 96)):
        m = write.random_matrix(np.random.default_rng(4), 32, cols, group=group)
        source = source_of(tmp_path, GPTQ | {"group_size": group}, write.gptq("x", m, 4))
        kept = ("q4g32h", True) if group == 64 else ("q6", False)
        check(source.array("x.weight"), m.values, kept)


@pytest.mark.parametrize("bits", [3, 4])
def test_gptq_of_many_rows(tmp_path: Path, bits: int) -> None:
    """Zero points lie across the parts of rows that are decoded at a time."""
    m = write.random_matrix(np.random.default_rng(5), 160, 64, bits=bits, symmetric=False)
    source = source_of(tmp_path, GPTQ | {"bits": bits}, write.gptq("x", m, bits))
    kept = ("q4g32h", True) if bits == 3 else ("q6", False)
    check(source.array("x.weight"), m.values, kept)
    rows = source.array("x.weight")[30:150:7]
    np.testing.assert_array_equal(np.asarray(rows), m.values[30:150:7])


def test_gptq_modules_that_differ(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    four = write.random_matrix(rng, 32, 64)
    eight = write.random_matrix(rng, 64, 128, bits=8, group=64)
    tensors = write.gptq("four", four, 4) | write.gptq("eight", eight, 8)
    section = GPTQ | {"dynamic": {"+:eight": {"bits": 8, "group_size": 64}}}
    source = source_of(tmp_path, section, tensors)
    np.testing.assert_array_equal(np.asarray(source.array("four.weight")), four.values)
    np.testing.assert_array_equal(np.asarray(source.array("eight.weight")), eight.values)
    with pytest.raises(CorruptFile, match=r"eight.qzeros.* has 16 words .*bits 4 takes 8"):
        source_of(tmp_path, GPTQ, tensors)


def test_zero_biases_may_go(tmp_path: Path) -> None:
    m = write.random_matrix(np.random.default_rng(6), 32, 64)
    tensors = write.gptq("x", m, 4) | write.gptq("y", m, 4)
    tensors["x.bias"] = ("F16", np.zeros(32, np.float16))
    tensors["y.bias"] = ("F16", np.ones(32, np.float16))
    source = source_of(tmp_path, GPTQ, tensors)
    assert "x.bias" in source.file_of
    assert source.drop_zero_biases()
    assert set(source.file_of) == {"x.weight", "y.weight", "y.bias"}
    assert source.ignored == {"biases that hold only zeros": ["x.bias"]}


# --- AWQ -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [32, 64, -1])
@pytest.mark.parametrize("symmetric", [True, False])
def test_awq(tmp_path: Path, group: int, symmetric: bool) -> None:
    m = write.random_matrix(np.random.default_rng(7), 40, 96, group=group, symmetric=symmetric)
    section = {"quant_method": "awq", "bits": 4, "group_size": group, "version": "GEMM"}
    source = source_of(tmp_path, section | {"zero_point": True}, write.awq("x", m))
    kept = ("q4g32h", True) if symmetric else ("q6", False)
    check(source.array("x.weight"), m.values, kept)


def test_auto_round(tmp_path: Path) -> None:
    m = write.random_matrix(np.random.default_rng(8), 32, 64)
    section = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "data_type": "int"}
    source = source_of(
        tmp_path, section | {"packing_format": "auto_round:auto_gptq"}, write.gptq("x", m, 4)
    )
    check(source.array("x.weight"), m.values, ("q4g32h", True))
    source = source_of(
        tmp_path, section | {"packing_format": "auto_round:auto_awq"}, write.awq("x", m)
    )
    check(source.array("x.weight"), m.values, ("q4g32h", True))


# --- FP8 and FP4 ---------------------------------------------------------------------------------

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 32]}


@pytest.mark.parametrize(
    ("tile", "shape", "dtype"),
    [
        ((16, 32), None, "F32"),
        ((16, 32), None, "BF16"),
        ((16, 32), None, "F8_E8M0"),
        ((1, 80), (40, 1), "F32"),
        ((1, 80), (40,), "BF16"),
        ((40, 80), (), "F32"),
        ((40, 80), (1,), "F16"),
    ],
)
@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2"])
def test_fp8(tmp_path: Path, tile: tuple, shape: tuple | None, dtype: str, kind: str) -> None:
    rng = np.random.default_rng(9)
    tensors, values = write.fp8("x", rng, 40, 80, tile, kind=kind, dtype=dtype, shape=shape)
    tensors["x.input_scale"] = ("F32", np.ones((), np.float32))
    rows = source_of(tmp_path, FP8, tensors).array("x.weight")
    np.testing.assert_array_equal(np.asarray(rows), values)
    np.testing.assert_array_equal(np.asarray(rows[3:40:5]), values[3:40:5])
    assert rows.kept == type(rows.kept)("q8", False)


def test_fp8_of_other_tools(tmp_path: Path) -> None:
    rng = np.random.default_rng(10)
    tensors, values = write.fp8("x", rng, 24, 64, (1, 64), scale="weight_scale", shape=(24, 1))
    tensors["x.input_scale"] = ("F32", np.ones((), np.float32))
    tensors["n.weight"] = ("BF16", np.zeros(3, np.uint16))
    for section in ({"quant_method": "fbgemm_fp8"}, FP8):
        source = source_of(tmp_path, section, tensors)
        np.testing.assert_array_equal(np.asarray(source.array("x.weight")), values)
        assert set(source.file_of) == {"x.weight", "n.weight"}
        assert list(source.ignored.values()) == [["x.input_scale"]]


def test_fp8_that_is_no_number(tmp_path: Path) -> None:
    tensors, _ = write.fp8("x", np.random.default_rng(11), 16, 32, (16, 32))
    tensors["x.weight"][1][5, 7] = 0x7F
    rows = source_of(tmp_path, FP8, tensors).array("x.weight")
    assert np.isnan(np.asarray(rows)[5, 7])
    out = np.empty(_core.packed_nbytes("q8", 16, 32), np.uint8)
    with pytest.raises(ValueError, match="row 5, column 7"):
        rows.pack("q8", out, 1)


def test_mxfp4_of_gpt_oss(tmp_path: Path) -> None:
    blocks, scales, values = write.mxfp4(np.random.default_rng(12), 3, 20, cols=96)
    tensors = {"m.experts.up_blocks": ("U8", blocks), "m.experts.up_scales": ("U8", scales)}
    source = source_of(tmp_path, {"quant_method": "mxfp4"}, tensors)
    assert source.entry("m.experts.up").shape == (3, 96, 20)
    for expert in range(3):
        turned = source.array("m.experts.up")[expert]
        assert turned.shape == (96, 20)
        check(turned.T, values[expert], ("mxfp4", True))


def test_mxfp4_of_a_wide_range(tmp_path: Path) -> None:
    """More binades in a row than mxfp4 holds: bfloat16 does; blocks of zeros do not count."""
    blocks, scales, _ = write.mxfp4(np.random.default_rng(13), 1, 20, cols=96)
    scales[0, 7] = 80, 120, 100
    tensors = {"x_blocks": ("U8", blocks), "x_scales": ("U8", scales)}
    for zeros, kept in ((False, ("bf16", True)), (True, ("mxfp4", True))):
        if zeros:
            blocks[0, 7, 0] = 0x80  # e2m1 has two zeros
        number = np.array([*write.E2M1, *(-x for x in write.E2M1)])
        halves = np.stack([blocks & 15, blocks >> 4], -1).reshape(20, 96)
        values = number[halves] * np.repeat(2.0 ** (scales[0].astype(float) - 127), 32, axis=1)
        source = source_of(tmp_path, {"quant_method": "mxfp4"}, tensors)
        check(source.array("x")[0].T, values.astype(np.float32), kept)


# --- compressed-tensors --------------------------------------------------------------------------


def compressed_config(form: str, **weights) -> dict:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [32, -1])
def test_pack_quantized(tmp_path: Path, bits: int, symmetric: bool, group: int) -> None:
    """90 columns: the last word of a row is not full, nor is the last group."""
    rng = np.random.default_rng(14)
    cols = 90 if group == -1 else 96
    m = write.random_matrix(
        rng, 21, cols, bits=bits, group=group, symmetric=symmetric, dtype="BF16"
    )
    section = compressed_config("pack-quantized", num_bits=bits, type="int", group_size=group)
    tensors = write.compressed("x", m, bits, symmetric=symmetric)
    if symmetric or bits < 4:
        kept = ("q4g32h" if bits <= 4 else "q8g32h", True)
    else:
        kept = {4: ("q6", False), 6: ("q8g32h", True), 8: ("q8", False)}[bits]
    check(source_of(tmp_path, section, tensors).array("x.weight"), m.values, kept)


def test_pack_quantized_of_many_rows(tmp_path: Path) -> None:
    m = write.random_matrix(np.random.default_rng(15), 150, 64, bits=3, symmetric=False)
    section = compressed_config("pack-quantized", num_bits=3, group_size=32)
    tensors = write.compressed("x", m, 3, symmetric=False, dtype="F16")
    check(source_of(tmp_path, section, tensors).array("x.weight"), m.values, ("q4g32h", True))


def test_pack_quantized_in_another_order(tmp_path: Path) -> None:
    m = write.random_matrix(np.random.default_rng(15), 21, 96, order=True, dtype="BF16")
    section = compressed_config("pack-quantized", num_bits=4, group_size=32, actorder="group")
    tensors = write.compressed("x", m, 4, symmetric=True, order=True)
    check(source_of(tmp_path, section, tensors).array("x.weight"), m.values, ("q6", False))


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (FP8 | {"activation_scheme": "dynamic"}, "activation_scheme"),
        (
            compressed_config("int-quantized", num_bits=8) | {"kv_cache_scheme": {}},
            "kv_cache_scheme",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "quantization_config": {
                    "config_groups": {"group_0": {"input_activations": {"num_bits": 8}}}
                },
            },
            "quantization_config.config_groups.group_0.input_activations",
        ),
        (compressed_config("int-quantized", num_bits=8), None),
    ],
)
def test_activations_that_stay_as_they_are_are_told(section: dict, said: str | None) -> None:
    _, notes = read_quantization({"quantization_config": section})
    where = f"config.quantization_config.{said}"
    assert notes == ([f"activations stay as they are, whatever {where} says"] if said else [])


def test_pack_quantized_groups_are_those_of_the_config(tmp_path: Path) -> None:
    """The last may have fewer inputs; as many scales of groups of another size are refused."""
    m = write.random_matrix(np.random.default_rng(15), 21, 96, group=64, dtype="F16")
    tensors = write.compressed("x", m, 4, symmetric=True, dtype="F16")
    section = compressed_config("pack-quantized", num_bits=4, group_size=64)
    check(source_of(tmp_path, section, tensors).array("x.weight"), m.values, ("q4g32h", True))
    for sizes in ((32,), (), (64, 80)):
        section = compressed_config("pack-quantized", num_bits=4)
        for i, size in enumerate(sizes):
            weights = {"num_bits": 4, "group_size": size}
            section["config_groups"][f"group_{i + 1}"] = {"weights": weights}
        with pytest.raises(CorruptFile, match=r"weight_scale' has shape \[21, 2\]; .* groups of"):
            source_of(tmp_path, section, tensors)


def test_pack_quantized_groups_of_different_widths(tmp_path: Path) -> None:
    rng = np.random.default_rng(16)
    four = write.random_matrix(rng, 20, 64, dtype="BF16")
    eight = write.random_matrix(rng, 20, 64, bits=8, dtype="BF16")
    section = compressed_config("pack-quantized", num_bits=4, group_size=32)
    section["config_groups"]["group_1"] = {"targets": ["y"], "weights": {"num_bits": 8}}
    tensors = write.compressed("x", four, 4, symmetric=True)
    tensors |= write.compressed("y", eight, 8, symmetric=True)
    source = source_of(tmp_path, section, tensors)
    np.testing.assert_array_equal(np.asarray(source.array("x.weight")), four.values)
    np.testing.assert_array_equal(np.asarray(source.array("y.weight")), eight.values)


@pytest.mark.parametrize("form", ["int-quantized", "naive-quantized"])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("group", [32, -1])
def test_int_quantized(tmp_path: Path, form: str, dtype: str, group: int) -> None:
    rng = np.random.default_rng(17)
    section = compressed_config(form, num_bits=8, type="int", group_size=group)
    for symmetric in (True, False):
        m = write.random_matrix(rng, 21, 96, bits=8, group=group, symmetric=symmetric, dtype=dtype)
        for flat in (False, True)[: 2 if group == -1 else 1]:
            tensors = write.int8("x", m, symmetric=symmetric, dtype=dtype, flat=flat)
            exact = symmetric and (dtype == "BF16" or group == -1)
            kept = ("q8g32h", True) if exact else ("q8", False)
            check(source_of(tmp_path, section, tensors).array("x.weight"), m.values, kept)


def test_int_quantized_per_tensor(tmp_path: Path) -> None:
    m = write.random_matrix(np.random.default_rng(18), 21, 96, bits=8, group=-1, dtype="F32")
    m.scales[:] = m.scales[0]
    tensors = write.int8("x", m, symmetric=True, dtype="F32")
    tensors["x.weight_scale"] = ("F32", m.scales[0, :1])
    section = compressed_config("int-quantized", num_bits=8, type="int", strategy="tensor")
    check(source_of(tmp_path, section, tensors).array("x.weight"), m.values, ("q8g32h", True))


@pytest.mark.parametrize(
    ("form", "tile", "weights"),
    [
        ("float-quantized", (1, 96), {"strategy": "channel"}),
        ("float-quantized", (24, 96), {"strategy": "tensor"}),
        ("float-quantized", (16, 32), {"strategy": "block", "block_structure": [16, 32]}),
        ("naive-quantized", (1, 32), {"strategy": "group", "group_size": 32}),
        ("mxfp8-quantized", (1, 32), {"strategy": "group", "group_size": 32}),
    ],
)
def test_float_quantized(tmp_path: Path, form: str, tile: tuple, weights: dict) -> None:
    rng = np.random.default_rng(19)
    dtype = "U8" if form == "mxfp8-quantized" else "BF16"
    tensors, values = write.fp8("x", rng, 24, 96, tile, scale="weight_scale", dtype=dtype)
    section = compressed_config(form, num_bits=8, type="float", **weights)
    rows = source_of(tmp_path, section, tensors).array("x.weight")
    np.testing.assert_array_equal(np.asarray(rows), values)
    np.testing.assert_array_equal(np.asarray(rows[5:20]), values[5:20])


def test_packed_float4(tmp_path: Path) -> None:
    rng = np.random.default_rng(20)
    blocks, scales, values = write.mxfp4(rng, 24, cols=96)
    tensors = {
        "x.weight_packed": ("U8", blocks.reshape(24, 48)),
        "x.weight_scale": ("U8", scales),
    }
    section = compressed_config("mxfp4-pack-quantized", num_bits=4, type="float", group_size=32)
    check(source_of(tmp_path, section, tensors).array("x.weight"), values, ("mxfp4", True))

    eight = rng.integers(8, 120, (24, 6)).astype(np.uint8)
    whole = np.array([700.0], np.float32)
    tensors["x.weight_scale"] = ("F8_E4M3", eight)
    tensors["x.weight_global_scale"] = ("F32", whole)
    number = values / np.repeat(2.0 ** (scales.astype(np.float32) - 127), 32, axis=1)
    each = np.array([[write.e4m3(int(b)) for b in row] for row in eight], np.float32) / whole
    section = compressed_config(
        "nvfp4-pack-quantized", num_bits=4, type="float", group_size=16, strategy="tensor_group"
    )
    rows = source_of(tmp_path, section, tensors).array("x.weight")
    expected = number.astype(np.float32) * np.repeat(each, 16, axis=1)
    check(rows, expected, ("q6", False))


# --- Configs -------------------------------------------------------------------------------------

REFUSED = [
    *({"quant_method": m} for m in ("bitsandbytes", "hqq", "aqlm", "quanto", "torchao", "quark")),
    {},
    {"quant_method": ["gptq"]},
    GPTQ | {"bits": 5},
    GPTQ | {"bits": "4"},
    GPTQ | {"bits": True},
    GPTQ | {"group_size": 0},
    GPTQ | {"group_size": 2**40},
    GPTQ | {"checkpoint_format": "marlin"},
    GPTQ | {"format": "gptq_p"},
    GPTQ | {"pack_dtype": "int64"},
    GPTQ | {"is_marlin_format": True},
    GPTQ | {"desc_act": "yes"},
    GPTQ | {"adapter": {"rank": 8}},
    {"quant_method": "awq", "bits": 3},
    {"quant_method": "awq", "bits": 4, "version": "gemv"},
    {"quant_method": "awq", "bits": 4, "backend": "llm-awq"},
    {"quant_method": "auto-round", "bits": 4},
    {"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:gptq"},
    {"quant_method": "auto-round", "data_type": "nv_fp"},
    FP8 | {"weight_block_size": [128]},
    FP8 | {"weight_block_size": [128, -1]},
    FP8 | {"fmt": "e3m4"},
    FP8 | {"expert_dtype": "fp4"},
    FP8 | {"activation_scheme": "learned"},
    compressed_config("marlin-24", num_bits=4),
    compressed_config("sparse-bitmask", num_bits=4),
    compressed_config("pack-quantized", num_bits=9),
    compressed_config("pack-quantized", num_bits=4, type="complex"),
    compressed_config("pack-quantized", num_bits=4, dynamic=True),
    compressed_config("pack-quantized", num_bits=4) | {"transform_config": {"a": 1}},
    compressed_config("dense", num_bits=8) | {"sparsity_config": {"format": "sparse-24-bitmask"}},
    compressed_config("pack-quantized") | {"config_groups": {"W4A16": ["Linear"]}},
]  # fmt: skip


@pytest.mark.parametrize("section", REFUSED, ids=range(len(REFUSED)))
def test_configs_that_are_refused(section: dict) -> None:
    with pytest.raises(UnsupportedModel, match=r"config\.quantization_config\."):
        read_quantization({"quantization_config": section})


def test_every_method_stands_in_the_guide(repository: Path) -> None:
    guide = (repository / "python/musespark/docs/models.md").read_text(encoding="utf-8")
    (row,) = re.findall(r"^\| quantized safetensors \| (.*)", guide, re.M)
    assert set(re.findall(r"`([\w-]+)`", row)) == set(METHODS)


def test_where_a_config_is_found() -> None:
    assert read_quantization({}) == (None, [])
    assert read_quantization({"quantization_config": None}) == (None, [])
    section = compressed_config("pack-quantized", num_bits=4)
    nested = {"quantization_config": section, "sparsity_config": {"format": "dense"}}
    for given in (section, nested):
        reader, notes = read_quantization({"compression_config": given})
        assert reader is not None and notes == []
    with pytest.raises(UnsupportedModel, match="quantization_config is there too"):
        read_quantization({"compression_config": section, "quantization_config": section})
    with pytest.raises(UnsupportedModel, match="an object is needed"):
        read_quantization({"quantization_config": "gptq"})


def test_keys_that_nobody_reads_are_noted() -> None:
    section = GPTQ | {"damp_percent": 0.1, "meta": {"quantizer": ["x:1"]}, "novelty": 1}
    _, notes = read_quantization({"quantization_config": section})
    assert len(notes) == 1 and notes[0].endswith("read: config.quantization_config.novelty")


# --- Damage --------------------------------------------------------------------------------------


def damaged(tensors: write.Tensors, part: str, change) -> write.Tensors:
    out = dict(tensors)
    if change is None:
        del out[part]
    else:
        out[part] = change(*out[part])
    return out


def cut(dtype: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    return dtype, array[: len(array) // 3]


def flat(dtype: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    return dtype, array.reshape(-1)


def empty(dtype: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    return dtype, array[:0]


def retyped(dtype: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    return "F64", np.zeros(array.shape)


CHANGES = {"missing": None, "cut": cut, "flat": flat, "empty": empty, "retyped": retyped}


def damage_cases():
    m = write.random_matrix(np.random.default_rng(21), 32, 64, dtype="BF16")
    eight = write.random_matrix(np.random.default_rng(21), 32, 64, bits=8, dtype="BF16")
    packed = compressed_config("pack-quantized", num_bits=4, group_size=32)
    asymmetric = write.compressed("x", m, 4, symmetric=False, order=True)
    bytes8 = write.int8("x", eight, symmetric=False, dtype="BF16")
    fp8, _ = write.fp8("x", np.random.default_rng(1), 40, 80, (16, 32))
    blocks, scales, _ = write.mxfp4(np.random.default_rng(1), 2, 16, cols=64)
    nv = {
        "x.weight_packed": ("U8", blocks.reshape(32, 32)),
        "x.weight_scale": ("F8_E4M3", np.full((32, 4), 50, np.uint8)),
        "x.weight_global_scale": ("F32", np.ones(1, np.float32)),
    }
    return {
        "gptq": (GPTQ | {"desc_act": True}, write.gptq("x", m, 4, g_idx=True)),
        "awq": ({"quant_method": "awq", "bits": 4, "group_size": 32}, write.awq("x", m)),
        "packed": (packed, asymmetric),
        "int8": (compressed_config("int-quantized", num_bits=8, group_size=32), bytes8),
        "fp8": (FP8, fp8),
        "mxfp4": (
            {"quant_method": "mxfp4"}, {"x_blocks": ("U8", blocks), "x_scales": ("U8", scales)},
        ),
        "nvfp4": (compressed_config("nvfp4-pack-quantized", num_bits=4, type="float"), nv),
    }  # fmt: skip


DAMAGE = damage_cases()
# What is simply another valid file: optional parts, and matrices with other names.
OPTIONAL = {
    ("packed", "x.weight_zero_point"), ("packed", "x.weight_g_idx"),
    ("int8", "x.weight_zero_point"), ("gptq", "x.qweight"), ("awq", "x.qweight"),
    ("packed", "x.weight_packed"),
    ("int8", "x.weight"), ("fp8", "x.weight"), ("mxfp4", "x_blocks"), ("nvfp4", "x.weight_packed"),
    ("nvfp4", "x.weight_global_scale"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", DAMAGE)
def test_parts_that_do_not_fit(tmp_path: Path, kind: str, change: str) -> None:
    section, tensors = DAMAGE[kind]
    tried = 0
    for part in tensors:
        if change in ("missing", "retyped") and (kind, part) in OPTIONAL:
            continue
        if change in ("cut", "flat") and tensors[part][1].ndim < 2:
            continue
        tried += 1
        with pytest.raises(CorruptFile, match=r"tensor '"):
            source_of(tmp_path, section, damaged(tensors, part, CHANGES[change]))
    assert tried or change == "missing"


def test_orders_that_name_other_groups(tmp_path: Path) -> None:
    for kind, part in (("gptq", "x.g_idx"), ("packed", "x.weight_g_idx")):
        section, tensors = DAMAGE[kind]
        for bad in (-1, 2, 2**31 - 1):
            order = tensors[part][1].copy()
            order[5] = bad
            source = source_of(tmp_path, section, tensors | {part: ("I32", order)})
            with pytest.raises(CorruptFile, match=rf"names group {bad} of 2"):
                np.asarray(source.array("x.weight"))


def test_shapes_that_lie(tmp_path: Path) -> None:
    section, tensors = DAMAGE["packed"]
    for shape in ([32, 63], [31, 64], [32, 2**40], [32, -64], [-1, 64]):
        with pytest.raises(CorruptFile, match=r"tensor 'x.weight_(shape|packed|scale|g_idx)'"):
            source_of(tmp_path, section, tensors | {"x.weight_shape": ("I64", np.array(shape))})


def test_a_matrix_that_is_there_twice(tmp_path: Path) -> None:
    section, tensors = DAMAGE["gptq"]
    plain = {"x.weight": ("F32", np.zeros((32, 64), np.float32))}
    with pytest.raises(CorruptFile, match=r"'x\.weight' is there twice"):
        source_of(tmp_path, section, tensors | plain)
    section, tensors = DAMAGE["fp8"]
    scale = {"x.weight_scale": ("F32", np.ones(1, np.float32))}
    with pytest.raises(CorruptFile, match="both there"):
        source_of(tmp_path, section, tensors | scale)
