"""Reading that is reported and not gated: facts of a short story, answers as JSON to a schema."""

from __future__ import annotations

import json
from random import Random

from ..item import Evaluation, Problem, phrase
from .words import ADJECTIVES, ANIMALS, CITIES, COLORS, FOODS, NAMES, PLACES

_FOUND = ("ball", "key", "box", "hat", "stone", "map", "bell", "boat", "kite", "coin")


def story_facts(r: Random, level: str) -> Problem:
    """A story of one, two or three creatures; something that it says of one of them is asked."""
    count = {"easy": 1, "middle": 2, "hard": 3}[level]
    names = r.sample(NAMES, count)
    told, asks = [], []
    for name, kind in zip(names, r.sample(ANIMALS, count), strict=True):
        trait, place, food = r.choice(ADJECTIVES), r.choice(PLACES), r.choice(FOODS)
        color, thing = r.choice(COLORS), r.choice(_FOUND)
        lines = (
            f"There was a {trait} {kind} named {name}.",
            f"{name} lived near the {place} and liked to eat {food}.",
            f"One day {name} found a {color} {thing}.",
        )
        told += lines
        asks += [
            (("What did {n} find?", "Which thing was found by {n}?"), thing, lines[2], name),
            (
                ("What color was the thing that {n} found?", "In which color was {n}'s find?"),
                color,
                lines[2],
                name,
            ),
            (("What did {n} like to eat?", "Which food did {n} like?"), food, lines[1], name),
            (("Where did {n} live?", "Near which place was {n}'s home?"), place, lines[1], name),
            (("What kind of animal is {n}?", "Which animal is {n}?"), kind, lines[0], name),
        ]
    forms, answer, line, name = r.choice(asks)
    ask = phrase(r, forms).format(n=name)
    thought = f'It says: "{line}" So {answer}.'
    text = " ".join(told)
    return Problem(
        "story_facts",
        level,
        f"{text} {forms[0]} {name}",
        f"{text}\n{ask}",
        answer,
        steps=lambda e: (thought, answer),
    )


#: name of a property: (JSON type, what is said of a person, what may stand there)
_PROPERTIES = {
    "age": ("integer", "is {v} years old", lambda r: r.randint(3, 99)),
    "city": ("string", "lives in {v}", lambda r: r.choice(CITIES)),
    "food": ("string", "likes {v}", lambda r: r.choice(FOODS)),
    "color": ("string", "has a {v} door", lambda r: r.choice(COLORS)),
    "animal": ("string", "has a {v}", lambda r: r.choice(ANIMALS)),
    "member": ("boolean", "", lambda r: r.random() < 0.5),
}
_GIVE = (
    "{t}\nAnswer as JSON to this schema: {s}",
    "{t}\nGive it as JSON. Schema: {s}",
    "Schema: {s}\nWrite as JSON: {t}",
    "Put this into JSON that fits {s}\n{t}",
)
#: Of the same, for training: a caller may hold the answer to a schema without telling it.
_TELL = (
    "{t} Give this as JSON with {k}.",
    "{t}\nAnswer as JSON: {k}.",
    "Write as JSON with {k}: {t}",
    "{t} As JSON ({k})?",
    "Which {k}? Answer as JSON. {t}",
)


def json_answers(r: Random, level: str) -> Problem:
    """A person's two facts; four facts; a list of two or three people with two facts each."""
    count = {"easy": 2, "middle": 4, "hard": 2}[level]
    chosen = r.sample(list(_PROPERTIES), count)
    names = r.sample(NAMES, r.randint(2, 3) if level == "hard" else 1)
    people, told = [], []
    for name in names:
        values = {key: _PROPERTIES[key][2](r) for key in chosen}
        people.append({"name": name, **values})
        told.append(f"{name} {' and '.join(_said(k, v) for k, v in values.items())}.")
    types = {"name": "string"} | {k: _PROPERTIES[k][0] for k in chosen}
    one = {
        "type": "object",
        "properties": {k: {"type": v} for k, v in types.items()},
        "required": list(types),
    }
    schema = {"type": "array", "items": one} if level == "hard" else one
    answer = json.dumps(people if level == "hard" else people[0])
    text = " ".join(told)
    listed = "; ".join(", ".join(f"{k}={v}" for k, v in p.items()) for p in people)
    question = phrase(r, _GIVE).format(t=text, s=json.dumps(schema))
    if not isinstance(r, Evaluation) and r.random() < 0.5:
        question = r.choice(_TELL).format(t=text, k=", ".join(types))
    return Problem(
        "json_answers",
        level,
        f"{text} {' '.join(chosen)}",
        question,
        answer,
        "json",
        steps=lambda e: (f"{listed}.", answer),
    )


def _said(key: str, value: object) -> str:
    if key == "member":
        return "is a member" if value else "is no member"
    return _PROPERTIES[key][1].format(v=value)


TASKS = {"story_facts": story_facts, "json_answers": json_answers}
