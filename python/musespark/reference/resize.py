"""The resampler of csrc/ops/image.cc and csrc/kernels/image, written to be read.

Pillow's arithmetic (Resample.c of version 13): weights in double, rounded to 22 fractional bits;
each pass sums them in integers and rounds to bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
BITS = 22


def sinc(x: float) -> float:
    return 1.0 if x == 0 else math.sin(x * math.pi) / (x * math.pi)


def box(x: float) -> float:
    return 1.0 if -0.5 < x <= 0.5 else 0.0


def bilinear(x: float) -> float:
    return max(1.0 - abs(x), 0.0)


def hamming(x: float) -> float:
    if abs(x) >= 1:
        return 0.0
    low, high = float(np.float32(0.54)), float(np.float32(0.46))
    return sinc(abs(x)) * (low + high * math.cos(abs(x) * math.pi))


def bicubic(x: float) -> float:
    a, x = -0.5, abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2 else 0.0


def lanczos(x: float) -> float:
    return sinc(x) * sinc(x / 3) if -3 <= x < 3 else 0.0


# name -> (the filter, half of its width at scale 1)
FILTERS: dict[str, tuple[Callable[[float], float], float]] = {
    "box": (box, 0.5),
    "bilinear": (bilinear, 1.0),
    "hamming": (hamming, 1.0),
    "bicubic": (bicubic, 2.0),
    "lanczos": (lanczos, 3.0),
}


def weights(name: str, length: int, begin: float, end: float, size: int) -> NDArray[np.int64]:
    """[size, length]: what each input adds to each output, times 2^22."""
    at, half_width = FILTERS[name]
    scale = float(np.float32(end) - np.float32(begin)) / size
    widened = max(scale, 1.0)
    support = half_width * widened
    table = np.zeros((size, length), np.int64)
    for i in range(size):
        centre = float(np.float32(begin)) + (i + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        last = min(int(centre + support + 0.5), length)
        taps = [at((t - centre + 0.5) * (1.0 / widened)) for t in range(first, last)]
        total = sum(taps)
        for t, tap in enumerate(taps, first):
            scaled = (tap / total if total else tap) * (1 << BITS)
            table[i, t] = int(scaled - 0.5) if scaled < 0 else int(scaled + 0.5)
    return table


def along_rows(image: Pixels, table: NDArray[np.int64]) -> Pixels:
    sums = np.einsum("hwc,ow->hoc", image.astype(np.int64), table) + (1 << (BITS - 1))
    return np.clip(sums >> BITS, 0, 255).astype(np.uint8)


def along_columns(image: Pixels, table: NDArray[np.int64]) -> Pixels:
    return along_rows(image.transpose(1, 0, 2), table).transpose(1, 0, 2)


def nearest_inputs(length: int, begin: float, end: float, size: int) -> list[int]:
    scale = float(np.float32(end) - np.float32(begin)) / size
    position, inputs = float(np.float32(begin)) + scale * 0.5, []
    for _ in range(size):
        inputs.append(min(int(position), length - 1))
        position += scale
    return inputs


def weigh_with_alpha(image: Pixels) -> Pixels:
    product = image[..., :3].astype(np.int64) * image[..., 3:] + 128
    colours = ((product >> 8) + product) >> 8
    return np.concatenate([colours.astype(np.uint8), image[..., 3:]], axis=-1)


def divide_by_alpha(image: Pixels) -> Pixels:
    alpha = image[..., 3:].astype(np.int64)
    divided = np.minimum(255 * image[..., :3].astype(np.int64) // np.maximum(alpha, 1), 255)
    colours = np.where((alpha == 0) | (alpha == 255), image[..., :3], divided)
    return np.concatenate([colours.astype(np.uint8), image[..., 3:]], axis=-1)


def resize(
    image: Pixels,
    size: tuple[int, int],
    *,
    resample: str,
    part: tuple[float, float, float, float] | None = None,
    rows_first: bool = False,
) -> Pixels:
    """uint8 [h, w, 1, 3 or 4] as ``size`` = (height, width)."""
    height, width, channels = image.shape
    left, top, right, bottom = part or (0, 0, width, height)
    if resample == "nearest":
        columns = nearest_inputs(width, left, right, size[1])
        return image[nearest_inputs(height, top, bottom, size[0])][:, columns]
    across = (width, left, right, size[1]) if (left, right) != (0, size[1]) else None
    down = (height, top, bottom, size[0]) if (top, bottom) != (0, size[0]) else None
    across = (width, left, right, size[1]) if width != size[1] else across
    down = (height, top, bottom, size[0]) if height != size[0] else down
    weigh = channels == 4 and (across or down)
    passes = [(along_rows, across), (along_columns, down)]
    if not rows_first and height > size[0] and height - size[0] > 2 * (width - size[1]):
        passes.reverse()
    result = weigh_with_alpha(image) if weigh else image
    for one_pass, axis in passes:
        if axis is not None:
            result = one_pass(result, weights(resample, *axis))
    return divide_by_alpha(result) if weigh else result
