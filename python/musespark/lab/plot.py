"""``musespark lab plot RUN``: how a training run goes, as one SVG file.

Above the loss (its running mean) and the speed over tokens, below the loss of each task; the data
are RUN/log.jsonl and RUN/families.jsonl. Nothing but the package is needed, and a run may go on
meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..errors import CorruptFile, InvalidRequest
from ..weights.files import write_whole
from .arguments import check_targets

#: (tokens in millions, value) in the order of the run.
Points = list[tuple[float, float]]

_HEAD = 32
_WIDE, _TALL = 1200, 300  # of a large chart, its axes included
_SMALL_WIDE, _SMALL_TALL, _COLUMNS = 200, 96, 6
_LEFT, _BOTTOM, _TOP, _RIGHT = 56, 24, 30, 16  # around the plotted area of a large chart
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#374151}.title{font-weight:600;fill:#111827}"
    ".value{fill:#2563eb}.tick{stroke:#e5e7eb}.curve{fill:none;stroke:#2563eb;stroke-width:1.5;"
    "stroke-linejoin:round}.frame{fill:none;stroke:#e5e7eb}"
)


def main(argv: list[str] | None = None) -> None:
    """Read, draw, say where."""
    p = argparse.ArgumentParser(
        prog="musespark lab plot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("run", help="folder of the training run")
    p.add_argument("--out", metavar="FILE", help="default: RUN/plot.svg")
    args = p.parse_args(argv)
    run = Path(args.run)
    out = Path(args.out or run / "plot.svg")
    check_targets({"--out": str(out)})
    write_whole(out, drawn(run).encode())
    print(out)


def drawn(run: Path) -> str:
    """The SVG of a run. InvalidRequest where it has no log yet, CorruptFile naming the line of one
    that is none."""
    log = read_log(run / "log.jsonl")
    if not log:
        raise InvalidRequest(f"{run}: log.jsonl has no line yet")
    families = read_log(run / "families.jsonl")
    losses = {name: _points(families, name) for name in _names(families)}
    facts = f"step {log[-1]['step']:,}, {log[-1]['tokens'] / 1e6:,.1f} M tokens"
    title = f"{run.resolve().name}: {facts}"
    parts = [
        _text(_LEFT, 22, title, "title"),
        chart("loss", _points(log, "loss"), _HEAD),
        chart("tokens/s", _points(log, "tokens_per_s"), _HEAD + _TALL),
    ]
    top = _HEAD + 2 * _TALL + _HEAD
    for place, (name, points) in enumerate(losses.items()):
        row, column = divmod(place, _COLUMNS)
        parts.append(small(name, points, column * _SMALL_WIDE, top + row * _SMALL_TALL))
    height = top + -(-len(losses) // _COLUMNS) * _SMALL_TALL
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE} {height}" '
        f'width="{_WIDE}" height="{height}"><style>{_STYLE}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log in which a run that went on from an earlier checkpoint wrote some steps
    again: of those the later. Empty where there is no file; a last line that is being written is
    left out. CorruptFile naming the line for one that is no log's."""
    if not path.is_file():
        return []
    kept: list[dict[str, Any]] = []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            one = json.loads(line)
            step, tokens = one["step"], one["tokens"]
            good = all(isinstance(v, int) for v in (step, tokens))
        except (ValueError, KeyError, TypeError, RecursionError):
            good = False
        if not good:
            raise CorruptFile(f"{path}:{number}: {line!r:.60} is no line with step and tokens")
        while kept and kept[-1]["step"] >= step:
            kept.pop()
        kept.append(one)
    return kept


def _names(families: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(k for line in families for k in line if k not in ("step", "tokens")))


def _points(lines: Sequence[dict[str, Any]], name: str) -> Points:
    """Of those lines that have a finite number under ``name``."""
    return [
        (line["tokens"] / 1e6, float(line[name]))
        for line in lines
        if isinstance(line.get(name), (int, float)) and math.isfinite(line[name])
    ]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from ``low`` to ``high``."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= raw * 0.999)
    return [step * k for k in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def _range(values: Sequence[float], *, zero: bool = False) -> tuple[float, float]:
    """From the least to the greatest; a little apart where they are one."""
    low, high = (0.0 if zero else min(values)), max(values)
    return (low, high) if high > low else (low, low + (abs(low) or 1.0))


def chart(name: str, points: Points, top: float) -> str:
    """A large chart with axes, its values from 0 on."""
    if not points:
        return ""
    (x0, x1), (y0, y1) = _range([x for x, _ in points]), _range([y for _, y in points], zero=True)
    width, height = _WIDE - _LEFT - _RIGHT, _TALL - _TOP - _BOTTOM
    left, floor = _LEFT, top + _TALL - _BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (x - x0) / (x1 - x0) * width, floor - (y - y0) / (y1 - y0) * height

    parts = [_text(left, top + 18, f"{name}: {points[-1][1]:,.4g}", "title")]
    for value in ticks(y0, y1):
        _, y = at(x0, value)
        parts.append(_line(left, y, left + width, y))
        parts.append(_text(left - 6, y + 4, f"{value:,g}", anchor="end"))
    for value in ticks(x0, x1, 8):
        x, _ = at(value, y0)
        parts.append(_line(x, floor, x, floor + 4))
        parts.append(_text(x, floor + 18, f"{value:g} M", anchor="middle"))
    return "".join([*parts, _curve([at(*p) for p in points])])


def small(name: str, points: Points, left: float, top: float) -> str:
    """A small chart: a name, the last value, and the curve from its least to its greatest."""
    if not points:
        return ""
    (x0, x1), (y0, y1) = _range([x for x, _ in points]), _range([y for _, y in points], zero=True)
    width, height = _SMALL_WIDE - 24, _SMALL_TALL - 36

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x0) / (x1 - x0), (y - y0) / (y1 - y0)
        return left + 12 + across * width, top + 24 + (1 - up) * height

    return (
        _text(left + 12, top + 16, name, "title")
        + _text(left + 12 + width, top + 16, f"{points[-1][1]:.3f}", "value", "end")
        + f'<rect class="frame" x="{left + 12:g}" y="{top + 24:g}" width="{width}" '
        f'height="{height}"/>' + _curve([at(*p) for p in points])
    )


def _curve(points: Sequence[tuple[float, float]]) -> str:
    placed = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline class="curve" points="{placed}"/>'


def _line(x0: float, y0: float, x1: float, y1: float) -> str:
    return f'<line class="tick" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>'


def _text(x: float, y: float, text: str, style: str = "", anchor: str = "start") -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(text)}</text>'
