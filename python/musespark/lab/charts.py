"""Line and point charts as SVG, written out: axes with round ticks, error bars, a legend.

The page is white whatever surrounds it, so that a chart reads the same on a dark page. Colours are
Okabe and Ito's, which the colour-blind tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
_WIDTH, _HEIGHT = 760, 420
_LEFT, _TOP, _BOTTOM = 64, 40, 52
_RIGHT, _LEGEND = 16, 214  # without a legend, and with one
_TICK = 60  # pixels between ticks, about
_GREY, _INK = "#dddddd", "#222222"


@dataclass(frozen=True)
class Series:
    """``points`` (x, y), joined where it is a ``line``, marked with dots where it has ``dots``.
    ``label``: in the legend, empty where there is none. ``bars``: for each point the ends (low,
    high) of a vertical error bar. ``color``: its own where none is named."""

    label: str
    points: Sequence[tuple[float, float]]
    line: bool = False
    dots: bool = True
    bars: Sequence[tuple[float, float]] = ()
    color: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart of ``series``; ``x`` and ``y`` name the axes, units included. ``width`` and
    ``height``: pixels. ``from_zero``: its values begin at 0, however far away they are."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    width: int = _WIDTH
    height: int = _HEIGHT
    from_zero: bool = False

    def svg(self) -> str:
        """The chart as the text of an SVG file. ValueError without a finite point."""
        return _document(self.width, self.height, self.elements())

    def elements(self) -> list[str]:
        """What is in it."""
        xs = [x for one in self.series for x, _ in one.points]
        ys = [y for one in self.series for _, y in one.points]
        ys += [end for one in self.series for bar in one.bars for end in bar]
        if not xs or not all(map(math.isfinite, [*xs, *ys])):
            raise ValueError(f"chart {self.title!r}: points that are finite, at least one")
        if self.from_zero:
            ys.append(0.0)
        right = self.width - (_LEGEND if any(one.label for one in self.series) else _RIGHT)
        bottom = self.height - _BOTTOM
        x_ticks = ticks(min(xs), max(xs), (right - _LEFT) / _TICK)
        frame = _Frame(x_ticks, ticks(min(ys), max(ys), (bottom - _TOP) / _TICK), right, bottom)
        drawn = [
            _series(one, one.color or COLORS[i % len(COLORS)], frame, i)
            for i, one in enumerate(self.series)
        ]
        return [*_axes(self, frame), *drawn]


def sheet(title: str, rows: Sequence[Sequence[Chart]]) -> str:
    """Rows of charts as the text of one SVG file."""
    out, top = [_text(_LEFT, 26, title, "start", 'font-weight="bold"')], _TOP
    width = max(sum(chart.width for chart in row) for row in rows)
    for row in rows:
        left = 0
        for chart in row:
            inner = "\n".join(chart.elements())
            out.append(f'<g transform="translate({left} {top})">\n{inner}\n</g>')
            left += chart.width
        top += max(chart.height for chart in row)
    return _document(width, top, out)


def ticks(low: float, high: float, count: float) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart), about ``count`` of them, from below
    ``low`` to above ``high``."""
    if low == high:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


@dataclass(frozen=True)
class _Frame:
    """Where values lie on the page."""

    x_ticks: list[float]
    y_ticks: list[float]
    right: float
    bottom: float

    def x(self, value: float) -> float:
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return _LEFT + (value - low) / (high - low) * (self.right - _LEFT)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return self.bottom - (value - low) / (high - low) * (self.bottom - _TOP)


def _document(width: int, height: int, elements: Sequence[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{width}" height="{height}" rx="6" fill="white"/>'
    )
    return "\n".join([head, *elements, "</svg>\n"])


def _axes(chart: Chart, frame: _Frame) -> list[str]:
    bottom, right = frame.bottom, frame.right
    out = [_text((_LEFT + right) / 2, 22, chart.title, "middle", 'font-weight="bold"')]
    for value in frame.x_ticks:
        x = frame.x(value)
        out += [_line(x, _TOP, x, bottom, _GREY), _text(x, bottom + 16, f"{value:g}", "middle")]
    for value in frame.y_ticks:
        y = frame.y(value)
        out += [_line(_LEFT, y, right, y, _GREY), _text(_LEFT - 6, y + 4, f"{value:g}", "end")]
    out += [_line(_LEFT, bottom, right, bottom, _INK), _line(_LEFT, _TOP, _LEFT, bottom, _INK)]
    out.append(_text((_LEFT + right) / 2, chart.height - 12, chart.x, "middle"))
    middle = (_TOP + bottom) / 2
    out.append(_text(16, middle, chart.y, "middle", f'transform="rotate(-90 16 {middle:g})"'))
    return out


def _series(one: Series, color: str, frame: _Frame, row: int) -> str:
    places = [(frame.x(x), frame.y(y)) for x, y in one.points]
    out = []
    if one.line:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        out.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>')
    for (x, _), (low, high) in zip(places, one.bars, strict=False):
        out.append(_line(x, frame.y(low), x, frame.y(high), color))
    if one.dots:
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{color}"/>' for x, y in places]
    if not one.label:
        return "\n".join(out)
    left, top = frame.right + 14, _TOP + 8 + 18 * row
    if one.line:
        out.append(_line(left, top, left + 16, top, color))
    if one.dots:
        out.append(f'<circle cx="{left + 8}" cy="{top}" r="4" fill="{color}"/>')
    return "\n".join([*out, _text(left + 22, top + 4, one.label, "start")])


def _line(x0: float, y0: float, x1: float, y1: float, color: str) -> str:
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{color}"/>'


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{_INK}"'
    return f"<text {place} {more}>{escape(text)}</text>"
