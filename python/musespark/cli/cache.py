"""``musespark cache``: the models that were packed when they were first loaded, and the thresholds
that were calibrated for some."""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import TYPE_CHECKING

from musespark.cli import common
from musespark.errors import Error
from musespark.machine import human_bytes

if TYPE_CHECKING:
    from musespark.weights.cache import Entry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--remove",
        metavar="NAME",
        nargs="+",
        help="remove these (a name's beginning will do)",
    )
    action.add_argument("--clear", action="store_true", help="remove all of it")
    action.add_argument(
        "--stale", action="store_true", help="remove those whose model is gone, or was moved"
    )
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(args: argparse.Namespace) -> int:
    from musespark.thinking.thresholds import user_files
    from musespark.weights import cache

    if args.stale:
        return _remove([entry for entry in cache.entries() if entry.stale])
    if args.remove or args.clear:
        chosen = [cache.find(name) for name in args.remove] if args.remove else cache.entries()
        return _remove(list(dict.fromkeys(chosen)))
    entries = cache.entries()
    if args.json:
        rows = [dataclasses.asdict(entry) | {"path": str(entry.path)} for entry in entries]
        thresholds = [str(path) for path in user_files()]
        told = {"folder": str(cache.packed_folder()), "entries": rows, "thresholds": thresholds}
        common.show_json(told)
        return 0
    models = [entry for entry in entries if entry.whole]
    left = [entry for entry in entries if not entry.whole]
    common.show(f"{cache.packed_folder()}: {_count(models)}")
    for entry in models:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        common.show(f"  {entry.name:<60} {human_bytes(entry.bytes):>10}   used {used}")
        if entry.source is not None:
            common.show(f"    of {entry.source}{' (gone)' if entry.stale else ''}")
    if left:
        common.show(f"unfinished, being packed or left by a killed process: {_count(left, 'file')}")
    for path in user_files():
        common.show(f"thresholds of thinking_policy auto: {path}")
    return 0


def _remove(chosen: list[Entry]) -> int:
    from musespark.weights import cache

    gone, busy = [], []
    for entry in chosen:
        (gone if cache.remove(entry) else busy).append(entry)
    common.show(f"removed {_count(gone, 'file')}")
    if busy:
        names = ", ".join(entry.name for entry in busy)
        raise Error(f"another process is packing {names}; left alone")
    return 0


def _count(entries: list[Entry], what: str = "packed model") -> str:
    size = human_bytes(sum(entry.bytes for entry in entries))
    return f"{len(entries)} {what}{'' if len(entries) == 1 else 's'}, {size}"
