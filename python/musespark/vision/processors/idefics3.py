"""Idefics3 and SmolVLM: the image enlarged to a grid of square tiles, then the whole of it again as
one tile. Sizes as in image_processing_pil_idefics3.py, text as in processing_idefics3.py."""

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

_LONGEST = 4096  # of the resized image, whatever the configuration says

FAKE = "<fake_token_around_image>"
GLOBAL = "<global-img>"


def longest_edge_size(size: Size, longest: int) -> Size:
    """The size with that longest edge; the other one even, but never beyond the limit."""
    height, width = size
    aspect = width / height
    if width >= height:
        width = longest
        height = int(width / aspect)
        height += height % 2
    else:
        height = longest
        width = int(height * aspect)
        width += width % 2
    height, width = max(height, 1), max(width, 1)
    aspect = width / height
    if width >= height and width > _LONGEST:
        width, height = _LONGEST, int(_LONGEST / aspect)
    elif height > width and height > _LONGEST:
        height, width = _LONGEST, int(_LONGEST * aspect)
    return max(height, 1), max(width, 1)


def tiled_size(size: Size, tile: int) -> Size:
    """The next multiples of the tile, the shorter side from the longer."""
    height, width = size
    aspect = width / height
    if width >= height:
        width = math.ceil(width / tile) * tile
        height = math.ceil(int(width / aspect) / tile) * tile
    else:
        height = math.ceil(height / tile) * tile
        width = math.ceil(int(height * aspect) / tile) * tile
    return height, width


class Idefics3(Processor):
    """Tiles row by row, then the global image; or the global image alone, where one is enough."""

    defaults: ClassVar[Mapping[str, Any]] = {
        **COMMON,
        "size": {"longest_edge": 4 * 364},
        "max_image_size": {"longest_edge": 364},
        "do_image_splitting": True,
        "resample": 1,
    }

    def setup(self) -> None:
        (self.tile,) = self.settings.size("max_image_size", "longest_edge", most=_LONGEST)
        self.filter = self.settings.filter()
        self.split = self.settings.flag("do_image_splitting")
        self.patch = self.model_count("patch_size", 14)
        self.sequence = self.processor_count("image_seq_len", 169)

    def resized(self, stage: Stage) -> Stage:
        if not self.settings.flag("do_resize"):
            return stage
        if self.settings.has_size("size", "longest_edge"):
            (longest,) = self.settings.size("size", "longest_edge")
            return stage.resized(longest_edge_size(stage.size, longest), self.filter)
        height, width = self.settings.size("size", "height", "width")
        return stage.resized((height, width), self.filter)

    def stages(self, picture: Picture) -> tuple[list[Stage], int, int]:
        """The tiles, and the rows and columns they form (0 and 0: the global image alone)."""
        stage = self.resized(Stage.of(picture))
        square = (self.tile, self.tile)
        if not self.split:
            return [stage.resized(square, self.filter)], 0, 0
        stage = stage.resized(tiled_size(stage.size, self.tile), self.filter)
        rows, columns = stage.size[0] // self.tile, stage.size[1] // self.tile
        if rows * columns == 1:
            return [stage], 0, 0
        whole = stage.resized(square, self.filter)
        return [*stage.grid_of(rows, columns, square), whole], rows, columns

    def process_picture(self, picture: Picture) -> ProcessedImage:
        stages, rows, columns = self.stages(picture)
        tiles = [self.tile_of(stage, self.sequence) for stage in stages]
        return self.finished(picture, stages, tiles, self.pieces(rows, columns))

    def pieces(self, rows: int, columns: int) -> tuple[Piece, ...]:
        image = Piece(self.placeholder, self.sequence, True)
        pieces = []
        for row in range(rows):
            for column in range(columns):
                pieces += [Piece(FAKE), Piece(f"<row_{row + 1}_col_{column + 1}>"), image]
            pieces.append(Piece("\n"))
        if rows:
            pieces.append(Piece("\n"))
        return (*pieces, Piece(FAKE), Piece(GLOBAL), image, Piece(FAKE))
