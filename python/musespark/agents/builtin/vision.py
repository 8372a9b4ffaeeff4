"""The visual tools (zoom, rotate, measure, read colours) for a conversation of :func:`act`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from musespark.agents.tools import Content, Tool
from musespark.vision.conventions import convention_named
from musespark.vision.tools import TOOLS, Desk, VisionTool
from musespark.vision.trace import Album


def visual_tools(images: Sequence[Any], convention: str = "qwen3-vl") -> list[Tool]:
    """Tools that look closer at images, which stand in the messages in the same order.

    ``images``: pictures as messages have them. ``convention``: how the model writes coordinates,
    see musespark.vision.conventions. A crop comes back as a picture, which the model sees.
    """
    written = convention_named(convention)
    desk = Desk(Album(images), written)
    return [_as_tool(tool, desk) for tool in TOOLS]


def _as_tool(tool: VisionTool, desk: Desk) -> Tool:
    described: Mapping[str, Any] = tool.schema(desk.convention)["function"]

    def run(**arguments: Any) -> Any:
        answer = tool(desk, arguments)
        if answer.made is None:
            return answer.text
        picture = {"type": "image", "image": desk.album.pictures[answer.made]}
        return Content([picture, {"type": "text", "text": answer.text}])

    return Tool(tool.name, described["description"], described["parameters"], run)
