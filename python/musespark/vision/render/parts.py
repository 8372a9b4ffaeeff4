"""The parts of a trace as HTML, for page and notebook alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

from musespark.vision.render.overlay import Cited
from musespark.vision.render.texts import shown
from musespark.vision.trace.data import Check, Step, VisualTrace

_RAW = 300


def step_html(step: Step, drawn: Sequence[Cited]) -> str:
    """What a step says: text, regions, warnings, checks."""
    parts = [f'<div class="text" dir="auto">{shown(step.text)}</div>']
    if drawn or len(step.regions) > len(drawn):
        items = "".join(_region_html(one) for one in drawn)
        rest = len(step.regions) - len(drawn)
        more = f'<li class="warning">{rest} more regions are not drawn</li>' if rest else ""
        parts.append(f'<ul class="regions">{items}{more}</ul>')
    notes = [f'<li class="warning">{shown(text, 500)}</li>' for text in step.warnings]
    notes += [f"<li>{_check_text(check)}</li>" for check in step.checks]
    if step.heat is not None:
        notes.append(f"<li>measured, not an explanation: {shown(step.heat.note, 500)}</li>")
    if notes:
        parts.append(f'<ul class="notes">{"".join(notes)}</ul>')
    return "".join(parts)


def head_html(step: Step) -> str:
    """Kind, source and cost of a step."""
    guess = "" if step.exact else ' title="guessed from the wording"'
    tokens = f"tokens {step.tokens[0]} to {step.tokens[1]}" if step.tokens else ""
    seconds = f"{step.cost['seconds'] * 1000:.1f} ms" if "seconds" in step.cost else ""
    facts = " · ".join(
        fact for fact in (step.source, step.channel, step.image, tokens, seconds) if fact
    )
    return (
        f'<span class="kind {step.kind}"{guess}>{step.kind}{"" if step.exact else "?"}</span> '
        f'<span class="facts">{shown(facts, 200)}</span>'
    )


def _region_html(one: Cited) -> str:
    region = one.region
    flags = "".join(f'<span class="flag">{flag}</span>' for flag in region.flags)
    place = ", ".join(f"{x:.1f} {y:.1f}" for x, y in region.points) or "no place"
    sure = ""
    if region.confidence is not None:
        sure = (
            f'<span class="sure" title="mean probability of the tokens of the coordinates">'
            f"{region.confidence:.2f} (uncalibrated)</span>"
        )
    label = f"<b>{shown(region.label, 200)}</b> " if region.label else ""
    raw = f"<code>{shown(region.raw, _RAW)}</code>" if region.raw else ""
    return (
        f'<li data-region="{one.number}"><span class="number {one.kind}">{one.number}</span> '
        f'{label}{region.kind} <span class="place">{place}</span> {flags}{sure}{raw}</li>'
    )


def _check_text(check: Check) -> str:
    verdict = {True: "load-bearing", False: "not load-bearing", None: "not decided"}
    text = (
        f"region masked: <b>{verdict[check.load_bearing]}</b>, the answer's probability × "
        f"{_factor(check.change)}; a random region of equal area × {_factor(check.random_change)}"
    )
    return text + (f" ({shown(check.note, 300)})" if check.note else "")


def _factor(log_change: float) -> str:
    return f"{math.exp(min(log_change, 700.0)):.3g}"


def summary(trace: VisualTrace) -> str:
    """What a trace is of, in a line."""
    facts = [
        trace.model,
        f"coordinates as {trace.convention}" if trace.convention else "",
        f"{len(trace.steps)} steps",
        f"{len(trace.images)} images",
        *(f"{name} {value:.2f} s" for name, value in trace.timings.items()),
    ]
    return shown(" · ".join(fact for fact in facts if fact), 500)
