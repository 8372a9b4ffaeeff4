"""What a model looked at on the way to an answer: steps, regions, tools, and checks of them."""

from __future__ import annotations

from musespark.vision.trace.album import Album
from musespark.vision.trace.build import TraceBuilder, trace_of
from musespark.vision.trace.data import Check, HeatMap, Step, TraceImage, VisualTrace

__all__ = [
    "Album",
    "Check",
    "HeatMap",
    "Step",
    "TraceBuilder",
    "TraceImage",
    "VisualTrace",
    "trace_of",
]
