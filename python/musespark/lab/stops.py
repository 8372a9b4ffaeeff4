"""What may end a thought, by name: as the engine is asked for it, and as it is read off a trace.

    full                 nothing ends it
    auto                 thinking_policy="auto": the engine's default
    margin M             the marker's logit is at most M nats below the best (ThinkBrake)
    no-wait              cue words are barred (NoWait, arXiv:2506.08343)
    confident P          a trial answer whose probability is at least P (DEER)
    stable K             K equal trial answers in a row (Dynasor)
    first stated answer  a trial answers what the sentence before it says
    oracle of trials     the first trial from which on all are right: what no rule knows
    budget F, hard cut F, hard cut + message F    F times the median length of full thoughts

Sources of the first six: :class:`musespark.ThinkingPolicy`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..text import Tokenizer
from ..thinking import ThinkingPolicy
from .closes import HARD, LANDING, MESSAGE, Budget, End, Trace, Trial

FULL, AUTO, NO_WAIT = "full", "auto", "no-wait"
FIRST_STATED, TRIAL_ORACLE = "first stated answer", "oracle of trials"
MARGIN, CONFIDENT, STABLE = "margin", "confident", "stable"
#: Words that reopen a thought: the list of arXiv:2506.08343.
CUE_WORDS = frozenset(
    (
        *("wait", "alternatively", "hmm", "but", "however", "alternative", "another", "check"),
        *("double-check", "oh", "maybe", "verify", "other", "again", "now", "ah", "any"),
    )
)
#: Of trials: long enough for nearly every answer of the tasks.
_TRIAL_TOKENS = 32
#: Thought tokens between two trials: at every sentence, or as the engine's default.
_DISTANCES = (1, ThinkingPolicy().every)
_MARGINS = (1.0, 2.0, 4.0)
_CONFIDENCES = (0.8, 0.9, 0.95, 0.99)
_REPEATS = (2, 3, 4)
#: Of the median length of full thoughts.
FRACTIONS = (0.25, 0.5, 0.75)
HALF = 0.5


@dataclass(frozen=True)
class Policy:
    """``options`` of chat that ask for it, None where none do; ``read``: its end of a trace, None
    where it changes the words of a thought. ``family``: the name without its values."""

    name: str
    family: str
    options: Mapping[str, Any] | None
    read: Callable[[Trace], End] | None


def tried(trace: Trace, every: int) -> Iterator[Trial]:
    """The trials that the engine makes, so many thought tokens apart (csrc/decode/trials.cc)."""
    last = 0
    for trial in trace.trials:
        if trial.written - max(last, trial.begin) >= every:
            last = trial.written
            yield trial


def stopped(trace: Trace, policy: ThinkingPolicy) -> End:
    """The end by trial answers, as csrc/decode/trials.cc decides it."""
    before, agreed, probe = None, 0, 0
    for trial in tried(trace, policy.every):
        probe += trial.rows(policy.trials)
        answer = trial.answer[: policy.trials]
        agreed = agreed + 1 if answer == before else 1
        before = answer
        sure = trial.confidence(policy.trials) >= np.float32(policy.confident)
        if sure and agreed >= policy.stable:
            return _ended_by(trial, probe, policy.trials)
    return End(trace.whole.right, trace.whole.thinking, probe)


def _ended_by(trial: Trial, probe: int, tokens: int) -> End:
    """The end by the last of trials of ``probe`` rows: its own become the reply's, but for those of
    tokens that the reply has no room for."""
    kept = min(trial.rows(tokens), trial.left - 1)
    return End(trial.right, trial.thinking, probe - kept)


def first_stated(trace: Trace) -> End:
    """The end where a trial, one at every sentence, answers what the sentence says."""
    probe = 0
    for trial in trace.trials:
        probe += trial.rows(_TRIAL_TOKENS)
        if trial.stated:
            return _ended_by(trial, probe, _TRIAL_TOKENS)
    return End(trace.whole.right, trace.whole.thinking, probe)


def trial_oracle(trace: Trace) -> End:
    """The stable oracle of these trials: what closing without words can save at most. Without their
    cost, as nobody who knew it would try."""
    thinking = trace.whole.thinking
    for trial in reversed(trace.trials if trace.whole.right else ()):
        if not trial.right:
            break
        thinking = trial.thinking
    return End(trace.whole.right, thinking)


def cue_bias(tokenizer: Tokenizer, vocab: int) -> dict[int, float]:
    """``logit_bias`` that bars every token that is a cue word, in any case and spacing. Longer
    words that contain one stay, where the paper weeds them out by hand."""
    said = ((i, tokenizer.decode([i]).strip().lower()) for i in range(vocab))
    return {i: -1e9 for i, text in said if re.sub(r"^\W+|\W+$", "", text) in CUE_WORDS}


def budgets_of(median: float) -> dict[float, list[Budget]]:
    """By fraction of the median length, the budgets in each of the three ways."""
    return {
        f: [Budget(max(1, round(f * median)), how) for how in (HARD, MESSAGE, LANDING)]
        for f in FRACTIONS
    }


def watched(tokenizer: Tokenizer, vocab: int) -> list[Policy]:
    """Those that only the engine can run: they change a thought's words, or read its logits."""
    out = [Policy(AUTO, AUTO, {"thinking_policy": "auto"}, None)]
    for margin in _MARGINS:
        policy = ThinkingPolicy(margin=margin, loop=0)
        out.append(Policy(f"margin {margin:g}", MARGIN, {"thinking_policy": policy}, None))
    bias = {"thinking_policy": "off", "logit_bias": cue_bias(tokenizer, vocab)}
    return [*out, Policy(NO_WAIT, NO_WAIT, bias, None)]


def read_off(budgets: Mapping[float, Sequence[Budget]]) -> list[Policy]:
    """Those that are read off traces, which have these ``budgets``."""
    out = [
        Policy(FIRST_STATED, FIRST_STATED, None, first_stated),
        Policy(TRIAL_ORACLE, TRIAL_ORACLE, None, trial_oracle),
    ]
    for every in _DISTANCES:
        out += [_by_trials(CONFIDENT, p, every, confident=p) for p in _CONFIDENCES]
        out += [_by_trials(STABLE, k, every, confident=0.0, stable=k) for k in _REPEATS]
    return [*out, *by_budget(budgets)]


def by_budget(budgets: Mapping[float, Sequence[Budget]]) -> list[Policy]:
    """Those of them that are budgets."""
    return [_budgeted(fraction, one) for fraction, each in budgets.items() for one in each]


def _by_trials(family: str, value: float, every: int, **more: Any) -> Policy:
    policy = ThinkingPolicy(trials=_TRIAL_TOKENS, every=every, loop=0, **more)
    name = f"{family} {value:g}" if every == 1 else f"{family} {value:g}, every {every}"
    options = {"thinking_policy": policy}
    return Policy(name, family, options, lambda trace: stopped(trace, policy))


def _budgeted(fraction: float, budget: Budget) -> Policy:
    options = None
    if budget.how == LANDING:
        options = {"thinking_policy": "off", "thinking_token_budget": budget.tokens}
    name = f"{budget.how} {fraction:g}"
    return Policy(name, budget.how, options, lambda trace: trace.budgets[budget])
