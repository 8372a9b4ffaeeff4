"""Large pictures with something too small to make out at 64 tokens: zoom in, then read.

A picture of 512×512 is shown at 128×128. Where the model has the zoom tool it names what it looks
for, calls the tool with a box around it, and reads the crop; without the tool it cannot tell.
"""

from __future__ import annotations

from random import Random

from ..glyphs import FONTS
from ..item import Evaluation, Problem, phrase
from ..raster import (
    COLORS,
    SHAPES,
    Box,
    Canvas,
    Picture,
    scaled,
    shape_mask,
    shown,
    tinted,
)
from ..zoom import NAME, SHIPPED, TOOL, crop, turn
from .scenes import CANNOT_TELL, Asker

LARGE = 512
#: The side of a crop in thousandths: a quarter, so that it is seen pixel by pixel.
QUARTER = 250
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ0123456789"
_SIGN = (
    "What is written on the {} sign?",
    "Read the {} sign.",
    "What does the {} sign say?",
    "Which code is on the {} sign?",
    "Read the code on the {} sign.",
    "Text of the {} sign?",
)
_INSIDE = (
    "Which shape is on the {} sign?",
    "What shape does the {} sign show?",
    "Which shape do you see on the {} sign?",
    "What is drawn on the {} sign?",
)


def _signs(r: Random, count: int) -> list[tuple[str, Box]]:
    """Signs of different colors that do not overlap."""
    signs: list[tuple[str, Box]] = []
    for color in r.sample(list(COLORS)[:6], count):
        for _ in range(40):
            x, y = r.randint(8, LARGE - 96), r.randint(8, LARGE - 60)
            box = (x, y, x + r.randint(70, 84), y + r.randint(34, 48))
            if all(
                x > b[2] + 9 or box[2] < b[0] - 9 or y > b[3] + 9 or box[3] < b[1] - 9
                for _, b in signs
            ):
                signs.append((color, box))
                break
    return signs


def zooming(r: Random, level: str) -> Asker:
    """1, 3 or 5 signs with a code of 2 to 6 characters, or with a small shape."""
    count = {"easy": 1, "middle": 3, "hard": 5}[level]
    low, high = {"easy": (2, 3), "middle": (3, 4), "hard": (4, 5)}[level]
    grey = r.randint(70, 235)
    canvas = Canvas(tinted(r, (grey, grey, grey), 20), LARGE)
    signs = _signs(r, count)
    told = [_inscribe(r, canvas, color, box, (low, high)) for color, box in signs]
    picture = Picture(original=canvas.pixels)
    key = "signs " + " ".join(
        f"{c} {t} {b[0] // 32},{b[1] // 32}" for (c, b), (_, t, _) in zip(signs, told, strict=True)
    )
    tooled = r.random() < 0.85

    def asker(r: Random) -> Problem:
        i = r.randrange(len(signs))
        return _problem(r, level, key, signs[i], told[i], picture, tooled=tooled)

    return asker


def _inscribe(
    r: Random, canvas: Canvas, color: str, box: Box, length: tuple[int, int]
) -> tuple[str, str, Box]:
    """Draw a sign; returns its kind, what it says, and where that stands."""
    x0, y0, x1, y1 = box
    canvas.rectangle(box, tinted(r, COLORS[color], 12))
    canvas.rectangle((x0 + 4, y0 + 4, x1 - 4, y1 - 4), (244, 244, 240))
    if r.random() < 0.3:
        shape, size = r.choice(SHAPES), r.randint(12, 18)
        x, y = r.randint(x0 + 8, x1 - 8 - size), r.randint(y0 + 6, y1 - 6 - size)
        canvas.stamp(shape_mask(shape, size), x, y, (30, 30, 30))
        return "shape", shape, (x, y, x + size, y + size)
    code = "".join(r.choice(_LETTERS) for _ in range(r.randint(*length)))
    font = r.choice(FONTS[:2])
    x, y = r.randint(x0 + 6, x0 + 10), r.randint(y0 + 8, y1 - 24)
    scale = 2 if len(code) <= 4 else 1
    return "code", code, canvas.text(code, x, y, (25, 25, 25), font, scale)


def _problem(
    r: Random,
    level: str,
    key: str,
    sign: tuple[str, Box],
    told: tuple[str, str, Box],
    picture: Picture,
    *,
    tooled: bool,
) -> Problem:
    color, box = sign
    kind, answer, place = told
    question = phrase(r, _INSIDE if kind == "shape" else _SIGN).format(color)
    where = f"{color} sign {shown(box, LARGE)}: too small."
    if not tooled:
        return Problem(
            "zooming",
            level,
            key,
            question,
            CANNOT_TELL,
            steps=lambda e: (where, CANNOT_TELL),
            pictures=[picture],
        )
    region = _around(box)
    seen = crop(picture, region)
    call = {
        "name": NAME,
        "arguments": {"bbox_2d": list(region), "label": f"{color} sign", "img_idx": 0},
    }
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    zoomed = turn(where, call)
    zoomed[0]["trained"] = True
    left, top = (v * LARGE // 1000 for v in region[:2])
    near = (place[0] - left, place[1] - top, place[2] - left, place[3] - top)
    read = f"{' '.join(answer)}. So {answer}" if kind == "code" else answer
    thought = f"{color} sign, {kind} at {shown(near)}: {read}."
    return Problem(
        "zooming",
        level,
        key,
        question,
        answer,
        steps=lambda e: (thought, answer),
        messages=[asked, *zoomed],
        tools=_tools(r),
        pictures=[picture, seen],
        results=answer,
    )


def _tools(r: Random) -> list[dict]:
    """The zoom tool alone, in training also as ``Model.look`` offers it and beside the others."""
    form = 0.0 if isinstance(r, Evaluation) else r.random()
    return [TOOL] if form < 0.5 else [SHIPPED[0]] if form < 0.75 else list(SHIPPED)


def _around(box: Box) -> Box:
    """The quarter box with its middle nearest the sign's, at multiples of 50 thousandths."""
    x0, y0, x1, y1 = scaled(box, LARGE)
    x, y = (
        min(750, max(0, round(((a + b) / 2 - QUARTER / 2) / 50) * 50))
        for a, b in ((x0, x1), (y0, y1))
    )
    return x, y, x + QUARTER, y + QUARTER


SCENES = {"zooming": zooming}
