"""Where attention went while the answer was written, beside a question that asks for nothing.

What is measured is attention to image rows, no reason: a model may look where nothing follows from
it. Much of attention goes to the same few rows whatever is asked, which is why a neutral question
is subtracted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from musespark.errors import InvalidRequest
from musespark.vision.trace.again import before_the_answer, filled, named_images
from musespark.vision.trace.data import HeatMap, Step, VisualTrace

NEUTRAL = "Describe the image."


class Looker(Protocol):
    """A model that sees."""

    def image_attention(self, messages: Sequence[Mapping[str, Any]], answer: str) -> Any: ...


def heat(
    trace: VisualTrace,
    model: Looker,
    *,
    layers: Sequence[int] | None = None,
    neutral: str = NEUTRAL,
) -> VisualTrace:
    """The trace with a step of source ``engine`` for each image of its conversation: a heat map of
    the answer's tokens, the mean over ``layers`` (the later half of those without a window where
    None), minus that of the same answer to ``neutral``.

    InvalidRequest where pixels are not attached, there is no conversation or answer, or a layer is
    none of those that can be looked at.
    """
    if not callable(getattr(model, "image_attention", None)):
        raise InvalidRequest(f"model: got {type(model).__name__}, allowed is a model that sees")
    if layers is not None and not isinstance(layers, Sequence):
        raise InvalidRequest(f"layers: got {layers!r:.60}, allowed is a list of layers")
    missing = [image.id for image in trace.images if image.id not in trace.pictures]
    if missing:
        raise InvalidRequest(f"pixels: not there for {missing}; attach() them first")
    turns = before_the_answer(trace)
    images = named_images(turns)
    if not images or not trace.answer:
        raise InvalidRequest("messages: the trace needs a conversation with images, and an answer")
    pictures = [trace.pictures[image.id] for image in trace.images]
    asked = model.image_attention(filled(trace, turns, pictures), trace.answer)
    beside = model.image_attention(filled(trace, _neutral(turns, neutral), pictures), trace.answer)
    chosen = tuple(asked.layers[len(asked.layers) // 2 :] if layers is None else layers)
    if not chosen or not set(chosen) <= set(asked.layers):
        raise InvalidRequest(f"layers: got {list(chosen)}, allowed are {list(asked.layers)}")
    places = [asked.layers.index(layer) for layer in chosen]
    tokens = asked.maps[0].shape[1]
    note = (
        f"attention of {tokens} answer tokens, minus that of the same answer to {neutral!r}; "
        "a measurement, not an explanation"
    )
    parent = max((i for i, s in enumerate(trace.steps) if s.kind == "conclude"), default=None)
    steps = []
    for image, with_question, without in zip(images, asked.maps, beside.maps, strict=True):
        values = with_question[places].mean((0, 1)) - without[places].mean((0, 1))
        rows, columns = values.shape
        flat = tuple(float(x) for x in values.astype(np.float64).ravel())
        made = HeatMap(image, rows, columns, flat, chosen, note)
        steps.append(
            Step(
                kind="look",
                text=note,
                source="engine",
                channel="content",
                exact=True,
                turn=trace.steps[-1].turn if trace.steps else 0,
                image=image,
                heat=made,
                parent=parent,
            )
        )
    return replace(trace, steps=(*trace.steps, *steps))


def _neutral(turns: Sequence[Mapping[str, Any]], text: str) -> list[Mapping[str, Any]]:
    """The conversation with another question in the user's last message."""
    out = list(turns)
    last = max(i for i, turn in enumerate(out) if turn.get("role") == "user")
    content = out[last]["content"]
    words = [{"type": "text", "text": text}]
    if isinstance(content, (list, tuple)):
        content = [part for part in content if part.get("type") != "text"] + words
    else:
        content = text
    out[last] = {**out[last], "content": content}
    return out
