"""Tools that answer with exact facts about the images of a conversation.

Coordinates in their arguments are written as the model writes all others (its convention); what
they answer is in pixels of the original. A wrong argument is an :class:`InvalidRequest` that names
it, which the loop tells the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from musespark.errors import InvalidRequest
from musespark.vision.conventions import Convention, Found
from musespark.vision.regions import Point, Region, place
from musespark.vision.trace.album import Album

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class ToolLimits:
    """``smallest``: shorter side of a crop in pixels, which smaller boxes are widened to; ``made``:
    crops and turned images of a conversation; ``pixels``: of all those together."""

    smallest: int = 28
    made: int = 16
    pixels: int = 1 << 26


@dataclass
class Desk:
    """What tools work on: the images, how coordinates are written, and the limits."""

    album: Album
    convention: Convention
    limits: ToolLimits = field(default_factory=ToolLimits)

    def index(self, value: int) -> int:
        """A checked ``img_idx``."""
        if not 0 <= value < len(self.album):
            raise InvalidRequest(f"img_idx: {value}, there are images 0 to {len(self.album) - 1}")
        return value

    def region(self, index: int, kind: str, numbers: Sequence[float], name: str) -> Region:
        """Coordinates of an argument as a region of the original; InvalidRequest for what a model
        can mend: corners in the wrong order, or a place outside the image."""
        xy = Convention(self.convention.name, self.convention.full, ())
        found = Found(kind, tuple(map(float, numbers)), 0, 0, 0, 0)
        region = place(found, self.album.view(index, xy), xy)
        if "inverted" in region.flags:
            raise InvalidRequest(
                f"{name}: {_listed(numbers)}, must be [x1, y1, x2, y2] with x1 < x2 and y1 < y2"
            )
        if "off-image" in region.flags:
            raise InvalidRequest(f"{name}: {_listed(numbers)} is outside image {index}")
        return Region(
            region.kind,
            region.points,
            image=self.album.images[index].id,
            written=region.written,
            convention=region.convention,
            source="tool",
            flags=region.flags,
        )

    def pixels_of(self, index: int, region: Region) -> Box:
        """The whole pixels that a region touches, in the pixels of an image that shows it."""
        image = self.album.images[index]
        inverse = image.transform.inverse()
        x0, y0, x1, y1 = inverse.box(region.bounds or (0, 0, 0, 0))
        height, width = image.size
        left, top = max(0, math.floor(x0 + 1e-6)), max(0, math.floor(y0 + 1e-6))
        return (
            min(left, width - 1),
            min(top, height - 1),
            min(width, max(math.ceil(x1 - 1e-6), left + 1)),
            min(height, max(math.ceil(y1 - 1e-6), top + 1)),
        )

    def make_room(self, pixels: int) -> None:
        """InvalidRequest where one more image of so many pixels is beyond the limits."""
        made = [image for image in self.album.images if image.parent is not None]
        if len(made) >= self.limits.made:
            raise InvalidRequest(
                f"{len(made)} images were made already, at most {self.limits.made} may be"
            )
        total = pixels + sum(image.size[0] * image.size[1] for image in made)
        if total > self.limits.pixels:
            raise InvalidRequest(
                f"{total} pixels in made images with this one, the limit is {self.limits.pixels}"
            )


@dataclass(frozen=True)
class Answer:
    """What a tool answers: facts as JSON, the regions it is about, the place of an image made."""

    facts: Mapping[str, Any]
    regions: tuple[Region, ...] = ()
    made: int | None = None

    @property
    def text(self) -> str:
        return json.dumps(self.facts, ensure_ascii=False)


@dataclass(frozen=True)
class VisionTool:
    """A tool: its name, what it is told to do, its arguments as JSON schema, and the function."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    run: Callable[[Desk, Mapping[str, Any]], Answer] = field(repr=False)

    def schema(self, convention: Convention) -> dict[str, Any]:
        """As ``tools`` of :meth:`Model.chat` takes it, for a model of that convention."""
        text = f"{self.description} Coordinates are {convention.brief}, x before y."
        function = {"name": self.name, "description": text, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}

    def __call__(self, desk: Desk, arguments: Any) -> Answer:
        """Runs it. InvalidRequest for arguments that the schema does not allow."""
        return self.run(desk, checked(arguments, self.parameters, self.name))


# ---- arguments ----------------------------------------------------------------------------------


def checked(arguments: Any, schema: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Arguments as the schema has them, defaults filled in. InvalidRequest naming the argument."""
    if not isinstance(arguments, Mapping):
        raise InvalidRequest(f"{where}: arguments must be an object, got {_shown(arguments)}")
    properties = schema["properties"]
    for name in arguments:
        if name not in properties:
            raise InvalidRequest(f"{where}: no argument {name!r:.60}, it has {[*properties]}")
    out = {}
    for name, rule in properties.items():
        if name in arguments:
            _check(arguments[name], rule, name)
            out[name] = arguments[name]
        elif name in schema["required"]:
            raise InvalidRequest(f"{where}: {name} is missing")
        elif "default" in rule:
            out[name] = rule["default"]
    return out


_TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "string": (str,),
    "array": (list, tuple),
}


def _check(value: Any, rule: Mapping[str, Any], name: str) -> None:
    kind = rule["type"]
    good = isinstance(value, _TYPES[kind]) and not isinstance(value, bool)
    if kind == "number" and good:
        good = abs(value) < 1e9  # an int may be too large for a float
    if not good:
        raise InvalidRequest(f"{name}: {_shown(value)}, must be {_article(kind)}")
    if "enum" in rule and value not in rule["enum"]:
        raise InvalidRequest(f"{name}: {_shown(value)}, must be one of {rule['enum']}")
    if kind == "array":
        low, high = rule["minItems"], rule["maxItems"]
        if not low <= len(value) <= high:
            counts = f"{low}" if low == high else f"{low} to {high}"
            raise InvalidRequest(f"{name}: {len(value)} items, must be {counts}")
        for index, item in enumerate(value):
            _check(item, rule["items"], f"{name}[{index}]")


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "ai" else f"a {kind}"


def _shown(value: Any) -> str:
    try:
        return json.dumps(value)[:80]
    except (TypeError, ValueError, RecursionError):
        return type(value).__name__


def _listed(numbers: Sequence[float]) -> str:
    return f"[{', '.join(f'{number:g}' for number in numbers)}]"


_NUMBER = {"type": "number"}
_BOX = {
    "type": "array",
    "items": _NUMBER,
    "minItems": 4,
    "maxItems": 4,
    "description": "[x1, y1, x2, y2]: left, top, right, bottom",
}
_POINTS = {
    "type": "array",
    "items": {"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2},
    "minItems": 2,
    "maxItems": 64,
    "description": "points [x, y]",
}
_INDEX = {"type": "integer", "description": "which image, counted from 0"}


def _object(required: Sequence[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required)}


# ---- the tools ----------------------------------------------------------------------------------


def _zoom(desk: Desk, arguments: Mapping[str, Any]) -> Answer:
    index = desk.index(arguments["img_idx"])
    asked = desk.region(index, "box", arguments["bbox_2d"], "bbox_2d")
    wanted = desk.pixels_of(index, asked)
    box = _widened(wanted, desk.album.images[index].size, desk.limits.smallest)
    desk.make_room((box[2] - box[0]) * (box[3] - box[1]))
    image = desk.album.crop(index, box)
    facts = {
        "img_idx": len(desk.album) - 1,
        "width": image.size[1],
        "height": image.size[0],
        "label": arguments["label"],
    }
    if "clipped" in asked.flags:
        facts["note"] = "the box reached beyond the image and was cut to it"
    if box != wanted:
        facts["note"] = f"the box was small; widened to {image.size[1]} x {image.size[0]} pixels"
    whole = image.transform.box((0, 0, image.size[1], image.size[0]))
    region = Region(
        "box",
        (whole[:2], whole[2:]),
        image=desk.album.images[index].id,
        label=arguments["label"],
        source="tool",
    )
    return Answer(facts, (region,), len(desk.album) - 1)


def _widened(box: Box, size: tuple[int, int], smallest: int) -> Box:
    """Both sides at least ``smallest``, or the whole side of a smaller image, around the middle."""

    def side(low: int, high: int, whole: int) -> tuple[int, int]:
        length = min(max(high - low, smallest), whole)
        start = min(max(0, (low + high - length) // 2), whole - length)
        return (low, high) if length <= high - low else (start, start + length)

    (left, right), (top, bottom) = side(box[0], box[2], size[1]), side(box[1], box[3], size[0])
    return left, top, right, bottom


def _rotate(desk: Desk, arguments: Mapping[str, Any]) -> Answer:
    index = desk.index(arguments["img_idx"])
    height, width = desk.album.images[index].size
    desk.make_room(height * width)
    image = desk.album.turn(index, arguments["degrees"])
    facts = {"img_idx": len(desk.album) - 1, "width": image.size[1], "height": image.size[0]}
    return Answer(facts, (), len(desk.album) - 1)


def _measure(desk: Desk, arguments: Mapping[str, Any]) -> Answer:
    what, index = arguments["what"], desk.index(arguments["img_idx"])
    given = arguments["points"]
    needed = {"distance": (2, 2), "angle": (3, 3), "area": (3, 64)}[what]
    if not needed[0] <= len(given) <= needed[1]:
        counts = f"{needed[0]}" if needed[0] == needed[1] else f"at least {needed[0]}"
        raise InvalidRequest(f"points: {len(given)} points, {what} needs {counts}")
    regions = [desk.region(index, "point", p, f"points[{i}]") for i, p in enumerate(given)]
    points = [region.points[0] for region in regions]
    value = {"distance": _distance, "angle": _angle, "area": _area}[what](points)
    unit = {"distance": "pixels", "angle": "degrees", "area": "square pixels"}[what]
    if not math.isfinite(value):
        raise InvalidRequest("points: two of them are the same, there is no angle")
    shape = Region("polygon", tuple(points), regions[0].image, what, source="tool")
    return Answer({what: round(value, 3), "unit": f"{unit} of the original image"}, (shape,))


def _distance(points: Sequence[Point]) -> float:
    return math.dist(points[0], points[1])


def _angle(points: Sequence[Point]) -> float:
    """At the second point, 0 to 180 degrees; NaN where a side has no length."""
    (ax, ay), (bx, by), (cx, cy) = points
    u, v = (ax - bx, ay - by), (cx - bx, cy - by)
    if u == (0, 0) or v == (0, 0):
        return math.nan
    cross, dot = u[0] * v[1] - u[1] * v[0], u[0] * v[0] + u[1] * v[1]
    return math.degrees(math.atan2(abs(cross), dot))


def _area(points: Sequence[Point]) -> float:
    """Of a polygon whose sides do not cross."""
    ends = [*points[1:], points[0]]
    return abs(sum(x * v - u * y for (x, y), (u, v) in zip(points, ends, strict=True))) / 2


def _read_colors(desk: Desk, arguments: Mapping[str, Any]) -> Answer:
    index = desk.index(arguments["img_idx"])
    region = desk.region(index, "box", arguments["bbox_2d"], "bbox_2d")
    left, top, right, bottom = desk.pixels_of(index, region)
    pixels = desk.album.pictures[index].pixels[top:bottom, left:right].reshape(-1, 3)
    packed = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    colors, counts = np.unique(packed, return_counts=True)
    order = np.lexsort((colors, -counts))[: arguments["most"]]
    most = [
        {"color": f"#{colors[i]:06x}", "share": round(int(counts[i]) / len(packed), 4)}
        for i in order
    ]
    mean = [round(float(value), 1) for value in pixels.mean(axis=0)]
    facts = {
        "pixels": len(packed),
        "colors": len(colors),
        "most_frequent": most,
        "mean_rgb": mean,
        "darkest": f"#{colors[np.argmin(_light(colors))]:06x}",
        "lightest": f"#{colors[np.argmax(_light(colors))]:06x}",
    }
    return Answer(facts, (region,))


def _light(colors: np.ndarray) -> np.ndarray:
    """Red + green + blue."""
    return (colors >> 16) + (colors >> 8 & 255) + (colors & 255)


TOOLS = (
    VisionTool(
        "image_zoom_in_tool",
        "Cuts a part out of an image and shows it to you as a new image, from the original at full "
        "resolution. Use it for what is too small to be seen.",
        _object(
            ("bbox_2d", "label", "img_idx"),
            bbox_2d=_BOX,
            label={"type": "string", "description": "what the part shows"},
            img_idx=_INDEX,
        ),
        _zoom,
    ),
    VisionTool(
        "rotate",
        "Turns an image clockwise and shows it to you as a new image.",
        _object(
            ("degrees", "img_idx"),
            degrees={"type": "integer", "enum": [90, 180, 270]},
            img_idx=_INDEX,
        ),
        _rotate,
    ),
    VisionTool(
        "measure",
        "Measures exactly, in pixels of the original: the distance of two points, the angle at the "
        "second of three, or the area of the polygon of three and more.",
        _object(
            ("what", "points", "img_idx"),
            what={"type": "string", "enum": ["distance", "angle", "area"]},
            points=_POINTS,
            img_idx=_INDEX,
        ),
        _measure,
    ),
    VisionTool(
        "read_colors",
        "Reads the colours of a part of an image: the most frequent, the mean, the extremes.",
        _object(
            ("bbox_2d", "img_idx"),
            bbox_2d=_BOX,
            img_idx=_INDEX,
            most={"type": "integer", "enum": [1, 3, 5, 8], "default": 5},
        ),
        _read_colors,
    ),
)
