"""One round: agents that write at once, read in an order that no machine decides.

The agents' tokens come from the engine whenever it has them. Here they are taken in lockstep: the
first token of each running agent by its number, then the second of each, and so on; an agent that
has no token to take is waited for. So an agent's n-th token comes after every other's (n - 1)-th,
agents end in the order of their tokens, then of their numbers, and whatever is decided on the way
(who is weak, when a round is decided) is a function of the tokens alone: not of threads, of what
else runs, or of how fast. Where the deadline or the caller ends a round, all that is there counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

from musespark.contemplating.agents import Agent
from musespark.contemplating.options import ContemplatingOptions
from musespark.contemplating.result import AgentDelta, RoundResult
from musespark.contemplating.votes import Tally, decided, tally
from musespark.engine import Handle

# What is yielded, and what is to be sent for it: a handle for its next event; a delta for nothing;
# a function, which may take long or wait, for nothing when it has been called.
Steps = Generator[Handle | AgentDelta | Callable[[], None], Any, None]


class Round:
    """The agents of one round, under way. ``halted``: why it is to end at once; empty while it is
    not. ``heard``: whether somebody reads the deltas."""

    def __init__(
        self,
        agents: Sequence[Agent],
        options: ContemplatingOptions,
        halted: Callable[[], str],
        heard: Callable[[], bool],
    ):
        self.agents, self._options, self._halted, self._heard = agents, options, halted, heard
        self._has_stop_strings = any(agent.turn.has_stop_strings for agent in agents)
        self.stop_reason = ""
        self.tallies: list[Tally] = []
        self._threshold: float | None = None  # of weak agents, in nats
        self._began, self._seconds = time.perf_counter(), 0.0

    def run(self) -> Steps:
        """To its end."""
        while not self.stop_reason and (running := self._running()):
            most = self._at_once(running)
            for agent in running:
                if agent.running and not self.stop_reason:
                    yield from self._step(agent, most)
        self.stop_reason = self.stop_reason or "all"
        yield from self._settle()
        self._seconds = time.perf_counter() - self._began

    def discard(self) -> None:
        """Cancels what still runs."""
        for agent in self.agents:
            agent.turn.handle.discard()

    def told(self) -> RoundResult:
        """What became of it, after its end."""
        return RoundResult(
            votes={one.key: one.weight for one in self.tallies},
            stop_reason=self.stop_reason,
            seconds=self._seconds,
            discarded_tokens=sum(agent.discarded for agent in self.agents),
        )

    def _running(self) -> list[Agent]:
        return [agent for agent in self.agents if agent.running]

    def _at_once(self, running: Sequence[Agent]) -> int:
        """How many tokens each of these may take together: one where a token may end an agent, or
        somebody hears them in turn; else as many as all have, for only the end of a turn decides
        anything."""
        if self._has_stop_strings or self._threshold is not None or self._heard():
            return 1
        return max(1, min(agent.turn.tokens_waiting for agent in running))

    def _step(self, agent: Agent, most: int) -> Steps:
        """The next ``most`` tokens of an agent, or fewer, or the end of its turn."""
        while not agent.turn.ready:
            agent.turn.receive((yield agent.turn.handle))
            self.stop_reason = "deadline" if agent.turn.timed_out else self._halted()
            if self.stop_reason:
                return
        yield from agent.take(most)
        if agent.spoke and agent.conversation is None:
            agent.go_on()
        elif agent.spoke:
            yield agent.go_on
            self.stop_reason = self._halted()
            if self.stop_reason:
                return
        if agent.running and self._is_weak(agent):
            agent.stop("weak")
        if not agent.running:
            self._count(agent)

    def _is_weak(self, agent: Agent) -> bool:
        confidence = agent.confidence
        if self._threshold is None or not confidence.whole_group:
            return False
        return confidence.group < self._threshold

    def _count(self, ended: Agent) -> None:
        """Counts the vote of an agent that has ended. Ends the round where that decides it."""
        self._cast(ended)
        running = self._running()
        if decided(self.tallies, len(running), self._options.consensus) and running:
            self.stop_reason = "consensus"
            for agent in running:
                agent.stop("consensus")
        finished = [agent for agent in self.agents if agent.stop_reason == "answer"]
        watched = self._options.weak_window is not None and self._threshold is None
        if watched and len(finished) >= self._options.finished_before_weak:
            self._threshold = min(agent.confidence.lowest for agent in finished)

    def _cast(self, *ended: Agent) -> None:
        options = self._options
        for agent in ended:
            agent.cast(options.answer_key, weighted=options.aggregate == "confidence")
        self.tallies = tally([agent.vote for agent in self.agents if agent.vote is not None])

    def _settle(self) -> Steps:
        """Waits until the engine has ended every agent, and takes what is left of them."""
        halted = self._running()
        for agent in halted:
            agent.turn.handle.cancel()
        for agent in self.agents:
            while not agent.turn.ended:
                agent.turn.receive((yield agent.turn.handle))
            if agent in halted:
                yield from agent.halt(self.stop_reason)
            else:
                yield from agent.settle()
        self._cast(*halted)
