"""How sure an agent was of what it wrote (after DeepConf, arXiv:2508.15260)."""

from __future__ import annotations

import math
from collections import deque

from musespark.events import Tokens


def token_confidences(event: Tokens) -> list[float]:
    """Of each token, in nats, at most 0: its log-probability under the model's own distribution.
    The one place that knows what confidence is made of."""
    assert event.logprobs is not None  # agents ask for them
    return event.logprobs


class Confidence:
    """Of one agent, over all its tokens so far and over a sliding window of them. ``window``:
    tokens; None: there is none."""

    def __init__(self, window: int | None = None):
        self._window = window
        self._group: deque[float] = deque()
        self._total, self._group_sum = 0.0, 0.0
        self.tokens = 0
        self._lowest = 0.0

    def add(self, value: float) -> None:
        """Takes the next token's :func:`token_confidences`."""
        self.tokens += 1
        self._total += value
        if self._window is None:
            return
        self._group.append(value)
        self._group_sum += value
        if len(self._group) > self._window:
            self._group_sum -= self._group.popleft()
        if len(self._group) == self._window:
            self._lowest = min(self._lowest, self.group)

    @property
    def mean(self) -> float:
        """The geometric mean of the tokens' probabilities; 0.0 without any."""
        return math.exp(self._total / self.tokens) if self.tokens else 0.0

    @property
    def group(self) -> float:
        """The mean of the last ``window`` tokens, in nats; of all where there are fewer."""
        return self._group_sum / len(self._group) if self._group else 0.0

    @property
    def whole_group(self) -> bool:
        """Whether there are as many tokens as the window has."""
        return len(self._group) == self._window

    @property
    def lowest(self) -> float:
        """The least :attr:`group` of a whole window; where there was none, that of all tokens."""
        return self._lowest if self.tokens >= (self._window or 0) else self.group
