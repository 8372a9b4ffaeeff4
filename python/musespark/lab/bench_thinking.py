"""``musespark lab bench-thinking [MODEL]``: what may end a thought, and several agents, compared on
held-out items.

Nothing that can be read off one reply is generated twice: each item is answered once at each effort
with nothing to stop it, its thought is closed at every sentence and at every budget (lab.closes),
and rules and thresholds are read off these closes (lab.stops). The engine itself runs what changes
the words of a thought, what ships, and the best of each family, for wall time; a row says on how
many items both agree. Runs compute their prompts anew, so that none of them finds another's work.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InvalidRequest
from ..weights.files import write_whole
from .arguments import at_least, check_targets, chosen_of, filled
from .backends import Reply, right
from .bench_report import charts, markdown
from .closes import HARD, LANDING, MESSAGE, End, Trace, Tracer
from .crowd import (
    MOST,
    VOTE,
    Sampler,
    contemplate,
    contemplated,
    crowd_rows,
    sampled,
    timed,
)
from .evaluate import dump_record, items_for
from .item import EFFORTS, LEVELS, Item
from .items_file import read_problems
from .paired import Outcomes, Resampled, difference, rows
from .progress import Bar
from .stops import CONFIDENT, FULL, HALF, STABLE, Policy, budgets_of, by_budget, read_off, watched
from .tasks import EVALUATED, pictures

TASKS = tuple(task for task in EVALUATED if task not in pictures.TASKS)
FIXED = ("none", *EFFORTS)
#: Efforts at which every policy is compared, and those at which budgets are.
COMPARED, BUDGETED = ("high", "xhigh"), ("medium", "high", "xhigh")
_ITEMS = 4000
#: Points of accuracy that may be lost: of a family the setting that saves most then is run.
MOST_LOST = 0.5
#: Questions asked alone, for the wall time of several agents.
_ALONE = 24


def main(argv: Sequence[str]) -> None:
    """Runs the command; the arguments are those after its name."""
    args = _arguments(argv)
    items = _items(args)
    print(f"{len(items)} items at each effort")
    begin = time.monotonic()
    load = {"quantize": args.quantize, "kv": args.kv, "threads": args.threads}
    tracer = Tracer(args.model, prefix_cache=False, **load)
    try:
        bench = Bench(tracer, items, args.max_new_tokens)
        report = {**_described(tracer, args), "seed": args.seed, "rows": [], "agents": []}
        if items:
            report |= bench.report(args.seed)
        if args.dump:
            lines = (json.dumps(one, ensure_ascii=False) + "\n" for one in bench.dump())
            write_whole(Path(args.dump), "".join(lines).encode())
    finally:
        tracer.close()
    _write(args, report)
    if args.contemplate:
        sampler = Sampler(args.model, **load)
        try:
            report["agents"] = _agents(sampler, items, args)
        finally:
            sampler.close()
    report["total_seconds"] = round(time.monotonic() - begin, 1)
    _write(args, report)
    print(markdown(report, []))


# ---- what is asked --------------------------------------------------------------------------


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="musespark lab bench-thinking", description="What may end a thought, compared."
    )
    add = parser.add_argument
    add("model", nargs="?", help="model folder, file or hub id (default: Spark Nano)")
    add(
        "--n",
        type=int,
        help=f"items, of all tasks and levels alike (default: {_ITEMS}; 0: agents alone)",
    )
    add("--contemplate", type=int, default=1000, metavar="N", help="hard items for several agents")
    add("--seed", type=int, default=2026)
    add("--tasks", help=f"all (the default), or some of {', '.join(TASKS)}")
    add("--levels", help="all (the default), or some of easy,middle,hard")
    add("--items", metavar="FILE", help="your own items (JSON lines), at all efforts")
    add("--max-new-tokens", type=int, default=700)
    add("--quantize", default="auto", choices=("auto", "none", "q8", "q4"))
    add("--kv", default="auto", choices=("auto", "f32", "kv8", "kv8v4", "kv4"))
    add("--threads", type=int)
    add("--json", metavar="OUT", help="write the rows here")
    add("--dump", metavar="FILE", help="write each item with its replies and their closes")
    add("--report", metavar="FILE.md", help="write what was asked and measured, with plots")
    args = parser.parse_args(argv)
    if args.n == 0 and args.contemplate == 0:
        raise InvalidRequest("--n: got 0 with --contemplate 0, which asks nothing")
    written = {f"--{name}": getattr(args, name) for name in ("json", "dump", "report")}
    check_targets(written, {"--items": args.items})
    filled(args, {"n": _ITEMS, "tasks": "all", "levels": "all"})
    for name, least in (("n", 0), ("contemplate", 0), ("max_new_tokens", 1)):
        at_least(least, getattr(args, name), f"--{name.replace('_', '-')}")
    return args


def _items(args: argparse.Namespace) -> list[Item]:
    if args.items:
        items = read_problems(Path(args.items))
    else:
        tasks = chosen_of(args.tasks, TASKS, "--tasks")
        items = spread(tasks, chosen_of(args.levels, LEVELS, "--levels"), args.n, args.seed)
    for item in items:
        if item.pictures and item.tools:
            raise InvalidRequest("--items: got a picture with tools, allowed is one of them")
    return items


def spread(
    tasks: list[str], levels: list[str], n: int, seed: int, *, calibration: bool = False
) -> list[Item]:
    """``n`` evaluation items, as many of each task and level as there are; fewer where all of them
    together have fewer. ``calibration``: those that thresholds are calibrated on, else the others.
    """
    each = -(-n // (len(tasks) * len(levels)))
    while True:
        found = items_for(tasks, levels, COMPARED[:1], each, seed, calibration=calibration)
        have = Counter((item.task, item.level) for item in found)
        larger = [count for count in have.values() if count == each]
        if len(found) >= n or not larger:
            break
        each += -(-(n - len(found)) // len(larger))
    seen: Counter[tuple[str, str]] = Counter()
    ranks = []
    for item in found:
        ranks.append(seen[item.task, item.level])
        seen[item.task, item.level] += 1
    kept = sorted(range(len(found)), key=lambda i: ranks[i])[:n]
    return [found[i] for i in sorted(kept)]


# ---- policies -------------------------------------------------------------------------------


class Bench:
    """The comparison of policies on ``items``, thoughts and answers of at most ``limit`` tokens."""

    def __init__(self, tracer: Tracer, items: Sequence[Item], limit: int):
        self._tracer, self.items, self._limit = tracer, items, limit
        self.outcomes: list[Outcomes] = []
        self.replies: dict[str, list[Reply]] = {}
        self.traces: dict[str, list[Trace]] = {}

    def report(self, seed: int) -> dict[str, Any]:
        """Rows, comparisons of budgets, and the median lengths they are fractions of."""
        for effort in FIXED:
            self._run(Policy(FULL, FULL, {"thinking_policy": "off"}, None), effort)
        full = {one.effort: one for one in self.outcomes}
        medians = {effort: float(np.median(full[effort].thinking)) for effort in BUDGETED}
        for effort in BUDGETED:
            self._read(effort, medians[effort])
        model = self._tracer.model
        for effort in COMPARED:
            for policy in watched(model.tokenizer, model.info.vocab):
                self._run(policy, effort)
            self._run_best(full[effort])
        stable = {e: np.array([t.stable for t in self.traces[e]]) for e in COMPARED}
        drawn = Resampled(len(self.items), seed)
        return {
            "seed": seed,
            "medians": medians,
            "rows": rows(self.outcomes, full, stable, drawn),
            "comparisons": self._comparisons(drawn),
        }

    def _asked(self, effort: str) -> list[Item]:
        return [replace(item, effort=effort) for item in self.items]

    def _run(self, policy: Policy, effort: str) -> None:
        """The engine's own run; it takes the place of what was read off traces."""
        items, begin = self._asked(effort), time.monotonic()
        bar = Bar(f"{policy.name}, {effort}")
        replies = self._tracer.reply(items, self._limit, options=policy.options, progress=bar)
        seconds = time.monotonic() - begin
        ends = [
            End(right(item, reply), reply.thinking_tokens, reply.probe_tokens)
            for item, reply in zip(items, replies, strict=True)
        ]
        stops = dict(Counter(reply.stopped for reply in replies).most_common())
        agreed = None
        if policy.read is not None:
            known = map(policy.read, self.traces[effort])
            agreed = sum(a == b for a, b in zip(ends, known, strict=True))
        if policy.family == FULL:
            self.replies[effort] = replies
        self._take(outcomes_of(policy, effort, ends, seconds, agreed, stops))

    def _read(self, effort: str, median: float) -> None:
        """The thoughts' closes, and what is read off them."""
        compared, known = effort in COMPARED, budgets_of(median)
        if not compared:
            known = {HALF: known[HALF]}
        self.traces[effort] = self._tracer.trace(
            self._asked(effort),
            self.replies[effort],
            self._limit,
            trials=compared,
            budgets=[one for each in known.values() for one in each],
            progress=Bar(f"closes, {effort}"),
        )
        policies = read_off(known) if compared else by_budget(known)
        for policy in policies:
            ends = list(map(policy.read, self.traces[effort]))
            self._take(outcomes_of(policy, effort, ends))
        self._run(next(p for p in policies if p.name == f"{LANDING} {HALF:g}"), effort)

    def _take(self, found: Outcomes) -> None:
        known = [(one.policy, one.effort) for one in self.outcomes]
        if (found.policy, found.effort) in known:
            self.outcomes[known.index((found.policy, found.effort))] = found
        else:
            self.outcomes.append(found)

    def _run_best(self, full: Outcomes) -> None:
        policies = {policy.name: policy for policy in read_off({})}
        for family in (CONFIDENT, STABLE):
            mine = [
                one for one in self.outcomes if (one.family, one.effort) == (family, full.effort)
            ]
            self._run(policies[best(mine, full).policy], full.effort)

    def _comparisons(self, drawn: Resampled) -> list[dict[str, Any]]:
        """Our budget against other engines' at the same length."""
        known = {(one.policy, one.effort): one for one in self.outcomes}
        return [
            difference(known[f"{LANDING} {HALF:g}", e], known[f"{other} {HALF:g}", e], drawn)
            for e in BUDGETED
            for other in (HARD, MESSAGE)
        ]

    def dump(self) -> Iterable[dict[str, Any]]:
        """Each item at each effort: prompt, gold, raw output, its trials, and by policy [right,
        thinking tokens, probe tokens]."""
        for effort, replies in self.replies.items():
            ends = {one.policy: one for one in self.outcomes if one.effort == effort}
            traces = self.traces.get(effort)
            for k, (item, reply) in enumerate(zip(self._asked(effort), replies, strict=True)):
                line = dump_record(item, reply)
                if effort in COMPARED and traces:
                    line["stable_oracle_tokens"] = traces[k].stable
                    line["trials"] = [self._trial(one) for one in traces[k].trials]
                line["ends"] = {
                    name: [bool(one.right[k]), int(one.thinking[k]), int(one.probe[k])]
                    for name, one in ends.items()
                }
                yield line

    def _trial(self, trial: Any) -> dict[str, Any]:
        return {
            "thinking_tokens": trial.thinking,
            "answer": self._tracer.model.tokenizer.decode(list(trial.answer)),
            "confidence": round(float(trial.confidence(len(trial.logprobs))), 5),
            "right": trial.right,
            "stated": trial.stated,
        }


def outcomes_of(
    policy: Policy,
    effort: str,
    ends: Sequence[End],
    seconds: float | None = None,
    agreed: int | None = None,
    stops: dict[str, int] | None = None,
) -> Outcomes:
    """``ends`` of one policy as arrays."""
    columns = zip(*((end.right, end.thinking, end.probe) for end in ends), strict=True)
    marks, thinking, probe = (np.array(column) for column in columns)
    name, family = policy.name, policy.family
    return Outcomes(name, family, effort, marks, thinking, probe, seconds, agreed, stops or {})


def best(family: Sequence[Outcomes], full: Outcomes) -> Outcomes:
    """The setting that saves most of those that lose at most MOST_LOST points to ``full``; where
    all lose more, the one that loses least. Chosen on these very items, in its favour."""

    def lost(one: Outcomes) -> float:
        return 100 * (int(full.right.sum()) - int(one.right.sum())) / len(full.right)

    kept = [one for one in family if lost(one) <= MOST_LOST]
    return min(kept, key=lambda one: one.tokens.sum()) if kept else min(family, key=lost)


# ---- several agents -------------------------------------------------------------------------


def _agents(sampler: Sampler, items: Sequence[Item], args: argparse.Namespace) -> list[dict]:
    """Rows of several agents on the hard items, at high effort."""
    hard = [i for i in items if i.level == LEVELS[-1]] or items
    hard = [replace(i, effort="high") for i in hard]
    if not args.items and len(hard) < args.contemplate:
        tasks = chosen_of(args.tasks, TASKS, "--tasks")
        hard = spread(tasks, [LEVELS[-1]], args.contemplate, args.seed)
    hard = hard[: args.contemplate]
    alone, limit, seed = hard[:_ALONE], args.max_new_tokens, args.seed
    crowds = list(sampled(sampler.pool(hard, MOST, limit, seed, Bar("samples"))))

    def pooled(agents: int) -> Callable[[Item], object]:
        return lambda item: sampler.pool([item], agents, limit, seed)

    for k, crowd in enumerate(crowds):
        if crowd.aggregate == VOTE:
            crowds[k] = timed(crowd, alone, pooled(crowd.agents))

    def thought(agents: int, aggregate: str) -> Callable[[Item], object]:
        return lambda item: contemplate(sampler.model, item, agents, aggregate, limit, seed)

    found = contemplated(sampler.model, hard, limit, seed, Bar("contemplating"))
    crowds += [timed(one, alone, thought(one.agents, one.aggregate)) for one in found]
    return crowd_rows(crowds, seed)


# ---- what is written ------------------------------------------------------------------------


def _described(tracer: Tracer, args: argparse.Namespace) -> dict[str, Any]:
    info = tracer.model.info
    return {
        "source": info.source,
        "parameters": info.parameters,
        "weights": " + ".join(sorted(info.weight_formats)),
        "kv": info.kv,
        "threads": info.threads,
        "max_new_tokens": args.max_new_tokens,
    }


def _write(args: argparse.Namespace, report: dict[str, Any]) -> None:
    if args.json:
        write_whole(Path(args.json), f"{json.dumps(report, indent=1)}\n".encode())
    if args.report:
        path = Path(args.report)
        drawn = {f"{path.stem}-{name}.svg": chart for name, chart in charts(report).items()}
        for name, chart in drawn.items():
            write_whole(path.with_name(name), chart.svg().encode())
        write_whole(path, markdown(report, list(drawn)).encode())
