"""Contemplating: agents that answer a question at once, and one answer made of theirs.

    result = model.chat(question, mode="contemplating", n_agents=8, aggregate="vote")
    result.content, result.votes, result.agents

options.py: what a caller says, and the agents' seeds; run.py: the rounds, from a question to the
result; drafts.py: one round, the order in which its agents are read, and what ends it; agents.py:
an agent's conversation; keys.py: when two answers are the same; votes.py: which one leads;
confidence.py: how sure an agent was; workspace.py: drafts under a question; streams.py: who drives
it; result.py: what it returns.
"""

from musespark.contemplating.keys import answer_key
from musespark.contemplating.options import (
    ContemplatingOptions,
    agent_seed,
)
from musespark.contemplating.result import (
    AgentDelta,
    AgentResult,
    ContemplationResult,
    RoundResult,
)
from musespark.contemplating.run import Contemplation
from musespark.contemplating.streams import (
    AsyncContemplationStream,
    acontemplate,
    contemplate,
    drain_together,
)

__all__ = [
    "AgentDelta",
    "AgentResult",
    "AsyncContemplationStream",
    "ContemplatingOptions",
    "Contemplation",
    "ContemplationResult",
    "RoundResult",
    "acontemplate",
    "agent_seed",
    "answer_key",
    "contemplate",
    "drain_together",
]
