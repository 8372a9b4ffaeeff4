"""Word problems, dates and units."""

from __future__ import annotations

from random import Random

from ..item import Evaluation, Problem, compared, exact, phrase, sized, wanted
from .arithmetic import add_steps, mul_steps, place_by_place, rounded_up, sub_steps, summed
from .words import DAYS, MONTH_DAYS, MONTHS, NAMES, THINGS, split_words


def _op(op: str, a: int, b: int, e: Random | None = None) -> tuple[str, str]:
    text, result = {"+": add_steps, "-": sub_steps, "*": mul_steps}[op](a, b, e)
    return f"{a}{op}{b}: {text}", result


_MORE = (
    "buys {b} more.",
    "gets {b} more from {o}.",
    "finds {b} {t}.",
    "is given {b} more {t}.",
    "picks up {b} {t}.",
    "wins {b} more.",
    "adds {b} more {t}.",
    "receives {b} {t} from {o}.",
    "gets {b} {t}.",
    "buys {b} {t}.",
    "takes {b} more {t} home.",
)
_LESS = (
    "gives {b} to {o}.",
    "loses {b}.",
    "sells {b} {t}.",
    "gives away {b} {t}.",
    "uses {b} {t}.",
    "gives {o} {b} {t}.",
    "hands {b} to {o}.",
    "sells {b}.",
    "throws {b} away.",
    "is robbed of {b} {t}.",
    "parts with {b} {t}.",
)
_HOLDS = (
    "How many {t} does {n} have{end}?",
    "How many {t} has {n} got{end}?",
    "How many {t} are left with {n}{end}?",
    "What number of {t} does {n} have{end}?",
    "Tell me how many {t} {n} has{end}.",
    "So how many {t} does {n} have{end}?",
    "How many {t} does {n} own{end}?",
    "How many {t} does {n} end up with{end}?",
    "With how many {t} does {n} end{end}?",
)
_PACKS = (
    "{n} packs {b} boxes with {a} {t} each. How many {t} is that?",
    "There are {b} bags with {a} {t} in each. How many {t} are there?",
    "{n} buys {b} packs of {a} {t}. How many {t} does {n} have?",
    "There are {a} {t} in each of {b} boxes. How many {t} are there in all?",
    "{n} fills {b} bags with {a} {t} each. How many {t} is that?",
    "{b} rows with {a} {t} each: how many {t} are there?",
    "{n} has {b} boxes with {a} {t} each. How many {t} does {n} have?",
    "In each of {b} drawers are {a} {t}. How many {t} is that together?",
    "{b} shelves hold {a} {t} each. How many {t} are on them?",
)


#: Names that are told as "he" and as "she".
_PRONOUNS = dict.fromkeys(
    split_words("Ben Dan Finn Gus Jon Leo Ned Rex Tom Bob Carl Fred Hugo Jack Max Omar Paul Will"),
    "He",
) | dict.fromkeys(
    split_words("Ann Cleo Eva Hana Ida Mia Ola Pia Sue Amy Dora Emma Gina Iris Kate Lucy Nina"),
    "She",
)


def word_problem(r: Random, level: str) -> Problem:
    """One step; three steps and a sentence that does not matter; five steps and two such. In
    training also fewer, two steps in a sentence, and "he" and "she" where nobody else is told of.
    """
    if level == "easy" and r.random() < 0.3:
        return _packs(r, level)
    name, other = r.sample(NAMES, 2)
    thing = r.choice(THINGS)
    value = r.randint(10, 99)
    steps = {"easy": 1, "middle": sized(r, 2, 3), "hard": sized(r, 4, 5)}[level]
    others = {"easy": 0, "middle": sized(r, 0, 1), "hard": sized(r, 0, 2)}[level]
    free = not isinstance(r, Evaluation)
    sentences, ops = [f"{name} has {value} {thing}."], []
    for _ in range(steps):
        b = r.randint(2, 60)
        sign = "+" if r.random() < 0.5 or b > value else "-"
        told = phrase(r, _MORE if sign == "+" else _LESS).format(b=b, o=other, t=thing)
        if free and r.random() < 0.25 and " and " not in sentences[-1]:
            sentences[-1] = f"{sentences[-1][:-1]} and {told}"
        elif free and not others and other not in " ".join(sentences) and r.random() < 0.5:
            sentences.append(f"{_PRONOUNS.get(name, name)} {told}")
        else:
            sentences.append(f"{name} {told}")
        ops.append((sign, value, b))
        value += b if sign == "+" else -b
    for _ in range(others):
        distractor = r.choice(
            (
                f"{other} is {r.randint(5, 60)} years old.",
                f"{other} has {r.randint(2, 60)} {thing}.",
                f"{other} has {r.randint(2, 60)} {r.choice(THINGS)}.",
            )
        )
        sentences.insert(r.randint(1, len(sentences)), distractor)
    end = r.choice(("", "", " now", " in all", " altogether"))
    ask = phrase(r, _HOLDS).format(t=thing, n=name, end=end)
    return _word(level, " ".join([*sentences, ask]), ops, value)


def _packs(r: Random, level: str) -> Problem:
    name, thing = r.choice(NAMES), r.choice(THINGS)
    b, a = r.randint(2, 9), r.randint(3, 30)
    question = phrase(r, _PACKS).format(n=name, a=a, b=b, t=thing)
    return _word(level, question, [("*", a, b)], a * b)


def _word(level: str, question: str, ops: list[tuple[str, int, int]], value: int) -> Problem:
    def steps(e: Random | None) -> tuple[str, str]:
        parts = [_op(*op)[0] for op in ops[:-1]]
        text, result = _op(*ops[-1], e)
        return "\n".join([*parts, text]), result

    def check(got: str) -> tuple[str, bool]:
        return _back(ops, int(got)), got == str(value)

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
        second=_together(ops, value),
    )


def _back(ops: list[tuple[str, int, int]], value: int) -> str:
    """From a result back to what was there first, one step after the other."""
    parts = []
    for op, a, b in reversed(ops):
        if op == "*":
            route = f"{b}*{a}: {mul_steps(b, a, columns=True)[0][:-1]}"
            return f"{'. '.join([*parts, route])}; {compared(str(value), str(a * b))}."
        if op == "+" and value < b:
            return f"{'. '.join([*parts, f'{value}<{b}'])}."
        text, back = _op("-" if op == "+" else "+", value, b)
        parts.append(text[:-1])
        value = int(back)
    return f"{'. '.join(parts)}, {wanted(str(value), str(ops[0][1]))}."


def _together(ops: list[tuple[str, int, int]], value: int) -> str:
    """What comes in added up, what goes out added up, the difference."""
    op, first, factor = ops[0]
    if op == "*":
        return rounded_up(first, factor)
    come = [first, *(b for op, _, b in ops if op == "+")]
    go = [b for op, _, b in ops if op == "-"]
    text = f"in {summed(come)}"
    if not go:
        return f"{text}."
    return f"{text}, out {summed(go)}; {_op('-', sum(come), sum(go))[0]}"


def facts(r: Random, level: str) -> Problem:
    """Closed lists every reader knows (weekdays, months); trained whole, never evaluated."""
    i, pick = r.randrange(7), r.randrange(5)
    if pick < 2:
        answer = DAYS[(i + (1, -1)[pick]) % 7]
        return exact(
            "facts", level, "", f"What day comes {('after', 'before')[pick]} {DAYS[i]}?", answer, ""
        )
    i = r.randrange(12)
    question, answer = (
        (f"Which month comes after {MONTHS[i]}?", MONTHS[(i + 1) % 12]),
        (f"Which month comes before {MONTHS[i]}?", MONTHS[i - 1]),
        (
            f"How many days are in {MONTHS[i]}?",
            str(MONTH_DAYS[i]) if i != 1 else "28, or 29 in a leap year",
        ),
    )[pick - 2]
    return exact("facts", level, "", question, answer, "")


_AHEAD = (
    "Today is {day}. What day is it in {n} days?",
    "What day is {n} days after {day}?",
    "It is {day}. Which day is it in {n} days?",
    "Which day comes {n} days after {day}?",
    "{n} days after {day}: which day?",
    "If it is {day}, what day is it {n} days later?",
    "Name the day {n} days after {day}.",
    "Count {n} days on from {day}. Which day is it?",
    "Which weekday follows {day} by {n} days?",
)
_NEXT = (
    "{month} {d} is a {day}. What day is {month} {e}?",
    "If {month} {d} is a {day}, which day is {month} {e}?",
    "{month} {d} is a {day}. Which weekday is {month} {e}?",
    "{month} {d} was a {day}. What day was {month} {e}?",
    "What day is {month} {e} if {month} {d} is a {day}?",
    "On which day falls {month} {e}, if {month} {d} is a {day}?",
    "Say which day {month} {e} is. {month} {d} is a {day}.",
    "With {month} {d} a {day}, what is {month} {e}?",
    "Name the day of {month} {e}; {month} {d} is a {day}.",
    "Which day is {month} {e}, when {month} {d} is a {day}?",
)
_LATER = (
    "What date is {n} days after {month} {d}?",
    "What is the date {n} days after {month} {d}?",
    "{n} days after {month} {d}: what date is it?",
    "It is {month} {d}. What date is it in {n} days?",
    "Count {n} days from {month} {d}. Which date is it?",
    "Add {n} days to {month} {d}.",
    "Today is {month} {d}. Which date is {n} days later?",
    "Which date is {n} days from {month} {d}?",
    "Which date comes {n} days after {month} {d}?",
)


def dates(r: Random, level: str) -> Problem:
    """The weekday of a date up to 6 days ahead, up to 20 days ahead; a date up to 30 days later. In
    training weekdays without dates too: there are too few of those to hold any out."""
    if level == "hard":
        return _later(r)
    i, n = r.randrange(7), r.randint(1, 6) if level == "easy" else r.randint(7, 20)
    answer = DAYS[(i + n) % 7]
    if sized(r, 0, 1) == 0:
        ask = phrase(r, _AHEAD).format(day=DAYS[i], n=n)
        thought, *routes = _weekday_ways(i, 0, n)
        return exact("dates", level, f"ahead {i} {n}", ask, answer, thought, routes=routes)
    m = r.randrange(12)
    d = r.randint(1, MONTH_DAYS[m] - n)
    ask = phrase(r, _NEXT).format(month=MONTHS[m], d=d, e=d + n, day=DAYS[i])
    thought, *routes = _weekday_ways(i, d, n)
    return exact("dates", level, f"next {m} {d} {i} {n}", ask, answer, thought, routes=routes)


def _weekday_ways(i: int, d: int, n: int) -> tuple[str, str, str]:
    """From day ``d``, the weekday ``i``, to ``n`` days later, by weeks while these do not pass
    it and then by days; back from there; and by numbers from 0 to 6."""
    goal, q, path = d + n, 0, [f"{d} {DAYS[i]}"]
    while q < n:
        if n >= 7 and q % 7 == 0:
            week = d + q + 7
            path.append(f"{week}{'<' if week < goal else '=' if week == goal else '>'}{goal}")
        q += 7 if n - q >= 7 else 1
        path.append(f"{d + q} {DAYS[(i + q) % 7]}")
    back = [f"{d + q} {DAYS[(i + q) % 7]}" for q in range(n, -1, -7)]
    back += [f"{d + q} {DAYS[(i + q) % 7]}" for q in range(n % 7 - 1, -1, -1)]
    total, answer = i + n, DAYS[(i + n) % 7]
    apart = f"{d + n}-{d}={n}, " if d else ""
    weeks = f", {total}-{total - total % 7}={total % 7}" if total >= 7 else ""
    return (
        f"to {goal}: {', '.join(path)}.",
        f"back from {answer}: {', '.join(back)}, want {DAYS[i]}.",
        f"{apart}{DAYS[i]} is {i}, {i}+{n}={total}{weeks}, {total % 7} is {answer}.",
    )


def _later(r: Random) -> Problem:
    m = r.randrange(12)
    d, after = r.randint(1, MONTH_DAYS[m]), MONTH_DAYS[(m + 1) % 12]
    n = r.randint(2, min(30, MONTH_DAYS[m] - d + after))
    total, length = d + n, MONTH_DAYS[m]
    thought = f"{MONTHS[m]} has {length} days. {_op('+', d, n)[0]} "
    if total > length:
        month, day = MONTHS[(m + 1) % 12], total - length
        thought += f"{total}>{length}, {_op('-', total, length)[0]} "
        thought += f"After {MONTHS[m]} comes {month}: {month} {day}."
    else:
        month, day = MONTHS[m], total
        thought += f"{total}{'=' if total == length else '<'}{length}. {month} {day}."
    question = phrase(r, _LATER).format(n=n, month=MONTHS[m], d=d)
    question += " It is not a leap year." if m == 1 else ""
    back = f"{month} {day} back {n}: "
    if total > length:
        back += f"{MONTHS[m]} has {length}, {day}+{length}={total}, "
    back += f"{total}-{n}={d}"
    rest = f"{length}-{d}={length - d} days left in {MONTHS[m]}"
    rest += f", {n}-{length - d}={day}" if total > length else f", {n} fit, {d}+{n}={day}"
    routes = f"{back}, want {d}.", f"{rest}. {month} {day}."
    key, answer = f"date {m} {d} {n}", f"{month} {day}"
    return exact("dates", "hard", key, question, answer, thought, routes=routes)


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


_SMALLER = (
    "How many {small} are in {n} {big}?",
    "Convert {n} {big} to {small}.",
    "How many {small} are {n} {big}?",
    "What are {n} {big} in {small}?",
    "How many {small} do {n} {big} make?",
    "Turn {n} {big} into {small}.",
    "Write {n} {big} as {small}.",
    "Give {n} {big} in {small}.",
)
_LARGER = (
    "How many {big} are {n} {small}?",
    "Convert {n} {small} to {big}.",
    "What are {n} {small} in {big}?",
    "How many {big} do {n} {small} make?",
    "Turn {n} {small} into {big}.",
    "Write {n} {small} as {big}.",
    "Give {n} {small} in {big}.",
)
_MIXED = (
    "How many {small} are {n} {big} and {extra} {small}?",
    "Convert {n} {big} and {extra} {small} to {small}.",
    "How many {small} do {n} {big} and {extra} {small} make?",
    "What are {n} {big} and {extra} {small} in {small}?",
    "Turn {n} {big} and {extra} {small} into {small}.",
    "{n} {big} and {extra} {small}: how many {small} is that?",
    "Write {n} {big} and {extra} {small} as {small}.",
    "Give {n} {big} and {extra} {small} in {small}.",
)
#: Before this, instances were split by how they were asked, so all up to here may have been
#: trained; evaluation asks beyond.
_OLD_UNITS = 60


def units(r: Random, level: str) -> Problem:
    """Convert to the smaller unit, either way, and mixed. Up to 99 of a unit, up to 999 where its
    factor is 100 or 1000; easy evaluations ask of the latter alone."""
    beyond = isinstance(r, Evaluation)
    decimal = [u for u in _UNITS if u[2] in (100, 1000)]
    big, small, factor = r.choice(decimal if beyond and level == "easy" else _UNITS)
    most = 999 if factor in (100, 1000) else 99
    n = r.randint(_OLD_UNITS + 1 if beyond else 2, most)
    if not beyond and r.random() < 0.5:
        n = r.randint(2, 9 if level == "easy" else _OLD_UNITS)
    one = f"1 {'foot' if big == 'feet' else big[:-1]} is {factor} {small}."
    told = {"big": big, "small": small}
    if level == "hard":
        extra = r.randint(1, factor - 1)
        text, result = _op("*", factor, n)
        answer = str(int(result) + extra)
        thought = f"{one} {text} {result}+{extra}={answer}."
        routes = (
            f"{rounded_up(n, factor)[:-1]}, {n * factor}+{extra}={answer}.",
            f"{_by_tens(n, factor)[:-1]}, {place_by_place(n * factor, extra)}",
        )
        key, asks = f"{n} {big} {extra} {small}", _MIXED
        told |= {"n": n, "extra": extra}
    elif level == "middle" and r.random() < 0.5:
        answer, thought = str(n), f"{one} {_divided(n, factor)}"
        routes = rounded_up(n, factor), _by_tens(n, factor)
        key, asks = f"{n * factor} {small} to {big}", _LARGER
        told["n"] = n * factor
    else:
        text, answer = _op("*", factor, n)
        thought = f"{one} {text}"
        routes = rounded_up(n, factor), _by_tens(n, factor)
        key, asks = f"{n} {big} to {small}", _SMALLER
        told["n"] = n
    question = phrase(r, asks).format(**told)
    return exact("units", level, key, question, answer, thought, "number", routes)


def _divided(n: int, factor: int) -> str:
    """``n * factor`` by ``factor``: zeros dropped, or the tens found first, then the rest."""
    whole, tens = n * factor, n - n % 10
    if factor in (100, 1000):
        return f"{whole} without {len(str(factor)) - 1} zeros is {n}. So {n}."
    parts, left = [], whole
    for part in (tens, n % 10):
        if part:
            parts.append(f"{factor}*{part}={factor * part}")
            parts += [f"{left}-{factor * part}={left - factor * part}"]
            left -= factor * part
    return f"{whole}/{factor}: {', '.join(parts)}. So {n}."


def _by_tens(n: int, factor: int) -> str:
    """``n`` times ``factor`` by the tens of ``n`` and the rest."""
    tens, ones = n - n % 10, n % 10
    if not tens or not ones:
        return f"{n}*{factor}={n * factor}."
    parts = f"{tens}*{factor}={tens * factor}, {ones}*{factor}={ones * factor}"
    return f"{parts}, {tens * factor}+{ones * factor}={n * factor}."


TASKS = {
    "word_problem": word_problem,
    "dates": dates,
    "units": units,
    "facts": facts,
}
