"""A small rasterizer for training pictures: shapes, lines, text, displays, on numpy arrays.

Beside its pixels a canvas keeps, for each 8×8 patch, what can be seen there (class, color,
character, the box of the whole thing): the targets of the throw-away heads that teach a young
vision tower. Coordinates are
(x, y) in pixels from the top left; boxes are (x0, y0, x1, y1), the far edges exclusive.
"""

from __future__ import annotations

import itertools
import math
from functools import cache
from random import Random

import numpy as np

from .glyphs import glyph, seven_segments

SIZE = 128
PATCH = 8
COLORS = {
    "red": (214, 40, 40),
    "green": (46, 150, 60),
    "blue": (40, 80, 210),
    "yellow": (240, 208, 40),
    "purple": (140, 56, 170),
    "orange": (242, 132, 28),
    "black": (18, 18, 18),
    "white": (246, 246, 246),
}
SHAPES = ("circle", "square", "triangle", "cross", "diamond", "ring")
#: Classes of a patch: nothing, the shapes, then text, frames and lines.
CLASSES = ("nothing", *SHAPES, "text", "button", "bar", "line")
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
#: Sizes of the three vocabularies of patch labels; 0 is "nothing" in each.
LABELS = (len(CLASSES), 1 + len(COLORS), 1 + len(CHARACTERS))
#: What a patch's labels are: one of each vocabulary, then x0, y0, x1, y1 in pixels (0 where
#: nothing has a box).
LABEL_WIDTH = len(LABELS) + 4
#: Classes whose patches have the box of a whole they are part of.
_PARTS = (CLASSES.index("text"), CLASSES.index("line"))
Box = tuple[int, int, int, int]
Ink = tuple[int, int, int]


class Picture:
    """Pixels uint8 [height, width, 3] as the model is to see them, labels uint8
    [height/8, width/8, LABEL_WIDTH], and the larger original where there is one to zoom into.

    Without ``pixels`` they are the original at the size of its tokens, made when first looked at:
    fifteen in sixteen large pictures drawn for evaluation are on the other side of the split.
    """

    def __init__(
        self,
        pixels: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        original: np.ndarray | None = None,
    ):
        if pixels is None and original is None:
            raise ValueError("a picture needs pixels or an original")
        self._pixels, self.labels, self.original = pixels, labels, original

    @property
    def pixels(self) -> np.ndarray:
        """What the model sees."""
        if self._pixels is None:
            self._pixels = fitted(self.original)
        return self._pixels

    @pixels.setter
    def pixels(self, value: np.ndarray) -> None:
        self._pixels = value


def scaled(box: Box, size: int = SIZE) -> Box:
    """``box`` on a picture of ``size``² in thousandths of its sides, to the nearest ten."""
    return tuple(round(v * 100 / size) * 10 for v in box)


def shown(box: Box, size: int = SIZE) -> str:
    """``box`` as the model writes it: [x0,y0,x1,y1] in thousandths."""
    return "[" + ",".join(map(str, scaled(box, size))) + "]"


@cache
def shape_mask(shape: str, size: int) -> np.ndarray:
    """Which of size×size pixels a shape covers."""
    at = np.arange(size) + 0.5
    x, y = np.meshgrid(at, at)
    middle, radius = size / 2, size / 2
    away = np.hypot(x - middle, y - middle)
    if shape == "circle":
        return away <= radius
    if shape == "ring":
        return (away <= radius) & (away >= radius * 0.55)
    if shape == "square":
        return np.ones((size, size), bool)
    if shape == "triangle":
        return np.abs(x - middle) <= (y + 1) / 2
    if shape == "diamond":
        return np.abs(x - middle) + np.abs(y - middle) <= radius
    arm = size / 6
    return (np.abs(x - middle) <= arm) | (np.abs(y - middle) <= arm)


class Canvas:
    """A picture being drawn."""

    def __init__(self, background: Ink = (235, 235, 235), size: int = SIZE):
        self.size = size
        self.pixels = np.empty((size, size, 3), np.uint8)
        self.pixels[:] = background
        self.labels = np.zeros((size // PATCH, size // PATCH, LABEL_WIDTH), np.uint8)
        #: Where the middle of each character of the last text is, from the left.
        self.middles: list[int] = []

    def picture(self) -> Picture:
        """What was drawn."""
        return Picture(self.pixels, self.labels)

    def stamp(
        self, mask: np.ndarray, x: int, y: int, ink: Ink, kind: str = "", color: str = ""
    ) -> Box:
        """Ink where ``mask`` is set, its corner at (x, y); parts outside are cut off."""
        height, width = mask.shape
        x0, y0 = max(0, x), max(0, y)
        x1, y1 = min(self.size, x + width), min(self.size, y + height)
        if x0 >= x1 or y0 >= y1:
            return x0, y0, x0, y0
        part = mask[y0 - y : y1 - y, x0 - x : x1 - x]
        self.pixels[y0:y1, x0:x1][part] = ink
        if kind:
            self._label(part, x0, y0, CLASSES.index(kind), color)
        return x0, y0, x1, y1

    def _label(self, part: np.ndarray, x0: int, y0: int, kind: int, color: str) -> None:
        """Label the patches whose centre the mask covers."""
        half = PATCH // 2
        dx, dy = (half - x0) % PATCH, (half - y0) % PATCH
        inside = part[dy::PATCH, dx::PATCH]
        if not inside.size:
            return
        column, row = (x0 + dx) // PATCH, (y0 + dy) // PATCH
        target = self.labels[row : row + inside.shape[0], column : column + inside.shape[1]]
        target[inside, 0] = kind
        target[inside, 1] = 1 + list(COLORS).index(color) if color else 0
        target[inside, 2] = 0
        if kind not in _PARTS and self.size == SIZE:
            height, width = part.shape
            target[inside, 3:] = x0, y0, x0 + width, y0 + height

    def rectangle(self, box: Box, ink: Ink, kind: str = "", color: str = "") -> Box:
        """A filled rectangle."""
        x0, y0, x1, y1 = box
        return self.stamp(
            np.ones((max(0, y1 - y0), max(0, x1 - x0)), bool), x0, y0, ink, kind, color
        )

    def frame(self, box: Box, ink: Ink, width: int = 1) -> None:
        """The edge of a rectangle, drawn inside ``box``."""
        x0, y0, x1, y1 = box
        for edge in (
            (x0, y0, x1, y0 + width),
            (x0, y1 - width, x1, y1),
            (x0, y0, x0 + width, y1),
            (x1 - width, y0, x1, y1),
        ):
            self.rectangle(edge, ink)

    def line(
        self, x0: float, y0: float, x1: float, y1: float, ink: Ink, width: int = 1, kind: str = ""
    ) -> None:
        """A straight line with square ends, ``width`` pixels thick."""
        count = int(max(abs(x1 - x0), abs(y1 - y0))) + 1
        x = np.rint(np.linspace(x0, x1, count)).astype(int) - width // 2
        y = np.rint(np.linspace(y0, y1, count)).astype(int) - width // 2
        mask = np.zeros((int(np.ptp(y)) + width, int(np.ptp(x)) + width), bool)
        for dx in range(width):
            for dy in range(width):
                mask[y - y.min() + dy, x - x.min() + dx] = True
        self.stamp(mask, int(x.min()), int(y.min()), ink, kind)

    def text(self, text: str, x: int, y: int, ink: Ink, font: str = "plain", scale: int = 1) -> Box:
        """Letters from (x, y) to the right; returns the box they fill."""
        right, height, self.middles = x, 0, []
        for character in text:
            dots = glyph(character, font, scale) if character != " " else None
            self.middles.append(right + (0 if dots is None else dots.shape[1] // 2))
            if dots is None:
                right += 3 * scale
                continue
            self.stamp(dots, right, y, ink, "text")
            self._character(character, right, y, dots.shape)
            right, height = right + dots.shape[1] + max(1, scale), max(height, dots.shape[0])
        return self._written((x, y, right - max(1, scale), y + height))

    def display(self, digits: str, x: int, y: int, ink: Ink, width: int, stroke: int) -> Box:
        """Digits of seven segments, twice as high as wide."""
        height, step = 2 * width, width + max(2, stroke + 1)
        self.middles = [x + i * step + width // 2 for i in range(len(digits))]
        for i, digit in enumerate(digits):
            dots = seven_segments(digit, width, height, stroke)
            self.stamp(dots, x + i * step, y, ink, "text")
            self._character(digit, x + i * step, y, dots.shape)
        return self._written((x, y, x + step * (len(digits) - 1) + width, y + height))

    def _character(self, character: str, x: int, y: int, shape: tuple[int, ...]) -> None:
        """Label the patches a character fills: those whose centre is in its box, or in whose
        middle it is."""
        place = CHARACTERS.find(character.upper())
        if place < 0:
            return
        side = len(self.labels)
        for row in _filled(y, shape[0], side):
            for column in _filled(x, shape[1], side):
                self.labels[row, column, : len(LABELS)] = CLASSES.index("text"), 0, 1 + place

    def _written(self, box: Box) -> Box:
        """Label the patches of a line of text with its box, where they have none: a button's text
        keeps the button's."""
        x0, y0, x1, y1 = box
        if self.size == SIZE and x0 < x1 and y0 < y1:
            side = len(self.labels)
            rows, columns = _filled(y0, y1 - y0, side), _filled(x0, x1 - x0, side)
            part = self.labels[rows.start : rows.stop, columns.start : columns.stop]
            bare = (part[..., 0] == CLASSES.index("text")) & ~part[..., 3:].any(-1)
            part[bare, 3:] = np.clip(box, 0, self.size)
        return box

    def forget(self, box: Box) -> None:
        """What stands in ``box`` can no longer be seen: no labels there."""
        x0, y0, x1, y1 = (max(0, v) // PATCH for v in box)
        self.labels[y0 : y1 + 1, x0 : x1 + 1] = 0


def _filled(start: int, extent: int, side: int) -> range:
    """The patches along one side whose centre lies in ``extent`` pixels from ``start``; the one its
    middle is in where there is none."""
    half = PATCH // 2
    first, last = -((half - start) // PATCH), (start + extent - 1 - half) // PATCH
    if first > last:
        first = last = (start + extent // 2) // PATCH
    return range(max(first, 0), min(last + 1, side))


def text_size(text: str, font: str, scale: int) -> tuple[int, int]:
    """Width and height that ``Canvas.text`` will fill."""
    box = Canvas(size=PATCH).text(text, 0, 0, (0, 0, 0), font, scale)
    return box[2], box[3]


def tinted(r: Random, ink: Ink, by: int = 18) -> Ink:
    """``ink`` a little off, so that a color is a region and not a point."""
    return tuple(min(255, max(0, v + r.randint(-by, by))) for v in ink)


def noised(r: Random, pixels: np.ndarray, by: int) -> np.ndarray:
    """Pixels with even noise of up to ``by`` levels."""
    noise = np.random.default_rng(r.getrandbits(32)).integers(
        -by, by, pixels.shape, np.int16, endpoint=True
    )
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


@cache
def _lanczos(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Pillow's Lanczos filter (three lobes, widened when shrinking): for each of ``target`` the
    places among ``source`` it reads and their weights, both [taps, target]."""
    scale = max(1.0, source / target)
    centre = (np.arange(target) + 0.5) * source / target
    first = np.floor(centre - 3 * scale).astype(int)
    place = first + np.arange(math.ceil(6 * scale) + 2)[:, None]
    distance = (place + 0.5 - centre) / scale
    inside = (np.abs(distance) < 3) & (place >= 0) & (place < source)
    weights = np.where(inside, np.sinc(distance) * np.sinc(distance / 3), 0)
    weights = (weights / weights.sum(0)).astype(np.float32)
    return np.clip(place, 0, source - 1), weights


def _resampled(rows: np.ndarray, count: int) -> np.ndarray:
    """uint8 [source, n] as uint8 [count, n]. Sums in one order, whatever the machine's BLAS."""
    total = np.zeros((count, rows.shape[1]), np.float32)
    for place, weight in zip(*_lanczos(len(rows), count), strict=True):
        total += weight[:, None] * rows[place]
    return np.clip(np.rint(total), 0, 255).astype(np.uint8)


def resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """``pixels`` at another size by Lanczos, along the rows first, rounded to uint8 between the
    passes: as muse_glimmer's image processor does."""
    rows, columns = pixels.shape[:2]
    if (rows, columns) == (height, width):
        return pixels
    across = _resampled(pixels.transpose(1, 0, 2).reshape(columns, -1), width)
    down = across.reshape(width, rows, -1).transpose(1, 0, 2).reshape(rows, -1)
    return _resampled(down, height).reshape(height, width, -1)


#: Pixels along the side of one image token, and the most tokens a picture may take.
CELL, MOST_TOKENS = 16, 64


def grid_for(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of tokens for a picture, as transformers' muse_glimmer processor chooses
    them: the whole grid nearest the aspect ratio, never enlarged, at most 64 tokens."""
    rows, columns = height / CELL, width / CELL
    if rows * columns > MOST_TOKENS:
        ratio = columns / rows
        rows = (MOST_TOKENS / ratio) ** 0.5
        columns = rows * ratio
    around = itertools.product(
        (math.floor(rows), math.ceil(rows)), (math.floor(columns), math.ceil(columns))
    )
    fits = [(r, c) for r, c in set(around) if r >= 1 and c >= 1 and r * c <= MOST_TOKENS]
    fits = fits or [(max(1, round(rows)), max(1, round(columns)))]
    return min(fits, key=lambda grid: (abs(grid[0] / grid[1] - height / width), grid))


def fitted(pixels: np.ndarray) -> np.ndarray:
    """``pixels`` at the size of its grid of tokens."""
    rows, columns = grid_for(*pixels.shape[:2])
    return resized(pixels, rows * CELL, columns * CELL)
