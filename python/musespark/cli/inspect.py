"""``musespark inspect``: what is in a model folder or packed file, without running it."""

from __future__ import annotations

import argparse

from musespark.cli import common
from musespark.machine import human_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="?", default=None, help="default: the embedded Spark Nano")
    parser.add_argument("--verify", action="store_true", help="check every payload checksum")
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    from musespark.weights import inspect

    report = inspect(args.source, verify=args.verify)
    if not args.tensors:
        report.pop("tensors", None)
    if args.json:
        common.show_json(report, indent=1)
        return 0
    for key, value in report.items():
        if key == "tensors":
            for row in value:
                shape = "x".join(str(n) for n in row["shape"])
                size = human_bytes(row["bytes"])
                common.show(f"  {row['name']:<48}{row['format']:>6} {shape:>16} {size:>10}")
        else:
            common.show(f"{key}: {_text(key, value)}")
    return 0


def _text(key: str, value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {human_bytes(size)}" for name, size in value.items())
    if isinstance(value, list):
        return "; ".join(map(str, value)) or "none"
    if key == "bytes":
        return human_bytes(value)
    return "none" if value is None else str(value)
