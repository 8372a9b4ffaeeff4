"""Pixels in: pictures, Pillow's resize, and what each model family makes of an image."""

from __future__ import annotations

from musespark.vision.boxes import boxes_schema
from musespark.vision.geometry import Transform
from musespark.vision.pixels import Limits, Picture, open_picture, open_pictures
from musespark.vision.resampling import resize

__all__ = [
    "Limits",
    "Picture",
    "Transform",
    "boxes_schema",
    "open_picture",
    "open_pictures",
    "resize",
]
