"""What is in a model, without packing or running it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from musespark.errors import CorruptFile
from musespark.weights import convert, inspect
from musespark.weights.cache import cache_folder
from support.model_folder import (
    canonical_weights,
    checkpoint_weights,
    safetensors_bytes,
)
from support.packing import CASE

pytestmark = pytest.mark.usefixtures("own_cache")


class TestInspect:
    def test_a_folder_is_not_packed_for_it(self, folder: Path) -> None:
        report = inspect(folder, verify=True)
        assert report["packed"] is False and not cache_folder().exists()
        assert report["formats"].keys() == {"F32"} and report["files"][0] == "config.json"
        assert "no checksums" in report["verified"]
        assert {t["name"] for t in report["tensors"]} == set(canonical_weights(CASE, 11)[1])

    def test_a_packed_file(self, folder: Path, tmp_path: Path) -> None:
        target = tmp_path / "m.safetensors"
        info = convert(folder, target, quantize="q4")
        report = inspect(target, verify=True)
        assert report["verified"] == "every checksum" and report["quantize"] == "q4"
        assert sum(t["bytes"] for t in report["tensors"]) == report["bytes"] == info["bytes"]
        assert report["parameters"] == inspect(folder)["parameters"]
        data = bytearray(target.read_bytes())
        data[len(data) // 2] ^= 1
        target.write_bytes(data)
        with pytest.raises(CorruptFile, match="checksum"):
            inspect(target, verify=True)

    def test_what_cannot_be_packed_is_refused(self, folder: Path) -> None:
        weights = checkpoint_weights(CASE, 11)
        name = "model.norm.weight"
        (folder / "model.safetensors").write_bytes(
            safetensors_bytes(weights | {name: np.ones(7, np.float32)})
        )
        with pytest.raises(CorruptFile, match=r"model\.norm"):
            inspect(folder)
