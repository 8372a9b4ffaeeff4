"""A layer of experts against a dense MLP of an expert's widths with as many rows.

    python benchmarks/experts.py [--rows 512,2048] [--format q4] [--rounds 7] [--threads 2] [--save]

The shape is that of Qwen3-30B-A3B: 2,048 wide, 128 experts of 768, 8 of them for each row. The
dense MLP has M * 8 rows, so both have the same operations: 2 * M * 8 * 3 * 2048 * 768. The layer's
time includes router, choice, gathering of rows and the weighted sums, which the operations do not.
Rows choose by random scores: about M / 16 rows an expert. The two are measured in turn; medians,
with lowest and highest. MUSESPARK_ISA forces a level.
"""

from __future__ import annotations

import argparse

import common
import numpy as np

from musespark import _core

HIDDEN, INTERMEDIATE, EXPERTS, CHOSEN = 2048, 768, 128, 8
GOAL = 0.6  # of the dense share of peak


def packed(form: str, rows: int, cols: int, copies: int) -> np.ndarray:
    """A matrix of normal numbers, packed `copies` times into memory of its own."""
    nbytes = _core.packed_nbytes(form, rows, cols)
    raw = np.empty(copies * nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    out = raw[start : start + copies * nbytes].reshape(copies, nbytes)
    values = np.random.default_rng(rows).standard_normal((rows, cols), np.float32)
    _core.pack(form, values, out=out[0])
    out[1:] = out[0]
    return out.reshape(-1)


class Layer:
    """The packed matrices of the shape, in one format."""

    def __init__(self, form: str):
        self.form = form
        self.router = packed(form, EXPERTS, HIDDEN, 1)
        inward = packed(form, INTERMEDIATE, HIDDEN, 2 * EXPERTS)
        half = len(inward) // 2
        self.gate, self.up = inward[:half], inward[half:]
        self.down = packed(form, HIDDEN, INTERMEDIATE, EXPERTS)

    def seconds(self, rows: int, threads: int) -> tuple[float, float]:
        """One run of the layer, and of the dense MLP of one expert over ``CHOSEN`` times the rows;
        the first of each warms up."""
        x = np.random.default_rng(rows).standard_normal((rows, HIDDEN), np.float32)
        matrices = {"gate": self.gate, "up": self.up, "down": self.down}
        same = {"intermediate": INTERMEDIATE, "threads": threads, "repeats": 3, **matrices}
        testing = _core.testing
        experts = testing.time_experts(
            self.form, x=x, router=self.router, experts=EXPERTS, chosen=CHOSEN, **same
        )
        dense = testing.time_mlp(self.form, x=np.tile(x, (CHOSEN, 1)), **same)
        return min(experts[1:]), min(dense[1:])


def measure(layer: Layer, rows: int, rounds: int, threads: int) -> dict[str, dict[str, float]]:
    """Operations a second of both, and their ratio, each round in turn."""
    operations = 2 * rows * CHOSEN * 3 * HIDDEN * INTERMEDIATE
    timed = [layer.seconds(rows, threads) for _ in range(rounds)]
    return {
        "experts Gop/s": common.spread([operations / e / 1e9 for e, _ in timed]),
        "dense Gop/s": common.spread([operations / d / 1e9 for _, d in timed]),
        "of dense": common.spread([d / e for e, d in timed]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default="512,2048")
    parser.add_argument("--format", default="q4")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", action="store_true", help="write results/experts_LEVEL.json")
    args = parser.parse_args()
    level = _core.isa_levels()[0]
    peaks = common.limits().peaks(args.threads)
    peak = peaks.get(level, 0.0)
    layer, results = Layer(args.format), {}
    print(f"{level}, {args.format}, {args.threads} threads, peak {peak / 1e9:,.0f} Gop/s")
    print("rows   experts Gop/s  of peak   dense Gop/s  of peak   experts of dense")
    for rows in map(int, args.rows.split(",")):
        row = results[str(rows)] = measure(layer, rows, args.rounds, args.threads)
        experts, dense, ratio = (row[k]["median"] for k in row)
        shares = [f"{v * 1e9 / peak:6.0%}" if peak else "     -" for v in (experts, dense)]
        verdict = "" if ratio >= GOAL else f"   below {GOAL:.0%}"
        print(
            f"{rows:<6} {experts:13,.0f}  {shares[0]:>7} {dense:13,.0f}  {shares[1]:>7} "
            f"{ratio:17.0%}{verdict}"
        )
    if args.save:
        report = {
            "machine": common.machine(), "level": level, "format": args.format,
            "threads": args.threads, "peak": peak, "results": results,
            "shape": {"hidden": HIDDEN, "intermediate": INTERMEDIATE, "experts": EXPERTS,
                      "chosen": CHOSEN},
        }  # fmt: skip
        common.save(f"experts_{level}", report)


if __name__ == "__main__":
    main()
