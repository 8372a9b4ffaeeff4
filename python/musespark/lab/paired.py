"""Outcomes on the same items, compared: every interval is a paired bootstrap over the items.

One set of resampled items serves all statistics, so differences, shares and the line through the
fixed efforts keep their pairing: an item is drawn with all of its outcomes, at all efforts
(Efron and Tibshirani 1993, chapter 13; percentiles). ``lost`` and ``gained`` count the discordant
items, which is all that McNemar's test needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

DRAWS = 2000


@dataclass(frozen=True)
class Outcomes:
    """Of one policy at one effort, on all items [n]: ``right`` bool, tokens of thoughts, rows of
    trials. ``seconds`` of the engine's run of all, None where they were read off traces;
    ``agreed``: on how many items both gave the same; ``stops``: why thoughts ended, by reason."""

    policy: str
    family: str
    effort: str
    right: np.ndarray
    thinking: np.ndarray
    probe: np.ndarray
    seconds: float | None = None
    agreed: int | None = None
    stops: dict[str, int] = field(default_factory=dict)

    @property
    def tokens(self) -> np.ndarray:
        """What thinking cost: trials too."""
        return self.thinking + self.probe


class Resampled:
    """The items as they are and ``DRAWS`` times with replacement."""

    def __init__(self, n: int, seed: int):
        counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=DRAWS)
        self._weights = np.vstack([np.ones(n), counts]) / n

    def mean(self, values: np.ndarray) -> np.ndarray:
        """float64 [1 + DRAWS]: the mean of the items, and of each draw."""
        return self._weights @ np.asarray(values, np.float64)


def interval(values: np.ndarray) -> list[float] | None:
    """The 95% interval of a statistic: [1 + DRAWS] as :meth:`Resampled.mean` has them; None where
    it has no value."""
    if not np.isfinite(values).all():
        return None
    return [float(v) for v in np.percentile(values[1:], [2.5, 97.5])]


def rows(
    outcomes: Sequence[Outcomes],
    full: dict[str, Outcomes],
    stable: dict[str, np.ndarray],
    drawn: Resampled,
) -> list[dict[str, Any]]:
    """A row for each of ``outcomes``. ``full``: by effort, those that nothing ended; ``stable``:
    tokens of their stable oracles, where they were traced.

    ``lost_points``: accuracy lost to ``full``, in points. ``saved``: tokens saved, as a share of
    its; ``oracle_share``: as a share of what the stable oracle saves. ``above_line``: points of
    accuracy above the line through the fixed efforts, at as many tokens. Each with its interval.
    """
    line = [(drawn.mean(one.tokens), drawn.mean(one.right)) for one in full.values()]
    return [_row(one, full[one.effort], stable.get(one.effort), line, drawn) for one in outcomes]


def _row(
    one: Outcomes,
    full: Outcomes,
    stable: np.ndarray | None,
    line: list[tuple[np.ndarray, np.ndarray]],
    drawn: Resampled,
) -> dict[str, Any]:
    n, tokens, right = len(one.right), drawn.mean(one.tokens), drawn.mean(one.right)
    whole = drawn.mean(full.tokens)
    row: dict[str, Any] = {
        "policy": one.policy,
        "family": one.family,
        "effort": one.effort,
        "n": n,
        "correct": int(one.right.sum()),
        "thinking_tokens": round(float(one.thinking.mean()), 2),
        "probe_tokens": round(float(one.probe.mean()), 2),
        "stable_oracle_tokens": None if stable is None else round(float(stable.mean()), 2),
        "seconds": None if one.seconds is None else round(one.seconds, 2),
        "lost": int((full.right & ~one.right).sum()),
        "gained": int((one.right & ~full.right).sum()),
        "agreed": one.agreed,
        "stops": one.stops,
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        saved = (whole - tokens) / whole
        told = {
            "accuracy": right,
            "lost_points": 100 * (drawn.mean(full.right) - right),
            "saved": saved,
            "above_line": 100 * (right - _line_at(line, tokens)),
        }
        if stable is not None:
            told["oracle_share"] = saved * whole / (whole - drawn.mean(stable))
    for name, values in told.items():
        known = interval(values)
        row[name] = None if known is None else round(float(values[0]), 4)
        row[f"{name}_interval"] = known and [round(v, 4) for v in known]
    return row


def _line_at(line: list[tuple[np.ndarray, np.ndarray]], tokens: np.ndarray) -> np.ndarray:
    """Accuracy on the line through ``line`` at ``tokens``, draw by draw; flat beyond its ends."""
    x, y = (np.stack(values, 1) for values in zip(*line, strict=True))
    order = np.argsort(x, axis=1, kind="stable")
    x, y = np.take_along_axis(x, order, 1), np.take_along_axis(y, order, 1)
    at = zip(tokens, x, y, strict=True)
    return np.array([np.interp(t, xs, ys) for t, xs, ys in at])


def difference(one: Outcomes, other: Outcomes, drawn: Resampled) -> dict[str, Any]:
    """By how many points ``one`` is more often right than ``other``, at the same effort."""
    points = 100 * (drawn.mean(one.right) - drawn.mean(other.right))
    return {
        "policy": one.policy,
        "against": other.policy,
        "effort": one.effort,
        "points": round(float(points[0]), 4),
        "interval": [round(v, 4) for v in interval(points) or ()],
        "lost": int((other.right & ~one.right).sum()),
        "gained": int((one.right & ~other.right).sum()),
    }
