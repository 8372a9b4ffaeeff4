"""A trace as one page (document.py). Its script finds all it needs in ``data-`` attributes of
numbers."""

from __future__ import annotations

import os
from pathlib import Path

from musespark.vision.render.document import asset, document
from musespark.vision.render.overlay import (
    COLORS,
    Cited,
    cited,
    originals,
    picture_svg,
)
from musespark.vision.render.parts import head_html, step_html, summary
from musespark.vision.render.png import data_url, reduced
from musespark.vision.render.texts import shown
from musespark.vision.trace.data import VisualTrace
from musespark.weights.files import write_whole

_LONGEST = 1600
_THUMBNAIL = 240


def to_html(trace: VisualTrace, path: str | os.PathLike[str] | None = None) -> str:
    """The page; written to ``path`` where one is given."""
    page = _page(trace)
    if path is not None:
        write_whole(Path(path), page.encode("utf-8"))
    return page


def _page(trace: VisualTrace) -> str:
    kinds = "".join(f".{kind}{{--kind:{color}}}" for kind, color in COLORS.items())
    style, script = (asset("musespark.vision.render", name) for name in ("page.css", "page.js"))
    title = trace.question or "Visual trace"
    return document(title, _body(trace), style=style + kinds, script=script)


def _body(trace: VisualTrace) -> str:
    drawn = cited(trace)
    warnings = "".join(f'<li class="warning">{shown(text, 500)}</li>' for text in trace.warnings)
    return (
        f'<header><h1 dir="auto">{shown(trace.question or "Visual trace", 2000)}</h1>'
        f'<p class="facts">{summary(trace)}</p></header>\n'
        f'<main><section class="stage" aria-label="images">{_stage(trace, drawn)}</section>\n'
        f'<section class="thinking" aria-label="steps">{_controls(trace)}{_steps(trace, drawn)}'
        f"</section></main>\n{_strip(trace)}"
        f'<section class="answer"><h2>Answer</h2><div class="text" dir="auto">'
        f"{shown(trace.answer)}</div></section>\n"
        f'<footer><ul class="notes">{warnings}</ul>{_legend()}</footer>'
    )


def _stage(trace: VisualTrace, drawn: list[Cited]) -> str:
    return "".join(
        f'<figure data-image="{index}">{picture_svg(trace, image, drawn, longest=_LONGEST)}'
        f"<figcaption>{shown(image.id, 60)} · {image.size[1]} × {image.size[0]}</figcaption>"
        "</figure>"
        for index, image in enumerate(originals(trace))
    )


def _controls(trace: VisualTrace) -> str:
    last = max(len(trace.steps) - 1, 0)
    return (
        '<div class="controls" hidden><button type="button" id="previous" '
        'aria-label="previous step">‹</button>'
        f'<input type="range" id="slider" min="0" max="{last}" value="0" aria-label="step">'
        '<button type="button" id="next" aria-label="next step">›</button>'
        '<output id="position" for="slider"></output>'
        '<label><input type="checkbox" id="all"> all regions</label></div>'
    )


def _steps(trace: VisualTrace, drawn: list[Cited]) -> str:
    places = {image.id: index for index, image in enumerate(originals(trace))}
    items = []
    for index, step in enumerate(trace.steps):
        image = step.image or (trace.images[0].id if trace.images else "")
        place = places[trace.original(image).id] if image else 0
        mine = [one for one in drawn if one.step == index]
        items.append(
            f'<li class="step" data-step="{index}" data-image="{place}">'
            f"<h2>{head_html(step)}</h2>{step_html(step, mine)}</li>"
        )
    return f'<ol class="steps">{"".join(items)}</ol>'


def _strip(trace: VisualTrace) -> str:
    """The images that were made on the way, each a button to the step that made it."""
    made = [image for image in trace.images if image.parent is not None]
    by = {step.crop: index for index, step in enumerate(trace.steps) if step.crop}
    items = []
    for image in made:
        picture = trace.pictures.get(image.id)
        name = shown(f"{image.id} of {image.parent}", 120)
        if picture is None:
            look = '<span class="none">no pixels</span>'
        else:
            look = f'<img src="{data_url(reduced(picture.pixels, _THUMBNAIL))}" alt="{name}">'
        step = f' data-step="{by[image.id]}"' if image.id in by else " disabled"
        items.append(
            f'<button type="button"{step}>{look}<span>{name}<br>{image.size[1]} × '
            f"{image.size[0]}</span></button>"
        )
    if not items:
        return ""
    return f'<section class="crops" aria-label="crops">{"".join(items)}</section>\n'


def _legend() -> str:
    lines = "".join(
        f'<span><svg width="34" height="8" aria-hidden="true"><line x1="2" y1="4" x2="32" y2="4" '
        f'stroke="currentColor" stroke-width="2.5"{dash}/></svg> {text}</span>'
        for dash, text in (
            ("", "the model claims it"),
            (' stroke-dasharray="7 4" stroke-linecap="round"', "the engine measured it"),
            (' stroke-dasharray="1.5 3.5" stroke-linecap="round"', "a tool made it"),
        )
    )
    return (
        f'<p class="legend">{lines}<span>kind with ?: guessed from the wording</span>'
        '<span class="keys">keys: ← → Home End, a for all regions</span></p>'
    )
