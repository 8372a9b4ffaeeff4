"""``musespark demo``: the main job on the embedded model."""

from __future__ import annotations

import argparse
import time

from musespark.cli import common
from musespark.machine import human_bytes

QUESTIONS = (
    ("What is 47 + 38?", "medium"),
    ("Which is larger, 618 or 681?", "low"),
    ("Tom has 23 apples and buys 14 more. How many apples does Tom have now?", "high"),
)
STORY = "Once upon a time"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=None)


def run(args: argparse.Namespace) -> int:
    import musespark

    style = common.Style()
    start = time.perf_counter()
    with musespark.load(threads=args.threads) as model:
        info = model.info
        print(
            f"Spark Nano: {info.parameters / 1e6:.1f} M parameters, "
            f"{human_bytes(info.weight_bytes)}, "
            f"loaded in {time.perf_counter() - start:.2f} s ({info.isa}, {info.threads} threads)\n"
        )
        tokens, seconds = 0, 0.0
        for question, effort in QUESTIONS:
            print(f"{style.bold}> {question}{style.reset}   (effort {effort})")
            printer = common.ChannelPrinter(style)
            stream = model.chat(question, reasoning_effort=effort, stream=True, max_new_tokens=400)
            for delta in stream:
                printer(delta)
            printer.finish()
            print()
            tokens += max(0, stream.result.usage.completion_tokens - 1)
            seconds += stream.result.timings.decode_s
        print(f"{style.bold}A story:{style.reset} {STORY}", end="", flush=True)
        stream = model.generate(
            STORY, max_new_tokens=120, temperature=0.7, top_p=0.9, seed=7, stream=True
        )
        for delta in stream:
            common.show(delta, end="")
        tokens += max(0, stream.result.usage.completion_tokens - 1)
        seconds += stream.result.timings.decode_s
    print(f"\n\n{tokens} tokens decoded at {tokens / seconds:,.0f} tokens/s")
    print(f"peak memory {human_bytes(common.peak_memory_bytes())}")
    return 0
