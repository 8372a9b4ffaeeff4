"""A logistic stopper over the signals of a thought, and what it looks at.

The core asks it while the thought is written (csrc/decode/stopper.h); :func:`border_features` gives
the same numbers of a thought that is there, to fit one (``musespark lab calibrate``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from musespark.engine import STOPPER_FEATURES
from musespark.errors import InvalidRequest
from musespark.results import ThoughtSignals, TrialAnswer

FEATURES = STOPPER_FEATURES
RECENT = 32  # tokens that means are over: csrc/decode/stopper.h
_LEAST_ODDS = 1e-4


@dataclass(frozen=True)
class Stopper:
    """Ends a thought at a sentence's end where 1 / (1 + exp(-(``bias`` + weights · features))) is
    at least ``threshold`` (0 to 1).

    ``weights`` by feature, 0 for those left out. Of the turn's thoughts so far, means over the last
    32 tokens, a count n as ln(1 + n):
    ``margin``: of the end marker at the row after the sentence; ``logprob``, ``entropy``,
    ``confidence``: means of :class:`musespark.ThoughtSignals`; ``tokens``, ``borders`` (sentences
    that ended, this one included), ``cues``: counts; with trials ``trial_confidence``:
    ln((c + 1e-4) / (1 - c + 1e-4)) for the confidence c of the trial begun here, and
    ``trial_streak``: trials in a row with its answer, itself included, a count; without trials 0.
    """

    weights: Mapping[str, float] = field(hash=False)
    bias: float = 0.0
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.weights, Mapping):
            raise InvalidRequest(
                f"weights: got {self.weights!r:.60}, allowed is a number by feature name"
            )
        for name, weight in self.weights.items():
            if name not in FEATURES:
                raise InvalidRequest(f"weights: got {name!r:.60}, allowed are {list(FEATURES)}")
            _check_real(f"weights[{name!r}]", weight)
        _check_real("bias", self.bias)
        _check_real("threshold", self.threshold, 0.0, 1.0)

    def fields(self) -> dict[str, Any]:
        """What the core is told."""
        weights = {name: float(weight) for name, weight in self.weights.items()}
        return {"weights": weights, "bias": float(self.bias), "threshold": float(self.threshold)}

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """float64 [n]: of rows [n, features], in the order of ``FEATURES``."""
        weights = np.array([float(self.weights.get(name, 0.0)) for name in FEATURES])
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-(self.bias + features @ weights)))


def _check_real(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not low <= value <= high:
        allowed = "a finite number" if high == math.inf else f"a number from {low:g} to {high:g}"
        raise InvalidRequest(f"{name}: got {value!r:.60}, allowed is {allowed}")


def border_features(
    signals: ThoughtSignals, trials: Sequence[TrialAnswer] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Where a stopper is asked, and what it is shown there: thought tokens before (int64 [n]) and
    features (float64 [n, len(FEATURES)]).

    Without ``trials`` at each sentence's end after which the thought went on, else where a trial
    began. Of thoughts that nothing cut short.
    """
    if trials is None:
        at = np.flatnonzero(signals.borders) + 1
        at = at[at < len(signals)]
    else:
        at = np.array([trial.thought_tokens for trial in trials], np.int64)
    out = np.zeros((len(at), len(FEATURES)))
    column = {name: out[:, i] for i, name in enumerate(FEATURES)}
    column["margin"][:] = signals.margin[at]
    for name in ("logprob", "entropy", "confidence"):
        values = getattr(signals, name).astype(np.float64)
        column[name][:] = [values[max(0, end - RECENT) : end].mean() for end in at]
    column["tokens"][:] = np.log1p(at)
    for name in ("borders", "cues"):
        column[name][:] = np.log1p(np.cumsum(getattr(signals, name))[at - 1])
    if trials is not None:
        sure = np.array([trial.confidence for trial in trials], np.float64)
        column["trial_confidence"][:] = np.log((sure + _LEAST_ODDS) / (1 - sure + _LEAST_ODDS))
        column["trial_streak"][:] = np.log1p(_streaks([trial.answer for trial in trials]))
    return at, out


def _streaks(answers: Sequence[str]) -> list[int]:
    """Of each answer, how many in a row up to it are the same."""
    out: list[int] = []
    for i, answer in enumerate(answers):
        out.append(out[-1] + 1 if i and answers[i - 1] == answer else 1)
    return out
