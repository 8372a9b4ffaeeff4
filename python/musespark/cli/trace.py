"""``musespark trace``: a question about images, and where the model looked."""

from __future__ import annotations

import argparse

from musespark.cli import common
from musespark.errors import Error
from musespark.options import EFFORTS, MODES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="image", help="PNG, JPEG, WebP, GIF or BMP")
    parser.add_argument("question", help="what to ask about them")
    common.add_model_arguments(parser)
    common.add_adapter_argument(parser)
    common.add_sampling_arguments(parser)
    parser.add_argument("--mode", default="auto", choices=MODES, help="whether to think first")
    parser.add_argument("--effort", choices=EFFORTS, help="how long to think")
    parser.add_argument(
        "--calls", type=int, default=8, help="the most tool calls (0: no tools; default: 8)"
    )
    parser.add_argument(
        "--convention", metavar="NAME", help="how the model writes places (default: its family's)"
    )
    parser.add_argument(
        "--masks", action="store_true", help="mask each place it cited, and ask again"
    )
    parser.add_argument("--heat", action="store_true", help="measure where attention went")
    parser.add_argument("--html", metavar="FILE", help="write the trace as one page")
    parser.add_argument("--png", metavar="FILE", help="write the first image with all regions")
    parser.add_argument("--json", action="store_true", help="print the trace as JSON")


def run(args: argparse.Namespace) -> int:
    question = common.text_given(args.question, "question")
    common.check_files(args.images, "image")
    for name in ("html", "png"):
        common.check_target(getattr(args, name), f"--{name}")
    options = {"mode": args.mode, "reasoning_effort": args.effort, **common.sampling_options(args)}
    with common.load_model(args, "chat") as model:
        looked = model.look(
            question,
            args.images,
            calls=args.calls,
            convention=args.convention,
            logprobs=1,
            **options,
        )
        trace, failed = looked.trace, None
        try:
            trace = trace.heat(model) if args.heat else trace
            trace = trace.verify(model, ask=True) if args.masks else trace
        except Error as error:  # the answer is there, and stays
            failed = error
    if args.html is not None:
        trace.to_html(args.html)
    if args.png is not None:
        trace.to_png(args.png)
    if args.json:
        print(trace.to_json())
    else:
        common.show(trace)
    if failed is not None:
        raise failed
    if args.masks and not any(step.checks for step in trace.steps):
        common.note("--masks: the model cited no place in an image")
    return 0
