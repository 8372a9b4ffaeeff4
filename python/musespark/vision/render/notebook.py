"""A trace in a notebook cell: pictures with numbered regions, and the steps under them."""

from __future__ import annotations

from musespark.vision.render.overlay import COLORS, cited, originals, picture_svg
from musespark.vision.render.parts import head_html, step_html, summary
from musespark.vision.render.texts import shown
from musespark.vision.trace.data import VisualTrace

_LONGEST = 800
_PICTURES = 8


def to_notebook(trace: VisualTrace) -> str:
    """HTML without script, so that notebooks show it whether they are trusted or not."""
    drawn = cited(trace)
    first = originals(trace)[:_PICTURES]
    pictures = "".join(
        "<div style='max-width:640px;margin:4px 0'>"
        + picture_svg(trace, image, drawn, longest=_LONGEST)
        + "</div>"
        for image in first
    )
    rest = len(originals(trace)) - len(first)
    more = f"<div>{rest} more images are not shown</div>" if rest else ""
    steps = "".join(
        f"<li style='margin:4px 0;border-left:4px solid {COLORS[step.kind]};padding-left:6px'>"
        f"{head_html(step)}{step_html(step, [one for one in drawn if one.step == index])}</li>"
        for index, step in enumerate(trace.steps)
    )
    return (
        f"<div><div><b>{shown(trace.question)}</b></div>{pictures}{more}"
        f"<details><summary>{summary(trace)}</summary><ol style='white-space:pre-wrap'>{steps}"
        f"</ol></details><div style='white-space:pre-wrap'>{shown(trace.answer)}</div></div>"
    )
