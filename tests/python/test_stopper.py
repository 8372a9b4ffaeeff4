"""Logistic stoppers: they stop where their arithmetic says so, and take back what came after."""

from __future__ import annotations

import numpy as np
import pytest

import musespark
from musespark import Stopper, ThinkingPolicy
from musespark.errors import InvalidRequest
from musespark.thinking.stopper import FEATURES, border_features

SUM = "Tom has 12 apples. He buys 7 more and gives 5 to Ann. How many apples does he have?"
QUESTIONS = [SUM, *(f"What is {a}*{a - 9}?" for a in range(71, 99))]
XHIGH = {"reasoning_effort": "xhigh", "signals": True}
CLOSING = "\nTime is up. I answer with the best I have."
TRIED = {"trials": 8, "every": 1}
WATCH = ThinkingPolicy(confident=1.0, **TRIED)  # a probability of 1 is not reached


@pytest.fixture(scope="module")
def nano():
    with musespark.load(threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def asked(nano):
    """A question, and the thought that the model writes to it, with its trials; one that every
    feature says something of, cue words too."""
    for question in QUESTIONS:
        found = nano.chat(question, **XHIGH, thinking_policy=WATCH)
        ended = found.thinking_stop_reason == "natural" and len(found.trials) > 4
        if ended and border_features(found.signals)[1].std(axis=0)[:7].min() > 0:
            return question, found
    pytest.fail("no thought has all of it")


@pytest.fixture(scope="module")
def question(asked):
    return asked[0]


@pytest.fixture(scope="module")
def natural(asked):
    return asked[1]


def random_stopper(features: np.ndarray, seed: int) -> tuple[Stopper, int]:
    """One that stops first at some border, and which: every feature has a part in it."""
    rng = np.random.default_rng(seed)
    spread = features.std(axis=0)
    weights = rng.normal(size=len(FEATURES)) / np.where(spread > 0, spread, 1.0)
    scores = features @ weights
    if scores[0] == scores.max():
        weights, scores = -weights, -scores
    before = np.maximum.accumulate(scores)[:-1]
    highs = np.flatnonzero(scores[1:] > before + 1e-6) + 1  # higher than all before
    first = int(rng.choice(highs))
    # The threshold lies between two values, so that rounding decides nothing.
    bias = -float(before[first - 1] + scores[first]) / 2
    return Stopper(dict(zip(FEATURES, weights.tolist(), strict=True)), bias), first


@pytest.mark.parametrize("tried", [False, True], ids=["borders", "trials"])
@pytest.mark.parametrize("rule", ["stopper", "hopeless"])
def test_a_stopper_stops_where_the_twin_says(
    nano, question, natural, rule: str, tried: bool
) -> None:
    at, features = border_features(natural.signals, natural.trials if tried else None)
    assert features.std(axis=0)[: 9 if tried else 7].min() > 0, "a feature that says nothing"
    ends = set()
    for seed in range(8):
        stopper, first = random_stopper(features, seed)
        more = TRIED if tried else {}
        if tried and rule == "hopeless":
            more = {**more, "confident": 1.0}
        policy = ThinkingPolicy(**{rule: stopper}, **more)
        found = nano.chat(question, **XHIGH, thinking_policy=policy)
        assert found.thinking_stop_reason == {"stopper": "confident"}.get(rule, rule)
        length = int(at[first])
        ends.add(length)
        words = nano.tokenizer.encode(CLOSING) if rule == "hopeless" else []
        assert found.usage.reasoning_tokens == length + len(words) == len(found.signals)
        assert found.reasoning.endswith(CLOSING) == (rule == "hopeless")
        assert natural.reasoning.startswith(found.reasoning.removesuffix(CLOSING))
        for name in ("margin", "logprob", "entropy", "confidence"):
            kept = getattr(found.signals, name)[:length]
            np.testing.assert_array_equal(kept, getattr(natural.signals, name)[:length])
        if tried:
            assert found.trials == natural.trials[: first + 1]
        assert found.content and not found.protocol_errors
    assert len(ends) > 2


def test_a_stopper_decides_in_place_of_the_trials_own_rules(nano, question, natural) -> None:
    never = Stopper({}, threshold=1.0)
    policy = ThinkingPolicy(stopper=never, **TRIED)
    assert nano.chat(question, **XHIGH, thinking_policy=policy).tokens == natural.tokens
    at_once = ThinkingPolicy(stopper=Stopper({}, threshold=0.0), **TRIED)
    found = nano.chat(question, **XHIGH, thinking_policy=at_once)
    assert found.usage.reasoning_tokens == natural.trials[0].thought_tokens
    # one for hopeless thoughts leaves them in force
    both = ThinkingPolicy(hopeless=Stopper({}, threshold=0.0), confident=0.0, **TRIED)
    assert nano.chat(question, **XHIGH, thinking_policy=both).thinking_stop_reason == "confident"


def test_confident_is_asked_before_hopeless(nano) -> None:
    both = ThinkingPolicy(stopper=Stopper({}), hopeless=Stopper({}))
    assert nano.chat(SUM, **XHIGH, thinking_policy=both).thinking_stop_reason == "confident"


@pytest.mark.parametrize("trials", [0, 8])
@pytest.mark.parametrize("budget", [8, 25, 60])
def test_hopeless_thoughts_keep_to_their_budget(nano, trials: int, budget: int) -> None:
    tried = {"trials": trials, "every": 1, "confident": 1.0} if trials else {}
    policy = ThinkingPolicy(hopeless=Stopper({"borders": 10.0}, bias=-8.0), **tried)
    found = nano.chat(SUM, **XHIGH, thinking_policy=policy, thinking_token_budget=budget)
    assert found.usage.reasoning_tokens <= budget and found.content
    assert not found.protocol_errors


@pytest.mark.parametrize("tried", [False, True])
def test_the_same_in_a_batch_on_other_threads_and_streamed(
    nano, question, natural, tried: bool
) -> None:
    _, features = border_features(natural.signals, natural.trials if tried else None)
    stopper, _ = random_stopper(features, 1)
    policy = ThinkingPolicy(stopper=stopper, hopeless=stopper, **(TRIED if tried else {}))
    given = {**XHIGH, "temperature": 0.8, "seed": 4, "thinking_policy": policy}
    wanted = nano.chat(question, **given, speculation="off")
    found = [
        nano.chat_batch(["What is 3 + 4?", question, "Hi!"], **given)[1],
        nano.chat(question, **given),
    ]
    stream = nano.chat(question, **given, stream=True)
    seen = "".join(delta.text for delta in stream if delta.channel == "reasoning")
    assert seen == wanted.reasoning
    with musespark.load(threads=2, prefix_cache=False) as other:
        found += [other.chat(question, **given), stream.result]
    for one in found:
        assert (one.tokens, one.trials) == (wanted.tokens, wanted.trials)
        assert one.thinking_stop_reason == wanted.thinking_stop_reason
        assert one.signals.entropy.tobytes() == wanted.signals.entropy.tobytes()


def test_a_deadline_closes_a_thought(nano, question, natural) -> None:
    over = nano.chat(question, **XHIGH, thinking_policy=ThinkingPolicy(deadline=0.0))
    assert over.reasoning == "" and over.thinking_stop_reason == "none" and over.content
    later = nano.chat(question, **XHIGH, thinking_policy=ThinkingPolicy(deadline=1e6, **TRIED))
    assert later.thinking_stop_reason != "deadline"


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"weights": {"luck": 1.0}}, "weights: got 'luck', allowed are .*trial_streak"),
        ({"weights": [1.0]}, r"weights: got \[1.0\]"),
        ({"weights": {"margin": float("nan")}}, r"weights\['margin'\]: got nan"),
        ({"weights": {"margin": "1"}}, r"weights\['margin'\]: got '1'"),
        ({"weights": {}, "bias": float("inf")}, "bias: got inf, allowed is a finite number"),
        ({"weights": {}, "threshold": 1.5}, "threshold: got 1.5, allowed is a number from 0 to 1"),
        ({"weights": {}, "threshold": True}, "threshold: got True"),
    ],
)
def test_stoppers_are_checked(wrong: dict, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        Stopper(**wrong)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"stopper": 0.5}, "stopper: got 0.5, allowed is None or a musespark.Stopper"),
        ({"hopeless": {}}, "hopeless: got {}"),
        ({"deadline": -1.0}, "deadline: got -1.0, allowed is None or a number >= 0"),
        ({"deadline": float("nan")}, "deadline: got nan"),
        ({"stopper": Stopper({}), "trials": 8, "stable": 2}, "stable: got 2, which .* a stopper"),
    ],
)
def test_policies_are_checked(wrong: dict, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        ThinkingPolicy(**wrong)


def test_every_feature_is_documented() -> None:
    assert all(f"``{name}``" in Stopper.__doc__ for name in FEATURES)
