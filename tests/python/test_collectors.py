"""What an engine's tokens come to: the same however many come at once."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

import musespark
from musespark.collectors import ChatCollector
from musespark.events import Finished, Tokens
from musespark.options import GenerationOptions
from musespark.text import ChannelParser
from support.turns import CASES, protocol_of, writer

TURN = (
    " to=self<|message|>Two and two, naïve 🙂.\n So four.<|eom|><|start|>assistant to=lookup"
    "<|message|>é<|eom|><|start|>assistant to=self<|message|>once more<|eom|>"
    "<|start|>assistant to=user<|message|>It is **four** — 4 🙂<|eot|>"
)
TEXT = "Once upon a time, naïve 🙂 words — so it was."


@pytest.fixture(scope="module")
def model():
    with musespark.load(threads=1) as loaded:
        yield loaded


def events_of(ids: list[int], sizes: Any) -> list[Tokens]:
    """The tokens in events of these sizes, each with a log-probability of its own, and signals of
    every third."""
    rows = np.arange(4 * len(ids), dtype=np.float32).reshape(-1, 4)
    rows[[i for i in range(len(ids)) if i % 3]] = np.nan
    out, at = [], 0
    while at < len(ids):
        part = slice(at, at + sizes())
        top = [[(i, -0.5)] for i in ids[part]]
        out.append(Tokens(ids[part], [-i / 8 for i in ids[part]], top, rows[part]))
        at = part.stop
    return out


def collected(collector: Any, events: list[Tokens]) -> tuple[Any, dict, int]:
    """The result; of each channel its text and the tokens told with it; pieces."""
    stats = {"prompt_tokens": 3, "trials": [], "thought_stop": "none", "thought_tokens": 1 << 20}
    texts: dict[str, str] = defaultdict(str)
    told: dict[str, list] = defaultdict(list)
    count = 0
    deltas = [d for event in events if not collector.stopped for d in collector.push(event)]
    last, result = collector.finish(Finished("stop", defaultdict(int, stats)))
    for delta in [*deltas, *last]:
        texts[delta.channel] += delta.text
        told[delta.channel] += delta.logprobs
        count += 1
    return result, {"texts": dict(texts), "told": dict(told)}, count


def listed(signals: Any) -> list | None:
    return signals and [row.tolist() for row in vars(signals).values()]


@pytest.mark.parametrize(("signals", "logprobs"), [(False, 0), (False, 1), (True, 0), (True, 1)])
@pytest.mark.parametrize("stop", [None, ["four**"], ["🙂"], ["never", "is"]])
def test_a_chat_is_the_same_in_any_pieces(model, stop, signals, logprobs) -> None:
    ids = model.tokenizer.encode(TURN, parse_special=True)
    given = {"logprobs": logprobs, "stop": stop, "seed": 1, "signals": signals}
    one = model._requests.chat("Which?", given)[1]
    result, told, _ = collected(one, events_of(ids, lambda: 1))
    assert "naïve 🙂.\n So four." in result.reasoning and result.stop_string == (stop and stop[-1])
    for seed in range(20):
        rng = random.Random(seed)
        collector = model._requests.chat("Which?", given)[1]
        sizes = partial(rng.randint, 1, 3 * seed + 1)
        found, how, _ = collected(collector, events_of(ids, sizes))
        assert collector.thought_tokens == one.thought_tokens
        assert how == told and listed(found.signals) == listed(result.signals)
        assert replace(found, signals=None) == replace(result, signals=None)


TRIMMED = [
    "<think>\n Two and two.\n\n So four.\n\n</think>\n\nFour é.\n",
    "<think>\n\n\n</think>\n\nFour",
    "<think>\ncut\n\n",
]


@pytest.mark.parametrize("text", TRIMMED)
def test_what_a_thought_is_trimmed_of_is_told_the_same(text) -> None:
    """Log-probabilities of separators between thoughts and answers, in pieces of any sizes."""
    case = CASES["hermes"]
    tokenizer = writer(protocol_of(case))
    ids = tokenizer.encode(text, parse_special=True)
    options = replace(GenerationOptions(), logprobs=1, seed=1)

    def told(size: int) -> Any:
        parser = ChannelParser(protocol_of(case), tokenizer)
        return collected(ChatCollector(parser, options, "f32"), events_of(ids, lambda: size))[:2]

    wanted = told(1)
    assert wanted[0].logprobs and any(wanted[1]["told"].values())
    assert all(told(size) == wanted for size in range(2, len(ids) + 1))


@pytest.mark.parametrize("stop", [None, ["words"]])
def test_a_completion_is_the_same_in_any_pieces(model, stop) -> None:
    ids = model.tokenizer.encode(TEXT)
    given = {"logprobs": 1, "stop": stop, "seed": 1}
    result, told, _ = collected(model._requests.text("A", given)[1], events_of(ids, lambda: 1))
    assert result.text == (TEXT if stop is None else TEXT.partition("words")[0])
    for size in (2, 5, 100):
        collector = model._requests.text("A", given)[1]
        found, how, _ = collected(collector, events_of(ids, lambda size=size: size))
        assert (found, how) == (result, told)


def test_what_comes_at_once_is_told_at_once(model) -> None:
    """A piece for each channel that an event has text of, not one for each token."""
    ids = model.tokenizer.encode(TURN, parse_special=True)
    collector = model._requests.chat("Which?", {"seed": 1})[1]
    assert collected(collector, events_of(ids, lambda: len(ids)))[2] < 10 < len(ids)
