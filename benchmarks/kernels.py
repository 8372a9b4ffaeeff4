"""Matmul kernels of every level and format: one row in bytes read, many rows in operations.

    python benchmarks/kernels.py [--rounds 7] [--threads 2] [--levels amx,avx2] [--formats q4,q8]
                                 [--save]

M = 1: a 8192 x 2048 matrix, as many copies as make 400 MB, one after another; GB/s and the share of
the read bandwidth measured before and after (benchmarks/limits.c). M = 512: operations (2 per
multiply-add) a second and the share of the dot peak, the widest dot instruction but AMX. Between:
milliseconds for one matrix. Medians of the rounds with their lowest and highest; before anything is
timed each level is checked against scalar, bit for bit.
"""

from __future__ import annotations

import argparse

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
    for m in (1, 3, 37):
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
    one = seconds(form, 1, isa, args, copies, grain=64)
    report = {"M=1 GB/s": common.spread([nbytes / t / 1e9 for t in one])}
    for m in FEW:
        few = seconds(form, m, isa, args, max(1, copies // 2), grain=16)
        report[f"M={m} ms"] = common.spread([t * 1e3 for t in few])
    many = seconds(form, MANY, isa, args, 1, grain=8)
    operations = 2 * MANY * ROWS * COLS
    report[f"M={MANY} Gop/s"] = common.spread([operations / t / 1e9 for t in many])
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--levels", default=",".join(testing.kernel_levels()[:-1]))
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--save", action="store_true", help="write results/kernels.json")
    args = parser.parse_args()
    bandwidth = [common.read_bandwidth(args.threads)]
    peak = [common.dot_peak(args.threads)]
    rows = {}
    for isa in args.levels.split(","):
        for form in args.formats.split(","):
            check(isa, form)
            rows[f"{isa} {form}"] = measure(form, isa, args)
    bandwidth.append(common.read_bandwidth(args.threads))
    peak.append(common.dot_peak(args.threads))
    read, dot = max(bandwidth) / 1e9, max(peak) / 1e9
    print(f"{args.threads} threads; read bandwidth {bandwidth[0] / 1e9:.1f} before and "
          f"{bandwidth[1] / 1e9:.1f} GB/s after, dot peak {peak[0] / 1e9:.0f} and "
          f"{peak[1] / 1e9:.0f} Gop/s; shares are of the larger")  # fmt: skip
    head = "  ".join(f"M={m} ms" for m in FEW)
    print(f"{'level and format':<18} M=1 GB/s  share  {head}  M={MANY} Gop/s  share")
    for name, row in rows.items():
        one, many = row["M=1 GB/s"]["median"], row[f"M={MANY} Gop/s"]["median"]
        few = "  ".join(f"{row[f'M={m} ms']['median']:6.3f}" for m in FEW)
        print(f"{name:<18} {one:8.1f}  {one / read:5.0%}  {few}  {many:11.0f}  {many / dot:5.0%}")
    if args.save:
        report = {
            "machine": common.machine(), "threads": args.threads, "shape": [ROWS, COLS],
            "read_bandwidth": bandwidth, "dot_peak": peak, "results": rows,
        }  # fmt: skip
        common.save("kernels", report)


if __name__ == "__main__":
    main()
