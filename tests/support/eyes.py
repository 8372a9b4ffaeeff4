"""Eyes for tests: a processor and a tower that are functions of an image's pixels, with counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from musespark.vision.cache import EmbeddingCache
from musespark.vision.eyes import Eyes
from musespark.vision.pixels import Picture, open_picture

MARKERS = ("<img>", "<row>", "<cut>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' %}<img>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Tile(NamedTuple):
    grid: tuple[int, int, int]
    tokens: int
    transform: Any = None


@dataclass
class Processed:
    patches: np.ndarray
    tiles: tuple[Tile, ...]
    pieces: tuple
    key: str


class Processor:
    """Tiles of 4 x 4 pixels, each of 2 x 2 patches, each patch a row; the tiles parted by text."""

    family = "seer"
    placeholder = "<img>"
    video_placeholder = ""
    convention = "qwen2.5-vl"

    def __init__(self, tiles: int = 1, side: int = 8):
        self.tiles, self.side, self.calls = tiles, side, 0

    def fitted(self, size: tuple[int, int]) -> tuple[int, int]:
        return 2 * size[0], 2 * size[1]

    def process_picture(self, picture: Picture) -> Processed:
        self.calls += 1
        rng = np.random.default_rng(int(picture.sha256[:8], 16))
        rows = self.side * self.side
        patches = rng.standard_normal((self.tiles * rows, 4)).astype(np.float32)
        tiles = (Tile((1, self.side, self.side), rows),) * self.tiles
        pieces: list = [("<cut>", 1, False)]
        for i in range(self.tiles):
            pieces += [("<row>", rows, True), (f" part {i} ", 1, False), ("<cut>", 1, False)]
        return Processed(patches, tiles, tuple(pieces), picture.sha256)


class Features(NamedTuple):
    rows: np.ndarray
    taps: tuple[np.ndarray, ...]


class Tower:
    def __init__(self, width: int):
        self.width, self.taps, self.calls = width, 0, 0
        self._weight = np.random.default_rng(3).standard_normal((4, width)).astype(np.float32)

    def tokens(self, grid: Any) -> int:
        return int(np.prod(grid))

    def encode(self, patches: np.ndarray, grids: Any, stopped: Any) -> Features:
        self.calls += 1
        return Features(patches @ self._weight, ())


def eyes(width: int, *, tiles: int = 1, cache: EmbeddingCache | None = None) -> Eyes:
    cache = EmbeddingCache(1 << 24) if cache is None else cache
    return Eyes(Processor(tiles), Tower(width), cache, identity="test", by_axis=False)


def picture(seed: int) -> Picture:
    return open_picture(np.random.default_rng(seed).integers(0, 256, (6, 5, 3)).astype(np.uint8))
