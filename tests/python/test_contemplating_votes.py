"""Votes, keys, confidence, workspace and options of contemplating: no model under way."""

from __future__ import annotations

import itertools
import math
import random

import pytest

import musespark
from musespark.contemplating import ContemplatingOptions, agent_seed, answer_key
from musespark.contemplating.confidence import Confidence, token_confidences
from musespark.contemplating.keys import last_boxed
from musespark.contemplating.options import checked_contemplating
from musespark.contemplating.votes import Vote, decided, majority_probability, tally
from musespark.contemplating.workspace import (
    Draft,
    conclusion,
    listed,
    with_workspace,
    workspace_text,
)
from musespark.errors import InvalidRequest
from musespark.events import Tokens
from musespark.lab import formats
from musespark.lab.tasks.arithmetic import addition
from musespark.options import AGENT_OPTIONS
from musespark.results import ChatResult


def votes(text: str, confidence: float = 0.5) -> list[Vote]:
    return [Vote(i, key, 1.0, confidence) for i, key in enumerate(text)]


def result(content: str = "", calls: list | None = None) -> ChatResult:
    given = [{"function": {"name": n, "arguments": a}} for n, a in calls or []]
    return ChatResult(
        text=content, content=content, tokens=(), seed=0, finish_reason="stop", tool_calls=given
    )


# ---- votes ---------------------------------------------------------------------------------------


def test_most_votes_lead_then_confidence_then_the_lowest_agent() -> None:
    assert [(t.key, t.votes, t.weight) for t in tally(votes("abbab"))] == [("b", 3, 3), ("a", 2, 2)]
    tied = [Vote(0, "a", 1.0, 0.4), Vote(1, "b", 1.0, 0.6), Vote(2, "b", 1.0, 0.2)]
    assert tally([*tied, Vote(3, "a", 1.0, 0.3)])[0].key == "b"  # mean 0.4 against 0.35
    assert tally([*tied, Vote(3, "a", 1.0, 0.4)])[0].key == "a"  # equal: agent 0
    weighed = [Vote(0, "a", 0.3, 0.3), Vote(1, "a", 0.3, 0.3), Vote(2, "b", 0.7, 0.7)]
    assert [t.key for t in tally(weighed)] == ["b", "a"]
    assert tally([]) == []


def test_the_most_confident_speaks_for_an_answer() -> None:
    (one,) = tally([Vote(3, "a", 1.0, 0.9), Vote(1, "a", 1.0, 0.5), Vote(2, "a", 1.0, 0.9)])
    assert (one.best, one.lowest, one.votes) == (2, 1, 3)


def test_the_order_of_votes_makes_no_difference() -> None:
    rng = random.Random(4)
    for _ in range(50):
        given = [Vote(i, rng.choice("abc"), rng.random(), rng.random()) for i in range(9)]
        wanted = tally(given)
        rng.shuffle(given)
        assert tally(given) == wanted


@pytest.mark.parametrize("weighted", [False, True])
def test_decided_is_when_no_rest_can_change_the_leader(weighted: bool) -> None:
    """Against every way in which the rest may vote."""
    rng = random.Random(7)
    seen = {True: 0, False: 0}
    for _ in range(300):
        count, running = rng.randint(1, 5), rng.randint(1, 3)
        some = [
            Vote(i, rng.choice("ab"), rng.choice((0.25, 0.5, 1.0)) if weighted else 1.0, 0.5)
            for i in range(count)
        ]
        leader = tally(some)[0].key
        kept = True
        for rest in itertools.product("abc", repeat=running):  # each of the largest weight
            more = [Vote(count + i, key, 1.0, 1.0) for i, key in enumerate(rest)]
            kept &= tally([*some, *more])[0].key == leader
        assert decided(tally(some), running, 1.0) == kept
        seen[kept] += 1
    assert min(seen.values()) > 30
    assert not decided(tally(votes("aaaa")), 1, None) and not decided([], 3, 1.0)


def test_the_probability_of_a_majority_is_the_mass_above_one_half() -> None:
    """Against the integral of Beta(first + 1, second + 1), by Simpson's rule."""
    for first, second in itertools.product(range(6), repeat=2):
        beta = math.gamma(first + 1) * math.gamma(second + 1) / math.gamma(first + second + 2)
        steps, low = 4000, 0.5
        width = (1 - low) / steps
        points = [low + i * width for i in range(steps + 1)]
        factors = [1 if i in (0, steps) else 4 if i % 2 else 2 for i in range(steps + 1)]
        values = [x**first * (1 - x) ** second for x in points]
        mass = width / 3 * sum(f * v for f, v in zip(factors, values, strict=True)) / beta
        assert majority_probability(first, second) == pytest.approx(mass, abs=1e-9)


def test_a_round_may_end_where_a_majority_is_likely_enough() -> None:
    # 15/16 after three of one answer, 31/32 after four.
    assert not decided(tally(votes("aaa")), 20, 0.95)
    assert decided(tally(votes("aaaa")), 20, 0.95)
    assert decided(tally(votes("aaa")), 20, 0.9)
    assert not decided(tally(votes("aaaabb")), 20, 0.95)
    assert decided(tally(votes("aa")), 1, 0.999), "certain is as good as likely"


# ---- keys ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("contents", "key"),
    [
        (
            [
                "42",
                "42.",
                " 42 ",
                "**42**",
                "$42",
                "42.0",
                "042",
                "+42",
                "The answer is 42.",
                "So **42** pears.",
            ],
            "42",
        ),
        (["1,234.50", "1234.5", "€1,234.50", r"so \boxed{1,234.5}"], "1234.5"),
        (["-0", "0.00", "0"], "0"),
        (["-7", "-07.0", "Answer: -7"], "-7"),
        (["50%", "50 %", "50"], "50"),
        ([r"We get \boxed{x^{2}+1}, so yes.", r"\boxed{1} no, \boxed{x^{2}+1}"], "x^{2}+1"),
        (["Paris", "paris.", "It is far.\nParis", "The answer is: **Paris**."], "paris"),
        (["#### 18", "9 + 9 = 18\n#### 18", "Final answer = 18"], "18"),
        (["1, 2, 3", "1,  2, 3."], "1, 2, 3"),
        (['{"b": 1, "a": [2]}', '```json\n{"a": [2], "b": 1}\n```'], '{"a": [2], "b": 1}'),
        (["[1, 2]", "[1,2]"], "[1, 2]"),
        (["{not json", "{not  json"], "{not json"),
        (["9" * 5000], "9" * 5000),
    ],
)
def test_equal_answers_have_one_key(contents: list[str], key: str) -> None:
    assert {answer_key(result(content)) for content in contents} == {key}


def test_other_answers_have_other_keys() -> None:
    answers = ["3,5", "35", "3.5", "-35", "three", "x = 35", "1,2345", "12345", "", "[35]", "."]
    keys = [answer_key(result(answer)) for answer in answers]
    assert len({*keys}) == len(answers) and keys[answers.index("")] is None


def test_calls_are_compared_by_name_and_arguments() -> None:
    one = answer_key(result(calls=[("f", {"a": 5, "b": [1]})]))
    assert one == answer_key(result("said too", calls=[("f", {"b": "[1]", "a": "5"})]))
    assert one == 'f({"a": "5", "b": "[1]"})'
    others = [[("g", {"a": 5, "b": [1]})], [("f", {"a": 6, "b": [1]})], [("f", {})] * 2]
    assert len({one, *(answer_key(result(calls=c)) for c in others)}) == 4


def test_a_box_may_hold_braces() -> None:
    assert last_boxed(r"\boxed{\frac{1}{2}} and") == r"\frac{1}{2}"
    assert last_boxed(r"\boxed{open") is None and last_boxed("none") is None


# ---- confidence ----------------------------------------------------------------------------------


def test_confidence_is_the_geometric_mean_and_the_least_window() -> None:
    given = [-0.5, -0.25, -2.0, -1.0, -0.125]
    found = Confidence(window=2)
    lowest = []
    for i, value in enumerate(given):
        assert found.whole_group == (i >= 2)
        found.add(token_confidences(Tokens([9, 8], [0.0, value], None))[1])
        lowest.append(found.lowest)
    assert found.mean == math.exp(sum(given) / 5) and found.group == pytest.approx(-1.125 / 2)
    assert lowest == [-0.5, -0.375, -1.125, -1.5, -1.5]
    assert Confidence().mean == 0.0


# ---- workspace -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    with musespark.load(threads=1) as model:
        yield model.tokenizer


def test_the_wording_is_the_one_that_is_trained() -> None:
    problem = addition(random.Random(1), "easy")
    item = formats.drafts(problem, "medium", random.Random(2), 3)
    asked = item.messages[-1]["content"]
    rest = asked.removeprefix(f"{problem.question}\n").split("\n")
    told = [line.removeprefix(f"Draft {i}: ") for i, line in enumerate(rest[:-1], 1)]
    assert with_workspace(problem.question, listed(told)) == asked


def test_a_conclusion_is_the_thoughts_end_and_the_answer_once(tokenizer) -> None:
    thought = "First this.\nThen 12 + 7 = 19. Last 19 - 5 = 14."
    assert conclusion(tokenizer, Draft("14", thought), 100) == (
        "First this. Then 12 + 7 = 19. Last 19 - 5 = 14."
    )
    assert conclusion(tokenizer, Draft("4", thought), 100).endswith("= 14. 4")
    last = len(tokenizer.encode("Last 19 - 5 = 14."))
    assert conclusion(tokenizer, Draft("14", thought), last) == "Last 19 - 5 = 14."
    assert conclusion(tokenizer, Draft("Yes.\nIt is.", ""), 100) == "Yes. It is."
    for most in range(1, 30):
        for draft in (Draft("ä漢🙂" * 30, ""), Draft("14", thought)):
            assert len(tokenizer.encode(conclusion(tokenizer, draft, most))) <= most


def test_a_workspace_keeps_to_its_bound(tokenizer) -> None:
    rng = random.Random(3)
    drafts = [
        Draft(str(i), " ".join(f"{rng.randint(1, 99)} is a step." for _ in range(30)))
        for i in range(12)
    ]
    sizes = []
    for most in (40, 64, 100, 200, 400, 1000, 5000):
        text = workspace_text(tokenizer, drafts, drafts[3:6], most, listed)
        assert len(tokenizer.encode(text)) <= most
        sizes.append(text.count("Draft "))
        said = range(12) if sizes[-1] == 12 else range(3, 3 + sizes[-1])
        for line, i in zip(text.split("\n"), said, strict=False):
            assert line.endswith(f" {i}"), "each says its answer"
    assert sizes[-1] == 12 and sizes[0] < 3 and sizes == sorted(sizes)
    assert workspace_text(tokenizer, drafts, drafts[:3], 10, listed) is None


def test_a_workspace_stands_under_the_question() -> None:
    text = {"type": "text", "text": "?"}
    picture = {"type": "image", "image": "x.png"}
    assert with_workspace("Why?", "W") == "Why?\nW"
    system = {"role": "system", "content": "s"}
    (first, last) = with_workspace([system, {"role": "user", "content": "Why?"}], "W")
    assert first is system and last == {"role": "user", "content": "Why?\nW"}
    given = [{"role": "user", "content": [picture, text]}]
    (last,) = with_workspace(given, "W")
    assert last["content"] == [picture, text, {"type": "text", "text": "\nW"}]
    assert given[0]["content"] == [picture, text], "the caller's stay as they are"
    told = {"role": "tool", "content": "5", "tool_call_id": "1"}
    assert with_workspace([told], "W") == [told, {"role": "user", "content": "W"}]


# ---- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"n_agents": 0}, "n_agents: got 0, allowed is an integer from 1 to 64"),
        ({"n_agents": 65}, "n_agents: got 65, allowed is an integer from 1 to 64"),
        ({"n_agents": True}, "n_agents: got True"),
        ({"rounds": 0, "aggregate": "refine"}, "rounds: got 0, allowed is an integer from 1"),
        ({"rounds": 2}, "rounds: got 2 with aggregate 'vote', which has one"),
        ({"aggregate": "mean"}, r"aggregate: got 'mean', allowed is one of \['vote', 'conf"),
        ({"consensus": 0.5}, "consensus: got 0.5, allowed is None or a number above 0.5"),
        ({"consensus": "all"}, "consensus: got 'all'"),
        ({"weak_window": 0}, "weak_window: got 0, allowed is an integer >= 1"),
        ({"answer_key": "last"}, "answer_key: got 'last', allowed is a function"),
        ({"workspace": 3}, "workspace: got 3, allowed is a function"),
        ({"workspace_tokens": 0}, "workspace_tokens: got 0, allowed is an integer >= 1"),
        ({"calls": -1}, "calls: got -1"),
        ({"reasoning_effort": "none"}, "mode 'contemplating' contradicts reasoning_effort 'none'"),
        (
            {"aggregate": "refine", "continue_final_message": True},
            "continue_final_message contradicts aggregate 'refine'",
        ),
    ],
)
def test_wrong_options_are_refused_by_name(given: dict, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        checked_contemplating(given)


def test_none_is_the_default_but_for_consensus() -> None:
    given = dict.fromkeys(AGENT_OPTIONS)
    assert checked_contemplating(given) == ContemplatingOptions(consensus=None)
    assert checked_contemplating({}) == ContemplatingOptions()
    assert tuple(ContemplatingOptions.__dataclass_fields__) == AGENT_OPTIONS


def test_seeds_are_apart_and_the_first_is_the_callers() -> None:
    seeds = [agent_seed(s, r, a) for s in (0, 1, 2) for r in range(3) for a in range(64)]
    assert len({*seeds}) == len(seeds) and all(0 <= s < 2**64 for s in seeds)
    assert [agent_seed(s, 0, 0) for s in (0, 5)] == [0, 5]
    assert agent_seed(3, 0, 1) == 14972951710686735528, "kept: results are named by their seed"
