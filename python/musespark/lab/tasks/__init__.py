"""All tasks by name, and the one way to draw an item of either side of the split."""

from __future__ import annotations

from random import Random

from ..item import EFFORTS, LEVELS, Item, Problem, compose, is_evaluation
from . import (
    arithmetic,
    notes,
    order,
    pairs,
    pictures,
    puzzles,
    structured,
    tables,
    talk,
    text,
    tools,
    world,
)

TASKS = {
    **arithmetic.TASKS,
    **order.TASKS,
    **pairs.TASKS,
    **text.TASKS,
    **world.TASKS,
    **tables.TASKS,
    **tools.TASKS,
    **talk.TASKS,
    **pictures.TASKS,
    **notes.TASKS,
    **puzzles.TASKS,
    **structured.TASKS,
}

#: Tasks with nothing to hold out: talk, and closed lists of facts. Trained whole, never evaluated.
TRAINED_WHOLE = frozenset({"about", "story", "facts"})
#: Families whose accuracy is held to a goal; the others are reported.
GATED = (
    *("addition", "subtraction", "multiplication", "comparison", "sorting", "extreme", "letters"),
    *("word_problem", "table", "dates", "units", "ordering", "tool_call"),
    *("counting", "colors", "relations", "codes", "displays", "labels", "buttons", "bars", "blank"),
)
EVALUATED = tuple(name for name in TASKS if name not in TRAINED_WHOLE)


def split_of(task: str) -> str:
    """The name under which instances of ``task`` are split: tasks that share pictures share it."""
    return pictures.SPLIT if task in pictures.TASKS else task


def draw(rng: Random, task: str, level: str, *, evaluation: bool) -> Problem:
    """A problem of ``task`` on the wanted side of the split; the other side is drawn again."""
    while True:
        problem = TASKS[task](rng, level)
        if task in TRAINED_WHOLE or is_evaluation(split_of(task), problem.key) == evaluation:
            return problem


def draw_item(
    rng: Random, task: str, level: str, effort: str, *, evaluation: bool, error_rate: float = 0.0
) -> Item:
    """A problem of ``task`` told at ``effort``."""
    return compose(draw(rng, task, level, evaluation=evaluation), effort, rng, error_rate)


__all__ = [
    "EFFORTS",
    "EVALUATED",
    "GATED",
    "LEVELS",
    "TASKS",
    "TRAINED_WHOLE",
    "draw",
    "draw_item",
    "split_of",
]
