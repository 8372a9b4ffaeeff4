"""Parts of a message's content that hold an image or a video."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

IMAGE_PARTS = ("image", "image_url", "input_image")
VIDEO_PART = "video"

Messages = Sequence[Mapping[str, Any]]
Part = Mapping[str, Any]


def is_media(part: Any) -> bool:
    """Whether a part is one of an image or a video."""
    return isinstance(part, Mapping) and part.get("type") in (*IMAGE_PARTS, VIDEO_PART)


def media_parts(messages: Messages) -> Iterator[Part]:
    """The parts of images and videos, in order."""
    for message in messages:
        content = message.get("content")
        yield from filter(is_media, content if isinstance(content, (list, tuple)) else ())


def with_media(
    messages: Messages, change: Callable[[Part, str], Part | None]
) -> list[dict[str, Any]]:
    """Copies of messages whose parts of images and videos are what ``change`` makes of a part and
    its place, as ``messages[0].content[1]``; None leaves one out."""
    out = []
    for i, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, (list, tuple)):
            parts = [
                change(part, f"messages[{i}].content[{j}]") if is_media(part) else part
                for j, part in enumerate(content)
            ]
            message = {**message, "content": [part for part in parts if part is not None]}
        out.append(dict(message))
    return out
