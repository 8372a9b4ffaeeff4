"""What contemplating returns: plain frozen data, as in results.py."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Any

from musespark.agents.events import ToolUse
from musespark.results import ChatResult, Delta, Usage


@dataclass(frozen=True)
class AgentDelta(Delta):
    """A piece of what an agent writes; rounds and agents count from 0."""

    agent: int = 0
    round: int = 0


@dataclass(frozen=True)
class AgentResult:
    """One agent of a round: what it wrote, and what became of it.

    ``stop_reason``: ``answer`` (it ended its turn), ``length`` (its turn was cut by
    ``max_new_tokens`` or the context), ``consensus`` (the round was decided without it), ``weak``
    (it was not confident), ``deadline`` or ``cancelled``. ``key``: what its answer is counted by;
    None where it has no vote. ``weight``: of its vote. ``confidence``: the geometric mean of its
    tokens' probabilities under the model's own distribution. ``content``, ``reasoning``,
    ``tokens`` and ``tool_calls``: of its last turn, up to where it was stopped; ``usage``: of all
    its ``turns``. ``uses``: the tools that ran for it. ``chat`` with its ``seed`` and the options
    of the call writes the same.
    """

    round: int
    agent: int
    seed: int
    content: str
    reasoning: str
    key: str | None
    weight: float
    confidence: float
    stop_reason: str
    usage: Usage
    tokens: tuple[int, ...] = field(repr=False)
    tool_calls: tuple[dict[str, Any], ...] = ()
    uses: tuple[ToolUse, ...] = ()
    turns: int = 1


@dataclass(frozen=True)
class RoundResult:
    """One round. ``votes``: key -> sum of weights, the leading answer first. ``stop_reason``:
    ``consensus``, ``all`` (every agent had ended), ``deadline`` or ``cancelled``. ``seconds``: wall
    clock. ``discarded_tokens``: written by agents before it was known that they are stopped, and
    part of nothing else here; how many there are depends on the machine."""

    votes: dict[str, float]
    stop_reason: str
    seconds: float
    discarded_tokens: int


@dataclass(frozen=True)
class ContemplationResult(ChatResult):
    """The result of :meth:`Model.chat` with ``mode="contemplating"``.

    As a :class:`ChatResult` it is the turn of the agent that speaks for the leading answer: the
    most confident of those that gave it. Without any vote it is that of the most confident agent,
    as far as it came. ``seed`` is the caller's. ``usage`` sums up all agents of all rounds: what
    their prompts share is counted for each, and for all but one as cached. ``timings.prefill_s``
    and ``first_token_s``: of the first agent to write; ``decode_s``: the time after that.

    ``votes``: of the last round that has any, key -> weight, the leading answer first. ``answer``:
    its key; None without votes. ``agents``: every agent of every round. ``stop_reason``:
    ``consensus``, ``all``, ``deadline`` or ``cancelled``, of the last round; ``context`` where a
    further round was to come and the context had no room for a workspace. ``seconds``: wall clock.
    """

    answer: str | None = None
    votes: dict[str, float] = field(default_factory=dict)
    aggregate: str = "vote"
    stop_reason: str = "all"
    agents: tuple[AgentResult, ...] = ()
    rounds: tuple[RoundResult, ...] = ()
    seconds: float = 0.0

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{one.round}</td><td>{one.agent}</td>"
            f"<td style='text-align:left'>{_agent_html(one)}</td>"
            f"<td>{one.weight:.2f}</td><td>{one.confidence:.2f}</td>"
            f"<td>{one.usage.completion_tokens}</td><td>{html.escape(one.stop_reason)}</td></tr>"
            for one in self.agents
        )
        names = ("round", "agent", "answer", "weight", "confidence", "tokens", "ended by")
        head = "".join(f"<th>{name}</th>" for name in names)
        told = f"{len(self.agents)} agents, {self.stop_reason}, {self.seconds:.2f} s"
        return (
            f"{super()._repr_html_()}<details><summary>{html.escape(told)}</summary>"
            f"<table><tr>{head}</tr>{rows}</table></details>"
        )


def _agent_html(one: AgentResult) -> str:
    """An agent's key, its thought behind it."""
    key = html.escape(one.key or "none")
    if not one.reasoning:
        return key
    thought = html.escape(one.reasoning)
    return f"<details><summary>{key}</summary><pre>{thought}</pre></details>"
