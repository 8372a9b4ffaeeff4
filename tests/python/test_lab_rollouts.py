"""The model's own replies as training items: which are kept, what of them is loss."""

from __future__ import annotations

from random import Random

import pytest

from musespark.errors import InvalidRequest
from musespark.lab import mix, rollouts
from musespark.lab import tokenizer as tok
from musespark.lab.backends import Reply
from musespark.lab.item import WRONG_CLOSE, WRONG_OPEN, is_evaluation
from musespark.lab.pack import Packer
from musespark.lab.tasks import draw_item

MENDED = "9+0=8. So 88.\nCheck: 88-60: 8-0=8. So 28, want 29. Wrong. Again: 9+0=9. So 89."
SETTLED = "So 88.\nAnother way: 29+60=89. Not 88.\nThird: 89-60=29, want 29. So 89."
RIGHT = "9+0=9, 2+6=8. So 89.\nCheck: 89-60=29, want 29. Right."


@pytest.fixture
def item():
    one = draw_item(Random(1), "addition", "easy", "high", evaluation=False)
    one.answer, one.checker = "89", "number"
    return one


def reply(thought, answer="89", **more):
    return Reply(answer, thought=thought, **more)


@pytest.mark.parametrize(
    ("thought", "first"),
    [(MENDED, "9+0=8. So 88."), (SETTLED, "So 88."), (RIGHT, None), ("Wrong. Again: 1", None)],
)
def test_only_a_first_try_that_was_mended_is_marked_as_wrong(thought, first):
    told = rollouts.mended(thought)
    if first is None:
        assert told is None
    else:
        assert told == f"{WRONG_OPEN}{first}{WRONG_CLOSE}{thought[len(first) :]}"


def test_right_replies_are_kept_and_mended_ones_come_first(item):
    replies = [reply(RIGHT), reply("So 88.", "88"), reply(MENDED), reply(RIGHT), reply(SETTLED)]
    thoughts = [i.thought for i in rollouts.kept(item, replies, 2)]
    assert thoughts == [rollouts.mended(MENDED), rollouts.mended(SETTLED)]
    three = rollouts.kept(item, replies, 9)
    assert [i.thought for i in three[2:]] == [RIGHT]  # told once, though it came twice
    assert all(i.answer == "89" and i.messages == item.messages for i in three)


@pytest.mark.parametrize("answers", [["89", "89"], ["88", "87"]])
def test_problems_that_are_always_right_or_never_give_nothing(item, answers):
    assert rollouts.kept(item, [reply(RIGHT, a) for a in answers], 2) == []


def test_a_reply_that_was_cut_off_is_not_right(item):
    cut = reply(RIGHT, finished=False)
    assert rollouts.kept(item, [cut, reply("So 88.", "88")], 2) == []


def test_problems_are_of_the_training_side():
    items = rollouts.problems(["addition", "tool_call"], ["high"], 20, 5)
    assert len(items) == 2 * 3 * 20
    assert not any(is_evaluation(i.task, i.key) for i in items)


def test_what_is_written_is_what_training_draws(item, tmp_path, nano_tokenizer):
    path = tmp_path / "own.jsonl"
    rollouts.write(rollouts.kept(item, [reply(MENDED), reply("", "1")], 2), path)
    (again,) = mix.read_rollouts(path)
    assert again.thought == rollouts.mended(MENDED)
    assert [p.name for p in tmp_path.iterdir()] == ["own.jsonl"]
    packer = Packer(nano_tokenizer, [], 2, 128, seed=1, rollouts=[again])
    drawn = [packer.sample() for _ in range(300)]
    own = [s for s in drawn if "Wrong. Again: 9+0=9. So 89." in nano_tokenizer.decode(s.ids)]
    assert len(own) > 300 * mix.ROLLOUTS * 0.5
    written = [i for i, trained in zip(own[0].ids, own[0].mask, strict=True) if not trained]
    assert "So 88." in nano_tokenizer.decode(written)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--tasks", "counting"], "--tasks: got 'counting'"),
        (["--efforts", "huge"], "--efforts: got 'huge'"),
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
