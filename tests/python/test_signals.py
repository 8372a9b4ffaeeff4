"""Signals of thoughts: what they say, that they are one result, and that they are there once."""

from __future__ import annotations

import json
import pickle
import random

import numpy as np
import pytest

import musespark
from musespark import ThinkingPolicy, _core
from musespark.errors import InvalidRequest
from musespark.reference.signals import TOLERANCE, signals
from musespark.thinking.request import token_class
from support.chat_folder import chat_folder

SUM = "Tom has 12 apples. He buys 7 more and gives 5 to Ann. How many apples does he have?"
HIGH = {"reasoning_effort": "high", "signals": True}
NAMES = ("margin", "logprob", "entropy", "confidence")
STABLE = ThinkingPolicy(trials=8, confident=0.0, stable=2, every=1)


@pytest.fixture(scope="module")
def nano():
    with musespark.load(threads=1) as loaded:
        yield loaded


def prompt(model, **options) -> list[int]:
    request, _ = model._requests.chat(SUM, {"reasoning_effort": "high", **options})
    return [int(t) for t in request.tokens]


def thought(model, tokens) -> tuple[int, list[int]]:
    """Where it begins in the completion, and its tokens."""
    marks = model._requests.thoughts.marks
    ids, opens = list(tokens), marks["opens"][0]
    begin = next(i for i in range(len(ids)) if ids[i : i + len(opens)] == opens) + len(opens)
    end = next(i for i in range(begin, len(ids)) if ids[i] in marks["closes"])
    return begin, ids[begin:end]


def bits(found) -> list[bytes]:
    return [getattr(found, name).tobytes() for name in (*NAMES, "borders", "cues")]


def assert_what_the_logits_say(model, ids: list[int], begin: int, count: int, found) -> None:
    rows = model.logits(ids)
    close = model._requests.thoughts._fixed["close"]
    wanted = [signals(rows[begin + i - 1], ids[begin + i], close) for i in range(count)]
    got = np.stack([getattr(found, name) for name in NAMES], axis=1)
    assert got.dtype == np.float32 and len(found) == count
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=TOLERANCE)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.3, "seed": 4, "repetition_penalty": 1.2, "top_k": 50, "min_p": 0.02},
        {"thinking_token_budget": 40},  # forced tokens, and a raised marker
        {"thinking_policy": "off", "logit_bias": {9: 3.0}},
        {"thinking_policy": STABLE},
    ],
)
def test_signals_are_what_the_models_own_logits_say(nano, options: dict) -> None:
    found = nano.chat(SUM, **HIGH, **options)
    asked = prompt(nano, **options)
    begin, written = thought(nano, found.tokens)
    ids = asked + list(found.tokens[: begin + len(written)])
    assert_what_the_logits_say(nano, ids, len(asked) + begin, len(written), found.signals)
    assert len(written) == found.usage.reasoning_tokens > 20
    pieces = [nano.tokenizer.decode([t]) for t in written]
    assert [p.rstrip().endswith(".") or "\n" in p for p in pieces] == found.signals.borders.tolist()
    assert [p.strip() == "Check" for p in pieces] == found.signals.cues.tolist()
    bare = nano.chat(SUM, reasoning_effort="high", **options)
    assert bare.tokens == found.tokens and bare.signals is None


def test_log_probabilities_are_those_of_logprobs(nano) -> None:
    found = nano.chat(SUM, **HIGH, logprobs=1, temperature=0.8, seed=2)
    begin, written = thought(nano, found.tokens)
    logprobs = [one.logprob for one in found.logprobs[begin : begin + len(written)]]
    np.testing.assert_allclose(found.signals.logprob, logprobs, atol=TOLERANCE)


@pytest.mark.parametrize(
    "size", [2, 19, 20, 21, 33, 639, 640, 641, 2560, (1 << 14) - 1, 1 << 14, 40_003]
)
@pytest.mark.parametrize("kind", ["any", "peaked", "steps", "flat"])
def test_the_core_and_the_twin(size: int, kind: str) -> None:
    rng = np.random.default_rng([size, len(kind)])
    row = {
        "any": rng.normal(0, 4, size),
        "peaked": np.where(np.arange(size) == size // 2, 40.0, rng.normal(0, 3, size)),
        "steps": rng.integers(-3, 4, size),  # ties, more than blocks
        "flat": np.full(size, -7.5),
    }[kind].astype(np.float32)
    for token, close in ((0, size - 1), (size - 1, size // 2)):
        got = _core.testing.signals(row, token=token, close=close)
        np.testing.assert_allclose(got, signals(row, token, close), rtol=1e-6, atol=TOLERANCE)
        assert got[2] >= 0
    # What is large is far from the edge of a block somewhere.
    turned = np.roll(row, 7)
    assert _core.testing.signals(turned, token=7 % size, close=0)[3] == pytest.approx(got[3], 1e-6)


@pytest.mark.parametrize("policy", ["auto", STABLE])
def test_the_same_in_a_batch_streamed_speculated_and_on_other_threads(nano, policy) -> None:
    given = {**HIGH, "temperature": 0.9, "seed": 3, "thinking_policy": policy}
    wanted = nano.chat(SUM, **given, speculation="off")
    assert len(wanted.signals) > 20
    others = [nano.chat_batch(["What is 3 + 4?", SUM, "sort 9, 3, 7"], **given)[1]]
    stream = nano.chat(SUM, **given, stream=True)
    assert len(list(stream)) >= 2
    others += [stream.result, nano.session().chat(SUM, **given), nano.chat(SUM, **given)]
    with musespark.load(threads=2, prefix_cache=False) as other:
        others.append(other.chat(SUM, **given))
    assert all(bits(one.signals) == bits(wanted.signals) for one in others)


def test_drafts_that_are_kept_have_the_signals_of_tokens_made_one_by_one(nano) -> None:
    """A drill that Nano knows, random tokens again and again: drafts are made and right."""
    marks = nano._requests.thoughts.marks
    draw = random.Random(0)
    opened = [*marks["opens"][0], *[draw.randrange(110, 2500) for _ in range(12)] * 4]
    given = {"max_new_tokens": 250, "signals": True, "logit_bias": {marks["closes"][0]: -50.0}}
    plain = nano.generate(opened, speculation="off", **given)
    found = nano.generate(opened, **given)
    # Where drafts do not pay, as on a machine that is busy, two tokens are tried now and then.
    assert found.timings.accepted_tokens > 0 and plain.timings.accepted_tokens == 0
    assert found.tokens == plain.tokens and bits(found.signals) == bits(plain.signals)


def test_a_text_that_opens_a_thought_has_signals(nano) -> None:
    opens = nano._requests.thoughts.marks["opens"][0]
    ids = [*prompt(nano), *opens]
    found = nano.generate(ids, max_new_tokens=30, signals=True)
    count = 30
    assert_what_the_logits_say(nano, ids + list(found.tokens), len(ids), count, found.signals)
    outside = nano.generate("one two", max_new_tokens=4, signals=True)
    assert len(outside.signals) == 0 and outside.signals.margin.dtype == np.float32


def test_an_agent_has_the_signals_that_it_would_have_alone(nano) -> None:
    given = {**HIGH, "temperature": 0.7, "seed": 3}
    found = nano.chat(SUM, **given, mode="contemplating", n_agents=1)
    alone = nano.chat(SUM, **given)
    assert found.tokens == alone.tokens and bits(found.signals) == bits(alone.signals)


def test_results_with_signals_are_plain_data(nano) -> None:
    found = nano.chat(SUM, **HIGH)
    again = pickle.loads(pickle.dumps(found))
    assert again == found and bits(again.signals) == bits(found.signals)
    told = json.loads(json.dumps(found.to_dict()))["signals"]
    assert sorted(told) == sorted((*NAMES, "borders", "cues"))
    np.testing.assert_allclose(told["entropy"], found.signals.entropy)
    assert nano.chat(SUM, reasoning_effort="high").to_dict()["signals"] is None


def test_what_is_refused(nano, tmp_path) -> None:
    with pytest.raises(InvalidRequest, match="signals: got 1, allowed is True or False"):
        nano.chat(SUM, signals=1)
    with pytest.raises(InvalidRequest, match="signals: got 'yes'"):
        nano.generate("a", signals="yes")
    with musespark.load(chat_folder(tmp_path), threads=1, quantize="none") as model:
        for ask in (model.chat, model.generate):
            with pytest.raises(InvalidRequest, match=r"signals: .*marks no thoughts"):
                ask("a", signals=True, max_new_tokens=3)


@pytest.mark.parametrize(
    ("piece", "cue"),
    [
        (b" Wait", True),
        (b"wait,", True),
        (b"\nHmm", True),
        (b" But", True),
        (b"Check:", True),
        (b" alternatively", True),
        (b" waiter", False),
        (b"butter", False),
        (b" ", False),
        (b"", False),
    ],
)
def test_cue_words(piece: bytes, cue: bool) -> None:
    assert (token_class(piece) & 16 != 0) == cue
