"""``musespark convert``: pack a model folder into one file."""

from __future__ import annotations

import argparse

import musespark
from musespark.cli import common
from musespark.machine import human_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="model folder, GGUF file or hub id")
    parser.add_argument("destination", help="packed file to write")
    common.add_quantize_argument(parser, "q4")
    common.add_mmproj_argument(parser)
    parser.add_argument("--calibration", metavar="FILE", help="text that guides the rounding")
    parser.add_argument(
        "--method",
        choices=["importance", "error-feedback"],
        help="how the calibration does so (default: error-feedback)",
    )


def run(args: argparse.Namespace) -> int:
    info = musespark.convert(
        args.source,
        args.destination,
        quantize=args.quantize,
        mmproj=args.mmproj,
        calibration=args.calibration,
        method=args.method,
    )
    formats = ", ".join(f"{name} {human_bytes(size)}" for name, size in info["formats"].items())
    size = f"{info['parameters'] / 1e6:.1f} M parameters"
    common.show(f"{args.destination}: {info['family']}, {info['quantize']}, {size}, {formats}")
    if info["kv"] is not None:
        common.show(f"kv auto: {info['kv']['says']}")
    if info["tower"] is not None:
        common.show(f"vision tower: {info['tower']['says']}")
    return 0
