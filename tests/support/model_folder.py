"""Model folders for tests: the golden cases' random weights as Hugging Face checkpoints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from musespark.families import family_for, llama, muse_glimmer, qwen3
from musespark.families.spec import ModelSpec
from musespark.families.tensors import canonical_shapes

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
sys.path.insert(0, str(GOLDEN))
from cases import CASES, Case  # noqa: E402
from weights import random_weight  # noqa: E402

__all__ = ["CASES", "Case", "checkpoint_weights", "source_namer", "write_folder"]
_NAMERS = {
    "llama": llama.namer("model", llama.LAYER_NAMES),
    "qwen3": llama.namer("model", qwen3.LAYER_NAMES),
    "muse_glimmer": llama.namer("model.language_model", muse_glimmer.LAYER_NAMES),
}
_DTYPES = {np.dtype("f4"): "F32", np.dtype("f2"): "F16", np.dtype("u2"): "BF16",
           np.dtype("u1"): "U8"}  # fmt: skip


def source_namer(family: str):
    """Canonical name -> name in the checkpoint."""
    return _NAMERS[family]


def canonical_weights(case: Case, seed: int) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """The spec and the random weights under their canonical names, float32."""
    spec = family_for(case.config).spec(case.config)
    centered = case.family == "muse_glimmer"
    name_of = source_namer(case.family)
    return spec, {
        name: random_weight(seed, name_of(name), shape, centered, spec.tied_head)
        for name, shape in canonical_shapes(spec).items()
    }


def checkpoint_weights(case: Case, seed: int) -> dict[str, np.ndarray]:
    """The same under the checkpoint's names."""
    name_of = source_namer(case.family)
    return {name_of(name): value for name, value in canonical_weights(case, seed)[1].items()}


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
