"""The zoom tool as Nano learns it: a region of a picture comes back as a new picture.

``image_zoom_in_tool(bbox_2d, label, img_idx)`` crops picture ``img_idx`` of the conversation (from
0) to ``bbox_2d`` = [x0, y0, x1, y1] in thousandths of its sides, from the original where it is
larger than what the model was shown, and the crop is sized as any picture is.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .grading import boxes_in
from .item import Item
from .raster import CELL, Picture

NAME = "image_zoom_in_tool"
TOOL = {
    "type": "function",
    "function": {
        "name": NAME,
        "description": "Zoom into a region of an image.",
        "parameters": {
            "type": "object",
            "properties": {
                "bbox_2d": {"type": "array"},
                "label": {"type": "string"},
                "img_idx": {"type": "integer"},
            },
            "required": ["bbox_2d", "label", "img_idx"],
        },
    },
}


def _tool(name: str, description: str, required: tuple[str, ...], **properties: dict) -> dict:
    schema = {"type": "object", "properties": properties, "required": list(required)}
    told = f"{description} {_COUNTED}"
    return {
        "type": "function",
        "function": {"name": name, "description": told, "parameters": schema},
    }


_COUNTED = "Coordinates are from 0 to 1000 across the image, whatever its size, x before y."
_BOX = {
    "type": "array",
    "items": {"type": "number"},
    "minItems": 4,
    "maxItems": 4,
    "description": "[x1, y1, x2, y2]: left, top, right, bottom",
}
_POINTS = {
    "type": "array",
    "items": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
    "minItems": 2,
    "maxItems": 64,
    "description": "points [x, y]",
}
_INDEX = {"type": "integer", "description": "which image, counted from 0"}
#: The tools of ``Model.look`` as it names them to Nano, word for word (a test compares): written
#: out because training runs without the rest of the package.
SHIPPED = (
    _tool(
        NAME,
        "Cuts a part out of an image and shows it to you as a new image, from the original at full "
        "resolution. Use it for what is too small to be seen.",
        ("bbox_2d", "label", "img_idx"),
        bbox_2d=_BOX,
        label={"type": "string", "description": "what the part shows"},
        img_idx=_INDEX,
    ),
    _tool(
        "rotate",
        "Turns an image clockwise and shows it to you as a new image.",
        ("degrees", "img_idx"),
        degrees={"type": "integer", "enum": [90, 180, 270]},
        img_idx=_INDEX,
    ),
    _tool(
        "measure",
        "Measures exactly, in pixels of the original: the distance of two points, the angle at the "
        "second of three, or the area of the polygon of three and more.",
        ("what", "points", "img_idx"),
        what={"type": "string", "enum": ["distance", "angle", "area"]},
        points=_POINTS,
        img_idx=_INDEX,
    ),
    _tool(
        "read_colors",
        "Reads the colours of a part of an image: the most frequent, the mean, the extremes.",
        ("bbox_2d", "img_idx"),
        bbox_2d=_BOX,
        img_idx=_INDEX,
        most={"type": "integer", "enum": [1, 3, 5, 8], "default": 5},
    ),
)


def crop(picture: Picture, box: tuple[int, int, int, int]) -> Picture:
    """The region ``box`` (thousandths) of ``picture``; at least 16 pixels each way, clipped."""
    source = picture.pixels if picture.original is None else picture.original
    (y0, y1), (x0, x1) = (
        _span(low, high, side)
        for low, high, side in (
            (box[1], box[3], source.shape[0]),
            (box[0], box[2], source.shape[1]),
        )
    )
    region = np.ascontiguousarray(source[y0:y1, x0:x1])
    return Picture(original=region)


def _span(low: int, high: int, side: int) -> tuple[int, int]:
    low, high = sorted((round(low * side / 1000), round(high * side / 1000)))
    low = min(max(0, low), side - CELL)
    return low, min(side, max(high, low + CELL))


def opened(item: Item) -> Item:
    """``item`` as it is asked: without the calls and results that a training item goes on with."""
    last = max(i for i, m in enumerate(item.messages) if m["role"] == "user")
    if last == len(item.messages) - 1 or not item.messages[last + 1].get("trained"):
        return item
    messages = item.messages[: last + 1]
    parts = [p for m in messages if isinstance(m["content"], list) for p in m["content"]]
    count = sum(p["type"] == "image" for p in parts)
    return replace(item, messages=messages, pictures=item.pictures[:count])


def answered(item: Item, thought: str, calls: list[dict]) -> Item | None:
    """``item`` with a turn that called the tool, and the tool's answer; None where what was called
    is not one zoom with a box into a picture there is."""
    box = boxes_in(str(calls[0]["arguments"].get("bbox_2d", ""))) if len(calls) == 1 else []
    index = str(calls[0]["arguments"].get("img_idx", "")) if calls else ""
    if len(box) != 1 or calls[0]["name"] != NAME or not index.isdecimal():
        return None
    if int(index) >= len(item.pictures or []):
        return None
    seen = crop(item.pictures[int(index)], box[0][1])
    messages = [*item.messages, *turn(thought, calls[0])]
    return replace(item, messages=messages, pictures=[*item.pictures, seen])


def turn(thought: str, call: dict) -> list[dict]:
    """The messages of one zoom: the call, and its result."""
    function = {"id": "call_1", "type": "function", "function": call}
    asked = {
        "role": "assistant",
        "content": "",
        "reasoning_content": thought,
        "tool_calls": [function],
    }
    content = [{"type": "image"}]
    return [asked, {"role": "tool", "name": NAME, "tool_call_id": "call_1", "content": content}]
