"""Generators, the split and the grader: what they claim about themselves, checked from outside."""

from __future__ import annotations

import re
import time
from fractions import Fraction
from random import Random

import jsonschema
import pytest

from musespark.lab import mix
from musespark.lab.evaluate import items_for
from musespark.lab.formats import CLOSING, after, beside, cut, direct, drafts
from musespark.lab.grading import grade, normalize
from musespark.lab.item import (
    AGAIN,
    THIRD,
    WRONG_CLOSE,
    WRONG_OPEN,
    Evaluation,
    HeldOutWording,
    Item,
    compose,
    is_evaluation,
    settled,
    side_by_side,
)
from musespark.lab.tasks import (
    EFFORTS,
    EVALUATED,
    GATED,
    LEVELS,
    TASKS,
    TRAINED_WHOLE,
    draw,
    draw_item,
    pictures,
    split_of,
)
from musespark.lab.tasks.scenes import CANNOT_TELL

CASES = [(task, level) for task in EVALUATED for level in LEVELS]


@pytest.mark.parametrize(("task", "level"), CASES)
def test_every_item_grades_its_own_answer_and_rejects_another(task, level):
    rng = Random(7)
    for effort in EFFORTS:
        for _ in range(12):
            item = draw_item(rng, task, level, effort, evaluation=False, error_rate=0.5)
            assert grade(item, item.answer, item.calls)
            assert not grade(item, item.answer + "7", [{"name": "nothing", "arguments": {}}])
            if item.checker == "call":
                assert not grade(item, "", [])


@pytest.mark.parametrize(("task", "level"), CASES)
def test_split_sides_never_meet(task, level):
    rng = Random(11)
    train = {draw(rng, task, level, evaluation=False).key for _ in range(100)}
    held = {draw(rng, task, level, evaluation=True).key for _ in range(15)}
    assert not train & held
    assert all(is_evaluation(split_of(task), k) for k in held)
    assert not any(is_evaluation(split_of(task), k) for k in train)


def test_split_is_one_in_sixteen_and_fixed():
    share = (
        sum(is_evaluation("addition", f"{a}+{b}") for a in range(100) for b in range(a, 100)) / 5050
    )
    assert 0.05 < share < 0.075
    # A change of the hash would move evaluation instances into training; these are pinned.
    assert [a for a in range(100) if is_evaluation("addition", f"{a}+99")] == [
        17,
        20,
        30,
        44,
        54,
        71,
        93,
    ]


@pytest.mark.parametrize(
    "task", ["addition", "subtraction", "multiplication", "word_problem", "units", "dates", "table"]
)
def test_every_equation_that_is_trained_holds(task):
    """Of thoughts with mistakes too: those are no loss."""
    rng = Random(9)
    seen = 0
    for level in LEVELS:
        for effort in EFFORTS:
            for _ in range(60):
                item = draw_item(rng, task, level, effort, evaluation=False, error_rate=0.5)
                told = re.sub("\x01[^\x02]*\x02", "\n", item.thought)
                for left, right in re.findall(r"(?<![\d.])((?:\d+[+\-*/])+\d+)=(\d+)(?!\d)", told):
                    assert eval(left) == int(right), item.thought
                    seen += 1
                for a, b, total in re.findall(r"(\d+)\+(\d+): \d[^;:]*So (\d+)", told):
                    assert int(a) + int(b) == int(total), item.thought
    assert seen > 200


@pytest.mark.parametrize(
    "task",
    [
        "addition",
        "subtraction",
        "multiplication",
        "sorting",
        "letters",
        "extreme",
        "comparison",
        "tool_call",
    ],
)
def test_injected_errors_are_marked_and_repaired(task):
    rng = Random(1)
    marked = 0
    for _ in range(240):
        item = draw_item(rng, task, "middle", "high", evaluation=False, error_rate=1.0)
        if WRONG_OPEN in item.thought:
            marked += 1
            assert "Wrong. Again: " in item.thought
            again = item.thought.split("Wrong. Again: ")[1]
            assert WRONG_OPEN not in again
        else:
            assert "Check: " in item.thought
    assert marked > 100


def test_efforts_are_dialects_of_one_problem():
    rng = Random(4)
    lengths = dict.fromkeys(EFFORTS, 0)
    for _ in range(200):
        problem = draw(rng, "multiplication", "middle", evaluation=False)
        for effort in EFFORTS:
            item = compose(problem, effort, Random(0))
            lengths[effort] += len(item.thought)
            assert item.answer == problem.answer
    assert lengths["low"] < lengths["medium"] < lengths["high"] < lengths["xhigh"]


#: Pictures with nothing to read have nothing to check.
@pytest.mark.parametrize("task", [t for t in GATED if t != "blank"])
def test_effort_costs_thoughts_and_an_early_end_saves_them(task):
    """Each gated task has a check and another way; the first answer stands in the first of them."""
    lengths, apart = dict.fromkeys(EFFORTS, 0), []
    for i in range(90):
        problem = draw(Evaluation(i), task, LEVELS[i % 3], evaluation=False)
        if problem.answer in (CANNOT_TELL, "I have no tool for that.") or problem.messages:
            continue
        check, agrees = problem.check(problem.result)
        assert agrees
        assert problem.second
        apart.append(check != problem.second)
        for effort in EFFORTS:
            lengths[effort] += len(compose(problem, effort, Random(0)).thought)
    assert sum(apart) > 0.8 * len(apart)  # equal numbers, or round ones, have one route
    assert lengths["high"] > 1.5 * lengths["medium"]
    assert lengths["xhigh"] > 1.2 * lengths["high"]


@pytest.mark.parametrize("task", ["word_problem", "letters", "addition", "extreme"])
def test_two_routes_that_differ_are_settled_by_the_steps_told_again(task):
    rng, found = Random(3), 0
    for i in range(60):
        problem = draw(rng, task, "middle", evaluation=False)
        item = compose(problem, "xhigh", Random(i), error_rate=1.0)
        if item.thought.startswith(WRONG_OPEN):
            found += 1
            after_first = item.thought.split(WRONG_CLOSE)[1]
            assert after_first.startswith("\nAnother way: ")
            assert re.search(r"/\S+\. They differ\.\nThird: ", after_first)
            assert after_first.endswith(f"{THIRD} {settled(problem)}")
        elif WRONG_OPEN not in item.thought:
            assert "\nCheck: " in item.thought.split("\nAnother way: ")[1]
    assert found > 20


@pytest.mark.parametrize("task", ["addition", "subtraction", "multiplication", "letters"])
@pytest.mark.parametrize(("effort", "sign"), [("high", AGAIN), ("xhigh", THIRD)])
def test_a_check_may_be_wrong_where_the_first_try_was_right(task, effort, sign):
    """The mistaken check is no loss, and what follows comes to the first result again."""
    for i in range(40):
        problem = draw(Random(i), task, "middle", evaluation=False)
        first = problem.steps(None)
        item = compose(problem, effort, Random(i), error_rate=1.0, first=first)
        said, mistaken, rest = re.split("[\x01\x02]", item.thought)
        assert said == first[0]
        assert re.search(rf"(\d)/(?!\1)\d\.{re.escape(sign)}$", mistaken)
        assert rest == f" {settled(problem)}"
        assert problem.answer in rest


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        ("1742", "1342", "1=1 7/3"),
        ("47", "47", "4=4 7=7"),
        ("12", "123", "1=1 2=2 nothing/3"),
        ("A7-K", "A7-B", "A=A 7=7 -=- K/B"),
        ("9, 26, 25", "9, 25, 26", "9=9 26/25"),
        ("May 5", "May 6", "May=May 5/6"),
    ],
)
def test_two_results_side_by_side_up_to_where_they_differ(one, other, told):
    assert side_by_side(one, other) == told


@pytest.mark.parametrize("task", GATED)
def test_a_planted_mistake_is_never_told_as_right(task):
    """A mistake that comes to nothing would be trained as a right step."""
    for i in range(90):
        problem = draw(Random(i), task, LEVELS[i % 3], evaluation=False)
        if problem.steps is None:
            continue
        told, result = problem.steps(Random(i))
        assert result != problem.answer or told == problem.steps(None)[0]


SIGNED = ("sorting", "extreme")  # their checks end where a sign says what is wrong


@pytest.mark.parametrize("task", [t for t in GATED if t not in ("blank", "tool_call", *SIGNED)])
def test_a_check_of_a_wrong_result_shows_where_it_is_wrong(task):
    """The verdict is the last of many small steps, not one over all that stands before."""
    for i in range(60):
        problem = draw(Random(i), task, LEVELS[i % 3], evaluation=False)
        if problem.check is None:
            continue
        number = problem.answer.isdigit()
        told, agrees = problem.check(str(int(problem.answer) + 1) if number else "Nobody")
        assert not agrees
        assert re.search(r"\S/\S+\.$", told), told


@pytest.mark.parametrize(
    ("checker", "want", "got", "right"),
    [
        ("number", "1200", "1,200", True),
        ("number", "1200", "1200.", True),
        ("number", "1200", "120", False),
        ("number", "1200", "about 1200", False),
        ("string", "a b", "a  b", True),
        ("string", "a b", "a b.", True),
        ("string", "a b", "ab", False),
        ("set", "a, b", "b, a", True),
        ("set", "a, b", "a", False),
        ("json", '{"a": 1}', '{ "a":1 }', True),
        ("json", '{"a": 1}', "{", False),
        ("json", '{"a": 1, "b": true}', '{"b": true, "a": 1.0}', True),
        ("json", '{"a": 1, "b": true}', '{"a": true, "b": 1}', False),
        ("json", '{"a": 1}', '{"a": 2, "a": 1}', False),
        ("json", '["x  y."]', '["x y."]', False),
        ("json", "[1e400]", "[1e999]", False),
        ("json", "[1]", "[" * 100_000, False),
        ("number", "12", "1,2", False),
        ("number", "85", "8,5", False),
        ("number", "10", "1_0", False),
        ("number", "85", "8.5e1", False),
        ("number", "0.5", ".5", True),
        ("number", "1234567", "1,234,567", True),
        ("number", "9007199254740993", "9007199254740992", False),
        ("number", "1", "", False),
        ("number", "1", "-", False),
        ("string", "#.#/##.", "#.#/##", False),
        ("string", "#.#/##.", "#.#/##.", True),
        ("string", "Rome [3]", "Rome [3].", True),
        ("box", "[0,0,10,10]", f"[0,0,10,{'9' * 5001}]", False),
    ],
)
def test_grader(checker, want, got, right):
    item = Item("t", "easy", "low", "k", [], "", want, checker)
    assert grade(item, got) is right


def test_grader_compares_call_arguments_as_text():
    item = Item(
        "t",
        "easy",
        "low",
        "k",
        [],
        "",
        "",
        "call",
        calls=[{"name": "timer", "arguments": {"minutes": 5}}],
    )
    assert grade(item, "", [{"name": "timer", "arguments": {"minutes": "5"}}])
    assert not grade(item, "", [{"name": "timer", "arguments": {"minutes": "6"}}])
    assert not grade(item, "", [{"name": "clock", "arguments": {"minutes": "5"}}])


def test_grader_compares_nested_arguments_in_any_order_of_names():
    want = [{"name": "f", "arguments": {"at": {"x": 1, "y": [True]}, "text": "[1]"}}]
    item = Item("t", "easy", "low", "k", [], "", "", "call", calls=want)

    def given(at, text="[1]"):
        return grade(item, "", [{"name": "f", "arguments": {"at": at, "text": text}}])

    assert given({"y": [True], "x": 1}) and given('{"y":[true],"x":1}')
    assert not given({"y": [1], "x": 1})
    assert not given('{"y":[true],"x":1}', "[ 1]")
    assert not given("[" * 100_000)


def test_normalize_keeps_a_lone_full_stop():
    assert normalize(".") == "."


def test_talk_is_trained_whole():
    assert set(TASKS) - set(EVALUATED) == TRAINED_WHOLE
    for task in TRAINED_WHOLE:
        assert draw(Random(1), task, "easy", evaluation=False).answer


def test_a_doubted_product_is_told_again_in_columns():
    in_one_step, multiplied = re.compile(r"\d\d+\+\d+="), 0
    for i in range(30):
        problem = draw(Random(i), "multiplication", "hard", evaluation=False)
        first, again = problem.steps(None)[0], settled(problem)
        if problem.key.count("0"):
            continue
        multiplied += 1
        assert in_one_step.search(first) and not in_one_step.search(again)
        assert again.endswith(f"So {problem.answer}.")
        for a, b, total in re.findall(r"(\d+)\+(\d+): [^;]*So (\d+)", again):
            assert int(a) + int(b) == int(total)
    assert multiplied > 15


def test_a_cut_thought_ends_with_the_closing_message_that_is_not_trained():
    rng, told, bare, at_once = Random(3), 0, 0, 0
    for _ in range(100):
        item = draw_item(rng, "addition", "middle", "medium", evaluation=False)
        short = cut(item, rng)
        assert short.answer == item.answer
        kept, _, rest = short.thought.partition(WRONG_OPEN)
        assert item.thought.startswith(kept)
        assert len(kept) < len(item.thought)
        assert short.forced == (not rest)
        assert rest in ("", CLOSING + WRONG_CLOSE)
        told, bare, at_once = told + bool(kept and rest), bare + short.forced, at_once + (not kept)
    assert told > 40
    assert bare > 10
    assert at_once > 4
    empty = draw_item(rng, "addition", "easy", "low", evaluation=False)
    assert cut(empty, rng) is empty


def test_what_is_answered_without_a_thought_has_no_call():
    rng = Random(5)
    item = draw_item(rng, "addition", "middle", "high", evaluation=False)
    short = direct(item)
    assert (short.thought, short.forced, short.answer) == (None, True, item.answer)
    call = draw_item(rng, "tool_call", "easy", "high", evaluation=False)
    assert direct(call) is call


def test_tools_that_nobody_needs_stand_beside_items_that_have_none():
    rng, offered = Random(6), 0
    for _ in range(200):
        item = draw_item(rng, "word_problem", "easy", "high", evaluation=False)
        there = mix.offered(item, rng)
        assert (there.thought, there.answer, there.calls) == (item.thought, item.answer, None)
        if there.tools:
            offered += 1
            assert 1 <= len(there.tools) <= 4
            names = [t["function"]["name"] for t in there.tools]
            assert not {"calculate", "calculator", "evaluate"} & set(names)
            for tool in there.tools:
                jsonschema.Draft202012Validator.check_schema(tool["function"]["parameters"])
    assert 0.5 < offered / (200 * mix.BESIDE) < 1.6
    call = draw_item(rng, "tool_call", "easy", "high", evaluation=False)
    assert beside(call, []) is call


def test_questions_about_one_picture_have_the_same_tools_or_none():
    rng, offered = Random(7), 0
    for _ in range(120):
        items = mix.draw_picture_items(rng)
        if items[0].task in ("zooming", "nlvr"):
            continue
        assert all(i.tools == items[0].tools for i in items)
        offered += items[0].tools is not None
    assert 3 < offered < 40


def test_drafts_are_refined_and_a_majority_may_be_wrong():
    rng, wrong, all_right = Random(5), 0, 0
    for _ in range(150):
        problem = draw(rng, "addition", "middle", evaluation=False)
        item = drafts(problem, "high", rng, 3)
        told = re.findall(r"Draft \d: .*So (\d+)\.", item.messages[-1]["content"])
        assert len(told) == 3
        right = told.count(problem.answer)
        wrong += right <= 1
        all_right += right == 3
        assert item.answer == problem.answer
        assert f"So {problem.answer}." in item.thought
        assert item.thought.startswith("Drafts say ")
    assert wrong > 20
    assert all_right > 20


def test_an_item_after_other_turns_keeps_its_own_question_last():
    rng = Random(5)
    item, one, two = (
        draw_item(rng, "comparison", "easy", "high", evaluation=False) for _ in range(3)
    )
    long = after(item, [one, two])
    assert [m["role"] for m in long.messages] == ["user", "assistant"] * 2 + ["user"]
    assert long.messages[-1] == item.messages[-1]
    assert long.messages[1]["content"] == one.answer
    tool = draw_item(rng, "tool_call", "easy", "high", evaluation=False)
    assert after(tool, [one]) is tool


@pytest.mark.parametrize("task", EVALUATED)
def test_held_out_wordings_are_held_out(task):
    """What is asked in held-out words, with names and numbers taken out, training never asks."""
    rng, held = Random(3), HeldOutWording(3)
    seen, unseen = set(), set()
    for level in LEVELS:
        for _ in range(60):
            seen.add(skeleton(draw(rng, task, level, evaluation=False)))
        for _ in range(6):
            unseen.add(skeleton(draw(held, task, level, evaluation=True)))
    assert not seen & unseen, seen & unseen


def test_no_picture_is_asked_in_words_that_are_held_out_for_another():
    """A question about a picture does not say which task it is of."""
    seen, unseen = set(), set()
    for task in pictures.TASKS:
        rng, held = Random(3), HeldOutWording(3)
        for level in LEVELS:
            asker, other = (pictures.SCENES[task](r, level) for r in (rng, held))
            seen |= {skeleton(p) for _ in range(60) if (p := asker(rng))}
            unseen |= {skeleton(p) for _ in range(6) if (p := other(held))}
    assert not seen & unseen, seen & unseen


def test_keys_say_what_is_asked_and_not_how():
    """Nor where it stands, in which color, between which signs, or in which order of terms."""
    for i in range(60):
        assert "?" not in draw(Random(i), "notes", "easy", evaluation=False).key
        for level in ("middle", "hard"):
            a, op, b = draw(Random(i), "fractions", level, evaluation=False).key.split()
            assert op in "-:" or Fraction(a) <= Fraction(b)
    areas = [draw(Random(i), "areas", "easy", evaluation=False) for i in range(200)]
    assert len({p.key for p in areas}) < 65 < len({p.pictures[0].pixels.tobytes() for p in areas})
    tables = [draw(Random(i), "table", "easy", evaluation=False) for i in range(60)]
    assert any(" | " in p.question for p in tables) and not any(" | " in p.key for p in tables)


def skeleton(problem):
    """A question without what is particular to the instance: short words in small letters stay."""
    messages = problem.messages or [{"content": problem.question}]
    last = [m["content"] for m in messages if m.get("role", "user") == "user"][-1]
    text = last if isinstance(last, str) else "".join(p.get("text", "") for p in last)
    if problem.task in ("table", "lookup", "story_facts", "json_answers"):
        text = max(text.split("\n"), key=lambda line: ("?" in line or "JSON" in line, len(line)))
    text = re.sub(r"^\[.*", "", text, flags=re.M)  # notes
    return re.sub(r"[A-Z0-9#][\w#|.,:+*×-]*|\W", " ", text).split().__str__()


def test_levels_have_enough_instances_to_hold_out():
    for task, level, least in (
        ("dates", "easy", 300),
        ("dates", "middle", 300),
        ("units", "easy", 200),
    ):
        items = items_for([task], [level], ["low"], 500, seed=1)
        assert len(items) >= least, (task, level, len(items))


# ---- what the answers say, computed again ------------------------------------------------------


def test_every_generator_is_cheap():
    """A step of 5,120 tokens takes above a second of two cores and needs some 40 items; one item in
    100 may take longer. Loose, so that a busy machine passes: it is there for a loop gone wild."""
    rng = Random(4)
    begin = time.process_time()
    for _ in range(400):
        mix.draw_training_item(rng, "main")
    assert (time.process_time() - begin) / 400 < 0.002
    begin = time.process_time()
    for _ in range(60):
        mix.draw_picture_items(rng)
    assert (time.process_time() - begin) / 60 < 0.03
