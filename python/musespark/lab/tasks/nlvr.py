"""NLVR: sentences by people about three boxes of shapes, true or false. Reported, not gated.

The data (CC-BY-4.0) is not part of the package: ``use`` reads its ``dev.json``. Scenes are drawn
again from their structured form, the three boxes side by side and below, for pictures here are
128×128. The split is by sentence: none that is evaluated was ever trained, whatever the scene.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

from ...errors import InvalidRequest
from ..item import Item, Problem, compose, is_evaluation
from ..raster import COLORS, Box, Canvas, Picture, shape_mask

TASK = "nlvr"
_COLORS = {"yellow": "yellow", "black": "black", "#0099ff": "blue"}
_SHAPES = ("circle", "square", "triangle")
_SIDE, _FULL = 62, 100
_CORNERS = ((1, 1), (65, 1), (33, 65))
_MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class Record:
    """A sentence about boxes of (shape, color, box in a hundred of its box's side)."""

    sentence: str
    answer: str
    boxes: tuple[tuple[tuple[str, str, Box], ...], ...]


#: Of the file that ``use`` read, by whether they are for evaluation.
_records: dict[bool, list[Record]] = {False: [], True: []}


def use(path: str | Path) -> int:
    """Reads the records of a dev.json; how many there are. InvalidRequest naming line and field."""
    path = Path(path)
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        raise InvalidRequest(f"nlvr: {path} is no file of at most {_MOST_BYTES >> 20} MiB")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            found.append(_record(json.loads(line)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidRequest(f"nlvr: {path}:{number}: {error!r:.100}") from None
    for side in _records:
        _records[side] = [r for r in found if is_evaluation(TASK, r.sentence) == side]
    return len(found)


def there() -> bool:
    """Whether records were read."""
    return bool(_records[False])


def _record(given: dict) -> Record:
    boxes = []
    for box in given["structured_rep"]:
        things = []
        for one in box:
            color, shape = _COLORS[one["color"].lower()], one["type"].lower()
            if shape not in _SHAPES:
                raise ValueError(f"type {shape!r:.40}")
            x, y, size = int(one["x_loc"]), int(one["y_loc"]), int(one["size"])
            things.append((shape, color, (x, y, x + size, y + size)))
        boxes.append(tuple(things))
    if len(boxes) != 3 or given["label"] not in ("true", "false"):
        raise ValueError("three boxes and a label, true or false")
    return Record(str(given["sentence"])[:300], given["label"], tuple(boxes))


def problem(r: Random, *, evaluation: bool) -> Problem:
    """A sentence and its scene, the boxes in any order: no sentence speaks of it. The level is by
    the number of shapes: up to 7, up to 12, more."""
    return _problem(r, r.choice(_records[evaluation]))


def _problem(r: Random, record: Record) -> Problem:
    boxes = r.sample(record.boxes, 3)
    listed = "; ".join(
        f"box {i}: " + (", ".join(f"{c} {s}" for s, c, _ in box) or "nothing")
        for i, box in enumerate(boxes, 1)
    )
    thought = f"{listed}. So {record.answer}."
    return Problem(
        TASK,
        _level(record),
        record.sentence,
        f"True or false: {record.sentence}",
        record.answer,
        steps=lambda e: (thought, record.answer),
        pictures=[_picture(boxes)],
    )


def _level(record: Record) -> str:
    count = sum(map(len, record.boxes))
    return "easy" if count <= 7 else "middle" if count <= 12 else "hard"


def _picture(boxes: list[tuple[tuple[str, str, Box], ...]]) -> Picture:
    canvas = Canvas((128, 128, 128))
    for (left, top), box in zip(_CORNERS, boxes, strict=True):
        canvas.rectangle((left, top, left + _SIDE, top + _SIDE), (211, 211, 211))
        for shape, color, (x0, y0, x1, _) in box:
            size = max(3, round((x1 - x0) * _SIDE / _FULL))
            at = left + round(x0 * _SIDE / _FULL), top + round(y0 * _SIDE / _FULL)
            canvas.stamp(shape_mask(shape, size), *at, COLORS[color], shape, color)
    return canvas.picture()


def items(levels: list[str], efforts: list[str], n: int, seed: int) -> list[Item]:
    """``n`` records of the evaluation side and of ``levels`` at each effort, or all there are; a
    sentence may stand in several, and intervals know that."""
    r = Random(seed)
    records = [record for record in _records[True] if _level(record) in levels]
    chosen = r.sample(records, min(n, len(records)))
    problems = [_problem(r, record) for record in chosen]
    return [compose(p, effort, Random(seed)) for effort in efforts for p in problems]
