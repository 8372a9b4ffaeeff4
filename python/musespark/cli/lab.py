"""``musespark lab``: how Spark Nano is made and measured; all of it is in ``lab/``, and imported
when it is asked for."""

from __future__ import annotations

import argparse

from musespark.lab.steps import STEPS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "STEP --help says what each takes; train, drafter, rl, probe, export need musespark[lab]."
    )
    parser.add_argument("step", choices=STEPS, metavar="|".join(STEPS))
    parser.add_argument("arguments", nargs=argparse.REMAINDER)


def run(args: argparse.Namespace) -> int:
    from musespark.lab.command import main

    return main([args.step, *args.arguments])
