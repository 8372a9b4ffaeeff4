"""Traces, results and tokens for tests, made without a model."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from musespark.results import ChatResult, TokenLogprob, Usage
from musespark.vision.pixels import Picture, open_picture
from musespark.vision.regions import Region
from musespark.vision.trace import Album, Check, HeatMap, TraceBuilder, VisualTrace


def scene(height: int = 240, width: int = 400, *, seed: int = 0) -> Picture:
    """Grey noise with a red square at (100, 60) to (140, 100) and a blue bar at its right."""
    pixels = np.random.default_rng(seed).integers(110, 146, (height, width, 3), np.uint8)
    pixels[60:100, 100:140] = (200, 30, 30)
    pixels[40:200, width - 60 : width - 40] = (30, 60, 200)
    return open_picture(pixels)


class Characters:
    """A tokenizer of one token a character, and its stream."""

    def stream(self) -> Characters:
        return self

    def push(self, token_id: int) -> str:
        return chr(token_id)

    def flush(self) -> str:
        return ""


def said(reasoning: str = "", content: str = "", calls: tuple[Any, ...] = (), **more: Any) -> Any:
    """A result whose tokens are the characters of thought and answer; the probability of each digit
    is a tenth of it, of all else 1."""
    text = f"<think>{reasoning}</think>{content}"
    probabilities = [int(c) / 10 if c in "123456789" else 1.0 for c in text]
    pairs = zip(text, probabilities, strict=True)
    return ChatResult(
        text=content,
        content=content,
        reasoning=reasoning,
        tokens=tuple(map(ord, text)),
        logprobs=tuple(TokenLogprob(ord(c), math.log(p)) for c, p in pairs),
        seed=0,
        finish_reason="tool_calls" if calls else "stop",
        usage=Usage(prompt_tokens=10, completion_tokens=len(text)),
        tool_calls=tuple(
            {"id": f"call-{i}", "type": "function", "function": {"name": n, "arguments": a}}
            for i, (n, a) in enumerate(calls)
        ),
        **more,
    )


def rich_trace(question: str = "What is beside the red square?") -> VisualTrace:
    """A trace with everything in it: two originals, a crop, calls, flags, heat, checks."""
    album = Album([scene(), scene(200, 120, seed=1)])
    builder = TraceBuilder(album, "muse", question=question, model="mock", tokenizer=Characters())
    (call,) = builder.turn(
        said(
            "I look at image 1. The red square is at [250,250,350,417] in image 1.\n"
            "The label at (900, 500) of image 1 is too small to read. I zoom in.",
            calls=(
                (
                    "image_zoom_in_tool",
                    {"bbox_2d": [800, 100, 1100, 900], "label": "blue bar", "img_idx": 0},
                ),
            ),
        )
    )
    crop = album.crop(0, (320, 24, 400, 216))
    cut = Region("box", ((320, 24), (400, 216)), "image-0", "blue bar", source="tool")
    builder.tool_answer(
        call, '{"img_idx": 2}', regions=(cut,), crop=crop.id, cost={"seconds": 0.01}
    )
    heat = HeatMap("image-0", 2, 3, (0.0, 0.1, 0.9, 0.0, 0.2, 0.4), (3,), "attention")
    builder.measured("look", "attention of the answer", image="image-0", heat=heat)
    builder.turn(
        said(
            "Compared with (500, 500), [100,100,900,900] of image 3 is larger. "
            "Then [2000,0,2100,9].",
            "A blue bar: [800,167,900,833] of image 1.",
        )
    )
    builder.steps[1] = replace(builder.steps[1], checks=(Check(0, -2.5, -0.1, 3, True, True, 0),))
    return builder.finish(
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "id": "image-0"},
                    {"type": "image", "id": "image-1"},
                    {"type": "text", "text": question},
                ],
            }
        ]
    )
