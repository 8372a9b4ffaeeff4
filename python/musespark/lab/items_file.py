"""Anyone's own items: a file of JSON lines.

``{"messages": […], "answer": "85", "kind": "number"}``, and where wanted ``images`` (paths beside
the file, in the order of the messages' ``{"type": "image"}`` parts), ``tools``, ``task``,
``level``, ``effort``, ``key`` (of the instance: items of one key are alike, which intervals know).
Kinds: number, string, set (parts between commas), json, box (``[x0,y0,x1,y1]``, right from an
overlap of a half), boxes (several, each after the words it goes with), call (``answer`` is a list
of ``{"name", "arguments"}``) and expression (of numbers of the key, ``3 5 7 = 22``; right is
whatever has that value). ``musespark lab generate`` writes such files.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest
from ..text import checked_tools
from ..vision.pixels import open_named
from .grading import boxes_in, grade
from .item import EFFORTS, Item
from .raster import Picture

KINDS = ("number", "string", "set", "json", "call", "box", "boxes", "expression")
_FIELDS = ("messages", "answer", "kind", "images", "tools", "task", "level", "effort", "key")
_PUZZLE = re.compile(r"\d+( \d+)* = -?\d+")
_MOST_BYTES = 64 << 20


def read_items(path: Path, efforts: list[str] | None = None) -> list[Item]:
    """The items of a file, each at its own effort or at each of ``efforts`` (of all where none are
    asked for). InvalidRequest naming the line and the field, and for efforts that no item takes.
    """
    items = read_problems(path)
    if efforts and all(item.effort for item in items):
        raise InvalidRequest(f"--efforts: got {','.join(efforts)}, every item has its own effort")
    return [
        replace(item, effort=effort)
        for item in items
        for effort in ([item.effort] if item.effort else efforts or EFFORTS)
    ]


def read_problems(path: Path) -> list[Item]:
    """The items of a file, once each; ``effort`` is empty where an item has none of its own.
    InvalidRequest naming the line and the field."""
    if not path.is_file():
        raise InvalidRequest(f"--items: there is no file {path}")
    if path.stat().st_size > _MOST_BYTES:
        raise InvalidRequest(f"--items: {path}: more than {_MOST_BYTES >> 20} MiB")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"--items: {path}: no UTF-8: {error}") from None
    items = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                given = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InvalidRequest(f"{where}: {error}") from None
            items.append(_item(given, where, path.parent))
    if not items:
        raise InvalidRequest(f"--items: {path} has no items")
    return items


def _item(given: Any, where: str, folder: Path) -> Item:
    if not isinstance(given, dict):
        raise InvalidRequest(f"{where}: {type(given).__name__}, an item is an object")
    for name in given:
        if name not in _FIELDS:
            raise InvalidRequest(f"{where}: no field {name!r:.60}, there are {', '.join(_FIELDS)}")
    kind, answer = given.get("kind"), given.get("answer")
    if kind not in KINDS:
        raise InvalidRequest(f"{where}: kind: {kind!r:.60}, allowed are {', '.join(KINDS)}")
    calls = _calls(answer, where) if kind == "call" else None
    told = "" if calls is not None else _answer(answer, kind, where)
    messages = given.get("messages")
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise InvalidRequest(
            f"{where}: messages: the user's text, or a list of objects with role (a text) and "
            "content (a text, or a list of parts)"
        )
    images, tools = given.get("images") or [], given.get("tools")
    if not isinstance(images, list):
        raise InvalidRequest(f"{where}: images: {images!r:.60}, allowed is a list of paths")
    try:
        checked_tools(tools)
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: {error}") from None
    pictures = [_picture(folder, p, where) for p in images]
    slots = _slots(messages)
    if pictures and not slots and isinstance(messages[-1]["content"], str):
        images = [{"type": "image"} for _ in pictures]
        text = {"type": "text", "text": messages[-1]["content"]}
        messages = [*messages[:-1], messages[-1] | {"content": [*images, text]}]
        slots = len(pictures)
    if slots != len(pictures):
        raise InvalidRequest(f"{where}: images: got {len(pictures)}, the messages have {slots}")
    own = hashlib.sha256(json.dumps([messages, answer], sort_keys=True).encode()).hexdigest()[:16]
    named = {"task": "items", "level": "middle", "key": own}
    task, level, key = (given.get(name, value) for name, value in named.items())
    for name, value in zip(named, (task, level, key), strict=True):
        if not isinstance(value, str):
            raise InvalidRequest(f"{where}: {name}: {value!r:.60}, allowed is a text")
    if kind == "expression" and not _PUZZLE.fullmatch(key):
        raise InvalidRequest(f"{where}: key: {key!r:.60}, an expression's is like 3 5 7 = 22")
    effort = given.get("effort", "")
    if "effort" in given and effort not in EFFORTS:
        raise InvalidRequest(f"{where}: effort: {effort!r:.60}, allowed are {', '.join(EFFORTS)}")
    more = {"tools": tools, "calls": calls, "pictures": pictures or None, "where": where}
    item = Item(task, level, effort, key, messages, None, told, kind, **more)
    if calls is None and not grade(item, told):
        raise InvalidRequest(f"{where}: answer: {told!r:.60} is no {kind}")
    return item


def _is_message(message: Any) -> bool:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return False
    content = message.get("content")
    if isinstance(content, list):
        return all(isinstance(p, dict) and isinstance(p.get("type"), str) for p in content)
    return isinstance(content, str)


def _slots(messages: list[dict]) -> int:
    parts = [p for m in messages if isinstance(m.get("content"), list) for p in m["content"]]
    return sum(p.get("type") == "image" for p in parts)


def _answer(answer: Any, kind: str, where: str) -> str:
    if kind == "json" and not isinstance(answer, str):
        return json.dumps(answer)
    if kind == "set" and isinstance(answer, list):
        return ", ".join(map(str, answer))
    if kind == "box" and isinstance(answer, list):
        answer = "[" + ",".join(map(str, answer)) + "]"
    if not isinstance(answer, (str, int, float)) or isinstance(answer, bool):
        raise InvalidRequest(f"{where}: answer: {answer!r:.60} is no {kind}")
    told = f"{Decimal(repr(answer)):f}" if isinstance(answer, float) else str(answer)
    boxes = len(boxes_in(told))
    if (kind == "box" and boxes != 1) or (kind == "boxes" and not boxes):
        raise InvalidRequest(f"{where}: answer: {told!r:.60}, a box is [x0,y0,x1,y1]")
    return told


def _calls(answer: Any, where: str) -> list[dict]:
    good = isinstance(answer, list) and all(
        isinstance(c, dict)
        and isinstance(c.get("name"), str)
        and isinstance(c.get("arguments"), dict)
        for c in answer
    )
    if not good:
        raise InvalidRequest(f'{where}: answer: a list of {{"name", "arguments"}} for kind call')
    return [{"name": c["name"], "arguments": c["arguments"]} for c in answer]


def _picture(folder: Path, name: Any, where: str) -> Picture:
    if not isinstance(name, str):
        raise InvalidRequest(f"{where}: images: {name!r:.60}, allowed are paths")
    return Picture(original=open_named(folder / name, f"{where}: images").pixels)
