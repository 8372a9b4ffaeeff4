"""A trace's picture as a PNG file, with regions drawn in. Needs Pillow."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musespark.errors import InvalidRequest, MissingLibrary
from musespark.vision.regions import Point, Region
from musespark.vision.render.overlay import COLORS, DASHES, Cited, cited, originals
from musespark.vision.trace.data import VisualTrace
from musespark.weights.files import write_whole

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw


def to_png(
    trace: VisualTrace,
    path: str | os.PathLike[str],
    *,
    image: str | None = None,
    step: int | None = None,
    scale: int = 1,
) -> None:
    """Writes an original (the first, where none is named) with the regions of all steps or of one;
    ``scale`` times as large each way, for lines and numbers in a small picture.

    MissingLibrary without Pillow; InvalidRequest for an image that is none or has no pixels, a
    step that is none, or a scale that is no whole number from 1 to 16.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise MissingLibrary(
            "to_png needs Pillow: pip install 'musespark[vision]'; to_html does without"
        ) from None
    if not trace.images:
        raise InvalidRequest("images: the trace has none")
    shown = originals(trace)[0] if image is None else trace.original(image)
    if shown.id not in trace.pictures:
        raise InvalidRequest(f"{shown.id}: its pixels are not there; attach() them first")
    if step is not None and not 0 <= step < len(trace.steps):
        raise InvalidRequest(f"step: {step}, the trace has steps 0 to {len(trace.steps) - 1}")
    if isinstance(scale, bool) or not isinstance(scale, int) or not 1 <= scale <= 16:
        raise InvalidRequest(f"scale: {scale!r:.60}, must be a whole number from 1 to 16")
    canvas = Image.fromarray(trace.pictures[shown.id].pixels)
    canvas = canvas.resize((canvas.width * scale, canvas.height * scale), Image.Resampling.NEAREST)
    thick = max(2, round(max(canvas.size) / 400))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=max(12, round(max(canvas.size) / 50)))
    for one in cited(trace):
        if one.original == shown.id and one.region.points and step in (None, one.step):
            _draw(draw, _enlarged(one, scale), thick, font, canvas.size)
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG")
    write_whole(Path(path), buffer.getvalue())


def _enlarged(one: Cited, scale: int) -> Cited:
    points = tuple((x * scale, y * scale) for x, y in one.region.points)
    return replace(one, region=replace(one.region, points=points))


def _draw(draw: ImageDraw, one: Cited, thick: int, font: Any, size: tuple[int, int]) -> None:
    color = COLORS[one.kind]
    outline = _outline(one.region, thick)
    for fill, width, dash in (
        ("#ffffff", 2 * thick, ""),
        (color, thick, DASHES[one.region.source]),
    ):
        for start, end in pairwise(outline):
            for a, b in _dashes(start, end, dash, thick):
                draw.line([a, b], fill=fill, width=width)
    left, top, _, _ = one.region.bounds or (0, 0, 0, 0)
    text = str(one.number)
    x0, y0, x1, y1 = draw.textbbox((0, 0), text, font=font)
    wide, tall = x1 - x0 + 2 * thick, y1 - y0 + 2 * thick
    left = min(max(left, 0), size[0] - wide)
    top = min(max(top - tall, 0), size[1] - tall)
    draw.rectangle([left, top, left + wide, top + tall], fill=color)
    draw.text((left + thick - x0, top + thick - y0), text, fill="#ffffff", font=font)


def _outline(region: Region, thick: int) -> list[Point]:
    """The corners of a line around the region, the first again at the end."""
    if region.kind == "point":
        (x, y), r = region.points[0], 4 * thick
        turns = [math.tau * i / 24 for i in range(25)]
        return [(x + r * math.cos(t), y + r * math.sin(t)) for t in turns]
    if region.kind == "box":
        x0, y0, x1, y1 = region.bounds or (0, 0, 0, 0)
        return [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
    return [*region.points, region.points[0]]


def _dashes(start: Point, end: Point, dash: str, thick: int) -> Sequence[tuple[Point, Point]]:
    """The strokes of a line; as many as a picture can hold, however far it reaches."""
    if not dash:
        return [(start, end)]
    on, off = (float(part) * thick for part in dash.split())
    length = math.dist(start, end)
    count = min(int(length // (on + off)) + 1, 4096)

    def at(distance: float) -> Point:
        share = min(distance / length, 1.0) if length else 0.0
        return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])

    return [(at(i * (on + off)), at(i * (on + off) + on)) for i in range(count)]
