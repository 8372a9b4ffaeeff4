"""All tasks with a picture: one question, or several about one picture."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from ..item import Problem, is_evaluation
from . import figures, panels, pointing, scenes, zooming
from .scenes import Asker

SCENES: dict[str, Callable[[Random, str], Asker]] = {
    **scenes.SCENES,
    **panels.SCENES,
    **zooming.SCENES,
    **figures.SCENES,
    **pointing.SCENES,
}

#: All picture tasks split as one, so that a scene held out from one task is held out from each.
SPLIT = "picture"


def ask(r: Random, task: str, level: str) -> Problem:
    """A picture and one question of ``task`` about it."""
    while True:
        problem = SCENES[task](r, level)(r)
        if problem:
            return problem


def ask_several(r: Random, task: str, level: str, count: int, *, evaluation: bool) -> list[Problem]:
    """Up to ``count`` different questions about one picture of the wanted side of the split.

    A picture of shapes is asked anything, whichever of the shapes' tasks was drawn.
    """
    while True:
        asker = scenes.shapes(r, level) if task in scenes.SCENES else SCENES[task](r, level)
        problems: dict[tuple[str, str], Problem] = {}
        for _ in range(2 * count):
            problem = asker(r)
            if problem and len(problems) < count:
                problems.setdefault((problem.answer, problem.task), problem)
        found = list(problems.values())
        if found and is_evaluation(SPLIT, found[0].key) == evaluation:
            return found


TASKS = {task: (lambda r, level, task=task: ask(r, task, level)) for task in SCENES}
