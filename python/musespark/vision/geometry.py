"""Where a processed pixel lies in the original image: invertible affine maps.

Coordinates are continuous: pixel (column x, row y) covers [x, x + 1) x [y, y + 1), so the middle of
the first pixel is (0.5, 0.5). Boxes are (left, top, right, bottom).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from musespark.errors import InvalidRequest

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Transform:
    """(x, y) -> (a x + b y + c, d x + e y + f).

    One that is kept with an image maps its pixels to those of the original: each step that makes a
    new image from the last is multiplied on from the right, ``kept @ step``, where the step maps
    the new image's pixels to the last one's.
    """

    a: float = 1.0
    b: float = 0.0
    c: float = 0.0
    d: float = 0.0
    e: float = 1.0
    f: float = 0.0

    @classmethod
    def scale(cls, x: float, y: float) -> Transform:
        """(x, y) times the two factors."""
        return cls(a=x, e=y)

    @classmethod
    def shift(cls, x: float, y: float) -> Transform:
        """(x, y) plus the two distances."""
        return cls(c=x, f=y)

    @classmethod
    def resized(
        cls, size: tuple[int, int], new_size: tuple[int, int], box: Sequence[float] | None = None
    ) -> Transform:
        """From an image of ``new_size`` to that of ``size``, (height, width) each, of which it is a
        resized copy, or a copy of the part ``box``."""
        left, top, right, bottom = box if box is not None else (0, 0, size[1], size[0])
        return cls(a=(right - left) / new_size[1], c=left, e=(bottom - top) / new_size[0], f=top)

    @classmethod
    def oriented(cls, orientation: int, size: tuple[int, int]) -> Transform:
        """From an upright image to the file's, whose ``size`` (height, width) and EXIF orientation
        (1 to 8) are given."""
        height, width = size
        maps = {
            1: cls(),
            2: cls(a=-1, c=width),
            3: cls(a=-1, c=width, e=-1, f=height),
            4: cls(e=-1, f=height),
            5: cls(a=0, b=1, d=1, e=0),
            6: cls(a=0, b=1, d=-1, e=0, f=height),
            7: cls(a=0, b=-1, c=width, d=-1, e=0, f=height),
            8: cls(a=0, b=-1, c=width, d=1, e=0),
        }
        if orientation not in maps:
            raise InvalidRequest(f"orientation must be between 1 and 8, got {orientation}")
        return maps[orientation]

    def __matmul__(self, first: Transform) -> Transform:
        """What does ``first``, then this."""
        return Transform(
            self.a * first.a + self.b * first.d,
            self.a * first.b + self.b * first.e,
            self.a * first.c + self.b * first.f + self.c,
            self.d * first.a + self.e * first.d,
            self.d * first.b + self.e * first.e,
            self.d * first.c + self.e * first.f + self.f,
        )

    def inverse(self) -> Transform:
        """From the original to the processed image."""
        det = self.a * self.e - self.b * self.d
        if det == 0:
            raise InvalidRequest(f"{self} has no inverse")
        a, b, d, e = self.e / det, -self.b / det, -self.d / det, self.a / det
        return Transform(a, b, -(a * self.c + b * self.f), d, e, -(d * self.c + e * self.f))

    def points(self, points: ArrayLike) -> NDArray[np.float64]:
        """float64 [..., 2]: each (x, y) mapped."""
        given = np.asarray(points, np.float64)
        x, y = given[..., 0], given[..., 1]
        return np.stack(
            [self.a * x + self.b * y + self.c, self.d * x + self.e * y + self.f], axis=-1
        )

    def box(self, box: Sequence[float]) -> Box:
        """The smallest upright box around the mapped one. An inverted box (left > right) comes out
        in order: see that it is none before."""
        left, top, right, bottom = box
        corners = self.points([(left, top), (right, top), (left, bottom), (right, bottom)])
        (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
        return float(x0), float(y0), float(x1), float(y1)

    def to_list(self) -> list[float]:
        """[a, b, c, d, e, f], as traces keep it; ``Transform(*list)`` is its inverse."""
        return [self.a, self.b, self.c, self.d, self.e, self.f]


IDENTITY = Transform()
