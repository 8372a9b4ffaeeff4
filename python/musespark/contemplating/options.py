"""What a caller says about contemplating, checked; the seeds of its agents."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from musespark.agents.conversation import check_calls
from musespark.contemplating.keys import answer_key
from musespark.contemplating.workspace import listed
from musespark.errors import InvalidRequest
from musespark.options import (
    AGENT_OPTIONS,
    AGGREGATES,
    CONTEMPLATING,
    integer,
    real,
    refused,
)
from musespark.results import ChatResult

MOST_AGENTS = 64  # sequences that the engine runs at once
MOST_ROUNDS = 16
_WORKSPACE_TOKENS = 512
# Of agents, where neither the caller nor the model says one: at 0 all of them would write the same.
AGENT_TEMPERATURE = 0.7


@dataclass(frozen=True)
class ContemplatingOptions:
    """How many agents answer a question, and how one answer is made of theirs.

    ``n_agents``: 1 to 64 that answer at once, each with a seed of its own (:func:`agent_seed`).
    Their other options are those of the call; ``temperature`` is 0.7 where neither the caller nor
    the model says one above 0. What is decided depends on their tokens alone, but for ``deadline``
    (seconds): thoughts are closed while a short answer still fits, at the pace so far; then what is
    there is voted on.

    ``aggregate``: ``vote``: the answer of most agents (self-consistency, arXiv:2203.11171);
    ``confidence``: of the largest sum of confidences (DeepConf, arXiv:2508.15260); ``refine``: the
    agents then see what they came to, bounded, under the question (Draft 1: …), and answer again,
    ``rounds`` times; the last round's vote is the answer. Where at least two answers of a round are
    there and all the same, no further round follows. Ties: the higher mean confidence, then the
    lowest agent.

    ``consensus``: when a round ends before all its agents have: 1.0: once the leading answer cannot
    be overtaken, which changes no answer; less: once it stays the most frequent one with so much
    probability (adaptive consistency, arXiv:2305.11860); None: never.

    ``weak_window``: an agent is stopped where the mean log-probability of its last so many tokens
    falls below the lowest that those had who finished first: a quarter of the agents, at least two
    (after DeepConf); None: never.

    ``answer_key``: what makes two answers the same, :func:`musespark.contemplating.answer_key`
    where none is given: a function of a :class:`ChatResult` that gives a str, None for no vote.

    ``workspace_tokens``: the most that drafts take of the prompt in ``refine``; less where the
    context leaves less. ``workspace``: makes the text under the question of a list of drafts.

    ``calls``: tool calls that each agent has answered, where tools are functions.
    """

    n_agents: int = 8
    rounds: int = 1
    aggregate: str = "vote"
    consensus: float | None = 1.0
    weak_window: int | None = None
    answer_key: Callable[[ChatResult], str | None] = answer_key
    workspace_tokens: int = _WORKSPACE_TOKENS
    workspace: Callable[[Sequence[str]], str] = listed
    calls: int = 8

    def __post_init__(self) -> None:
        integer("n_agents", self.n_agents, 1, MOST_AGENTS)
        integer("rounds", self.rounds, 1, MOST_ROUNDS)
        integer("workspace_tokens", self.workspace_tokens, 1)
        check_calls(self.calls)
        if self.aggregate not in AGGREGATES:
            raise refused("aggregate", self.aggregate, f"one of {list(AGGREGATES)}")
        if self.rounds > 1 and self.aggregate != "refine":
            raise InvalidRequest(
                f"rounds: got {self.rounds} with aggregate {self.aggregate!r}, which has one; "
                "'refine' has more"
            )
        if self.workspace_tokens != _WORKSPACE_TOKENS and self.aggregate != "refine":
            raise InvalidRequest(
                f"workspace_tokens: got {self.workspace_tokens} with aggregate "
                f"{self.aggregate!r}, which has no workspace; 'refine' has one"
            )
        if self.consensus is not None:
            allowed = "None or a number above 0.5, at most 1"
            if real("consensus", self.consensus, 0.5, 1.0, allowed) == 0.5:
                raise refused("consensus", self.consensus, allowed)
        if self.weak_window is not None:
            integer("weak_window", self.weak_window, 1)
        for name in ("answer_key", "workspace"):
            if not callable(getattr(self, name)):
                raise refused(name, getattr(self, name), "a function")

    @property
    def later_rounds(self) -> int:
        """Rounds after that of the drafts."""
        return self.rounds if self.aggregate == "refine" else 0

    @property
    def finished_before_weak(self) -> int:
        """Agents that finish before any is stopped as weak."""
        return max(2, self.n_agents // 4)


def checked_contemplating(given: Mapping[str, Any]) -> ContemplatingOptions:
    """The options among ``given``, None meaning the default. InvalidRequest naming the one that is
    wrong, and for what contradicts the mode."""
    if given.get("reasoning_effort") == "none":
        raise InvalidRequest(f"mode {CONTEMPLATING!r} contradicts reasoning_effort 'none'")
    named = {name: given[name] for name in AGENT_OPTIONS if given.get(name) is not None}
    if "consensus" in given:
        named["consensus"] = given["consensus"]  # None: never
    options = ContemplatingOptions(**named)
    if options.aggregate == "refine" and given.get("continue_final_message"):
        raise InvalidRequest(
            "continue_final_message contradicts aggregate 'refine': drafts stand under a question"
        )
    return options


def agent_seed(seed: int, round_number: int, agent: int) -> int:
    """The seed of an agent: the caller's own of the first agent of the first round, so that one
    agent alone answers as a chat does; else the first 8 bytes of BLAKE2b of "seed/round/agent", all
    counted from 0, little-endian. ``chat`` with it and the same options writes the same again."""
    if round_number == agent == 0:
        return seed
    text = f"{seed}/{round_number}/{agent}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
