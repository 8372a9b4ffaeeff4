"""``musespark lab curve RUN…``: what runs of ``musespark lab rl`` say of accuracy and length.

The rule, fixed before any run: *three phases* (longer, compressed, longer again at higher accuracy)
are there where a line of three pieces with slopes up, down, up has a lower BIC than the best
monotone one (of one to three pieces, all up or all down), and accuracy is higher in the last piece
than in the first, in at least two of three seeds. "Not observed" is a finding too.

BIC = n ln(RSS / n) + k ln n (Schwarz 1978), k the free numbers of a line: one for its begin, one
for each slope, one for each knot.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import inf, log
from pathlib import Path

import numpy as np

from ..errors import CorruptFile, InvalidRequest
from ..weights.files import write_whole
from .arguments import check_targets

#: Places a knot may take, as shares of the steps.
_KNOTS = tuple(k / 20 for k in range(1, 20))
_SEEDS_NEEDED = 2


@dataclass(frozen=True)
class Line:
    """A continuous line of pieces: its ``knots`` (shares of the steps), the slopes between them,
    its BIC."""

    knots: tuple[float, ...]
    slopes: tuple[float, ...]
    bic: float


def best_line(values: Sequence[float], signs: Sequence[int]) -> Line:
    """The continuous line of ``len(signs)`` pieces, with slopes of these signs or flat, of the
    least squared error; its knots at twentieths of the steps."""
    y = np.asarray(values, np.float64)
    n, pieces = len(y), len(signs)
    x = np.linspace(0.0, 1.0, n)
    best = Line((), (), inf)
    for knots in combinations(_KNOTS, pieces - 1):
        edges = (0.0, *knots, 1.0)
        columns = [np.clip(x, a, b) - a for a, b in pairwise(edges)]
        slopes, error = _fit(y, columns, signs)
        bic = n * log(max(error, 1e-12) / n) + (2 * pieces) * log(n)
        if bic < best.bic:
            best = Line(knots, slopes, bic)
    return best


def _fit(
    y: np.ndarray, columns: list[np.ndarray], signs: Sequence[int]
) -> tuple[tuple[float, ...], float]:
    """Slopes of the wanted signs, and the squared error: of least squares with every set of pieces
    that are not flat, the best that keeps the signs."""
    best = (0.0,) * len(signs), float(((y - y.mean()) ** 2).sum())
    for count in range(1, len(signs) + 1):
        for used in combinations(range(len(signs)), count):
            a = np.stack([np.ones_like(y), *(columns[i] for i in used)], 1)
            found = np.linalg.lstsq(a, y, rcond=None)[0]
            if any(found[1 + j] * signs[i] < 0 for j, i in enumerate(used)):
                continue
            error = float(((a @ found - y) ** 2).sum())
            if error < best[1]:
                slopes = [0.0] * len(signs)
                for j, i in enumerate(used):
                    slopes[i] = float(found[1 + j])
                best = tuple(slopes), error
    return best


def monotone(values: Sequence[float]) -> Line:
    """The best line of one to three pieces that only rises or only falls."""
    shapes = [[sign] * count for sign in (1, -1) for count in (1, 2, 3)]
    return min((best_line(values, shape) for shape in shapes), key=lambda line: line.bic)


def three_phases(lengths: Sequence[float], correct: Sequence[float]) -> dict:
    """The rule for one run: {observed, segmented and monotone (BIC), knots, slopes, accuracy of the
    first and the last piece}."""
    if len(lengths) < 30 or len(lengths) != len(correct):
        raise InvalidRequest(
            f"steps: got {len(lengths)} lengths and {len(correct)} accuracies, wanted as many of "
            "both and 30 or more"
        )
    segmented, plain = best_line(lengths, (1, -1, 1)), monotone(lengths)
    n = len(lengths)
    first, last = (round(k * n) for k in segmented.knots) if segmented.knots else (n, 0)
    accuracy = float(np.mean(correct[:first])), float(np.mean(correct[last:]))
    real = segmented.slopes[0] > 0 > segmented.slopes[1] and segmented.slopes[2] > 0
    observed = real and segmented.bic < plain.bic and accuracy[1] > accuracy[0]
    return {
        "observed": bool(observed),
        "segmented": segmented.bic,
        "monotone": plain.bic,
        "knots": segmented.knots,
        "slopes": segmented.slopes,
        "accuracy": accuracy,
    }


def against_log_steps(steps: Sequence[int], values: Sequence[float]) -> tuple[float, float, float]:
    """Intercept, slope and R² of ``values`` against the natural logarithm of ``steps``; R² is 0
    where the values do not differ."""
    x, y = np.log(np.asarray(steps, np.float64)), np.asarray(values, np.float64)
    if len(x) < 3 or np.ptp(x) == 0:
        raise InvalidRequest(f"steps: got {len(x)} measurements, wanted three or more that differ")
    slope, intercept = np.polyfit(x, y, 1)
    spread = float(((y - y.mean()) ** 2).sum())
    error = float(((y - intercept - slope * x) ** 2).sum())
    return float(intercept), float(slope), 1 - error / spread if spread else 0.0


def main(argv: list[str]) -> None:
    """Print what the runs say."""
    p = argparse.ArgumentParser(prog="musespark lab curve", description=__doc__.split("\n")[0])
    p.add_argument("runs", nargs="+", help="folders of `musespark lab rl`, one for each seed")
    p.add_argument("--json", metavar="OUT", help="write the findings here")
    args = p.parse_args(argv)
    check_targets({"--json": args.json})
    found = []
    for run in args.runs:
        found.append({"run": str(run), **_found(_rows(Path(run) / "rl.jsonl"))})
        print(_told(found[-1]))
    seen = sum(f["observed"] for f in found)
    verdict = "observed" if seen >= _SEEDS_NEEDED and len(found) >= 3 else "not observed"
    print(f"three phases in {seen} of {len(found)} runs: {verdict}")
    if args.json:
        write_whole(Path(args.json), f"{json.dumps(found, indent=1)}\n".encode())


def _found(rows: Sequence[dict]) -> dict:
    """What one run says; ``pass_at_1`` and ``pass_at_16`` by level, for levels differ in how hard
    they are."""
    steps = [r for r in rows if "pass_at_1" not in r]
    found = three_phases([r["tokens"] for r in steps], [r["correct"] for r in steps])
    measured = [r for r in rows if "pass_at_1" in r and r["step"] > 0]
    for level in dict.fromkeys(r["level"] for r in measured):
        mine = [r for r in measured if r["level"] == level]
        if len(mine) < 3:
            continue
        for name in ("pass_at_1", "pass_at_16"):
            fit = against_log_steps([r["step"] for r in mine], [r[name] for r in mine])
            found.setdefault(name, {})[level] = dict(zip(("at_1", "slope", "r2"), fit, strict=True))
    return found


def _told(f: dict) -> str:
    slopes = ", ".join(f"{s:+.1f}" for s in f["slopes"])
    told = (
        f"{f['run']}: BIC segmented {f['segmented']:.1f}, monotone {f['monotone']:.1f}; "
        f"slopes {slopes}; accuracy {f['accuracy'][0]:.3f} to {f['accuracy'][1]:.3f}"
    )
    for name in ("pass_at_1", "pass_at_16"):
        for level, fit in f.get(name, {}).items():
            told += f"; {name} {level} {fit['slope']:+.3f} a factor of e, R² {fit['r2']:.2f}"
    return told


def _rows(path: Path) -> list[dict]:
    """The lines of a log. A run that was ended went on from its last checkpoint: of the steps and
    measurements that it wrote twice, the later."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # but one that is being written
        rows = [json.loads(line) for line in lines]
        return [*{(row["step"], "pass_at_1" in row): row for row in rows}.values()]
    except FileNotFoundError:
        raise InvalidRequest(f"RUN: there is no {path}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFile(f"{path}: {error!r} in a line of steps or measurements") from None
