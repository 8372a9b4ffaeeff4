"""Pillow's resize on arrays, without Pillow."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from musespark import _core
from musespark.errors import InvalidRequest, MemoryBudgetExceeded

# Names by Pillow's numbers (PIL.Image.Resampling), which processor configurations use.
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")

Pixels = NDArray[np.uint8]


def filter_name(resample: int | str) -> str:
    """The name of a filter given by name, by Pillow's number or as ``PIL.Image.Resampling``."""
    if isinstance(resample, str) and resample.lower() in FILTERS:
        return resample.lower()
    if isinstance(resample, int) and not isinstance(resample, bool) and 0 <= resample < 6:
        return FILTERS[resample]
    allowed = ", ".join(f"{name} ({number})" for number, name in enumerate(FILTERS))
    raise InvalidRequest(f"resample must be one of {allowed}, got {resample!r}")


def resize(
    array: Pixels,
    size: Sequence[int],
    *,
    resample: int | str = "bicubic",
    box: Sequence[float] | None = None,
    rows_first: bool = False,
) -> Pixels:
    """``array`` with ``size`` = (height, width), the same bits as ``Image.resize`` of Pillow 13.

    The filter's support is widened when shrinking (antialiasing), and what the first of the two
    passes gives is rounded to bytes; nothing depends on the machine. The pass over columns comes
    first where the height shrinks by more than twice as many pixels as the width, except with
    ``rows_first``, as in torchvision and in Pillow before 13.

    ``array`` is uint8 [h, w] or [h, w, channels] at any strides, with 1, 3 or 4 channels; four are
    RGBA, whose colours are weighted with their alpha as Pillow does. ``resample`` is nearest, box,
    bilinear, hamming, bicubic, lanczos, or Pillow's number of one. ``box`` is the part of the image
    to take, (left, top, right, bottom) in pixels that need not be whole; without it all of it.

    Returns a new packed array with as many dimensions. Runs in the calling thread, without the
    interpreter's lock. Raises InvalidRequest naming the argument; MemoryBudgetExceeded where there
    is no room for the result.
    """
    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim not in (2, 3):
        raise InvalidRequest(
            "array must be uint8 [height, width] or [height, width, channels], "
            f"got {array.dtype} {list(array.shape)}"
        )
    try:
        height, width = map(operator.index, size)
        part = None if box is None else tuple(float(edge) for edge in box)
    except (TypeError, ValueError):
        raise InvalidRequest(
            f"size must be (height, width) and box four numbers, got {size!r} and {box!r}"
        ) from None
    if part is not None and len(part) != 4:
        raise InvalidRequest(f"box must be (left, top, right, bottom), got {box!r}")
    image = array if array.ndim == 3 else array[:, :, None]
    try:
        result = _core.resize(
            image,
            height=height,
            width=width,
            resample=filter_name(resample),
            box=part,
            rows_first=rows_first,
        )
    except MemoryError as error:
        raise MemoryBudgetExceeded(f"resize: no memory for {height} x {width} pixels") from error
    return result if array.ndim == 3 else result[:, :, 0]
