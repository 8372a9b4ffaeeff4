"""Loading a packed model: seconds, memory, and decoding from the mapped file.

    python benchmarks/load.py [--shape llama-3.2-1b] [--format q4] [--rounds 5] [--context 4096]
                              [--threads 2] [--huge-pages] [--lock-memory] [--no-limits] [--save]

A file of random weights in the named shape (shapes.py) is written first, as ``musespark convert``
would. Each round is a process of its own, the file in the page cache: ``musespark.load``, without
the interpreter and the import; the first token; a prompt of 512 tokens; 32 decoded tokens. Memory
is what Linux counts: the peak of all resident pages, of those the mapped file's and the others
(anonymous) after each of these steps. The goal: load <= 0.3 s, peak <= file + keys and values +
150 MB. The share is of the bandwidth read right before and after decoding, payload bytes only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import machine, save, spread
from models import build, weight_bytes
from shapes import SHAPES

GOAL_S, GOAL_BYTES = 0.3, 150e6
WORKER = Path(__file__).parent / "workers" / "load_once.py"


def one_round(path: Path, options: dict[str, Any], limits: bool) -> dict[str, Any]:
    command = [sys.executable, str(WORKER), str(path), json.dumps(options), str(int(limits))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def show(report: dict[str, Any]) -> None:
    mib = 2**20
    row = {name: one["median"] for name, one in report["rounds"].items()}
    print(f"{report['shape']} {report['format']}: file {report['file_bytes'] / mib:,.0f} MiB")
    load = report["rounds"]["load_s"]
    print(
        f"load {load['median']:.3f} s ({load['low']:.3f} .. {load['high']:.3f}; goal {GOAL_S}), "
        f"first token after {row['first_token_s']:.2f}, import before it {row['import_s']:.2f}"
    )
    print(
        f"peak {row['peak'] / mib:,.0f} MiB: file {row['file'] / mib:,.0f}, anonymous "
        f"{row['anonymous'] / mib:,.0f}, of it keys and values {row['keys_values'] / mib:,.0f}; "
        f"goal {report['goal_bytes'] / mib:,.0f}"
    )
    share = f", {report['share']:.0%} of bandwidth" if report["share"] else ""
    print(f"prefill {row['prefill_speed']:.1f} tokens/s, decode {1 / row['token_s']:.2f}{share}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="llama-3.2-1b", choices=sorted(SHAPES))
    parser.add_argument("--format", default="q4", choices=["q4", "q8"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--huge-pages", action="store_true")
    parser.add_argument("--lock-memory", action="store_true")
    parser.add_argument("--no-limits", action="store_true", help="do not measure the bandwidth")
    parser.add_argument("--save", action="store_true", help="write results/load_SHAPE.json")
    args = parser.parse_args()
    what = f"{args.format}.safetensors"
    path = build(SHAPES[args.shape], what)
    options = {"context": args.context, "threads": args.threads}
    options |= {"huge_pages": args.huge_pages, "lock_memory": args.lock_memory}
    rounds = [one_round(path, options, not args.no_limits) for _ in range(args.rounds)]
    names = [name for name in rounds[0] if name != "notes"]
    needed = weight_bytes(SHAPES[args.shape], what, path)
    shares = [needed / r["token_s"] / r["bandwidth"] for r in rounds if r["bandwidth"]]
    report = {
        "machine": machine(), "shape": args.shape, "format": args.format, "options": options,
        "file_bytes": path.stat().st_size, "bytes_per_token": needed,
        "rounds": {name: spread([one[name] for one in rounds]) for name in names},
        "share": statistics.median(shares) if shares else 0.0, "notes": rounds[0]["notes"],
    }  # fmt: skip
    kept = report["rounds"]["keys_values"]["median"]
    report["goal_bytes"] = report["file_bytes"] + kept + GOAL_BYTES
    show(report)
    if args.save:
        save(f"load_{args.shape}", report)


if __name__ == "__main__":
    main()
