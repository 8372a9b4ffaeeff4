"""Trial answers along a thought: what they say, what they change, and that nothing else does."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

import musespark
from musespark import ThinkingPolicy
from musespark.errors import InvalidRequest

SUM = "Tom has 12 apples. He buys 7 more and gives 5 to Ann. How many apples does he have?"
OTHERS = ["What is 3 + 4?", "sort 19, 42, 94, 58, 92", "What is 23 + 45 - 12?", "Hi!"]
HIGH = {"reasoning_effort": "high"}
WATCH = ThinkingPolicy(trials=8, confident=1.0, every=1)  # a probability of 1 is not reached
STABLE = ThinkingPolicy(trials=8, confident=0.0, stable=2, every=1)


@pytest.fixture(scope="module")
def nano():
    with musespark.load(threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def natural(nano):
    return nano.chat(SUM, **HIGH)


def prompt(model, **options) -> list[int]:
    request, _ = model._requests.chat(SUM, {**HIGH, **options})
    return [int(t) for t in request.tokens]


def closing(model) -> list[int]:
    request, _ = model._requests.chat(SUM, {**HIGH, "thinking_policy": STABLE})
    return request.trials["close"]


def thought(model, result) -> tuple[int, list[int]]:
    """Where it begins in the completion, and its tokens."""
    marks = model._requests.thoughts.marks
    ids, opens = list(result.tokens), marks["opens"][0]
    begin = next(i for i in range(len(ids)) if ids[i : i + len(opens)] == opens) + len(opens)
    end = next(i for i in range(begin, len(ids)) if ids[i] in marks["closes"])
    return begin, ids[begin:end]


# ---- what a trial is -----------------------------------------------------------------------------


def test_trials_are_what_the_closed_thought_would_answer(nano, natural) -> None:
    watched = nano.chat(SUM, **HIGH, thinking_policy=WATCH)
    assert watched.tokens == natural.tokens and watched.thinking_stop_reason == "natural"
    begin, written = thought(nano, natural)
    text = [nano.tokenizer.decode(written[: i + 1]) for i in range(len(written))]
    ends = [i + 1 for i, t in enumerate(text) if t.endswith((".", "\n"))]
    # Where the model itself ends the thought there is nothing to try.
    assert [trial.thought_tokens for trial in watched.trials] == [e for e in ends if e < len(text)]
    for trial in watched.trials:
        ids = prompt(nano) + list(natural.tokens[: begin + trial.thought_tokens]) + closing(nano)
        found = nano.generate(ids, max_new_tokens=8, logprobs=1)
        answer = [t for t in found.tokens if t not in nano._requests.stop_ids]
        assert nano.tokenizer.decode(answer) == trial.answer
        mean = np.mean([one.logprob for one in found.logprobs])
        assert trial.confidence == pytest.approx(np.exp(mean), rel=1e-5)
    rows = len(watched.trials) * len(closing(nano))
    assert watched.usage.probe_tokens >= rows


@pytest.mark.parametrize("logprobs", [0, 2])
def test_a_thought_ends_where_answers_are_stable(nano, natural, logprobs: int) -> None:
    found = nano.chat(SUM, **HIGH, thinking_policy=STABLE, logprobs=logprobs)
    assert found.thinking_stop_reason == "stable" and len(found.trials) >= 2
    *_, before, last = found.trials
    assert before.answer == last.answer == found.content
    begin, written = thought(nano, found)
    _, whole = thought(nano, natural)
    assert written == whole[: last.thought_tokens] and len(written) < len(whole)
    ids = prompt(nano) + list(found.tokens[: begin + len(written)]) + closing(nano)
    after = nano.generate(ids, max_new_tokens=20)
    assert list(found.tokens[begin + len(written) :]) == closing(nano) + list(after.tokens)
    assert found.usage.reasoning_tokens == len(written)
    assert not found.protocol_errors
    if logprobs:
        assert len(found.logprobs) == len(found.tokens)
        again = nano.score(ids + list(after.tokens))
        for token, one in zip(range(len(prompt(nano)), len(again)), found.logprobs, strict=False):
            assert one.logprob == pytest.approx(again[token], abs=1e-4)


def test_confidence_decides(nano) -> None:
    watched = nano.chat(SUM, **HIGH, thinking_policy=WATCH)
    best = max(watched.trials, key=lambda trial: trial.confidence)
    first = next(t for t in watched.trials if t.confidence >= best.confidence)
    policy = ThinkingPolicy(trials=8, confident=best.confidence, every=1)
    found = nano.chat(SUM, **HIGH, thinking_policy=policy)
    assert found.thinking_stop_reason == "confident"
    assert found.usage.reasoning_tokens == first.thought_tokens


def test_trials_keep_their_distance(nano) -> None:
    policy = ThinkingPolicy(trials=4, confident=1.0, every=30)
    at = [trial.thought_tokens for trial in nano.chat(SUM, **HIGH, thinking_policy=policy).trials]
    assert at and at[0] >= 30 and all(b - a >= 30 for a, b in pairwise(at))


def test_the_trial_that_ends_a_thought_begins_the_answer(nano) -> None:
    found = nano.chat(SUM, **HIGH, thinking_policy=STABLE)
    assert found.thinking_stop_reason == "stable"
    request, _ = nano._requests.chat(SUM, {**HIGH, "thinking_policy": STABLE})
    rows = [r for *_, r in nano._engine.submit(request).result().stats["trials"]]
    assert rows[-1] == 0 and all(r >= len(closing(nano)) for r in rows[:-1])
    assert found.usage.probe_tokens == sum(rows)
    with_logprobs = nano.chat(SUM, **HIGH, thinking_policy=STABLE, logprobs=1)  # written anew
    assert with_logprobs.usage.probe_tokens > found.usage.probe_tokens


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.8},
        {"temperature": 1.5},
        {"temperature": 2.0, "top_p": 0.9},
        {"temperature": 2.5, "thinking_token_budget": 40},
        {"temperature": 0.9, "repetition_penalty": 1.3},
        {"logit_bias": {120: 4.0}},
    ],
)
def test_the_answer_is_what_it_would_be_without_the_trials_rows(nano, options) -> None:
    policy = ThinkingPolicy(trials=8, confident=0.3, every=1)
    given = {**HIGH, "thinking_policy": policy, "max_new_tokens": 200, **options}
    ended = 0
    for seed in range(6):
        found = nano.chat(SUM, **given, seed=seed)
        assert nano.chat(SUM, **given, seed=seed, logprobs=1).tokens == found.tokens
        if found.thinking_stop_reason != "confident":
            continue
        begin, written = thought(nano, found)
        start = begin + len(written) + len(closing(nano))
        asked = prompt(nano, thinking_policy=policy) + list(found.tokens[:start])
        sampled = {k: v for k, v in options.items() if k != "thinking_token_budget"}
        rest = list(found.tokens[start:])
        alone = nano.generate(asked, max_new_tokens=len(rest), seed=seed, **sampled)
        assert list(alone.tokens) == rest
        ended += 1
    assert ended


@pytest.mark.parametrize("options", [{"min_new_tokens": 90}, {"thought_cache": "demote"}])
def test_rules_of_length_and_memory_hold_where_a_trial_ends_a_thought(options) -> None:
    policy = ThinkingPolicy(trials=8, confident=0.3, every=1)
    with musespark.load(threads=1, kv="kv8") as model:
        given = {**HIGH, "thinking_policy": policy, **options}
        found = model.chat(SUM, **given)
        assert found.thinking_stop_reason == "confident"
        anew = model.chat(SUM, **given, logprobs=1)
        assert anew.tokens == found.tokens
        assert found.usage.completion_tokens >= options.get("min_new_tokens", 1)
        # a demoted thought is not the one that the trial saw
        kept = found.usage.probe_tokens < anew.usage.probe_tokens
        assert kept == ("thought_cache" not in options)


@pytest.mark.parametrize("penalty", [-0.5, -1.0, -2.0, 2.0])
def test_penalties_count_what_the_sequence_has_not_what_was_taken_back(nano, penalty) -> None:
    policy = ThinkingPolicy(trials=8, confident=0.0, every=1)
    for text in (SUM, *OTHERS[:3]):
        given = {**HIGH, "thinking_policy": policy, "frequency_penalty": penalty}
        found = nano.chat(text, **given)
        assert found.thinking_stop_reason == "confident"
        assert nano.chat(text, **given, logprobs=1).tokens == found.tokens


# ---- one result ----------------------------------------------------------------------------------

SAMPLED = [
    {"temperature": 0.9, "seed": 3},
    {"temperature": 1.2, "seed": 5, "repetition_penalty": 1.2, "frequency_penalty": 0.1},
    {"thinking_token_budget": 45},
    {"thinking_token_budget": 60, "max_new_tokens": 6, "temperature": 0.7, "seed": 1},
]


@pytest.mark.parametrize("length", range(26, 34))
def test_an_end_by_a_trial_keeps_to_the_length(nano, length: int) -> None:
    policy = ThinkingPolicy(trials=8, confident=0.5, every=1)
    given = {**HIGH, "thinking_policy": policy, "max_new_tokens": length}
    found = nano.chat(SUM, **given)
    assert found.usage.completion_tokens <= length
    assert nano.chat(SUM, **given, logprobs=1).tokens == found.tokens


@pytest.mark.parametrize("policy", [WATCH, STABLE])
@pytest.mark.parametrize("options", SAMPLED)
def test_the_same_alone_in_a_batch_in_other_memory_and_threads(nano, options, policy) -> None:
    given = {**HIGH, "thinking_policy": policy, **options}
    alone = nano.chat(SUM, **given)
    batch = nano.chat_batch([*OTHERS, SUM, *OTHERS, SUM], **given)
    for found in (batch[4], batch[9]):
        assert (found.tokens, found.trials) == (alone.tokens, alone.trials)
        assert found.usage.probe_tokens == alone.usage.probe_tokens
        assert found.thinking_stop_reason == alone.thinking_stop_reason
    with musespark.load(threads=2, prefix_cache=False) as other:
        found = other.chat(SUM, **given)
        assert (found.tokens, found.trials) == (alone.tokens, alone.trials)
    if policy is WATCH:
        bare = nano.chat(SUM, **{**given, "thinking_policy": "auto"})
        assert bare.tokens == alone.tokens


@pytest.mark.parametrize("drafter", [None, "own"])
@pytest.mark.parametrize("policy", [WATCH, STABLE])
def test_the_same_with_drafts_beside_trials(drafter, policy) -> None:
    right = 0
    with musespark.load(threads=1, drafter=drafter) as model:
        for seed, text in enumerate([SUM, *OTHERS]):
            given = {**HIGH, "thinking_policy": policy, "temperature": 0.6 * (seed % 2)}
            plain = model.chat(text, **given, seed=seed, speculation="off")
            request, _ = model._requests.chat(text, {**given, "seed": seed})
            eager = replace(request, draft_tokens=16, draft_eagerly=True)
            found = model._engine.submit(eager).result()
            assert tuple(found.tokens) == tuple(plain.tokens)
            tried = [trial[0] for trial in found.stats["trials"]]
            assert tried == [trial.thought_tokens for trial in plain.trials]
            assert found.stats["trial_tokens"] == plain.usage.probe_tokens
            right += found.stats["accepted_tokens"]
    assert right > 20


def test_a_stream_never_takes_back(nano) -> None:
    given = {**HIGH, "thinking_policy": STABLE}
    wanted = nano.chat(SUM, **given)
    stream = nano.chat(SUM, **given, stream=True)
    seen = "".join(delta.text for delta in stream if delta.channel == "reasoning")
    assert seen == wanted.reasoning and stream.result.tokens == wanted.tokens


def test_a_session_goes_on_from_what_was_kept(nano, tmp_path) -> None:
    given = {**HIGH, "thinking_policy": STABLE}
    session = nano.session()
    first = session.chat(SUM, **given)
    assert first.thinking_stop_reason == "stable"
    session.save(tmp_path / "s")
    second = session.chat("And what is 7 + 8?", **given)
    with musespark.load(threads=1, prefix_cache=False) as other:
        turns = [{"role": "user", "content": SUM}, dict(first.message)]
        asked = [*turns, {"role": "user", "content": "And what is 7 + 8?"}]
        assert other.chat(asked, **given).tokens == second.tokens
        assert other.resume(tmp_path / "s").chat("And what is 7 + 8?", **given).tokens == (
            second.tokens
        )


def test_a_schema_holds_after_a_trial(nano) -> None:
    pytest.importorskip("llguidance")
    found = nano.chat(SUM, **HIGH, thinking_policy=STABLE, json_schema={"type": "integer"})
    assert found.thinking_stop_reason == "stable" and isinstance(found.parsed, int)


def test_nothing_is_left_in_memory(nano) -> None:
    def used() -> int:
        nano.generate("x", max_new_tokens=1)
        return nano._engine.stats()["kv_bytes_used"]

    before = used()
    for policy in (WATCH, STABLE):
        nano.chat(SUM, **HIGH, thinking_policy=policy)
        with nano.chat(SUM, **HIGH, thinking_policy=policy, stream=True) as stream:
            for count, _ in enumerate(stream):
                if count == 5:
                    break
    assert used() == before


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"trials": 65},
        {"trials": -1},
        {"trials": True},
        {"confident": 1.1},
        {"confident": -0.1},
        {"stable": 0},
        {"every": 0},
    ],
)
def test_policies_are_checked(wrong: dict) -> None:
    (name,) = wrong
    with pytest.raises(InvalidRequest, match=f"{name}: got"):
        ThinkingPolicy(**wrong)


def test_trials_do_not_go_with_evicted_thoughts(nano) -> None:
    says = r"trials\.tokens: got 8 with thoughts\.most_tokens = 64"
    with pytest.raises(InvalidRequest, match=says):
        nano.chat(SUM, **HIGH, thinking_policy=STABLE, thought_cache_tokens=64)
