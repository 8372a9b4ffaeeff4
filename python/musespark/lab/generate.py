"""``musespark lab generate FOLDER``: generated items as a file that ``lab eval --items`` reads.

FOLDER gets ``items.jsonl`` (see ``items_file.py``) and its pictures as PNG files. On the evaluation
side they are the items that ``lab eval`` asks with the same tasks, levels, ``--n`` and ``--seed``
in the words that training uses; on the training side they are drawn as training draws them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest
from ..vision.render.png import encode
from ..weights.files import write_whole
from .arguments import at_least, chosen_of
from .card import fewer_told
from .evaluate import fewer, items_for
from .item import LEVELS, Item
from .tasks import EVALUATED

FILE = "items.jsonl"


def main(argv: list[str] | None = None) -> None:
    """Draw, write, say where."""
    p = argparse.ArgumentParser(
        prog="musespark lab generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("folder", help="where to write; made where it is not there")
    p.add_argument("--tasks", default="all", help=f"all, or some of {', '.join(EVALUATED)}")
    p.add_argument("--levels", default="all", help="all, or some of easy,middle,hard")
    p.add_argument("--n", type=int, default=100, help="items per task and level")
    p.add_argument("--seed", type=int, default=2026)
    p.add_argument("--split", choices=("evaluation", "train"), default="evaluation")
    args = p.parse_args(argv)
    at_least(1, args.n, "--n")
    tasks = chosen_of(args.tasks, EVALUATED, "--tasks")
    levels = chosen_of(args.levels, LEVELS, "--levels")
    evaluation = args.split == "evaluation"
    items = items_for(tasks, levels, ["medium"], args.n, args.seed, evaluation=evaluation)
    for cell in fewer(items, tasks, levels, args.n):
        print("fewer than wanted:", fewer_told(cell), file=sys.stderr)
    path = write_items(items, Path(args.folder))
    print(f"{len(items)} items of the {args.split} side, seed {args.seed}: {path}")


def write_items(items: list[Item], folder: Path) -> Path:
    """Writes pictures, then the file; returns its path. InvalidRequest where it is there."""
    path = folder / FILE
    if path.exists():
        raise InvalidRequest(f"{path} is there already; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, item in enumerate(items, 1):
        names = [f"{number:06}-{i}.png" for i in range(len(item.pictures or []))]
        for name, picture in zip(names, item.pictures or [], strict=True):
            pixels = picture.pixels if picture.original is None else picture.original
            write_whole(folder / name, encode(pixels))
        lines.append(json.dumps(_line(item, names)) + "\n")
    write_whole(path, "".join(lines).encode())
    return path


def _line(item: Item, images: list[str]) -> dict[str, Any]:
    """An item as ``items_file`` reads it; its effort is whoever's who asks it."""
    line: dict[str, Any] = {"task": item.task, "level": item.level, "key": item.key}
    line |= {"messages": item.messages, "kind": item.checker}
    line["answer"] = item.calls if item.checker == "call" else item.answer
    if images:
        line["images"] = images
    if item.tools:
        line["tools"] = item.tools
    return line
