"""The trace of a conversation about images, made of a result when its request has ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from musespark.text.given import IMAGE_PARTS

if TYPE_CHECKING:
    from musespark.results import ChatResult
    from musespark.text import Tokenizer
    from musespark.vision.eyes import Eyes
    from musespark.vision.pixels import Picture
    from musespark.vision.trace import VisualTrace


def tracer(
    eyes: Eyes | None,
    pictures: Sequence[Picture],
    messages: Any,
    tokenizer: Tokenizer,
    model: str,
) -> Callable[[ChatResult], VisualTrace | None]:
    """What makes the trace of an answer to ``messages``, whose image parts are ``pictures``."""
    if eyes is None or not pictures:
        return lambda result: None

    def trace(result: ChatResult) -> VisualTrace:
        from musespark.vision.trace import Album, TraceBuilder  # here: most have no image

        album = Album(pictures, fit=eyes.processor.fitted)
        builder = TraceBuilder(
            album,
            eyes.processor.convention,
            question=_question(messages),
            model=model,
            tokenizer=tokenizer,
        )
        builder.turn(result)
        return builder.finish([*_named(messages, album), result.message])

    return trace


def _question(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of the user's last message."""
    for message in reversed(messages):
        if message.get("role") != "user":
            continue
        content = message.get("content")
        if isinstance(content, str):
            return content
        return " ".join(part["text"] for part in content if part.get("type") == "text")
    return ""


def _named(messages: Sequence[Mapping[str, Any]], album: Any) -> list[dict[str, Any]]:
    """The messages with ids in place of pixels."""
    names = iter(album.images)

    def part(one: Mapping[str, Any]) -> dict[str, Any]:
        if one.get("type") in IMAGE_PARTS:
            return {"type": "image", "id": next(names).id}
        return dict(one)

    return [
        {**m, "content": [part(p) for p in m["content"]]}
        if isinstance(m.get("content"), (list, tuple))
        else dict(m)
        for m in messages
    ]
