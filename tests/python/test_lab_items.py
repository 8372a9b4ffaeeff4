"""Generators, the split and the grader: what they claim about themselves, checked from outside."""

from __future__ import annotations

import re
from random import Random

import pytest

from musespark.lab.item import WRONG_OPEN, Item, compose, grade, is_evaluation, normalize
from musespark.lab.tasks import EFFORTS, EVALUATED, LEVELS, TASKS, TRAINED_WHOLE, draw, draw_item

CASES = [(task, level) for task in EVALUATED for level in LEVELS]


@pytest.mark.parametrize(("task", "level"), CASES)
def test_every_item_grades_its_own_answer_and_rejects_another(task, level):
    rng = Random(7)
    for effort in EFFORTS:
        for _ in range(25):
            item = draw_item(rng, task, level, effort, evaluation=False, error_rate=0.5)
            assert grade(item, item.answer, item.calls)
            assert not grade(item, item.answer + "7", [{"name": "nothing", "arguments": {}}])
            if item.checker == "call":
                assert not grade(item, "", [])


@pytest.mark.parametrize(("task", "level"), CASES)
def test_split_sides_never_meet(task, level):
    rng = Random(11)
    train = {draw(rng, task, level, evaluation=False).key for _ in range(300)}
    held = {draw(rng, task, level, evaluation=True).key for _ in range(60)}
    assert not train & held
    assert all(is_evaluation(task, k) for k in held)
    assert not any(is_evaluation(task, k) for k in train)


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


def test_order_of_terms_does_not_change_the_side():
    rng = Random(3)
    for _ in range(300):
        p = draw(rng, "addition", "easy", evaluation=False)
        a, b = sorted(int(v) for v in re.findall(r"\d+", p.question))
        assert p.key == f"{a}+{b}"


@pytest.mark.parametrize("task", ["addition", "subtraction", "multiplication"])
@pytest.mark.parametrize("level", LEVELS)
def test_arithmetic_answers_are_what_python_computes(task, level):
    rng = Random(5)
    for _ in range(400):
        p = draw(rng, task, level, evaluation=False)
        assert int(p.answer) == eval(p.key)


@pytest.mark.parametrize(
    "task", ["addition", "subtraction", "multiplication", "word_problem", "units", "dates"]
)
def test_every_equation_in_a_correct_thought_holds(task):
    rng = Random(9)
    seen = 0
    for level in LEVELS:
        for effort in EFFORTS:
            for _ in range(60):
                item = draw_item(rng, task, level, effort, evaluation=False)
                for left, right in re.findall(
                    r"(?<![\d.])((?:\d+[+\-*/])+\d+)=(\d+)(?!\d)", item.thought
                ):
                    assert eval(left) == int(right), item.thought
                    seen += 1
    assert seen > 200


def test_columns_spell_the_result():
    rng = Random(2)
    for _ in range(200):
        p = draw(rng, "addition", "middle", evaluation=False)
        text, result = p.steps(None)
        assert result == p.answer
        assert text.endswith(f"So {p.answer}.")


@pytest.mark.parametrize(
    "task",
    ["addition", "subtraction", "multiplication", "sorting", "letters", "extreme", "comparison"],
)
def test_injected_errors_are_marked_and_repaired(task):
    rng = Random(1)
    marked = 0
    for _ in range(200):
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
    assert lengths["low"] < lengths["medium"] < lengths["high"]
    assert lengths["medium"] < lengths["xhigh"]


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


def test_normalize_keeps_a_lone_full_stop():
    assert normalize(".") == "."


def test_talk_is_trained_whole():
    assert set(TASKS) - set(EVALUATED) == TRAINED_WHOLE
    for task in TRAINED_WHOLE:
        assert draw(Random(1), task, "easy", evaluation=False).answer
