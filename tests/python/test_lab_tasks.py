"""Each generator: its answers, thoughts and checks against what is computed apart from it."""

from __future__ import annotations

import calendar
import datetime
import itertools
import json
import re
from collections import Counter
from fractions import Fraction
from random import Random

import jsonschema
import pytest

from musespark.lab.grading import grade, value_of
from musespark.lab.item import (
    Evaluation,
    HeldOutWording,
    Item,
    compose,
    is_evaluation,
    side_by_side,
)
from musespark.lab.tasks import (
    LEVELS,
    draw,
    pictures,
    words,
)
from musespark.lab.tasks.words import DAYS, MONTHS, NAMES


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


def test_columns_spell_the_result():
    rng = Random(2)
    for _ in range(200):
        p = draw(rng, "addition", "middle", evaluation=False)
        text, result = p.steps(None)
        assert result == p.answer
        assert text.endswith(f"So {p.answer}.")


def test_dates_exist():
    for i in range(3000):
        answer = draw(Random(i), "dates", "hard", evaluation=False).answer
        month, day = answer.split()
        assert int(day) <= calendar.monthrange(2023, [*calendar.month_name].index(month))[1]


def test_the_signs_of_a_check_say_what_is_out_of_order():
    """As they are, up to the first that may not be so."""
    for i in range(60):
        listed = draw(Evaluation(i), "sorting", "easy", evaluation=False)
        values = [int(v) for v in listed.answer.split(", ")]
        if len({*values}) < len(values):
            continue
        values[1], values[2] = values[2], values[1]
        told, agrees = listed.check(", ".join(map(str, values)))
        assert not agrees
        signs = re.findall(r"(\d+)([<>])(\d+)", told)
        assert all((int(a) < int(b)) == (sign == "<") for a, sign, b in signs)
        assert len({sign for _, sign, _ in signs[:-1]} - {signs[-1][1]}) <= 1
        assert signs[-1][0::2] == (str(values[1]), str(values[2]))
        greatest = draw(Evaluation(i), "extreme", "easy", evaluation=False)
        numbers = re.findall(r"\d+", greatest.question)
        other = next(n for n in numbers if n != greatest.answer)
        told, agrees = greatest.check(other)
        assert not agrees
        assert re.search(r" (\d+) is (above|below) \d+\.$", told)


def test_a_word_problem_is_undone_to_its_first_number():
    rng = Random(8)
    for _ in range(60):
        p = draw(rng, "word_problem", "hard", evaluation=False)
        first = re.search(r"has (\d+)", p.question)[1]
        told = p.check(p.answer)[0]
        assert told.endswith(f"So {first}, want {first}: {side_by_side(first, first)}.")
        assert p.second.startswith(f"in {first}")
        assert p.second.endswith(f"So {p.answer}.")


@pytest.mark.parametrize("generator", [Evaluation, Random])
@pytest.mark.parametrize("level", LEVELS)
def test_a_word_problem_is_what_its_sentences_say(level, generator):
    """Recomputed from the text: the holder's own sentences only, distractors left out. Evaluation
    has the full size and the name in each sentence."""
    rng, most = generator(6), {"easy": 1, "middle": 3, "hard": 5}[level]
    fewer = r"(gives|loses|sells|parts|uses|hands|drops|throws|puts|is robbed) "
    sizes, told = set(), ""
    for _ in range(120):
        p = draw(rng, "word_problem", level, evaluation=False)
        if "each" in p.question or "packs" in p.question:
            continue
        sentences = p.question.split(". ")
        name, value = sentences[0].split()[0], int(re.search(r"\d+", sentences[0])[0])
        about = [s for s in sentences[:-1] if s.startswith((name + " ", "He ", "She "))]
        parts = [part for s in about for part in s.split(" and ")][1:]
        for part in parts:
            value += (-1 if re.search(rf"(^|\s){fewer}", part) else 1) * int(
                re.search(r"\d+", part)[0]
            )
        assert value == int(p.answer)
        sizes.add((len(parts), len(sentences) - 1 - len(about)))
        told += p.question
        assert len(about) == len(sentences) - 1 or not re.search(r"\b(He|She) ", p.question)
        for at, sentence in enumerate(sentences):
            if sentence.startswith(("He ", "She ")):  # nobody else is named before
                assert {*re.findall(r"\w+", " ".join(sentences[:at]))} & {*NAMES} == {name}
    others = {"easy": 0, "middle": 1, "hard": 2}[level]
    if generator is Evaluation:
        assert sizes == {(most, others)} and not re.search(r" and |\bHe ", told)
    else:
        assert max(sizes) == (most, others) and re.search(r" and ", told)
        assert re.search(r"\bHe ", told)


def test_what_is_told_of_pairs_is_true_and_no_pair_is_one_of_evaluations():
    kinds, longer, equal = Counter(), Counter(), Counter()
    for i in range(300):
        problem = draw(Random(i), "pairs", LEVELS[i % 3], evaluation=False)
        kind, *pairs = problem.key.split()
        kinds[kind] += 1
        for a, b in (pair.split(",") for pair in pairs):
            longer[len(a) > len(b)] += len(a) != len(b)
            equal[a == b] += 1
        parts = re.split("[,;] ", problem.answer)
        assert len(parts) == len(pairs)
        for part, pair in zip(parts, pairs, strict=True):
            a, b = pair.split(",")
            low, high = sorted((int(a), int(b)))
            assert not is_evaluation("comparison", f"{low} {high}")
            assert not is_evaluation("addition", f"{low}+{high}")
            assert not is_evaluation("subtraction", f"{high}-{low}")
            if kind in ("signs", "sums", "less"):
                assert eval(part.replace("=", "==")), part
            elif kind == "same":
                assert part == f"{a} and {b}: {side_by_side(a, b)}"
            else:
                assert part == f"{a} and {b}: {len(a)} and {len(b)} digits"
    assert min(kinds[kind] for kind in ("signs", "same", "long", "sums", "less")) > 20
    assert min(longer.values()) > 0.4 * longer.total(), "either is the longer one"
    assert 0.01 * equal.total() < equal[True] < 0.15 * equal.total()


@pytest.mark.parametrize("level", LEVELS)
def test_numbers_of_one_ten_are_told_in_order_wherever_there_are_several(level):
    left = 0
    for i in range(100):
        problem = draw(Random(i), "sorting", level, evaluation=False)
        ascending = int(problem.answer.split(", ")[0]) <= int(problem.answer.split(", ")[-1])
        for error in (None, Random(i)):
            thought, result = problem.steps(error)
            told = []
            for ten, found, ranked in re.findall(
                r"(\d): (\d\d(?: \d\d)*)(?: so ([\d ]+))?", thought
            ):
                values = [int(v) for v in found.split()]
                assert {v // 10 for v in values} == {int(ten)}
                assert bool(ranked) == (len(values) > 1)
                told += [int(v) for v in (ranked or found).split()]
            if error is None:
                assert result == problem.answer == ", ".join(map(str, told))
                assert told == sorted(told, reverse=not ascending)
            elif result != problem.answer:
                left += result == ", ".join(map(str, told))
    assert left > 5, "a ten left as it comes is among the mistakes"


@pytest.mark.parametrize("level", LEVELS)
def test_the_check_of_a_sorted_list_finds_what_is_missing_doubled_or_changed(level):
    rng = Random(4)
    for _ in range(20):
        p = draw(rng, "sorting", level, evaluation=False)
        told = p.answer.split(", ")
        assert p.check(p.answer)[1]
        wrong = [told[1:], [*told, told[-1]], [told[0], told[0], *told[2:]]]
        for listed in wrong:
            right = listed == told  # two equal numbers
            assert p.check(", ".join(listed))[1] == right, (p.question, listed)


def test_notes_are_quoted_with_their_number():
    rng, missing = Random(5), 0
    for level in LEVELS:
        for _ in range(60):
            p = draw(rng, "notes", level, evaluation=False)
            if p.answer.startswith("The notes"):
                missing += 1
                continue
            value, number = re.fullmatch(r"(\w+) \[(\d+)\]", p.answer).groups()
            (note,) = re.findall(rf"^\[{number}\] (.*)$", p.question, re.M)
            assert note.endswith(f"{value}.")
            assert f'"{note}"' in p.steps(None)[0]
            name = note.split()[0].removesuffix("'s")
            assert name in p.question.replace(note, "")
    assert missing > 8


# ---- sizes, wordings --------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_a_maze_asks_for_the_shortest_way(level):
    for i in range(12):
        for r in (Random(i), HeldOutWording(i)):
            question = pictures.SCENES["mazes"](r, level)(r).question
            assert "shortest" in question or "fewest" in question


@pytest.mark.parametrize(
    ("task", "level", "least"),
    [
        ("addition", "easy", r"\b\d\d\D+\d\d\b"),
        ("addition", "middle", r"\b\d{4}\D+\d{4}\b"),
        ("addition", "hard", r"\b\d\d( ?[+-] ?\d\d){3}\b"),
        ("subtraction", "easy", r"\b\d\d\D+\d\d\b"),
        ("subtraction", "middle", r"\b\d{4}\D+\d{4}\b"),
        ("multiplication", "easy", r"\b(\d\d\D+\d|\d\D+\d\d)\b"),
        ("multiplication", "middle", r"\b(\d{3}\D+\d|\d\D+\d{3})\b"),
        ("multiplication", "hard", r"\b\d\d\D+\d\d\b"),
        ("sorting", "easy", r"(\d+\D+){4}\d+"),
        ("sorting", "middle", r"(\d+\D+){7}\d+"),
        ("sorting", "hard", r"(\d+\D+){11}\d+"),
        ("extreme", "hard", r"(\d+\D+){11}\d+"),
        ("table", "easy", r"(\n[^\n]*){5}"),
        ("table", "middle", r"(\n[^\n]*){9}"),
        ("table", "hard", r"(\n[^\n]*){16}"),
    ],
)
def test_evaluation_asks_at_the_full_size_of_a_level(task, level, least):
    rng = Evaluation(3)
    for _ in range(40):
        assert re.search(least, "\n" + draw(rng, task, level, evaluation=True).question)


def rows_of(question):
    lines = [re.split(r",| \| ", line) for line in question.split("\n")[:-1]]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def test_tables_are_answered_from_their_cells():
    rng, kinds = Evaluation(4), {"total": 0, "group": 0, "team": 0}
    for level in ("middle", "hard"):
        for _ in range(60):
            p = draw(rng, "table", level, evaluation=True)
            kind, *rest = p.key.split("[")[0].split()
            rows = rows_of(p.question)
            kinds[kind] += 1
            if kind == "total":
                added, by, limit = rest
                wanted = str(sum(int(w[added]) for w in rows if int(w[by]) > int(limit)))
                assert 2 <= sum(int(w[by]) > int(limit) for w in rows) <= 4
            elif kind == "group":
                wanted = str(max(int(w[rest[0]]) for w in rows if w["team"] == rest[1]))
            else:
                totals = {}
                for w in rows:
                    totals[w["team"]] = totals.get(w["team"], 0) + int(w[rest[0]])
                wanted = max(totals, key=totals.get)
                assert list(totals.values()).count(totals[wanted]) == 1
            assert p.answer == wanted
            assert p.steps(None)[0].rstrip(".").endswith(wanted)
    assert min(kinds.values()) > 9


def test_dates_are_what_the_calendar_says():
    rng = Evaluation(4)
    for level in LEVELS:
        for _ in range(60):
            p = draw(rng, "dates", level, evaluation=True)
            numbers = [int(n) for n in p.key.split()[1:]]
            day = datetime.date(2023, numbers[0] + 1, numbers[1])
            if level == "hard":
                later = day + datetime.timedelta(numbers[2])
                assert p.answer == f"{MONTHS[later.month - 1]} {later.day}"
            else:
                later = day + datetime.timedelta(numbers[3])
                shift = numbers[2] - day.weekday()
                assert p.answer == DAYS[(later.weekday() + shift) % 7]
                assert f"{MONTHS[later.month - 1]} {later.day}" in p.question


def arguments(problem):
    """(function, argument, value) of the calls that a problem has or asks about."""
    calls = list(problem.calls or [])
    for message in problem.messages or []:
        calls += [c["function"] for c in message.get("tool_calls", [])]
    return {(c["name"], k, v) for c in calls for k, v in c["arguments"].items()}


def test_calls_are_evaluated_with_values_that_training_never_has():
    """Whatever the key: calls of some weights were split by the words of the request."""
    seen, asked = set(), set()
    for level in LEVELS:
        for i in range(700):
            seen |= arguments(draw(Random(f"{level} {i}"), "tool_call", level, evaluation=False))
        for i in range(60):
            r = Evaluation(f"{level} {i}")
            asked |= arguments(draw(r, "tool_call", level, evaluation=True))
    assert len(seen) > 500 and len(asked) > 90
    assert {value for *_, value in asked & seen} <= {"on", "off"}


def test_the_key_of_a_call_is_what_is_called_for():
    """Not how it is asked for, nor by which of its names a function goes, nor which are beside."""
    alike = {}
    for i in range(3000):
        p = draw(Random(i), "tool_call", "easy", evaluation=False)
        alike.setdefault(p.key, set()).add((p.question, p.calls[0]["name"], len(p.tools)))
    for at in range(3):  # words, names, number of tools
        assert any(len({one[at] for one in told}) > 1 for told in alike.values())
    assert not any(f" {name}" in key for key in alike for name in ("get_weather", "set_light"))


def test_a_tool_that_fits_anything_is_not_offered_where_none_fits():
    none, names = 0, ("search", "web_search", "find")
    for i in range(600):
        p = draw(Random(i), "tool_call", "hard", evaluation=False)
        if p.answer == "I have no tool for that.":
            none += 1
            assert not {t["function"]["name"] for t in p.tools} & {*names}
    assert none > 60


def test_two_requests_are_two_calls_in_their_order():
    rng, seen = Random(4), 0
    for _ in range(300):
        p = draw(rng, "tool_call", "hard", evaluation=False)
        if len(p.calls or []) < 2:
            continue
        seen += 1
        item = compose(p, "medium", rng)
        assert grade(item, "", p.calls)
        assert not grade(item, "", p.calls[::-1])
        assert not grade(item, "", p.calls[:1])
        assert not grade(item, "Done.", [])
        at = [p.question.find(str(next(iter(c["arguments"].values())))) for c in p.calls]
        assert min(at) >= 0
    assert seen > 30


def test_results_follow_calls_with_the_thought_before_them_and_without():
    """As in a conversation that goes on: its template keeps the thoughts since the user spoke."""
    rng, thoughts, values = Random(4), set(), 0
    for _ in range(300):
        p = draw(rng, "tool_call", "hard", evaluation=False)
        if not p.messages:
            continue
        _, called, told = p.messages
        call = called["tool_calls"][0]["function"]
        thoughts.add("reasoning_content" in called)
        pairs = ", ".join(f"{k}={v}" for k, v in call["arguments"].items())
        assert called.get("reasoning_content", f"{call['name']}: {pairs}.") == (
            f"{call['name']}: {pairs}."
        )
        if call["name"] in ("calculate", "calculator", "evaluate") and not p.calls:
            values += 1
            assert told["content"] == str(eval(next(iter(call["arguments"].values()))))
            assert told["content"] in p.answer
    assert thoughts == {True, False}
    assert values > 3


@pytest.mark.parametrize("text", ["", "2**9", "1+", "a", "1" * 90, "(" * 70, "4/2", "-3"])
def test_what_is_no_expression_has_no_value(text):
    with pytest.raises(ValueError, match="expression: got"):
        value_of(text)


def test_values_of_expressions():
    assert [value_of(e) for e in ("7", "12 - 5*2", "(2+3)*4", "100-250")] == [7, 2, 20, -150]


@pytest.mark.parametrize("level", LEVELS)
def test_countdown_takes_any_way_and_no_other(level):
    rng = Random(4)
    for _ in range(60):
        p = draw(rng, "countdown", level, evaluation=False)
        item = compose(p, "medium", rng)
        numbers, target = p.key.split(" = ")
        assert eval(p.answer) == int(target)
        used = [int(n) for n in re.findall(r"\d+", p.answer)]
        assert not Counter(used) - Counter(map(int, numbers.split()))
        assert grade(item, f"({p.answer})")
        assert not grade(item, target)
        assert not grade(item, f"{p.answer}+0")
        assert not grade(item, f"{p.answer}-{used[0]}+{used[0]}")
        for text, value in re.findall(r"(\S+)=(-?\d+), (?:no|yes)", p.steps(None)[0]):
            assert eval(text) == int(value)
    item = Item("countdown", "easy", "low", "2 3 4 = 10", [], "", "2*3+4", "expression")
    assert grade(item, "4 + 3*2.") and grade(item, "2*(4+1)") is False
    assert grade(item, "4+3*2=10") and grade(item, "4+3*2 = 10.")
    assert not grade(item, "4+3*2=11") and not grade(item, "4+3*2=") and not grade(item, "4=4+3*2")
    for odd in ("2**3+2", "__import__", "(" * 90, "10", "2*3+4;", "2*3+", "-4+2*3", ""):
        assert not grade(item, odd), odd


@pytest.mark.parametrize("level", LEVELS)
def test_one_answer_fits_what_knights_and_knaves_say(level):
    """Read from the sentences themselves, all cases tried."""
    rng = Random(4)
    for _ in range(40):
        p = draw(rng, "knights", level, evaluation=False)
        said = re.findall(r"(\w+) says: (\w+) (?:is a (\w+)|and I are (\w+))\.", p.key)
        people = list(dict.fromkeys(s[0] for s in said))
        fits = []
        for case in itertools.product((True, False), repeat=len(people)):
            kind = dict(zip(people, case, strict=True))
            truths = [
                (kind[b] == (k == "knight")) if k else ((kind[a] == kind[b]) == (how == "alike"))
                for a, b, k, how in said
            ]
            if all(kind[s[0]] == t for s, t in zip(said, truths, strict=True)):
                fits.append({f"{n} {'knight' if k else 'knave'}" for n, k in kind.items()})
        assert fits == [set(p.answer.split(", "))]
        item = compose(p, "low", rng)
        first, _, rest = p.answer.partition(", ")
        other = first.replace("knave", "knight") if "knave" in first else f"{first[:-6]}knave"
        assert grade(item, f"{rest}, {first}")
        assert not grade(item, f"{other}, {rest}")


@pytest.mark.parametrize("level", LEVELS)
def test_fractions_are_what_python_computes(level):
    rng = Random(4)
    for _ in range(80):
        p = draw(rng, "fractions", level, evaluation=False)
        parts = p.key.split()
        if level == "easy":
            assert Fraction(p.answer) == Fraction(p.key)
            continue
        a, b = Fraction(parts[0]), Fraction(parts[2])
        wanted = {"+": a + b, "-": a - b, "*": a * b, ":": a / b if b else 0}[parts[1]]
        assert p.answer == str(wanted)
        for left, right in re.findall(r"(?<![\d/])(\d+[*+-]\d+)=(\d+)", p.steps(None)[0]):
            assert eval(left) == int(right)


@pytest.mark.parametrize("level", LEVELS)
def test_json_answers_fit_their_schema(level):
    rng, without = Random(4), 0
    for _ in range(40):
        p = draw(rng, "json_answers", level, evaluation=False)
        schema = re.search(r"\{.*\}", p.question)
        without += schema is None
        if schema:
            jsonschema.validate(json.loads(p.answer), json.loads(schema[0]))
        else:  # then the question names what to tell
            first = json.loads(p.answer)
            assert ", ".join(first[0] if isinstance(first, list) else first) in p.question
        item = compose(p, "low", rng)
        assert grade(item, json.dumps(json.loads(p.answer), indent=1))
        values = json.loads(p.answer)
        one = values[0] if isinstance(values, list) else values
        one["name"] += "a"
        assert not grade(item, json.dumps(values))
    assert 8 < without < 32
    told = [draw(Evaluation(i), "json_answers", level, evaluation=True) for i in range(20)]
    assert all("{" in p.question for p in told)


def test_a_check_of_calls_counts_them():
    several = next(
        p
        for p in (draw(Random(i), "tool_call", "hard", evaluation=False) for i in range(200))
        if p.calls and len(p.calls) == 2
    )
    first, second = several.result.split("; ")
    assert several.check(f"{first}; {second}")[1]
    for wrong in (first, second, f"{second}; {first}", f"{first}; {second}; {first}", ""):
        told, agrees = several.check(wrong)
        assert not agrees, wrong
        assert re.search(r"/|left ", told), told  # says what is wrong
    told, agrees = several.check(f"{first}, unit=x; {second}")
    assert not agrees
    assert "no unit" in told


def test_facts_of_a_story_are_of_the_one_asked_about():
    rng = Random(4)
    for level in LEVELS:
        for _ in range(60):
            p = draw(rng, "story_facts", level, evaluation=False)
            text, ask = p.question.rsplit("\n", 1)
            (line,) = re.findall(r'"(.*)"', p.steps(None)[0])
            name = next(w for w in re.findall(r"[A-Z]\w+", ask)[1:] if w in text)
            assert line in text
            assert name in line and p.answer in line


def test_calls_are_trained_with_words_that_nobody_met():
    """Of closed lists alone a model picks from them instead of copying."""
    given = Counter()
    for i in range(1500):
        given.update(arguments(draw(Random(i), "tool_call", "easy", evaluation=False)))
    once = [key for key, n in given.items() if n == 1 and str(key[-1]).isalpha()]
    assert len(once) > 500


def test_no_invented_word_is_one_that_evaluation_asks_for(monkeypatch):
    known = words.invented(Random(1))
    monkeypatch.setattr(words, "_HELD", frozenset({known}))
    assert words.invented(Random(1)) != known
