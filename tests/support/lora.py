"""LoRA adapters for tests: folders as PEFT saves them, and random ones for tiny models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from musespark.families.spec import ModelSpec
from musespark.families.tensors import canonical_shapes
from musespark.weights.adapters import TARGETS, _packed
from support.model_folder import CASES, GOLDEN, checkpoint_weights, safetensors_bytes, write_folder

from lora_cases import LORA_CASES, lora_value  # isort: skip - found beside cases.py

__all__ = ["LORA_CASES", "LoraGolden", "lora_config", "random_adapter", "write_adapter"]


def lora_config(**changes: Any) -> dict[str, Any]:
    """A small adapter_config.json."""
    return {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "bias": "none",
        "use_rslora": False,
        "target_modules": ["q_proj"],
    } | changes


def write_adapter(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """An adapter's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(safetensors_bytes(tensors))
    return folder


@dataclass(frozen=True)
class LoraGolden:
    """What PEFT computed for one of LORA_CASES; see tests/golden/make_lora.py."""

    name: str
    config: dict[str, Any]
    shapes: dict[str, list[int]]
    tokens: np.ndarray
    positions: np.ndarray
    logits: np.ndarray
    base: np.ndarray

    @classmethod
    def of(cls, name: str) -> LoraGolden:
        with np.load(GOLDEN / f"{name}.npz") as stored:
            texts = [json.loads(stored[key].tobytes()) for key in ("config", "tensors")]
            numbers = [stored[key] for key in ("tokens", "positions", "logits", "base")]
        return cls(name, *texts, *numbers)

    def model_folder(self, folder: Path) -> Path:
        """The model that the adapter is for."""
        case = CASES[LORA_CASES[self.name].base]
        return write_folder(folder, case.config, checkpoint_weights(case, self.seed))

    def adapter_tensors(self) -> dict[str, np.ndarray]:
        return {n: lora_value(self.seed, n, tuple(s)) for n, s in self.shapes.items()}

    def adapter_folder(self, folder: Path) -> Path:
        return write_adapter(folder, self.config, self.adapter_tensors())

    @property
    def seed(self) -> int:
        return LORA_CASES[self.name].seed

    def distance(self, found: np.ndarray, wanted: np.ndarray) -> float:
        """Largest difference of logits, as a share of the range of PEFT's."""
        assert found.shape == wanted.shape
        return float(np.abs(found - wanted).max() / np.ptp(self.logits))


def random_adapter(
    spec: ModelSpec, seed: int = 1, rank: int = 5, targets: tuple[str, ...] = TARGETS
) -> dict[str, np.ndarray]:
    """Canonical adapter weights for the reference twin, on every matrix of `targets` there is;
    each layer's ranks differ."""
    rng = np.random.default_rng(seed)
    out = {}
    for i, (name, shape) in enumerate(canonical_shapes(spec).items()):
        if name.count(".") != 2 or name.rpartition(".")[2] not in targets:
            continue
        r = rank + i % 3
        a = rng.standard_normal((r, shape[1])) * shape[1] ** -0.5
        b = rng.standard_normal((shape[0], r)) * 0.4 * r**-0.5
        out[f"{name}.lora_a"] = a.astype(np.float32)
        out[f"{name}.lora_b"] = b.astype(np.float32)
    return out


def adapter_tensors(weights: dict[str, np.ndarray]) -> dict[str, tuple]:
    """The same as the core takes them."""
    return {name: _packed(value) for name, value in weights.items()}
