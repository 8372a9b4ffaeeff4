"""``musespark generate``: continue a prompt, streaming."""

from __future__ import annotations

import argparse
import json
import sys

from musespark.cli import common
from musespark.errors import InvalidRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="the text to continue; - reads standard input")
    common.add_model_arguments(parser)
    common.add_sampling_arguments(parser)
    parser.add_argument("--stop", action="append", default=[], help="stop string (repeatable)")
    parser.add_argument("--json", action="store_true", help="print the whole result as JSON")


def run(args: argparse.Namespace) -> int:
    prompt = args.prompt
    if prompt == "-":
        if sys.stdin.isatty():
            raise InvalidRequest("prompt: got -, but standard input is a terminal")
        try:
            prompt = sys.stdin.read()
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"prompt: standard input is no text: {error}") from error
    options = common.sampling_options(args)
    with common.load_model(args) as model:
        if args.json:
            result = model.generate(prompt, stop=args.stop, **options)
            print(json.dumps(result.to_dict(), ensure_ascii=False))
            return 0
        stream = model.generate(prompt, stop=args.stop, stream=True, **options)
        print(prompt, end="", flush=True)
        for delta in stream:
            print(delta, end="", flush=True)
        print()
    return 0
