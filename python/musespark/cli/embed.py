"""``musespark embed``: texts to vectors, a JSON line for each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import islice

from musespark.cli import common
from musespark.errors import InvalidRequest

_AT_ONCE = 64  # texts that are embedded before the first of them is printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("texts", nargs="*", help="texts; without any, lines of standard input")
    common.add_model_arguments(parser)
    parser.add_argument(
        "--truncate", action="store_true", help="cut texts beyond the context instead of refusing"
    )


def _lines() -> Iterator[str]:
    if sys.stdin is None or sys.stdin.isatty():
        what = "closed" if sys.stdin is None else "a terminal"
        raise InvalidRequest(f"texts: none is given, and standard input is {what}")
    while line := common.standard_input(sys.stdin.readline, "texts: standard input"):
        yield line.removesuffix("\n")


def run(args: argparse.Namespace) -> int:
    given = [common.text_given(text, f"texts[{i}]") for i, text in enumerate(args.texts)]
    texts = iter(given) if given else _lines()
    with common.load_model(args, "embed") as model:
        while some := list(islice(texts, _AT_ONCE)):
            rows = model.embed(some, truncate=args.truncate)
            for text, row in zip(some, rows, strict=True):
                common.show_json({"text": text, "embedding": row.tolist()})
    return 0
