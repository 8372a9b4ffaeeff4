"""Evaluation on a mock backend: intervals, grouping, parsing of raw replies, no overlap."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from musespark.lab import mix, protocol
from musespark.lab import tokenizer as tok
from musespark.lab.backends import Reply, parse_reply
from musespark.lab.evaluate import evaluate, fill_card, items_for, overlap, table, wilson
from musespark.lab.item import is_evaluation
from musespark.lab.tasks import EFFORTS

NANO = Path(protocol.__file__).parent.parent / "nano"


class Oracle:
    """Knows every answer; ``miss`` counts the answers it spoils."""

    name = "oracle"

    def __init__(self, miss: int = 0):
        self.miss = miss

    def reply(self, items, max_new_tokens):
        replies = []
        for k, item in enumerate(items):
            calls = [
                {"name": c["name"], "arguments": dict(c["arguments"])} for c in item.calls or []
            ]
            wrong = k < self.miss
            replies.append(Reply("x" if wrong else item.answer, [] if wrong else calls, "t", 3))
        return replies


def test_wilson_against_published_values():
    # Newcombe 1998, table I: 81/263 and 1/29.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_an_oracle_is_right_everywhere_and_a_miss_is_counted():
    items = items_for(
        ["addition", "tool_call", "sorting"], ["easy", "hard"], list(EFFORTS), 5, seed=1
    )
    rows = evaluate(Oracle(), items)
    assert len(rows) == 3 * 2 * 4
    assert all(r["correct"] == r["n"] == 5 for r in rows)
    assert {r["modality"] for r in rows} == {"text", "tools"}
    spoiled = evaluate(Oracle(miss=2), items)
    assert sum(r["correct"] for r in spoiled) == len(items) - 2


def test_an_unfinished_reply_is_wrong():
    items = items_for(["addition"], ["easy"], ["low"], 4, seed=1)

    class Cut(Oracle):
        def reply(self, items, max_new_tokens):
            return [Reply(i.answer, finished=False) for i in items]

    rows = evaluate(Cut(), items)
    assert rows[0]["correct"] == 0
    assert rows[0]["unfinished"] == 4


def test_efforts_see_the_same_held_out_instances():
    items = items_for(["comparison"], ["easy"], list(EFFORTS), 20, seed=3)
    by_effort = [[i.key for i in items if i.effort == e] for e in EFFORTS]
    assert all(keys == by_effort[0] for keys in by_effort)
    assert len(set(by_effort[0])) == 20
    assert all(is_evaluation("comparison", k) for k in by_effort[0])


def test_overlap_counts_what_is_shared():
    items = items_for(["addition", "lookup"], ["easy"], ["medium"], 30, seed=3)
    assert overlap(items, 3000, seed=5) == 0
    # A training instance smuggled into the evaluation set must be found.
    stolen = mix.draw_training_item(Random(5), "main")
    assert overlap([*items, stolen], 50, seed=5) >= 1


def test_raw_replies_are_split_into_channels():
    tokenizer = tok.load(NANO)

    def decode(ids):
        return tokenizer.decode(ids, skip_special_tokens=True)

    def ids(*parts):
        return [i for p in parts for i in ([p] if isinstance(p, int) else tokenizer.encode(p).ids)]

    thought = ids(" to=self", tok.MESSAGE, "3+5=8. So 8.", tok.EOM, tok.START, "assistant")
    reply = parse_reply([*thought, *ids(" to=user", tok.MESSAGE, "8", tok.EOT), tok.PAD], decode)
    assert (reply.thought, reply.answer, reply.finished) == ("3+5=8. So 8.", "8", True)
    assert reply.thinking_tokens == len(tokenizer.encode("3+5=8. So 8.").ids)
    call = {"name": "set_timer", "arguments": {"minutes": 5, "text": "a <b> c"}}
    body = protocol.call_text(call)
    reply = parse_reply([*thought, *ids(" to=set_timer", tok.MESSAGE, body, tok.EOT)], decode)
    assert reply.calls == [{"name": "set_timer", "arguments": {"minutes": "5", "text": "a <b> c"}}]
    cut = parse_reply(ids(" to=self", tok.MESSAGE, "3+5"), decode)
    assert (cut.finished, cut.thought, cut.answer) == (False, "3+5", "")
    assert parse_reply([], decode).finished is False


def test_table_and_dump(tmp_path):
    items = items_for(["addition"], ["easy"], ["low", "high"], 3, seed=1)
    rows = evaluate(Oracle(), items, dump=tmp_path / "dump.jsonl")
    text = table(rows)
    assert "| addition | easy | 3 | 100.0%" in text
    lines = [json.loads(line) for line in (tmp_path / "dump.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert all(line["correct"] for line in lines)


def test_the_card_is_filled_between_its_marks(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("a\n<!-- accuracy -->\nold\n<!-- /accuracy -->\nb\n")
    fill_card(card, "new")
    fill_card(card, "newer")
    assert card.read_text() == "a\n<!-- accuracy -->\n\nnewer\n\n<!-- /accuracy -->\nb\n"
    card.write_text("a\n<!-- accuracy -->\n")
    with pytest.raises(ValueError, match="no line"):
        fill_card(card, "new")


def test_counts_per_task_and_level():
    items = items_for(["addition"], ["easy", "hard"], ["low"], 3, seed=1, more={"addition/easy": 9})
    assert [sum(i.level == level for i in items) for level in ("easy", "hard")] == [9, 3]
