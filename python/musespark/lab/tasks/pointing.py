"""What stands at a point, and where a thing stands: the drill that ties what is seen to its place.

No step of thinking is between the question and the answer, so that all there is to learn is to look
at one place. Characters and colored shapes stand in a loose grid.
"""

from __future__ import annotations

from collections import Counter
from random import Random

from ..glyphs import FONTS, glyph
from ..item import Evaluation, Problem, phrase
from ..raster import (
    CHARACTERS,
    COLORS,
    SHAPES,
    SIZE,
    Canvas,
    Ink,
    noised,
    scaled,
    shape_mask,
    tinted,
)
from .scenes import Asker

_WHAT = ("What is at {}?", "Name what is at {}.", "Say what stands at {}.", "{}: what is there?")
_WHERE = ("Where is {}?", "Where do you see {}?", "Point at {}.", "Give the place of {}.")
#: Of questions in training. Weights of 91 M tokens said 99% of what is at a point and knew where
#: a thing is in three of ten; an answer names each thing before its place, as thoughts do.
_WHERE_SHARE = 0.75
#: Of a color, the least sum of differences to the background's three.
_SHOWS = 90
#: Cells along a side, and the most things one question names.
_GRID = {"easy": (2, 2), "middle": (3, 4), "hard": (4, 6)}


#: Characters, shapes and colors that a picture draws from.
_Kinds = tuple[list[str], list[str], list[str]]


def _kinds(r: Random) -> _Kinds:
    """All there are or, for half of the pictures, two or three of each: there neither shape nor
    color alone tells a thing. With all, one of them mostly does: weights of 112 M tokens told 41 of
    47 places here, and the color of 13 of 20 things in scenes of few colors."""
    all_there_are = (CHARACTERS, SHAPES, COLORS)
    few = r.random() < 0.5
    characters, shapes, colors = (
        r.sample(list(k), r.randint(2, 3)) if few else list(k) for k in all_there_are
    )
    return characters, shapes, colors


def _shown(kinds: _Kinds, paper: Ink) -> _Kinds:
    """``kinds`` without the color that is hard to tell from ``paper``."""
    characters, shapes, colors = kinds

    def shows(color: str) -> bool:
        return sum(abs(v - p) for v, p in zip(COLORS[color], paper, strict=True)) > _SHOWS

    return characters, shapes, [c for c in colors if shows(c)]


def pointing(r: Random, level: str) -> Asker:
    """2 to 4, up to 9 and up to 16 things."""
    side, most = _GRID[level]
    grey = r.randint(30, 225)
    canvas = Canvas(tinted(r, (grey, grey, grey), 25))
    cells = [(column, row) for row in range(side) for column in range(side)]
    taken = r.sample(cells, r.randint(max(2, len(cells) // 2), len(cells)))
    kinds = _shown(_kinds(r), tuple(map(int, canvas.pixels[0, 0])))
    things = [_draw(r, canvas, cell, SIZE // side, grey, kinds) for cell in sorted(taken)]
    picture = canvas.picture()
    if r.random() < 0.25:
        picture.pixels = noised(r, picture.pixels, r.randint(3, 12))
    key = "points " + " ".join(
        f"{name} {column},{row}"
        for (name, _), (column, row) in zip(things, sorted(taken), strict=True)
    )
    names = Counter(name for name, _ in things)
    alone = [thing for thing in things if names[thing[0]] == 1]

    def asker(r: Random) -> Problem:
        where = bool(alone) and r.random() < _WHERE_SHARE and not isinstance(r, Evaluation)
        some = alone if where else things
        asked = r.sample(some, r.randint(1, min(most, len(some))))
        names, points = (", ".join(part) for part in zip(*asked, strict=True))
        placed = ", ".join(f"{name} {point}" for name, point in asked)
        question, answer = (names, placed) if where else (points, names)
        return Problem(
            "pointing",
            level,
            key,
            phrase(r, _WHERE if where else _WHAT).format(question),
            answer,
            pictures=[picture],
        )

    return asker


def _draw(
    r: Random, canvas: Canvas, cell: tuple[int, int], extent: int, grey: int, kinds: _Kinds
) -> tuple[str, str]:
    """A character or a shape somewhere in ``cell``: its name and the point of its middle."""
    characters, shapes, colors = kinds
    if r.random() < 0.5:
        name, font = r.choice(characters), r.choice(FONTS)
        scales = [s for s in (2, 3, 4, 5, 6) if max(glyph(name, font, s).shape) <= extent - 4]
        scale = r.choice(scales or [1])
        height, width = glyph(name, font, scale).shape
    else:
        shape, color = r.choice(shapes), r.choice(colors)
        name = f"{color} {shape}"
        height = width = r.randint(12, extent - 4)
    x = cell[0] * extent + r.randint(2, extent - 2 - width)
    y = cell[1] * extent + r.randint(2, extent - 2 - height)
    if len(name) == 1:
        canvas.text(name, x, y, _ink(r, grey), font, scale)
    else:
        canvas.stamp(shape_mask(shape, height), x, y, tinted(r, COLORS[color]), shape, color)
    left, top = scaled((x + width // 2, y + height // 2, 0, 0))[:2]
    return name, f"({left},{top})"


def _ink(r: Random, grey: int) -> Ink:
    """An ink that shows on ``grey``."""
    while True:
        ink = tuple(r.randint(0, 255) for _ in range(3))
        if sum(abs(v - grey) for v in ink) > 220:
            return ink


SCENES = {"pointing": pointing}
