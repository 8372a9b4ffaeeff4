"""Gemma 3: the whole image squeezed to a square, and with pan and scan crops of long ones after it.
As in image_processing_pil_gemma3.py and processing_gemma3.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from musespark.vision.pixels import Picture
from musespark.vision.preprocess import (
    COMMON,
    Piece,
    ProcessedImage,
    Processor,
    Size,
    Stage,
)


def crops_along(long: int, short: int, least: int, most: int, ratio: float) -> int:
    """How many crops the longer side is cut into; 1: none."""
    if long / short < ratio:
        return 1
    count = min(math.floor(long / least), math.floor(long / short + 0.5))
    count = min(most, max(2, count))
    return 1 if min(math.ceil(long / count), short) < least else count


class Gemma3(Processor):
    """The image, then its crops; each a tile of ``image_seq_length`` tokens."""

    defaults: ClassVar[Mapping[str, Any]] = {
        **COMMON,
        "size": {"height": 224, "width": 224},
        "resample": 2,
        "do_pan_and_scan": False,
        "pan_and_scan_min_crop_size": 256,
        "pan_and_scan_max_num_crops": 4,
        "pan_and_scan_min_ratio_to_activate": 1.2,
    }
    placeholder = "<start_of_image>"

    def setup(self) -> None:
        settings = self.settings
        settings.must_be("do_resize", True)
        height, width = settings.size("size", "height", "width")
        self.size: Size = (height, width)
        self.filter = settings.filter()
        self.scan = settings.flag("do_pan_and_scan")
        self.least_crop = settings.count("pan_and_scan_min_crop_size")
        self.most_crops = settings.count("pan_and_scan_max_num_crops", most=256)
        self.ratio = settings.number("pan_and_scan_min_ratio_to_activate")
        self.patch = self.model_count("patch_size", 14)
        tokens = self.config.get("mm_tokens_per_image")
        self.sequence = self.processor_count(
            "image_seq_length", tokens if isinstance(tokens, int) else 256
        )

    def crops(self, stage: Stage) -> list[Stage]:
        if not self.scan:
            return []
        height, width = stage.size
        count = crops_along(
            max(height, width), min(height, width), self.least_crop, self.most_crops, self.ratio
        )
        if count == 1:
            return []
        if width >= height:
            return stage.grid_of(1, count, (height, math.ceil(width / count)))
        return stage.grid_of(count, 1, (math.ceil(height / count), width))

    def process_picture(self, picture: Picture) -> ProcessedImage:
        whole = Stage.of(picture)
        stages = [each.resized(self.size, self.filter) for each in (whole, *self.crops(whole))]
        tiles = [self.tile_of(stage, self.sequence) for stage in stages]
        return self.finished(picture, stages, tiles, self.pieces(len(tiles) - 1))

    def pieces(self, crops: int) -> tuple[Piece, ...]:
        image = [
            Piece("\n\n"),
            Piece(self.placeholder),
            Piece("<image_soft_token>", self.sequence, True),
            Piece("<end_of_image>"),
            Piece("\n\n"),
        ]
        if not crops:
            return tuple(image)
        between = " and here are some crops to help you see better "
        pieces = [Piece("Here is the original image "), *image, Piece(between)]
        for crop in range(crops):
            pieces += ([Piece(" ")] if crop else []) + image
        return tuple(pieces)
