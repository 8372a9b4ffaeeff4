"""``musespark inspect``: what is in a model folder or packed file, without running it."""

from __future__ import annotations

import argparse
import json

from musespark.cli import common


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
        print(json.dumps(report, indent=1))
        return 0
    for key, value in report.items():
        if key == "tensors":
            for row in value:
                shape = "x".join(str(n) for n in row["shape"])
                size = common.human_bytes(row["bytes"])
                print(f"  {row['name']:<48}{row['format']:>6} {shape:>16} {size:>10}")
        elif isinstance(value, dict):
            print(f"{key}: " + ", ".join(f"{k} {v}" for k, v in value.items()))
        elif key.endswith("bytes"):
            print(f"{key}: {common.human_bytes(value)}")
        else:
            print(f"{key}: {value}")
    return 0
