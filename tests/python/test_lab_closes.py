"""Closes along a thought: what is read off them is what the engine does; rules on canned trials."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import musespark
from musespark.errors import UnsupportedModel
from musespark.lab.backends import Reply, right
from musespark.lab.closes import HARD, LANDING, MESSAGE, Budget, End, Trace, Tracer, Trial, states
from musespark.lab.evaluate import items_for
from musespark.lab.item import Item
from musespark.lab.oracle import thinking_tokens
from musespark.lab.stops import (
    CUE_WORDS,
    FIRST_STATED,
    budgets_of,
    cue_bias,
    first_stated,
    read_off,
    stopped,
    trial_oracle,
)
from musespark.thinking import ThinkingPolicy
from support.chat_folder import chat_folder

LIMIT = 400
OFF = {"thinking_policy": "off"}
BUDGETS = (1, 3, 12, 14, 15, 20, 33, 60)


@pytest.fixture(scope="module")
def tracer():
    backend = Tracer(None, threads=1, prefix_cache=False)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def asked(tracer):
    tasks = ["word_problem", "table", "tool_call", "addition", "sorting"]
    items = items_for(tasks, ["easy", "hard"], ["high"], 1, seed=3)
    return items, tracer.reply(items, LIMIT, options=OFF)


@pytest.fixture(scope="module")
def traces(tracer, asked):
    budgets = [Budget(n, how) for n in BUDGETS for how in (HARD, MESSAGE, LANDING)]
    return tracer.trace(*asked, LIMIT, budgets=budgets)


def ends_of(items, replies) -> list[End]:
    told = zip(items, replies, strict=True)
    return [End(right(i, r), r.thinking_tokens, r.probe_tokens) for i, r in told]


# ---- what is read off is what the engine does ------------------------------------------------


@pytest.mark.parametrize(
    "name", ["confident 0.8", "confident 0.95, every 16", "stable 2", "stable 3, every 16"]
)
def test_trials_read_off_are_the_engines(tracer, asked, traces, name: str) -> None:
    items, _ = asked
    policy = next(p for p in read_off({}) if p.name == name)
    replies = tracer.reply(items, LIMIT, options=policy.options)
    read = [policy.read(trace) for trace in traces]
    assert read == ends_of(items, replies)
    assert sum(end.probe for end in read) > 0
    if name == "confident 0.8":  # some are stopped, so that the test sees stops
        assert any(a.thinking < t.whole.thinking for a, t in zip(read, traces, strict=True))


@pytest.mark.parametrize("budget", BUDGETS)
def test_budgets_read_off_are_the_engines(tracer, asked, traces, budget: int) -> None:
    items, _ = asked
    replies = tracer.reply(items, LIMIT, options={**OFF, "thinking_token_budget": budget})
    assert [trace.budgets[Budget(budget, LANDING)] for trace in traces] == ends_of(items, replies)
    assert all(r.thinking_tokens <= budget for r in replies)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("how", [HARD, MESSAGE])
def test_hard_cuts_read_off_are_a_budget_without_landing(
    tracer, asked, traces, budget: int, how: str
) -> None:
    for item, reply, trace in zip(*asked, traces, strict=True):
        given = {**OFF, "thinking_token_budget": budget}
        request, *_ = tracer._request(item, LIMIT, **given)
        words = tracer.model._requests.protocol.closing
        message = tracer.model.tokenizer.encode(words) if how == MESSAGE else []
        most = budget + len(message)
        rules = request.thinking | {"landing": 0, "message": message, "budget": most}
        asked_for = replace(request, thinking=rules, max_new_tokens=LIMIT + most)
        result = tracer.model._engine.submit(asked_for).result()
        end = trace.budgets[Budget(budget, how)]
        assert end.thinking == thinking_tokens(result.tokens, tracer._markers)
        if reply.thinking_tokens >= budget:
            assert end.thinking == most


def test_traces_have_the_lab_s_oracle_and_all_sentences(tracer, asked, traces) -> None:
    items, replies = asked
    oracle = tracer.reply(items, LIMIT, options=OFF, oracle=True)
    assert [t.stable for t in traces] == [r.stable for r in oracle]
    assert [t.whole for t in traces] == ends_of(items, replies)
    watch = {"thinking_policy": ThinkingPolicy(trials=32, confident=1.0, every=1, loop=0)}
    for item, trace in zip(items, traces, strict=True):
        result = tracer._ask(item, [], LIMIT, **watch).drain()
        assert [t.thought_tokens for t in result.trials] == [t.thinking for t in trace.trials]
        decode = tracer.model.tokenizer.decode
        assert [t.answer for t in result.trials] == [decode(t.answer[:32]) for t in trace.trials]
        wanted = [float(t.confidence(32)) for t in trace.trials]
        assert [t.confidence for t in result.trials] == pytest.approx(wanted)
    bare = tracer.trace(items[:2], replies[:2], LIMIT, trials=False)
    assert [(t.whole, t.trials) for t in bare] == [(t.whole, ()) for t in traces[:2]]


@pytest.mark.parametrize("how", [HARD, MESSAGE])
def test_a_budget_tells_before_a_character_is_cut(tracer, monkeypatch, how: str) -> None:
    """Three tokens before the end the engine looks at what begins a character."""
    item = Item("t", "easy", "high", "k", [{"role": "user", "content": "Hi!"}], None, "x", "string")
    encode, markers = tracer.model.tokenizer.encode, tracer._markers
    accented = encode("é")
    assert len(accented) == 2  # of a byte each
    thought = [*encode("No."), *accented, *accented, *encode(" So.")]
    ids = (*markers.to_self, markers.message, *thought, markers.end)
    reply = Reply("", thinking_tokens=len(thought), tokens=ids)
    begun = []
    submit = tracer.model._engine.submit

    def seen(request, **more):
        begun.append(list(request.tokens))
        return submit(request, **more)

    monkeypatch.setattr(tracer.model._engine, "submit", seen)
    budgets = [Budget(n, how) for n in range(1, len(thought))]
    tracer.trace([item], [reply], LIMIT, trials=False, budgets=budgets)
    whole, *cut = begun
    head = len(whole) - len(thought) - 1
    no = len(encode("No."))
    places = [max(0, n - 3) for n in range(1, len(thought))]
    wanted = [n - (n in (no + 1, no + 3)) for n in places]
    assert [len(tokens) - head for tokens in cut] == wanted


def test_a_reply_without_thoughts_has_no_closes(tracer) -> None:
    messages = [{"role": "user", "content": "no " * 4000}]
    item = Item("t", "easy", "high", "k", messages, None, "x", "string")
    replies = tracer.reply([item], 8, options=OFF)
    (trace,) = tracer.trace([item], replies, 8, budgets=[Budget(4, HARD)])
    assert trace == Trace(End(False, 0), 0, (), {Budget(4, HARD): End(False, 0)})


def test_closes_stay_within_the_context(tracer, asked, traces) -> None:
    """The reply fits, but not a whole answer beside it: closes get what room there is."""
    (one, *_), (whole, *_) = asked
    room = len(tracer._request(one, LIMIT)[0].tokens) + LIMIT
    small = Tracer(None, threads=1, context=room, prefix_cache=False)
    try:
        (reply,) = small.reply([one], LIMIT, options=OFF, oracle=True)
        assert reply.tokens == whole.tokens and reply.stable == traces[0].stable
        (trace,) = small.trace([one], [reply], LIMIT, budgets=[*traces[0].budgets])
        assert trace == traces[0]
        # a reply that fills the context: nothing can be closed at its very end
        end = whole.tokens.index(small._markers.end)
        filled = (*whole.tokens[:end], *([whole.tokens[end - 1]] * LIMIT))[:LIMIT]
        cut = replace(reply, tokens=filled, thinking_tokens=thinking_tokens(filled, small._markers))
        cut.finished = False
        late = [Budget(n, MESSAGE) for n in (190, 196, 198)]
        (trace,) = small.trace([one], [cut], LIMIT, budgets=late)
        assert all(end.thinking <= trace.whole.thinking for end in trace.budgets.values())
        assert max(t.written for t in trace.trials) < LIMIT - trace.trials[0].close
    finally:
        small.close()


def test_other_models_have_no_closes(tmp_path) -> None:
    says = r"closes along a thought: .* channels"
    with (
        musespark.load(chat_folder(tmp_path), threads=1, quantize="none") as model,
        pytest.raises(UnsupportedModel, match=says),
    ):
        Tracer.of(model)


# ---- rules on canned trials ------------------------------------------------------------------


def trial(at: int, answer: int, sure: float = 0.5, *, right=False, stated=False, size=1) -> Trial:
    logprobs = (math.log(sure),) * (size + 1)
    place = {"thinking": at, "written": at + 3, "begin": 3, "close": 5}
    known = {"answer": (answer,) * size, "logprobs": logprobs, "right": right, "stated": stated}
    return Trial(**place, **known)


TRIALS = (
    trial(10, 7, 0.6, stated=False),
    trial(20, 8, 0.9, stated=True),
    trial(26, 9, 0.4, right=True),
    trial(40, 9, 0.97, right=True, stated=True),
)
TRACE = Trace(End(True, 60), 26, TRIALS, {})


@pytest.mark.parametrize(
    ("policy", "wanted"),
    [
        # the rows of the trial that ends it are the reply's
        ({"confident": 0.9}, End(False, 20, 6)),
        ({"confident": 0.95}, End(True, 40, 18)),
        ({"confident": 0.99}, End(True, 60, 24)),
        ({"confident": 0.0, "stable": 2}, End(True, 40, 18)),
        ({"confident": 0.0, "stable": 3}, End(True, 60, 24)),
        # 10 is too early, 26 too close to 20; 9 at 40 comes once
        ({"confident": 0.0, "stable": 2, "every": 16}, End(True, 60, 12)),
        ({"confident": 0.9, "every": 16}, End(False, 20, 0)),
        ({"confident": 0.0, "every": 12}, End(False, 20, 0)),  # from the thought's beginning on
        # a trial of one token has no end of the answer in it
        ({"confident": 0.9, "trials": 1}, End(False, 20, 5)),
    ],
)
def test_trials_stop_a_thought(policy: dict, wanted: End) -> None:
    given = {"trials": 8, "every": 1, **policy}
    assert stopped(TRACE, ThinkingPolicy(**given)) == wanted


def test_long_answers_are_compared_as_far_as_trials_go() -> None:
    pair = (trial(10, 7, size=4), replace(trial(20, 7, size=4), answer=(7, 7, 8, 8)))
    short = ThinkingPolicy(trials=2, confident=0.0, stable=2, every=1)
    trace = Trace(End(False, 60), 60, pair, {})
    assert stopped(trace, short) == End(False, 20, 6)
    assert stopped(trace, replace(short, trials=4)) == End(False, 60, 16)
    uneven = replace(pair[0], logprobs=(math.log(0.9), math.log(0.4), math.log(0.1)))
    assert uneven.confidence(2) == pytest.approx(0.6)
    assert uneven.confidence(8) == pytest.approx(0.036 ** (1 / 3))
    assert isinstance(uneven.confidence(1), np.float32)


def test_the_first_stated_answer_and_the_oracle_of_trials() -> None:
    assert first_stated(TRACE) == End(False, 20, 6)
    assert first_stated(replace(TRACE, trials=TRIALS[:1])) == End(True, 60, 6)
    assert trial_oracle(TRACE) == End(True, 26)
    assert trial_oracle(replace(TRACE, trials=(*TRIALS, trial(50, 8)))) == End(True, 60)
    assert trial_oracle(replace(TRACE, whole=End(False, 60))) == End(False, 60)


@pytest.mark.parametrize(
    ("sentence", "answer", "wanted"),
    [
        (" So 85.", "85", True),
        ("85", "85.", True),
        (" 7+8=15 carry 1.", "15", True),
        (" So 185.", "85", False),
        (" So 3.85.", "85", False),
        (" So 85.5.", "85", False),
        (" So $4.50.", "$4.50", True),
        (" blue, not red", "red", True),
        (" not reddish", "red", False),
        (" anything", "", False),
        (" a.b", "axb", False),
    ],
)
def test_a_sentence_states_an_answer(sentence: str, answer: str, wanted: bool) -> None:
    assert states(sentence, answer) is wanted


def test_cue_words_are_whole_words_of_the_vocabulary(tracer) -> None:
    tokenizer = tracer.model.tokenizer
    barred = {tokenizer.decode([i]) for i in cue_bias(tokenizer, tracer.model.info.vocab)}
    assert {"Check", "Another", " But", " Again"} <= barred
    assert all(text.strip().lower().strip(".,:\n") in CUE_WORDS for text in barred)
    assert len(barred) < 60


def test_names_of_what_is_read_off_are_distinct() -> None:
    policies = read_off(budgets_of(41.0))
    assert len({p.name for p in policies}) == len(policies)
    assert {p.family for p in policies} >= {HARD, MESSAGE, LANDING, FIRST_STATED}
    asked = {p.name: p.options for p in policies if p.family == LANDING}
    assert asked["budget 0.5"] == {"thinking_policy": "off", "thinking_token_budget": 20}
