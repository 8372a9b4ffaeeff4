"""One agent of a round: a conversation of its own, whose tokens are taken in order."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

from musespark.agents.conversation import ToolConversation
from musespark.collectors import ChatCollector
from musespark.contemplating.confidence import Confidence, token_confidences
from musespark.contemplating.result import AgentDelta, AgentResult
from musespark.contemplating.votes import Vote
from musespark.engine import Handle
from musespark.errors import InvalidRequest
from musespark.events import Event, Finished, Request, Tokens
from musespark.results import ChatResult, Delta, Timings, Usage


class Turn:
    """A request under way. What the engine has written waits here until it is taken."""

    def __init__(self, request: Request, handle: Handle, collector: ChatCollector):
        self._request, self.handle, self._collector = request, handle, collector
        self._waiting: deque[Tokens] = deque()
        self._first = 0  # of the first of them, the token to take next
        self._end: Finished | None = None
        self._taken = 0
        self.tokens_waiting = 0
        self.cut = False  # nothing more is taken, and what it fails with is nobody's

    @property
    def has_stop_strings(self) -> bool:
        """Whether it may end at any token, for what the text is by then."""
        return self._collector.has_stop_strings

    @property
    def ended(self) -> bool:
        """Whether the engine has ended it."""
        return self._end is not None

    @property
    def ready(self) -> bool:
        """Whether there is a token to take, or the end."""
        return bool(self._waiting) or self.ended

    @property
    def timed_out(self) -> bool:
        """Whether the engine has ended it for its deadline."""
        return self._end is not None and self._end.reason == "deadline"

    @property
    def whole(self) -> bool:
        """Whether it has ended by itself, or at a stop string."""
        own = self._end is not None and self._end.reason not in ("cancelled", "deadline")
        return own or self._collector.stopped

    def receive(self, event: Event | Exception) -> None:
        """Takes an event in; raises the error that the request ended with."""
        if isinstance(event, Exception):
            if not (self.cut or self._collector.stopped):
                raise event
            known = {"prompt_tokens": len(self._request.tokens), "thought_stop": "none"}
            event = Finished("cancelled", defaultdict(int, known, trials=[]))
        if isinstance(event, Finished):
            self._end = event
        elif isinstance(event, Tokens) and event.ids and not self._collector.stopped:
            self._waiting.append(event)
            self.tokens_waiting += len(event.ids)

    def take(self, most: int) -> tuple[Tokens, list[Delta]] | None:
        """The next tokens, ``most`` or fewer, and what they add to the text; None where there is no
        more. With stop strings, one at a time: any may be the last."""
        if not self._waiting:
            return None
        whole, start = self._waiting[0], self._first
        event = _part(whole, start, start + most)
        self._first += len(event.ids)
        if self._first == len(whole.ids):
            self._waiting.popleft()
            self._first = 0
        self.tokens_waiting -= len(event.ids)
        self._taken += len(event.ids)
        deltas = self._collector.push(event)
        if self._collector.stopped:
            self._waiting.clear()
            self._first = self.tokens_waiting = 0
            self.handle.cancel()
        return event, deltas

    def finish(self, cut: str | None = None) -> tuple[list[Delta], ChatResult, int]:
        """The last of the text, the result up to what was taken, and how many tokens were written
        beyond that. ``cut``: the finish reason where it did not end by itself."""
        assert self._end is not None
        end, stats = self._end, self._end.stats
        discarded = max(0, stats["completion_tokens"] - self._taken)
        if cut is not None:
            end = Finished(cut, stats | self._stats_here(stats["trials"]))
        deltas, result = self._collector.finish(end)
        return deltas, result, discarded

    def _stats_here(self, trials: Sequence[tuple]) -> dict[str, Any]:
        """What is different had the engine ended it after the last token that was taken. Trials
        that began before it have ended, since they hold back what follows them; behind a thought
        the one that ended it has too."""
        thought = self._collector.thought_tokens
        most = thought if self._collector.thinking else thought + 1
        trials = [trial for trial in trials if trial[0] < most]
        rows = sum(rows for *_, rows in trials)
        return {"thought_tokens": thought, "trials": trials, "trial_tokens": rows}


def _part(event: Tokens, start: int, stop: int) -> Tokens:
    """An event's tokens from ``start`` on, before ``stop``."""
    return Tokens(*(None if field is None else field[start:stop] for field in event))


class Agent:
    """One agent. ``turn``: its first, which is under way. ``window``: of its confidence.
    ``conversation``: where its tools are functions, and ``ask`` then submits a further turn."""

    def __init__(
        self,
        number: int,
        round_number: int,
        seed: int,
        turn: Turn,
        *,
        window: int | None = None,
        conversation: ToolConversation | None = None,
        ask: Callable[[Any, int], Turn] | None = None,
    ):
        self.number, self.turn, self.conversation = number, turn, conversation
        self.confidence = Confidence(window)
        self.result: ChatResult | None = None  # of the last turn that has ended
        self.stop_reason = ""  # while it runs
        self.vote: Vote | None = None
        self.spoke = False  # its turn has ended, and go_on is to be called
        self.discarded = 0
        self.timings: list[Timings] = []  # of each turn
        self._round, self._seed, self._ask = round_number, seed, ask
        self._usage = Usage()

    @property
    def running(self) -> bool:
        return not self.stop_reason

    def take(self, most: int) -> Iterator[AgentDelta]:
        """Takes the next tokens of its turn, ``most`` or fewer, or its end, which is there."""
        taken = self.turn.take(most)
        if taken is None:
            yield from self._finish()
            return
        yield from self._took(*taken)

    def go_on(self) -> None:
        """After a turn: runs the tools that it called and submits the next one, or ends."""
        assert self.result is not None
        run = self.conversation
        if run is not None and run.take(self.result):
            assert self._ask is not None
            self.turn, self.spoke = self._ask(run.messages, self._seed), False
        elif self.result.finish_reason in ("length", "cancelled", "deadline"):
            self.stop_reason = "length"
        else:
            self.stop_reason = "answer" if run is None or run.complete else "calls"

    def stop(self, reason: str) -> None:
        """Ends it where it is: what it wrote beyond that is not looked at."""
        self.stop_reason, self.turn.cut = reason, True
        self.turn.handle.cancel()

    def settle(self) -> Iterator[AgentDelta]:
        """What it has written, after :meth:`stop` and the end of its turn in the engine."""
        if self.turn.cut:
            yield from self._finish("cancelled")

    def halt(self, reason: str) -> Iterator[AgentDelta]:
        """Ends it with all that it has written until now, after the end of its turn in the engine.
        A turn that is whole counts; no tool is run any more."""
        most = 1 if self.turn.has_stop_strings else self.turn.tokens_waiting
        while not self.spoke and (taken := self.turn.take(most)) is not None:
            yield from self._took(*taken)
        whole = self.turn.whole
        if not self.spoke:
            yield from self._finish(None if whole else reason)
        assert self.result is not None
        calls = self.result.tool_calls or self.result.malformed_tool_calls
        if whole and not (self.conversation is not None and calls):
            self.go_on()
        else:
            self.stop_reason = reason

    def cast(self, key: Callable[[ChatResult], str | None], *, weighted: bool) -> Vote | None:
        """Casts and returns its vote; None where it has not answered, and where ``key`` makes none
        of the answer. ``weighted``: by its confidence. InvalidRequest for a key that is no str."""
        if self.stop_reason != "answer":
            return None
        assert self.result is not None
        found = key(self.result)
        if found is not None and not isinstance(found, str):
            raise InvalidRequest(f"answer_key: gave {found!r:.60}, allowed is a str or None")
        if found is not None:
            confidence = self.confidence.mean
            weight = confidence if weighted else 1.0
            self.vote = Vote(self.number, found, weight, confidence)
        return self.vote

    def told(self) -> AgentResult:
        """What became of it."""
        assert self.result is not None
        run = self.conversation
        return AgentResult(
            round=self._round,
            agent=self.number,
            seed=self._seed,
            content=self.result.content,
            reasoning=self.result.reasoning,
            key=None if self.vote is None else self.vote.key,
            weight=0.0 if self.vote is None else self.vote.weight,
            confidence=self.confidence.mean,
            stop_reason=self.stop_reason,
            usage=self._usage,
            tokens=self.result.tokens,
            tool_calls=self.result.tool_calls,
            uses=() if run is None else tuple(run.uses),
            turns=len(self.timings),
        )

    def _took(self, event: Tokens, deltas: list[Delta]) -> Iterator[AgentDelta]:
        for value in token_confidences(event):
            self.confidence.add(value)
        yield from self._tagged(deltas)

    def _finish(self, cut: str | None = None) -> Iterator[AgentDelta]:
        deltas, self.result, discarded = self.turn.finish(cut)
        self.spoke = True
        self.discarded += discarded
        self.timings.append(self.result.timings)
        self._usage = added(self._usage, self.result.usage)
        yield from self._tagged(deltas)

    def _tagged(self, deltas: list[Delta]) -> Iterator[AgentDelta]:
        where = {"agent": self.number, "round": self._round}
        for one in deltas:
            yield AgentDelta(one.text, one.channel, one.tool_call, one.logprobs, **where)


def added(*usages: Usage) -> Usage:
    """Their sum, field by field."""
    return Usage(**{f.name: sum(getattr(u, f.name) for u in usages) for f in fields(Usage)})
