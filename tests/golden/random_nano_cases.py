"""A network of Nano's shape with weights from a seed, as a folder; and what it is asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from musespark.lab.item import Item
from musespark.lab.raster import Picture

NANO = Path(__file__).resolve().parents[2] / "python" / "musespark" / "nano"
NEW_TOKENS = 16
#: Pictures as muse_glimmer's processor takes Nano's: patches of 8, at most 64 tokens.
PREPARED = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2, "max_image_tokens": 64}


def write(folder: Path, seed: int = 11) -> None:
    """Every matrix spread so widely that no two tokens come close."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(NANO / name, folder / name)
    settings = PREPARED | {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 1}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    save_file(tensors(seed), folder / "model.safetensors", metadata={"format": "pt"})


def tensors(seed: int) -> dict[str, np.ndarray]:
    """Its weights by the names of the checkpoint."""
    rng, made = np.random.default_rng(seed), {}
    with safe_open(NANO / "model.safetensors", "np") as shapes:
        for name in sorted(shapes.keys()):
            shape = shapes.get_slice(name).get_shape()
            spread = 0.09 if len(shape) > 1 else 0.02
            made[name] = (rng.standard_normal(shape) * spread).astype(np.float32)
    return made


def items() -> list[Item]:
    """Text, a tool, one picture, two pictures of other shapes."""
    tool = {"name": "timer", "description": "d", "parameters": {"type": "object", "properties": {}}}
    cases = [((), "What is 12 + 30?", None), ((), "Set a timer.", [tool])]
    cases += [(((128, 128),), "What do you see?", None), (((128, 128),), "How many?", [tool])]
    cases += [(((64, 128), (48, 32)), "Which is larger?", None)]
    out = []
    for seed, (sizes, question, tools) in enumerate(cases):
        rng = np.random.default_rng(seed)
        pictures = [Picture(rng.integers(0, 256, (*size, 3), np.uint8)) for size in sizes]
        content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content if pictures else question}]
        told = tools and [{"type": "function", "function": t} for t in tools]
        effort = ("low", "medium", "high")[seed % 3]
        out.append(
            Item("t", "easy", effort, "k", messages, None, "", "none", told, pictures=pictures)
        )
    return out
