"""How models write places in an image: where in a text the coordinates are, and their units.

Sources: Qwen2-VL, Qwen2.5-VL and Qwen3-VL cookbooks (``bbox_2d``, ``point_2d``, box markers),
Molmo's model card (``<point>`` in per cent), LLaVA 1.5's training data (``[0.12, 0.3, 0.5, 0.78]``,
parts of a side), PaliGemma's model card (``<loc0000>`` to ``<loc1023>``, y before x, 1/1024 of a
side each).

The texts are a model's: every pattern looks at a bounded stretch from where it begins, so that a
scan takes time in proportion to the text whatever it holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from musespark.errors import InvalidRequest


@dataclass(frozen=True)
class Found:
    """Coordinates in a text. ``kind``: box, point or polygon. ``numbers``: as written, in the
    order of the text; empty where they are not as many as the kind needs. ``start`` to ``end``:
    all that belongs to it; ``first`` to ``last``: the coordinates alone."""

    kind: str
    numbers: tuple[float, ...]
    start: int
    end: int
    first: int
    last: int
    label: str = ""


Scanner = Callable[[str], Iterator[Found]]

_NUMBER = r"-?\d{1,12}(?:\.\d{1,12})?"
_IS_NUMBER = re.compile(rf"\s*({_NUMBER})\s*")
_NEEDED = {"box": 4, "point": 2}
_AROUND = 400  # characters beside coordinates in JSON that are looked at for the label


def _numbers(text: str, count: int) -> tuple[float, ...]:
    """The numbers between commas, or nothing where they are not so many."""
    parts = text.split(",", count)
    matches = [_IS_NUMBER.fullmatch(part) for part in parts]
    if len(parts) != count or not all(matches):
        return ()
    return tuple(float(match[1]) for match in matches if match)


# --- JSON: {"bbox_2d": [1, 2, 3, 4], "label": "cat"} ---------------------------------------------

_KEY = re.compile(r"""["'](bbox_2d|point_2d)["']\s{0,8}:\s{0,8}(\[[^\[\]{}"']{0,200}\]?)""")
_LABEL = re.compile(
    r"""["']label["']\s{0,8}:\s{0,8}(?:"((?:[^"\\]|\\.){0,200})"|'([^'\\]{0,200})')"""
)


def scan_json(text: str) -> Iterator[Found]:
    """``bbox_2d`` and ``point_2d`` with the label of their object, also in JSON that breaks off."""
    for match in _KEY.finditer(text):
        kind = "box" if match[1] == "bbox_2d" else "point"
        closed = match[2].endswith("]")
        numbers = _numbers(match[2][1:-1], _NEEDED[kind]) if closed else ()
        start, end = _object_around(text, match.start(), match.end())
        label = _LABEL.search(text, start, end)
        yield Found(kind, numbers, start, end, match.start(2), match.end(2), _label(label))


def _object_around(text: str, start: int, end: int) -> tuple[int, int]:
    """From the brace before to the brace behind, where both are near; else what was given."""
    opening = text.rfind("{", max(0, start - _AROUND), start)
    closing = text.find("}", end, end + _AROUND)
    if opening < 0 or closing < 0 or text.find("}", opening, start) >= 0:
        return start, end
    return opening, closing + 1


def _label(match: re.Match[str] | None) -> str:
    if match is None:
        return ""
    if match[2] is not None:
        return match[2]
    try:
        return json.loads(f'"{match[1]}"', strict=False)
    except ValueError:
        return match[1]


# --- Markers: <|box_start|>(1,2),(3,4)<|box_end|> ------------------------------------------------

_MARKED = re.compile(
    r"(?:<\|object_ref_start\|>([^<]{0,200})<\|object_ref_end\|>\s{0,4})?"
    r"<\|(box|quad)_start\|>([^<]{0,200})(?:<\|\2_end\|>)?"
)
_BRACKETS = re.compile(r"[()\s]")


def scan_markers(text: str) -> Iterator[Found]:
    """Qwen2-VL's boxes, points (a box of one pair) and quads between markers."""
    for match in _MARKED.finditer(text):
        inside = _BRACKETS.sub("", match[3])
        pairs = (inside.count(",") + 1) // 2
        kind = {1: "point", 2: "box"}.get(pairs, "box") if match[2] == "box" else "polygon"
        numbers = _numbers(inside, 8 if kind == "polygon" else _NEEDED[kind])
        yield Found(kind, numbers, *match.span(), *match.span(3), (match[1] or "").strip())


# --- Tags: <points x1="10.5" y1="20" x2="30" y2="40.5" alt="cats">cats</points> ------------------

_TAG = re.compile(r"<points?\s([^<>]{0,20000})>([^<]{0,200})(?:</points?>)?")
_ATTRIBUTE = re.compile(r'\b(x|y|alt)(\d{0,4})\s{0,4}=\s{0,4}"([^"]{0,200})"')


def scan_tags(text: str) -> Iterator[Found]:
    """Molmo's points; a tag may hold many."""
    for tag in _TAG.finditer(text):
        values = {(m[1], m[2]): m for m in _ATTRIBUTE.finditer(text, tag.start(1), tag.end(1))}
        alt = values.pop(("alt", ""), None)
        label = (alt[3] if alt else tag[2]).strip()
        names = dict.fromkeys(number for _, number in values)
        if not names:
            yield Found("point", (), *tag.span(), *tag.span(1), label)
        for name in names:
            pair = [values.get((axis, name)) for axis in "xy"]
            there = [match for match in pair if match]
            numbers = _numbers(",".join(match[3] for match in there), 2)
            first, last = min(m.start() for m in there), max(m.end() for m in there)
            yield Found("point", numbers, *tag.span(), first, last, label)


# --- Location tokens: <loc0100><loc0200><loc0300><loc0400> cat ; ---------------------------------

_LOCATIONS = re.compile(r"((?:<loc\d{4}>)+)((?:<seg\d{3}>)*)([^<;\n]{0,200})")
_TOKEN = len("<loc0000>")


def scan_locations(text: str) -> Iterator[Found]:
    """PaliGemma's boxes, four tokens each, the label behind them."""
    for match in _LOCATIONS.finditer(text):
        start, end = match.span(1)
        for at in range(start, end, 4 * _TOKEN):
            stop = min(at + 4 * _TOKEN, end)
            numbers = tuple(float(text[i + 4 : i + 8]) for i in range(at, stop, _TOKEN))
            if len(numbers) < 4:
                numbers = ()
            yield Found("box", numbers, at, stop, at, stop, match[3].strip())


# --- Bare: [1,2,3,4], (1,2),(3,4) and (1,2) ------------------------------------------------------

_PLAIN = r"\s?(-?(?:0|[1-9]\d{0,5})(?:\.\d{1,6})?)\s?"
_QUAD = re.compile(rf"(?<![\w\]])\[{_PLAIN},{_PLAIN},{_PLAIN},{_PLAIN}\]")
_PAIRS = re.compile(rf"(?<![\w)])\({_PLAIN},{_PLAIN}\)(?:\s?,\s?\({_PLAIN},{_PLAIN}\))?")


def scan_bare_boxes(text: str) -> Iterator[Found]:
    """Lists of four numbers."""
    for match in _QUAD.finditer(text):
        yield Found("box", tuple(map(float, match.groups())), *match.span(), *match.span())


def scan_bare_pairs(text: str) -> Iterator[Found]:
    """Pairs of numbers as points, two pairs as a box."""
    for match in _PAIRS.finditer(text):
        numbers = tuple(float(number) for number in match.groups() if number is not None)
        kind = "box" if len(numbers) == 4 else "point"
        yield Found(kind, numbers, *match.span(), *match.span())


def scan_bare_pair_boxes(text: str) -> Iterator[Found]:
    """Two pairs as a box; a pair alone is no place."""
    return (found for found in scan_bare_pairs(text) if found.kind == "box")


# --- The table -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Convention:
    """How a family writes places.

    ``full``: the number that stands for a whole side of the image; None where coordinates are
    pixels of the image as it was resized for the model. ``y_first``: y comes before x.
    ``scanners`` find the coordinates; where two find the same, the first in the text counts.
    ``brief``: what a tool's description says of its coordinates.
    """

    name: str
    full: float | None
    scanners: tuple[Scanner, ...]
    y_first: bool = False

    @property
    def brief(self) -> str:
        if self.full is None:
            return "in pixels of the image as you were given it"
        return f"from 0 to {self.full:g} across the image, whatever its size"

    def find(self, text: str, limit: int) -> list[Found]:
        """The coordinates in the text, in its order, each once; one more than ``limit`` at most.
        What a label says of places is none."""
        every = [found for scan in self.scanners for found in islice(scan(text), limit + 1)]
        wholes = {(f.start, f.end) for f in every if (f.start, f.end) != (f.first, f.last)}
        every.sort(key=lambda found: (found.first, -found.last))
        kept: list[Found] = []
        for found in every:
            span = found.start, found.end
            told = any(a <= span[0] and span[1] <= b for a, b in wholes if (a, b) != span)
            if not told and (not kept or found.first >= kept[-1].last):
                kept.append(found)
        return kept[: limit + 1]


CONVENTIONS = {
    convention.name: convention
    for convention in (
        Convention("muse", 1000, (scan_json, scan_bare_boxes, scan_bare_pairs)),
        Convention(
            "qwen2-vl", 1000, (scan_json, scan_markers, scan_bare_boxes, scan_bare_pair_boxes)
        ),
        Convention("qwen2.5-vl", None, (scan_json, scan_bare_boxes, scan_bare_pair_boxes)),
        Convention("qwen3-vl", 1000, (scan_json, scan_bare_boxes, scan_bare_pair_boxes)),
        Convention("molmo", 100, (scan_tags,)),
        Convention("paligemma", 1024, (scan_locations,), y_first=True),
        Convention("llava", 1, (scan_bare_boxes,)),
        Convention("none", 1000, ()),
    )
}


def convention_named(name: str | Convention) -> Convention:
    """The convention of a name; InvalidRequest with the names there are for any other."""
    if isinstance(name, Convention):
        return name
    if name not in CONVENTIONS:
        raise InvalidRequest(f"convention: {name!r}, known are {', '.join(CONVENTIONS)}")
    return CONVENTIONS[name]
