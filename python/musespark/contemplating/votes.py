"""Votes: which answer leads, and whether it is decided. Nothing here knows a model or a clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Vote:
    """One agent's, for the answers with this key. ``weight``: more than 0, at most 1."""

    agent: int
    key: str
    weight: float
    confidence: float


@dataclass(frozen=True)
class Tally:
    """All votes for one answer. ``confidence``: the mean of their agents'; ``best``: the agent that
    speaks for them, the most confident, of equals the lowest."""

    key: str
    votes: int
    weight: float
    confidence: float
    best: int
    lowest: int


def tally(votes: Sequence[Vote]) -> list[Tally]:
    """The answers, the leading one first: by weight, then mean confidence, then lowest agent. The
    order of the votes makes no difference."""
    groups: dict[str, list[Vote]] = {}
    for vote in sorted(votes, key=lambda vote: vote.agent):
        groups.setdefault(vote.key, []).append(vote)
    tallies = [_tally(key, group) for key, group in groups.items()]
    return sorted(tallies, key=lambda one: (-one.weight, -one.confidence, one.lowest))


def _tally(key: str, group: Sequence[Vote]) -> Tally:
    return Tally(
        key=key,
        votes=len(group),
        weight=math.fsum(vote.weight for vote in group),
        confidence=math.fsum(vote.confidence for vote in group) / len(group),
        best=min(group, key=lambda vote: (-vote.confidence, vote.agent)).agent,
        lowest=group[0].agent,
    )


def decided(tallies: Sequence[Tally], running: int, consensus: float | None) -> bool:
    """Whether a round may end while ``running`` agents have no vote yet.

    ``consensus`` 1: when the leader stays ahead whatever they say. Less: also when its probability
    to stay the most frequent answer is as high (adaptive consistency, arXiv:2305.11860, with the
    counts of the leading answer and of the next). None: never.
    """
    if consensus is None or not tallies:
        return False
    leader, others = tallies[0], tallies[1:]
    second = max((one.weight for one in others), default=0.0)
    if leader.weight > second + running:
        return True
    if consensus == 1.0:
        return False
    return (
        majority_probability(leader.votes, max((o.votes for o in others), default=0)) >= consensus
    )


def majority_probability(first: int, second: int) -> float:
    """The probability that the first of two answers is the more frequent one, after so many votes
    for each, with a uniform prior: the mass of Beta(first + 1, second + 1) above one half, which is
    that of at most ``first`` heads in first + second + 1 tosses of a fair coin."""
    tosses = first + second + 1
    return sum(math.comb(tosses, heads) for heads in range(first + 1)) / 2**tosses
