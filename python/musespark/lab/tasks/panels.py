"""Pictures of things with writing: codes, labels, displays, windows with buttons, bar charts.

What cannot be read (blank, scribbled over, noise) is answered with "cannot tell".
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from ..glyphs import FONTS
from ..item import Problem, against, exact, phrase
from ..raster import (
    COLORS,
    SIZE,
    Box,
    Canvas,
    Ink,
    Picture,
    noised,
    scaled,
    shown,
    text_size,
    tinted,
)
from .scenes import CANNOT_TELL, Asker
from .words import split_words

_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
_PAPERS = ((245, 245, 240), (255, 240, 190), (200, 225, 245), (225, 225, 225), (215, 240, 215))
_DARK = ((15, 15, 15), (20, 40, 90), (110, 20, 20), (20, 70, 35))
_GLOW = ((235, 60, 40), (60, 230, 90), (240, 200, 50), (90, 200, 250))


@dataclass
class Writing:
    """A text, where it stands, and the middle of each of its characters from the left."""

    text: str
    box: Box
    middles: list[int]

    def read(self, text: str) -> str:
        """``text``, one character at a time from where the last of these stand: to say where the
        next is and what is there are two decisions, and without the first equal neighbours look
        like one."""
        at = (scaled((x, 0, 0, 0))[0] for x in self.middles[-len(text) :])
        return ", ".join(f"{x} {c}" for x, c in zip(at, text, strict=True))


def _paper(r: Random) -> tuple[Canvas, Ink]:
    """A canvas and the ink to write on it with; one in four is light on dark."""
    paper, ink = tinted(r, r.choice(_PAPERS), 8), tinted(r, r.choice(_DARK), 12)
    if r.random() < 0.25:
        paper, ink = ink, paper
    return Canvas(paper), ink


def write(
    r: Random, canvas: Canvas, text: str, ink: Ink, area: Box, scales: tuple[int, ...]
) -> Writing:
    """``text`` somewhere in ``area``, in a font and one of ``scales`` that fit."""
    x0, y0, x1, y1 = area
    choices = [(font, scale) for font in FONTS for scale in scales]
    r.shuffle(choices)
    for font, scale in [*choices, ("plain", 1), ("small", 1)]:
        width, height = text_size(text, font, scale + (font == "small" and scale > 1))
        if width <= x1 - x0 and height <= y1 - y0:
            break
    size = scale + (font == "small" and scale > 1)
    x, y = r.randint(x0, x1 - width), r.randint(y0, y1 - height)
    return Writing(text, canvas.text(text, x, y, ink, font, size), canvas.middles)


def _spoiled(r: Random, canvas: Canvas, box: Box, ink: Ink) -> None:
    """Make what stands in ``box`` unreadable."""
    canvas.forget(box)
    if r.random() < 0.5:
        canvas.rectangle((box[0] - 3, box[1] - 3, box[2] + 3, box[3] + 3), ink)
        return
    part = canvas.pixels[box[1] : box[3], box[0] : box[2]]
    part[:] = noised(r, part[::-1, ::-1] // 2 + 64, 90)


def _finished(r: Random, canvas: Canvas) -> Picture:
    picture = canvas.picture()
    if r.random() < 0.25:
        picture.pixels = noised(r, picture.pixels, r.randint(3, 12))
    return picture


_READ = (
    "What does the sign say?",
    "Read the code.",
    "What is the code?",
    "What is written here?",
    "Read the text.",
    "What code do you see?",
    "Which code is on the sign?",
    "read it",
    "Give the code.",
    "Tell me the code on the plate.",
)


def _code(r: Random, level: str) -> str:
    low, high = {"easy": (1, 3), "middle": (3, 4), "hard": (5, 7)}[level]
    letters = _LETTERS + "0123456789" * 2
    code = "".join(r.choice(letters) for _ in range(r.randint(low, high)))
    return code[:3] + "-" + code[3:] if level == "hard" and r.random() < 0.4 else code


def _reading(
    task: str, level: str, asks: tuple[str, ...], written: Writing, picture: Picture
) -> Asker:
    """Read ``written``: where it is, its characters one by one, and as a check from the right."""
    spelled = " ".join(written.text)
    place = shown(written.box)

    def steps(e: Random | None) -> tuple[str, str]:
        read = written.text
        if e:
            i = e.randrange(len(read))
            read = read[:i] + e.choice(_LETTERS) + read[i + 1 :]
        return f"Text at {place}: {written.read(read)}. So {read}.", read

    back = f"from the right {spelled[::-1]}, so {written.text}."
    numbered = ", ".join(f"{i} {c}" for i, c in enumerate(written.text, 1))
    return lambda r: Problem(
        task,
        level,
        f"{task} {written.text}",
        phrase(r, asks),
        written.text,
        steps=steps,
        check=lambda got: against(back, got, written.text),
        second=f"{numbered}. {len(written.text)} characters: {written.text}.",
        pictures=[picture],
    )


def _seen(
    task: str,
    level: str,
    key: str,
    ask: str,
    answer: str,
    thought: str,
    picture: Picture,
    checker: str = "string",
    routes: tuple[str, str] | None = None,
) -> Problem:
    return exact(task, level, key, ask, answer, thought, checker, routes, [picture])


def codes(r: Random, level: str) -> Asker:
    """A code on a plate, in one of four fonts and several sizes; now and then unreadable."""
    canvas, ink = _paper(r)
    text = _code(r, level)
    if r.random() < 0.5:
        edge = [r.randint(1, 5) for _ in range(4)]
        canvas.frame((edge[0], edge[1], SIZE - edge[2], SIZE - edge[3]), ink, 2)
    scales = {"easy": (3, 4, 5), "middle": (2, 3, 4), "hard": (1, 2)}[level]
    written = write(r, canvas, text, ink, (8, 8, SIZE - 8, SIZE - 8), scales)
    if r.random() < 0.08:
        _spoiled(r, canvas, written.box, ink)
        return _unreadable("codes", level, _READ, written, _finished(r, canvas))
    return _reading("codes", level, _READ, written, _finished(r, canvas))


def _unreadable(
    task: str, level: str, asks: tuple[str, ...], written: Writing, picture: Picture
) -> Asker:
    why = f"Text at {shown(written.box)}: not readable."
    key = f"{task} {written.text}"
    return lambda r: _seen(task, level, key, phrase(r, asks), CANNOT_TELL, why, picture)


_METER = (
    "What does the display show?",
    "Read the display.",
    "What number is on the display?",
    "Which number do you see?",
    "What is the reading?",
    "read the meter",
    "Give the number shown.",
)


def displays(r: Random, level: str) -> Asker:
    """Digits of seven segments; now and then dark."""
    count = {"easy": r.randint(1, 3), "middle": r.randint(3, 4), "hard": r.randint(5, 6)}[level]
    digits = "".join(r.choice("0123456789") for _ in range(count))
    canvas = Canvas(tinted(r, r.choice(((120, 120, 120), (60, 60, 70), (190, 185, 170))), 10))
    width = r.randint(8, min(26, 100 // count - 5))
    stroke = max(2, width // r.randint(4, 6))
    total = (width + max(2, stroke + 1)) * count
    x, y = r.randint(8, 120 - total), r.randint(8, 120 - 2 * width)
    lit = r.random() < 0.6
    back, ink = ((18, 20, 18), r.choice(_GLOW)) if lit else ((175, 190, 165), (25, 30, 25))
    canvas.rectangle((x - 6, y - 6, x + total + 4, y + 2 * width + 6), tinted(r, back, 8))
    box = canvas.display(digits, x, y, tinted(r, ink, 12), width, stroke)
    written = Writing(digits, box, canvas.middles)
    if r.random() < 0.06:
        canvas.rectangle((x - 2, y - 2, x + total, y + 2 * width + 2), back)
        canvas.forget(written.box)
        return _unreadable("displays", level, _METER, written, _finished(r, canvas))
    return _reading("displays", level, _METER, written, _finished(r, canvas))


_FIELDS = split_words("TEMP ROOM GATE SEAT LINE UNIT FLOOR PRICE LEVEL SPEED")
_FIELD = (
    "What is the {}?",
    "Read the {}.",
    "Which {} is given?",
    "{}?",
    "What number is the {}?",
    "Tell me the {}.",
    "Give the value of {}.",
)


def labels(r: Random, level: str) -> Asker:
    """Lines of a name and a number; one is asked for. Thoughts go down to it by the first two
    letters of each line, in which all names differ."""
    count = {"easy": 2, "middle": 3, "hard": 5}[level]
    names = r.sample(_FIELDS, count)
    values = [str(r.randint(1, 99 if level == "easy" else 999)) for _ in names]
    canvas, ink = _paper(r)
    font, scale = r.choice(FONTS[:3]), 1 if level == "hard" else r.choice((1, 2))
    y, step, lines = r.randint(6, 14), {"easy": 38, "middle": 30, "hard": 21}[level], []
    for name, value in zip(names, values, strict=True):
        text = f"{name} {value}"
        size = scale if text_size(text, font, scale)[0] < 116 else 1
        box = canvas.text(text, r.randint(4, 8), y, ink, font, size)
        lines.append(Writing(text, box, canvas.middles))
        y += step
    key = "label " + " ".join(w.text for w in lines)
    picture = _finished(r, canvas)

    def asker(r: Random) -> Problem:
        i = r.randrange(count)
        begun = ", ".join(
            f"{scaled(line.box)[1]} {name[0]} {name[1]}"
            for line, name in zip(lines[: i + 1], names, strict=False)
        )
        thought = (
            f"{begun}: {names[i]} at {shown(lines[i].box)}: {lines[i].read(values[i])}. "
            f"So {values[i]}."
        )
        ask = phrase(r, _FIELD).format(names[i].lower())
        lines_told = [f"{n} {v}" for n, v in zip(names, values, strict=True)]
        routes = (
            f"all lines: {', '.join(lines_told)}. {names[i]} {values[i]}.",
            f"from below {', '.join(reversed(lines_told))}. {names[i]} is line {i + 1}: "
            f"{values[i]}.",
        )
        told = (ask, values[i], thought, picture)
        return _seen("labels", level, key, *told, checker="number", routes=routes)

    return asker


_BUTTONS = split_words(
    "OK Save Open Send Stop Play Help Exit Next Back Undo Print Copy Edit Yes No"
)
_CLICK = (
    "Where is the button {}?",
    "Where do I click for {}?",
    "Find the button {}.",
    "Box of {}?",
    "Give the box of the button {}.",
    "Which box has the button {}?",
    "Click {}.",
)


def buttons(r: Random, level: str) -> Asker:
    """A small window with 2 to 9 buttons; the box of one is asked for."""
    rows, columns = {"easy": ((1, 2), 2), "middle": ((2, 3), 2), "hard": ((3, 3), 3)}[level]
    rows = r.randint(*rows)
    words = r.sample(_BUTTONS, rows * columns)
    canvas = Canvas(tinted(r, r.choice(((70, 110, 150), (150, 150, 160), (40, 60, 60))), 12))
    face = tinted(r, r.choice(((225, 225, 225), (245, 245, 250), (60, 62, 70))), 6)
    x0, y0, x1, y1 = (
        r.randint(2, 6),
        r.randint(2, 14),
        122 + r.randint(0, 4),
        114 + r.randint(0, 12),
    )
    canvas.rectangle((x0, y0, x1, y1), face)
    canvas.rectangle((x0, y0, x1, y0 + 9), tinted(r, r.choice(list(COLORS.values())[:6]), 15))
    wide, high = (x1 - x0) // columns, (y1 - y0 - 10) // rows
    boxes = []
    for i, word in enumerate(words):
        w, h = r.randint(32, wide - 3), r.randint(13, min(22, high - 3))
        x = x0 + wide * (i % columns) + r.randint(1, wide - w - 1)
        y = y0 + 10 + high * (i // columns) + r.randint(1, high - h - 1)
        boxes.append(_button(r, canvas, word, (x, y, x + w, y + h), dark=sum(face) < 300))
    told = [f"{w} {_middle(b)}" for w, b in zip(words, boxes, strict=True)]
    key = "window " + " ".join(f"{w} {scaled(b)}" for w, b in zip(words, boxes, strict=True))
    picture = _finished(r, canvas)

    def asker(r: Random) -> Problem:
        i = r.randrange(len(words))
        thought = f"Buttons: {', '.join(told)}. {told[i]}."
        ask = phrase(r, _CLICK).format(words[i])
        row, column = i // columns, i % columns
        beside = ", ".join(told[row * columns : (row + 1) * columns])
        routes = (
            f"row {row + 1}: {beside}. {told[i]}.",
            f"from below {', '.join(reversed(words))}. {words[i]} is in row {row + 1}, column "
            f"{column + 1}.",
        )
        asked = (ask, shown(boxes[i]), thought, picture)
        return _seen("buttons", level, key, *asked, checker="box", routes=routes)

    return asker


def _middle(box: Box) -> str:
    """The point in the middle of ``box`` as the model writes it."""
    x, y = (box[0] + box[2]) // 2, (box[1] + box[3]) // 2
    return "({},{})".format(*scaled((x, y, 0, 0))[:2])


def _button(r: Random, canvas: Canvas, word: str, box: Box, *, dark: bool) -> Box:
    face = tinted(r, (100, 105, 120) if dark else r.choice(((250, 250, 250), (200, 205, 215))), 6)
    ink = (240, 240, 240) if dark else (20, 20, 25)
    canvas.rectangle(box, face, "button")
    canvas.frame(box, tinted(r, (150, 150, 150) if dark else (90, 90, 95), 10))
    width, height = text_size(word, "plain", 1)
    x, y = (box[0] + box[2] - width) // 2, (box[1] + box[3] - height) // 2
    canvas.text(word, x, y, ink, "plain", 1)
    return box


_MOST = (
    "Which bar is the {}?",
    "Which is the {} bar?",
    "What is the {} bar?",
    "Name the {} bar.",
    "Which letter has the {} bar?",
)
_VALUE = (
    "How high is bar {}?",
    "What is the value of {}?",
    "Value of bar {}?",
    "What does {} reach?",
    "Read bar {}.",
    "How much is {}?",
)


def bars(r: Random, level: str) -> Asker:
    """A bar chart from 0 to 10 with a line at each tick: a value, or the highest or lowest bar."""
    count = {"easy": r.randint(2, 4), "middle": r.randint(4, 5), "hard": r.randint(6, 8)}[level]
    names = r.sample(_LETTERS, count)
    values = r.sample(range(1, 11), count)
    picture, boxes = _bar_chart(r, names, values)
    each = [f"{n} {v}" for n, v in zip(names, values, strict=True)]
    listed, turned = ", ".join(each), ", ".join(reversed(each))
    middles = (scaled(((b[0] + b[2]) // 2, 0, 0, 0))[0] for b in boxes)
    placed = list(zip(middles, names, values, strict=True))
    by_name = ", ".join(f"{x} {name} {value}" for x, name, value in placed)
    by_value = ", ".join(f"{x} {value} {name}" for x, name, value in placed)

    def asker(r: Random) -> Problem:
        i = r.randrange(count)
        ask, answer = phrase(r, _VALUE).format(names[i]), str(values[i])
        thought = f"{by_name}. Bar {names[i]} {values[i]} {shown(boxes[i])}."
        routes = (
            f"all bars: {listed}. {names[i]} {values[i]}.",
            f"from the right {turned}. {names[i]} {values[i]}.",
        )
        if r.random() < 0.5:
            word = r.choice(("highest", "lowest"))
            i = (max if word == "highest" else min)(range(count), key=values.__getitem__)
            ask, answer = phrase(r, _MOST).format(word), names[i]
            thought = f"{by_value}. {word.capitalize()} {values[i]} {answer} {shown(boxes[i])}."
            ranked = sorted(range(count), key=values.__getitem__, reverse=word == "highest")
            side = "above" if word == "highest" else "below"
            routes = (
                f"from the right {turned}. None {side} {values[i]}.",
                f"in order {' '.join(names[k] for k in ranked)}. First {answer}.",
            )
        told = (ask, answer, thought, picture)
        return _seen("bars", level, f"bars {listed}", *told, routes=routes)

    return asker


def _bar_chart(r: Random, names: list[str], values: list[int]) -> tuple[Picture, list[Box]]:
    canvas = Canvas(tinted(r, (248, 248, 248), 6))
    left, floor, unit = 16, 112, 10
    for tick in range(11):
        y, grey = floor - unit * tick, 205 if tick % 5 else 140
        canvas.rectangle((left, y, SIZE - 2, y + 1), (grey, grey, grey))
        if tick % 5 == 0:
            canvas.text(str(tick), 2, y - 3, (30, 30, 30))
    step = (SIZE - left - 4) // len(names)
    width = r.randint(max(5, step // 2), step - 3)
    one = r.choice(list(COLORS)[:6])
    boxes = []
    for i, (name, value) in enumerate(zip(names, values, strict=True)):
        color = one if r.random() < 0.7 else r.choice(list(COLORS)[:6])
        x = left + 3 + i * step
        box = (x, floor - unit * value, x + width, floor)
        boxes.append(canvas.rectangle(box, tinted(r, COLORS[color], 12), "bar", color))
        canvas.text(name, x + max(0, width // 2 - 2), floor + 5, (20, 20, 20))
    canvas.line(left, floor, SIZE - 3, floor, (20, 20, 20))
    return _finished(r, canvas), boxes


_BLANK = (
    "What is in the picture?",
    "What do you see?",
    "What does it say?",
    "What color is the circle?",
    "Read the code.",
    "Which shape is on the left?",
    "Describe the picture.",
    "Is there anything in it? Say what.",
)


def blank(r: Random, level: str) -> Asker:
    """Nothing to see: one color, a gradient, or noise."""
    ink = tuple(r.randint(40, 215) for _ in range(3))
    canvas = Canvas(ink)
    if level == "middle":
        slope = r.choice((-40, 40))
        for y in range(SIZE):
            canvas.pixels[y] = [v + slope * y // SIZE for v in ink]
    picture = canvas.picture()
    if level == "hard":
        picture.pixels = noised(r, picture.pixels, 60)
    key = f"blank {level} {ink}"
    return lambda r: _seen(
        "blank", level, key, phrase(r, _BLANK), CANNOT_TELL, "Nothing to see.", picture
    )


SCENES = {
    "codes": codes,
    "displays": displays,
    "labels": labels,
    "buttons": buttons,
    "bars": bars,
    "blank": blank,
}
