"""Contemplating: agents that a script writes, and Spark Nano's own; one result, whatever runs."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.support import eyes as e

import musespark
from musespark import AgentDelta, ContemplationResult
from musespark.agents import act
from musespark.contemplating import agent_seed
from musespark.contemplating.agents import Turn
from musespark.errors import Cancelled, ContextOverflow, InvalidRequest
from musespark.events import Finished, Tokens
from support.chat_folder import HIDDEN, chat_folder
from support.scripted_agents import Script, ScriptedHandle, Stage

SUM = "Tom has 12 apples. He buys 7 more and gives 5 to Ann. How many apples does he have?"
THINK = {"mode": "contemplating", "reasoning_effort": "high"}


@pytest.fixture(scope="module")
def nano():
    with musespark.load(threads=1) as loaded:
        yield loaded


def same(result: ContemplationResult) -> ContemplationResult:
    """Without what depends on the machine: time, what was in memory, what was written in vain."""

    def bare(usage: Any) -> Any:
        return replace(usage, cached_tokens=0)

    return replace(
        result,
        timings=musespark.Timings(),
        seconds=0.0,
        usage=bare(result.usage),
        agents=tuple(replace(one, usage=bare(one.usage)) for one in result.agents),
        rounds=tuple(replace(one, seconds=0.0, discarded_tokens=0) for one in result.rounds),
        thought_cache=None,
    )


def stops(result: ContemplationResult) -> list[str]:
    return [one.stop_reason for one in result.agents]


def long(words: int) -> str:
    return " ".join(["so"] * words)


# ---- scripts: votes ------------------------------------------------------------------------------


def test_the_majority_answers_in_the_words_of_its_most_confident(nano) -> None:
    scripts = [
        Script("a b", "It is 5.", -0.5),
        Script("c", "4", -0.01),
        Script("d e f", "The answer is 5", -0.2),
        Script("g", "5", -0.3),
    ]
    found = Stage(nano, scripts).contemplate(consensus=None).drain()
    assert [*found.votes.items()] == [("5", 2.0), ("4", 1.0), ("it is 5", 1.0)]
    assert (found.answer, found.content, found.reasoning) == ("5", "The answer is 5", "d e f")
    assert (found.stop_reason, found.finish_reason, found.seed) == ("all", "stop", 1)
    assert [one.weight for one in found.agents] == [1.0] * 4
    assert [one.seed for one in found.agents] == [agent_seed(1, 0, i) for i in range(4)]
    assert found.usage.completion_tokens == sum(len(s.ids(nano)) for s in scripts)
    assert found.message == {
        "role": "assistant", "content": "The answer is 5", "reasoning_content": "d e f",
    }  # fmt: skip


def test_confidence_weighs_votes(nano) -> None:
    scripts = [Script("x", "5", -2.0), Script("x", "5", -2.0), Script("x", "4", -0.1)]
    stage = Stage(nano, scripts)
    found = stage.contemplate(aggregate="confidence", consensus=None).drain()
    assert found.content == "4" and found.agents[2].weight == pytest.approx(0.9048, abs=1e-4)
    assert Stage(nano, scripts).contemplate().drain().content == "5"


def test_equal_votes_go_to_the_confident_then_to_the_first(nano) -> None:
    scripts = [Script("x", "4", -0.3), Script("x", "5", -0.2)]
    assert Stage(nano, scripts).contemplate().drain().content == "5"
    scripts = [Script("x", "4", -0.3), Script("x", "5", -0.3)]
    assert Stage(nano, scripts).contemplate().drain().content == "4"


def test_the_callers_key_decides_what_is_equal(nano) -> None:
    scripts = [Script("x", "red apple"), Script("x", "green apple"), Script("x", "red pear")]
    stage = Stage(nano, scripts)
    first = {"answer_key": lambda r: r.content.split()[0], "consensus": None}
    found = stage.contemplate(**first).drain()
    assert found.votes == {"red": 2.0, "green": 1.0}
    for given, says in [(lambda r: 5, "answer_key: gave 5"), (lambda r: r.nothing, "nothing")]:
        stage = Stage(nano, scripts)
        with pytest.raises((InvalidRequest, AttributeError), match=says):
            stage.contemplate(answer_key=given).drain()
        assert all(handle.cancelled for handle in stage.handles)
    nobody = Stage(nano, scripts).contemplate(answer_key=lambda r: None).drain()
    assert (nobody.votes, nobody.answer) == ({}, None) and nobody.content == "red apple"


def test_an_answer_that_was_cut_has_no_vote(nano) -> None:
    scripts = [Script("x", "4", reason="length"), Script("x", ""), Script("x", "5")]
    found = Stage(nano, scripts).contemplate().drain()
    assert found.votes == {"5": 1.0} and stops(found) == ["length", "answer", "answer"]
    found = Stage(nano, scripts[:1]).contemplate().drain()
    assert (found.content, found.answer, found.finish_reason) == ("4", None, "length")


# ---- scripts: what ends a round ------------------------------------------------------------------


def test_consensus_stops_who_cannot_change_it(nano) -> None:
    scripts = [Script(long(n), a) for n, a in [(9, "5"), (3, "5"), (30, "4"), (6, "5"), (40, "4")]]
    stage = Stage(nano, scripts)
    found = stage.contemplate().drain()
    assert found.stop_reason == found.rounds[0].stop_reason == "consensus"
    assert stops(found) == ["answer", "answer", "consensus", "answer", "consensus"]
    assert [handle.cancelled for handle in stage.handles][2::2] == [True, True]
    first = len(scripts[0].ids(nano))
    # Agents behind the one that decided it have written as many tokens as it has.
    assert found.agents[2].tokens == tuple(scripts[2].ids(nano)[:first])
    assert found.agents[2].usage.completion_tokens == first and found.agents[2].key is None
    assert found.votes == {"5": 3.0}
    whole = Stage(nano, scripts).contemplate(consensus=None).drain()
    assert whole.votes == {"5": 3.0, "4": 2.0} and whole.stop_reason == "all"
    likely = Stage(nano, scripts).contemplate(consensus=0.85).drain()
    assert likely.votes == {"5": 2.0} and stops(likely).count("consensus") == 3


def test_agents_that_are_not_sure_are_stopped(nano) -> None:
    steady = [Script(long(12), "5", -0.3) for _ in range(2)]
    unsure = Script(long(60), "4", [-0.2] * 40 + [-0.9] * 100)
    better = Script(long(60), "5", [-0.2] * 40 + [-0.29] * 100)
    stage = Stage(nano, [*steady, unsure, better])
    found = stage.contemplate(weak_window=8, consensus=None).drain()
    assert stops(found) == ["answer", "answer", "weak", "answer"]
    # The mean of eight falls below -0.3 with the second of them at -0.9: (6 * 0.2 + 2 * 0.9) / 8.
    assert found.agents[2].usage.completion_tokens == 42
    assert found.stop_reason == "all" and stage.handles[2].cancelled
    kept = Stage(nano, [*steady, unsure, better]).contemplate(consensus=None).drain()
    assert stops(kept) == ["answer"] * 4
    # It takes two that have finished.
    alone = Stage(nano, [steady[0], unsure]).contemplate(weak_window=8, consensus=None).drain()
    assert stops(alone) == ["answer", "answer"]


SCRIPTS = [
    Script(long(20), "5", -0.4),
    Script(long(9), "4", [-0.1, -0.7] * 40),
    Script(long(14), "5", -0.2),
    Script(long(35), "4", [-0.1] * 20 + [-1.5] * 60),
    Script(long(14), "5", -0.2),
    Script(long(50), "5", -0.05),
    Script(long(11), "6", [-0.9, -0.2, -0.3] * 30),
    Script(long(70), "5", -0.3, error=musespark.Error("too late to matter")),
]
WAYS = [
    {},
    {"aggregate": "confidence"},
    {"consensus": 0.8},
    {"consensus": None, "weak_window": 5},
    {"weak_window": 12, "aggregate": "confidence", "consensus": 0.9},
    {"consensus": 0.8, "stop": ["so so so so", "4"]},
]


@pytest.mark.parametrize("way", WAYS)
def test_when_tokens_come_decides_nothing(nano, way: dict) -> None:
    """In pieces of any size, and with engines that hear late of a cancel."""
    scripts = SCRIPTS if way.get("consensus", 1.0) else SCRIPTS[:-1]
    wanted = Stage(nano, scripts, seed=0, most=1).contemplate(**way)
    deltas = list(wanted)
    assert {*stops(wanted.result)} & {"consensus", "weak"}
    for seed in range(12):
        stage = Stage(nano, scripts, seed=seed, most=1 + 9 * seed)
        stream = stage.contemplate(**way)
        assert list(stream) == deltas
        assert same(stream.result) == same(wanted.result)
        # Where nobody reads on the way tokens are taken in lumps, from the beginning or from later.
        for read in (0, 5, 50):
            stream = Stage(nano, scripts, seed=seed, most=1 + 9 * seed).contemplate(**way)
            assert [next(stream) for _ in range(read)] == deltas[:read]
            assert same(stream.drain()) == same(wanted.result)


def test_streams_tell_log_probabilities_of_every_agent(nano) -> None:
    scripts = [Script("so", "It is 5."), Script("so so", "4")]
    stream = Stage(nano, scripts).contemplate(logprobs=1, consensus=None)
    told: dict[int, list[int]] = defaultdict(list)
    for delta in stream:
        told[delta.agent] += [one.token for one in delta.logprobs]
    for agent, script in enumerate(scripts):
        texts = nano.tokenizer.decode(told[agent])
        assert texts == script.thought + script.answer
    plain = Stage(nano, scripts).contemplate(consensus=None)
    assert not any(delta.logprobs for delta in plain) and plain.result.logprobs is None


def test_where_nobody_listens_tokens_are_taken_in_lumps(nano, monkeypatch) -> None:
    sizes, take = [], Turn.take

    def counted(turn: Turn, most: int) -> Any:
        found = take(turn, most)
        sizes.append(0 if found is None else len(found[0].ids))
        return found

    monkeypatch.setattr(Turn, "take", counted)
    scripts = [Script(long(100), "5") for _ in range(3)]
    Stage(nano, scripts, most=60).contemplate(consensus=None).drain()
    assert max(sizes) > 10 and sum(1 for size in sizes if size == 1) < sum(sizes) / 4
    sizes.clear()
    [*Stage(nano, scripts, most=60).contemplate(consensus=None)]
    assert {*sizes} == {0, 1}


@pytest.mark.parametrize("most", [1, 5, 400])
def test_an_error_behind_a_stop_string_is_nobodys(nano, most: int) -> None:
    broken = Script("so", "The answer is 5, or so it seems", error=musespark.Error("too late"))
    stage = Stage(nano, [broken, Script("so", "5")], most=most)
    assert stage.contemplate(stop=[" is 5"], consensus=None).drain().agents[0].content


def test_an_agents_error_is_the_callers(nano) -> None:
    broken = Script(long(5), "5", error=musespark.MemoryBudgetExceeded("full"))
    stage = Stage(nano, [Script(long(9), "4"), broken, Script(long(40), "5")])
    stream = stage.contemplate()
    with pytest.raises(musespark.MemoryBudgetExceeded, match="full"):
        stream.drain()
    assert all(handle.cancelled for handle in stage.handles)
    with pytest.raises(musespark.MemoryBudgetExceeded, match="full"):
        _ = stream.result


# ---- scripts: deadline and cancelling ------------------------------------------------------------


class Clock:
    """Ten seconds pass at once, when ``late`` is true."""

    late: Callable[[], bool] = staticmethod(lambda: False)

    def __call__(self) -> float:
        return 110.0 if self.late() else 100.0


def test_at_the_deadline_what_is_there_is_voted_on(nano) -> None:
    scripts = [Script(long(3), "5"), Script(long(200), "4"), Script(long(5), "5")]
    stage, clock = Stage(nano, scripts, most=10), Clock()
    stream = stage.contemplate(deadline=5.0, clock=clock, consensus=None)
    clock.late = lambda: stage.handles[1].given >= 60
    found = stream.drain()
    assert (found.stop_reason, found.finish_reason) == ("deadline", "stop")
    assert stops(found) == ["answer", "deadline", "answer"] and found.votes == {"5": 2.0}
    cut = found.agents[1]
    assert 0 < cut.usage.completion_tokens < len(scripts[1].ids(nano)) and cut.reasoning
    assert found.rounds[0].discarded_tokens == 0, "all that is there counts"


def test_a_deadline_before_any_answer_tells_how_far_one_came(nano) -> None:
    stage, clock = Stage(nano, [Script(long(90), "4"), Script(long(90), "5")], most=3), Clock()
    stream = stage.contemplate(deadline=5.0, clock=clock)
    clock.late = lambda: stage.handles[0].given >= 20
    found = stream.drain()
    assert all(4.0 < request.deadline <= 5.0 for request in stage.requests)
    assert all(request.thinking["reserve"] > 24 for request in stage.requests)
    assert (found.stop_reason, found.finish_reason, found.answer) == ("deadline", "deadline", None)
    assert found.content == "" and found.reasoning.startswith("so so")


def test_the_engines_deadline_counts_too(nano) -> None:
    """Requests have it, so that it is kept within a layer of a step."""
    found = nano.chat(SUM, **THINK, n_agents=3, seed=1, deadline=0.0)
    assert found.stop_reason == "deadline" and found.usage.completion_tokens == 0
    found = nano.chat(SUM, **THINK, n_agents=3, seed=1, deadline=0.02, consensus=None)
    assert all(one.usage.completion_tokens < 120 for one in found.agents)
    assert nano._engine.stats()["running"] == nano._engine.stats()["waiting"] == 0


def test_a_deadline_after_a_round_keeps_its_vote(nano) -> None:
    stage = Stage(nano, [Script("x", "5"), Script("x", "5"), Script("x", "4")])
    clock, seen = Clock(), []
    clock.late = lambda: len(seen) == 3

    def key(result: Any) -> str:
        seen.append(result.content)
        return result.content

    given = {"aggregate": "refine", "consensus": None, "answer_key": key}
    found = stage.contemplate(**given, deadline=5.0, clock=clock).drain()
    assert (found.stop_reason, len(found.rounds), found.content) == ("deadline", 1, "5")


def test_a_stream_that_is_closed_holds_what_was_there(nano) -> None:
    scripts = [Script(long(4), "5"), Script(long(100), "4"), Script(long(100), "4")]
    stage = Stage(nano, scripts, most=4)
    with stage.contemplate(consensus=None) as stream:
        for delta in stream:
            if delta.agent == 0 and delta.channel == "content":
                break
    assert all(handle.cancelled for handle in stage.handles)
    assert (stream.result.stop_reason, stream.result.finish_reason) == ("cancelled", "cancelled")
    assert stream.result.votes == {"5": 1.0}
    assert stops(stream.result) == ["answer", "cancelled", "cancelled"]


def idle(model) -> bool:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        stats = model._engine.stats()
        if not (stats["running"] or stats["waiting"] or stats["kv_bytes_used"]):
            return True
        time.sleep(0.002)
    return False


def test_who_leaves_frees_everything(nano) -> None:
    long_answers = {**THINK, "n_agents": 6, "min_new_tokens": 400, "max_new_tokens": 400}
    with nano.chat(SUM, **long_answers, stream=True) as stream:
        next(stream)
    assert idle(nano) and stream.result.stop_reason == "cancelled"
    stream = nano.chat(SUM, **long_answers, stream=True)
    next(stream)
    del stream
    gc.collect()
    assert idle(nano)

    async def main() -> None:
        task = asyncio.ensure_future(nano.achat(SUM, **long_answers))
        while not nano._engine.stats()["running"]:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert idle(nano)


def test_closing_the_model_cancels() -> None:
    model = musespark.load(threads=1)
    stream = model.chat(
        SUM, **THINK, n_agents=4, min_new_tokens=400, max_new_tokens=400, stream=True
    )
    next(stream)
    closer = threading.Timer(0.05, model.close)
    closer.start()
    with pytest.raises(Cancelled):
        stream.drain()
    closer.join()
    with pytest.raises(musespark.Error, match="closed"):
        model.chat(SUM, **THINK)


# ---- scripts: refining ---------------------------------------------------------------------------


def asked(stage: Stage, index: int) -> str:
    """The prompt of a request."""
    return stage.model.tokenizer.decode([int(t) for t in stage.requests[index].tokens])


def test_drafts_come_back_under_the_question(nano) -> None:
    drafts = [Script("One is 5.", "5"), Script("No. It is 4.", "4"), Script("Hm.", "5")]
    stage = Stage(nano, [*drafts, *[Script("Drafts say 5 by 2.", "4")] * 3])
    found = stage.contemplate(n_agents=3, aggregate="refine", consensus=None).drain()
    said = "Draft 1: One is 5.\nDraft 2: No. It is 4.\nDraft 3: Hm. 5\nCheck the drafts and answer."
    assert f"Which?\n{said}" in asked(stage, 3) == asked(stage, 5)
    assert "Draft" not in asked(stage, 2)
    assert (found.content, found.votes) == ("4", {"4": 3.0}) and len(found.rounds) == 2
    assert found.rounds[0].votes == {"5": 2.0, "4": 1.0}
    assert [(one.round, one.agent) for one in found.agents] == [
        (r, a) for r in range(2) for a in range(3)
    ]
    assert [one.seed for one in found.agents[3:]] == [agent_seed(1, 1, i) for i in range(3)]


def test_what_agrees_is_not_refined(nano) -> None:
    stage = Stage(nano, [Script("x", "5"), Script("y", "5"), Script(long(50), "4")])
    found = stage.contemplate(aggregate="refine").drain()
    assert len(found.rounds) == 1 and found.stop_reason == "consensus"
    alone = Stage(nano, [Script("x", "5"), Script("y", "4")])
    assert alone.contemplate(n_agents=1, aggregate="refine").drain().content == "4"


def test_rounds_go_on_from_each_other(nano) -> None:
    stage = Stage(nano, [Script("x", a) for a in "121322"])
    found = stage.contemplate(n_agents=2, aggregate="refine", rounds=2, consensus=None).drain()
    assert "Draft 1: x 1\nDraft 2: x 2\nCheck" in asked(stage, 2)
    assert "Draft 1: x 1\nDraft 2: x 3\nCheck" in asked(stage, 4)
    assert found.content == "2" and [r.votes for r in found.rounds][1] == {"1": 1.0, "3": 1.0}


TALK = [
    {"role": "user", "content": "Rain?"},
    {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "function": {
        "name": "weather", "arguments": {"city": "Oslo"}}}]},
    {"role": "tool", "name": "weather", "tool_call_id": "1", "content": "rain"},
]  # fmt: skip


@pytest.mark.parametrize("messages", ["Which?", TALK])
def test_the_workspace_fits_whatever_the_context(nano, messages) -> None:
    """Down to where there is no room for a draft, which the result says."""
    drafts = [Script(long(30 + i) + ".", str(i)) for i in range(4)]
    prompt, seen = len(nano._requests.chat(messages, {})[0].tokens), set()
    for room in [*range(60, 140, 3), 200, 320, 700]:
        stage = Stage(nano, [*drafts, *[Script("x", "7")] * 4])
        stage.info = replace(nano.info, context=prompt + room)
        given = {"n_agents": 4, "aggregate": "refine", "consensus": None, "max_new_tokens": 40}
        found = stage.contemplate(messages, **given).drain()
        if len(found.rounds) == 1:
            assert found.stop_reason == "context" and found.votes == dict.fromkeys("0123", 1.0)
            seen.add("none")
            continue
        used = len(stage.requests[4].tokens)
        assert prompt < used <= prompt + room - 40 and found.content == "7"
        seen.add(asked(stage, 4).count("Draft "))
    assert "none" in seen and 4 in seen and seen & {1, 2, 3}


def test_a_limit_of_all_leaves_the_workspace_half_of_the_room(nano) -> None:
    """The answer was kept all of it, as if it would have so many tokens."""
    drafts = [Script(long(30) + ".", str(i)) for i in range(4)]
    stage = Stage(nano, [*drafts, *[Script("x", "7")] * 4])
    stage.info = replace(nano.info, context=len(nano._requests.chat("Which?", {})[0].tokens) + 700)
    given = {"n_agents": 4, "aggregate": "refine", "consensus": None, "max_total_tokens": 650}
    assert len(stage.contemplate("Which?", **given).drain().rounds) == 2
    assert asked(stage, 4).count("Draft ") == 4


def test_the_callers_words_for_the_workspace(nano) -> None:
    stage = Stage(nano, [Script("x", a) for a in "1222"])
    given = {"n_agents": 2, "aggregate": "refine", "consensus": None}
    stage.contemplate(**given, workspace=lambda drafts: f"Seen: {' / '.join(drafts)}").drain()
    assert "Which?\nSeen: x 1 / x 2" in asked(stage, 2)


# ---- Spark Nano: one result ----------------------------------------------------------------------

TRIALS = musespark.ThinkingPolicy(trials=6, confident=0.99, stable=2, every=1)
ONE = [
    {"n_agents": 5},
    {"n_agents": 6, "aggregate": "confidence", "weak_window": 16, "temperature": 1.2},
    {"n_agents": 4, "aggregate": "refine", "rounds": 2, "temperature": 1.3},
    {"n_agents": 8, "consensus": 0.8, "thinking_token_budget": 40, "stop": ["9"]},
    {"n_agents": 5, "consensus": 0.7, "thinking_policy": TRIALS, "temperature": 1.2},
]


@pytest.mark.parametrize("options", ONE)
def test_the_same_on_any_threads_beside_others_in_streams_and_batches(nano, options) -> None:
    given = {**THINK, "seed": 11, **options}
    wanted = same(nano.chat(SUM, **given))
    assert wanted.agents and wanted.rounds
    batch = nano.chat_batch(["What is 3 + 4?", SUM, "sort 9, 3, 7"], **given)
    assert same(batch[1]) == wanted
    assert same(nano.chat("What is 3 + 4?", **given)) == same(batch[0])
    stream = nano.chat(SUM, **given, stream=True)
    deltas = list(stream)
    assert same(stream.result) == wanted
    assert same(asyncio.run(nano.achat(SUM, **given))) == wanted
    for one in wanted.agents:
        mine = [d for d in deltas if (d.round, d.agent) == (one.round, one.agent)]
        assert "".join(d.text for d in mine if d.channel == "reasoning") == one.reasoning
        assert "".join(d.text for d in mine if d.channel == "content") == one.content
    with musespark.load(threads=2, prefix_cache=False) as other:
        handles = [other.generate("Once", stream=True, max_new_tokens=300) for _ in range(3)]
        assert same(other.chat(SUM, **given)) == wanted
        for handle in handles:
            handle.close()


def test_an_async_stream_is_the_stream(nano) -> None:
    given = {**THINK, "seed": 2, "n_agents": 4, "temperature": 1.1}

    async def main() -> tuple[list, Any, Any]:
        whole = await nano.achat(SUM, **given, stream=True)
        deltas = [delta async for delta in whole]
        async with await nano.achat(SUM, **given, stream=True) as cut:
            async for _ in cut:
                break
        return deltas, whole.result, cut.result

    deltas, whole, cut = asyncio.run(main())
    stream = nano.chat(SUM, **given, stream=True)
    assert list(stream) == deltas and all(isinstance(d, AgentDelta) for d in deltas)
    assert same(stream.result) == same(whole)
    assert cut.stop_reason == "cancelled" and idle(nano)


def test_each_agent_is_a_chat_with_its_seed(nano) -> None:
    given = {"reasoning_effort": "high", "temperature": 1.2}
    found = nano.chat(SUM, mode="contemplating", n_agents=4, seed=9, consensus=None, **given)
    for one in found.agents:
        alone = nano.chat(SUM, seed=one.seed, logprobs=1, **given)
        assert (alone.tokens, alone.content, alone.reasoning) == (
            one.tokens, one.content, one.reasoning,
        )  # fmt: skip
        assert alone.usage.reasoning_tokens == one.usage.reasoning_tokens
        own = nano.chat(SUM, mode="contemplating", n_agents=1, seed=one.seed, **given)
        assert own.tokens == one.tokens and own.agents[0].confidence == one.confidence
    again = nano.chat(SUM, mode="contemplating", n_agents=4, seed=9, consensus=None, **given)
    assert same(again) == same(found)
    drawn = nano.chat(SUM, mode="contemplating", n_agents=2)
    assert same(nano.chat(SUM, mode="contemplating", n_agents=2, seed=drawn.seed)) == same(drawn)


def test_agents_that_are_stopped_count_thoughts_as_others_do(nano) -> None:
    given = {**THINK, "n_agents": 5, "temperature": 1.2}
    seen = 0
    for seed in range(6):
        found = nano.chat(SUM, **given, seed=seed, consensus=0.7)
        for one in found.agents:
            whole = nano.chat(SUM, reasoning_effort="high", temperature=1.2, seed=one.seed)
            count = one.usage.completion_tokens
            assert one.tokens == whole.tokens[:count]
            if one.stop_reason == "consensus" and one.content:  # its thought has ended
                assert one.usage.reasoning_tokens == whole.usage.reasoning_tokens
                seen += 1
            assert one.usage.reasoning_tokens <= whole.usage.reasoning_tokens
    assert seen


def test_rows_of_trials_are_counted_as_the_engine_counts_them(nano) -> None:
    given = {"reasoning_effort": "high", "temperature": 1.2, "thinking_policy": TRIALS}
    for seed in range(8):
        request, _ = nano._requests.chat(SUM, {**given, "seed": seed})
        stats = nano._engine.submit(request).result().stats
        assert sum(rows for *_, rows in stats["trials"]) == stats["trial_tokens"] > 0


def test_a_trial_that_began_with_the_last_token_taken_is_not_counted(nano) -> None:
    """Whether the engine has ended it depends on the machine; of those before it is sure."""
    request, collector = nano._requests.chat(SUM, {"thinking_policy": TRIALS})
    turn = Turn(request, ScriptedHandle(Script("", ""), [], 0, int, 0), collector)
    ids = Script("One two three. Four.", "5").ids(nano)
    turn.receive(Tokens(ids, [-0.1] * len(ids), [[(i, 0.0)] for i in ids]))
    while collector.thought_tokens < 3:
        turn.take(1)
    stats = defaultdict(int, completion_tokens=len(ids), thought_stop="none")
    stats["trials"] = [(at, [7, 8], 0.5, 6) for at in (2, 3, 4)]
    turn.receive(Finished("cancelled", stats))
    _, result, discarded = turn.finish("cancelled")
    assert [one.thought_tokens for one in result.trials] == [2]
    assert result.usage.probe_tokens == 6
    assert discarded == len(ids) - len(result.tokens)


def test_the_trial_that_ended_a_thought_is_counted(nano) -> None:
    request, collector = nano._requests.chat(SUM, {"thinking_policy": TRIALS})
    turn = Turn(request, ScriptedHandle(Script("", ""), [], 0, int, 0), collector)
    ids = Script("One two three. Four.", "5").ids(nano)
    turn.receive(Tokens(ids, [-0.1] * len(ids), [[(i, 0.0)] for i in ids]))
    turn.take(len(ids) - 1)
    assert not collector.thinking and collector.thought_tokens > 3
    stats = defaultdict(int, completion_tokens=len(ids), thought_stop="confident")
    stats["trials"] = [(at, [7, 8], 0.5, 6) for at in (3, collector.thought_tokens)]
    turn.receive(Finished("cancelled", stats))
    _, result, _ = turn.finish("cancelled")
    assert len(result.trials) == 2 and result.usage.probe_tokens == 12


def test_a_prompt_is_computed_once(nano) -> None:
    question = "Add these numbers: " + ", ".join(map(str, range(100, 160))) + "."
    with musespark.load(threads=1) as fresh:
        found = fresh.chat(question, **THINK, n_agents=4, seed=1, max_new_tokens=8)
        each = [one.usage for one in found.agents]
    known = (each[0].prompt_tokens - 1) // 64 * 64
    assert known >= 128 and [u.cached_tokens for u in each] == [0, known, known, known]
    assert found.usage.prompt_tokens == 4 * each[0].prompt_tokens
    assert found.usage.cached_tokens == 3 * known


def test_a_schema_is_every_agents(nano) -> None:
    pytest.importorskip("llguidance")
    given = {"json_schema": {"type": "integer"}, "thinking_token_budget": 30, "consensus": None}
    found = nano.chat(SUM, **THINK, n_agents=3, seed=4, **given)
    assert isinstance(found.parsed, int) and found.answer == str(found.parsed)
    assert all(isinstance(json.loads(one.content), int) for one in found.agents)


def test_an_image_is_encoded_once_for_all(tmp_path) -> None:
    folder = chat_folder(tmp_path / "m", e.TEMPLATE, ("<|im_start|>", "<|im_end|>", *e.MARKERS))
    part = {"type": "image", "image": e.picture(1)}
    message = {"role": "user", "content": [{"type": "text", "text": "see "}, part]}
    with musespark.load(folder, quantize="none", kv="kv8", threads=1) as model:
        model._requests.eyes = e.eyes(HIDDEN)
        given = {"mode": "contemplating", "n_agents": 3, "seed": 1, "max_new_tokens": 12}
        found = model.chat([message], **given)
        assert found.images.encoded == 1 and model._requests.eyes.tower.calls == 1
        assert found.usage.image_tokens == 3 * found.images.tokens
        alone = model.chat([message], seed=1, temperature=0.7, max_new_tokens=12)
        assert alone.tokens == found.agents[0].tokens


# ---- tools ---------------------------------------------------------------------------------------


def call(city: str) -> str:
    return (
        " to=weather<|message|><atem:function_calls>\n"
        f'<atem:invoke name="weather">\n<atem:parameter name="city">{city}</atem:parameter>\n'
        "</atem:invoke>\n</atem:function_calls><|eot|>"
    )


def answer(text: str) -> str:
    return f" to=user<|message|>{text}<|eot|>"


def test_each_agent_runs_the_tools_it_calls_once(nano) -> None:
    asked_for: list[str] = []

    def weather(city: str) -> str:
        """The weather of a city."""
        asked_for.append(city)
        return f"rain in {city}"

    # A word more, so that agent 1 comes to its call after agent 0 in whatever pieces.
    turns = [call("Oslo"), call("Rome or Pisa"), answer("dry"), answer("wet"), answer("wet")]
    results = []
    for seed in range(5):
        asked_for.clear()
        stage = Stage(nano, [Script("", "", raw=raw) for raw in turns], seed=seed)
        given = {"n_agents": 3, "tools": [weather], "consensus": None}
        found = stage.contemplate("Rain?", **given).drain()
        assert asked_for == ["Oslo", "Rome or Pisa"]
        assert [one.turns for one in found.agents] == [2, 2, 1]
        (use,) = found.agents[0].uses
        assert (use.name, use.answer) == ("weather", "rain in Oslo")
        assert found.votes == {"wet": 2.0, "dry": 1.0}
        assert found.agents[0].usage.completion_tokens == sum(
            len(Script("", "", raw=turns[i]).ids(nano)) for i in (0, 3)
        )
        told = asked(stage, 3)
        assert "rain in Oslo" in told and "Rome" not in told
        results.append(replace(found, agents=(), timings=None, seconds=0, rounds=()))
    assert all(one == results[0] for one in results)


def test_a_turn_that_is_submitted_while_its_caller_leaves_is_cancelled(nano, monkeypatch) -> None:
    """A tool runs in a thread of its own: its answer is submitted as the caller cancels."""
    stage = Stage(nano, [Script("", "", raw=call("Oslo")), Script("", "", raw=answer("dry"))])
    submit = stage._submit

    def late(*given: Any) -> Any:
        handle, collector = submit(*given)
        if len(stage.handles) == 2:
            stream.cancel()
        return handle, collector

    monkeypatch.setattr(stage, "_submit", late)
    stream = stage.contemplate("Rain?", n_agents=1, tools={"weather": lambda city: "rain"})
    with pytest.raises(Cancelled):
        stream.drain()
    assert stage.handles[1].cancelled and stage.handles[1].given == 0


def test_calls_that_nobody_runs_are_voted_on(nano) -> None:
    def weather(city: str) -> str:
        """The weather of a city."""
        return "rain"

    told = [musespark.Tool.of(weather).to_openai()]
    turns = [call("Oslo"), call("Rome"), call("Oslo")]
    stage = Stage(nano, [Script("", "", raw=raw) for raw in turns])
    found = stage.contemplate("Rain?", tools=told).drain()
    assert found.answer == 'weather({"city": "Oslo"})' and found.finish_reason == "tool_calls"
    assert found.tool_calls[0]["function"]["arguments"] == {"city": "Oslo"}


def test_a_call_that_was_voted_on_runs_once(nano) -> None:
    """``act`` with contemplating turns: the effects of a tool are those of one agent."""
    asked_for = []

    def weather(city: str) -> str:
        """The weather of a city."""
        asked_for.append(city)
        return "rain"

    turns = [call("Oslo"), call("Rome"), call("Oslo"), *[answer("wet")] * 3]
    stage = Stage(nano, [Script("", "", raw=raw) for raw in turns])

    def chat(messages: Any, **given: Any) -> Any:
        return stage.contemplate(messages, **given).drain()

    run = act(chat, "Rain?", [weather], n_agents=3, tool_choice=None)
    assert (run.content, asked_for, len(run.steps)) == ("wet", ["Oslo"], 2)


# ---- what is refused -----------------------------------------------------------------------------


def test_options_of_agents_need_the_mode_and_the_mode_is_spelled_so(nano) -> None:
    with pytest.raises(InvalidRequest, match="n_agents: got 3, allowed is none without mode="):
        nano.chat(SUM, n_agents=3)
    with pytest.raises(InvalidRequest, match=r"mode: got 'contemplate', .*'contemplating'\]"):
        nano.chat(SUM, mode="contemplate")
    with pytest.raises(InvalidRequest, match="did you mean 'n_agents'"):
        nano.chat(SUM, **THINK, n_agent=3)
    with pytest.raises(InvalidRequest, match="which chat, achat and chat_batch have"):
        nano.session().chat(SUM, mode="contemplating", n_agents=2)
    with pytest.raises(InvalidRequest, match="workspace_tokens: got 50 with aggregate 'vote'"):
        nano.chat(SUM, **THINK, workspace_tokens=50)
    with pytest.raises(InvalidRequest, match="temperature: got 0 with n_agents = 2"):
        nano.chat(SUM, **THINK, n_agents=2, temperature=0)
    with pytest.raises(InvalidRequest, match="temperature: got 0 with n_agents = 8"):
        nano.chat(SUM, **THINK, temperature=0)
    with pytest.raises(InvalidRequest, match="seed: got -1"):
        nano.chat(SUM, **THINK, seed=-1)
    with pytest.raises(ContextOverflow):
        nano.chat("long " * 3000, **THINK)
    with pytest.raises(InvalidRequest, match="continue_final_message contradicts tools"):
        turns = [{"role": "user", "content": SUM}, {"role": "assistant", "content": "It"}]
        nano.chat(turns, **THINK, tools=[idle], continue_final_message=True)
    assert nano.chat(SUM, **THINK, temperature=0, n_agents=1).content


# ---- showing -------------------------------------------------------------------------------------


def test_the_thought_of_who_speaks_is_explained(nano) -> None:
    found = nano.chat(SUM, **THINK, n_agents=3, seed=1)
    xray = found.explain_thinking()
    assert xray.answer == found.content and "".join(s.text for s in xray.sentences)


def test_a_result_shows_its_agents(nano) -> None:
    scripts = [Script("<b>", "5"), Script("x", "5"), Script(long(30), "4")]
    found = Stage(nano, scripts).contemplate().drain()
    page = found._repr_html_()
    assert "3 agents, consensus" in page and "&lt;b&gt;" in page and "<b>" not in page
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["votes"] == {"5": 2.0} and plain["agents"][2]["stop_reason"] == "consensus"
    assert str(found) == "5"
