"""``musespark xray``: a question, and what each sentence of the thought did to the answer."""

from __future__ import annotations

import argparse

from musespark.cli import common
from musespark.thinking.effort import ALL_EFFORTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("question", help="what to ask")
    common.add_model_arguments(parser)
    common.add_adapter_argument(parser)
    common.add_sampling_arguments(parser)
    parser.add_argument("--effort", choices=ALL_EFFORTS, help="how long to think")
    parser.add_argument(
        "--answer-tokens",
        type=int,
        default=64,
        metavar="N",
        help="compare the answer's first N tokens (default: 64)",
    )
    parser.add_argument("--html", metavar="FILE", help="write the X-ray as one page")
    parser.add_argument("--json", action="store_true", help="print the X-ray as JSON")


def run(args: argparse.Namespace) -> int:
    question = common.text_given(args.question, "question")
    common.check_target(args.html, "--html")
    options = {"reasoning_effort": args.effort, **common.sampling_options(args)}
    with common.load_model(args, "chat") as model:
        result = model.chat(question, **options)
        xray = result.explain_thinking(answer_tokens=args.answer_tokens)
    if args.html is not None:
        xray.to_html(args.html)
    if args.json:
        print(xray.to_json())
    else:
        common.show(xray)
        common.show(result.content)
    return 0
