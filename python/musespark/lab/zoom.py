"""The zoom tool as Nano learns it: a region of a picture comes back as a new picture.

``image_zoom_in_tool(bbox_2d, label, img_idx)`` crops picture ``img_idx`` of the conversation (from
0) to ``bbox_2d`` = [x0, y0, x1, y1] in thousandths of its sides, from the original where it is
larger than what the model was shown, and the crop is sized as any picture is.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .item import Item, boxes_in
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
