"""Requests that share a compiled grammar: each ends as it would alone, whatever others wrote."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import musespark
from musespark import grammar
from musespark.errors import InvalidRequest
from musespark.grammar import Grammars, chosen_grammar
from musespark.turn_start import Constraint

NANO = Path(musespark.__file__).parent / "nano"
# Its lexer has a state for each set of places where an "a" was.
GIVEN = chosen_grammar({"regex": ".*a.{40}b"})
TOKENS = 120
STATES = 500  # some of them end by it, alone already


@pytest.fixture(scope="module")
def tokenizer() -> musespark.Tokenizer:
    return musespark.Tokenizer.load(NANO)


class Counted(Grammars):
    """``tried``: how many went on alone."""

    tried = 0

    def alone(self, given):
        self.tried += 1
        return Masks(super().alone(given))


class Masks:
    """A matcher; ``made``: how many masks it was asked for."""

    def __init__(self, matcher: Any):
        self.matcher, self.made = matcher, 0

    def compute_bitmask(self) -> bytes:
        self.made += 1
        return self.matcher.compute_bitmask()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.matcher, name)


def made(tokenizer: musespark.Tokenizer) -> Counted:
    return Counted(tokenizer, tokenizer.vocab_size, tokenizer.eos_ids)


class Written:
    """A request that writes tokens at random of those that may come."""

    def __init__(self, grammars: Grammars, seed: int):
        self.vocab, self.chance = grammars.vocab, random.Random(seed)
        self.constraint = Constraint(grammars, GIVEN)
        self.ids: list[int] = []
        self.error = ""

    @property
    def ended(self) -> bool:
        return bool(self.error) or len(self.ids) == TOKENS

    def step(self) -> None:
        try:
            bits = int.from_bytes(self.constraint(self.ids[-1:]), "little")
        except InvalidRequest as error:
            self.error = str(error)
            return
        self.ids.append(self.chance.choice([i for i in range(self.vocab) if bits >> i & 1]))

    def drain(self) -> tuple[list[int], str]:
        while not self.ended:
            self.step()
        return self.ids, self.error


@pytest.mark.parametrize("at_once", [1, 8])
def test_each_ends_as_it_would_alone(tokenizer, monkeypatch, at_once: int) -> None:
    monkeypatch.setattr(grammar, "_MOST_STATES", STATES)
    seeds = range(12)
    alone = [Written(made(tokenizer), seed).drain() for seed in seeds]
    failed = sum(bool(error) for _, error in alone)
    assert 0 < failed < len(alone), "the limit tells none of them from the others"
    shared = made(tokenizer)
    together = [Written(shared, seed) for seed in seeds[:at_once]]
    while not all(one.ended for one in together):
        for one in together:
            if not one.ended:
                one.step()
    together += [Written(shared, seed) for seed in seeds[at_once:]]
    assert [one.drain() for one in together] == alone
    assert shared.tried >= at_once
    assert shared._compiled[GIVEN.text] is None, "later ones share again"


def test_who_goes_on_alone_makes_no_mask_anew(tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(grammar, "_MOST_STATES", 9000)
    shared = made(tokenizer)
    others = [Written(shared, seed) for seed in range(8)]
    one = Written(shared, 8)
    for _ in range(TOKENS // 2):
        one.step()
    assert not shared.tried, "the limit was met before the others wrote"
    while not shared.tried:
        for other in others:
            other.step()
    one.step()
    assert shared.tried > 1
    assert one.constraint._matcher.made == 1


def test_an_error_that_is_no_fullness_is_the_requests_own(tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(grammar, "_MOST_WORK", 1)
    shared = made(tokenizer)
    constraint = Constraint(
        shared, chosen_grammar({"grammar": 'start: "a"? "b"? "c"? (/d+/ "e")*'})
    )
    with pytest.raises(InvalidRequest, match="Too many items"):
        constraint([])
    assert not shared.tried


def test_what_is_too_much_alone_is_refused(tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(grammar, "_MOST_STATES", 300)
    _, error = Written(made(tokenizer), 1).drain()
    assert error.startswith(
        "regex: it cannot be followed any further (lexer error: too many states"
    )
