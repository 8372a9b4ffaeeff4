"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: any size, in whole blocks of merged patches. Sizes and order
as in image_processing_pil_qwen2_vl.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from musespark.errors import InvalidRequest
from musespark.vision.pixels import Picture
from musespark.vision.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    COMMON,
    ProcessedImage,
    Processor,
    Size,
    Stage,
    whole_blocks,
)

_MOST_ASPECT = 200
_CONVENTIONS = {"qwen2_vl": "qwen2-vl", "qwen2_5_vl": "qwen2.5-vl"}


def smart_size(size: Size, factor: int, least: int, most: int) -> Size:
    """:func:`whole_blocks`, for an image that is not too long."""
    height, width = size
    if max(size) / min(size) > _MOST_ASPECT:
        raise InvalidRequest(
            f"image: {width} x {height} pixels: one side is {max(size) / min(size):g} times the "
            f"other, this family takes {_MOST_ASPECT}"
        )
    return whole_blocks(size, factor, least, most)


class QwenVL(Processor):
    """One tile, its patches in merge x merge blocks; an image stands still for the frames of a
    temporal patch. The template writes the tokens around the placeholder itself."""

    defaults: ClassVar[Mapping[str, Any]] = {
        **COMMON,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},
        "min_pixels": None,
        "max_pixels": None,
        "resample": 3,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }
    placeholder = "<|image_pad|>"

    def setup(self) -> None:
        settings = self.settings
        settings.must_be("do_resize", True)
        self.least, self.most = self.pixel_limits(settings.values)
        self.filter = settings.filter()
        self.patch = settings.count("patch_size", most=1024)
        self.frames = settings.count("temporal_patch_size", most=64)
        self.merge = settings.count("merge_size", most=64)
        kind = str(self.config.get("model_type"))
        self.convention = _CONVENTIONS.get(kind, "qwen3-vl")

    def pixel_limits(self, values: dict[str, Any]) -> tuple[int, int]:
        """Pixels an image has at least and at most: of ``size``, where they are called edges, or
        under the older names."""
        size = dict(values["size"]) if isinstance(values["size"], Mapping) else {}
        for name, key in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
            if values[name] is not None:
                size[key] = values[name]
        values["size"] = size
        least, most = self.settings.size("size", "shortest_edge", "longest_edge", most=1 << 40)
        return least, most

    def fitted(self, size: Size) -> Size:
        return smart_size(size, self.patch * self.merge, self.least, self.most)

    def process_picture(self, picture: Picture) -> ProcessedImage:
        stage = Stage.of(picture)
        return self.one_tile(picture, stage.resized(self.fitted(stage.size), self.filter))
