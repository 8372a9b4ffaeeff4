"""Model folders for tests: the golden cases' random weights as Hugging Face checkpoints."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from musespark.families import family_for
from musespark.families.spec import ModelSpec

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
sys.path.insert(0, str(GOLDEN))
from cases import CASES, Case  # noqa: E402
from weights import random_weight  # noqa: E402

__all__ = ["CASES", "Case", "Golden", "checkpoint_weights", "write_folder"]
_DTYPES = {np.dtype("f4"): "F32", np.dtype("f2"): "F16", np.dtype("u2"): "BF16",
           np.dtype("u1"): "U8"}  # fmt: skip


@dataclass(frozen=True)
class Golden:
    """What transformers computed for a case and seed; see tests/golden/make.py."""

    tokens: np.ndarray
    positions: np.ndarray
    logits: np.ndarray
    margins: np.ndarray

    @classmethod
    def of(cls, name: str, seed: int) -> Golden:
        with np.load(GOLDEN / f"{name}.npz") as stored:
            return cls(*(stored[f"{field.name}_{seed}"] for field in dataclasses.fields(cls)))

    def distance(self, logits: np.ndarray) -> float:
        """Largest difference of logits at all positions, as a share of the reference's range."""
        found = logits[self.positions]
        assert found.shape == self.logits.shape
        return float(np.abs(found - self.logits).max() / np.ptp(self.logits))


def stored_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the checkpoint that transformers writes for a case."""
    with np.load(GOLDEN / f"{case.name}.npz") as stored:
        return {
            name: tuple(shape) for name, shape in json.loads(stored["tensors"].tobytes()).items()
        }


def checkpoint_weights(case: Case, seed: int) -> dict[str, np.ndarray]:
    """The random checkpoint of a case, without what is not its text tower; float32."""
    shapes = stored_shapes(case)
    spec = family_for(case.config).spec(case.config)
    used = {part.name for part in family_for(case.config).tensors(spec, shapes).sources.values()}
    tied = "lm_head.weight" not in shapes
    return {
        name: random_weight(case.family, seed, name, shape, tied)
        for name, shape in shapes.items()
        if name in used
    }


def canonical_weights(case: Case, seed: int) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """The spec and the random weights under their canonical names, float32."""
    family, weights = family_for(case.config), checkpoint_weights(case, seed)
    spec = family.spec(case.config)
    sources = family.tensors(spec, weights).sources
    return spec, {name: part.of(weights[part.name]) for name, part in sources.items()}


def to_bf16(array: np.ndarray) -> np.ndarray:
    """The upper 16 bits of float32 (truncated), as uint16."""
    return (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def safetensors_bytes(tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None):
    """A safetensors file; uint16 arrays are stored as BF16."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, array in tensors.items():
        end = at + array.nbytes
        header[name] = {
            "dtype": _DTYPES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [at, end],
        }
        at = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    return b"".join(
        [len(encoded).to_bytes(8, "little"), encoded, *(a.tobytes() for a in tensors.values())]
    )


def write_folder(
    folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], shards: int = 1
) -> Path:
    """A model folder: config.json, and model.safetensors or shards with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
        return folder
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for i in range(shards):
        part = names[i::shards]
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        (folder / file).write_bytes(safetensors_bytes({n: tensors[n] for n in part}))
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
