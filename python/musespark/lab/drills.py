"""Pictures that teach a young vision tower: full of what the throw-away heads ask about.

A picture of the tasks has two or three characters; a tower of 47 M tokens had seen some hundred
thousand of them and told one in three. One of these has dozens, of every font, size and ink, or as
many shapes or displays as fit.
"""

from __future__ import annotations

from random import Random

from .glyphs import FONTS, glyph
from .item import LEVELS
from .raster import (
    CHARACTERS,
    COLORS,
    SHAPES,
    SIZE,
    Canvas,
    Ink,
    Picture,
    noised,
    shape_mask,
    tinted,
)
from .tasks.pictures import SCENES, ask_several

#: Share of each kind; "scene" is a picture of a task.
KINDS = {"page": 0.4, "displays": 0.12, "shapes": 0.13, "scene": 0.35}
#: Pictures that are drawn at their own size, so that their patches are labelled.
_SCENES = sorted(set(SCENES) - {"zooming", "blank"})


def draw(r: Random) -> Picture:
    """A picture of 128×128 with labels."""
    kind = r.choices(list(KINDS), list(KINDS.values()))[0]
    picture = {"page": _page, "displays": _displays, "shapes": _shapes, "scene": _scene}[kind](r)
    if kind != "scene" and r.random() < 0.25:
        picture.pixels = noised(r, picture.pixels, r.randint(3, 12))
    return picture


def _inks(r: Random) -> tuple[Ink, Ink]:
    """Paper and ink that differ enough to read."""
    while True:
        paper, ink = (tuple(r.randint(0, 255) for _ in range(3)) for _ in range(2))
        if sum(abs(a - b) for a, b in zip(paper, ink, strict=True)) > 240:
            return paper, ink


def _page(r: Random) -> Picture:
    """Lines of random characters from top to bottom, each in its own font, size and ink."""
    paper, ink = _inks(r)
    canvas = Canvas(paper)
    y = r.randint(0, 10)
    while True:
        font, scale = r.choice(FONTS), r.choice((1, 1, 2, 2, 3, 4, 5))
        scale += font == "small" and scale > 1
        letters = CHARACTERS.lower() if r.random() < 0.15 and font != "small" else CHARACTERS
        height, width = glyph("H", font, scale).shape
        if y + height > SIZE:
            return canvas.picture()
        x = r.randint(0, 24)
        fits = (SIZE - x) // (width + 3 + scale)
        text = "".join(r.choice(letters) if r.random() < 0.9 else " " for _ in range(fits))
        canvas.text(text[: r.randint(1, fits)].strip() or "X", x, y, ink, font, scale)
        y += height + r.randint(2, 12)


def _displays(r: Random) -> Picture:
    """Rows of seven-segment digits, lit or dark."""
    back, ink = _inks(r)
    canvas = Canvas(back)
    y = r.randint(2, 12)
    while True:
        width = r.randint(8, 26)
        stroke = max(2, width // r.randint(4, 6))
        if y + 2 * width > SIZE:
            return canvas.picture()
        x = r.randint(2, 30)
        count = r.randint(1, max(1, (SIZE - x) // (width + stroke + 2)))
        canvas.display("".join(r.choices("0123456789", k=count)), x, y, ink, width, stroke)
        y += 2 * width + r.randint(4, 14)


def _shapes(r: Random) -> Picture:
    """A grid of cells of one size, each with a shape of any size and color somewhere in it, or
    nothing."""
    grey = r.randint(30, 225)
    canvas = Canvas(tinted(r, (grey, grey, grey), 12))
    cell = r.choice((18, 21, 25, 32, 42))
    for top in range(0, SIZE - cell + 1, cell):
        for left in range(0, SIZE - cell + 1, cell):
            if r.random() < 0.3:
                continue
            size = r.randint(12, cell - 2)
            x, y = left + r.randint(0, cell - size - 1), top + r.randint(0, cell - size - 1)
            shape, color = r.choice(SHAPES), r.choice(list(COLORS))
            canvas.stamp(shape_mask(shape, size), x, y, tinted(r, COLORS[color]), shape, color)
    return canvas.picture()


def _scene(r: Random) -> Picture:
    """A picture of a task, of the training side."""
    (problem,) = ask_several(r, r.choice(_SCENES), r.choice(LEVELS), 1, evaluation=False)
    return problem.pictures[0]
