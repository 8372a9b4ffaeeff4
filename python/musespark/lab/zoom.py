"""The zoom tool as Nano learns it: a region of a picture comes back as a new picture.

``image_zoom_in_tool(bbox_2d, label, img_idx)`` crops picture ``img_idx`` of the conversation (from
0) to ``bbox_2d`` = [x0, y0, x1, y1] in thousandths of its sides, from the original where it is
larger than what the model was shown, and the crop is sized as any picture is.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np

from .item import Item, boxes_in
from .raster import Picture, resized

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
#: Pixels along the side of one image token, and the most tokens a picture may take.
_CELL, MOST_TOKENS = 16, 64


def grid_for(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of tokens for a picture, as transformers' muse_glimmer processor chooses
    them: the whole grid nearest the aspect ratio, never enlarged, at most 64 tokens."""
    rows, columns = height / _CELL, width / _CELL
    if rows * columns > MOST_TOKENS:
        ratio = columns / rows
        rows = (MOST_TOKENS / ratio) ** 0.5
        columns = rows * ratio
    around = itertools.product(
        (math.floor(rows), math.ceil(rows)), (math.floor(columns), math.ceil(columns))
    )
    fits = [(r, c) for r, c in set(around) if r >= 1 and c >= 1 and r * c <= MOST_TOKENS]
    fits = fits or [(max(1, round(rows)), max(1, round(columns)))]
    return min(fits, key=lambda grid: (abs(grid[0] / grid[1] - height / width), grid))


def fitted(pixels: np.ndarray) -> np.ndarray:
    """``pixels`` at the size of its grid of tokens."""
    rows, columns = grid_for(*pixels.shape[:2])
    return resized(pixels, rows * _CELL, columns * _CELL)


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
    return Picture(fitted(region), original=region)


def _span(low: int, high: int, side: int) -> tuple[int, int]:
    low, high = sorted((round(low * side / 1000), round(high * side / 1000)))
    low = min(max(0, low), side - _CELL)
    return low, min(side, max(high, low + _CELL))


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
