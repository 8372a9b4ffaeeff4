"""``musespark inspect``: what is in a model and what it needs, without loading it."""

from __future__ import annotations

import argparse
from typing import Any

import musespark
from musespark.cli import common
from musespark.machine import human_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        nargs="?",
        default=None,
        help="model folder, GGUF file, packed file or hub id (default: the embedded Spark Nano)",
    )
    common.add_mmproj_argument(parser)
    parser.add_argument("--verify", action="store_true", help="check every payload checksum")
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    report = musespark.inspect(args.source, verify=args.verify, mmproj=args.mmproj)
    memory, tensors = report.pop("memory"), report.pop("tensors")
    if args.json:
        plain = report | {"memory": None if memory is None else memory.to_dict()}
        common.show_json(plain | ({"tensors": tensors} if args.tensors else {}), indent=1)
        return 0
    width = max(len(key) for key in report)
    for key, value in report.items():
        if key == "notes":
            for note in value:
                common.show(f"{'note':<{width}}  {note}")
        else:
            common.show(f"{key:<{width}}  {_text(key, value)}")
    if args.tensors:
        common.show()
        for row in tensors:
            shape = "x".join(str(n) for n in row["shape"])
            size = human_bytes(row["bytes"])
            common.show(f"  {row['name']:<48}{row['format']:>6} {shape:>16} {size:>10}")
    common.show()
    common.show("memory: not known before the model is downloaded" if memory is None else memory)
    return 0


def _text(key: str, value: Any) -> str:
    if value is None:
        return "not stated" if key == "licence" else "not known" if key == "family" else "-"
    if key == "bytes":
        return human_bytes(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if key == "calibration":
        return f"{value['method']}, {value['tokens']:,} tokens, checksum {value['checksum']}"
    if key in ("kv", "tower"):
        return str(value["says"])
    if isinstance(value, dict):
        parts = (f"{name} {human_bytes(size)}" for name, size in value.items())
        return ", ".join(parts) or "-"
    return ", ".join(value) if isinstance(value, list) else str(value)
