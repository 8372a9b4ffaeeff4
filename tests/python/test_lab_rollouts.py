"""The model's own replies as training items: which are kept, what of them is loss."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

import musespark.lab
from musespark.errors import InvalidRequest
from musespark.lab import mix, protocol, rollouts
from musespark.lab import tokenizer as tok
from musespark.lab.backends import Reply
from musespark.lab.item import (
    AGAIN,
    THIRD,
    WRONG_CLOSE,
    WRONG_OPEN,
    compose,
    is_evaluation,
    told_calls,
)
from musespark.lab.pack import Packer, Source
from musespark.lab.tasks import draw

TRY = "9+0=8. So 88."
EFFORTS = ("high", "xhigh")


@pytest.fixture
def problem():
    return addition(29, 60)


def addition(a, b):
    return next(
        p
        for p in (draw(Random(i), "addition", "easy", evaluation=False) for i in range(100_000))
        if {str(a), str(b)} <= set(re.findall(r"\d+", p.question)) and p.answer == str(a + b)
    )


def reply(thought, answer="89", **more):
    return Reply(answer, thought=thought, **more)


def kept(problem, replies, most=9, efforts=EFFORTS):
    item = compose(problem, rollouts.TRIED, Random(1))
    return rollouts.kept(problem, item, replies, efforts, most, Random(1))


def test_a_wrong_try_is_checked_by_the_problem_and_mended(problem):
    (item,) = kept(problem, [reply(TRY, "88")], efforts=["high"])
    tried, _, told = item.thought.partition(WRONG_CLOSE)
    assert tried == WRONG_OPEN + TRY
    assert told == f"\nCheck: {problem.check('88')[0]} Wrong. Again: {problem.steps(None)[0]}"
    assert (item.effort, item.answer) == ("high", "89")


def test_at_xhigh_the_second_route_says_that_it_was_not(problem):
    (item,) = kept(problem, [reply(TRY, "88")], efforts=["xhigh"])
    assert item.thought.startswith(WRONG_OPEN + TRY + WRONG_CLOSE)
    assert f"{problem.second} 88 and 89: 8=8 8/9. They differ.\nThird: " in item.thought


def test_wrong_and_right_tries_come_in_turn_and_right_ones_are_said_to_be_right(problem):
    replies = [reply("Mine."), reply(TRY, "88"), reply("Mine."), reply("Mine too.")]
    both = [*replies, reply("So 87.", "87")]
    assert [WRONG_OPEN in i.thought for i in kept(problem, both)] == [True, False, True, False]
    items = kept(problem, replies)
    assert [WRONG_OPEN in i.thought for i in items] == [True, False, False]
    assert all(
        i.thought.startswith(t) for i, t in zip(items[1:], ("Mine.", "Mine too."), strict=True)
    )
    assert all(i.thought.endswith(" Right.") for i in items[1:])
    assert len(kept(problem, replies, most=2)) == 2


def test_what_is_always_right_gives_nothing(problem):
    assert kept(problem, [reply("Mine."), reply("Mine too.")]) == []


def test_a_doubt_is_told_on_from_where_it_stands_whoever_was_wrong(problem):
    item = compose(problem, "high", Random(1))
    steps = problem.steps(None)[0]
    mine = f"{steps}\nCheck: 3 and 4: 3/4.{AGAIN}"
    other = f"{TRY}\nAnother way: 1 and 2: 1/2.{THIRD}"
    sure = reply(f"{steps}\nCheck: 89 and 89: 8=8 9=9. Right.")
    replies = [reply(f"{mine} {TRY}", "88"), sure, reply(f"{mine} {steps}"), reply(f"{other} 3.")]
    first, second = rollouts.doubted(problem, item, replies)
    assert first.thought == f"{WRONG_OPEN}{mine}{WRONG_CLOSE} {steps}"
    assert second.thought == f"{WRONG_OPEN}{other}{WRONG_CLOSE} {steps}"
    assert (first.answer, first.messages, first.effort) == ("89", item.messages, "high")
    assert rollouts.doubted(problem, item, [sure]) == []


@pytest.mark.parametrize("task", rollouts.TASKS)
@pytest.mark.parametrize("sign", [AGAIN, THIRD])
def test_what_follows_a_doubt_is_the_tokens_that_a_model_would_write(task, sign, nano_tokenizer):
    """Where the space stood in the part that is no loss, the rest began with other tokens."""
    for i in range(20):
        problem = draw(Random(i), task, "easy", evaluation=False)
        if problem.check is None:
            continue
        item = compose(problem, "xhigh", Random(i))
        (told,) = rollouts.doubted(problem, item, [reply(f"Mine.{sign} No.")])
        assert not told.thought.endswith(" .")
        whole = told.thought.translate({ord(mark): None for mark in (WRONG_OPEN, WRONG_CLOSE)})
        ids, mask = protocol.encode(protocol.reply_pieces(told), nano_tokenizer)
        once, _ = protocol.encode(
            protocol.reply_pieces(replace(told, thought=whole)), nano_tokenizer
        )
        assert ids == once
        trained = [i for i, loss in zip(ids, mask, strict=True) if loss]
        assert whole.partition(sign)[2] in nano_tokenizer.decode(trained)
        assert "Mine." not in nano_tokenizer.decode(trained)


@pytest.mark.parametrize(
    "bad",
    [reply(TRY, "88", finished=False), reply("", "88"), reply("So ninety.", "ninety")],
    ids=["cut off", "no thought", "not a number"],
)
def test_what_no_check_can_judge_is_left_out(problem, bad):
    assert kept(problem, [bad]) == []


def test_a_check_that_would_say_right_of_what_is_wrong_is_left_out(problem):
    lax = replace(problem, check=lambda got: ("Looks fine.", True))
    assert kept(lax, [reply(TRY, "88")]) == []


def test_a_try_that_ends_in_calls_is_judged_by_what_they_say():
    problem = draw(Random(1), "tool_call", "easy", evaluation=False)
    (call,) = problem.calls
    key, value = next(iter(call["arguments"].items()))
    wrong = {"name": call["name"], "arguments": {**call["arguments"], key: f"{value}s"}}
    bad = Reply("", thought=f"{told_calls([wrong])}.", calls=[wrong])
    none = Reply("Hello.", thought="No tool.", calls=[])
    good = Reply("", thought=f"{told_calls([call])}.", calls=[call])
    assert kept(problem, [good]) == []
    first, second, third = kept(problem, [bad, none, good], efforts=["high"])
    assert f"{key} is {value}, {value}/{value}s. Wrong. Again: {good.thought}" in first.thought
    assert second.thought.startswith(f"{good.thought}\nCheck: ")
    assert second.thought.endswith(" Right.")
    assert f"{call['name']}/. Wrong. Again: {good.thought}" in third.thought
    assert all(i.calls == problem.calls for i in (first, second, third))


def test_calls_are_the_same_in_any_order_of_arguments():
    problem = next(
        p
        for p in (draw(Random(i), "tool_call", "easy", evaluation=False) for i in range(99))
        if len(p.calls[0]["arguments"]) == 2
    )
    (call,) = problem.calls
    turned = {**call, "arguments": dict(reversed(call["arguments"].items()))}
    good = Reply("", thought=f"{told_calls([turned])}.", calls=[turned])
    bad = Reply("", thought="No.", calls=[])
    item = kept(problem, [bad, good], efforts=["high"])[1]
    assert item.thought.startswith(good.thought)
    assert item.thought.endswith(" Right.")


def test_problems_are_of_the_training_side():
    found = rollouts.problems(["addition", "tool_call"], 20, 5)
    assert len(found) == 2 * 3 * 20
    assert not any(is_evaluation(p.task, p.key) for p in found)


def test_what_is_written_is_what_training_draws(problem, tmp_path, nano_tokenizer):
    path = tmp_path / "own.jsonl"
    items = kept(problem, [reply(TRY, "88")], efforts=["high"])
    rollouts.write(items, path)
    (again,) = mix.read_rollouts(path)
    assert again == items[0]
    assert [p.name for p in tmp_path.iterdir()] == ["own.jsonl"]
    packer = Packer(nano_tokenizer, [], 2, 128, seed=1, rollouts=[again])
    drawn = [packer.sample() for _ in range(300)]
    own = [
        s
        for s in drawn
        if "Wrong. Again: " + problem.steps(None)[0] in nano_tokenizer.decode(s.ids)
    ]
    assert len(own) > 300 * mix.ROLLOUTS * 0.5
    written = [i for i, trained in zip(own[0].ids, own[0].mask, strict=True) if not trained]
    assert "So 88." in nano_tokenizer.decode(written)


def test_training_ends_where_nobody_makes_batches(tmp_path):
    """It waited for ever: for a file that was not there, or a generator that failed."""
    path = tmp_path / "own.jsonl"
    path.write_text("no item\n")
    folder = str(Path(musespark.lab.__file__).parent.parent / "nano")
    source = Source(folder, None, 1, 128, 0, 0.0, 1, "main", rollouts=str(path))
    try:
        with pytest.raises(RuntimeError, match="1 of 1 processes that make batches ended, with 1"):
            source.get("main")
    finally:
        source.close()


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--tasks", "counting"], "--tasks: got 'counting'"),
        (["--efforts", "huge"], "--efforts: got 'huge'"),
        (["--efforts", "medium"], "--efforts: got 'medium'"),
        (["--samples", "0"], "--samples: got 0"),
        (["--keep", "-1"], "--keep: got -1"),
    ],
)
def test_wrong_options_are_named(tmp_path, more, named):
    with pytest.raises(InvalidRequest, match=named):
        rollouts.parse([str(tmp_path / "out.jsonl"), *more])


def test_what_is_there_is_kept(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text("mine")
    with pytest.raises(InvalidRequest, match=r"OUT: .*own\.jsonl is there already"):
        rollouts.parse([str(path)])


def test_where_nothing_is_to_be_learned_nothing_is_written(tmp_path, monkeypatch):
    class Right:
        def __init__(self, model, threads):
            pass

        def replies(self, items, count, limit, told, progress):
            return [[Reply(i.answer, thought="So.", calls=i.calls or [])] * count for i in items]

        def close(self):
            pass

    monkeypatch.setattr(rollouts, "MusesparkBackend", Right)
    path = tmp_path / "own.jsonl"
    with pytest.raises(InvalidRequest, match="rollouts: every reply is right"):
        rollouts.main([str(path), "--n", "1", "--tasks", "addition"])
    assert not path.exists()


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InvalidRequest, match="there is no folder"):
        rollouts.parse([str(tmp_path / "none" / "out.jsonl")])


@pytest.fixture(scope="module")
def nano_tokenizer():
    return tok.load(str(Path(musespark.lab.__file__).parent.parent / "nano"))
