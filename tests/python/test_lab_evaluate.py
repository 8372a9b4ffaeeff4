"""Evaluation on a mock backend: intervals, grouping, parsing of raw replies, no overlap."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest

from musespark.cli import main as cli
from musespark.errors import InvalidRequest
from musespark.lab import command, mix, protocol
from musespark.lab import evaluate as evaluation
from musespark.lab import tokenizer as tok
from musespark.lab.backends import EMPTY, FREE, Reply, parse_reply
from musespark.lab.card import _minutes, attempts_table, baselines_by_task, gates, table
from musespark.lab.evaluate import (
    baselines,
    blinded,
    clustered,
    evaluate,
    fewer,
    items_for,
    overlap,
    score,
    tells_pictures_apart,
    wilson,
    with_majority,
)
from musespark.lab.grading import grade
from musespark.lab.item import Evaluation, is_evaluation
from musespark.lab.items_file import read_items
from musespark.lab.progress import Bar, Status
from musespark.lab.steps import STEPS
from musespark.lab.tasks import EFFORTS, draw
from musespark.vision.render.png import encode
from support.blind import blind_nano

NANO = Path(protocol.__file__).parent.parent / "nano"


class Oracle:
    """Knows every answer; ``miss`` counts the answers it spoils."""

    name = "oracle"

    def __init__(self, miss: int = 0):
        self.miss, self.asked = miss, []

    def reply(self, items, max_new_tokens, *, thinking=FREE, oracle=False, progress=None):
        self.asked.append((len(items), thinking))
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
        def reply(self, items, max_new_tokens, **more):
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
    assert overlap(items, 3000, seed=5) == {"instances": 0, "prompts": 0, "calls": 0}
    # A training instance smuggled into the evaluation set must be found.
    stolen = mix.draw_training_item(Random(5), "main")
    found = overlap([*items, stolen], 50, seed=5)
    assert found["instances"] >= 1 and found["prompts"] >= 1
    # Neither does another key hide it.
    assert overlap([replace(stolen, key="new")], 50, seed=5)["prompts"] >= 1


def test_overlap_counts_equal_calls(monkeypatch):
    (item,) = items_for(["tool_call"], ["easy"], ["medium"], 1, seed=3)
    asked = replace(item, key="new", messages=[{"role": "user", "content": "In other words."}])
    monkeypatch.setattr(mix, "draw_training_item", lambda rng, phase: asked)
    monkeypatch.setattr(mix, "draw_picture_items", lambda rng: [])
    assert overlap([item], 3, seed=5) == {"instances": 0, "prompts": 0, "calls": 3}


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
    one = lines[0]
    assert one["prompt"]["messages"] == items[0].messages
    assert one["gold"] == {"kind": "number", "answer": items[0].answer}
    assert (one["raw"], one["finished"]) == ("", True)


def test_counts_per_task_and_level():
    items = items_for(["addition"], ["easy", "hard"], ["low"], 3, seed=1, more={"addition/easy": 9})
    assert [sum(i.level == level for i in items) for level in ("easy", "hard")] == [9, 3]


def test_a_cell_with_fewer_instances_than_wanted_is_named():
    more = {"sorting/easy": 3}
    asked = (["multiplication", "sorting"], ["easy"])
    items = items_for(*asked, ["low", "high"], 60, seed=1, more=more)
    (cell,) = fewer(items, *asked, 60, more)
    assert cell == {"task": "multiplication", "level": "easy", "n": cell["n"], "wanted": 60}
    assert cell["n"] == len({i.key for i in items if i.task == "multiplication"}) < 60
    assert fewer(items, *asked, cell["n"], more) == []


def test_rows_of_questions_without_their_pictures_are_of_vision(tmp_path):
    items = items_for(["counting", "addition"], ["easy"], ["low"], 2, seed=1)
    rows = evaluate(Oracle(), items, dump=tmp_path / "dump.jsonl", pictures="none")
    assert [r["modality"] for r in rows] == ["vision", "text"]
    told = [json.loads(line) for line in (tmp_path / "dump.jsonl").read_text().splitlines()]
    assert [t["modality"] for t in told] == ["vision"] * 2 + ["text"] * 2
    assert not any(t["prompt"]["pictures"] for t in told)
    assert all(isinstance(t["prompt"]["messages"][0]["content"], str) for t in told)


def test_rows_have_the_means_and_their_part_of_the_time():
    items = items_for(["addition"], ["easy"], ["low", "high"], 2, seed=1)
    replies = [
        Reply(i.answer, thinking_tokens=t, stable=s, computed=c)
        for i, t, s, c in zip(items, (1, 2, 10, 20), (1, 2, 4, 5), (10, 10, 30, 50), strict=True)
    ]
    low, high = score(items, replies, seconds=10.0)
    assert (low["thinking_tokens"], low["stable_oracle_tokens"], low["seconds"]) == (1.5, 1.5, 2.0)
    assert (high["thinking_tokens"], high["stable_oracle_tokens"]) == (15.0, 4.5)
    assert high["seconds"] == 8.0
    replies[3].stable = None
    assert score(items, replies)[1]["stable_oracle_tokens"] is None


def test_first_attempts_are_held_against_the_end():
    items = items_for(["addition"], ["easy"], ["high"], 6, seed=1)
    ends = [(True, True), (True, False), (False, True), (False, True), (False, False), (None, True)]
    replies = [
        Reply(i.answer if good else "x", first=first)
        for i, (first, good) in zip(items, ends, strict=True)
    ]
    rows = score(items, replies)
    names = ("checked", "first_wrong", "repaired", "spoiled")
    assert [rows[0][name] for name in names] == [5, 3, 2, 1]
    told = attempts_table(rows)
    assert "| text | high | 5 | 60.0% (3/5) | 66.7% (2/3) | 50.0% (1/2) |" in told
    assert attempts_table(score(items, [Reply("x")] * 6)) == ""


def test_intervals_of_clusters_are_wider():
    alone = {str(k): [k % 2 == 0] for k in range(40)}
    assert clustered(alone) == wilson(20, 40)
    together = {str(k): [k % 2 == 0] * 4 for k in range(10)}
    low, high = clustered(together)
    # Ten clusters that are right or wrong as a whole: as ten observations, not forty.
    assert 0.5 - low == pytest.approx(1.96 * math.sqrt(0.25 / 9), abs=0.01)
    assert high - 0.5 == pytest.approx(0.5 - low)
    item = items_for(["addition"], ["easy"], ["low"], 1, seed=1)[0]
    (row,) = score([item] * 4, [Reply(item.answer)] * 4)
    assert row["interval"] == [round(v, 4) for v in wilson(4, 4)]


def test_held_wordings_are_rows_of_their_own():
    items = [
        *items_for(["codes"], ["easy"], ["low"], 3, seed=1),
        *items_for(["codes"], ["easy"], ["low"], 2, seed=1, held_wording=True),
    ]
    rows = evaluate(Oracle(), items)
    assert [(r["wording"], r["n"]) for r in rows] == [("seen", 3), ("held", 2)]
    assert "| codes, held-out wordings | easy | 2 |" in table(rows)


def test_baselines_ask_the_same_items_and_count_what_they_should():
    items = items_for(["addition", "counting", "zooming"], ["easy"], ["medium"], 4, seed=1)
    oracle = Oracle()
    rows = baselines(oracle, items, 9, lambda done, total: None)
    named = {}
    for row in rows:
        named.setdefault(row["baseline"], []).append(row)
    looking = sum(bool(i.tools) for i in items)
    assert oracle.asked == [
        (12, FREE), (12, EMPTY), (8, FREE), (4 + looking, FREE), (looking, FREE)
    ]  # fmt: skip
    assert 0 < looking < 5
    assert {r["modality"] for r in named["no image"] + named["no zoom"]} == {"vision"}
    assert sum(r["n"] for r in named["zoom"]) == sum(r["n"] for r in named["no zoom"]) == looking
    assert all(r["correct"] == r["n"] for r in named["asked"])
    assert sum(r["correct"] for r in named["majority"]) < 12
    by_task = baselines_by_task(rows)
    assert "| counting | easy | 4 | 100% |" in by_task
    assert f"| zooming | easy | 4 | 100% | {named['majority'][2]['accuracy']:.0%} |" in by_task


def test_nothing_to_see_is_swapped_with_something():
    """Its answer is always the same: only a picture that shows something can change it."""
    items = items_for(["counting", "blank", "zooming"], ["easy"], ["medium"], 5, seed=1)
    shown = {id(i.pictures): i for i in items}
    for before, after in zip(items, blinded(items, "swapped"), strict=True):
        donor = shown[id(after.pictures)]
        if before.task != "zooming":
            assert donor.task == "counting" and donor.answer != before.answer
    assert [tells_pictures_apart(i) for i in items] == [
        i.task != "zooming" or bool(i.tools) for i in items
    ]


def test_majority_has_the_sizes_of_the_evaluation(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        evaluation, "draw", lambda rng, *a, **k: drawn.append(rng) or draw(rng, *a, **k)
    )
    with_majority(items_for(["bars"], ["easy"], ["low"], 1, seed=1))
    assert all(isinstance(r, Evaluation) for r in drawn)


def test_majority_is_an_answer_of_the_training_side():
    items = items_for(["relations", "tool_call"], ["easy"], ["low"], 12, seed=1)
    replies = with_majority(items)
    assert {r.answer for r in replies[:12]} <= {"true", "false"}
    assert len({json.dumps([r.answer, r.calls]) for r in replies}) == 2
    assert replies[12].calls


def test_without_its_picture_a_question_is_text():
    items = items_for(["counting"], ["easy"], ["low"], 2, seed=1)
    bare = blinded(items, "none")
    assert [i.pictures for i in bare] == [None, None]
    assert bare[0].messages[0]["content"] == items[0].messages[0]["content"][1]["text"]
    assert items[0].pictures


def test_swapped_pictures_are_those_of_another_answer():
    items = items_for(["counting"], ["easy"], ["low"], 12, seed=1)
    gold = {id(i.pictures[0]): i.answer for i in items}
    swapped = blinded(items, "swapped")
    assert all(gold[id(i.pictures[0])] != i.answer for i in swapped)


# ---- anyone's items ----------------------------------------------------------------------------


def written(tmp_path, *lines):
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_question_alone_in_its_group_does_not_keep_its_own_pictures():
    alone = items_for(["counting"], ["easy", "hard"], ["high"], 1, seed=5)
    one, other = blinded(alone, "swapped")
    assert one.pictures is alone[1].pictures and other.pictures is alone[0].pictures
    # The same question at two efforts has one picture: there is no other.
    twice = items_for(["counting"], ["easy"], ["low", "high"], 1, seed=5)
    for some in (alone[:1], twice):
        assert all(np.ptp(i.pictures[0].pixels) == 0 for i in blinded(some, "swapped"))


def test_items_of_a_file_are_graded_by_their_kind(tmp_path):
    pixels = np.zeros((20, 30, 3), np.uint8)
    (tmp_path / "a.png").write_bytes(encode(pixels))
    call = [{"name": "timer", "arguments": {"minutes": 5}}]
    path = written(
        tmp_path,
        {"messages": "6*7?", "answer": 42, "kind": "number", "task": "sums", "level": "easy"},
        {"messages": "Colors?", "answer": ["red", "blue"], "kind": "set", "effort": "high"},
        {"messages": "JSON?", "answer": {"a": 1}, "kind": "json"},
        {"messages": "Set it.", "answer": call, "kind": "call", "tools": []},
        {"messages": "Where?", "answer": [0, 0, 10, 20], "kind": "box", "images": ["a.png"]},
        {"messages": "1/100000?", "answer": 1e-05, "kind": "number"},
    )
    items = read_items(path, ["low", "medium"])
    assert [i.effort for i in items] == [
        "low", "medium", "high", *("low", "medium") * 4
    ]  # fmt: skip
    sums, colors, values, timer, where = items[0], items[2], items[3], items[5], items[7]
    assert grade(items[9], "0.00001") and not grade(items[9], "0.0001")
    assert grade(sums, "42.0") and not grade(sums, "43")
    assert grade(colors, "blue, red") and not grade(colors, "blue")
    assert grade(values, '{"a":1}') and not grade(values, '{"a": 2}')
    assert grade(timer, "", call) and not grade(timer, "", [])
    assert grade(where, "[0,0,10,18]") and not grade(where, "[0,0,10,8]")
    assert where.modality == "vision"
    assert where.pictures[0].original.shape == (20, 30, 3)
    assert [p["type"] for p in where.messages[0]["content"]] == ["image", "text"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"messages": "a", "answer": "b"}, ":1: kind: None"),
        ({"messages": "a", "answer": "b", "kind": "essay"}, "kind: 'essay'"),
        ({"messages": "a", "answer": "b", "kind": "string", "gold": 1}, "no field 'gold'"),
        ({"messages": 5, "answer": "b", "kind": "string"}, "messages"),
        ({"messages": "a", "answer": ["x"], "kind": "string"}, "is no string"),
        ({"messages": "a", "answer": "b", "kind": "box"}, "a box is"),
        ({"messages": "a", "answer": "b", "kind": "call"}, "answer: a list"),
        ({"messages": "a", "answer": "b", "kind": "string", "images": [5]}, "images: 5"),
        (
            {"messages": "a", "answer": "b", "kind": "string", "images": "a.png"},
            "images: 'a.png', allowed is a list",
        ),
        (
            {"messages": "a", "answer": "b", "kind": "string", "tools": [{"name": "f"}]},
            ":1: tools[0].function is missing",
        ),
        ({"messages": [{"role": "user"}], "answer": "4", "kind": "number"}, "messages: the user's"),
        ({"messages": [], "answer": "4", "kind": "number"}, "messages: the user's text"),
        ({"messages": "a", "answer": "four", "kind": "number"}, "answer: 'four' is no number"),
        ({"messages": "a", "answer": "4", "kind": "number", "effort": "max"}, "effort: 'max'"),
        ({"messages": "a", "answer": "4", "kind": "number", "task": 5}, "task: 5, allowed is a"),
        ({"messages": "a", "answer": "b", "kind": "string", "images": ["no.png"]}, ":1: images"),
        ({"messages": "a", "answer": "no box", "kind": "boxes"}, "a box is"),
        ({"messages": "a", "answer": "3+5", "kind": "expression"}, "key: "),
        (
            {"messages": "a", "answer": "3+5", "kind": "expression", "key": "3 5 = 9"},
            "answer: '3+5' is no expression",
        ),
        ({"messages": "a", "answer": "4", "kind": "number", "key": 4}, "key: 4, allowed is a text"),
        ([1], "list, an item is an object"),
    ],
)
def test_odd_items_are_refused_naming_the_field(tmp_path, line, said):
    with pytest.raises(InvalidRequest, match=re.escape(said)):
        read_items(written(tmp_path, line), ["low"])


def test_efforts_that_no_item_takes_are_refused(tmp_path):
    own = {"messages": "a", "answer": "4", "kind": "number", "effort": "low"}
    assert [i.effort for i in read_items(written(tmp_path, own))] == ["low"]
    with pytest.raises(InvalidRequest, match="--efforts: got high, every item has its own"):
        read_items(written(tmp_path, own), ["high"])


def test_slots_and_images_are_as_many(tmp_path):
    parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "?"}]
    line = {"messages": [{"role": "user", "content": parts}], "answer": "1", "kind": "string"}
    with pytest.raises(InvalidRequest, match="images: got 0, the messages have 2"):
        read_items(written(tmp_path, line), ["low"])


# ---- the command -------------------------------------------------------------------------------


def test_the_command_writes_rows_a_dump_and_a_card(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MUSESPARK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(command, "FORMATS", (("none", "f32"), ("auto", "kv4")))
    monkeypatch.setattr(command, "OVERLAP_DRAWS", 400)
    out = {name: tmp_path / name for name in ("json", "dump", "card")}
    argv = ["eval", "--tasks", "addition,tool_call,multiplication", "--levels", "easy"]
    argv += ["--efforts", "medium"]
    argv += ["--n", "2", "--more", "addition/easy=5", "--more", "multiplication/easy=50"]
    argv += ["--threads", "1", "--max-new-tokens", "60"]
    argv += [f"--{name}={path}" for name, path in out.items()]
    log = tmp_path / "log.jsonl"
    log.write_text('{"minutes": 30}\n{"minutes": 60.0}\n{"minutes": 30.0}\n')
    assert cli(["lab", *argv, "--baselines", "1", "--formats", "1", "--log", str(log)]) == 0
    printed, said = capsys.readouterr()
    assert "fewer than wanted: multiplication/easy: " in said
    assert "overlap with 400 training draws: 0 instances, " in printed
    assert "| majority |" in printed and "| auto | kv4 |" in printed
    report = json.loads(out["json"].read_text())
    rows = {(r["task"], r["wording"]): r for r in report["rows"]}
    assert {k: r["n"] for k, r in rows.items()} == {
        ("addition", "seen"): 5, ("tool_call", "seen"): 2,
        ("addition", "held"): 1, ("tool_call", "held"): 1,
        ("multiplication", "seen"): 35, ("multiplication", "held"): 10,
    }  # fmt: skip
    assert rows["addition", "seen"]["correct"] >= 3
    assert all(r["stable_oracle_tokens"] <= r["thinking_tokens"] for r in rows.values())
    assert len(out["dump"].read_text().splitlines()) == 9 + 45
    assert len(report["formats"]) == 4
    assert [(c["n"], c["wanted"], c["wording"]) for c in report["fewer"]] == [(35, 50, "seen")]
    card = out["card"].read_text()
    for said in (
        "| addition | easy | 5 |",
        "| majority |",
        "| auto | kv4 |",
        "cannot do",
        "35 of 50",
    ):
        assert said in card


def test_a_blind_model_is_asked_no_pictures_unless_they_are_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(command, "EVALUATED", ("addition", "counting"))
    monkeypatch.setattr(command, "OVERLAP_DRAWS", 4)
    argv = [str(blind_nano(tmp_path / "m")), "--levels", "easy", "--efforts", "low", "--n", "1"]
    argv += ["--wording", "seen"]
    assert cli(["lab", "eval", *argv]) == 0
    out = capsys.readouterr().out
    assert "tasks with pictures are left out" in out
    assert "| addition |" in out and "| counting |" not in out
    assert cli(["lab", "eval", *argv, "--tasks", "counting"]) == 1
    assert "images: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--tasks", "poetry"], "--tasks: got 'poetry'"),
        (["--tasks", "addition,addition"], "--tasks: 'addition' is given twice"),
        (["--levels", "insane"], "--levels: got 'insane'"),
        (["--efforts", "low,most"], "--efforts: got 'most'"),
        (["--n", "0"], "--n: got 0, allowed is 1 or more"),
        (["--formats", "-1"], "--formats: got -1, allowed is 0 or more"),
        (["--max-new-tokens", "0"], "--max-new-tokens: got 0"),
        (["--more", "addition=4"], "--more: got 'addition=4'"),
        (["--tasks", "dates", "--more", "addition/easy=4"], "--more: addition/easy is not among"),
        (["--more", "dates/easy=4", "--more", "dates/easy=5"], "--more: dates/easy is given twice"),
        (["--json", "/nowhere/x"], "--json: there is no folder /nowhere"),
        (["--card", "/"], "--card: / is a folder"),
        (["--json", "same", "--dump", "./same"], "--dump: same is the file of --json too"),
        (["--log", "log.jsonl"], "--log: has no effect without --card"),
        (["--card", "card.md", "--log", "gone.jsonl"], "--log: there is no file gone.jsonl"),
        (["--items", "nothing.jsonl"], "there is no file nothing.jsonl"),
        *(
            (["--items", "x", option, *value], f"{option}: has no effect with --items")
            for option, *value in (
                ("--tasks", "addition"), ("--levels", "all"), ("--n", "5"), ("--seed", "1"),
                ("--more", "dates/easy=4"), ("--nlvr", "dev.json"), ("--wording", "both"),
                ("--baselines", "5"), ("--formats", "5"), ("--card", "card.md"),
            )
        ),
        *(
            (["--backend", "transformers", option, *value], f"{option}: has no effect with --back")
            for option, *value in (
                ("--quantize", "q4"), ("--kv", "kv8"), ("--threads", "2"), ("--no-oracle",),
                ("--baselines", "5"), ("--formats", "5"),
            )
        ),
        (["--pictures", "grey", "--baselines", "3"], "--pictures: has no effect on --baselines"),
        (["--tasks", "dates", "--pictures", "grey"], "--pictures: got grey, no item has a picture"),
    ],
)  # fmt: skip
def test_odd_arguments_are_refused(argv, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli(["lab", "eval", *argv]) == 1
    assert said in capsys.readouterr().err


def test_items_that_cannot_be_asked_are_told(tmp_path, capsys):
    """One longer than the context counts as wrong, one that the template refuses is named."""
    long = {"messages": "word " * 3000, "answer": "4", "kind": "number"}
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps(long) + "\n")
    argv = ["lab", "eval", "--items", str(path), "--efforts", "low", "--threads", "1"]
    out = tmp_path / "rows.json"
    assert cli([*argv, "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "\ntext: 0/1 = 0.0%\n1 longer than the context, not answered" in printed
    assert json.loads(out.read_text())["rows"][0]["too_long"] == 1
    odd = {"messages": [{"role": "wizard", "content": "2+2?"}], "answer": "4", "kind": "number"}
    path.write_text(json.dumps(long) + "\n" + json.dumps(odd) + "\n")
    assert cli(argv) == 1
    assert f"{path}:2: the chat template refused" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_said_before_anything_is_counted(capsys):
    assert cli(["lab", "eval", "/no/model", "--tasks", "addition", "--n", "1"]) == 1
    printed, said = capsys.readouterr()
    assert "overlap" not in printed and "/no/model" in said


def test_every_step_is_a_command():
    for step in STEPS.keys() - {"eval"}:
        module = importlib.util.find_spec(f"musespark.lab.{step.replace('-', '_')}")
        assert module and "\ndef main(" in Path(module.origin).read_text(), step


def test_training_without_torch_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "musespark.lab.train", raising=False)
    assert cli(["lab", "train", "somewhere"]) == 1
    assert "needs torch: pip install 'musespark[lab]'" in capsys.readouterr().err


def test_a_bar_is_drawn_in_a_terminal_only():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, drawn in ((Terminal(), True), (io.StringIO(), False)):
        bar = Bar("asking", stream)
        bar(1, 2)
        bar(2, 2)
        assert ("2/2" in stream.getvalue()) is drawn


def test_a_status_is_rewritten_in_a_terminal_and_else_a_line_each():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, wanted in (
        (Terminal(), "\rstep 1\x1b[K\rstep 3\x1b[K\rdone\x1b[K\n"),
        (io.StringIO(), "step 3\ndone\n"),
    ):
        status = Status(stream)
        status("step 1")
        status("step 2")
        status("step 3", kept=True)
        status.end("done")
        assert stream.getvalue() == wanted


def test_gated_families_against_their_goals():
    def row(task, level, accuracy, wording="seen", modality="text", effort="medium"):
        told = {"task": task, "level": level, "accuracy": accuracy, "wording": wording}
        return told | {"modality": modality, "effort": effort, "n": 10}

    rows = [
        row("addition", "easy", 0.96),
        row("addition", "easy", 0.72, "held"),
        row("sorting", "easy", 0.90),
        row("sorting", "easy", 0.90, "held"),
        row("sorting", "easy", 0.10, effort="low"),
        row("copying", "easy", 0.10),
        row("codes", "middle", 0.80, modality="vision"),
        row("blank", "middle", 1.00, modality="vision"),
    ]
    text = gates(rows)
    # (72 + 90) of (96 + 90): not the mean of 75% and 100%.
    assert "| text and tools | easy | 93.0% | 95% | sorting 90% | 87% of that (n = 20, " in text
    assert "| vision | middle | 90.0% (80.0% without blank) | 75% | none | not asked |" in text
    assert text.count("\n") == 3
    assert gates([row("copying", "easy", 0.5)]) == ""


def test_the_minutes_of_sessions_add_up(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text("".join(f'{{"minutes": {m}}}\n' for m in (1, 30, 60, 2, 15, 1)))
    assert _minutes(log) == 60 + 15 + 1


@pytest.mark.parametrize("option", ["--json", "--dump", "--card"])
def test_items_are_not_written_over(tmp_path, option):
    """A user's own items were gone."""
    path = tmp_path / "mine.jsonl"
    path.write_text("mine")
    with pytest.raises(InvalidRequest, match=f"{option}: .* is the file of --items too"):
        command.main(["eval", "--items", str(path), option, str(path)])
    assert path.read_text() == "mine"
