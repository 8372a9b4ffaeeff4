"""Thought budgets and what else ends a thought: exact, one result, nothing leaks or starves."""

from __future__ import annotations

import copy
import pickle
import time
from dataclasses import replace
from itertools import pairwise

import pytest

import musespark
from musespark import ThinkingPolicy
from musespark.engine import TokenClasses
from musespark.errors import ContextOverflow, InvalidRequest
from musespark.events import Request
from musespark.thinking.policy import EFFORT_BUDGETS, checked_thinking
from musespark.thinking.request import token_class
from support.chat_folder import THINK, THINK_MARKERS, chat_folder
from support.engine_cases import make_engine, packed

SUM = (
    "Jack has 80 eggs. Jack gives away 8 eggs. Jack finds 31 eggs. Jack gets 25 more from Iris. "
    "How many eggs does Jack have?"
)
CLOSING = "\nTime is up. I answer with the best I have."
HIGH = {"reasoning_effort": "high"}


@pytest.fixture(scope="module")
def nano():
    with musespark.load(threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def natural(nano):
    found = nano.chat(SUM, **HIGH)
    assert found.thinking_stop_reason == "natural" and found.usage.reasoning_tokens > 60
    return found


def answered(nano, found) -> list[int]:
    """The tokens of the first answer, without its header and what ends the turn."""
    names, ids = nano.tokenizer.id, [*found.tokens]
    begin = ids.index(names(" to=user")) + 2
    ends = {names("<|eot|>"), names("<|eom|>")}
    return ids[begin : next((i for i in range(begin, len(ids)) if ids[i] in ends), len(ids))]


# ---- the budget, on a model that thinks ----------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 5, 14, 30, 57])
def test_a_budget_is_kept_and_the_answer_follows(nano, natural, budget: int) -> None:
    found = nano.chat(SUM, **HIGH, thinking_token_budget=budget)
    assert found.thinking_stop_reason == "budget" and found.finish_reason == "stop"
    assert found.usage.reasoning_tokens <= budget
    assert natural.reasoning.startswith(found.reasoning)  # no room for closing words
    if not found.reasoning.endswith("."):  # no sentence ended in the landing: all is used
        assert found.usage.reasoning_tokens == budget
    assert found.content and not found.protocol_errors
    assert not any(marker in found.content for marker in nano.tokenizer.markers)


def test_own_closing_words_need_a_sixteenth_of_a_budget(nano) -> None:
    message = nano.tokenizer.encode(CLOSING)
    for budget, words in ((16 * len(message) - 1, []), (16 * len(message), message)):
        request, _ = nano._requests.chat(SUM, {**HIGH, "thinking_token_budget": budget})
        assert request.thinking["message"] == words
    endless = {"logit_bias": {nano.tokenizer.id("<|eom|>"): -50.0}}
    found = nano.chat(SUM, **HIGH, thinking_token_budget=budget, **endless)
    assert found.reasoning.endswith(CLOSING) and found.usage.reasoning_tokens <= budget
    assert found.thinking_stop_reason == "budget" and found.content


def test_a_budget_that_is_not_reached_changes_nothing(nano, natural) -> None:
    enough = 3 * natural.usage.reasoning_tokens
    found = nano.chat(SUM, **HIGH, thinking_token_budget=enough, logprobs=2)
    assert found.tokens == natural.tokens and found.thinking_stop_reason == "natural"
    assert nano.chat(SUM, **HIGH, thinking_policy="off").tokens == natural.tokens


@pytest.mark.parametrize("budget", [0, 50])
@pytest.mark.parametrize("more", [{}, {"max_new_tokens": 20}])
def test_a_prompt_that_leaves_no_room_is_refused_as_that(nano, budget, more) -> None:
    with pytest.raises(ContextOverflow, match="2048"):
        nano.chat("fox " * 2100, thinking_token_budget=budget, **more)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"mode": "instant", "thinking_token_budget": 50},
            "budget: got 50, which contradicts mode",
        ),
        ({"mode": "instant", "premature_exits": 0.02}, "premature_exits: got 0.02, which contrad"),
        ({"mode": "instant", "reasoning_effort": "minimal"}, "contradicts reasoning_effort 'minim"),
        ({"reasoning_effort": "none", "premature_exits": 0.02}, "contradicts reasoning_effort 'n"),
    ],
)
def test_what_is_said_of_a_thought_that_is_none_is_refused(nano, given, says) -> None:
    with pytest.raises(InvalidRequest, match=says):
        nano.chat(SUM, **given)


def test_no_thought_said_twice_is_said_once(nano) -> None:
    found = nano.chat(SUM, mode="instant", reasoning_effort="none")
    assert found.tokens == nano.chat(SUM, mode="instant").tokens


def test_no_budget_is_no_thought(nano) -> None:
    for options in ({**HIGH, "thinking_token_budget": 0}, {"reasoning_effort": "none"}):
        found = nano.chat(SUM, **options)
        assert found.reasoning == "" and found.usage.reasoning_tokens == 0 and found.content
        assert not found.protocol_errors and found.thinking_stop_reason == "none"


def test_a_landing_ends_with_a_sentence(nano) -> None:
    given = {**HIGH, "thinking_closing_message": CLOSING}
    landed = [
        found.usage.reasoning_tokens < budget
        for budget in range(60, 110, 10)
        if (found := nano.chat(SUM, **given, thinking_token_budget=budget)).reasoning.endswith(
            f".{CLOSING}"
        )
    ]
    assert any(landed)


def test_the_closing_words_are_the_callers(nano) -> None:
    given = {**HIGH, "thinking_token_budget": 30}
    found = nano.chat(SUM, **given, thinking_closing_message=" Enough.")
    assert found.reasoning.endswith(" Enough.") and found.usage.reasoning_tokens <= 30
    found = nano.chat(SUM, **given, thinking_closing_message="")
    assert found.usage.reasoning_tokens <= 30 and "Time" not in found.reasoning
    # markers in it are text
    found = nano.chat(SUM, **given, thinking_closing_message="<|eom|>")
    assert found.reasoning.endswith("<|eom|>") and found.usage.reasoning_tokens <= 30


def test_thoughts_do_not_starve_the_answer(nano) -> None:
    found = nano.chat(SUM, **HIGH, thinking_token_budget=40, max_new_tokens=16)
    assert found.finish_reason == "stop" and found.content
    assert found.usage.completion_tokens > 16
    cut = nano.chat(SUM, **HIGH, thinking_token_budget=40, max_new_tokens=2)
    assert cut.finish_reason == "length"
    assert nano.tokenizer.encode(found.content)[:2] == nano.tokenizer.encode(cut.content)


@pytest.mark.parametrize("budget", [0, 5, 40])
def test_what_frames_a_thought_is_no_answer(nano, budget: int) -> None:
    """Its markers and the answer's header had taken all of max_new_tokens=7."""
    given = {**HIGH, "thinking_token_budget": budget}
    whole = answered(nano, nano.chat(SUM, **given))
    for most in range(1, min(len(whole), 12) + 1):
        assert answered(nano, nano.chat(SUM, **given, max_new_tokens=most)) == whole[:most]


def test_the_context_leaves_room_for_the_answer(nano) -> None:
    long = nano.chat(SUM, **HIGH)
    with musespark.load(threads=1, context=long.usage.prompt_tokens + 40) as small:
        found = small.chat(SUM, **HIGH, thinking_token_budget=500, max_new_tokens=15)
        assert 0 < found.usage.reasoning_tokens <= 25
        assert found.finish_reason == "stop" or len(answered(nano, found)) == 15


def test_a_limit_that_no_answer_reaches_cuts_no_thought(nano) -> None:
    """As large as the context: half of the room is the thought's all the same."""
    whole = nano.chat(SUM, **HIGH)
    context = whole.usage.prompt_tokens + 3 * whole.usage.reasoning_tokens
    with musespark.load(threads=1, context=context) as small:
        found = small.chat(SUM, **HIGH, thinking_token_budget=context, max_new_tokens=context)
    assert (found.thinking_stop_reason, found.reasoning) == ("natural", whole.reasoning)


def test_names_of_the_budget(nano) -> None:
    wanted = nano.chat(SUM, **HIGH, thinking_token_budget=20).tokens
    for name in ("thinking_budget", "reasoning_budget", "thinking_budget_tokens"):
        assert nano.chat(SUM, **HIGH, **{name: 20}).tokens == wanted
    with pytest.raises(InvalidRequest, match="thinking_token_budget=20, reasoning_budget=21"):
        nano.chat(SUM, thinking_token_budget=20, reasoning_budget=21)


def test_streams_sessions_batches_and_threads_agree(nano) -> None:
    given = {**HIGH, "thinking_token_budget": 30, "temperature": 0.8, "seed": 5}
    wanted = nano.chat(SUM, **given)
    deltas = list(nano.chat(SUM, **given, stream=True))
    assert "".join(d.text for d in deltas if d.channel == "reasoning") == wanted.reasoning
    assert nano.session().chat(SUM, **given).tokens == wanted.tokens
    others = ["What is 3 + 4?", SUM, "sort 9, 3, 7"]
    assert nano.chat_batch(others, **given)[1].tokens == wanted.tokens
    with musespark.load(threads=2, prefix_cache=False) as other:
        assert other.chat(SUM, **given).tokens == wanted.tokens


def test_a_schema_holds_after_a_budget(nano) -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "integer"}
    found = nano.chat(SUM, **HIGH, thinking_token_budget=20, json_schema=schema)
    assert found.thinking_stop_reason == "budget" and isinstance(found.parsed, int)
    found = nano.chat(SUM, **HIGH, thinking_token_budget=0, json_schema=schema)
    assert found.reasoning == "" and isinstance(found.parsed, int)


# ---- policies ------------------------------------------------------------------------------------


def test_a_margin_ends_a_thought_after_a_sentence(nano, natural) -> None:
    found = nano.chat(SUM, **HIGH, thinking_policy=ThinkingPolicy(margin=1e6))
    assert found.thinking_stop_reason == "confident"
    first = natural.reasoning[: natural.reasoning.index(".") + 1]
    assert found.reasoning == first
    later = nano.chat(SUM, **HIGH, thinking_policy=ThinkingPolicy(margin=1e6, least=40))
    assert natural.reasoning.startswith(later.reasoning) and later.usage.reasoning_tokens >= 40
    assert later.reasoning.endswith(".")
    never = nano.chat(SUM, **HIGH, thinking_policy=ThinkingPolicy(margin=None))
    assert never.tokens == natural.tokens


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"thinking_token_budget": -1}, "thinking_token_budget: got -1, allowed is None or an int"),
        ({"reasoning_budget": 2.5}, "reasoning_budget: got 2.5"),
        ({"thinking_budget": True}, "thinking_budget: got True"),
        (
            {"thinking_policy": "clever"},
            "thinking_policy: got 'clever', allowed is one of",
        ),
        ({"thinking_closing_message": 5}, "thinking_closing_message: got 5, allowed is a str"),
        ({"reasoning_effort": "huge"}, "reasoning_effort: got 'huge', allowed is one of .*minimal"),
        ({"reasoning_effort": "none", "mode": "thinking"}, "mode 'thinking' contradicts"),
    ],
)
def test_what_is_refused(nano, options: dict, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        nano.chat(SUM, **options)


@pytest.mark.parametrize(
    "wrong", [{"margin": -1.0}, {"margin": float("nan")}, {"least": 1.5}, {"loop": -1}]
)
def test_policies_are_checked(wrong: dict) -> None:
    (name,) = wrong
    with pytest.raises(InvalidRequest, match=f"{name}: got"):
        ThinkingPolicy(**wrong)


# ---- models of other forms -----------------------------------------------------------------------


def test_a_template_without_effort_gets_a_budget(tmp_path) -> None:
    folder = chat_folder(tmp_path, THINK, THINK_MARKERS)
    with musespark.load(folder, threads=1, quantize="none") as model:
        found = model.chat("a", reasoning_effort="minimal", thinking_token_budget=7, seed=1)
        assert found.thinking_stop_reason in ("budget", "natural")
        assert found.usage.reasoning_tokens <= 7
        for effort in ("low", "medium"):
            request, _ = model._requests.chat("a", {"reasoning_effort": effort})
            room = 512 - len(request.tokens)
            frame = model._requests.thoughts.frame_tokens
            wanted = min(EFFORT_BUDGETS[effort], room - frame - room // 4)
            assert request.thinking["budget"] == wanted
        # the prompt has opened a thought: without a budget the marker comes at once
        bare = model.chat("a", thinking_token_budget=0, max_new_tokens=5)
        assert bare.tokens[0] == model.tokenizer.markers["</think>"] and bare.reasoning == ""
        assert model.tokenizer.markers["<think>"] not in bare.tokens


def test_thoughts_that_no_token_marks_cannot_be_limited(tmp_path) -> None:
    with musespark.load(chat_folder(tmp_path), threads=1, quantize="none") as model:
        with pytest.raises(InvalidRequest, match="marks no thoughts by tokens"):
            model.chat("a", thinking_token_budget=5, max_new_tokens=3)
        assert model.chat("a", max_new_tokens=3).thinking_stop_reason == "none"


# ---- the core's rules, on a scripted sequence ----------------------------------------------------

VOCAB = packed("muse_kv8")[0].vocab
OPEN, CLOSE, DOT, HALF, REST = 10, 11, 12, 13, 14  # HALF begins a character of two bytes


class Script:
    """Allows one token after the other, then repeats the last ones; besides what ``also`` has."""

    def __init__(self, tokens: list[int], also: tuple[int, ...] = ()):
        self.tokens, self.also, self.at = tokens, also, 0

    def __call__(self, new: list[int]) -> bytes:
        self.at += len(new)
        out = bytearray((VOCAB + 7) // 8)
        for token in (self.tokens[self.at % len(self.tokens)], *self.also):
            out[token >> 3] |= 1 << (token & 7)
        return bytes(out)


def classes() -> TokenClasses:
    of = bytearray(VOCAB)
    of[DOT], of[HALF], of[REST] = 8, 1, 4 | 1
    return TokenClasses(bytes(of))


def run(
    script: Script | None,
    prompt=(1, OPEN),
    *,
    bias=None,
    stop=(CLOSE,),
    marked: dict | None = None,
    answer_tokens: int | None = None,
    deadline: float | None = None,
    **thinking,
) -> tuple[list[int], dict]:
    marks = {"cache": "keep", "most_tokens": None, "opens": [[OPEN]], "closes": [CLOSE]}
    marks |= marked or {}
    given = {"close": CLOSE, "openings": [[OPEN]], "classes": classes(), **thinking}
    request = Request(
        tokens=list(prompt),
        max_new_tokens=200,
        max_answer_tokens=answer_tokens,
        deadline=deadline,
        stop_ids=stop,
        thoughts=marks,
        thinking=given,
        constraint=script,
        logit_bias={HALF: 50.0, REST: 40.0} if bias is None else bias,
    )
    with make_engine(threads=1) as engine:
        result = engine.submit(request).result()
    return result.tokens, result.stats


@pytest.mark.parametrize("budget", range(1, 12))
def test_characters_are_whole_at_the_cut(budget: int) -> None:
    tokens, stats = run(Script([HALF, REST], also=(7,)), budget=budget, message=[20, 21])
    assert tokens[-1] == CLOSE and len(tokens) - 1 == budget == stats["thought_tokens"]
    assert tokens.count(HALF) == tokens.count(REST)
    assert tokens[-3:-1] == [20, 21] if budget > 2 else 20 not in tokens


@pytest.mark.parametrize("period", [1, 3, 16, 20, 60])
def test_a_loop_is_ended(period: int) -> None:
    before = [30, 31, 32, 33]
    script = Script(before + [40 + i for i in range(period)] * 200)
    tokens, stats = run(script, loop=48, message=[20])
    if 4 * period > 200:
        assert stats["thought_stop"] == "none" and len(tokens) == 200
        return
    assert stats["thought_stop"] == "loop" and tokens[-2:] == [20, CLOSE]
    assert len(tokens) == 4 + period + max(48, 3 * period) + 2


def test_a_sentence_of_the_prompt_ends_no_thought() -> None:
    """A template writes the marker and a line's end."""
    script = Script([30, 31, DOT])
    tokens, stats = run(script, (1, OPEN, DOT), margin=1e9)
    assert len(tokens) > 1 and stats["thought_stop"] == "confident" and tokens[-2] == DOT


def test_after_its_budget_a_model_opens_no_other_thought() -> None:
    tokens, stats = run(None, bias={OPEN: 200.0, CLOSE: -200.0}, stop=(), budget=5)
    assert tokens[:6] == [OPEN] * 5 + [CLOSE] and len(tokens) == 200
    assert OPEN not in tokens[6:] and stats["thought_tokens"] == 5
    # with a budget that is not used up it may think again
    tokens, _ = run(None, (1,), bias={OPEN: 200.0}, stop=(), budget=500)
    assert tokens[0] == OPEN


def test_after_its_budget_no_opening_of_several_begins_a_thought() -> None:
    """Only the last one was barred."""
    other, third = 15, 16
    openings = [[OPEN], [other], [30, third]]
    tokens, stats = run(
        Script([30, 31, 32], also=(OPEN, other, third)),
        (1,),
        bias={OPEN: 90.0, other: 80.0, third: 70.0, 31: 10.0, 32: 10.0},
        stop=(),
        marked={"opens": openings},
        budget=0,
        openings=openings,
    )
    assert {OPEN, other}.isdisjoint(tokens) and stats["thought_tokens"] == 0
    assert third in tokens and (30, third) not in pairwise(tokens)


def test_after_its_budget_a_turn_goes_on_with_the_answer() -> None:
    header, answer = [20], [21, 22]
    bias = {20: 200.0, CLOSE: -200.0}
    tokens, _ = run(None, bias=bias, stop=(), budget=5, header=header, answer=answer)
    assert tokens == [20] * 5 + [CLOSE] + ((header + answer) * 65)[:194]


def test_the_answers_tokens_are_counted_without_thoughts_and_their_markers() -> None:
    turn = [OPEN, 30, CLOSE, 40, 41, OPEN, CLOSE, OPEN, 31, 32, CLOSE, *range(42, 60)]
    for most in range(1, 6):
        tokens, _ = run(Script(turn), (1,), stop=(), answer_tokens=most)
        assert [t for t in tokens if t >= 40] == list(range(40, 40 + most))
        assert tokens[-1] == 39 + most


@pytest.mark.parametrize("prompt", [(1, 20, 21), (1, 20), (1,)])
def test_the_answers_tokens_are_counted_without_headers(prompt: tuple) -> None:
    """A header is 20, 21, whom it turns to, 22; its thoughts are marked by 23 there."""
    headed = {"opens": [[23, 22]], "closes": [CLOSE, 20], "header": [20, 22]}
    turn = [20, 21, 23, 22, 30, 31, CLOSE, 20, 21, 24, 22, 40, 41, 20, 21, 23, 22, 32, 20, 21, 22]
    turn += range(42, 60)
    for most in range(1, 6):
        script = Script(turn[len(prompt) - 1 :])
        tokens, _ = run(script, prompt, stop=(), answer_tokens=most, marked=headed)
        assert [t for t in tokens if t >= 40] == list(range(40, 40 + most))
        assert tokens[-1] == 39 + most


class Slow(Script):
    """Takes longer than a second for its tenth token."""

    def __call__(self, new: list[int]) -> bytes:
        if self.at + len(new) == 10:
            time.sleep(1.1)
        return super().__call__(new)


def test_a_thought_is_closed_when_its_time_is_over() -> None:
    script = Slow([30 + i for i in range(50)], also=(OPEN,))
    tokens, stats = run(script, deadline_s=1.0, message=[20], bias={OPEN: 200.0}, stop=())
    assert stats["thought_stop"] == "deadline"
    assert tokens[:12] == [OPEN] * 10 + [20, CLOSE]
    assert OPEN not in tokens[12:], "another thought began"


class Steady(Script):
    """Takes a tenth of a second for each token."""

    def __call__(self, new: list[int]) -> bytes:
        time.sleep(0.1)
        return super().__call__(new)


@pytest.mark.parametrize("script", [[30, DOT, 31], [30, DOT, *range(31, 91)]])
def test_a_deadline_waits_for_no_trial(script: list[int]) -> None:
    """The next sentence ends, or the marker comes, while one is under way, which takes 64 steps:
    those of a neighbour, of a tenth of a second each."""
    marks = {"cache": "keep", "most_tokens": None, "opens": [[OPEN]], "closes": [CLOSE]}
    thinking = {"close": CLOSE, "openings": [[OPEN]], "classes": classes(), "deadline_s": 2.0}
    trials = {"tokens": 64, "every": 1, "confident": 1.0, "close": [CLOSE]}
    given = {"tokens": [1, OPEN], "max_new_tokens": 200, "stop_ids": (CLOSE,), "thoughts": marks}
    request = Request(**given, thinking=thinking, trials=trials, constraint=Script(script))
    with make_engine(threads=1) as engine:
        beside = engine.submit(Request(tokens=[1], max_new_tokens=90, constraint=Steady([30])))
        result = engine.submit(request).result()
        beside.discard()
    assert result.tokens[-1] == CLOSE and result.stats["thought_stop"] == "deadline"
    assert result.stats["trials"] == [] and 0 < result.stats["trial_tokens"] < 40


def test_a_thought_leaves_time_before_the_requests_deadline() -> None:
    """At the pace that was measured; without a reserve the deadline comes inside the thought."""
    script = Steady([30 + i for i in range(50)])
    tokens, stats = run(script, deadline=3.0, reserve=10)
    assert stats["thought_stop"] == "deadline" and tokens[-1] == CLOSE and len(tokens) > 3
    tokens, stats = run(Steady([30]), deadline=1.0)
    assert stats["thought_stop"] == "none" and CLOSE not in tokens


def test_what_only_looks_like_a_loop_goes_on() -> None:
    listed = [t for i in range(60) for t in (40, 41, 50 + i)]  # "a b x, a b y, …"
    _, stats = run(Script(listed), loop=48)
    assert stats["thought_stop"] == "none"


def test_the_marker_is_raised_in_the_landing() -> None:
    script = Script([30], also=(CLOSE,))
    tokens, stats = run(script, budget=60, landing=20, landing_bias=1000.0)
    assert stats["thought_stop"] == "budget" and len(tokens) - 1 == 40
    tokens, _ = run(Script([30], also=(CLOSE,)), budget=60, landing=20, landing_bias=0.0)
    assert len(tokens) - 1 == 60


_STOPPER = {"weights": {"margin": 1.0}, "bias": 0.0, "threshold": 0.5}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"budget": -1}, "thinking.budget: got -1"),
        ({"landing_bias": -1.0}, "thinking.landing_bias: got -1"),
        ({"deadline_s": -1.0}, "thinking.deadline_s: got -1"),
        ({"stopper": _STOPPER}, "thinking.signals: got false, allowed is true where a stopper"),
        (
            {"stopper": {**_STOPPER, "threshold": 2.0}, "signals": True},
            "thinking.stopper.threshold: got 2",
        ),
        (
            {"hopeless": {**_STOPPER, "weights": {"cues": float("inf")}}, "signals": True},
            "thinking.hopeless.weights.cues",
        ),
        ({"stopper": {**_STOPPER, "weights": {"luck": 1.0}}, "signals": True}, "luck"),
        ({"margin": -0.5}, "thinking.margin: got -0.5"),
        ({"close": 5}, "thinking.close: got 5, allowed is one of thoughts.closes"),
        ({"message": [CLOSE]}, "thinking.message: got 11, allowed is a text"),
        ({"message": [VOCAB]}, "thinking.message: got"),
        ({"openings": [[]]}, "thinking.openings: got no id"),
        ({"classes": TokenClasses(b"abc")}, "thinking.classes: got 3 tokens"),
        ({"classes": 5}, "thinking.classes"),
        ({"nobody": 5}, "nobody"),
    ],
)
def test_the_core_checks_what_it_is_told(wrong: dict, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        run(Script([30]), **wrong)


# ---- classes of tokens ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("piece", "wanted"),
    [
        (b"", 0),
        (b"a", 0),
        (b"a.", 8),
        (b'."', 8),
        (b".5", 0),
        (b"\n", 8),
        (b" \n a", 8),
        ("。".encode(), 8),
        ("é".encode(), 0),
        ("é".encode()[:1], 1),
        ("é".encode()[1:], 4 | 1),
        ("€".encode()[:1], 2),
        ("€".encode()[:2], 1),
        ("€".encode()[1:], 4 | 2),
        ("😀".encode()[:1], 3),
        ("😀".encode()[:3], 1),
        (b"a" + "😀".encode()[:2], 2),
        ("é".encode()[1:] + b"b", 0),
        (b"\xff", 0),
    ],
)
def test_token_classes(piece: bytes, wanted: int) -> None:
    assert token_class(piece) == wanted


def test_options_have_one_meaning() -> None:
    assert checked_thinking({}) == checked_thinking({"thinking_policy": "auto"})
    assert checked_thinking({"thinking_policy": "off"}).policy == ThinkingPolicy(loop=0)


# ---- found by a new user ------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [60, 70, 84, 100, 1000])
def test_a_short_context_leaves_an_answer_where_no_length_is_given(budget: int) -> None:
    with musespark.load(threads=1, context=128) as small:
        found = small.chat(SUM + " Think long.", **HIGH, thinking_token_budget=budget)
    assert found.content and found.finish_reason == "stop"
    assert found.thinking_stop_reason in ("budget", "natural")


def test_a_budget_of_nothing_moves_no_thought_into_the_answer(nano) -> None:
    for options in ({}, HIGH, {"mode": "thinking"}, {"reasoning_effort": "none"}):
        budget = {} if options.get("reasoning_effort") == "none" else {"thinking_token_budget": 0}
        found = nano.chat("What is 47 + 38?", **options, **budget)
        assert found.reasoning == "" and len(found.content) < 8, found.content


def test_no_effort_where_a_template_always_thinks(tmp_path) -> None:
    with musespark.load(
        chat_folder(tmp_path, THINK, THINK_MARKERS), threads=1, quantize="none"
    ) as model:
        found = model.chat("a", reasoning_effort="none", max_new_tokens=5)
        assert found.tokens[0] == model.tokenizer.markers["</think>"]


def test_no_trial_of_an_end_that_is_being_written(nano) -> None:
    policy = ThinkingPolicy(trials=8, confident=0.0, every=1)
    for budget in (17, 18, 20, 22):
        options = {"thinking_closing_message": CLOSING, "thinking_token_budget": budget}
        found = nano.chat(SUM, **HIGH, **options, thinking_policy=policy)
        assert found.trials == () and found.thinking_stop_reason == "budget"


# ---- nothing is ignored --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"confident": 0.5}, "confident: got 0.5, which does nothing without trials"),
        ({"stable": 2}, "stable: got 2, which does nothing without trials"),
        ({"every": 4, "margin": 1.0}, "every: got 4, which does nothing without trials"),
        ({"least": 10}, "least: got 10, which does nothing without margin"),
        ({"margins": 1.0}, "unknown argument 'margins'; did you mean 'margin'"),
    ],
)
def test_fields_that_do_nothing_are_refused(given: dict, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        ThinkingPolicy(**given)


def test_policies_are_data() -> None:
    policy = ThinkingPolicy(margin=0.0, least=5, trials=4, stable=2)
    assert replace(policy, loop=0).least == 5 and ThinkingPolicy(0.0, 5).least == 5
    assert pickle.loads(pickle.dumps(policy)) == policy == copy.deepcopy(policy)


def test_closing_words_that_cannot_be_written_are_refused(nano) -> None:
    words = " That is enough."
    count = len(nano.tokenizer.encode(words))
    given = {**HIGH, "thinking_closing_message": words}
    found = nano.chat(SUM, **given, thinking_token_budget=count + 1)
    assert found.reasoning.endswith(words)
    for budget in (count, 1, 0):
        says = f"got {count} tokens, allowed with a budget of {budget} are at most"
        with pytest.raises(InvalidRequest, match=f"thinking_closing_message: {says}"):
            nano.chat(SUM, **given, thinking_token_budget=budget)
    with pytest.raises(InvalidRequest, match="which nothing writes without a budget"):
        nano.chat(SUM, **given, thinking_policy="off")
    assert nano.chat(SUM, **given).reasoning  # a loop would write them
    assert nano.chat(SUM, **HIGH, thinking_closing_message="", thinking_token_budget=1).content


def test_closing_words_give_way_to_a_short_context(nano) -> None:
    prompt = nano.chat(SUM, **HIGH, max_new_tokens=1).usage.prompt_tokens
    words = {"thinking_closing_message": " That is quite enough of this now."}
    with musespark.load(threads=1, context=prompt + 20) as small:
        found = small.chat(SUM, **HIGH, **words, thinking_token_budget=60, max_new_tokens=15)
        assert "enough" not in found.reasoning and found.content


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("reasoning_effort", "an option of each turn; give it to session.chat"),
        ("thinking_policy", "an option of each turn"),
        ("max_new_tokens", "an option of each turn"),
        ("json_schema", "an option of each turn"),
        ("sistem", "did you mean 'system'"),
    ],
)
def test_sessions_have_no_options_of_turns(nano, name: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{name}.*{says}"):
        nano.session(**{name: "high"})


def test_what_is_asked_of_files_is_known() -> None:
    with pytest.raises(InvalidRequest, match=r"unknown argument 'contexts'.*'context'"):
        musespark.estimate(contexts=5)
    with pytest.raises(InvalidRequest, match=r"unknown argument 'verfy'.*'verify'"):
        musespark.inspect(verfy=True)
