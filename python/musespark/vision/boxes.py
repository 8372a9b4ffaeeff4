"""Schemas of places in an image, as a model of a convention writes them: every answer is one that
:func:`musespark.vision.regions.find_regions` reads, and no place lies outside the image."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from typing import Any

from musespark.errors import InvalidRequest
from musespark.vision.conventions import CONVENTIONS, Convention, convention_named, scan_json

KINDS = {"box": ("bbox_2d", 2), "point": ("point_2d", 1)}
MOST_PLACES = 512  # MAX_REGIONS of regions.py
MOST_SIDE = 1 << 24
# Of a free label: a line without what coordinates could be mistaken for, or would need an escape.
_LETTER = r"[^\"'\\\[\]{}\x00-\x1f\x7f]"
_LABEL = f"^{_LETTER}{{1,48}}$"
_GIVEN_LABEL = re.compile(f"{_LETTER}{{1,200}}")


def boxes_schema(
    size: tuple[int, int],
    convention: str | Convention,
    *,
    kind: str = "box",
    labels: Sequence[str] | None = None,
    least: int = 0,
    most: int = 32,
) -> dict[str, Any]:
    """A JSON schema for ``json_schema=``: a list of ``{"bbox_2d": [x1, y1, x2, y2], "label": …}``.

    ``size``: (height, width) of the image as the model was given it; coordinates are whole numbers
    from 0 to its sides, or to the convention's full scale, whichever the convention counts in.
    ``kind``: ``box``, or ``point`` (``point_2d``: [x, y]). ``labels``: those allowed, None for any
    text of up to 48 characters. ``least``, ``most``: how many places.

    That x1 is less than x2 is beyond a schema: such boxes come out as regions flagged ``inverted``
    or ``empty``. InvalidRequest for a convention whose models do not write JSON.
    """
    convention = convention_named(convention)
    if scan_json not in convention.scanners:
        writes = [name for name, one in CONVENTIONS.items() if scan_json in one.scanners]
        raise InvalidRequest(
            f"convention: {convention.name!r} has no JSON; there is a schema for {writes}"
        )
    if kind not in KINDS:
        raise InvalidRequest(f"kind: got {kind!r:.60}, allowed is one of {[*KINDS]}")
    height, width = _sides(size)
    least = _count("least", least, 0, MOST_PLACES)
    most = _count("most", most, max(1, least), MOST_PLACES)
    across, down = (width, height) if convention.full is None else (convention.full,) * 2
    axes = [{"type": "integer", "minimum": 0, "maximum": int(side)} for side in (across, down)]
    if convention.y_first:
        axes.reverse()
    key, points = KINDS[kind]
    place = {
        "type": "array",
        "prefixItems": axes * points,
        "items": False,
        "minItems": 2 * points,
        "maxItems": 2 * points,
    }
    label = {"type": "string", "pattern": _LABEL} if labels is None else {"enum": _labels(labels)}
    one = {
        "type": "object",
        "properties": {key: place, "label": label},
        "required": [key, "label"],
        "additionalProperties": False,
    }
    return {"type": "array", "items": one, "minItems": least, "maxItems": most}


def _sides(size: Any) -> tuple[int, int]:
    try:
        height, width = size
    except (TypeError, ValueError):
        raise InvalidRequest(f"size: got {size!r:.60}, allowed is (height, width)") from None
    return _count("height", height, 1, MOST_SIDE), _count("width", width, 1, MOST_SIDE)


def _count(name: str, value: Any, low: int, high: int) -> int:
    try:
        number = low - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = low - 1
    if not low <= number <= high:
        raise InvalidRequest(
            f"{name}: got {value!r:.60}, allowed is an integer from {low} to {high}"
        )
    return number


def _labels(labels: Any) -> list[str]:
    """InvalidRequest for a label in which coordinates could be found."""
    if isinstance(labels, str) or not isinstance(labels, Sequence) or not labels:
        raise InvalidRequest(f"labels: got {labels!r:.60}, allowed is a list of str, or None")
    for label in labels:
        if not isinstance(label, str) or not _GIVEN_LABEL.fullmatch(label):
            raise InvalidRequest(
                f"labels: got {label!r:.60}, allowed are 1 to 200 characters without quotes, "
                "brackets, braces, backslashes and control characters"
            )
    return list(labels)
