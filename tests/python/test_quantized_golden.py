"""Matrices that the quantizing tools wrote (tests/golden/make_quantized.py), to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from musespark.weights.quantized.config import read_quantization
from musespark.weights.quantized.linear import Stored
from musespark.weights.quantized.source import QuantizedSource
from musespark.weights.safetensors import Checkpoint, SafetensorsFile
from support import quantized as write

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "quantized.npz"


def load() -> dict[str, dict[tuple[str, str], np.ndarray]]:
    """Case -> {(tensor, dtype): array}."""
    cases: dict[str, dict[tuple[str, str], np.ndarray]] = {}
    with np.load(GOLDEN) as stored:
        for key in stored:
            case, name, dtype = key.split("|")
            cases.setdefault(case, {})[name, dtype] = stored[key]
    return cases


CASES = load()


def section_of(case: str) -> dict:
    kind, *rest = case.split()
    if kind == "gptq":
        return {"quant_method": "gptq", "bits": int(rest[0]), "group_size": 32}
    if kind == "awq":
        return {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
    if kind == "fp8":
        return {"quant_method": "fp8", "weight_block_size": [16, 32]}
    if kind == "mxfp4":
        return {"quant_method": "mxfp4"}
    weights = {
        "pack-quantized": [
            {"num_bits": 4, "group_size": 32},
            {"num_bits": 4, "group_size": 32},
            {"num_bits": 8},
            {"num_bits": 3},
        ],
        "int-quantized": [{}],
        "float-quantized": [
            {"type": "float"},
            {"type": "float", "block_structure": [16, 32], "strategy": "block"},
        ],
        "mxfp4-pack-quantized": [{"type": "float", "num_bits": 4, "group_size": 32}],
        "nvfp4-pack-quantized": [{"type": "float", "num_bits": 4, "group_size": 16}],
    }[kind][int(rest[0])]
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": kind, "config_groups": groups}


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 as the bits of `dtype`, to nearest even."""
    if dtype != "BF16":
        return values.astype({"F32": np.float32, "F16": np.float16}[dtype])
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


@pytest.mark.parametrize("case", CASES)
def test_values_of_the_tools(case: str, tmp_path: Path) -> None:
    tensors = {name: (dtype, array) for (name, dtype), array in CASES[case].items()}
    dtype, expected = tensors.pop("values")
    path = tmp_path / "model.safetensors"
    path.write_bytes(write.safetensors_bytes(tensors))
    stored = Stored(Checkpoint([SafetensorsFile(path)]))
    reader, notes = read_quantization({"quantization_config": section_of(case)})
    assert reader is not None and notes == []
    source = QuantizedSource(stored, reader(stored))
    (name,) = source.file_of
    assert source.entry(name).shape == expected.shape
    if expected.ndim == 2:
        got = np.asarray(source.array(name))
    else:
        got = np.stack([np.asarray(source.array(name)[e].T).T for e in range(len(expected))])
    np.testing.assert_array_equal(rounded(got, dtype), expected)


def test_every_kind_is_there() -> None:
    kinds = {case.split()[0] for case in CASES}
    assert len(CASES) == 22 and {"gptq", "awq", "fp8", "mxfp4", "int-quantized"} < kinds
