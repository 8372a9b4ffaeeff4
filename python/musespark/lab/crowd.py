"""Several agents on one question: samples and what they make together, and contemplating.

One pool of ``MOST`` samples an item gives, for any number of agents, the majority of the first so
many, the answer with the most confidence behind it, and sampling until consensus
(adaptive consistency, arXiv:2305.11860): exactly, for samples do not see each other. Contemplating
(``model.chat(mode="contemplating")``), whose agents do, is run.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np

import musespark

from ..contemplating.votes import Tally, Vote, majority_probability, tally
from ..thinking import ThinkingPolicy
from .backends import Reply, right
from .engine import MusesparkBackend, messages_of, plain
from .grading import grade, normalize
from .item import Item
from .paired import Resampled, interval

AGENTS = (1, 2, 4, 8, 16)
MOST = AGENTS[-1]
#: How samples are combined, and how contemplating does.
VOTE, CONFIDENCE, CONSENSUS = "sampled vote", "sampled confidence", "until consensus"
AGGREGATES = ("vote", "confidence", "refine")
#: Sampling stops where the leading answer beats the next one with this probability.
_CONSENSUS = 0.95
_TEMPERATURE = 0.7
#: Conversations that contemplate beside each other while accuracy is measured.
_BESIDE = 4
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sample:
    """``key``: equal for equal answers; None where it did not end, which is no vote. ``tokens``:
    all that it wrote. ``logprob``: their mean, in nats."""

    key: str | None
    right: bool
    tokens: int
    logprob: float


@dataclass(frozen=True)
class Crowd:
    """What ``agents`` made of each item [n]: ``right``, ``tokens`` of all agents together; and the
    mean wall time of a question asked alone, None where it is not one run."""

    agents: int
    aggregate: str
    right: np.ndarray
    tokens: np.ndarray
    seconds: float | None = None


# ---- samples --------------------------------------------------------------------------------


class Sampler(MusesparkBackend):
    """A backend that samples."""

    def pool(
        self,
        items: Sequence[Item],
        agents: int,
        limit: int,
        seed: int,
        progress: Progress = lambda done, total: None,
    ) -> list[list[Sample]]:
        """``agents`` samples of each item, each with a seed of its own."""

        def told(item: Item, agent: int) -> dict[str, Any]:
            seed_of_its_own = Random(f"{seed} {item.task} {item.key} {agent}").getrandbits(32)
            return {"temperature": _TEMPERATURE, "seed": seed_of_its_own, "logprobs": 1}

        return self.replies(items, agents, limit, told, sample_of, progress=progress)


def sample_of(item: Item, reply: Reply) -> Sample:
    """A reply as a sample."""
    seen = reply.logprobs
    logprob = sum(seen) / len(seen) if seen else -math.inf
    return Sample(_key(item, reply), right(item, reply), len(reply.tokens), logprob)


def _key(item: Item, reply: Reply) -> str | None:
    if not reply.finished:
        return None
    if item.checker == "call" or reply.calls:
        return json.dumps(reply.calls, sort_keys=True)
    return normalize(reply.answer)


def _tallies(samples: Sequence[Sample], *, weighed: bool = False) -> list[Tally]:
    """The answers of samples that ended, the leading one first, as contemplating counts votes.
    ``weighed``: each vote by the geometric mean of its tokens' probabilities."""
    sure = [math.exp(one.logprob) for one in samples]
    return tally(
        [
            Vote(agent, one.key, sure[agent] if weighed else 1.0, sure[agent])
            for agent, one in enumerate(samples)
            if one.key is not None
        ]
    )


def elected(samples: Sequence[Sample], *, weighed: bool = False) -> bool:
    """Whether the answer that leads is right."""
    leading = _tallies(samples, weighed=weighed)[:1]
    return any(samples[one.best].right for one in leading)


def until_consensus(samples: Sequence[Sample]) -> int:
    """How many of ``samples`` are drawn until the first of the answers leads the second for good
    with a probability of 0.95, under a Beta posterior of the two alone (arXiv:2305.11860, 3)."""
    for drawn in range(1, len(samples)):
        first, second = [*(one.votes for one in _tallies(samples[:drawn])[:2]), 0, 0][:2]
        if first and majority_probability(first, second) >= _CONSENSUS:
            return drawn
    return len(samples)


def sampled(pool: Sequence[Sequence[Sample]]) -> Iterator[Crowd]:
    """What pools of ``MOST`` samples an item give."""
    tokens = np.array([[one.tokens for one in samples] for samples in pool])
    for agents in AGENTS:
        spent = tokens[:, :agents].sum(axis=1)
        for aggregate, weighed in ((VOTE, False), (CONFIDENCE, True)):
            decided = np.array([elected(samples[:agents], weighed=weighed) for samples in pool])
            yield Crowd(agents, aggregate, decided, spent)
    drawn = [until_consensus(samples) for samples in pool]
    decided = np.array([elected(samples[:k]) for samples, k in zip(pool, drawn, strict=True)])
    spent = np.array([row[:k].sum() for row, k in zip(tokens, drawn, strict=True)])
    yield Crowd(MOST, CONSENSUS, decided, spent)


# ---- contemplating --------------------------------------------------------------------------


def contemplate(
    model: musespark.Model, item: Item, agents: int, aggregate: str, limit: int, seed: int
) -> tuple[bool, int]:
    """Whether contemplating answers ``item`` right, and the tokens of all its agents."""
    result = model.chat(
        messages_of(item),
        tools=item.tools,
        thinking_policy=ThinkingPolicy(),  # as samples: nothing that was calibrated
        reasoning_effort=item.effort,
        mode="contemplating",
        n_agents=agents,
        aggregate=aggregate,
        max_new_tokens=limit,
        seed=seed,
    )
    calls = [plain(call["function"]) for call in result.tool_calls]
    ended = result.finish_reason in ("stop", "tool_calls")
    return ended and grade(item, result.content, calls), result.usage.completion_tokens


def contemplated(
    model: musespark.Model,
    items: Sequence[Item],
    limit: int,
    seed: int,
    progress: Progress = lambda done, total: None,
) -> list[Crowd]:
    """Contemplating with each number of agents and each aggregate."""
    found: list[Crowd] = []
    total = len(AGENTS) * len(AGGREGATES)
    with ThreadPoolExecutor(_BESIDE) as threads:
        for aggregate in AGGREGATES:
            for agents in AGENTS:
                asked = [
                    threads.submit(contemplate, model, item, agents, aggregate, limit, seed)
                    for item in items
                ]
                decided, spent = zip(*(one.result() for one in asked), strict=True)
                found.append(Crowd(agents, aggregate, np.array(decided), np.array(spent)))
                progress(len(found), total)
    return found


# ---- time and rows --------------------------------------------------------------------------


def timed(crowd: Crowd, items: Sequence[Item], ask: Callable[[Item], object]) -> Crowd:
    """``crowd`` with the mean wall time of ``ask`` of these items, one after the other."""
    begin = time.perf_counter()
    for item in items:
        ask(item)
    return replace(crowd, seconds=(time.perf_counter() - begin) / len(items))


def crowd_rows(crowds: Sequence[Crowd], seed: int) -> list[dict[str, Any]]:
    """A row for each, on the same items; ``gain_points`` over one agent of the same aggregate, or
    of the vote, with its paired interval (lab.paired)."""
    drawn = Resampled(len(crowds[0].right), seed)
    single = {one.aggregate: one.right for one in crowds if one.agents == 1}
    out = []
    for one in crowds:
        accuracy = drawn.mean(one.right)
        gain = 100 * (accuracy - drawn.mean(single.get(one.aggregate, single[VOTE])))
        tokens = drawn.mean(one.tokens)
        row: dict[str, Any] = {
            "agents": one.agents,
            "aggregate": one.aggregate,
            "n": len(one.right),
            "correct": int(one.right.sum()),
            "tokens": round(float(tokens[0]), 2),
            "seconds": None if one.seconds is None else round(one.seconds, 5),
        }
        for name, values in (("accuracy", accuracy), ("gain_points", gain)):
            row[name] = round(float(values[0]), 4)
            row[f"{name}_interval"] = [round(v, 4) for v in interval(values) or ()]
        out.append(row)
    return out
