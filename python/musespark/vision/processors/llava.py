"""LLaVA 1.5: CLIP's preprocessing, the shorter side resized and the middle cut out; padded to a
square before, if so configured. As in image_processing_pil_llava.py, image_processing_pil_clip.py
and processing_llava.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from musespark.errors import UnsupportedModel
from musespark.vision.pixels import Picture
from musespark.vision.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    COMMON,
    ProcessedImage,
    Processor,
    Size,
    Stage,
)


def shortest_edge_size(size: Size, shortest: int) -> Size:
    height, width = size
    longest = int(shortest * max(size) / min(size))
    return (longest, shortest) if width <= height else (shortest, longest)


class Llava(Processor):
    """One tile; the class token counts as one where the tower's output keeps it."""

    defaults: ClassVar[Mapping[str, Any]] = {
        **COMMON,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "size": {"shortest_edge": 224},
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "do_pad": False,
        "resample": 3,
        "image_processor_type": "",
    }

    convention = "llava"

    def setup(self) -> None:
        settings = self.settings
        settings.must_be("do_resize", True)
        self.filter = settings.filter()
        # CLIP's own processor pads to the largest of a batch: nothing for one image.
        kind = str(settings.values["image_processor_type"])
        self.pad = settings.flag("do_pad") and kind.startswith("Llava")
        self.crop: Size | None = None
        if settings.flag("do_center_crop"):
            height, width = settings.size("crop_size", "height", "width")
            self.crop = (height, width)
        elif settings.has_size("size", "shortest_edge"):
            raise UnsupportedModel("image processor: do_center_crop = false with a shortest edge")
        self.patch = self.processor_count("patch_size", self.model_count("patch_size", 14))
        keep = self.processor.get("vision_feature_select_strategy")
        keep = keep or self.config.get("vision_feature_select_strategy", "default")
        added = self.processor_count("num_additional_image_tokens", 1)
        self.added_tokens = added - (1 if keep == "default" else 0)

    def resized(self, stage: Stage) -> Stage:
        if self.settings.has_size("size", "height"):
            height, width = self.settings.size("size", "height", "width")
            return stage.resized((height, width), self.filter)
        (shortest,) = self.settings.size("size", "shortest_edge", square=False)
        return stage.resized(shortest_edge_size(stage.size, shortest), self.filter)

    def padded(self, stage: Stage) -> Stage:
        """Square, with the mean colour above and below or beside."""
        height, width = stage.size
        if height == width:
            return stage
        side = max(height, width)
        colour = [int(mean * 255) for mean in self.settings.colour("image_mean")]
        return stage.padded((side, side), (side - width) // 2, (side - height) // 2, colour)

    def process_picture(self, picture: Picture) -> ProcessedImage:
        stage = Stage.of(picture)
        stage = self.resized(self.padded(stage) if self.pad else stage)
        if self.crop is not None:
            stage = stage.centre(self.crop)
        return self.one_tile(picture, stage, self.tile_of(stage).tokens + self.added_tokens)
