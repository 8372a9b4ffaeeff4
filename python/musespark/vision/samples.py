"""The pictures that a vision tower is measured with when it is packed, and what it reads of them.

Drawn in integers from a hash of pixel and number, so that they are the same with every NumPy and on
every machine: what is in them is what photographs, documents and screens have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from musespark.errors import UnsupportedModel
from musespark.vision.opening import processor_of
from musespark.vision.pixels import Picture, open_pictures
from musespark.vision.preprocess import Processor
from musespark.weights import View

_Pixels = NDArray[np.uint8]
_SEED = 7


def _hash(*key: NDArray[np.int64] | int) -> NDArray[np.uint64]:
    """64 mixed bits for each entry of integers that broadcast together (splitmix64's finish)."""
    h: NDArray[np.uint64] = np.full(1, 0x9E3779B97F4A7C15, np.uint64)
    with np.errstate(over="ignore"):
        for part in key:
            h = (h ^ np.asarray(part, np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
            h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            h ^= h >> np.uint64(31)
    return h


def _places(height: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.arange(height)[:, None, None], np.arange(width)[None, :, None]


def _noise(height: int, width: int, step: int, seed: int) -> NDArray[np.int64]:
    """0 to 255 [height, width, 3]: a grid of random colours `step` pixels wide, interpolated."""
    y, x = _places(height, width)
    channel = np.arange(3)[None, None, :]
    total: NDArray[np.int64] = np.zeros(1, np.int64)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        corner = _hash(y // step + down, x // step + right, channel, seed) >> np.uint64(56)
        weight = (y % step if down else step - y % step) * (x % step if right else step - x % step)
        total = total + corner.astype(np.int64) * weight
    return total // step**2


def _photograph(height: int, width: int) -> _Pixels:
    """Noise of every scale, each as strong as it is wide: the spectrum that photographs have."""
    steps = (64, 32, 16, 8, 4, 2, 1)
    total = sum(step * (_noise(height, width, step, _SEED + step) - 128) for step in steps)
    return np.clip(128 + total // 70, 0, 255).astype(np.uint8)


def _static(height: int, width: int) -> _Pixels:
    return _noise(height, width, 1, _SEED).astype(np.uint8)


def _gradient(height: int, width: int) -> _Pixels:
    y, x = _places(height, width)
    falls = 255 * y // height
    rises = 255 * x // width
    return np.concatenate([falls + 0 * x, rises + 0 * y, (falls + rises) // 2], 2).astype(np.uint8)


def _page(height: int, width: int) -> _Pixels:
    """Black strokes of letters in lines, on white."""
    y, x = _places(height, width)
    stroke = _hash(y // 2, x // 2, _SEED) >> np.uint64(63) == 1
    line = (y % 14 < 9) & (x % 8 < 6) & (_hash(y // 14, x // 8, _SEED) % np.uint64(6) > 0)
    inside = (y >= 12) & (y < height - 12) & (x >= 12) & (x < width - 12)
    return np.repeat(np.where(stroke & line & inside, 16, 244), 3, axis=2).astype(np.uint8)


def _screen(height: int, width: int) -> _Pixels:
    """Flat boxes of strong colours with sharp edges."""
    y, x = _places(height, width)
    return (_hash(y // 48, x // 40, np.arange(3), _SEED) >> np.uint64(63)).astype(np.uint8) * 255


def _flat(height: int, width: int) -> _Pixels:
    return np.full((height, width, 3), (200, 120, 40), np.uint8)


_DRAWN: tuple[tuple[Callable[[int, int], _Pixels], int, int], ...] = (
    (_photograph, 224, 224), (_page, 256, 192), (_screen, 160, 256), (_gradient, 192, 192),
    (_static, 128, 192), (_flat, 96, 160),
)  # fmt: skip


def sample_pictures() -> list[Picture]:
    """The package's own."""
    return open_pictures([draw(height, width) for draw, height, width in _DRAWN])


def sample_views(assets: Mapping[str, bytes], more: Sequence[Picture] = ()) -> list[View]:
    """What the processor in a model's files makes of the package's pictures and of `more`: the
    first tile of each. None where this version has no processor for them."""
    try:
        processor = processor_of(assets)
        return [_first_tile(processor, picture) for picture in [*sample_pictures(), *more]]
    except UnsupportedModel:  # who opens the model says so
        return []


def _first_tile(processor: Processor, picture: Picture) -> View:
    found = processor.process_picture(picture)
    _, height, width = found.tiles[0].grid
    # A copy: the other tiles go with the picture.
    return View(found.patches[: height * width].copy(), height, width)
