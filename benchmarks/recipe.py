"""Which tensors of the q4 recipe deserve more bits: divergence saved per bit spent, by class.

    python benchmarks/recipe.py --data ../shared/data [--save]

Everything in q4, then one class of matrices after the other in q6, all packed without
calibration. Both test beds (divergence.py), f32 kernels on dequantized weights. ``saved``:
Kullback-Leibler divergence in thousandths of a nat per token; ``spent``: bits that the change
costs, spread over all weights; ``per bit``: their ratio, what a bit buys there. ``recipe`` rows
change several classes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import divergence
import numpy as np
from common import machine, save
from divergence import Divergence, TestBed
from quality import mean_bits, our_bits, ours

SAMPLED = 60  # chunks of a test bed
# Candidates for the recipe q4: formats by class, q4 where nothing is said.
RECIPES = {
    "q4 everywhere": {},
    "head q6": {"embed": "q6"},
    "head q8": {"embed": "q8"},
    "head, v q6": {"embed": "q6", "v": "q6"},
    "head, k, v q6 (the recipe)": {"embed": "q6", "k": "q6", "v": "q6"},
    "head, o q6": {"embed": "q6", "o": "q6"},
    "head, v, o q6": {"embed": "q6", "v": "q6", "o": "q6"},
    "head, down q6": {"embed": "q6", "down": "q6"},
    "head, v, down q6": {"embed": "q6", "v": "q6", "down": "q6"},
}


def leaf(name: str) -> str:
    return name.split(".")[-1]


class Table:
    """Divergences of one test bed, each measured once."""

    def __init__(self, bed: TestBed):
        self.bed, self.exact = bed, bed.exact()
        self.known: dict[tuple[str, str], np.ndarray] = {}
        self.base = self.measure({})

    def measure(self, formats: dict[str, str]) -> tuple[float, Divergence]:
        """Bits per weight and divergence with classes of matrices in other formats than q4."""

        def form(name: str) -> str:
            return formats.get(leaf(name), "q4")

        def change(name: str, weight: np.ndarray) -> np.ndarray:
            key = name, form(name)
            if key not in self.known:
                self.known[key] = ours(form(name), weight)
            return self.known[key]

        spent = mean_bits(self.bed, lambda n, rows, cols: our_bits(form(n), rows, cols))
        return spent, divergence.measure(self.bed, self.exact, self.bed.changed(change))

    def row(self, formats: dict[str, str]) -> dict:
        spent, found = self.measure(formats)
        bits, saved = spent - self.base[0], self.base[1].mean() - found.mean()
        pairs = (self.base[1].kld - found.kld) / self.base[1].counts.mean()
        half = 1.96 * pairs.std(ddof=1) / len(pairs) ** 0.5
        return {
            "bits": round(spent, 4),
            "kld": found.mean(),
            "spent": round(bits, 4),
            "saved_thousandths": round(1000 * saved, 3),
            "saved_95": round(1000 * half, 3),
            "per_bit": round(1000 * saved / bits, 1) if bits else None,
        }

    def rows(self) -> dict[str, dict]:
        classes = dict.fromkeys(leaf(n) for n, w in self.bed.weights.items() if w.ndim == 2)
        table = {f"{name} in q6": self.row({name: "q6"}) for name in classes}
        return table | {f"recipe: {name}": self.row(forms) for name, forms in RECIPES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the shared data folder")
    parser.add_argument("--save", action="store_true", help="write results/recipe.json")
    args = parser.parse_args()
    report = {}
    for bed in (divergence.stories(args.data), divergence.nano()):
        bed.held_out = bed.held_out[:SAMPLED]
        report[bed.name] = rows = Table(bed).rows()
        print(
            f"{bed.name:32}{'bits':>8}{'KLD':>10}{'spent':>8}{'saved':>9}{'95%':>8}{'per bit':>9}"
        )
        for name, r in rows.items():
            print(
                f"  {name:30}{r['bits']:8.3f}{r['kld']:10.5f}{r['spent']:8.3f}"
                f"{r['saved_thousandths']:9.3f}{r['saved_95']:8.3f}{r['per_bit'] or 0:9.1f}"
            )
    if args.save:
        save("recipe", {"machine": machine(), "beds": report})


if __name__ == "__main__":
    main()
