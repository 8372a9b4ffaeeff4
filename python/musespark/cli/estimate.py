"""``musespark estimate``: what a model needs in memory for each choice, without loading it."""

from __future__ import annotations

import argparse

import musespark
from musespark.cli import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", nargs="?", default=None, help="default: the embedded Spark Nano")
    parser.add_argument("--quantize", default=None, help="one of auto, none, q8, q4; else all")
    parser.add_argument("--kv", default=None, help="format of keys and values; else all")
    parser.add_argument(
        "--context", type=int, nargs="+", default=None, help="tokens of a sequence, one or several"
    )
    parser.add_argument("--agents", type=int, default=1, help="sequences at once")
    parser.add_argument(
        "--shared", type=int, default=0, help="tokens that all of them begin with, held once"
    )
    common.add_mmproj_argument(parser)
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    found = musespark.estimate(
        args.source,
        quantize=args.quantize,
        kv=args.kv,
        context=args.context,
        agents=args.agents,
        shared=args.shared,
        mmproj=args.mmproj,
    )
    if args.json:
        common.show_json(found.to_dict(), indent=1)
    else:
        common.show(found)
    return 0
