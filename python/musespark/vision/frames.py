"""Frames of a camera or film: only those that differ are given on, and the last few kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from musespark.errors import InvalidRequest
from musespark.vision.pixels import Picture, open_picture

_GRID = 16  # blocks along each side that are compared


@dataclass(frozen=True)
class Frame:
    """A frame that was given on. ``index``: its place in the source, from 0. ``change``: by how
    many levels of 255 its most changed block differs from the frame given on before it; infinite
    of the first and of one of another size."""

    index: int
    picture: Picture = field(repr=False)
    change: float


class Frames:
    """An iterator over the frames of a source that differ from the last one given on.

    ``source``: what gives frames, each whatever :func:`open_picture` takes. A frame is compared as
    16 x 16 blocks: it is given on when the mean of a block, in any colour, has changed by more than
    ``threshold`` levels of 255. It is compared with the last frame given on, so that slow changes
    are noticed too. ``keep``: how many of those given on :attr:`kept` holds.
    """

    def __init__(self, source: Iterable[Any], *, threshold: float = 8.0, keep: int = 8):
        if not 0 <= threshold <= 255:
            raise InvalidRequest(f"threshold: {threshold}, must be from 0 to 255 levels")
        if keep < 1:
            raise InvalidRequest(f"keep: {keep}, must be 1 or more")
        self._source, self._threshold = iter(source), threshold
        self._kept: deque[Frame] = deque(maxlen=keep)
        self._last: NDArray[np.float32] | None = None
        self._size: tuple[int, int] = (0, 0)
        self.seen = 0
        self.given = 0

    @property
    def kept(self) -> tuple[Frame, ...]:
        """The last frames given on, oldest first."""
        return tuple(self._kept)

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        for given in self._source:
            index, self.seen = self.seen, self.seen + 1
            picture = open_picture(given)
            blocks = _blocks(picture.pixels)
            same = self._last is not None and picture.size == self._size
            change = float(np.abs(blocks - self._last).max()) if same else float("inf")
            if change > self._threshold:
                self._last, self._size = blocks, picture.size
                frame = Frame(index, picture, change)
                self._kept.append(frame)
                self.given += 1
                return frame
        raise StopIteration


def _blocks(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float32 [rows, columns, 3]: the mean of each block, at most 16 x 16 of them."""
    height, width = pixels.shape[:2]
    rows = np.linspace(0, height, min(_GRID, height), endpoint=False).astype(int)
    columns = np.linspace(0, width, min(_GRID, width), endpoint=False).astype(int)
    sums = np.add.reduceat(
        np.add.reduceat(pixels, rows, axis=0, dtype=np.uint32), columns, axis=1, dtype=np.uint32
    )
    area = np.outer(np.diff([*rows, height]), np.diff([*columns, width]))
    return (sums / area[:, :, None]).astype(np.float32)
