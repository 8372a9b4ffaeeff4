"""LFM2-VL: small images in one piece of their own shape, large ones as a grid of square tiles and a
thumbnail. As in image_processing_lfm2_vl.py and processing_lfm2_vl.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from musespark.errors import CorruptFile
from musespark.vision.pixels import Picture
from musespark.vision.preprocess import (
    COMMON,
    Piece,
    ProcessedImage,
    Processor,
    Size,
    Stage,
    Tile,
    whole_blocks,
)


def grid_for(size: Size, least: int, most: int, tile: int) -> tuple[int, int]:
    """(rows, columns) of the grid of least to most tiles whose aspect is closest; of two equally
    close the later one if the image fills more than half of it."""
    height, width = size
    # A set, as there: its order is that of shapes with one area.
    shapes = {
        (columns, rows)
        for count in range(least, most + 1)
        for columns in range(1, count + 1)
        for rows in range(1, count + 1)
        if least <= columns * rows <= most
    }
    best, closest = (1, 1), math.inf
    for columns, rows in sorted(shapes, key=lambda shape: shape[0] * shape[1]):
        off = abs(width / height - columns / rows)
        fills = height * width > 0.5 * tile * tile * columns * rows
        if off < closest or (off == closest and fills):
            best, closest = (rows, columns), off
    return best


class Lfm2VL(Processor):
    """Tiles row by row, then the thumbnail; or one tile alone. A tile's grid is what the image has,
    without the padding that transformers adds to make a batch."""

    defaults: ClassVar[Mapping[str, Any]] = {
        **COMMON,
        "resample": 2,
        "downsample_factor": 2,
        "do_image_splitting": True,
        "min_tiles": 2,
        "max_tiles": 10,
        "use_thumbnail": True,
        "min_image_tokens": 64,
        "max_image_tokens": 256,
        "encoder_patch_size": 16,
        "tile_size": 512,
        "max_pixels_tolerance": 2.0,
    }
    fused = True
    inside = "yxc"

    def setup(self) -> None:
        settings = self.settings
        self.filter = settings.filter()
        self.down = settings.count("downsample_factor", most=64)
        self.least_tiles = settings.count("min_tiles", most=256)
        self.most_tiles = settings.count("max_tiles", most=256)
        if self.least_tiles > self.most_tiles:
            raise CorruptFile(
                f"image processor: min_tiles {self.least_tiles} above max_tiles {self.most_tiles}"
            )
        if not settings.flag("do_image_splitting"):
            self.least_tiles = self.most_tiles = 1
        self.thumbnail = settings.flag("use_thumbnail")
        self.least = settings.count("min_image_tokens")
        self.most = settings.count("max_image_tokens")
        self.patch = settings.count("encoder_patch_size", most=1024)
        self.tile = settings.count("tile_size", most=4096)
        self.tolerance = settings.number("max_pixels_tolerance")
        self.special = bool(self.processor.get("use_image_special_tokens", True))

    def whole_size(self, size: Size) -> Size:
        """Both sides in whole tokens, and as many of them as are allowed."""
        block = self.patch * self.down
        least, most = self.least * block**2, self.most * block**2
        return whole_blocks(size, block, least, most, smallest=block)

    def is_large(self, size: Size) -> bool:
        factor = self.patch * self.down
        rows, columns = (max(self.patch, round(side / factor) * factor) for side in size)
        return rows * columns > self.most * factor**2 * self.tolerance

    def stages(self, picture: Picture) -> tuple[list[Stage], int, int]:
        stage = Stage.of(picture)
        whole = stage.resized(self.whole_size(stage.size), self.filter, rows_first=True)
        if not self.is_large(stage.size) or self.least_tiles == self.most_tiles == 1:
            return [whole], 1, 1
        rows, columns = grid_for(stage.size, self.least_tiles, self.most_tiles, self.tile)
        cut = stage.resized((rows * self.tile, columns * self.tile), self.filter, rows_first=True)
        tiles = cut.grid_of(rows, columns, (self.tile, self.tile))
        if self.thumbnail and rows * columns != 1:
            tiles.append(whole)
        return tiles, rows, columns

    def tokens_of(self, stage: Stage) -> int:
        rows, columns = stage.size[0] // self.patch, stage.size[1] // self.patch
        return math.ceil(rows / self.down) * math.ceil(columns / self.down)

    def process_picture(self, picture: Picture) -> ProcessedImage:
        stages, rows, columns = self.stages(picture)
        tiles = tuple(self.tile_of(stage, self.tokens_of(stage)) for stage in stages)
        return self.finished(picture, stages, tiles, self.pieces(tiles, rows, columns))

    def pieces(self, tiles: tuple[Tile, ...], rows: int, columns: int) -> tuple[Piece, ...]:
        """The image tokens of each tile, with the marks around them if the folder wants any."""
        several = rows > 1 or columns > 1
        pieces = [Piece("<|image_start|>")]
        for number, tile in enumerate(tiles):
            if several and number < rows * columns:
                row, column = divmod(number, columns)
                pieces.append(Piece(f"<|img_row_{row + 1}_col_{column + 1}|>"))
            elif several:
                pieces.append(Piece("<|img_thumbnail|>"))
            pieces.append(Piece(self.placeholder, tile.tokens, True))
        pieces.append(Piece("<|image_end|>"))
        return tuple(piece for piece in pieces if piece.is_image or self.special)
