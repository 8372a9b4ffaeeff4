"""Pictures of colored shapes: counting, colors, relations, where something is, what there is.

A scene is drawn once and asked about several times. Points (x,y) and boxes [x0,y0,x1,y1] in
thoughts and answers are thousandths of the picture's sides, to the nearest ten.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

from ..item import Problem, against, exact, phrase
from ..raster import (
    COLORS,
    SHAPES,
    SIZE,
    Box,
    Canvas,
    Picture,
    noised,
    scaled,
    shape_mask,
    shown,
    tinted,
)

_PLURALS = {s: ("crosses" if s == "cross" else s + "s") for s in SHAPES}
CANNOT_TELL = "cannot tell"
#: Asks one question about the picture it was made for; None where none of its kind fits.
Asker = Callable[[Random], Problem | None]


@dataclass(frozen=True)
class Thing:
    """A shape of ``size``² pixels with its corner at (x, y)."""

    shape: str
    color: str
    x: int
    y: int
    size: int

    @property
    def box(self) -> Box:
        """Its pixels."""
        return self.x, self.y, self.x + self.size, self.y + self.size

    @property
    def centre(self) -> tuple[int, int]:
        """Its middle in thousandths."""
        x, y = self.x + self.size // 2, self.y + self.size // 2
        return scaled((x, y, x, y))[:2]

    @property
    def name(self) -> str:
        """Color and shape."""
        return f"{self.color} {self.shape}"


@dataclass
class Scene:
    """What is in a picture, its canonical text, and the picture."""

    things: list[Thing]
    key: str
    picture: Picture


def scene_key(things: list[Thing]) -> str:
    """The scene graph as canonical text: shapes and colors at places of 8 pixels, in order."""
    return " ".join(sorted(f"{t.color} {t.shape} {t.x // 8},{t.y // 8}" for t in things))


def _place(r: Random, things: list[Thing], size: int) -> tuple[int, int] | None:
    for _ in range(40):
        x, y = r.randint(1, SIZE - size - 1), r.randint(1, SIZE - size - 1)
        if all(
            x + size + 3 < t.x or t.x + t.size + 3 < x or y + size + 3 < t.y or t.y + t.size + 3 < y
            for t in things
        ):
            return x, y
    return None


def draw_scene(
    r: Random,
    count: int,
    sizes: tuple[int, int],
    kinds: list[tuple[str, str]],
    at: list[Thing] | None = None,
) -> Scene:
    """``count`` things (fewer where the picture is full) of the (shape, color) pairs in turn, or
    the things ``at`` as they stand."""
    things: list[Thing] = list(at or [])
    for shape, color in [] if at else kinds[:count]:
        size = r.randint(*sizes)
        place = _place(r, things, size)
        if place:
            things.append(Thing(shape, color, *place, size))
    used = {t.color for t in things}
    greys = [g for g in (40, 60, 225, 250) if not (g < 100 and "black" in used)]
    grey = r.choice([g for g in greys if not (g > 200 and "white" in used)] or [128])
    canvas = Canvas(tinted(r, (grey, grey, grey), 12))
    for t in things:
        mask = shape_mask(t.shape, t.size)
        canvas.stamp(mask, t.x, t.y, tinted(r, COLORS[t.color]), t.shape, t.color)
    picture = canvas.picture()
    if r.random() < 0.3:
        picture.pixels = noised(r, picture.pixels, r.randint(3, 14))
    return Scene(things, scene_key(things), picture)


def plain_kinds(r: Random, count: int, level: str) -> list[tuple[str, str]]:
    """Pairs to draw. Easy scenes use few shapes and colors, so that several are alike."""
    shapes = r.sample(
        SHAPES[:3] if level == "easy" else SHAPES, {"easy": 2, "middle": 3, "hard": 4}[level]
    )
    colors = r.sample(list(COLORS), {"easy": 2, "middle": 3, "hard": 3}[level])
    return [(r.choice(shapes), r.choice(colors)) for _ in range(count)]


def _scene(r: Random, level: str) -> Scene:
    low, high = {"easy": (1, 5), "middle": (4, 9), "hard": (6, 12)}[level]
    sizes = {"easy": (20, 36), "middle": (14, 24), "hard": (12, 20)}[level]
    count = r.randint(low, high)
    return draw_scene(r, count, sizes, plain_kinds(r, count, level))


def in_reading_order(things: list[Thing]) -> list[Thing]:
    """By rows of 32 pixels, then from the left."""
    return sorted(things, key=lambda t: ((t.y + t.size // 2) // 32, t.x))


_COUNT = (
    "How many {} are there?",
    "How many {} do you see?",
    "Count the {}.",
    "How many {}?",
    "What is the number of {}?",
    "Number of {}?",
    "Tell me how many {} there are.",
    "how many {} are in the picture?",
    "How many {} can you find?",
    "Give the number of {}.",
)


#: What is looked at to count all shapes, those of a shape, of a color, of both.
_LOOKED_AT: dict[str, Callable[[Thing], str]] = {
    "all": lambda t: "shape",
    "shape": lambda t: t.shape,
    "color": lambda t: t.color,
    "both": lambda t: t.name,
}


def _count(r: Random, scene: Scene, level: str) -> Problem | None:
    kind = "all" if level == "easy" and r.random() < 0.35 else r.choice(("shape", "color", "both"))
    if kind == "both" and level == "easy":
        kind = "shape"
    one = r.choice(scene.things)
    what = {
        "all": "shapes",
        "shape": _PLURALS[one.shape],
        "color": f"{one.color} shapes",
        "both": f"{one.color} {_PLURALS[one.shape]}",
    }[kind]
    return counting_problem(r, scene, level, what, _LOOKED_AT[kind], one)


def counting_problem(
    r: Random,
    scene: Scene,
    level: str,
    what: str,
    looked_at: Callable[[Thing], str],
    one: Thing,
) -> Problem:
    """Count ``what``, the things of which ``looked_at`` says what it says of ``one``: going through
    all by rows, and as a check through those alone from left to right. What is at a place is seen
    sooner than where something is: of weights of 91 M tokens 99 and 30%."""
    found = [t for t in scene.things if looked_at(t) == looked_at(one)]

    def steps(e: Random | None) -> tuple[str, str]:
        seen = in_reading_order(scene.things)
        if e and len(found) > 1:
            seen.remove(e.choice(found))
        count, told = 0, []
        for t in seen:
            count += t in found
            number = f" {count}" if t in found else ""
            told.append(f"{_point(t)} {looked_at(t)}{number}")
        return f"Look for {what}: {', '.join(told)}. So {count}.", str(count)

    across = f"from the left {_numbered(sorted(found, key=lambda t: t.x))}"
    others = ", ".join(_point(t) for t in in_reading_order(scene.things) if t not in found)
    across += f"; others {others}. So {len(found)}." if others else f". So {len(found)}."
    return Problem(
        "counting",
        level,
        scene.key,
        phrase(r, _COUNT).format(what),
        str(len(found)),
        "number",
        steps=steps,
        check=lambda got: against(across, got, str(len(found))),
        second=f"from below {_numbered(sorted(found, key=lambda t: -t.y))}. So {len(found)}.",
        pictures=[scene.picture],
    )


def _point(t: Thing) -> str:
    return f"({t.centre[0]},{t.centre[1]})"


def _numbered(things: list[Thing]) -> str:
    places = (f"{i} {_point(t)}" for i, t in enumerate(things, 1))
    return ", ".join(places) if things else "none"


_COLOR = (
    "What color is the {}?",
    "Which color does the {} have?",
    "The {} is what color?",
    "What is the color of the {}?",
    "color of the {}?",
    "Tell me the color of the {}.",
    "Name the color of the {}.",
)
_SHAPE = (
    "Which shape is {}?",
    "What shape is {}?",
    "What is {}?",
    "Name the {} shape.",
    "What is the {} thing?",
    "Tell me which shape is {}.",
)


def _color(r: Random, scene: Scene, level: str) -> Problem | None:
    """The color of the only thing of its shape, or the shape of the only one of its color; of a
    shape that is not there nobody can tell."""
    if r.random() < 0.12:
        absent = [s for s in SHAPES if all(t.shape != s for t in scene.things)]
        return _seen(
            scene,
            "colors",
            level,
            phrase(r, _COLOR).format(r.choice(absent)),
            CANNOT_TELL,
            f"{_listed(scene.things)}. None fits.",
        )
    single = [t for t in scene.things if sum(u.shape == t.shape for u in scene.things) == 1]
    alone = [t for t in scene.things if sum(u.color == t.color for u in scene.things) == 1]
    if single and (not alone or r.random() < 0.6):
        t = r.choice(single)
        return _seen(
            scene,
            "colors",
            level,
            phrase(r, _COLOR).format(t.shape),
            t.color,
            f"{t.shape} at {shown(t.box)}: {t.color}.",
            routes=_one_of(scene, t),
        )
    if not alone:
        return None
    t = r.choice(alone)
    return _seen(
        scene,
        "colors",
        level,
        phrase(r, _SHAPE).format(t.color),
        t.shape,
        f"{t.color} at {shown(t.box)}: {t.shape}.",
        routes=_one_of(scene, t),
    )


def _one_of(scene: Scene, t: Thing) -> tuple[str, str]:
    """A check: everything by rows; another way: everything from the left."""
    across = ", ".join(u.name for u in sorted(scene.things, key=lambda u: u.x))
    return f"{_listed(scene.things)}. There {t.name}.", f"from the left {across}. So {t.name}."


def _listed(things: list[Thing]) -> str:
    return "Look: " + ", ".join(t.name for t in in_reading_order(things))


def _seen(
    scene: Scene,
    task: str,
    level: str,
    ask: str,
    answer: str,
    thought: str,
    checker: str = "string",
    routes: tuple[str, str] | None = None,
) -> Problem:
    return exact(task, level, scene.key, ask, answer, thought, checker, routes, [scene.picture])


_SIDES = {
    "left of": (0, 1),
    "right of": (0, -1),
    "above": (1, 1),
    "below": (1, -1),
}
_RELATION = (
    "True or false: the {a} is {side} the {b}.",
    "Is it true that the {a} is {side} the {b}?",
    "The {a} is {side} the {b}. True or false?",
    "true or false: {a} {side} {b}",
    "Check: the {a} is {side} the {b}. True or false?",
    "Is the {a} {side} the {b}? True or false?",
)
_EXTREME = {
    "leftmost": (0, 1),
    "rightmost": (0, -1),
    "highest": (1, 1),
    "lowest": (1, -1),
}
_WHICH = (
    "Which shape is {}?",
    "What is the {} shape?",
    "Name the {} shape with its color.",
    "Which thing is {}?",
    "Tell me the {} shape and its color.",
)


def _unique(scene: Scene) -> list[Thing]:
    names = [t.name for t in scene.things]
    return [t for t in scene.things if names.count(t.name) == 1]


def _relation(r: Random, scene: Scene, level: str) -> Problem | None:
    things = _unique(scene)
    if level != "easy" and r.random() < 0.3 and len(things) == len(scene.things) > 1:
        return _outermost(r, scene, level)
    side = r.choice(list(_SIDES))
    axis, sign = _SIDES[side]
    pairs = [(a, b) for a in things for b in things if abs(a.centre[axis] - b.centre[axis]) >= 80]
    if not pairs:
        return None
    a, b = r.choice(pairs)
    p, q = a.centre[axis], b.centre[axis]
    answer = "true" if (q - p) * sign > 0 else "false"
    name = "xy"[axis]

    def steps(e: Random | None) -> tuple[str, str]:
        ends = f"{a.name} ({a.centre[0]},{a.centre[1]}), {b.name} ({b.centre[0]},{b.centre[1]})"
        said = answer if not e else "false" if answer == "true" else "true"
        sign_shown = "<" if (p < q) == (said == answer) else ">"
        return f"Locate: {ends}. {name}: {p}{sign_shown}{q}, {side}? {said}.", said

    gap = f"{name} {max(p, q)}-{min(p, q)}={abs(p - q)}, "
    gap += f"{(a if p < q else b).name} is {'left' if axis == 0 else 'higher'}. {answer}."
    return Problem(
        "relations",
        level,
        scene.key,
        phrase(r, _RELATION).format(a=a.name, b=b.name, side=side),
        answer,
        "string",
        steps=steps,
        check=lambda got: against(gap, got, answer),
        second=_in_order(a, b, axis, answer),
        pictures=[scene.picture],
    )


def _outermost(r: Random, scene: Scene, level: str) -> Problem | None:
    word = r.choice(list(_EXTREME))
    axis, sign = _EXTREME[word]
    order = sorted(scene.things, key=lambda t: t.centre[axis] * sign)
    if abs(order[0].centre[axis] - order[1].centre[axis]) < 50:
        return None
    listed = ", ".join(f"{t.name} {t.centre[axis]}" for t in in_reading_order(scene.things))
    thought = f"{'xy'[axis]}: {listed}. {word} {order[0].centre[axis]}: {order[0].name}."
    routes = (
        f"from the left {', '.join(t.name for t in sorted(scene.things, key=lambda t: t.x))}; "
        f"from above {', '.join(t.name for t in sorted(scene.things, key=lambda t: t.y))}. "
        f"{word} {order[0].name}.",
        f"in order {', '.join(t.name for t in order)}. First {order[0].name}.",
    )
    ask = phrase(r, _WHICH).format(word)
    return _seen(scene, "relations", level, ask, order[0].name, thought, routes=routes)


def _in_order(a: Thing, b: Thing, axis: int, answer: str) -> str:
    """Both from the left or from above, with their sides."""
    one, two = sorted((a, b), key=lambda t: t.centre[axis])
    way = ("from the left", "from above")[axis]
    return f"{way} {one.name} {one.centre[axis]}, {two.name} {two.centre[axis]}. {answer}."


_WHERE = (
    "Where is the {}?",
    "Give the box of the {}.",
    "Locate the {}.",
    "Find the {}.",
    "Box of the {}?",
    "Show me the {}.",
    "In which box is the {}?",
)
_DESCRIBE = (
    "Describe the picture.",
    "What do you see?",
    "List all shapes with their boxes.",
    "What is in the image?",
    "Describe the image.",
)


def _where(r: Random, scene: Scene, level: str) -> Problem | None:
    things = _unique(scene)
    if not things:
        return None
    t = r.choice(things)
    ask = phrase(r, _WHERE).format(t.name)
    return _seen(
        scene,
        "locating",
        level,
        ask,
        shown(t.box),
        f"{t.name} ({t.centre[0]},{t.centre[1]}).",
        "box",
    )


def _describe(r: Random, scene: Scene, level: str) -> Problem | None:
    """A dense caption: every thing with its box, by rows."""
    if len(scene.things) > 6:
        return None
    answer = "; ".join(f"{t.name} {shown(t.box)}" for t in in_reading_order(scene.things))
    thought = f"{_listed(scene.things)}."
    return _seen(scene, "describing", level, phrase(r, _DESCRIBE), answer, thought, "boxes")


_ASKERS = {
    "counting": _count,
    "colors": _color,
    "relations": _relation,
    "locating": _where,
    "describing": _describe,
}


_MIX = (
    *("counting", "counting", "colors", "colors"),
    *("relations", "relations", "locating", "locating", "describing"),
)


def shapes(r: Random, level: str, task: str | None = None) -> Asker:
    """A scene; each call asks a question about it, of ``task`` or of any."""
    scene = _scene(r, level)
    return lambda r: _ASKERS[task or r.choice(_MIX)](r, scene, level)


SCENES: dict[str, Callable[[Random, str], Asker]] = {
    task: partial(shapes, task=task) for task in _ASKERS
}
