"""Figures that are reported but not gated: clocks, number lines, line charts, angles, areas, mazes,
sketches as grids, and two pictures to compare."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from random import Random

from ..item import Problem, phrase
from ..raster import COLORS, Canvas, Picture, scaled, tinted
from .scenes import Asker, draw_scene, in_reading_order, plain_kinds

_INKS = ((20, 20, 20), (30, 40, 110), (120, 25, 25), (25, 90, 40))


def _paper(r: Random) -> Canvas:
    grey = r.randint(215, 252)
    return Canvas(tinted(r, (grey, grey, grey), 3))


def _asker(
    task: str, level: str, key: str, asks: tuple[str, ...], told: tuple[str, str, Picture]
) -> Asker:
    answer, thought, picture = told
    return lambda r: Problem(
        task,
        level,
        key,
        phrase(r, asks),
        answer,
        steps=lambda e: (thought, answer),
        pictures=[picture],
    )


_TIME = (
    "What time is it?",
    "What time does the clock show?",
    "Read the clock.",
    "Which time is shown?",
    "what time is it?",
    "Tell me the time on the clock.",
)


def clocks(r: Random, level: str) -> Asker:
    """Full hours / quarters / five minutes; the answer is h:mm. There are too few times to hold any
    out: pictures are, by the size of the clock."""
    hour = r.randint(1, 12)
    minute = {"easy": 0, "middle": r.choice((0, 15, 30, 45)), "hard": 5 * r.randrange(12)}[level]
    canvas, ink = _paper(r), r.choice(_INKS)
    radius, x, y = r.randint(40, 58), 64 + r.randint(-4, 4), 64 + r.randint(-4, 4)
    for k in range(12):
        a = math.tau * k / 12
        inner = radius * (0.82 if k % 3 == 0 else 0.9)
        points = (
            x + inner * math.sin(a),
            y - inner * math.cos(a),
            x + radius * math.sin(a),
            y - radius * math.cos(a),
        )
        canvas.line(*points, ink, 2 if k % 3 == 0 else 1)
    for share, length, width in (((hour % 12 + minute / 60) / 12, 0.5, 4), (minute / 60, 0.78, 2)):
        a = math.tau * share
        end = (x + radius * length * math.sin(a), y - radius * length * math.cos(a))
        canvas.line(x, y, *end, ink, width, "line")
    answer = f"{hour}:{minute:02d}"
    thought = (
        f"Short hand near {hour}, long hand at {minute // 5 or 12}: {minute} minutes. So {answer}."
    )
    return _asker(
        "clocks", level, f"clock {answer} {radius}", _TIME, (answer, thought, canvas.picture())
    )


_POINT = (
    "Which number does the mark point to?",
    "Where is the mark?",
    "Read the number line.",
    "What number is marked?",
    "What is the marked value?",
)


def number_lines(r: Random, level: str) -> Asker:
    """A mark at a tick; steps of 1 / 2 or 5 / 10 or 25, only the ends are labelled."""
    step = {"easy": 1, "middle": r.choice((2, 5)), "hard": r.choice((10, 25))}[level]
    count = r.randint(4, 10)
    start = step * r.randint(0, 8)
    at = r.randint(1, count - 1)
    canvas, ink, y = _paper(r), r.choice(_INKS), r.randint(50, 90)
    left, gap = 12, 100 // count
    canvas.line(left, y, left + gap * count, y, ink)
    for k in range(count + 1):
        canvas.line(left + gap * k, y - 4, left + gap * k, y + 4, ink)
    for k in (0, count):
        canvas.text(str(start + step * k), max(1, left + gap * k - 8), y + 8, ink)
    x = left + gap * at
    mark = COLORS[r.choice(("red", "blue", "green"))]
    canvas.rectangle((x - 2, y - 24, x + 3, y - 8), mark, "line")
    answer = str(start + step * at)
    thought = f"From {start} to {start + step * count} in {count} steps of {step}. "
    thought += f"Mark at {at}: {start}+{step * at}={answer}."
    key = f"line {start} {step} {count} {at}"
    return _asker("number_lines", level, key, _POINT, (answer, thought, canvas.picture()))


_PEAK = (
    "Where is the line highest?",
    "At which letter is the peak?",
    "Which letter is highest?",
    "Name the highest point.",
)
_HEIGHT = (
    "What is the value at {}?",
    "How high is the line at {}?",
    "Value at {}?",
    "Read the line at {}.",
)


def line_charts(r: Random, level: str) -> Asker:
    """A line through 3 / 5 / 7 points from 0 to 10: a value, or where it is highest."""
    count = {"easy": 3, "middle": 5, "hard": 7}[level]
    values = r.sample(range(11), count)
    names = "ABCDEFG"[:count]
    canvas, ink = _paper(r), COLORS[r.choice(list(COLORS)[:6])]
    floor, left, step = 110, 20, 96 // (count - 1)
    for tick in range(11):
        grey = 215 if tick % 5 else 150
        canvas.rectangle(
            (left - 4, floor - 10 * tick, 124, floor - 10 * tick + 1), (grey, grey, grey)
        )
        if tick % 5 == 0:
            canvas.text(str(tick), 2, floor - 10 * tick - 3, (30, 30, 30))
    points = [(left + i * step, floor - 10 * v) for i, v in enumerate(values)]
    for a, b in pairwise(points):
        canvas.line(*a, *b, ink, 2, "line")
    for name, (x, y) in zip(names, points, strict=True):
        canvas.rectangle((x - 2, y - 2, x + 3, y + 3), ink)
        canvas.text(name, x - 2, floor + 5, (20, 20, 20))
    key = "chart " + " ".join(map(str, values))
    picture = canvas.picture()
    listed = ", ".join(f"{n} {v}" for n, v in zip(names, values, strict=True))

    def asker(r: Random) -> Problem:
        i = r.randrange(count)
        ask, answer = phrase(r, _HEIGHT).format(names[i]), str(values[i])
        x, y = scaled((*points[i], 0, 0))[:2]
        thought = f"{names[i]} at ({x},{y}): {answer}."
        if r.random() < 0.4:
            ask, answer = phrase(r, _PEAK), names[values.index(max(values))]
            thought = f"{listed}. Highest {max(values)}: {answer}."
        return Problem(
            "line_charts",
            level,
            key,
            ask,
            answer,
            steps=lambda e: (thought, answer),
            pictures=[picture],
        )

    return asker


_ANGLE = (
    "What kind of angle is this?",
    "Is the angle acute, right or obtuse?",
    "Name the angle.",
    "Which angle is drawn?",
)


def angles(r: Random, level: str) -> Asker:
    """Acute, right or obtuse; nearer to a right angle at higher levels."""
    least = {"easy": 40, "middle": 25, "hard": 15}[level]
    kind = r.choice(("acute", "right", "obtuse"))
    degrees = {
        "acute": r.randint(20, 90 - least),
        "right": 90,
        "obtuse": r.randint(90 + least, 165),
    }[kind]
    turn, length = r.randrange(360), r.randint(34, 50)
    canvas, ink, (x, y) = _paper(r), r.choice(_INKS), (64, 64)
    for a in (turn, turn + degrees):
        end = (x + length * math.cos(math.radians(a)), y - length * math.sin(math.radians(a)))
        canvas.line(x, y, *end, ink, r.randint(2, 3), "line")
    sign = {"acute": "<", "right": "=", "obtuse": ">"}[kind]
    thought = f"About {round(degrees / 10) * 10} degrees, {sign}90: {kind}."
    return _asker(
        "angles", level, f"angle {degrees} {turn}", _ANGLE, (kind, thought, canvas.picture())
    )


_AREA = (
    "How many squares does the shape cover?",
    "What is the area of the shape in squares?",
    "Count the squares of the shape.",
    "What is the area?",
    "Give the area in squares.",
)


def areas(r: Random, level: str) -> Asker:
    """A shape on squared paper: a rectangle; one with a corner missing; a right triangle."""
    canvas, (x0, y0) = _paper(r), (r.randint(2, 6), r.randint(2, 6))
    for k in range(11):
        canvas.rectangle((x0, y0 + k * 11, x0 + 110, y0 + k * 11 + 1), (170, 170, 175))
        canvas.rectangle((x0 + k * 11, y0, x0 + k * 11 + 1, y0 + 110), (170, 170, 175))
    color = r.choice(list(COLORS)[:6])
    ink = tinted(r, COLORS[color])
    least = 3 if level == "middle" else 2
    w, h = r.randint(least, 9), r.randint(least, 9)
    if level == "hard" and w % 2 and h % 2:
        w += 1
    i, j = r.randint(0, 10 - w), r.randint(0, 10 - h)
    left, top = x0 + i * 11, y0 + j * 11
    box = (left, top, left + w * 11, top + h * 11)
    if level == "hard":
        for row in range(h * 11):
            canvas.rectangle((left, top + row, left + w * row // h, top + row + 1), ink, "line")
        area, thought = w * h // 2, f"{w} wide, {h} high. {w}*{h}={w * h}, half {w * h // 2}."
        cut = (0, 0)
    else:
        canvas.rectangle(box, ink, "square", color)
        cut = (r.randint(1, w - 1), r.randint(1, h - 1)) if level == "middle" else (0, 0)
        area = w * h - cut[0] * cut[1]
        thought = f"{w} wide, {h} high. {w}*{h}={w * h}."
        if level == "middle":
            paper = tuple(int(v) for v in canvas.pixels[0, 0])
            canvas.rectangle((box[2] - cut[0] * 11, top, box[2], top + cut[1] * 11), paper)
            away = cut[0] * cut[1]
            thought += f" Missing {cut[0]}*{cut[1]}={away}. {w * h}-{away}={area}."
    key = f"area {level} {w} {h} {cut}"
    told = (str(area), f"{thought} So {area}.", canvas.picture())
    return _asker("areas", level, key, _AREA, told)


_GRID = (
    "Write the picture as a grid of # and .",
    "Copy the squares as # and . row by row.",
    "Which squares are filled? Give rows of # and .",
    "Give the picture as rows of # and .",
)


def sketches(r: Random, level: str) -> Asker:
    """Squares of a grid of 3², 4² or 5² filled: the rows from the top, parted by /."""
    side = {"easy": 3, "middle": 4, "hard": 5}[level]
    rows = ["".join(r.choice("#.") for _ in range(side)) for _ in range(side)]
    canvas, ink, cell = _paper(r), r.choice(_INKS), 120 // side
    for i, row in enumerate(rows):
        for j, c in enumerate(row):
            box = (4 + j * cell, 4 + i * cell, 4 + (j + 1) * cell, 4 + (i + 1) * cell)
            if c == "#":
                canvas.rectangle(box, tinted(r, ink, 10), "square")
            canvas.frame(box, (150, 150, 150))
    thought = ", ".join(f"row {i}: {' '.join(row)}" for i, row in enumerate(rows, 1)) + "."
    told = ("/".join(rows), thought, canvas.picture())
    return _asker("sketches", level, f"grid {'/'.join(rows)}", _GRID, told)


_WAY = (
    "How do you get from S to E the shortest way?",
    "Find the shortest way from S to E.",
    "Give the fewest moves from S to E.",
    "Which is the shortest way from S to E?",
)
_MOVES = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}


def mazes(r: Random, level: str) -> Asker:
    """A grid of 3² / 4² / 5² with walls; the only shortest way as moves."""
    side = {"easy": 3, "middle": 4, "hard": 5}[level]
    while True:
        walls = {(i, j) for i in range(side) for j in range(side) if r.random() < 0.35}
        free = [(i, j) for i in range(side) for j in range(side) if (i, j) not in walls]
        if len(free) < 3:
            continue
        start, end = r.sample(free, 2)
        way = _only_way(side, walls, start, end)
        if way and len(way) >= 2:
            break
    cell = 120 // side
    canvas = _paper(r)
    for i in range(side):
        for j in range(side):
            box = (4 + j * cell, 4 + i * cell, 4 + (j + 1) * cell, 4 + (i + 1) * cell)
            canvas.rectangle(box, (40, 40, 45) if (i, j) in walls else (250, 250, 250))
            canvas.frame(box, (150, 150, 150))
    for (i, j), letter in ((start, "S"), (end, "E")):
        canvas.text(
            letter,
            4 + j * cell + cell // 2 - 5,
            4 + i * cell + cell // 2 - 7,
            (170, 30, 30),
            scale=2,
        )
    answer = " ".join(way)
    at, visited = start, []
    for move in way:
        at = (at[0] + _MOVES[move][0], at[1] + _MOVES[move][1])
        visited.append(f"{move} to {at[0] + 1},{at[1] + 1}")
    ends = f"S is at row {start[0] + 1}, column {start[1] + 1}, E at {end[0] + 1},{end[1] + 1}"
    thought = f"{ends}: {', '.join(visited)}."
    key = f"maze {side} {sorted(walls)} {start} {end}"
    return _asker("mazes", level, key, _WAY, (answer, thought, canvas.picture()))


def _only_way(
    side: int, walls: set, start: tuple[int, int], end: tuple[int, int]
) -> list[str] | None:
    """The shortest way from ``start`` to ``end``; None where there are several, or none."""
    layer, known = {start: (1, [])}, {start}  # how many ways lead there, and one of them
    while layer and end not in layer:
        further: dict[tuple[int, int], tuple[int, list[str]]] = {}
        for at, (count, way) in layer.items():
            for name, (di, dj) in _MOVES.items():
                to = (at[0] + di, at[1] + dj)
                inside = 0 <= to[0] < side and 0 <= to[1] < side
                if inside and to not in walls and to not in known:
                    further[to] = (further.get(to, (0,))[0] + count, [*way, name])
        known |= set(further)
        layer = further
    count, way = layer.get(end, (0, []))
    return way if count == 1 else None


_DIFFER = (
    "What is in the second picture but not in the first?",
    "Which shape is new in the second picture?",
    "What was added in the second picture?",
    "Compare: what is new?",
)


def comparing(r: Random, level: str) -> Asker:
    """Two pictures; the second has one thing more."""
    count = {"easy": 2, "middle": 4, "hard": 6}[level]
    while True:
        kinds = plain_kinds(r, count + 1, level)
        both = draw_scene(r, count + 1, (16, 28), kinds)
        new = both.things[-1]
        if len(both.things) == count + 1 and sum(t.name == new.name for t in both.things) == 1:
            break
    first = draw_scene(r, count, (16, 28), kinds[:-1], at=both.things[:-1])
    names = [", ".join(t.name for t in in_reading_order(s.things)) for s in (first, both)]
    thought = f"First: {names[0]}. Second: {names[1]}. New: {new.name}."
    key = f"pair {both.key} + {new.name}"
    asker = _asker("comparing", level, key, _DIFFER, (new.name, thought, first.picture))
    return lambda r: replace(asker(r), pictures=[first.picture, both.picture])


SCENES = {
    "clocks": clocks,
    "number_lines": number_lines,
    "line_charts": line_charts,
    "angles": angles,
    "areas": areas,
    "sketches": sketches,
    "mazes": mazes,
    "comparing": comparing,
}
