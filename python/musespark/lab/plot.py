"""``musespark lab plot RUN``: how a training run goes, as one SVG file.

Above the loss (its running mean) and the speed over tokens, below the loss of each task; the data
are RUN/log.jsonl and RUN/families.jsonl. Nothing but the package is needed, and a run may go on
meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import CorruptFile, InvalidRequest
from ..weights.files import write_whole
from .arguments import check_targets
from .charts import Chart, Series, sheet

_TOKENS = "million tokens"
_WIDTH, _HEIGHT = 1200, 300
_COLUMNS = 4  # of the tasks' charts
_SMALL = {"width": _WIDTH // _COLUMNS, "height": 200}


def main(argv: list[str] | None = None) -> None:
    """Read, draw, say where."""
    p = argparse.ArgumentParser(
        prog="musespark lab plot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("run", help="folder of the training run")
    p.add_argument("--out", metavar="FILE", help="default: RUN/plot.svg")
    args = p.parse_args(argv)
    run = Path(args.run)
    if not run.is_dir():
        raise InvalidRequest(f"RUN: there is no folder {run}")
    out = Path(args.out or run / "plot.svg")
    check_targets({"--out": str(out)})
    write_whole(out, drawn(run).encode())
    print(out)


def drawn(run: Path) -> str:
    """The SVG of a run. InvalidRequest where it has no log yet, CorruptFile naming the line of one
    that is none."""
    log = read_log(run / "log.jsonl")
    if not log:
        raise InvalidRequest(f"{run}: log.jsonl has no line yet")
    families = read_log(run / "families.jsonl")
    facts = f"step {log[-1]['step']:,}, {log[-1]['tokens'] / 1e6:,.1f} M tokens"
    large = [_curve(log, name, width=_WIDTH, height=_HEIGHT) for name in ("loss", "tokens_per_s")]
    small = [one for name in _names(families) for one in _curve(families, name, **_SMALL)]
    rows = [small[at : at + _COLUMNS] for at in range(0, len(small), _COLUMNS)]
    return sheet(f"{run.resolve().name}: {facts}", [*filter(None, large), *rows])


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log in which a run that went on from an earlier checkpoint wrote some steps
    again: of those the later. Empty where there is no file; a last line that is being written is
    left out. CorruptFile naming the line for one that is no log's."""
    if not path.is_file():
        return []
    kept: list[dict[str, Any]] = []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            one = json.loads(line)
            step, tokens = one["step"], one["tokens"]
            good = all(isinstance(v, int) for v in (step, tokens))
        except (ValueError, KeyError, TypeError, RecursionError):
            good = False
        if not good:
            raise CorruptFile(f"{path}:{number}: {line!r:.60} is no line with step and tokens")
        while kept and kept[-1]["step"] >= step:
            kept.pop()
        kept.append(one)
    return kept


def _names(families: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(k for line in families for k in line if k not in ("step", "tokens")))


def _curve(lines: Sequence[dict[str, Any]], name: str, **size: int) -> list[Chart]:
    """The finite numbers under ``name`` over the tokens; none where there is none."""
    points = [
        (line["tokens"] / 1e6, float(line[name]))
        for line in lines
        if isinstance(line.get(name), (int, float)) and math.isfinite(line[name])
    ]
    if not points:
        return []
    title = f"{name.replace('_per_', '/')}: {points[-1][1]:,.4g}"
    series = Series("", points, line=True, dots=len(points) == 1)
    return [Chart(title, _TOKENS, "", [series], from_zero=True, **size)]
