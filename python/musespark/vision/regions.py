"""Regions: places a model named in a text, in pixels of the original image.

What a model wrote may be wrong. A region says so in its flags and keeps what was written; none is
left out or mended in silence.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from musespark.vision.conventions import Convention, Found, convention_named
from musespark.vision.geometry import Transform

Point = tuple[float, float]

REGION_KINDS = ("box", "point", "polygon")
SOURCES = ("model", "engine", "tool")
FLAGS = ("malformed", "inverted", "empty", "clipped", "off-image", "duplicate")
MAX_REGIONS = 512  # of one text
_EXACT = 1e-6  # pixels; below it a difference is rounding


@dataclass(frozen=True)
class Region:
    """A place in an image.

    ``points``: (x, y) each in pixels of the original image, continuous (pixel i covers i to i + 1):
    two corners of a box, (left, top) and (right, bottom), one point, or the corners of a polygon.
    Empty where the numbers are ``malformed``. ``image``: id of the image the text is about, a crop
    perhaps. ``written``: the numbers as written, in ``convention``; ``raw``: the text they stand
    in, ``span`` its place in the text of the step.

    ``source``: ``model`` claimed it, the ``engine`` measured it, or a ``tool`` made it.
    ``confidence``: mean probability of the tokens of the coordinates, uncalibrated: how sure the
    model was of its digits, which is not how often such boxes are right. None where unknown.

    ``flags``: ``malformed``, ``inverted`` (the corners were in the wrong order and are sorted),
    ``empty`` (no area), ``clipped`` (it reached beyond the image and was cut to it), ``off-image``
    (it lies outside and was left there), ``duplicate`` (the same stands before it in the text).
    """

    kind: str
    points: tuple[Point, ...]
    image: str = ""
    label: str = ""
    raw: str = ""
    convention: str = ""
    written: tuple[float, ...] = ()
    span: tuple[int, int] = (0, 0)
    source: str = "model"
    confidence: float | None = None
    flags: tuple[str, ...] = ()

    @property
    def bounds(self) -> tuple[float, float, float, float] | None:
        """(left, top, right, bottom) in the original, None of a malformed one."""
        if not self.points:
            return None
        xs, ys = [x for x, _ in self.points], [y for _, y in self.points]
        return min(xs), min(ys), max(xs), max(ys)


@dataclass(frozen=True)
class View:
    """An image as coordinates refer to it.

    ``size``: its (height, width). ``transform``: its pixels to those of the original, whose size is
    ``original``. ``image``: the id regions carry.
    """

    size: tuple[int, int]
    transform: Transform = field(default_factory=Transform)
    original: tuple[int, int] | None = None
    image: str = ""


@dataclass(frozen=True)
class Regions:
    """What a text names: the regions, in its order; ``coordinates``: where in the text the numbers
    of each stand; ``complete``: whether none was left out beyond the limit."""

    regions: tuple[Region, ...]
    coordinates: tuple[tuple[int, int], ...]
    complete: bool = True


def find_regions(
    text: str, view: View, convention: str | Convention, *, limit: int = MAX_REGIONS
) -> Regions:
    """The regions that a text names by a convention, in pixels of the original."""
    convention = convention_named(convention)
    found = convention.find(text, limit)
    regions: list[Region] = []
    seen: set[object] = set()
    for one in found[:limit]:
        region = place(one, view, convention)
        region = replace(region, raw=text[one.start : one.end], span=(one.start, one.end))
        key = (region.kind, region.label, region.written)
        if region.points and key in seen:
            region = replace(region, flags=(*region.flags, "duplicate"))
        seen.add(key)
        regions.append(region)
    coordinates = tuple((one.first, one.last) for one in found[:limit])
    return Regions(tuple(regions), coordinates, len(found) <= limit)


def place(found: Found, view: View, convention: Convention) -> Region:
    """Coordinates of a text as a region of the original."""
    blank = Region(
        found.kind,
        (),
        image=view.image,
        label=found.label,
        convention=convention.name,
        written=found.numbers,
    )
    if not found.numbers:
        return replace(blank, flags=("malformed",))
    points, flags = _in_view(found, view, convention)
    if found.kind == "box":
        points, more = _box(points, view)
    else:
        more = () if _inside(points, view.size) else ("off-image",)
    kind, mapped = _to_original(found.kind, points, view.transform)
    mapped, cut = _within(kind, mapped, view.original, (*flags, *more))
    return replace(blank, kind=kind, points=mapped, flags=(*flags, *more, *cut))


def _in_view(
    found: Found, view: View, convention: Convention
) -> tuple[tuple[Point, ...], tuple[str, ...]]:
    """Points in pixels of the view; the corners of a box in order."""
    height, width = view.size
    across, down = (width, height) if convention.full else (1, 1)
    full = convention.full or 1
    numbers = found.numbers
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    if convention.y_first:
        pairs = [(x, y) for y, x in pairs]
    points = tuple((x * across / full, y * down / full) for x, y in pairs)
    if found.kind != "box":
        return points, ()
    (x0, y0), (x1, y1) = points
    ordered = ((min(x0, x1), min(y0, y1)), (max(x0, x1), max(y0, y1)))
    flags = ("inverted",) if ordered != points else ()
    return ordered, (*flags, "empty") if x0 == x1 or y0 == y1 else flags


def _box(points: tuple[Point, ...], view: View) -> tuple[tuple[Point, ...], tuple[str, ...]]:
    """A box cut to the view, or left where it is when nothing of it is inside."""
    (x0, y0), (x1, y1) = points
    height, width = view.size
    if x0 < 0 >= x1 or y0 < 0 >= y1 or x1 > width <= x0 or y1 > height <= y0:
        return points, ("off-image",)
    cut = ((max(x0, 0.0), max(y0, 0.0)), (min(x1, float(width)), min(y1, float(height))))
    return cut, () if _near(cut, points) else ("clipped",)


def _to_original(
    kind: str, points: tuple[Point, ...], transform: Transform
) -> tuple[str, tuple[Point, ...]]:
    """Mapped points. A box that comes to lie askew is a polygon then."""
    upright = (transform.b == 0 and transform.d == 0) or (transform.a == 0 and transform.e == 0)
    if kind == "box" and upright:
        x0, y0, x1, y1 = transform.box((*points[0], *points[1]))
        return kind, ((x0, y0), (x1, y1))
    if kind == "box":
        (x0, y0), (x1, y1) = points
        kind, points = "polygon", ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    return kind, tuple((float(x), float(y)) for x, y in transform.points(points))


def _within(
    kind: str, points: tuple[Point, ...], size: tuple[int, int] | None, flags: tuple[str, ...]
) -> tuple[tuple[Point, ...], tuple[str, ...]]:
    """Cut to the original where the view shows more than it, as padding does."""
    if size is None or "off-image" in flags:
        return points, ()
    if kind != "box":
        return points, () if _inside(points, size) else ("off-image",)
    cut, more = _box(points, View(size))
    return cut, tuple(flag for flag in more if flag not in flags)


def _inside(points: tuple[Point, ...], size: tuple[int, int]) -> bool:
    height, width = size
    return all(
        -_EXACT <= x <= width + _EXACT and -_EXACT <= y <= height + _EXACT for x, y in points
    )


def _near(a: tuple[Point, ...], b: tuple[Point, ...]) -> bool:
    return all(
        abs(p - q) <= _EXACT
        for one, other in zip(a, b, strict=True)
        for p, q in zip(one, other, strict=True)
    )
