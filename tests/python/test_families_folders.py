"""Model folders of every family as transformers saves them: packed, every number in its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from musespark import _core
from musespark.errors import CorruptFile
from musespark.weights.inspection import inspect
from musespark.weights.loading import open_model
from support.model_folder import (
    CASES,
    canonical_weights,
    checkpoint_weights,
    to_bf16,
    write_folder,
)

OF_FAMILY = {case.family: case for case in CASES.values()}
FUSED = ("phi3", "gpt_oss", "muse_spark")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSESPARK_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("family", sorted(OF_FAMILY))
def test_every_number_arrives(family: str, tmp_path: Path) -> None:
    case = OF_FAMILY[family]
    spec, weights = canonical_weights(case, 11)
    stored = checkpoint_weights(case, 11)
    folder = write_folder(tmp_path / "m", case.config, stored)
    model = open_model(folder, quantize="none")
    assert model.spec == spec and model.info["family"] == family
    assert set(model.tensors) == set(weights)
    for name, (form, rows, cols, data) in model.tensors.items():
        value = np.asarray(data) if rows == 1 else _core.unpack(form, data, rows, cols)
        np.testing.assert_array_equal(value, weights[name], err_msg=name)
    model.close()
    assert inspect(folder)["bytes"] == sum(value.nbytes for value in stored.values())


@pytest.mark.parametrize("family", FUSED)
def test_parts_of_stored_matrices_are_packed_as_matrices(family: str, tmp_path: Path) -> None:
    """The packed bytes are those of the same numbers stored one matrix by one."""
    case = OF_FAMILY[family]
    stored = {
        name: to_bf16(value) if value.ndim > 1 else value
        for name, value in checkpoint_weights(case, 11).items()
    }
    model = open_model(write_folder(tmp_path / "m", case.config, stored), quantize="q8")
    _, weights = canonical_weights(case, 11)
    quantized = 0
    for name, (form, rows, cols, data) in model.tensors.items():
        if form == "q8":
            wanted = np.empty(_core.packed_nbytes(form, rows, cols), np.uint8)
            bits = np.ascontiguousarray(to_bf16(weights[name]))
            _core.pack(form, bits, dtype="bf16", out=wanted)
            np.testing.assert_array_equal(np.asarray(data), wanted, err_msg=name)
            quantized += 1
    assert quantized > 10


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("phi3", "model.layers.1.self_attn.qkv_proj.weight"),
        ("gpt_oss", "model.layers.0.mlp.experts.gate_up_proj"),
        ("muse_spark", "model.language_model.layers.1.mlp.experts.down_proj"),
    ],
)
def test_a_stored_matrix_of_another_size_is_refused(family: str, name: str, tmp_path: Path) -> None:
    """Also where the parts that are asked for would lie inside it."""
    case = OF_FAMILY[family]
    weights = checkpoint_weights(case, 11)
    longer = [(0, 1)] + [(0, 0)] * (weights[name].ndim - 1)
    weights[name] = np.pad(weights[name], longer)
    with pytest.raises(CorruptFile, match="has shape"):
        open_model(write_folder(tmp_path / "m", case.config, weights))
