"""A thought X-ray as a page and as a notebook cell. Neither has a script; every text is escaped.

What is told by colour is told by line and sign as well: sentences before the commitment have
a solid line, those after it a dashed one, and those that changed nothing are in italics with "=".
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

from musespark.thinking.xray import MOVED, ForcedAnswer, ThoughtSentence, ThoughtXray
from musespark.vision.render.document import asset, document
from musespark.vision.render.texts import shown

# Colours that no colour blindness confuses (Okabe and Ito), on whatever lies behind the text.
_LOOKS = {
    "early": "background:rgba(47,138,201,.2);border-bottom:2px solid #2f8ac9",
    "late": "background:rgba(230,159,0,.2);border-bottom:2px dashed #b36b00",
    "same": "font-style:italic",
    "committed": "border:2px solid;border-radius:4px;padding:0 .35em;font-weight:600",
    "number": "opacity:.75;font-style:normal",
}
_ANSWER = 80  # characters of a trial's answer in a line
Look = Callable[..., str]


def page(xray: ThoughtXray) -> str:
    """One self-contained page, light or dark as its reader has it."""
    looks = "".join(f".{name}{{{style}}}" for name, style in _LOOKS.items())
    style = asset("musespark.thinking", "xray.css") + looks

    def look(*names: str) -> str:
        return f'class="{" ".join(names)}"'

    body = (
        f'<header><h1 dir="auto">{shown(xray.question or "Thought X-ray", 2000)}</h1>'
        f'<p class="facts">{_facts(xray)}</p>{_warning(xray)}</header>\n'
        f'<main><div class="card text" dir="auto">{_thought(xray, look)}</div>'
        f'<p class="facts">{_legend(look)}</p>'
        '<div class="card"><h2>probability of the final answer, per token (geometric mean); full '
        f"circles: the answer there is the final one</h2>{_curve(xray)}</div>"
        f'<div class="card wide">{_table(xray)}</div>'
        f'<div class="card"><h2>answer</h2><div class="text" dir="auto">{shown(xray.answer)}</div>'
        "</div></main>"
    )
    return document(xray.question or "Thought X-ray", body, style=style)


def cell(xray: ThoughtXray) -> str:
    """HTML with styles of its own only, so that notebooks show it whether they are trusted."""

    def look(*names: str) -> str:
        return f'style="{";".join(_LOOKS[name] for name in names)}"'

    return (
        f'<div><div style="white-space:pre-wrap;line-height:1.7">{_thought(xray, look)}</div>'
        f'<p style="font-size:smaller">{_legend(look)}<br>{_facts(xray)}</p>{_warning(xray)}'
        f"<details><summary>probability of the final answer along the thought</summary>"
        f'<div style="max-width:640px">{_curve(xray)}</div>{_table(xray)}</details></div>'
    )


def _facts(xray: ThoughtXray) -> str:
    at, count = xray.committed_at, len(xray.sentences)
    committed = {
        None: "never committed: the trial at the end gives another answer",
        0: "committed before the thought",
    }.get(at, f"committed after {at} of {count} sentences")
    idle = sum(not one.changed for one in xray.sentences)
    facts = [
        xray.model,
        committed,
        f"{xray.saved_tokens} of {xray.thought_tokens} thought tokens came after that",
        f"{idle} of {count} sentences changed nothing",
        f"the thought ended by: {xray.thinking_stop_reason}",
        f"{xray.probe_tokens} tokens computed for this",
    ]
    return shown(" · ".join(facts), 1000)


def _warning(xray: ThoughtXray) -> str:
    if not xray.answer_is_trial:
        return ""
    return (
        '<p class="warning">The turn has no answer. In its place stands what the model answers '
        "where its thought was cut.</p>"
    )


def _legend(look: Look) -> str:
    unmoved = f"the same answer, its probability per token moved by less than {MOVED}"
    return (
        f"<span {look('early')}>solid line</span>: before the answer is committed to; "
        f"<span {look('late')}>dashed line</span>: after; "
        f"<span {look('same')}>italics and =</span>: changed nothing ({unmoved})"
    )


def _thought(xray: ThoughtXray, look: Look) -> str:
    at, parts = xray.committed_at, []
    badge = f" <b {look('committed')}>◆ committed: {shown(_short(xray.answer))}</b> "
    if at == 0:
        parts.append(badge)
    thought = 0
    for number, one in enumerate(xray.sentences, 1):
        if one.thought != thought:
            thought = one.thought
            parts.append("\n\n")
        parts.append(_sentence(one, number, at is None or number <= at, look))
        if number == at:
            parts.append(badge)
    return "".join(parts)


def _sentence(one: ThoughtSentence, number: int, early: bool, look: Look) -> str:
    """A sentence with its number; white space around it has no line under it."""
    text = one.text.strip()
    start = one.text.index(text)
    names = ["early" if early else "late", *([] if one.changed else ["same"])]
    same = "" if one.changed else "="
    title = shown(f"answers here: {_short(one.answer)} ({one.confidence:.2f} per token)")
    return (
        f'{shown(one.text[:start])}<span {look(*names)} title="{title}">{shown(text)}'
        f"<sup {look('number')}>{number}{same}</sup></span>{shown(one.text[start + len(text) :])}"
    )


def _curve(xray: ThoughtXray) -> str:
    """The probability against thought tokens; full circles where the trial gives the answer."""
    lengths = [last - first for first, last in (one.tokens for one in xray.sentences)]
    tokens, trials = [0, *accumulate(lengths)], [xray.before, *xray.sentences]
    points = [
        (40 + 590 * at / tokens[-1], 125 - 115 * one.confidence)
        for at, one in zip(tokens, trials, strict=True)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" stroke="currentColor" stroke-width="1.5" '
        f'fill="{"currentColor" if one.is_final else "none"}"><title>{shown(_told(i, one))}</title>'
        "</circle>"
        for i, ((x, y), one) in enumerate(zip(points, trials, strict=True))
    )
    at = xray.committed_at
    commitment = ""
    if at is not None:
        x = points[at][0]
        commitment = (
            f'<line x1="{x:.1f}" y1="6" x2="{x:.1f}" y2="125" stroke="currentColor" '
            'stroke-dasharray="4 4" opacity="0.7"/>'
        )
    return (
        '<svg viewBox="0 0 640 150" role="img" width="100%" font-size="11" fill="currentColor" '
        f'aria-label="probability of the final answer along {tokens[-1]} thought tokens">'
        '<path d="M40 10V125H630" fill="none" stroke="currentColor" opacity="0.5"/>'
        '<text x="32" y="14" text-anchor="end">1</text><text x="32" y="128" text-anchor="end">0'
        f'</text><text x="40" y="143">0</text><text x="630" y="143" text-anchor="end">{tokens[-1]} '
        f'thought tokens</text>{commitment}<polyline points="{line}" fill="none" stroke="#2f8ac9" '
        f'stroke-width="2"/>{dots}</svg>'
    )


def _told(number: int, one: ForcedAnswer) -> str:
    where = f"after sentence {number}" if number else "without a thought"
    return f"{where}: {_short(one.answer)} ({one.confidence:.2f})"


def _table(xray: ThoughtXray) -> str:
    rows, at = [_row("0", 0, xray.before, "")], 0
    for number, one in enumerate(xray.sentences, 1):
        at += one.tokens[1] - one.tokens[0]
        rows.append(_row(str(number), at, one, "yes" if one.changed else "= nothing"))
    heads = ("sentence", "thought tokens", "per token", "whole answer", "answer here", "changed")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _row(number: str, tokens: int, one: ForcedAnswer, changed: str) -> str:
    answer = f"{'✓' if one.is_final else '✗'} {shown(_short(one.answer))}"
    cells = (str(tokens), f"{one.confidence:.3f}", f"{one.probability:.3g}", answer, changed)
    return f'<tr><th scope="row">{number}</th>{"".join(f"<td>{text}</td>" for text in cells)}</tr>'


def _short(text: str) -> str:
    told = " ".join(text.split())
    return told if len(told) <= _ANSWER else told[: _ANSWER - 1] + "…"
