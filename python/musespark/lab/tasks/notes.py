"""Answering from retrieved notes: find the one that says it, quote it, name its number."""

from __future__ import annotations

from random import Random

from ..item import Problem, phrase
from .words import CITIES, COLORS, FOODS, NAMES, PLACES, THINGS

_NOT_THERE = "The notes do not say."
#: What a note says of a name, and how it is asked for: (note, questions, values).
_SUBJECTS = (
    (
        "{n} lives in {v}.",
        ("Where does {n} live?", "In which city does {n} live?", "Name the city {n} lives in."),
        CITIES,
    ),
    (
        "{n} has {v}.",
        ("What does {n} have?", "What things does {n} have?", "Name the things {n} has."),
        THINGS,
    ),
    (
        "{n} likes {v}.",
        ("What does {n} like?", "Which food does {n} like?", "Name the food {n} likes."),
        FOODS,
    ),
    (
        "{n}'s door is {v}.",
        ("What color is {n}'s door?", "Which color has {n}'s door?", "Name {n}'s door's color."),
        COLORS,
    ),
    (
        "{n} works at the {v}.",
        ("Where does {n} work?", "At which place is {n}'s work?", "Name the place {n} works at."),
        PLACES,
    ),
)
_HEADS = (
    "Notes:\n{notes}\n{ask}",
    "Answer from these notes.\n{notes}\n{ask}",
    "{ask}\nNotes:\n{notes}",
    "Here is what I found:\n{notes}\n{ask}",
    "Use the notes to answer.\n{notes}\n{ask}",
)


def notes(r: Random, level: str) -> Problem:
    """3, 6 or 10 notes; the answer ends with the number of the note it is from. One question in
    eight has no note."""
    count = {"easy": 3, "middle": 6, "hard": 10}[level]
    told = []
    for name in r.sample(NAMES, count + 1):
        note, asks, values = r.choice(_SUBJECTS)
        value = r.choice(values)
        told.append((note.format(n=name, v=value), phrase(r, asks).format(n=name), value))
    missing = told.pop()
    i = r.randrange(count)
    about, ask, answer = i + 1, told[i][1], f"{told[i][2]} [{i + 1}]"
    thought = f'Note {i + 1}: "{told[i][0]}" So {answer}.'
    if r.random() < 0.125:
        about, ask, answer = missing[0], missing[1], _NOT_THERE
        thought = "No note is about that."
    listed = "\n".join(f"[{k}] {text}" for k, (text, _, _) in enumerate(told, 1))
    question = phrase(r, _HEADS).format(notes=listed, ask=ask)
    return Problem(
        "notes", level, f"{listed} {about}", question, answer, steps=lambda e: (thought, answer)
    )


TASKS = {"notes": notes}
