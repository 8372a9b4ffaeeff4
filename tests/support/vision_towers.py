"""The golden vision towers of tests/golden/vision_cases.py: specs, weights, patches, rows."""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Any

import numpy as np
from vision_cases import CASES, patches, weight

from musespark.families.vision import VisionSpec, vision_spec, vision_tensors
from musespark.vision.tower import VisionTower, pack_tower
from support.model_folder import GOLDEN

__all__ = ["CASES", "canonical", "checkpoint_shapes", "golden", "grids", "patches_of", "tower"]


@functools.cache
def golden(name: str) -> dict[str, np.ndarray]:
    """What transformers gave: see tests/golden/make_vision.py."""
    with np.load(GOLDEN / f"vision_{name}.npz") as stored:
        return dict(stored)


def checkpoint_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """The tower's tensors as transformers saves them."""
    shapes = json.loads(golden(name)["tensors"].tobytes())
    return {key: tuple(shape) for key, shape in shapes.items()}


@functools.cache
def canonical(name: str) -> tuple[VisionSpec, dict[str, np.ndarray]]:
    """The spec and the weights under their canonical names."""
    case = CASES[name]
    spec = vision_spec(case.config, case.width)
    shapes = checkpoint_shapes(name)
    sources = vision_tensors(case.config, spec, [*shapes, "lm_head.weight"]).sources
    for part in sources.values():
        assert shapes[part.name] == part.stored, part
    return spec, {key: part.of(weight(part.name, part.stored)) for key, part in sources.items()}


def patches_of(name: str) -> np.ndarray:
    return patches(name, canonical(name)[0].patch_dim)


def grids(name: str) -> list[tuple[int, int, int]]:
    return CASES[name].grids


def tower(name: str, quantize: str = "f32", threads: int = 1, **changes: Any) -> VisionTower:
    """A tower of the core; `changes`: canonical tensors in place of the case's."""
    spec, weights = canonical(name)
    return VisionTower(spec, pack_tower(spec, (weights | changes).__getitem__, quantize),
                       threads=threads)  # fmt: skip


def print_digests() -> None:
    """What every case gives, a line each: the same on every instruction-set level."""
    for name in CASES:
        for quantize in ("f32", "q8"):
            found = tower(name, quantize, threads=2).encode(patches_of(name), grids(name))
            digest = hashlib.sha256(found.rows.tobytes())
            for tap in found.taps:
                digest.update(tap.tobytes())
            print(name, quantize, digest.hexdigest()[:16])
