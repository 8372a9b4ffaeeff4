"""Matmul kernels of every level and format: one row in bytes read, many rows in operations.

    python benchmarks/kernels.py [--rounds 7] [--threads 2] [--levels amx,avx2] [--formats q4,q8]
                                 [--save]

M = 1: a 8192 x 2048 matrix, as many copies as make 400 MB, one after another; GB/s and the share of
the read bandwidth. M = 512: operations (2 per multiply-add) a second and the share of the dot peak,
the widest dot instruction but AMX. Between: milliseconds for one matrix. Both limits
(benchmarks/limits.py) are the mean of right before and right after the matrix, because machines
change from minute to minute. Medians of the rounds with their lowest and highest; before anything
is timed each level is checked against scalar, bit for bit.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Self

import common
import numpy as np

from musespark import _core

testing = _core.testing
ROWS, COLS = 8192, 2048
FORMATS = ("q4", "q6", "q8", "q4g32h", "iq4g32h", "mxfp4", "q8g32h", "bf16", "f32")
FEW = (2, 4, 8, 16)
MANY = 512
MEGABYTES = 400


def check(isa: str, form: str) -> None:
    rng = np.random.default_rng(1)
    w = rng.standard_normal((70, 600)).astype(np.float32)
    packed = np.zeros(_core.packed_nbytes(form, *w.shape), np.uint8)
    _core.pack(form, w, out=packed)
    for m in (1, 3, 16, 37, 70):  # the few-row kernels, and panels
        x = rng.standard_normal((m, 600)).astype(np.float32)
        got = testing.matmul(form, packed, 70, x, isa=isa)
        if got.tobytes() != testing.matmul(form, packed, 70, x, isa="scalar").tobytes():
            raise SystemExit(f"{isa} {form} M={m} differs from scalar: nothing was timed")


def seconds(form: str, m: int, isa: str, args: argparse.Namespace, copies: int, grain: int) -> list:
    """Seconds for one matrix, each round."""
    times = testing.time_matmul(
        form, ROWS, COLS, m, isa=isa, threads=args.threads, repeats=args.rounds + 1,
        copies=copies, grain=grain,
    )  # fmt: skip
    return [t / copies for t in times[1:]]  # the first round warms up


def measure(form: str, isa: str, args: argparse.Namespace) -> dict[str, dict[str, float]]:
    nbytes = _core.packed_nbytes(form, ROWS, COLS)
    copies = max(1, MEGABYTES * 2**20 // nbytes)
    with Beside(common.read_bandwidth, args.threads) as bandwidth:
        one = seconds(form, 1, isa, args, copies, grain=64)
    report = {"M=1 GB/s": common.spread([nbytes / t / 1e9 for t in one])}
    for m in FEW:
        few = seconds(form, m, isa, args, max(1, copies // 2), grain=16)
        report[f"M={m} ms"] = common.spread([t * 1e3 for t in few])
    with Beside(common.dot_peak, args.threads) as peak:
        many = seconds(form, MANY, isa, args, 1, grain=8)
    operations = 2 * MANY * ROWS * COLS
    report[f"M={MANY} Gop/s"] = common.spread([operations / t / 1e9 for t in many])
    return report | {"read GB/s": bandwidth.mean / 1e9, "dot Gop/s": peak.mean / 1e9}


class Beside:
    """A limit of the machine, measured right before and right after a block."""

    def __init__(self, limit: Callable[[int], float], threads: int):
        self._limit, self._threads = limit, threads

    def __enter__(self) -> Self:
        self._before = self._limit(self._threads)
        return self

    def __exit__(self, *_: object) -> None:
        self.mean = (self._before + self._limit(self._threads)) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--levels", default=",".join(testing.kernel_levels()[:-1]))
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--save", action="store_true", help="write results/kernels.json")
    args = parser.parse_args()
    rows = {}
    for isa in args.levels.split(","):
        for form in args.formats.split(","):
            check(isa, form)
            rows[f"{isa} {form}"] = measure(form, isa, args)
    read = [row["read GB/s"] for row in rows.values()]
    dot = [row["dot Gop/s"] for row in rows.values()]
    print(f"{args.threads} threads; read bandwidth {min(read):.1f} to {max(read):.1f} GB/s, "
          f"dot peak {min(dot):.0f} to {max(dot):.0f} Gop/s; shares are of what was measured "
          "right before and after")  # fmt: skip
    head = "  ".join(f"M={m} ms" for m in FEW)
    print(f"{'level and format':<18} M=1 GB/s  share  {head}  M={MANY} Gop/s  share")
    for name, row in rows.items():
        one, many = row["M=1 GB/s"]["median"], row[f"M={MANY} Gop/s"]["median"]
        few = "  ".join(f"{row[f'M={m} ms']['median']:6.3f}" for m in FEW)
        print(f"{name:<18} {one:8.1f}  {one / row['read GB/s']:5.0%}  {few}  {many:11.0f}  "
              f"{many / row['dot Gop/s']:5.0%}")  # fmt: skip
    if args.save:
        report = {
            "machine": common.machine(), "threads": args.threads, "shape": [ROWS, COLS],
            "results": rows,
        }  # fmt: skip
        common.save("kernels", report)


if __name__ == "__main__":
    main()
