"""The ``musespark`` command: one file per subcommand. What runs a model is imported when needed."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import musespark
from musespark.errors import Error

COMMANDS = {
    "demo": "three questions and a story on the embedded model",
    "chat": "talk to a model in the terminal",
    "generate": "continue a prompt",
    "bench": "prefill and decode speed of a model on this machine",
    "doctor": "what this machine offers and what musespark chose",
    "inspect": "what is in a model folder or packed file",
    "convert": "pack a model folder into one file",
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="musespark",
        description="Reasoning models on an ordinary CPU; without --model, Spark Nano.",
    )
    parser.add_argument("--version", action="version", version=f"musespark {musespark.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        module = importlib.import_module(f"musespark.cli.{name}")
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (0 done, 1 error, 2 usage, 130 interrupted)."""
    args = build_parser().parse_args(argv)
    try:
        status = args.run(args)
        sys.stdout.flush()  # here, where a closed pipe is still ours to handle
        return status
    except BrokenPipeError:
        # The reader of our output went away; silence the flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Error, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
