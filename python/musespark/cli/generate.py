"""``musespark generate``: continue a prompt, streaming."""

from __future__ import annotations

import argparse
import sys

from musespark.cli import common
from musespark.errors import InvalidRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", help="the text to continue; - reads standard input")
    common.add_model_arguments(parser)
    common.add_adapter_argument(parser)
    common.add_drafter_argument(parser)
    common.add_sampling_arguments(parser)
    common.add_grammar_argument(parser)
    parser.add_argument("--stop", action="append", default=[], help="stop string (repeatable)")
    parser.add_argument("--logprobs", type=int, default=0, help="alternatives a token, with --json")
    parser.add_argument("--json", action="store_true", help="print the whole result as JSON")


def _prompt(given: str) -> str:
    if given != "-":
        return common.text_given(given, "prompt")
    if sys.stdin is None or sys.stdin.isatty():
        what = "closed" if sys.stdin is None else "a terminal"
        raise InvalidRequest(f"prompt: got -, but standard input is {what}")
    return common.standard_input(sys.stdin.read, "prompt: standard input")


def run(args: argparse.Namespace) -> int:
    prompt = _prompt(args.prompt)
    options = {**common.sampling_options(args), **common.grammar_options(args)}
    if args.logprobs:
        if not args.json:
            raise InvalidRequest("--logprobs: only --json shows them")
        options["logprobs"] = args.logprobs
    with common.load_model(args, "generate") as model:
        if args.json:
            common.show_json(model.generate(prompt, stop=args.stop, **options).to_dict())
            return 0
        stream = model.generate(prompt, stop=args.stop, stream=True, **options)
        common.show(prompt, end="")
        for delta in stream:
            common.show(delta, end="")
        common.show()
    return 0
