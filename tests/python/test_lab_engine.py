"""Evaluation on our own engine: pictures as transformers sees them, zooming, oracles."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from musespark.errors import UnsupportedModel
from musespark.lab import tokenizer as tok
from musespark.lab import zoom
from musespark.lab.backends import EMPTY
from musespark.lab.engine import MusesparkBackend
from musespark.lab.formats import CLOSING
from musespark.lab.grading import grade
from musespark.lab.item import Item, compose
from musespark.lab.oracle import Cut, Markers, cuts, first_attempt
from musespark.lab.tasks import zooming

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
sys.path.insert(0, str(GOLDEN))
import random_nano_cases as cases  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("random_nano")
    cases.write(out)
    return out


@pytest.fixture(scope="module")
def nano():
    backend = MusesparkBackend(None)
    yield backend
    backend.close()


def test_greedy_tokens_of_text_and_pictures_are_those_of_transformers(folder):
    wanted = json.loads((GOLDEN / "random_nano.json").read_text())
    backend = MusesparkBackend(folder, quantize="none", kv="f32")
    replies = backend.reply(cases.items(), cases.NEW_TOKENS)
    turned = [replace(i, pictures=[_turned(p) for p in i.pictures]) for i in cases.items()]
    blind = backend.reply(turned, cases.NEW_TOKENS)
    backend.close()
    assert [list(r.tokens) for r in replies] == wanted
    assert all(a.tokens != b.tokens for a, b in zip(replies[2:], blind[2:], strict=True))


def test_several_replies_to_each_item_are_those_of_rounds(nano):
    items = [
        Item("t", "hard", "medium", q, [{"role": "user", "content": q}], None, "", "string")
        for q in ("Tell me a story.", "What is 5821 + 3377?")
    ]
    told = [{"temperature": 1.0, "seed": 7 + k} for k in range(3)]
    steps = [nano.model._engine.stats()["steps"]]
    rounds = [nano.reply(items, 40, options=one) for one in told]
    steps.append(nano.model._engine.stats()["steps"])
    found = nano.replies(items, 3, 40, lambda item, k: told[k])
    steps.append(nano.model._engine.stats()["steps"])
    tokens = [[reply.tokens for reply in group] for group in found]
    assert tokens == [[one.tokens for one in group] for group in zip(*rounds, strict=True)]
    assert len(set(tokens[0])) == 3
    # Of six sequences, two a round, one after the other would take twice the steps of the rounds.
    assert steps[2] - steps[1] < steps[1] - steps[0], "one after the other"
    made = nano.replies(items, 2, 8, lambda item, k: told[k], lambda item, r: (item.key, r.raw))
    assert [[key for key, _ in group] for group in made] == [[i.key] * 2 for i in items]


def _turned(picture):
    return type(picture)(np.ascontiguousarray(picture.pixels[::-1]))


# ---- oracles --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    return tok.load(cases.NANO)


@pytest.fixture(scope="module")
def markers(tokenizer):
    return Markers.of(tokenizer.token_to_id, lambda t: tokenizer.encode(t).ids)


def written(tokenizer, *parts):
    return [i for p in parts for i in ([p] if isinstance(p, int) else tokenizer.encode(p).ids)]


def test_sentence_ends_of_a_thought(tokenizer, markers):
    thought = "8+6=14 carry 1. So 3.5 is it.\nCheck: a\nb. Right."
    head = written(tokenizer, " to=self", tok.MESSAGE)
    ids = written(tokenizer, *head, thought, tok.EOM, tok.START, "assistant to=user", tok.MESSAGE)
    ids += written(tokenizer, "One. Two.", tok.EOT)
    found = cuts(ids, markers, lambda i: tokenizer.decode([i]))
    kept = [tokenizer.decode(ids[len(head) : c.written]) for c in found]
    assert [k.rstrip("\n") for k in kept] == [
        "8+6=14 carry 1.",
        "8+6=14 carry 1. So 3.5 is it.",
        "8+6=14 carry 1. So 3.5 is it.\nCheck: a",
        "8+6=14 carry 1. So 3.5 is it.\nCheck: a\nb.",
    ]
    assert [c.thinking for c in found] == [c.written - len(head) for c in found]
    assert cuts(ids[: len(head)], markers, str) == []


class Scripted(MusesparkBackend):
    """A backend whose turns are written here: the thought of 4 sentences, then what a close at each
    of them answers."""

    def __init__(self, tokenizer, markers, closes):
        self._markers, self._text = markers, lambda i: tokenizer.decode([i])
        self._tokenizer, self._closes = tokenizer, closes
        self.asked = []

    def _ask(self, item, begun, limit, *, retain=False, base=None):
        text = self._tokenizer.decode(list(begun))
        self.asked.append(text)
        if not begun:
            thought = "One. Two. Three. So 4."
            parts = [" to=self", tok.MESSAGE, thought, tok.EOM, tok.START, "assistant"]
            return _Told(written(self._tokenizer, *parts), item.answer, thought)
        assert (retain, base) == (False, "kept")
        return _Told([], self._closes[text.count(".") - 3], "")

    def _reply(self, told):
        from musespark.lab.backends import Reply

        n = len(self._tokenizer.encode(told.thought).ids)
        return Reply(told.answer, [], told.thought, n, tokens=tuple(told.ids))


class _Told:
    def __init__(self, ids, answer, thought):
        self.ids, self.answer, self.thought = ids, answer, thought
        self.handle = self
        self.retained = _Kept("kept")

    def drain(self):
        return self

    def close(self):
        pass


class _Kept(str):
    def release(self):
        pass


@pytest.mark.parametrize(
    ("closes", "sentences"),
    [("444", 1), ("944", 2), ("494", 3), ("449", 4), ("999", 4)],
)
def test_the_stable_oracle_is_the_end_from_which_all_closes_are_right(
    tokenizer, markers, closes, sentences
):
    item = Item("t", "easy", "high", "k", [], None, "4", "number")
    backend = Scripted(tokenizer, markers, closes)
    (reply,) = backend.reply([item], 9, oracle=True)
    told = ["One.", " Two.", " Three.", " So 4."]
    assert reply.stable == len(tokenizer.encode("".join(told[:sentences])).ids)
    # Backwards, and no further than the first that is wrong.
    assert len(backend.asked) == 1 + min(3, 5 - sentences)
    assert "Time is up" in backend.asked[1]


@pytest.mark.parametrize("review", ["\nCheck: 2+2", "\nAnother way: 2+2"])
def test_a_first_attempt_ends_before_the_first_review(tokenizer, markers, review):
    first, rest = "One. So 3.", f"{review} is 4. Wrong. Again: so 4.\nCheck: 4. Right."
    head = written(tokenizer, " to=self", tok.MESSAGE)
    attempt = [*head, *written(tokenizer, first)]
    whole = [*attempt, *written(tokenizer, rest), tok.EOM]

    def text_of(token):
        return tokenizer.decode([token])

    found = first_attempt(whole, markers, text_of)
    assert found == Cut(len(attempt), len(attempt) - len(head))
    assert first_attempt(attempt, markers, text_of) is None


@pytest.mark.parametrize("first", ["3", "4"])
def test_a_first_attempt_is_right_if_its_close_is(tokenizer, markers, first):
    class Checking(Scripted):
        def _ask(self, item, begun, limit, *, retain=False, base=None):
            self.asked.append(self._tokenizer.decode(list(begun)))
            thought = f"So {first}.\nCheck: So 4. Right"
            if begun:
                return _Told([], first, "")
            parts = [" to=self", tok.MESSAGE, thought, tok.EOM, tok.START, "assistant"]
            return _Told(written(self._tokenizer, *parts), "5", thought)

    backend = Checking(tokenizer, markers, "")
    item = Item("t", "easy", "high", "k", [], None, "4", "number")
    (reply,) = backend.reply([item], 9, oracle=True)
    assert reply.first is (first == "4")
    (asked,) = backend.asked[1:]
    assert f"So {first}." in asked and asked.endswith(f"{CLOSING}assistant")
    assert "Check" not in asked


def test_what_ends_wrong_counts_in_full(tokenizer, markers):
    item = Item("t", "easy", "high", "k", [], None, "5", "number")
    backend = Scripted(tokenizer, markers, "555")
    backend._reply = lambda told, old=backend._reply: replace(old(told), answer="4")
    (reply,) = backend.reply([item], 9, oracle=True)
    assert (reply.stable, len(backend.asked)) == (reply.thinking_tokens, 1)


def test_forced_closes_and_empty_thoughts_on_nano(nano):
    messages = [{"role": "user", "content": "Which is larger, 64 or 90?"}]
    item = Item("comparison", "easy", "high", "64 90", messages, None, "90", "string")
    (free,) = nano.reply([item], 200, oracle=True)
    assert grade(item, free.answer)
    assert "\nCheck: " in free.thought
    assert 0 < free.stable <= free.thinking_tokens
    assert free.first is True
    (empty,) = nano.reply([item], 200, thinking=EMPTY)
    assert (empty.thinking_tokens, empty.thought, empty.calls) == (0, "", [])
    assert empty.finished
    assert empty.computed < free.computed


def test_replies_do_not_depend_on_what_runs_beside_them(nano):
    asked = [f"What is {a} + {b}?" for a, b in ((12, 9), (58, 67), (90, 15))]
    items = [
        Item("t", "easy", effort, q, [{"role": "user", "content": q}], None, "", "none")
        for q in asked
        for effort in ("low", "high")
    ]
    together = nano.reply(items, 60)
    assert [nano.reply([i], 60)[0].tokens for i in items] == [r.tokens for r in together]
    long = replace(items[0], messages=[{"role": "user", "content": "no " * 4000}])
    (reply,) = nano.reply([long], 60)
    assert not reply.finished
    assert "2048" in reply.raw.replace(",", "")


# ---- zooming --------------------------------------------------------------------------------


class Looking(MusesparkBackend):
    """Calls the tool that the item was drawn with, then says what the crop's mean color is."""

    def __init__(self, tokenizer, item):
        self._markers, self._tokenizer, self._item = object(), tokenizer, item
        self.seen = []

    def _ask(self, item, begun, limit, *, retain=False, base=None):
        self.seen.append([p.pixels.shape for p in item.pictures])
        told = _Told([], "", "look")
        told.calls = [] if len(item.pictures) > 1 else [self._item.messages[1]["tool_calls"][0]]
        return told

    def _reply(self, told):
        from musespark.lab.backends import Reply

        calls = [c["function"] for c in told.calls]
        return Reply("" if calls else self._item.answer, calls, told.thought, 5)


def test_a_call_of_the_zoom_tool_is_answered_and_its_thinking_counts(tokenizer):
    rng = Random(2)
    problem = next(p for p in iter(lambda: zooming.zooming(rng, "middle")(rng), None) if p.tools)
    item = compose(problem, "medium", rng)
    backend = Looking(tokenizer, item)
    (reply,) = backend.reply([zoom.opened(item)], 50)
    assert grade(item, reply.answer)
    assert backend.seen == [[(128, 128, 3)], [(128, 128, 3), (128, 128, 3)]]
    assert reply.thinking_tokens == 10


def test_a_model_without_channels_has_no_oracle(nano):
    bare = MusesparkBackend.__new__(MusesparkBackend)
    bare._markers = None
    with pytest.raises(UnsupportedModel, match="channels"):
        bare.reply([], 1, oracle=True)


def test_cuts_are_plain_values():
    assert Cut(3, 2) == Cut(3, 2) != Cut(3, 1)
