"""Group-relative policy optimization: what is rewarded, which way the weights move."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the lab needs torch")
pytest.importorskip("transformers", minversion="5.17", reason="the lab needs transformers")

from musespark.errors import InvalidRequest  # noqa: E402
from musespark.lab import network, rl  # noqa: E402
from musespark.lab.backends import Reply  # noqa: E402
from musespark.lab.item import compose  # noqa: E402
from musespark.lab.tasks import draw  # noqa: E402

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "threads_of_this_machine", lambda: 1)
        yield


def arguments(out, *more):
    small = ("--problems", "2", "--group", "2", "--max-new-tokens", "40")
    return [str(out), "--no-compile", "--threads", "1", *small, *more]


@pytest.fixture
def learner(tmp_path):
    made = rl.Learner(rl.parse(arguments(tmp_path, "--lr", "1e-3")))
    yield made
    made.backend.close()


def test_the_price_of_tokens_and_the_mean_of_the_group():
    correct = np.array([[True, False], [True, True]])
    tokens = np.array([[100, 50], [20, 40]])
    worth = rl.advantages(correct, tokens, 0.001)
    assert worth == pytest.approx(np.array([[0.475, -0.475], [0.01, -0.01]]))
    assert rl.advantages(correct, tokens, 0.0)[1] == pytest.approx([0, 0])


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("weight", [1.0, -1.0])
def test_what_was_better_than_its_group_becomes_likelier(learner, weight, long):
    from random import Random

    item = compose(draw(Random(3), "addition", "easy", evaluation=False), "high", Random(3))
    wrote = tuple(learner.tokenizer.encode(" to=self").ids + learner.tokenizer.encode("9+9=4").ids)
    reply = Reply("", tokens=wrote, finished=False)

    def cost():
        sample = learner.sample(item, reply, 1.0)
        batch = learner.packer.batch([sample], rl._ROWS, rl._LENGTH)
        arrays = {k: torch.from_numpy(v) for k, v in batch.arrays().items() if k != "family"}
        with torch.no_grad():
            return float(learner.loss(arrays)[0])

    before, times = cost(), 1 + 500 // len(wrote) if long else 1
    learned = learner.sample(item, Reply("", tokens=wrote * times, finished=False), weight)
    assert (len(learned) > rl._LENGTH) == long
    assert learner.learn([learned]) > 0
    assert (cost() < before) == (weight > 0)


def test_every_token_of_every_reply_counts(learner):
    """Of rows that are nearly full of replies a part was left out, another each time."""
    item = compose(draw(_rng(), "addition", "easy", evaluation=False), "high", _rng())
    short = learner.tokenizer.encode("9+9=4").ids
    count = (rl._LENGTH - 100) // len(short)
    reply = Reply("", tokens=tuple(short * count), finished=False)
    samples = [learner.sample(item, reply, 1.0) for _ in range(rl._ROWS)]
    wanted = sum(sum(one.mask) for one in samples)
    assert wanted > rl._ROWS * rl._LENGTH * 11 // 16
    batch = learner.packer.batch(samples, rl._ROWS, rl._LENGTH)
    assert not samples and (batch.labels >= 0).sum() == wanted


def test_the_engine_writes_with_the_weights_that_were_learned(learner):
    items = [compose(draw(_rng(), "addition", "easy", evaluation=False), "medium", _rng())]
    before = learner.replies(items, 1, 7)[0][0].raw
    with torch.no_grad():
        for p in learner.model.parameters():
            p.mul_(0.5)
    learner._swap()
    assert learner.replies(items, 1, 7)[0][0].raw != before


def test_nothing_but_the_model_ends_a_thought_that_it_learns_from(learner, monkeypatch):
    asked = []
    replies = learner.backend.replies

    def seen(items, count, limit, options):
        asked.extend(options(items[0], k) for k in range(count))
        return replies(items, count, limit, options)

    monkeypatch.setattr(learner.backend, "replies", seen)
    items = [compose(draw(_rng(), "addition", "easy", evaluation=False), "medium", _rng())]
    ((one, other),) = learner.replies(items, 2, 7)
    assert [options["thinking_policy"] for options in asked] == ["off", "off"]
    assert asked[0]["seed"] != asked[1]["seed"] and one.raw and other.raw


def _rng():
    from random import Random

    return Random(4)


def test_a_run_is_logged_and_goes_on(tmp_path):
    more = ("--levels", "easy:1", "--measure-every", "9", "--tasks", "addition")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rl, "_MEASURED", 2)
        patch.setattr(rl, "_PASS", 2)
        rl.main(arguments(tmp_path, *more))
        rl.main(arguments(tmp_path, *more[2:], "--levels", "easy:1,middle:1"))
    rows = [json.loads(line) for line in (tmp_path / "rl.jsonl").read_text().splitlines()]
    steps = [r for r in rows if "reward" in r]
    assert [(r["step"], r["level"]) for r in steps] == [(1, "easy"), (2, "middle")]
    assert all(0 <= r["pass_at_1"] <= r["pass_at_16"] <= 1 for r in rows if "pass_at_1" in r)
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 2


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--levels", "easy"), "--levels: got 'easy'"),
        (("--levels", "huge:3"), "--levels: got 'huge:3'"),
        (("--tasks", "counting"), "--tasks: got 'counting'"),
        (("--group", "1"), "--group: got 1"),
        (("--lam", "-1"), "--lam: got -1"),
        (("--max-new-tokens", "513"), "--max-new-tokens: got 513, allowed is 1 to 512"),
    ],
)
def test_wrong_options_are_named(tmp_path, more, named):
    with pytest.raises(InvalidRequest, match=named):
        rl.parse([str(tmp_path), *more])
