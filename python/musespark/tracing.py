"""The trace of a conversation about images, made of a result when its request has ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from musespark.parts import VIDEO_PART, media_parts, with_media

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
    *,
    continued: bool = False,
) -> Callable[[ChatResult], VisualTrace | None]:
    """What makes the trace of an answer to ``messages``, whose image parts are ``pictures``. A
    video is no image of a trace: it is left out, which a warning says. ``continued``: the last
    message is the beginning of the answer."""
    if eyes is None or not pictures:
        return lambda result: None

    def trace(result: ChatResult) -> VisualTrace:
        from musespark.vision.trace import Album, TraceBuilder  # here: most have no image

        album = Album(pictures, fit=eyes.processor.fitted)
        builder = TraceBuilder(
            album,
            eyes.processor.convention,
            question=question_of(messages),
            model=model,
            tokenizer=tokenizer,
        )
        if videos := sum(one["type"] == VIDEO_PART for one in media_parts(messages)):
            builder.warnings.append(
                f"{videos} of the conversation's videos left out: a trace has images alone, and "
                "what is asked again is asked without them"
            )
        turns, answer = list(messages), result
        if continued:
            begun = turns.pop().get("content") or ""
            answer = replace(result, content=f"{begun}{result.content}")
        builder.turn(answer)
        return builder.finish([*_named(turns, album), answer.message])

    return trace


def question_of(messages: str | Sequence[Mapping[str, Any]]) -> str:
    """The text of the user's last message."""
    if isinstance(messages, str):
        return messages
    for message in reversed(messages):
        if message.get("role") != "user":
            continue
        content = message.get("content")
        if isinstance(content, str):
            return content
        return " ".join(part["text"] for part in content if part.get("type") == "text")
    return ""


def _named(messages: Sequence[Mapping[str, Any]], album: Any) -> list[dict[str, Any]]:
    """The messages with ids in place of pixels, without videos."""
    names = iter(album.images)

    def part(one: Mapping[str, Any], where: str) -> dict[str, Any] | None:
        return None if one["type"] == VIDEO_PART else {"type": "image", "id": next(names).id}

    return with_media(messages, part)
