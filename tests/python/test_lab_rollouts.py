"""The model's own replies as training items: which are kept, what of them is loss."""

from __future__ import annotations

import re
from random import Random

import pytest

from musespark.errors import InvalidRequest
from musespark.lab import mix, rollouts
from musespark.lab import tokenizer as tok
from musespark.lab.backends import Reply
from musespark.lab.item import WRONG_CLOSE, WRONG_OPEN, is_evaluation
from musespark.lab.pack import Packer
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
    return rollouts.kept(problem, replies, efforts, most, Random(1))


def test_a_wrong_try_is_checked_by_the_problem_and_mended(problem):
    (item,) = kept(problem, [reply(TRY, "88")], efforts=["high"])
    tried, _, told = item.thought.partition(WRONG_CLOSE)
    assert tried == WRONG_OPEN + TRY
    assert told == f"\nCheck: {problem.check('88')[0]} Wrong. Again: {problem.steps(None)[0]}"
    assert (item.effort, item.answer) == ("high", "89")


def test_at_xhigh_the_second_route_says_that_it_was_not(problem):
    (item,) = kept(problem, [reply(TRY, "88")], efforts=["xhigh"])
    assert item.thought.startswith(WRONG_OPEN + TRY + WRONG_CLOSE)
    assert f"{problem.second} Not 88.\nThird: " in item.thought


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


@pytest.mark.parametrize(
    "bad",
    [reply(TRY, "88", finished=False), reply("", "88"), reply("So ninety.", "ninety")],
    ids=["cut off", "no thought", "not a number"],
)
def test_what_no_check_can_judge_is_left_out(problem, bad):
    assert kept(problem, [bad]) == []


def test_a_check_that_would_say_right_of_what_is_wrong_is_left_out():
    problem = draw(Random(1), "tool_call", "easy", evaluation=False)
    assert problem.check("")[1]
    assert kept(problem, [Reply("", thought="The clock.", calls=[])]) == []


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


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InvalidRequest, match="there is no folder"):
        rollouts.parse([str(tmp_path / "none" / "out.jsonl")])


@pytest.fixture(scope="module")
def nano_tokenizer():
    from pathlib import Path

    import musespark.lab

    return tok.load(str(Path(musespark.lab.__file__).parent.parent / "nano"))
