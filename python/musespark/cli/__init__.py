"""The ``musespark`` command: one file per subcommand. What runs a model is imported when needed."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import musespark
from musespark.cli import common
from musespark.errors import Error

COMMANDS = {
    "demo": "a thought, a tool and two pictures on the embedded model",
    "chat": "talk to a model in the terminal",
    "generate": "continue a prompt",
    "serve": "answer other programs, over OpenAI's and Anthropic's protocols",
    "mcp": "answer an agent as an MCP server, over standard input and output",
    "trace": "ask about images, and see where the model looked",
    "xray": "ask, and see what each sentence of the thought did to the answer",
    "embed": "texts to vectors, with an embedding model",
    "bench": "speed of a model on this machine, and how much of the machine that is",
    "doctor": "what this machine offers and what musespark chose",
    "inspect": "what is in a model and what it needs, without loading it",
    "estimate": "what a model needs in memory for each choice",
    "convert": "pack a model folder into one file",
    "cache": "list or remove the models packed when they were first loaded",
    "lab": "generate for, train and evaluate Spark Nano",
}


class _Parser(argparse.ArgumentParser):
    """A command's parser says itself what it does not know, with its own usage; the outermost would
    say it with the list of all commands."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            names = [name for name in self._option_string_actions if name.startswith("--")]
            near = difflib.get_close_matches(unknown[0].partition("=")[0], names, 1)
            meant = f"; is {near[0]} meant?" if near else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{meant}")
        return found, unknown


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="musespark",
        description="Reasoning models on an ordinary CPU; without --model, Spark Nano.",
        epilog="MUSESPARK_CACHE is the folder for packed models and the chat history "
        "(default: ~/.cache/musespark); MUSESPARK_MEMORY says how much memory may be used; "
        "MUSESPARK_ISA forces an instruction set.",
    )
    parser.add_argument("--version", action="version", version=f"musespark {musespark.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        module = importlib.import_module(f"musespark.cli.{name}")
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (0 done, 1 error, 2 usage, 130 interrupted).

    A SIGTERM cleans up as Ctrl-C does, and leaves with status 143.
    """
    with _terminable():
        return _run(argv)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    def leave(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_DFL:  # somebody has decided already
        yield
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(argv: Sequence[str] | None) -> int:
    try:
        if sys.stdout is None:
            raise Error("standard output is closed")
        # What the terminal's encoding lacks is spelled out instead of ending the command.
        sys.stdout.reconfigure(errors="backslashreplace")
        args = build_parser().parse_args(argv)
        status = args.run(args)
        sys.stdout.flush()  # here, where a closed pipe is still ours to handle
        return status
    except BrokenPipeError:
        _drop_output()  # the reader of our output went away
        return 0
    except (Error, OSError, UnicodeError) as error:
        common.report(error)
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:  # a full disk; Python would try again at exit, and complain
            _drop_output()
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
