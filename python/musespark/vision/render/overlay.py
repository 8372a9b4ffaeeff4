"""Images with what was cited drawn over them, as SVG. One unit is one pixel of the original.

Boxes of the model have plain lines, those of the engine dashes, those of tools dots. Each carries
the number it has in the list of the trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from musespark.vision.regions import Region
from musespark.vision.render.png import data_url, reduced
from musespark.vision.render.texts import shown
from musespark.vision.trace.data import HeatMap, TraceImage, VisualTrace

COLORS = {
    "look": "#64748b",
    "locate": "#2563eb",
    "zoom": "#9333ea",
    "read": "#0f766e",
    "compare": "#c2410c",
    "tool": "#a16207",
    "conclude": "#be123c",
}
DASHES = {"model": "", "engine": "7 4", "tool": "1.5 3.5"}
MAX_DRAWN = 1000  # regions on one page
_LABEL = 80


@dataclass(frozen=True)
class Cited:
    """A region with its number in the trace, counted from 1, and the step that cites it."""

    number: int
    step: int
    kind: str
    region: Region
    original: str


def cited(trace: VisualTrace) -> list[Cited]:
    """Every region of the trace, in its order, MAX_DRAWN at most."""
    out: list[Cited] = []
    for index, step in enumerate(trace.steps):
        for region in step.regions:
            if len(out) == MAX_DRAWN:
                return out
            image = region.image or step.image or trace.images[0].id
            original = trace.original(image).id
            out.append(Cited(len(out) + 1, index, step.kind, region, original))
    return out


def originals(trace: VisualTrace) -> list[TraceImage]:
    """The images that were not made from others."""
    return [image for image in trace.images if image.parent is None]


def picture_svg(
    trace: VisualTrace, image: TraceImage, drawn: Iterable[Cited], *, longest: int
) -> str:
    """An original with regions and heat maps; a grey field where its pixels are not here."""
    height, width = image.size
    picture = trace.pictures.get(image.id)
    if picture is None:
        field = (
            f'<rect width="{width}" height="{height}" fill="#9ca3af"/>'
            f'<text x="{width / 2:g}" y="{height / 2:g}" text-anchor="middle" '
            f'font-size="{unit(image) * 14:g}" fill="#111">pixels are not attached</text>'
        )
    else:
        url = data_url(reduced(picture.pixels, longest))
        field = (
            f'<image width="{width}" height="{height}" href="{url}" preserveAspectRatio="none"/>'
        )
    heat = "".join(_heat_svg(trace, map, step) for step, map in _heat_maps(trace, image))
    marks = "".join(region_svg(one, image) for one in drawn if one.original == image.id)
    name = shown(f"{image.id}, {width} x {height} pixels")
    return (
        f'<svg class="picture" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'data-width="{width}" role="img" aria-label="{name}">{field}{heat}{marks}</svg>'
    )


def unit(image: TraceImage) -> float:
    """What is about one pixel of a screen, in pixels of the image."""
    return max(image.size) / 640


def region_svg(one: Cited, image: TraceImage) -> str:
    """A region: a light line under a coloured one, and its number."""
    region, color = one.region, COLORS[one.kind]
    title = shown(f"{one.number} {region.label}".strip(), _LABEL)
    opening = (
        f'<g class="region {region.source}" data-step="{one.step}" data-region="{one.number}">'
    )
    if not region.points:
        return ""
    x, y = _anchor(region, image)
    shape = "".join(
        _shape_svg(region, image, attributes)
        for attributes in (
            'stroke="#fff" stroke-opacity="0.85" stroke-width="5"',
            f'stroke="{color}" stroke-width="2.5"{_dash(region.source)}',
        )
    )
    return f"{opening}<title>{title}</title>{shape}{_tag_svg(one.number, x, y, color, image)}</g>"


def _dash(source: str) -> str:
    return f' stroke-dasharray="{DASHES[source]}" stroke-linecap="round"' if DASHES[source] else ""


def _shape_svg(region: Region, image: TraceImage, attributes: str) -> str:
    fixed = f'fill="none" vector-effect="non-scaling-stroke" {attributes}'
    if region.kind == "box":
        x0, y0, x1, y1 = region.bounds or (0, 0, 0, 0)
        return f'<rect x="{x0:g}" y="{y0:g}" width="{x1 - x0:g}" height="{y1 - y0:g}" {fixed}/>'
    if region.kind == "point":
        (x, y), r = region.points[0], 6 * unit(image)
        return f'<circle cx="{x:g}" cy="{y:g}" r="{r:g}" {fixed}/>'
    points = " ".join(f"{x:g},{y:g}" for x, y in region.points)
    return f'<polygon points="{points}" {fixed}/>'


def _anchor(region: Region, image: TraceImage) -> tuple[float, float]:
    """Where the number stands: at the upper left corner, moved into the image."""
    left, top, _, _ = region.bounds or (0, 0, 0, 0)
    height, width = image.size
    return min(max(left, 0), width), min(max(top, 0), height)


def _tag_svg(number: int, x: float, y: float, color: str, image: TraceImage) -> str:
    """A number whose size the page may change (data-x, data-y) to that of its other text."""
    wide, tall = 8 * len(str(number)) + 8, 16
    width = image.size[1]
    k = unit(image)
    dx = -wide if x + wide * k > width else 0
    dy = 0 if y - tall * k < 0 else -tall
    return (
        f'<g class="tag" data-x="{x:g}" data-y="{y:g}" transform="translate({x:g} {y:g}) '
        f'scale({k:g})"><rect x="{dx}" y="{dy}" width="{wide}" height="{tall}" rx="2" '
        f'fill="{color}"/><text x="{dx + wide / 2:g}" y="{dy + 12}" text-anchor="middle" '
        f'font-family="sans-serif" font-size="12" font-weight="600" fill="#fff">{number}</text></g>'
    )


# ---- heat maps ----------------------------------------------------------------------------------


def _heat_maps(trace: VisualTrace, image: TraceImage) -> Iterator[tuple[int, HeatMap]]:
    for index, step in enumerate(trace.steps):
        if step.heat is not None and trace.original(step.heat.image).id == image.id:
            yield index, step.heat


def _heat_svg(trace: VisualTrace, heat: HeatMap, step: int) -> str:
    """The map over the image it was measured on, wherever that lies in its original."""
    image = trace.image(heat.image)
    t = image.transform
    matrix = f"matrix({t.a:g} {t.d:g} {t.b:g} {t.e:g} {t.c:g} {t.f:g})"
    height, width = image.size
    return (
        f'<image class="heat" data-step="{step}" transform="{matrix}" width="{width}" '
        f'height="{height}" preserveAspectRatio="none" href="{data_url(_tinted(heat))}"/>'
    )


def _tinted(heat: HeatMap) -> np.ndarray:
    """uint8 [rows, columns, 4]: the more, the redder and denser; nothing where nothing is."""
    values = np.array(heat.values, np.float64).reshape(heat.rows, heat.columns)
    top = values.max()
    share = np.clip(values / top, 0, 1) if top > 0 else np.zeros_like(values)
    out = np.empty((*share.shape, 4), np.uint8)
    out[..., 0] = 255
    out[..., 1] = np.round(210 * (1 - share))
    out[..., 2] = 0
    out[..., 3] = np.round(170 * share)
    return out
