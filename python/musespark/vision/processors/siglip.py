"""SigLIP: the whole image squeezed to one size. The image processor of Siglip and, with another
resampling and text around it, of Gemma 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from musespark.vision.pixels import Picture
from musespark.vision.preprocess import (
    COMMON,
    ProcessedImage,
    Processor,
    Size,
    Stage,
)


class Siglip(Processor):
    """One tile; the pieces are image tokens alone, one for each patch."""

    defaults: ClassVar[Mapping[str, Any]] = {
        **COMMON,
        "size": {"height": 224, "width": 224},
        "resample": 3,
    }

    def setup(self) -> None:
        self.settings.must_be("do_resize", True)
        height, width = self.settings.size("size", "height", "width")
        self.size: Size = (height, width)
        self.filter = self.settings.filter()
        self.patch = self.model_count("patch_size", 16)

    def process_picture(self, picture: Picture) -> ProcessedImage:
        return self.one_tile(picture, Stage.of(picture).resized(self.size, self.filter))
