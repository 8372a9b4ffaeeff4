"""``musespark bench``: prefill and decode speed of a model on this machine."""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from musespark.cli import common
from musespark.errors import InvalidRequest
from musespark.machine import human_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_model_arguments(parser)
    parser.add_argument(
        "-p",
        "--prefill",
        type=int,
        nargs="+",
        help="tokens of a prompt (default: 128 and 512)",
    )
    parser.add_argument("-d", "--decode", type=int, help="tokens decoded in a round (default: 64)")
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")


def measure(model: Any, prefill: list[int], decode: int, rounds: int) -> list[dict[str, Any]]:
    """Rows {test, tokens, median, low, high} in tokens/s; the first round warms up and is dropped.

    Token ids are an arithmetic sequence over the vocabulary: speed does not depend on the text.
    Decoding is greedy and never stops early; sampling is inside the figures.
    """
    longest = max([*(count + 1 for count in prefill), decode + 2])
    if longest > model.info.context:
        raise InvalidRequest(f"bench: {longest} tokens asked, the context is {model.info.context}")
    vocab = model.info.vocab
    rows = []
    for count in prefill:
        ids = [(7 + 13 * i) % vocab for i in range(count)]
        speeds = []
        for _ in range(rounds + 1):
            result = model.generate(ids, max_new_tokens=1, temperature=0)
            speeds.append(count / result.timings.prefill_s)
        rows.append(_row(f"prefill {count}", count, speeds[1:]))
    speeds = []
    for _ in range(rounds + 1):
        result = model.generate(
            [1 % vocab], max_new_tokens=decode + 1, min_new_tokens=decode + 1, temperature=0
        )
        speeds.append(decode / result.timings.decode_s)
    rows.append(_row(f"decode {decode}", decode, speeds[1:]))
    return rows


def _row(test: str, tokens: int, speeds: list[float]) -> dict[str, Any]:
    return {
        "test": test,
        "tokens": tokens,
        "median": statistics.median(speeds),
        "low": min(speeds),
        "high": max(speeds),
    }


def run(args: argparse.Namespace) -> int:
    asked = [args.rounds, *(args.prefill or ()), *([] if args.decode is None else [args.decode])]
    if min(asked) < 1:
        raise InvalidRequest("bench: --rounds, --decode and --prefill must be at least 1")
    start = time.perf_counter()
    with common.load_model(args, "generate") as model:
        load_s = time.perf_counter() - start
        context = model.info.context
        prefill = args.prefill or sorted({min(n, max(1, context - 1)) for n in (128, 512)})
        decode = max(1, min(64, context - 2)) if args.decode is None else args.decode
        rows = measure(model, prefill, decode, args.rounds)
        info = model.info
    peak = common.peak_memory_bytes()
    if args.json:
        report = {"source": info.source, "isa": info.isa, "threads": info.threads, "kv": info.kv}
        common.show_json({**report, "load_s": load_s, "peak_bytes": peak, "rows": rows})
        return 0
    formats = ", ".join(f"{name} {human_bytes(n)}" for name, n in info.weight_formats.items())
    size = f"{info.parameters / 1e6:.1f} M parameters"
    common.show(f"{info.source}: {size} ({formats}), kv {info.kv}")
    common.show(f"{info.isa}, {info.threads} threads; loaded in {load_s:.2f} s")
    common.show(f"{'test':<14}{'tokens/s':>10}   spread of {args.rounds} rounds")
    for row in rows:
        spread = f"{row['low']:.1f} .. {row['high']:.1f}"
        common.show(f"{row['test']:<14}{row['median']:>10.1f}   {spread}")
    common.show(f"peak memory {human_bytes(peak)}")
    return 0
