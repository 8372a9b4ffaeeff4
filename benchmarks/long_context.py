"""Decode after, and prefill of, long contexts: cache formats beside other engines, in one run.

    python benchmarks/long_context.py [--depth 8192] [--rounds 1] [--steps 32] [--threads N]
                                      [--runs musespark:kv8v4 llama.cpp:f16 openvino:-] [--save]

The Llama-3.2-1B shape at q4, or each engine's own 4 bits (peers.py). A run is an engine with a
format of its cache; one after the other, each round: a model is loaded, a prompt of DEPTH tokens is
prefilled, then STEPS tokens are decoded. Share: bytes that a step must read, weights and our cache,
by the bandwidth read right before and after. Ratios are to the best other engine of the run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace
from typing import Any

from common import machine, save
from engines import WorkerFailed, engines
from environments import EnvironmentFailed
from models import NotBuilt
from report import OURS
from shapes import SHAPES

from musespark.cli.limits import Limits
from musespark.engine import default_threads

RUNS = (
    "musespark:kv8", "musespark:kv8v4", "musespark:kv4", "musespark:f32",
    "llama.cpp:f16", "llama.cpp:q8_0", "openvino:-",
)  # fmt: skip


def one(run: str, args: argparse.Namespace, limits: Limits) -> dict[str, Any]:
    name, _, cache = run.partition(":")
    engine = engines()[name]
    variables = {**engine.variables, **({} if cache == "-" else {"MUSESPARK_BENCH_KV": cache})}
    context = -(-(args.depth + args.steps + 64) // 512) * 512
    worker = replace(engine, variables=variables).start(
        SHAPES["llama-3.2-1b"], "q4", args.threads, context
    )
    try:
        before = limits.read_bandwidth(args.threads)
        question = {"test": "deep", "tokens": args.depth, "steps": args.steps}
        found = worker.ask(question, timeout=1800)
        if "error" in found:
            raise WorkerFailed(found["error"])
        bandwidth = (before + limits.read_bandwidth(args.threads)) / 2
        per_token = worker.info.get("kv_bytes_per_token")
        if per_token is not None:
            read = worker.info["model_bytes"] + per_token * args.depth
            found["bandwidth_share"] = read / found["step_s"] / bandwidth
        return found | {"bandwidth": bandwidth, "version": worker.info["version"]}
    finally:
        worker.close()


def figures(samples: list[dict[str, Any]], depth: int) -> dict[str, float]:
    """Medians of a run's rounds: tokens a second, and shares of the bandwidth."""
    middle = {k: statistics.median(s[k] for s in samples) for k in samples[0] if k != "version"}
    kept = {k: v for k, v in middle.items() if k in ("bandwidth", "bandwidth_share")}
    return {"prefill": depth / middle["prefill_s"], "decode": 1 / middle["step_s"], **kept}


def table(rows: dict[str, dict[str, float]]) -> str:
    others = [row for run, row in rows.items() if not run.startswith(OURS)]
    head = f"{'run':18} {'prefill tokens/s':>17} {'ratio':>6} {'decode tokens/s':>16} {'ratio':>6}"
    lines = [head + f" {'of bandwidth':>13}"]
    for run, row in rows.items():
        cells = f"{run:18}"
        for what, width in (("prefill", 17), ("decode", 16)):
            best = max((other[what] for other in others), default=0.0)
            ratio = f"{row[what] / best:.2f}" if best and run.startswith(OURS) else ""
            cells += f" {row[what]:{width}.1f} {ratio:>6}"
        share = row.get("bandwidth_share")
        lines.append(cells + (f" {share:12.0%}" if share is not None else ""))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--depth", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--runs", nargs="+", default=list(RUNS))
    parser.add_argument("--save", action="store_true", help="write results/long_context_DEPTH.json")
    args = parser.parse_args()
    samples: dict[str, list[dict[str, Any]]] = {run: [] for run in args.runs}
    reasons: dict[str, str] = {}
    with Limits() as limits:
        for number in range(args.rounds):
            for run in args.runs:
                print(f"round {number + 1}: {run}", file=sys.stderr)
                try:
                    samples[run].append(one(run, args, limits))
                    print(samples[run][-1], file=sys.stderr)
                except (EnvironmentFailed, NotBuilt, WorkerFailed) as error:
                    reasons[run] = str(error)
    rows = {run: figures(own, args.depth) for run, own in samples.items() if own}
    print(f"depth {args.depth}, {args.threads} threads, {args.rounds} rounds\n\n{table(rows)}")
    for run, reason in reasons.items():
        print(f"{run}: not measured: {reason}")
    if args.save:
        save(f"long_context_{args.depth}", {"machine": machine(), "depth": args.depth,
             "steps": args.steps, "threads": args.threads, "rows": rows, "samples": samples,
             "not_measured": reasons})  # fmt: skip


if __name__ == "__main__":
    main()
