"""A trace as JSON and back. What is read is checked field by field: nobody vouches for the file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, NoReturn

from musespark.errors import CorruptFile, InvalidRequest
from musespark.untrusted import parse_json_object
from musespark.vision.geometry import Transform
from musespark.vision.regions import FLAGS, REGION_KINDS, SOURCES, Region
from musespark.vision.trace.data import (
    CHANNELS,
    STEP_KINDS,
    Check,
    HeatMap,
    Step,
    TraceImage,
    VisualTrace,
)

FORMAT = "musespark.visual-trace"
VERSION = 1
MAX_BYTES = 64 << 20
MAX_IMAGES = 4096
MAX_STEPS = 16384
MAX_LIST = 1 << 20  # of anything else
_MAX_SIDE = 1 << 20
_MAX_NUMBER = 1e15


# ---- writing ------------------------------------------------------------------------------------


def to_json(trace: VisualTrace) -> str:
    """One object, keys in a fixed order; texts as the model wrote them."""
    out: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    out |= {f.name: _plain(getattr(trace, f.name)) for f in fields(trace) if f.name != "pictures"}
    # ASCII: a lone surrogate, which a model's text may hold, has no UTF-8.
    return json.dumps(out, ensure_ascii=True, allow_nan=False, indent=1)


def _plain(value: Any) -> Any:
    if isinstance(value, Transform):
        return value.to_list()
    if isinstance(value, TraceImage | Step | Region | HeatMap | Check):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


# ---- reading ------------------------------------------------------------------------------------


class _Fields:
    """The fields of a JSON object, each taken once; what is left at the end is refused."""

    def __init__(self, value: Any, where: str):
        self.where = where
        if not isinstance(value, dict):
            self.refuse("", value, "an object")
        self._left = dict(value)

    def refuse(self, name: str, value: Any, wanted: str) -> NoReturn:
        place = f"{self.where}.{name}" if name and name[0] != "[" else self.where + name
        raise CorruptFile(f"{place}: {json.dumps(value)[:60]}, must be {wanted}")

    def take(self, name: str) -> Any:
        if name not in self._left:
            raise CorruptFile(f"{self.where}.{name}: missing")
        return self._left.pop(name)

    def text(self, name: str, among: Sequence[str] = ()) -> str:
        value = self.take(name)
        if not isinstance(value, str):
            self.refuse(name, value, "text")
        if among and value not in among:
            self.refuse(name, value, f"one of {', '.join(among)}")
        return value

    def integer(self, name: str, low: int, high: int) -> int:
        value = self.take(name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.refuse(name, value, f"an integer from {low} to {high}")
        return value

    def number(self, name: str, low: float = -_MAX_NUMBER, high: float = _MAX_NUMBER) -> float:
        value = self.take(name)
        self.check_number(name, value, low, high)
        return value

    def check_number(self, name: str, value: Any, low: float, high: float) -> None:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not low <= value <= high
        ):
            self.refuse(name, value, f"a number from {low:g} to {high:g}")

    def flag(self, name: str) -> bool:
        value = self.take(name)
        if not isinstance(value, bool):
            self.refuse(name, value, "true or false")
        return value

    def items(self, name: str, limit: int = MAX_LIST) -> list[Any]:
        value = self.take(name)
        if not isinstance(value, list):
            self.refuse(name, value, "a list")
        if len(value) > limit:
            raise CorruptFile(f"{self.where}.{name}: {len(value)} items, at most {limit}")
        return value

    def objects(self, name: str, limit: int = MAX_LIST) -> Iterator[_Fields]:
        for index, item in enumerate(self.items(name, limit)):
            yield _Fields(item, f"{self.where}.{name}[{index}]")

    def texts(self, name: str, among: Sequence[str] = ()) -> tuple[str, ...]:
        values = self.items(name)
        for index, value in enumerate(values):
            if not isinstance(value, str) or (among and value not in among):
                wanted = f"one of {', '.join(among)}" if among else "text"
                self.refuse(f"{name}[{index}]", value, wanted)
        return tuple(values)

    def numbers(self, name: str, count: int | None = None) -> tuple[float, ...]:
        values = self.items(name)
        if count is not None and len(values) != count:
            self.refuse(name, values, f"{count} numbers")
        for index, value in enumerate(values):
            self.check_number(f"{name}[{index}]", value, -_MAX_NUMBER, _MAX_NUMBER)
        return tuple(values)

    def integers(self, name: str, count: int | None, low: int, high: int) -> tuple[int, ...]:
        values = self.items(name)
        good = all(type(value) is int and low <= value <= high for value in values)
        if not good or (count is not None and len(values) != count):
            self.refuse(name, values, f"{count or 'any'} integers from {low} to {high}")
        return tuple(values)

    def maybe(self, name: str, read: Callable[[str], Any]) -> Any:
        """What ``read`` makes of the field, or null."""
        if self._left.get(name, 0) is None:
            return self._left.pop(name)
        return read(name)

    def seconds(self, name: str) -> dict[str, float]:
        """An object of numbers."""
        inner = _Fields(self.take(name), f"{self.where}.{name}")
        return {key: inner.number(key) for key in list(inner._left)}

    def done(self) -> None:
        if self._left:
            raise CorruptFile(f"{self.where}.{min(self._left)[:60]}: no such field in version 1")


def from_json(text: str | bytes, where: str = "trace") -> VisualTrace:
    """The trace that :func:`to_json` wrote. CorruptFile, naming the field, for anything else."""
    if not isinstance(text, (str, bytes)):
        raise InvalidRequest(f"{where}: got {type(text).__name__}, allowed is a str or bytes")
    top = _Fields(parse_json_object(text, where, MAX_BYTES), where)
    if (format := top.text("format")) != FORMAT:
        top.refuse("format", format, FORMAT)
    top.integer("version", VERSION, VERSION)
    images = tuple(_image(item) for item in top.objects("images", MAX_IMAGES))
    trace = VisualTrace(
        images=images,
        steps=tuple(_step(item) for item in top.objects("steps", MAX_STEPS)),
        question=top.text("question"),
        answer=top.text("answer"),
        model=top.text("model"),
        convention=top.text("convention"),
        messages=tuple(_message(item) for item in top.objects("messages", MAX_STEPS)),
        timings=top.seconds("timings"),
        warnings=top.texts("warnings"),
    )
    top.done()
    _check_names(trace, where)
    return trace


def _transform(item: _Fields, name: str) -> Transform:
    numbers = item.numbers(name, 6)
    a, b, _, d, e, _ = numbers
    if not math.isfinite(det := a * e - b * d) or det == 0:
        item.refuse(name, list(numbers), "a map that has an inverse")
    return Transform(*numbers)


def _size(item: _Fields, name: str) -> tuple[int, int]:
    height, width = item.integers(name, 2, 1, _MAX_SIDE)
    return height, width


def _image(item: _Fields) -> TraceImage:
    image = TraceImage(
        id=item.text("id"),
        sha256=item.text("sha256"),
        size=_size(item, "size"),
        transform=_transform(item, "transform"),
        parent=item.maybe("parent", item.text),
        crop=item.maybe("crop", lambda name: item.integers(name, 4, 0, _MAX_SIDE)),
        turn=item.integer("turn", 0, 270),
        shown=item.maybe("shown", lambda name: _size(item, name)),
        shown_transform=_transform(item, "shown_transform"),
    )
    item.done()
    return image


def _region(item: _Fields) -> Region:
    kind = item.text("kind", REGION_KINDS)
    points = [tuple(point.numbers("", 2)) for point in _pairs(item, "points")]
    if points and (len(points) != {"box": 2, "point": 1}.get(kind, len(points))):
        item.refuse("points", points, f"those of a {kind}")
    region = Region(
        kind=kind,
        points=tuple(points),
        image=item.text("image"),
        label=item.text("label"),
        raw=item.text("raw"),
        convention=item.text("convention"),
        written=item.numbers("written"),
        span=item.integers("span", 2, 0, MAX_BYTES),
        source=item.text("source", SOURCES),
        confidence=item.maybe("confidence", lambda name: item.number(name, 0, 1)),
        flags=item.texts("flags", FLAGS),
    )
    item.done()
    return region


def _pairs(item: _Fields, name: str) -> Iterator[_Fields]:
    """Each list in a list, as the field "" of an object of its own."""
    for index, value in enumerate(item.items(name)):
        yield _Fields({"": value}, f"{item.where}.{name}[{index}]")


def _heat(item: _Fields) -> HeatMap:
    rows, columns = item.integer("rows", 1, 4096), item.integer("columns", 1, 4096)
    heat = HeatMap(
        image=item.text("image"),
        rows=rows,
        columns=columns,
        values=item.numbers("values", rows * columns),
        layers=item.integers("layers", None, 0, 4096),
        note=item.text("note"),
    )
    item.done()
    return heat


def _check(item: _Fields, regions: int) -> Check:
    check = Check(
        region=item.integer("region", 0, regions - 1),
        change=item.number("change"),
        random_change=item.number("random_change"),
        draws=item.integer("draws", 0, 1 << 20),
        load_bearing=item.maybe("load_bearing", item.flag),
        flipped=item.maybe("flipped", item.flag),
        random_flips=item.maybe("random_flips", lambda name: item.integer(name, 0, 1 << 20)),
        note=item.text("note"),
    )
    item.done()
    return check


def _step(item: _Fields) -> Step:
    regions = tuple(_region(inner) for inner in item.objects("regions", 4096))
    step = Step(
        kind=item.text("kind", STEP_KINDS),
        text=item.text("text"),
        source=item.text("source", SOURCES),
        channel=item.text("channel", CHANNELS),
        exact=item.flag("exact"),
        turn=item.integer("turn", 0, MAX_STEPS),
        tokens=item.maybe("tokens", lambda name: item.integers(name, 2, 0, 1 << 40)),
        image=item.text("image"),
        regions=regions,
        crop=item.text("crop"),
        heat=item.maybe("heat", lambda name: _heat(_Fields(item.take(name), f"{item.where}.heat"))),
        tool=item.text("tool"),
        arguments=item.maybe("arguments", lambda name: _object(item, name)),
        parent=item.maybe("parent", lambda name: item.integer(name, 0, MAX_STEPS)),
        cost=item.seconds("cost"),
        warnings=item.texts("warnings"),
        checks=tuple(_check(inner, len(regions)) for inner in item.objects("checks", 4096)),
    )
    item.done()
    return step


def _object(item: _Fields, name: str) -> dict[str, Any]:
    value = item.take(name)
    if not isinstance(value, dict):
        item.refuse(name, value, "an object")
    return value


def _message(item: _Fields) -> dict[str, Any]:
    """A message as it is, once its role and the parts of its content are known to be some."""
    content = item._left.get("content")
    message = dict(item._left)
    item.text("role")
    if content is not None and not isinstance(content, str):
        for part in item.objects("content"):
            if part.text("type") == "image":
                part.text("id")
    return message


def _check_names(trace: VisualTrace, where: str) -> None:
    """Ids are unique, parents come before children, and what is named is there."""
    known: set[str] = set()
    for index, image in enumerate(trace.images):
        place = f"{where}.images[{index}]"
        if image.id in known:
            raise CorruptFile(f"{place}.id: {image.id[:60]!r} stands twice")
        if not image.id:
            raise CorruptFile(f"{place}.id: empty")
        if image.parent is not None and image.parent not in known:
            raise CorruptFile(f"{place}.parent: {image.parent[:60]!r} is no image before it")
        known.add(image.id)
    for index, step in enumerate(trace.steps):
        place = f"{where}.steps[{index}]"
        named = [("image", step.image), ("crop", step.crop)]
        named += [(f"regions[{i}].image", r.image) for i, r in enumerate(step.regions)]
        named += [("heat.image", step.heat.image)] if step.heat else []
        for name, id in named:
            if id and id not in known:
                raise CorruptFile(f"{place}.{name}: {id[:60]!r} is no image of the trace")
        if step.parent is not None and step.parent >= index:
            raise CorruptFile(f"{place}.parent: {step.parent}, must be a step before {index}")
    for index, message in enumerate(trace.messages):
        parts = message.get("content")
        for part in parts if isinstance(parts, list) else []:
            if part["type"] == "image" and part["id"] not in known:
                raise CorruptFile(
                    f"{where}.messages[{index}]: {part['id'][:60]!r} is no image of the trace"
                )
