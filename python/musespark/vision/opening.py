"""The eyes of a model: its processor and its tower from what the model's file holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from musespark.errors import UnsupportedModel
from musespark.untrusted import parse_json_object
from musespark.vision.cache import EmbeddingCache, EmbeddingFolder
from musespark.vision.eyes import Eyes
from musespark.vision.processors import processor_for
from musespark.vision.tower import TOWER_ARITHMETIC, VisionTower
from musespark.weights import ARITHMETIC_VERSION, BLIND, LoadedWeights
from musespark.weights.sight import PREPROCESSOR, PROCESSOR, says_how_images_are_prepared

IMAGE_CACHE_BYTES = 64 << 20
IMAGE_FOLDER_BYTES = 2 << 30
_SETTINGS = (PREPROCESSOR, PROCESSOR, "video_preprocessor_config.json")


def open_eyes(
    weights: LoadedWeights, threads: int, *, cache_bytes: int, folder: tuple[Path, int] | None
) -> Eyes | None:
    """The eyes of a model that has a tower, else None; also where this version cannot run what the
    tower needs, and then ``weights.info["notes"]`` says why.

    ``cache_bytes``: of embeddings remembered in memory; ``folder``: where they are kept too, with
    at most how many bytes. CorruptFile for settings or tensors that make no sense.
    """
    if weights.vision is None:
        return None
    try:
        processor = processor_of(weights.assets)
        tower = VisionTower(weights.vision, weights.tower, threads=threads)
    except UnsupportedModel as error:
        weights.info["notes"].append(f"{BLIND}{error}")
        return None
    on_disk = folder and EmbeddingFolder(*folder, ARITHMETIC_VERSION + (TOWER_ARITHMETIC << 16))
    ropes = weights.spec.ropes
    return Eyes(
        processor,
        tower,
        EmbeddingCache(cache_bytes, on_disk),
        identity=weights.identity(),
        by_axis=bool(ropes) and bool(ropes[0].axes),
    )


def processor_of(assets: Mapping[str, bytes]) -> Any:
    """The processor that the files beside a model's weights describe."""
    found = {
        name: parse_json_object(assets[name], name) if name in assets else None
        for name in ("config.json", *_SETTINGS)
    }
    config = found["config.json"] or {}
    return processor_for(config, *(found[name] for name in _SETTINGS))


def why_blind(weights: LoadedWeights) -> str:
    """What a model without eyes says of images."""
    for note in weights.info["notes"]:
        if note.startswith(BLIND):
            return note.removeprefix(BLIND)
    assets = weights.assets
    config = parse_json_object(assets.get("config.json", b"{}"), "config.json")
    if "vision_config" in config and not says_how_images_are_prepared(assets):
        return f"this model comes without {PREPROCESSOR}, and is read as text alone"
    return "this model has no vision tower; it reads text alone"
