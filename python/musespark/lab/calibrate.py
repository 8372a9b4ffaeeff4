"""``musespark lab calibrate [MODEL]``: when a model's thoughts may end, for the rates of premature
exits that a user may accept.

Items are answered with nothing to end a thought, and their thoughts are closed on trial at every
sentence (lab.closes). At a border the thought *may end* where the close there answers right; ending
it elsewhere, of a reply that is right in the end, is *premature*: an answer is lost. Half of the
problems fit two logistic stoppers over the features that the core has at its trials
(musespark.thinking.stopper): one for borders where the thought may end, of replies that are right;
one for *hopeless* thoughts, whose reply will be wrong, left out where more is saved without it. The
other half calibrate one threshold, that either stops at. A file is for the efforts of its items.

What the threshold promises (split conformal prediction: Papadopoulos et al. 2002; Vovk, Gammerman
and Shafer 2005, chapter 4; as a bound of a loss of 0 or 1: arXiv:2208.02814): let the n problems it
is calibrated on and the next one be exchangeable. The *score* of a problem is the larger of the
stoppers' probabilities at its premature borders, the largest of these; -inf where it has none.
Stoppers that stop only above the ⌈(n + 1)(1 - rate)⌉-th smallest of the n scores exit a problem
prematurely, as sure or as hopeless, with a probability of at most ``rate``, over the draw of all
n + 1. So the unit is the problem, whose borders hang together; nothing is promised for problems of
another kind, nor for one given calibration. Closing words, which the engine writes where it gives a
thought up, are not in the closes.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import CorruptFile, InvalidRequest
from ..results import TrialAnswer
from ..thinking.stopper import FEATURES, Stopper, border_features
from ..thinking.thresholds import (
    Thresholds,
    find_thresholds,
    key_of,
    user_path,
    write_thresholds,
)
from .arguments import at_least, check_targets, chosen_of, filled
from .backends import Reply
from .bench_thinking import TASKS, spread
from .closes import Trace, Tracer
from .engine import ANY_EFFORT
from .item import EFFORTS, LEVELS, Item
from .items_file import read_problems
from .progress import Bar
from .stops import tried

#: Rates of premature exits that every file has a threshold for, where there are enough problems.
RATES = (0.01, 0.02, 0.05)
#: Added to a score, so that rounding cannot reach it: numpy's exp is not the core's.
_ABOVE = 1e-9
_RIDGE = 1.0
_MOST_STEPS = 100


def main(argv: Sequence[str]) -> None:
    """Runs the command; the arguments are those after its name."""
    args = _arguments(argv)
    items = _items(args)
    fitted, held = len(items) // 2, len(items) - len(items) // 2
    if threshold(np.zeros(held), args.rate) is None:
        least = 2 * math.ceil((1 - args.rate) / args.rate - 1e-9) - 1
        raise InvalidRequest(
            f"--rate: got {args.rate} with {len(items)} items, allowed are {least} items or more"
        )
    load = {"quantize": args.quantize, "kv": args.kv, "threads": args.threads}
    tracer = Tracer(args.model, **load)
    try:
        model = key_of(tracer.model._weights, tracer.model._again.kv)
        if not (args.out or args.replace):
            _refuse_less(model, items, "--items" if args.items else "--n")
        borders = watch(tracer, items, args.trials, args.every, args.max_new_tokens)
    finally:
        tracer.close()
    order = np.random.default_rng(args.seed).permutation(len(borders))
    first, second = ([borders[i] for i in half] for half in (order[:fitted], order[fitted:]))
    stopper, hopeless = fitted_stopper(first), fitted_hopeless(first)
    stoppers = [stopper] if hopeless is None else [stopper, hopeless]
    alone = saved([stopper], first, args.rate)
    if hopeless is not None and saved(stoppers, first, args.rate) < alone:
        stoppers, hopeless = [stopper], None
    scores = np.array([score(stoppers, one) for one in second])
    asked = {rate: threshold(scores, rate) for rate in sorted({*RATES, args.rate})}
    found = {rate: at for rate, at in asked.items() if at is not None}
    if not found:
        raise InvalidRequest(
            "calibrate: no rate gets a threshold: too many problems have a premature border of "
            "probability 1; more items are needed, or others"
        )
    thresholds = Thresholds(
        model=model,
        weights=dict(stopper.weights),
        bias=stopper.bias,
        thresholds=found,
        rate=args.rate if args.rate in found else None,
        trials=args.trials,
        every=args.every,
        problems=len(items),
        seed=args.seed,
        efforts=sorted({item.effort for item in items}),
        hopeless_weights=None if hopeless is None else dict(hopeless.weights),
        hopeless_bias=0.0 if hopeless is None else hopeless.bias,
    )
    path = Path(args.out) if args.out else user_path(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_thresholds(path, thresholds)
    print(_told(thresholds, sorted(asked.keys() - found.keys()), first, second))
    print(f"wrote {path}")


def _refuse_less(model: str, items: Sequence[Item], option: str) -> None:
    """InvalidRequest where ``auto`` has thresholds of more problems for the model already, or of
    other efforts that would have none."""
    try:
        there = find_thresholds(model)
    except (CorruptFile, InvalidRequest):
        return  # nothing that could be used
    if there is None:
        return
    instead = "--replace takes these for it, --out FILE writes elsewhere"
    if there.problems > len(items):
        raise InvalidRequest(
            f"{option}: got {len(items)} items, but what auto uses for this model now was "
            f"calibrated on {there.problems}; {instead}"
        )
    efforts = {item.effort for item in items}
    if not efforts >= {*there.efforts}:
        raise InvalidRequest(
            f"--efforts: got {', '.join(sorted(efforts))}, but auto has thresholds for "
            f"{', '.join(there.efforts)} now; {instead}"
        )


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="musespark lab calibrate",
        description="When a model's thoughts may end: what thinking_policy auto uses.",
    )
    add = parser.add_argument
    add("model", nargs="?", help="model folder, file or hub id (default: Spark Nano)")
    add("--rate", type=float, default=0.01, help="of premature exits that auto accepts")
    add("--n", type=int, help="problems, of all tasks and levels alike (default: 1000)")
    add("--items", metavar="FILE", help="your own items (JSON lines) instead of tasks")
    add("--tasks", help=f"all (the default), or some of {', '.join(TASKS)}")
    add("--levels", help="all (the default), or some of easy,middle,hard")
    add(
        "--efforts",
        default="high,xhigh",
        help="in turn, but for items with their own; default: none is set",
    )
    add("--trials", type=int, default=8, help="tokens of a trial answer")
    add("--every", type=int, default=16, help="thought tokens between two trials at least")
    add("--seed", type=int, default=2026)
    add("--max-new-tokens", type=int, default=700)
    add("--quantize", default="auto", choices=("auto", "none", "q8", "q4"))
    add("--kv", default="auto", choices=("auto", "f32", "kv8", "kv8v4", "kv4"))
    add("--threads", type=int)
    add("--out", metavar="FILE", help="write the thresholds here, not to the cache folder")
    add("--replace", action="store_true", help="thresholds of more problems too")
    args = parser.parse_args(argv)
    check_targets({"--out": args.out})
    filled(args, {"n": 1000, "tasks": "all", "levels": "all"})
    for name, least in (("n", 2), ("trials", 1), ("every", 1), ("seed", 0), ("max_new_tokens", 1)):
        at_least(least, getattr(args, name), f"--{name.replace('_', '-')}")
    if not 0 < args.rate < 1:
        raise InvalidRequest(f"--rate: got {args.rate}, allowed is a number in (0, 1)")
    return args


def _items(args: argparse.Namespace) -> list[Item]:
    """One item of each problem, at its own effort or the efforts in turn."""
    efforts = chosen_of(args.efforts, (*EFFORTS, ANY_EFFORT), "--efforts", EFFORTS)
    if args.items:
        items = read_problems(Path(args.items))
    else:
        tasks = chosen_of(args.tasks, TASKS, "--tasks")
        levels = chosen_of(args.levels, LEVELS, "--levels")
        items = spread(tasks, levels, args.n, args.seed, calibration=True)
    if any(item.pictures and item.tools for item in items):
        raise InvalidRequest("--items: got a picture with tools, allowed is one of them")
    return [
        item if args.items and item.effort else replace(item, effort=efforts[k % len(efforts)])
        for k, item in enumerate(items)
    ]


# ---- borders ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Borders:
    """Of one problem: where trials begin, in thought tokens before them (``at`` int64 [b]), their
    ``features`` float64 [b, features], whether the thought ``may_end`` there (bool [b]: the close
    is right), whether the reply is ``right``, its ``thinking`` tokens."""

    at: np.ndarray
    features: np.ndarray
    may_end: np.ndarray
    right: bool
    thinking: int

    @property
    def premature(self) -> np.ndarray:
        """bool [b]: where an end would lose an answer that is right without it."""
        return ~self.may_end & self.right


def watch(
    tracer: Tracer, items: Sequence[Item], tokens: int, every: int, limit: int
) -> list[Borders]:
    """The items' borders, with trials of ``tokens`` tokens at least ``every`` apart; thoughts and
    answers of at most ``limit`` tokens."""
    options = {"thinking_policy": "off", "signals": True}
    replies = tracer.reply(list(items), limit, options=options, progress=Bar("answering"))
    traces = tracer.trace(items, replies, limit, progress=Bar("closing"))
    return [
        borders_of(reply, trace, tokens, every)
        for reply, trace in zip(replies, traces, strict=True)
    ]


def borders_of(reply: Reply, trace: Trace, tokens: int, every: int) -> Borders:
    """What the closes of one reply say."""
    # Where the turn ends inside the thought its last border has nothing behind it to be watched.
    watched = 0 if reply.signals is None else len(reply.signals)
    made = [trial for trial in tried(trace, every) if trial.thinking < watched]
    answers = [
        TrialAnswer(t.thinking, repr(t.answer[:tokens]), float(t.confidence(tokens))) for t in made
    ]
    if reply.signals is None or not made:
        at, features = np.zeros(0, np.int64), np.zeros((0, len(FEATURES)))
    else:
        at, features = border_features(reply.signals, answers)
    may_end = np.array([trial.right for trial in made], bool)
    return Borders(at, features, may_end, trace.whole.right, trace.whole.thinking)


# ---- fitting ------------------------------------------------------------------------------------


def fitted_stopper(problems: Sequence[Borders]) -> Stopper:
    """Fitted on the borders of replies that are right. InvalidRequest where there are none."""
    right = [one for one in problems if one.right and len(one.at)]
    if not right:
        raise InvalidRequest("calibrate: no reply is right and has a border; more items are needed")
    return _fitted(right, [one.may_end for one in right])


def fitted_hopeless(problems: Sequence[Borders]) -> Stopper | None:
    """Fitted on all borders: how likely the reply will be wrong. None where all are right, or
    none is: then nothing tells them apart."""
    ended = [one for one in problems if len(one.at)]
    if len({one.right for one in ended}) < 2:
        return None
    return _fitted(ended, [np.full(len(one.at), not one.right) for one in ended])


def _fitted(problems: Sequence[Borders], labels: Sequence[np.ndarray]) -> Stopper:
    features = np.concatenate([one.features for one in problems])
    weights, bias = fit(features, np.concatenate(labels))
    return Stopper(dict(zip(FEATURES, weights.tolist(), strict=True)), bias)


def fit(
    features: np.ndarray, labels: np.ndarray, ridge: float = _RIDGE
) -> tuple[np.ndarray, float]:
    """Weights [m] and bias of a logistic regression of ``labels`` (bool [n]) on ``features``
    ([n, m]): Newton's method, each step halved until the loss falls.

    The penalty is ridge / 2 times the square of each weight on a feature scaled to deviation 1;
    1e-3 of it holds the bias where all labels are the same. A feature that never changes has weight
    0.
    """
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    scale = np.where(deviation > 1e-12, deviation, np.inf)
    x = np.hstack([(features - mean) / scale, np.ones((len(features), 1))])
    penalty = np.full(x.shape[1], ridge)
    penalty[-1] *= 1e-3
    y, w = labels.astype(np.float64), np.zeros(x.shape[1])

    def loss(at: np.ndarray) -> float:
        z = x @ at
        return float(np.logaddexp(0, z).sum() - z @ y + (penalty * at * at).sum() / 2)

    for _ in range(_MOST_STEPS):
        p = 1 / (1 + np.exp(-(x @ w)))
        gradient = x.T @ (p - y) + penalty * w
        hessian = (x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty)
        step, now = np.linalg.solve(hessian, gradient), loss(w)
        while loss(w - step) > now and np.abs(step).max() > 1e-12:
            step = step / 2
        w = w - step
        if np.abs(step).max() < 1e-10:
            break
    weights = w[:-1] / scale
    return weights, float(w[-1] - weights @ mean)


# ---- calibrating --------------------------------------------------------------------------------


def _surest(stoppers: Sequence[Stopper], features: np.ndarray) -> np.ndarray:
    """float64 [n]: the largest of the stoppers' probabilities of each row."""
    return np.max([one.probabilities(features) for one in stoppers], axis=0)


def score(stoppers: Sequence[Stopper], problem: Borders) -> float:
    """The largest probability at a premature border, -inf where there is none."""
    p = _surest(stoppers, problem.features[problem.premature])
    return float(p.max(initial=-math.inf))


def threshold(scores: np.ndarray, rate: float) -> float | None:
    """The least probability to stop at, such that the next problem's score reaches it with a
    probability of at most ``rate`` (see above); None where so few scores, or scores so large,
    promise nothing."""
    rank = math.ceil((len(scores) + 1) * (1 - rate) - 1e-9)
    if rank > len(scores):
        return None
    at = max(0.0, float(np.sort(scores)[rank - 1]) + _ABOVE)
    return at if at <= 1 else None


def exits(stoppers: Sequence[Stopper], problem: Borders) -> int | None:
    """At which of its borders the stoppers, which have one threshold, end a problem's thought;
    None: at none."""
    fired = np.flatnonzero(_surest(stoppers, problem.features) >= stoppers[0].threshold)
    return int(fired[0]) if len(fired) else None


def saved(stoppers: Sequence[Stopper], problems: Sequence[Borders], rate: float) -> int:
    """Thought tokens that stoppers leave out at the threshold which the same problems give."""
    at = threshold(np.array([score(stoppers, one) for one in problems]), rate)
    if at is None:
        return 0
    set_to = [replace(one, threshold=at) for one in stoppers]
    ends = [exits(set_to, one) for one in problems]
    pairs = zip(problems, ends, strict=True)
    return sum(one.thinking - int(one.at[end]) for one, end in pairs if end is not None)


def _told(
    found: Thresholds, missing: list[float], first: Sequence[Borders], second: Sequence[Borders]
) -> str:
    """A line for each rate: what it does to the problems that were not fitted on."""
    lines = [
        f"{len(first)} problems fitted, {len(second)} calibrated; right "
        f"{sum(one.right for one in second)}, {sum(len(one.at) for one in second)} borders"
    ]
    thinking = max(1, sum(one.thinking for one in second))
    best = sum(one.thinking - _earliest(one) for one in second)
    lines.append(f"the first borders where they may end save {best / thinking:.1%} of the tokens")
    for rate, at in sorted(found.thresholds.items()):
        policy = found.policy(rate)
        stoppers = [one for one in (policy.stopper, policy.hopeless) if one is not None]
        ends = [exits(stoppers, one) for one in second]
        pairs = [(one, end) for one, end in zip(second, ends, strict=True) if end is not None]
        early = sum(bool(one.premature[end]) for one, end in pairs)
        gained = sum(not one.right and bool(one.may_end[end]) for one, end in pairs)
        less = sum(one.thinking - int(one.at[end]) for one, end in pairs)
        lines.append(
            f"rate {rate:g}: threshold {at:.4f}, premature {early / len(second):.2%}, "
            f"right by ending {gained / len(second):.2%}, "
            f"saves {less / thinking:.1%} (trials not counted)"
        )
    lines += [f"rate {rate:g}: too few problems, or scores of 1" for rate in missing]
    if found.rate is None:
        lines.append("the rate asked for is none of these: auto takes one as premature_exits alone")
    return "\n".join(lines)


def _earliest(problem: Borders) -> int:
    """Thought tokens after which it may end; all of them where it never may, or is wrong."""
    return int(problem.at[problem.may_end & problem.right].min(initial=problem.thinking))
