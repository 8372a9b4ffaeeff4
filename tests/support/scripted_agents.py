"""Contemplations whose agents write what a test says, when it says."""

from __future__ import annotations

import random
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from musespark import Model
from musespark.contemplating.run import Contemplation
from musespark.contemplating.streams import ContemplationStream
from musespark.engine import Handle
from musespark.events import Event, Finished, Tokens


@dataclass
class Script:
    """What one turn of an agent writes. ``logprob``: of each of its tokens, or a list of them.
    ``reason``: how the engine ends it. ``error``: what it fails with after its last token, in place
    of an end."""

    thought: str
    answer: str
    logprob: float | Sequence[float] = -0.1
    reason: str = "stop"
    error: Exception | None = None
    raw: str = ""  # in place of both: markers and all

    def ids(self, model: Model) -> list[int]:
        """As Spark Nano writes a turn, after ``<|start|>assistant``."""
        turn = (
            f" to=self<|message|>{self.thought}<|eom|><|start|>assistant to=user<|message|>"
            f"{self.answer}<|eot|>"
        )
        return model.tokenizer.encode(self.raw or turn, parse_special=True)


class ScriptedHandle(Handle):
    """Hands out a script's tokens in pieces of ``sizes``; after a cancel it goes on for ``overrun``
    tokens, as an engine that hears of it late."""

    def __init__(
        self,
        script: Script,
        ids: list[int],
        prompt_tokens: int,
        sizes: Callable[[], int],
        overrun: int,
    ):
        self.prompt_tokens = prompt_tokens
        self.ids = []  # of the engine: none
        self.retained = None
        self.cancelled = False
        self._script, self._left, self._sizes = script, deque(enumerate(ids)), sizes
        self._overrun, self.given = overrun, 0
        self._ended = False

    def cancel(self) -> None:
        self.cancelled = True

    @property
    def has_event(self) -> bool:
        return True

    def next_event(self) -> Event | Exception:
        assert not self._ended, "read after its end"
        if not self._left or (self.cancelled and self._overrun <= 0):
            return self._end()
        count = max(1, self._sizes())
        if self.cancelled:
            count = min(count, self._overrun)
            self._overrun -= count
        pieces = [self._left.popleft() for _ in range(min(count, len(self._left)))]
        self.given += len(pieces)
        ids = [token for _, token in pieces]
        each = self._script.logprob
        logprobs = [each if isinstance(each, float) else each[i] for i, _ in pieces]
        return Tokens(ids, logprobs, [[(token, 0.0)] for token in ids])

    async def anext_event(self) -> Event | Exception:
        return self.next_event()

    def _end(self) -> Event | Exception:
        self._ended = True
        if self._script.error is not None and not self._left:
            return self._script.error
        stats: dict[str, Any] = defaultdict(int, thought_stop="none", trials=[])
        stats |= {
            "completion_tokens": self.given,
            "prompt_tokens": self.prompt_tokens,
            "thought_tokens": 1 << 20,
        }
        return Finished("cancelled" if self._left else self._script.reason, stats)


@dataclass
class Stage:
    """A model whose requests are scripts: the n-th that is submitted gets the n-th. ``seed``: of
    the sizes of pieces and the overruns, which must change nothing."""

    model: Model
    scripts: Sequence[Script]
    seed: int = 0
    most: int = 30
    handles: list[ScriptedHandle] = field(default_factory=list)
    requests: list[Any] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def _submit(self, request: Any, collector: Any, base: Any = None) -> tuple[Handle, Any]:
        rng = random.Random(f"{self.seed} {len(self.handles)}")
        script = self.scripts[len(self.handles)]
        sizes = lambda: rng.randint(1, self.most)  # noqa: E731
        ids = script.ids(self.model)
        late = rng.randint(0, self.most)
        self.handles.append(ScriptedHandle(script, ids, len(request.tokens), sizes, late))
        self.requests.append(request)
        return self.handles[-1], collector

    def contemplate(self, messages: Any = "Which?", **given: Any) -> ContemplationStream:
        """A stream of what the scripts come to."""
        clock = {"clock": given.pop("clock")} if "clock" in given else {}
        given = {"n_agents": len(self.scripts), "seed": 1, **given}
        return ContemplationStream(Contemplation(self, messages, given, **clock))
