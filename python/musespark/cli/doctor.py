"""``musespark doctor``: what this machine offers and what musespark chose."""

from __future__ import annotations

import argparse

import musespark
from musespark.cli import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true")


def _print(value: object, indent: int = 0) -> None:
    pad = "  " * indent
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, (dict, list)):
                common.show(f"{pad}{key}:")
                _print(item, indent + 1)
            else:
                common.show(f"{pad}{key}: {item}")
    elif isinstance(value, list):
        for item in value:
            _print(item, indent)
    else:
        common.show(f"{pad}{value}")


def run(args: argparse.Namespace) -> int:
    report = musespark.doctor()
    if args.json:
        common.show_json(report, indent=1)
    else:
        _print(report)
    return 0
