"""A tiny model as the files of a repository."""

from __future__ import annotations

import json

from support.model_folder import CASES, checkpoint_weights, safetensors_bytes

CASE = next(c for c in CASES.values() if c.family == "llama")


def model_files(seed: int = 1, shards: int = 1, **more: bytes) -> dict[str, bytes]:
    """A tiny llama as a repository."""
    tensors = checkpoint_weights(CASE, seed)
    files = {"config.json": json.dumps(CASE.config).encode(), "README.md": b"# tiny"} | more
    if shards == 1:
        return files | {"model.safetensors": safetensors_bytes(tensors)}
    names, weight_map = list(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        files[file] = safetensors_bytes({n: tensors[n] for n in names[i::shards]})
        weight_map |= dict.fromkeys(names[i::shards], file)
    index = {"metadata": {}, "weight_map": weight_map}
    return files | {"model.safetensors.index.json": json.dumps(index).encode()}
