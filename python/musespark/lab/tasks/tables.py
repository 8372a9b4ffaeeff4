"""Tables: look up a cell, add up what passes a filter, compare groups."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from ..item import Evaluation, Problem, exact, phrase
from .arithmetic import add_steps, summed
from .words import NAMES

_COLUMNS = ("score", "age", "price", "points", "height", "weight", "count", "size")
_TEAMS = ("red", "blue", "green")
_CELL = (
    "What is the {c} of {n}?",
    "{n}'s {c}?",
    "Look up the {c} of {n}.",
    "How much {c} does {n} have?",
    "What {c} has {n}?",
    "Give the {c} of {n}.",
    "In the table, what is the {c} of {n}?",
    "Which {c} does {n} have?",
)
_BEST = (
    "Who has the {w} {c}?",
    "Find who has the {w} {c}.",
    "Which name has the {w} {c}?",
    "Name the one with the {w} {c}.",
    "Who is it that has the {w} {c}?",
    "Whose {c} is the {w}?",
)
#: The greatest and the least of some columns in a word of their own.
_IN_A_WORD = {"age": ("oldest", "youngest"), "height": ("tallest", "shortest")}
_WHO_IS = ("Who is the {}?", "Which one is the {}?", "Name the {}.", "Tell me who is the {}.")
_ABOVE = (
    "How many have a {c} above {v}?",
    "How many rows have a {c} above {v}?",
    "How many are there with a {c} above {v}?",
    "In how many rows is the {c} above {v}?",
    "Count those with a {c} above {v}.",
)
_TOTAL = (
    "What is the total {a} of those with a {c} above {v}?",
    "Add up the {a} of all with a {c} above {v}.",
    "Sum the {a} of those with a {c} above {v}.",
    "How much {a} do all with a {c} above {v} have together?",
    "Take those with a {c} above {v}. What is their total {a}?",
    "Where the {c} is above {v}, what is the total {a}?",
    "What is the sum of the {a} where the {c} is above {v}?",
    "Give the total {a} of all that have a {c} above {v}.",
    "What do those with a {c} above {v} have as total {a}?",
)
_GROUP = (
    "What is the highest {c} in team {g}?",
    "Find the highest {c} of team {g}.",
    "In team {g}, what is the highest {c}?",
    "Tell me the highest {c} of team {g}.",
    "Which {c} is the highest in team {g}?",
    "What is the greatest {c} in team {g}?",
    "Give the highest {c} in team {g}.",
    "How high does the {c} in team {g} go?",
)
_TEAM = (
    "Which team has the highest total {c}?",
    "Find the team with the highest total {c}.",
    "Which team's total {c} is the highest?",
    "Add up the {c} of each team. Which has the most?",
    "Name the team with the highest total {c}.",
    "By total {c}, which team is first?",
    "In which team is the total {c} highest?",
)


@dataclass
class _Table:
    """``values[j][i]``: column j of row i; ``lines`` as written, ``text`` with the head."""

    rows: list[str]
    columns: list[str]
    values: list[list[int]]
    teams: list[str]
    lines: list[str]
    text: str
    between: str


def _draw(r: Random, rows_n: int, columns_n: int, *, teams: bool = False) -> _Table:
    rows, columns = r.sample(NAMES, rows_n), r.sample(_COLUMNS, columns_n)
    values = [r.sample(range(1, 100), rows_n) for _ in columns]
    sides = [_TEAMS[i % 3] for i in range(rows_n)] if teams else []
    r.shuffle(sides)
    bar = r.random() < 0.3
    between = " | " if bar else ","
    head = between.join(["name", *(["team"] if teams else []), *columns])
    lines = [
        between.join([rows[i], *sides[i : i + 1], *(str(c[i]) for c in values)])
        for i in range(rows_n)
    ]
    return _Table(rows, columns, values, sides, lines, "\n".join([head, *lines]), between)


def table(r: Random, level: str) -> Problem:
    """4×3: look up; 8×4: add up what passes a filter; 15×5: the greatest of a group, or the group
    with the greatest total. Columns count the names. In training also smaller ones, and the
    greatest, the least and a count at each level."""
    if level == "easy":
        if isinstance(r, Evaluation):
            return _plain_question(r, level, _draw(r, 4, 2), "cell")
        made = _draw(r, r.randint(2, 5), r.randint(1, 3))
        return _plain_question(r, level, made, r.choice(("cell", "cell", "most", "least", "above")))
    if not isinstance(r, Evaluation) and r.random() < 0.4:
        made = _draw(r, *{"middle": (6, 3), "hard": (10, 3)}[level])
        return _plain_question(r, level, made, r.choice(("cell", "most", "least", "above")))
    if level == "middle":
        return _filtered(r, _draw(r, 8, 3))
    made = _draw(r, 15, 3, teams=True)
    return _greatest_of(r, made) if r.random() < 0.7 else _greatest_total(r, made)


def _problem(
    level: str,
    key: str,
    made: _Table,
    ask: str,
    answer: str,
    thought: str,
    routes: tuple[str, str],
) -> Problem:
    """``routes``: a check, and another way."""
    rows = [line.replace(made.between, ",") for line in made.lines]
    question = f"{made.text}\n{ask}"
    return exact("table", level, f"{key} {rows}", question, answer, thought, routes=routes)


def _plain_question(r: Random, level: str, made: _Table, kind: str) -> Problem:
    j, i = r.randrange(len(made.columns)), r.randrange(len(made.rows))
    column, cells = made.columns[j], made.values[j]
    at_rows = _at_rows(made, j)
    if kind == "cell":
        ask = phrase(r, _CELL).format(c=column, n=made.rows[i])
        answer = str(cells[i])
        down = ", ".join(f"{n} {v}" for n, v in zip(made.rows, cells, strict=True))
        thought = f"{made.lines[i]}\n{_named(made, i)}. {column} {answer}."
        routes = (
            f"{column} down: {down}; {made.rows[i]} is row {i + 1}: {answer}.",
            f"{column} is number {j + 1}. {made.lines[i]}: {answer}.",
        )
    elif kind == "above":
        limit, seen, parts = r.randint(20, 80), 0, []
        ask = phrase(r, _ABOVE).format(c=column, v=limit)
        for at, v in zip(at_rows, cells, strict=True):
            seen += v > limit
            parts.append(f"{at}{_sign(v, limit)}{limit} {seen}")
        answer, thought = str(seen), "\n".join([*parts, f"So {seen}."])
        above, below = _split_by(made.rows, cells, limit)
        routes = (
            f"not above: {below}, {len(cells) - seen}. {len(cells)}-{len(cells) - seen}={seen}.",
            f"above: {above}, {seen}.",
        )
    else:
        best = (max if kind == "most" else min)(range(len(cells)), key=cells.__getitem__)
        word = "highest" if kind == "most" else "lowest"
        ask, answer = phrase(r, _BEST).format(w=word, c=column), made.rows[best]
        if column in _IN_A_WORD and r.random() < 0.5:
            ask = phrase(r, _WHO_IS).format(_IN_A_WORD[column][kind == "least"])
        thought = "\n".join([*at_rows, f"{word.capitalize()} {cells[best]}: {answer}."])
        sign, side = ("<", "above") if kind == "most" else (">", "below")
        each = ", ".join(f"{v}{sign}{cells[best]}" for v in cells if v != cells[best])
        order = " ".join(map(str, sorted(cells, reverse=kind == "most")))
        routes = (
            f"{each}. None {side} {cells[best]}.",
            f"in order {order}. {cells[best]} is {answer}.",
        )
    return _problem(level, f"{kind} {column}", made, ask, answer, thought, routes)


def _at_rows(made: _Table, j: int) -> list[str]:
    """Each row with the names of its columns, then its value in column ``j``: one picked out of the
    question, or out of a row without names, came from another column as often as not."""
    return [
        f"{name}: {_named(made, i)}; {made.columns[j]} {made.values[j][i]}"
        for i, name in enumerate(made.rows)
    ]


def _named(made: _Table, i: int) -> str:
    """The values of row ``i`` with the names of their columns."""
    return ", ".join(f"{c} {v}" for c, v in zip(made.columns, _row(made, i), strict=True))


def _row(made: _Table, i: int) -> list[int]:
    return [c[i] for c in made.values]


def _split_by(names: list[str], values: list[int], limit: int) -> tuple[str, str]:
    """Who is above ``limit``, and who is not, as texts."""
    sides: tuple[list[str], list[str]] = [], []
    for name, v in zip(names, values, strict=True):
        sides[v <= limit].append(f"{name} {v}")
    above, below = (", ".join(side) or "none" for side in sides)
    return above, below


def _sign(v: int, limit: int) -> str:
    return ">" if v > limit else "<" if v < limit else "="


def _filtered(r: Random, made: _Table) -> Problem:
    """The sum of one column over the two to four rows above a limit in another.

    Each row of a thought ends with the sum so far: told at the end, or first with the second of
    those rows, what is next to add was forgotten or skipped. The thought begins with what is asked:
    without that, weights of 122 M tokens compared a column that was not asked for."""
    a, b = r.sample(range(3), 2)
    by, added = made.values[b], made.values[a]
    ranked = sorted(by, reverse=True)
    count = r.randint(2, 4)
    limit = r.randint(ranked[count], ranked[count - 1] - 1)
    hits = [i for i, v in enumerate(by) if v > limit]
    ask = phrase(r, _TOTAL).format(a=made.columns[a], c=made.columns[b], v=limit)
    lines, total = [f"{made.columns[a]} where {made.columns[b]}>{limit}."], 0
    for i, at in enumerate(_at_rows(made, b)):
        line = f"{at}{_sign(by[i], limit)}{limit}: "
        if i in hits:
            line += f"{made.columns[a]} {added[i]}, {total}+{added[i]}: "
            line += add_steps(total, added[i])[0]
            total += added[i]
        else:
            line += f"{total}."
        lines.append(line)
    thought = "\n".join([*lines, f"So {total}."])
    key = f"total {made.columns[a]} {made.columns[b]} {limit}"
    back = summed([added[i] for i in reversed(hits)])
    up = "; ".join(
        f"{made.rows[i]} {made.columns[b]} {by[i]}{_sign(by[i], limit)}{limit}"
        + (f" {made.columns[a]} {added[i]}" if i in hits else "")
        for i in reversed(range(len(by)))
    )
    above, _ = _split_by(made.rows, by, limit)
    of_these = ", ".join(f"{made.rows[i]} {added[i]}" for i in hits)
    forth = summed([added[i] for i in hits])
    routes = (
        f"from below {up}. {back}.",
        f"above: {above}. {made.columns[a]} of these {of_these}. {forth}.",
    )
    return _problem("middle", key, made, ask, str(total), thought, routes)


def _sums(values: list[int]) -> str:
    """Added up one by one, each sum in one step."""
    total, parts = values[0], []
    for v in values[1:]:
        parts.append(f"{total}+{v}={total + v}")
        total += v
    return ", ".join(parts)


def _greatest_of(r: Random, made: _Table) -> Problem:
    """The greatest of a column in one team. Each row is copied up to its team, which says whether
    it goes on, and one that does ends with the greatest so far."""
    j, group = r.randrange(3), r.choice(_TEAMS)
    cells = [v for v, t in zip(made.values[j], made.teams, strict=True) if t == group]
    lines, best = [f"{made.columns[j]} of {group}."], 0
    for i, team in enumerate(made.teams):
        line = made.between.join((made.rows[i], team))
        if team == group:
            best = max(best, made.values[j][i])
            cell = f"{made.columns[j]} {made.values[j][i]}"
            line += f": {_named(made, i)}; {cell}, highest {best}"
        lines.append(line)
    ask = phrase(r, _GROUP).format(c=made.columns[j], g=group)
    thought = "\n".join([*lines, f"So {best}."])
    key = f"group {made.columns[j]} {group}"
    each = ", ".join(f"{v}<{max(cells)}" for v in cells if v != max(cells))
    rows = list(zip(made.rows, made.teams, made.values[j], strict=True))
    up = ", ".join(f"{n} {t} {v}" if t == group else f"{n} {t}" for n, t, v in reversed(rows))
    order = " ".join(map(str, sorted(cells, reverse=True)))
    routes = (
        f"from below {up}; {each}. None above {max(cells)}.",
        f"{group} has {', '.join(f'{n} {v}' for n, t, v in rows if t == group)}; in order {order}. "
        f"First {max(cells)}.",
    )
    return _problem("hard", key, made, ask, str(max(cells)), thought, routes)


def _greatest_total(r: Random, made: _Table) -> Problem:
    j = r.randrange(3)
    parts, backs, running, totals = [], [], [], dict.fromkeys(_TEAMS, 0)
    for group in _TEAMS:
        cells = [v for v, t in zip(made.values[j], made.teams, strict=True) if t == group]
        parts.append(f"{group}: {_sums(cells)}.")
        backs.append(f"{group}: {_sums(cells[::-1])}.")
    for team, v in zip(made.teams, made.values[j], strict=True):
        totals[team] += v
        running.append(f"{team} {totals[team]}")
    best = max(totals, key=totals.__getitem__)
    if sorted(totals.values())[1] == totals[best]:  # two teams share the first place
        return _greatest_of(r, made)
    listed = ", ".join(f"{g} {v}" for g, v in totals.items())
    ask = phrase(r, _TEAM).format(c=made.columns[j])
    thought = f"{' '.join(parts)} {listed}. Highest {totals[best]}: {best}."
    routes = f"from below {' '.join(backs)}", f"row by row {', '.join(running)}. {best}."
    return _problem("hard", f"team {made.columns[j]}", made, ask, best, thought, routes)


TASKS = {"table": table}
