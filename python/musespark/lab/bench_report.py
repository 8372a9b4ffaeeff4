"""What ``bench-thinking`` measured, as a page: what was asked, whether it is met, tables, plots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from .charts import Chart, Series
from .closes import HARD, LANDING, MESSAGE
from .crowd import CONSENSUS
from .stops import (
    AUTO,
    CONFIDENT,
    FIRST_STATED,
    FULL,
    HALF,
    MARGIN,
    NO_WAIT,
    STABLE,
    TRIAL_ORACLE,
)

Row = dict[str, Any]
#: By effort: the least share of thinking that ``auto`` is to save, in absolute terms.
_SAVED = {"high": 0.34, "xhigh": 0.45}
_ELSEWHERE = (
    ("asked 1, 2, 5% premature exits: at most half a point more", "`musespark lab calibrate`"),
    ("signals ≤ 1% of time, probes ≤ 5% (1B shape) and ≤ 15% (Nano)", "`benchmarks/thinking.py`"),
    ("a step of 8 agents over 2k tokens within 1.25 × the roofline, and memory", "benchmarks"),
    ("`wall(8)` on the 1B shape; a deadline within 5%", "benchmarks and tests of contemplating"),
    ("speculation: identical output, ≥ 1.8×, never below 0.97×", "`benchmarks/speculation.py`"),
    ("failures of other engines, as tests", "`tests/python/test_thinking_failures.py`"),
)
#: The colour of a family's points.
_SHADES = {
    CONFIDENT: "#0072B2",
    STABLE: "#56B4E9",
    MARGIN: "#009E73",
    NO_WAIT: "#CC79A7",
    FIRST_STATED: "#E69F00",
    LANDING: "#882255",
    HARD: "#999999",
    MESSAGE: "#DDCC77",
    TRIAL_ORACLE: "#44AA99",
}
_HEAD = ("policy", "accuracy", "points lost", "thinking", "trials", "saved", "of oracle's saving",
         "above the line", "seconds")  # fmt: skip
_METHOD = """\
Every policy is asked the same items, decoding is greedy. `thinking` and `trials` are mean tokens
(closing messages and all rows of trial answers counted), `saved` is their sum against `full`.
*Stable oracle*: the earliest sentence end from which every forced close answers right (as
`musespark lab eval` counts it; what ends wrong counts in full). *Above the line*: points of
accuracy over the line through the fixed efforts at as many tokens. Intervals are 95%, from a paired
bootstrap over the items (2,000 draws, fixed seed); behind the points lost are the items lost and
gained. `seconds` is the wall time of all items as one stream, where the engine ran them; other rows
are read off closes of the full thoughts, and where both were done the row says on how many items
they agree. The best setting of `confident` and of `stable` was chosen on these very items, in their
favour.
"""


@dataclass(frozen=True)
class Claim:
    """``met``: by what was measured; None where this command does not measure it, or cannot.
    ``sure``: by all of its 95% interval, where it has one."""

    asked: str
    measured: str
    met: bool | None
    sure: bool = True

    @property
    def verdict(self) -> str:
        if self.met is None:
            return "not measured here"
        if not self.met:
            return "not met"
        return "met" if self.sure else "met, but not by the whole interval"


def markdown(report: Row, plots: Sequence[str]) -> str:
    """The page; ``plots``: file names beside it."""
    rows = report["rows"]
    n = rows[0]["n"] if rows else 0
    head = (
        f"# Thinking, measured\n\n{report['source']}: {report['parameters']:,} parameters, weights "
        f"{report['weights']}, cache {report['kv']}, {report['threads']} threads; {n:,} held-out "
        f"items at each effort, seed {report['seed']}, at most {report['max_new_tokens']} tokens."
    )
    parts = [head, f"## Asked and measured\n\n{_claims(report)}"]
    if plots:
        parts.append("\n".join(f"![{name}]({name})" for name in plots))
    for effort in dict.fromkeys(r["effort"] for r in rows if r["family"] != FULL):
        parts.append(f"## Policies at {effort}\n\n{_policies(rows, effort)}")
    if rows:
        parts.append(f"## Fixed efforts\n\n{_efforts(rows)}")
    if report["agents"]:
        parts.append(f"## Several agents, hard items\n\n{_agents(report['agents'])}")
    parts.append(f"## How\n\n{_METHOD}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


# ---- tables ---------------------------------------------------------------------------------


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    told = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in told)


def _number(row: Row, name: str, unit: str = "", factor: float = 1.0) -> str:
    """A value with its interval; empty where there is none."""
    value = row.get(name)
    if value is None:
        return ""
    low, high = (factor * v for v in row[f"{name}_interval"])
    return f"{factor * value:.1f}{unit} [{low:.1f}, {high:.1f}]"


def _policies(rows: Sequence[Row], effort: str) -> str:
    mine = [r for r in rows if r["effort"] == effort]
    first = [r for name in (FULL, AUTO) for r in mine if r["policy"] == name]
    lines = []
    for row in [*first, *(r for r in mine if r not in first)]:
        name = row["policy"]
        if row["agreed"] is not None:
            name += f" (as read off on {row['agreed']} of {row['n']})"
        if row["policy"] == AUTO:
            name += f" ({', '.join(f'{why} {n}' for why, n in row['stops'].items())})"
        lines.append((
            name,
            _number(row, "accuracy", "%", 100),
            f"{_number(row, 'lost_points')} (−{row['lost']} +{row['gained']})",
            f"{row['thinking_tokens']:.1f}",
            f"{row['probe_tokens']:.1f}",
            _number(row, "saved", "%", 100),
            _number(row, "oracle_share", "%", 100),
            _number(row, "above_line"),
            "" if row["seconds"] is None else f"{row['seconds']:.1f}",
        ))  # fmt: skip
    oracle = mine[0]["stable_oracle_tokens"]
    note = "" if oracle is None else f"\n\nStable oracle: {oracle:.1f} tokens."
    return _table(_HEAD, lines) + note


def _efforts(rows: Sequence[Row]) -> str:
    lines = [
        (r["effort"], _number(r, "accuracy", "%", 100), f"{r['thinking_tokens']:.1f}",
         f"{r['seconds']:.1f}")
        for r in rows
        if r["policy"] == FULL
    ]  # fmt: skip
    return _table(("effort", "accuracy", "thinking tokens", "seconds"), lines)


def _agents(rows: Sequence[Row]) -> str:
    lines = [
        (str(r["agents"]), r["aggregate"], _number(r, "accuracy", "%", 100),
         _number(r, "gain_points"), f"{r['tokens']:.0f}",
         "" if r["seconds"] is None else f"{1000 * r['seconds']:.1f} ms")
        for r in rows
    ]  # fmt: skip
    head = (
        "agents",
        "aggregate",
        "accuracy",
        "points over one agent",
        "tokens",
        "a question alone",
    )
    return f"{rows[0]['n']:,} items.\n\n{_table(head, lines)}"


# ---- claims ---------------------------------------------------------------------------------


def _claims(report: Row) -> str:
    found = [*claims(report), *(Claim(asked, where, None) for asked, where in _ELSEWHERE)]
    lines = [(one.asked, one.measured, one.verdict) for one in found]
    return _table(("asked", "measured", ""), lines)


def claims(report: Row) -> Iterator[Claim]:
    """What the command can say of each line that was asked for."""
    rows = {(r["policy"], r["effort"]): r for r in report["rows"]}
    if rows:
        for effort, least in _SAVED.items():
            yield from _of_auto(rows[AUTO, effort], effort, least)
        yield from _of_budgets(rows, report["comparisons"])
        yield from _of_efforts([r for r in report["rows"] if r["policy"] == FULL])
    yield from _of_agents(report["agents"])


def _at_least(row: Row, name: str, least: float) -> tuple[bool | None, bool]:
    """Whether a value is, and its whole interval."""
    if row[name] is None:
        return None, False
    return row[name] >= least, row[f"{name}_interval"][0] >= least


def _of_auto(row: Row, effort: str, least: float) -> Iterator[Claim]:
    share, share_sure = _at_least(row, "oracle_share", 0.75)
    kept = row["lost_points"] <= 0.5
    kept_sure = row["lost_points_interval"][1] <= 0.5
    told = _number(row, "oracle_share", "%", 100) or "the oracle saves nothing"
    yield Claim(
        f"`auto` at {effort}: ≥ 75% of the stable oracle's saving, ≤ 0.5 points lost",
        f"{told}, {_number(row, 'lost_points')} points lost",
        share and kept,
        share_sure and kept_sure,
    )
    asked = f"`auto` at {effort}: ≥ {least:.0%} saved"
    yield Claim(asked, _number(row, "saved", "%", 100), *_at_least(row, "saved", least))
    yield Claim(
        f"`auto` at {effort} above the line through the fixed efforts",
        f"{_number(row, 'above_line')} points",
        row["above_line"] > 0,
        row["above_line_interval"][0] > 0,
    )


def _of_budgets(rows: dict[tuple[str, str], Row], compared: Sequence[Row]) -> Iterator[Claim]:
    ours, full = rows[f"{LANDING} {HALF:g}", "xhigh"], rows[FULL, "xhigh"]
    share = ours["correct"] / full["correct"] if full["correct"] else None
    lost = _number(ours, "lost_points")
    yield Claim(
        "half the median length as budget, xhigh: ≥ 98% of full accuracy",
        "nothing is right" if share is None else f"{share:.1%}; {lost} points lost",
        None if share is None else share >= 0.98,
        ours["lost_points_interval"][1] <= 2 * full["accuracy"],  # 2% of it, in points
    )
    names = {"policy": f"{LANDING} {HALF:g}", "against": f"{HARD} {HALF:g}", "effort": "medium"}
    one = next(c for c in compared if {k: c[k] for k in names} == names)
    low, high = one["interval"]
    yield Claim(
        "the same at medium: ≥ 5 points above the hard cut",
        f"{one['points']:.1f} [{low:.1f}, {high:.1f}]",
        one["points"] >= 5,
        low >= 5,
    )


def _of_efforts(full: Sequence[Row]) -> Iterator[Claim]:
    known = [r for r in full if r["effort"] != "none"]
    tokens = [r["thinking_tokens"] for r in known]
    ratios = [b / a if a else float("inf") for a, b in pairwise(tokens)]
    told = ", ".join(f"{r['effort']} {r['thinking_tokens']:.1f}" for r in known)
    yield Claim(
        "tokens monotone over efforts, neighbours ≥ 1.5× apart", told, all(r >= 1.5 for r in ratios)
    )


def _of_agents(agents: Sequence[Row]) -> Iterator[Claim]:
    if not agents:
        yield Claim("several agents on hard items", "none were asked (--contemplate 0)", None)
        return
    known = {(r["aggregate"], r["agents"]): r for r in agents}
    eight, one = known["vote", 8], known["vote", 1]
    yield Claim(
        "hard items: 8 agents ≥ 8 points above 1",
        f"vote: {_number(eight, 'gain_points')}",
        *_at_least(eight, "gain_points", 8),
    )
    ratio = eight["seconds"] / one["seconds"]
    yield Claim("`wall(8)` ≤ 2 × `wall(1)` on Nano", f"vote: {ratio:.2f} ×", ratio <= 2)
    until = next(r for r in agents if r["aggregate"] == CONSENSUS)
    yield Claim(
        "tokens against vote until consensus",
        f"vote of 8: {eight['tokens']:.0f} tokens for {eight['accuracy']:.1%}; until consensus: "
        f"{until['tokens']:.0f} for {until['accuracy']:.1%}",
        None,
    )
    ahead = _ahead_of_vote(known["refine", 8], [r for r in agents if r["aggregate"] == "vote"])
    told = f"{ahead:.1f} points at 8 agents"
    yield Claim("`refine` ≥ 2 points above vote at equal tokens", told, ahead >= 2)


def _ahead_of_vote(refined: Row, votes: Sequence[Row]) -> float:
    """Points above the line through the votes of different sizes, at as many tokens."""
    places = sorted((r["tokens"], r["accuracy"]) for r in votes)
    level = np.interp(refined["tokens"], *zip(*places, strict=True))
    return 100 * (refined["accuracy"] - float(level))


# ---- plots ----------------------------------------------------------------------------------


def charts(report: Row) -> dict[str, Chart]:
    """By name: accuracy against tokens at each effort, wall time against agents."""
    rows = report["rows"]
    fixed = _fixed([r for r in rows if r["policy"] == FULL])
    drawn = {
        effort: Chart(
            f"Accuracy against tokens of thought, {effort}",
            "thinking and trial tokens, mean",
            "right, %",
            [fixed, *_families([r for r in rows if r["effort"] == effort and r["policy"] != FULL])],
        )
        for effort in (_SAVED if rows else ())
    }
    timed = [r for r in report["agents"] if r["seconds"] is not None]
    if timed:
        drawn["agents"] = Chart(
            "Wall time of a question asked alone",
            "agents",
            "ms",
            [
                Series(name, [(r["agents"], 1000 * r["seconds"]) for r in timed
                              if r["aggregate"] == name], line=True)
                for name in dict.fromkeys(r["aggregate"] for r in timed)
            ],
        )  # fmt: skip
    return drawn


def _point(row: Row) -> tuple[float, float]:
    return row["thinking_tokens"] + row["probe_tokens"], 100 * row["accuracy"]


def _bar(row: Row) -> tuple[float, float]:
    low, high = row["accuracy_interval"]
    return 100 * low, 100 * high


def _fixed(full: Sequence[Row]) -> Series:
    order = sorted(full, key=_point)
    points = [_point(r) for r in order]
    return Series(
        "fixed efforts", points, line=True, bars=[_bar(r) for r in order], color="#000000"
    )


def _families(rows: Sequence[Row]) -> Iterator[Series]:
    """A series of points for each family; ``auto`` first, alone with its error bar."""
    auto = [r for r in rows if r["policy"] == AUTO]
    yield Series(AUTO, [_point(r) for r in auto], bars=[_bar(r) for r in auto], color="#D55E00")
    for name, color in _SHADES.items():
        mine = [_point(r) for r in rows if r["family"] == name]
        yield Series(name, mine, color=color)
