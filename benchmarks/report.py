"""From timed samples to figures: medians, shares of the machine's limits, ratios, tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

OURS = "musespark"
# Bandwidth may move by so much around one timing, and differ so much between two that are compared.
STEADY, COMPARABLE = 0.05, 0.10


@dataclass(frozen=True)
class Task:
    """What is timed. Prefill: ``tokens`` of one prompt. Else one step of ``rows`` sequences, over
    ``steps`` of them."""

    name: str
    tokens: int = 0
    rows: int = 1
    steps: int = 0

    @property
    def question(self) -> dict[str, Any]:
        if self.tokens:
            return {"test": "prefill", "tokens": self.tokens}
        return {"test": "step", "rows": self.rows, "steps": self.steps}

    @property
    def warm_up(self) -> Task:
        """The same with few steps: what is made at the first call is made at their first."""
        return replace(self, steps=min(self.steps, 4))

    @property
    def bound_by_memory(self) -> bool:
        return not self.tokens

    @property
    def unit(self) -> str:
        return "ms" if self.rows > 1 else "tokens/s"

    def value(self, seconds: float) -> float:
        """Tokens a second of one sequence, milliseconds of a step of several."""
        return seconds * 1e3 if self.rows > 1 else (self.tokens or 1) / seconds


@dataclass(frozen=True)
class Sample:
    """One timing. ``bandwidth``: bytes a second read right before and right after it, none where
    memory does not bound the test."""

    engine: str
    test: str
    round: int
    seconds: float
    bandwidth: tuple[float, float] | None = None

    @property
    def steady(self) -> bool:
        """Whether the machine's bandwidth stayed what it was."""
        if self.bandwidth is None:
            return True
        before, after = self.bandwidth
        return abs(after - before) <= STEADY * before

    @property
    def read(self) -> float:
        return 0.0 if self.bandwidth is None else sum(self.bandwidth) / 2


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of some rounds, and their number."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "n": len(values),
    }


def comparable(one: Sample, other: Sample) -> bool:
    """Whether two timings saw the same machine: both steady, at about the same bandwidth."""
    if not (one.steady and other.steady):
        return False
    return abs(one.read - other.read) <= COMPARABLE * max(one.read, other.read)


def paired_ratios(ours: Sequence[Sample], theirs: Sequence[Sample]) -> list[float]:
    """How many times as fast ours is, round by round, where both saw the same machine."""
    by_round = {sample.round: sample for sample in theirs}
    pairs = [(one, by_round[one.round]) for one in ours if one.round in by_round]
    return [other.seconds / one.seconds for one, other in pairs if comparable(one, other)]


@dataclass(frozen=True)
class Work:
    """What a shape asks: operations of each test by name; bytes a token reads by engine."""

    operations: Mapping[str, float]
    token_bytes: Mapping[str, int]
    vector_peak: float  # int8 operations a second in vector registers
    tile_peak: float = 0.0  # the same of AMX, 0 where there is none

    def least_seconds(self, task: Task, engine: str, bandwidth: float) -> float:
        """The larger of reading the weights and computing the operations at the machine's best."""
        computing = self.operations[task.name] / max(self.vector_peak, self.tile_peak, 1.0)
        return max(computing, self.token_bytes[engine] / bandwidth)


@dataclass
class Row:
    """One engine in one test. ``shares``: of the vector dot peak, of the tile peak (prefill), of
    read bandwidth, and of what both together allow (steps); None where that is not known."""

    engine: str
    test: str
    unit: str
    value: dict[str, float]
    kept: int
    unsteady: int
    shares: dict[str, float | None] = field(default_factory=dict)
    ratio: dict[str, float] | None = None


def _median(samples: Sequence[Sample], share: Callable[[Sample], float]) -> float:
    return statistics.median(share(sample) for sample in samples)


def shares(task: Task, engine: str, kept: Sequence[Sample], work: Work) -> dict[str, float | None]:
    """The median over samples of each share of the machine's limits."""
    if not task.bound_by_memory:
        done = work.operations[task.name]
        peaks = {"vector": work.vector_peak, "tile": work.tile_peak}
        return {
            name: _median(kept, lambda s, p=peak: done / s.seconds / p) if peak else None
            for name, peak in peaks.items()
        }
    size = work.token_bytes[engine]
    return {
        "bandwidth": _median(kept, lambda s: size / s.seconds / s.read),
        "roof": _median(kept, lambda s: work.least_seconds(task, engine, s.read) / s.seconds),
    }


def row(task: Task, engine: str, samples: Sequence[Sample], work: Work) -> Row | None:
    """The figures of one engine in one test; of unsteady samples only where there are no others.
    None without samples. ``samples`` are those of all engines and tests."""
    own = [s for s in samples if (s.engine, s.test) == (engine, task.name)]
    kept = [s for s in own if s.steady] or own
    if not own:
        return None
    ours = [s for s in samples if (s.engine, s.test) == (OURS, task.name)]
    ratios = paired_ratios(ours, own) if engine != OURS else []
    return Row(
        engine,
        task.name,
        task.unit,
        spread([task.value(s.seconds) for s in kept]),
        kept=len(kept),
        unsteady=sum(not s.steady for s in own),
        shares=shares(task, engine, kept, work),
        ratio=spread(ratios) if ratios else None,
    )


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Cells as lines: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def between(found: Mapping[str, float] | None, digits: int) -> str:
    """``[low..high]``, or nothing."""
    return "" if found is None else f"[{found['low']:.{digits}f}..{found['high']:.{digits}f}]"


def task_table(task: Task, rows: Sequence[Row]) -> str:
    """The engines of one test, the fastest peer's ratio last: ``ours is`` times as fast."""
    names = {"vector": "of dot peak", "tile": "of AMX peak", "bandwidth": "of bandwidth"}
    names |= {"roof": "of limit"}
    used = [n for n in names if any(r.shares.get(n) is not None for r in rows)]
    head = [task.name, task.unit, "", *(names[n] for n in used), "ours is", "", "unsteady"]
    lines = [head]
    for r in rows:
        digits = 2 if r.unit == "ms" else 1
        ratio = "" if r.ratio is None else f"{r.ratio['median']:.2f}x"
        cells = [f"{r.value['median']:.{digits}f}", between(r.value, digits)]
        cells += [percent(r.shares.get(n)) for n in used]
        lines.append([r.engine, *cells, ratio, between(r.ratio, 2), str(r.unsteady or "")])
    return aligned(lines)


def loads_table(infos: Mapping[str, Mapping[str, Any]]) -> str:
    """Format, bytes a token reads, seconds to load and to the first token, and peak memory."""
    head = ["", "version", "format", "MB/token", "load s", "first token s", "peak MB"]
    lines = [head]
    for name, info in infos.items():
        mega = [f"{info[key] / 1e6:.0f}" for key in ("model_bytes", "peak_bytes")]
        seconds = [f"{info[key]:.2f}" for key in ("load_s", "first_token_s")]
        lines.append([name, info["version"], info["format"], mega[0], *seconds, mega[1]])
    return aligned(lines)
