"""Word problems, tables, dates and units."""

from __future__ import annotations

from random import Random

from ..item import Problem
from .arithmetic import add_steps, mul_steps, sub_steps
from .words import DAYS, MONTH_DAYS, MONTHS, NAMES, THINGS


def _op(op: str, a: int, b: int, e: Random | None = None) -> tuple[str, str]:
    text, result = {"+": add_steps, "-": sub_steps, "*": mul_steps}[op](a, b, e)
    return f"{a}{op}{b}: {text}", result


_MORE = (
    "buys {b} more.",
    "gets {b} more from {o}.",
    "finds {b} {t}.",
    "is given {b} more {t}.",
)
_LESS = ("gives {b} to {o}.", "loses {b}.", "sells {b} {t}.", "gives away {b} {t}.")


def word_problem(r: Random, level: str) -> Problem:
    """One step; three steps and a sentence that does not matter; five steps and two such."""
    if level == "easy" and r.random() < 0.3:
        return _packs(r, level)
    name, other = r.sample(NAMES, 2)
    thing = r.choice(THINGS)
    value = r.randint(10, 99)
    sentences, ops = [], []
    first = f"{name} has {value} {thing}."
    for _ in range({"easy": 1, "middle": 3, "hard": 5}[level]):
        b = r.randint(2, 60)
        sign = "+" if r.random() < 0.5 or b > value else "-"
        phrase = r.choice(_MORE if sign == "+" else _LESS)
        sentences.append(f"{name} {phrase.format(b=b, o=other, t=thing)}")
        ops.append((sign, value, b))
        value += b if sign == "+" else -b
    for _ in range({"easy": 0, "middle": 1, "hard": 2}[level]):
        distractor = r.choice(
            (
                f"{other} is {r.randint(5, 60)} years old.",
                f"{other} has {r.randint(2, 60)} {thing}.",
                f"{other} has {r.randint(2, 60)} {r.choice(THINGS)}.",
            )
        )
        sentences.insert(r.randint(0, len(sentences)), distractor)
    end = r.choice(("", "", " now", " in all", " altogether"))
    ask = f"How many {thing} does {name} have{end}?"
    return _word(level, " ".join([first, *sentences, ask]), ops, value)


def _packs(r: Random, level: str) -> Problem:
    name, thing = r.choice(NAMES), r.choice(THINGS)
    b, a = r.randint(2, 9), r.randint(3, 30)
    question = r.choice(
        (
            f"{name} packs {b} boxes with {a} {thing} each. How many {thing} is that?",
            f"There are {b} bags with {a} {thing} in each. How many {thing} are there?",
            f"{name} buys {b} packs of {a} {thing}. How many {thing} does {name} have?",
        )
    )
    return _word(level, question, [("*", a, b)], a * b)


def _word(level: str, question: str, ops: list[tuple[str, int, int]], value: int) -> Problem:
    def steps(e: Random | None) -> tuple[str, str]:
        parts = [_op(*op)[0] for op in ops[:-1]]
        text, result = _op(*ops[-1], e)
        return "\n".join([*parts, text]), result

    inverse = {"+": "-", "-": "+"}

    def check(got: str) -> tuple[str, bool]:
        op, a, b = ops[-1]
        if op == "*":
            text = f"{'+'.join([str(a)] * b)}={a * b}."
            return text, got == str(value)
        if op == "+" and int(got) < b:
            return f"{got}<{b}.", False
        text, back = _op(inverse[op], int(got), b)
        return f"{text[:-1]}, want {a}.", back == str(a)

    results = " ".join(str({"+": a + b, "-": a - b, "*": a * b}[op]) for op, a, b in ops[:-1])
    key = " ".join(f"{a}{op}{b}" for op, a, b in ops)
    return Problem(
        "word_problem",
        level,
        key,
        question,
        str(value),
        "number",
        results=results,
        steps=steps,
        check=check,
    )


_COLUMNS = ("score", "age", "price", "points", "height", "weight", "count", "size")


def table(r: Random, level: str) -> Problem:
    """4×3 look-up or greatest; 8×4 look-up or filtered count; 12×4 greatest or sum of a few."""
    rows_n, columns_n = {"easy": (4, 2), "middle": (6, 3), "hard": (10, 3)}[level]
    rows, columns = r.sample(NAMES, rows_n), r.sample(_COLUMNS, columns_n)
    values = [r.sample(range(1, 100), rows_n) for _ in columns]
    bar = r.random() < 0.3
    head = " | ".join(["name", *columns]) if bar else ",".join(["name", *columns])
    lines = [
        (" | " if bar else ",").join([rows[i], *(str(c[i]) for c in values)]) for i in range(rows_n)
    ]
    text = "\n".join([head, *lines])
    j, i = r.randrange(columns_n), r.randrange(rows_n)
    column, kind = columns[j], r.choice(("cell", "cell", "most", "least", "above"))
    listed = ", ".join(f"{rows[q]} {values[j][q]}" for q in range(rows_n))
    if kind == "cell":
        ask = r.choice((f"What is the {column} of {rows[i]}?", f"{rows[i]}'s {column}?"))
        answer, thought = (
            str(values[j][i]),
            f"{column} is column {j + 1}. Row: {lines[i]}. So {values[j][i]}.",
        )
    elif kind in ("most", "least"):
        best = (max if kind == "most" else min)(range(rows_n), key=lambda q: values[j][q])
        word = "highest" if kind == "most" else "lowest"
        ask = f"Who has the {word} {column}?"
        answer, thought = (
            rows[best],
            f"{listed}. {word.capitalize()} {values[j][best]}: {rows[best]}.",
        )
    else:
        limit = r.randint(20, 80)
        hits = [v > limit for v in values[j]]
        ask, answer = f"How many have a {column} above {limit}?", str(sum(hits))
        seen, parts = 0, []
        for q in range(rows_n):
            seen += hits[q]
            sign = ">" if hits[q] else "<" if values[j][q] < limit else "="
            parts.append(f"{values[j][q]}{sign}{limit} {seen}")
        thought = f"{', '.join(parts)}. So {seen}."
    return Problem(
        "table",
        level,
        f"{kind} {column} {lines}",
        f"{text}\n{ask}",
        answer,
        "string",
        steps=lambda e: (thought, answer),
    )


def facts(r: Random, level: str) -> Problem:
    """Closed lists every reader knows (weekdays, months); trained whole, never evaluated."""
    i, pick = r.randrange(7), r.randrange(5)
    if pick < 2:
        answer = DAYS[(i + (1, -1)[pick]) % 7]
        return _plain(
            "facts", level, "", f"What day comes {('after', 'before')[pick]} {DAYS[i]}?", answer, ""
        )
    i = r.randrange(12)
    question, answer = (
        (f"Which month comes after {MONTHS[i]}?", MONTHS[(i + 1) % 12]),
        (f"Which month comes before {MONTHS[i]}?", MONTHS[i - 1]),
        (
            f"How many days are in {MONTHS[i]}?",
            str(MONTH_DAYS[i]) if i != 1 else "28, or 29 in a leap size",
        ),
    )[pick - 2]
    return _plain("facts", level, "", question, answer, "")


def dates(r: Random, level: str) -> Problem:
    """Weekdays up to 6 days ahead, up to 20 days ahead, a date up to 30 days later."""
    if level != "hard":
        i, n = r.randrange(7), r.randint(1, 6) if level == "easy" else r.randint(7, 20)
        answer, left = DAYS[(i + n) % 7], n % 7
        weeks = f"{n}-{n - left}={left}. " if n >= 7 else ""
        path = ", ".join(f"{q} {DAYS[(i + q) % 7]}" for q in range(left + 1))
        ask = (
            f"Today is {DAYS[i]}. What day is it in {n} days?",
            f"What day is {n} days after {DAYS[i]}?",
        )
        return _plain("dates", level, f"ahead {i} {n}", r.choice(ask), answer, f"{weeks}{path}.")
    m, n = r.randrange(12), r.randint(2, 30)
    d = r.randint(1, MONTH_DAYS[m])
    total, length = d + n, MONTH_DAYS[m]
    thought = f"{MONTHS[m]} has {length} days. {d}+{n}={total}. "
    if total > length:
        month, day = MONTHS[(m + 1) % 12], total - length
        thought += f"{total}>{length}, {total}-{length}={day}. {month} {day}."
    else:
        month, day = MONTHS[m], total
        thought += f"{total}{'=' if total == length else '<'}{length}. {month} {day}."
    question = f"What date is {n} days after {MONTHS[m]} {d}?" + (
        " It is not a leap year." if m == 1 else ""
    )
    return _plain("dates", level, f"date {m} {d} {n}", question, f"{month} {day}", thought)


_UNITS = (
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
    ("meters", "centimeters", 100),
    ("kilometers", "meters", 1000),
    ("kilograms", "grams", 1000),
    ("feet", "inches", 12),
    ("dollars", "cents", 100),
    ("years", "months", 12),
    ("dozens", "pieces", 12),
    ("liters", "milliliters", 1000),
)


def units(r: Random, level: str) -> Problem:
    """Convert to the smaller unit, to the larger one, and mixed."""
    big, small, factor = r.choice(_UNITS)
    n = r.randint(2, 9 if level == "easy" else 60)
    if level == "hard":
        extra = r.randint(1, factor - 1)
        text, result = _op("*", factor, n)
        answer = str(int(result) + extra)
        thought = f"1 {big[:-1]} is {factor} {small}. {text} {result}+{extra}={answer}."
        question = f"How many {small} are {n} {big} and {extra} {small}?"
    elif level == "middle" and r.random() < 0.5:
        answer = str(n)
        thought = f"1 {big[:-1]} is {factor} {small}. {n * factor}/{factor}={n}."
        question = r.choice(
            (f"How many {big} are {n * factor} {small}?", f"Convert {n * factor} {small} to {big}.")
        )
    else:
        text, answer = _op("*", factor, n)
        thought = f"1 {big[:-1]} is {factor} {small}. {text}"
        question = r.choice(
            (
                f"How many {small} are in {n} {big}?",
                f"Convert {n} {big} to {small}.",
                f"How many {small} are {n} {big}?",
            )
        )
    return _plain("units", level, question, question, answer, thought, "number")


def _plain(
    task: str,
    level: str,
    key: str,
    question: str,
    answer: str,
    thought: str,
    checker: str = "string",
) -> Problem:
    return Problem(task, level, key, question, answer, checker, steps=lambda e: (thought, answer))


TASKS = {
    "word_problem": word_problem,
    "table": table,
    "dates": dates,
    "units": units,
    "facts": facts,
}
