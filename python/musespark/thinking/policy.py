"""What a caller says about thinking, checked."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from musespark.errors import InvalidRequest
from musespark.options import TOTAL, refuse_unknown
from musespark.thinking.stopper import Stopper

BUDGET = "thinking_token_budget"
ALIASES = ("thinking_budget", "reasoning_budget", "thinking_budget_tokens")
POLICY, SIGNALS, EXITS = "thinking_policy", "signals", "premature_exits"
THINKING_OPTIONS = (BUDGET, *ALIASES, TOTAL, POLICY, EXITS, "thinking_closing_message", SIGNALS)
# Who chose a policy: the caller's words, a policy of the caller's, what stands in for ``auto``.
AUTO_NAME, OFF_NAME, GIVEN, LOOP, NO_POLICY = "auto", "off", "given", "loop", "none"
OTHER_EFFORT = "loop (calibrated for other efforts)"
OUTDATED = "loop (calibrated for another version)"
UNREADABLE = "loop (its thresholds cannot be read)"
# Thought tokens for an effort that a model's template does not know; None: as it likes.
EFFORT_BUDGETS = {
    "minimal": 512,
    "low": 2048,
    "medium": 8192,
    "high": 24576,
    "xhigh": None,
}
_MOST = 2**31 - 1
_COUNTS = (
    ("least", 0, _MOST),
    ("loop", 0, _MOST),
    ("trials", 0, 64),  # csrc/decode/trial.h
    ("stable", 1, _MOST),
    ("every", 1, _MOST),
)


def _is_real(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 0


@dataclass(frozen=True)
class ThinkingPolicy:
    """What ends a thought before its model does.

    ``margin``: at the end of a sentence, where the logit of the marker that ends a thought is at
    most this below the largest one, in nats (ThinkBrake, arXiv:2510.00546); None: never. 0 is where
    the marker is the likeliest token anyway. ``least``: thought tokens before that. ``loop``: a
    thought whose last so many tokens repeat what stood before them, each period more than thrice,
    is closed; 0: never.

    ``trials``: at ends of sentences the thought is closed on trial and an answer of at most so many
    tokens written, beside the thought; 0: none. The thought ends there where the geometric mean of
    the probabilities of the answer's tokens is at least ``confident`` (DEER, arXiv:2504.15895) and
    ``stable`` trials in a row gave the same answer (Dynasor, arXiv:2412.20993). ``every``: thought
    tokens between two trials at least. What trials cost is in ``usage.probe_tokens``.

    ``stopper``: a :class:`musespark.Stopper`, asked at each end of a sentence; with trials, when
    one ends, in place of ``confident`` and ``stable``. ``hopeless``: one for a thought that nothing
    will come of, asked after it: closing words are written first, as where a budget ends.
    ``deadline``: seconds from the request on after which thoughts are closed, at once: the only
    rule by which a result depends on the clock.

    InvalidRequest for a field that is unknown, out of its range, or would do nothing: ``least``
    without ``margin``, those of trials without ``trials``, ``confident`` and ``stable`` with a
    ``stopper``.
    """

    margin: float | None = None
    least: int = 0
    loop: int = 48
    trials: int = 0
    confident: float = 0.95
    stable: int = 1
    every: int = 16
    stopper: Stopper | None = None
    hopeless: Stopper | None = None
    deadline: float | None = None

    def __new__(cls, *_: Any, **given: Any) -> ThinkingPolicy:
        known = [one.name for one in fields(cls)]
        refuse_unknown([name for name in given if name not in known], known)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name in ("margin", "deadline"):
            value = getattr(self, name)
            if value is not None and not _is_real(value):
                raise InvalidRequest(f"{name}: got {value!r:.60}, allowed is None or a number >= 0")
        for name in ("stopper", "hopeless"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Stopper):
                raise InvalidRequest(
                    f"{name}: got {value!r:.60}, allowed is None or a musespark.Stopper"
                )
        if not _is_real(self.confident) or self.confident > 1:
            raise InvalidRequest(f"confident: got {self.confident!r:.60}, allowed is 0 to 1")
        for name, low, high in _COUNTS:
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise InvalidRequest(
                    f"{name}: got {value!r:.60}, allowed is an integer from {low} to {high}"
                )
        self._refuse_idle()

    @property
    def writes(self) -> bool:
        """Whether it may end a thought with closing words."""
        return self.loop > 0 or self.hopeless is not None or self.deadline is not None

    def _refuse_idle(self) -> None:
        idle = {"least": "without margin"} if self.margin is None else {}
        if self.stopper is not None:
            idle |= dict.fromkeys(("confident", "stable"), "with a stopper")
        if self.trials == 0:
            idle |= dict.fromkeys(("confident", "stable", "every"), "without trials")
        for name, why in idle.items():
            value = getattr(self, name)
            if value != getattr(ThinkingPolicy, name):
                raise InvalidRequest(f"{name}: got {value!r}, which does nothing {why}")


AUTO, OFF = ThinkingPolicy(), ThinkingPolicy(loop=0)


@dataclass(frozen=True)
class Thinking:
    """Of one request. ``budget`` None: no limit; ``message`` None: the model's own. ``signals``:
    whether its result has them. ``chosen``: how the policy was; ``exits``: the rate of premature
    exits to accept, where the caller says one."""

    budget: int | None = None
    policy: ThinkingPolicy = AUTO
    message: str | None = None
    signals: bool = False
    chosen: str = field(default=AUTO_NAME, compare=False)
    exits: float | None = None


def checked_thinking(given: Mapping[str, Any]) -> Thinking:
    """The options as given; InvalidRequest naming the one that is wrong, or two that differ."""
    named = {name: given[name] for name in (BUDGET, *ALIASES) if given.get(name) is not None}
    budgets = {name: _budget(name, value) for name, value in named.items()}
    if len({*budgets.values()}) > 1:
        told = ", ".join(f"{name}={value}" for name, value in budgets.items())
        raise InvalidRequest(f"{BUDGET}: got {told}; they are names of one option")
    budget = next(iter(budgets.values()), None)
    message = given.get("thinking_closing_message")
    if message is not None and not isinstance(message, str):
        raise InvalidRequest(
            f"thinking_closing_message: got {message!r:.60}, allowed is a str or None"
        )
    policy, chosen = _policy(given.get(POLICY))
    exits = given.get(EXITS)
    if exits is not None:
        if not _is_real(exits) or not 0 < exits < 1:
            raise InvalidRequest(f"{EXITS}: got {exits!r:.60}, allowed is a number in (0, 1)")
        if chosen != AUTO_NAME:
            raise InvalidRequest(f"{EXITS}: got {exits}, which {POLICY} 'auto' alone uses")
    return Thinking(budget, policy, message, checked_signals(given), chosen, exits)


def checked_signals(given: Mapping[str, Any]) -> bool:
    """Whether signals are asked for; InvalidRequest for anything but a bool."""
    value = given.get(SIGNALS, False)
    if not isinstance(value, bool):
        raise InvalidRequest(f"{SIGNALS}: got {value!r:.60}, allowed is True or False")
    return value


def _budget(name: str, value: Any) -> int:
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number <= _MOST:
        raise InvalidRequest(
            f"{name}: got {value!r:.60}, allowed is None or an integer from 0 to {_MOST}"
        )
    return number


def _policy(value: Any) -> tuple[ThinkingPolicy, str]:
    if isinstance(value, ThinkingPolicy):
        return value, GIVEN
    if value is None or value == AUTO_NAME:
        return AUTO, AUTO_NAME
    if value == OFF_NAME:
        return OFF, OFF_NAME
    raise InvalidRequest(
        f"{POLICY}: got {value!r:.60}, allowed is one of {[AUTO_NAME, OFF_NAME]} or a "
        "musespark.ThinkingPolicy"
    )
