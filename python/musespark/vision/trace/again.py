"""The conversation of a trace, to be asked again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from musespark.parts import media_parts, with_media
from musespark.vision.pixels import Picture
from musespark.vision.trace.data import VisualTrace


def before_the_answer(trace: VisualTrace) -> list[Mapping[str, Any]]:
    """The conversation up to the answer, which is its last turn."""
    turns = list(trace.messages)
    while turns and turns[-1].get("role") == "assistant" and not turns[-1].get("tool_calls"):
        turns.pop()
    return turns


def filled(
    trace: VisualTrace, turns: Sequence[Mapping[str, Any]], pictures: Sequence[Picture]
) -> list[dict[str, Any]]:
    """Turns of the trace with pictures, those of its images, in place of their ids."""
    places = {image.id: place for place, image in enumerate(trace.images)}

    def part(one: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        return {"type": "image", "image": pictures[places[one["id"]]]}

    return with_media(turns, part)


def named_images(turns: Sequence[Mapping[str, Any]]) -> list[str]:
    """The ids of the images of turns, in order."""
    return [one["id"] for one in media_parts(turns)]
