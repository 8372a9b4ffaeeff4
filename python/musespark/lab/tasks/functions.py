"""Functions that exercises offer: a pool of everyday ones, how they are asked for, and made up ones
that nobody calls."""

from __future__ import annotations

from random import Random

from ..item import Evaluation
from .words import THINGS, WORDS, invented, split_words

#: kind: (names it may go by, description, names of each parameter, requests)
POOL = {
    "weather": (
        ("get_weather", "weather", "forecast"),
        "Current weather of a city.",
        (("city", "location"),),
        (
            "What is the weather in {0}?",
            "How is the weather in {0} today?",
            "Weather in {0}?",
            "Tell me the weather in {0}.",
            "What will the weather be in {0}?",
            "I want to know the weather in {0}.",
            "Is it raining in {0}?",
            "I am going to {0}. What is the sky like there?",
        ),
    ),
    "timer": (
        ("set_timer", "timer", "start_timer"),
        "Start a timer.",
        (("minutes", "duration"),),
        (
            "Set a timer for {0} minutes.",
            "Start a {0} minute timer.",
            "Timer for {0} minutes, please.",
            "I need a timer for {0} minutes.",
            "Wake me in {0} minutes.",
            "Give me {0} minutes on the timer.",
            "Count down {0} minutes.",
            "Tell me when {0} minutes are over.",
        ),
    ),
    "note": (
        ("make_note", "add_note", "note"),
        "Save a note.",
        (("text", "note"),),
        (
            "Make a note that says {0}.",
            "Note down: {0}",
            "Write a note: {0}",
            "Save a note: {0}",
            "Please note {0}.",
            "Put down {0} as a note.",
            "I want a note that says {0}.",
            "Keep this for me: {0}",
        ),
    ),
    "mail": (
        ("send_mail", "send_email", "email"),
        "Send a mail.",
        (("to", "recipient"), ("text", "body")),
        (
            "Send {0} a mail that says {1}.",
            "Write to {0}: {1}",
            "Email {0}: {1}",
            "Mail {0}: {1}",
            "Send {0} this mail: {1}",
            "Please email {0} that {1}.",
            "Tell {0} by email: {1}",
            "Let {0} know by mail: {1}",
        ),
    ),
    "convert": (
        ("convert", "convert_money", "exchange"),
        "Convert money.",
        (("amount", "value"), ("to", "currency")),
        (
            "Convert {0} dollars to {1}.",
            "How much is {0} dollars in {1}?",
            "What are {0} dollars in {1}?",
            "I have {0} dollars. What is that in {1}?",
            "Turn {0} dollars into {1}.",
            "{0} dollars in {1}?",
            "Change {0} dollars into {1}.",
        ),
    ),
    "search": (
        ("search", "web_search", "find"),
        "Search the web.",
        (("query", "q"),),
        (
            "Search for {0}.",
            "Look up {0}.",
            "Find pages about {0}.",
            "Search the web for {0}.",
            "Please look for {0}.",
            "Find {0} on the web.",
            "What does the web say about {0}?",
            "What can you find on {0}?",
        ),
    ),
    "calc": (
        ("calculate", "calculator", "evaluate"),
        "Evaluate an expression.",
        (("expression", "expr"),),
        (
            "Use the calculator for {0}.",
            "Compute {0} with the tool.",
            "Calculate {0} with a tool.",
            "With the tool, what is {0}?",
            "Ask the calculator for {0}.",
            "Give {0} to the calculator.",
            "I want the tool to compute {0}.",
            "Let the tool work out {0}.",
        ),
    ),
    "light": (
        ("set_light", "light", "lamp"),
        "Switch the light of a room.",
        (("room", "place"), ("state", "mode")),
        (
            "Turn {1} the light in the {0}.",
            "Switch the {0} light {1}.",
            "Put the light in the {0} {1}.",
            "Please switch {1} the light in the {0}.",
            "Light {1} in the {0}.",
            "The {0} light should be {1}.",
            "I want the light of the {0} {1}.",
        ),
    ),
    "order": (
        ("order_food", "order", "buy"),
        "Order food.",
        (("item", "food"), ("count", "quantity")),
        (
            "Order {1} {0}.",
            "Buy {1} {0}, please.",
            "Please order {1} {0}.",
            "I would like {1} {0}.",
            "Get me {1} {0}.",
            "Bring {1} {0}.",
            "We need {1} {0}.",
        ),
    ),
    "book": (
        ("book_train", "buy_ticket", "train"),
        "Book a train.",
        (("from", "origin"), ("to", "destination")),
        (
            "Book a train from {0} to {1}.",
            "I need a ticket from {0} to {1}.",
            "I want to go from {0} to {1} by train.",
            "Buy a ticket from {0} to {1}.",
            "A train from {0} to {1}, please.",
            "Please book me from {0} to {1}.",
            "Get me on a train from {0} to {1}.",
        ),
    ),
    "time": (
        ("get_time", "clock", "time_in"),
        "Local time of a city.",
        (("city", "location"),),
        (
            "What time is it in {0}?",
            "Tell me the time in {0}.",
            "Time in {0}?",
            "What is the time in {0} now?",
            "Say what time it is in {0}.",
            "Which time do they have in {0}?",
            "How late is it in {0}?",
        ),
    ),
    "remind": (
        ("remind", "add_reminder", "reminder"),
        "Set a reminder.",
        (("text", "about"), ("day", "date")),
        (
            "Remind me of {0} on {1}.",
            "Set a reminder for {1}: {0}",
            "Do not let me forget {0} on {1}.",
            "On {1}, remind me of {0}.",
            "I need a reminder on {1}: {0}",
            "Make a reminder of {0} for {1}.",
            "On {1} I must not forget {0}.",
        ),
    ),
}
#: Parameters that are whole numbers.
NUMERIC = {"minutes", "duration", "amount", "value", "count", "quantity"}
#: What a parameter's description may say of it, and further parameters that may be left out.
_SAID = {
    "city": "name of a city",
    "location": "where",
    "minutes": "how long",
    "duration": "in minutes",
    "text": "what to write",
    "note": "what to keep",
    "to": "where to",
    "recipient": "who gets it",
    "amount": "how much",
    "query": "what to look for",
    "expression": "numbers and signs",
    "room": "which room",
    "state": "on or off",
    "item": "what",
    "count": "how many",
    "day": "which day",
}
_OPTIONAL = {
    "unit": {"type": "string", "default": "metric"},
    "express": {"type": "boolean", "default": False},
    "limit": {"type": "integer", "default": 10},
    "language": {"type": "string", "description": "of the answer", "default": "en"},
    "quiet": {"type": "boolean", "default": True},
    "priority": {"type": "integer", "enum": [1, 2, 3], "default": 2},
}


def define(kind: str, r: Random) -> tuple[dict, str, list[str]]:
    """The tool ``kind`` of the pool as requests offer it, its name, and the names of its
    parameters. In training some parameters are described, and there may be one more that can be
    left out."""
    names, description, parameters, _ = POOL[kind]
    name, keys = r.choice(names), [r.choice(p) for p in parameters]
    properties = {k: {"type": "integer" if k in NUMERIC else "string"} for k in keys}
    if not isinstance(r, Evaluation) and r.random() < 0.3:
        for k in keys:
            if k in _SAID and r.random() < 0.6:
                properties[k]["description"] = _SAID[k]
        if r.random() < 0.4:
            more = r.choice([k for k in _OPTIONAL if k not in keys])
            properties[more] = dict(_OPTIONAL[more])
    return _tool(name, description, properties, keys), name, keys


def _tool(name: str, description: str, properties: dict, required: list[str]) -> dict:
    schema = {"type": "object", "properties": properties, "required": required}
    function = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "function": function}


_VERBS = split_words(
    "get set list find read make send open close check add remove update start stop"
)
_TYPES = ("string", "string", "integer", "number", "boolean")


def _example(r: Random, thing: str) -> str:
    """What a parameter is to be, mostly with numbers in it: of weights that had seen none there,
    they went into sums."""
    a, b = r.randint(0, 99), r.randint(10, 5000)
    date = f"{r.randint(1950, 2060)}-{r.randint(1, 12):02}-{r.randint(1, 31):02}"
    return r.choice(
        (
            f"{r.choice(WORDS)} of the {thing}",
            f"as {date}",
            f"{a} to {b}",
            f"such as {r.choice(WORDS)}, {r.choice(THINGS)}, {a} or {r.choice(WORDS)}{b}",
            f"a number, {b} at most",
            f"{r.choice(WORDS)} + - * / ( ) and {r.choice(WORDS)}",
            f"one of {a}, {a + 1}, {b}",
        )
    )


def _made_up(r: Random) -> dict:
    """A function that no request asks for."""
    verb = r.choice(_VERBS)
    thing = r.choice((r.choice(WORDS), r.choice(THINGS), invented(r)))
    name = r.choice((f"{verb}_{thing}", f"{thing}_{verb}", thing, f"{verb}{thing.capitalize()}"))
    description = r.choice(
        (
            f"{verb.capitalize()} the {thing}.",
            f"{verb.capitalize()} a {thing} of the {r.choice(WORDS)}.",
            f"{verb.capitalize()} {thing} or {r.choice(THINGS)}. For any {r.choice(WORDS)}.",
        )
    )
    keys = r.sample((*WORDS, "name", "path", "date", "id", "count", "text"), r.randint(0, 3))
    properties = {k: {"type": r.choice(_TYPES)} for k in keys}
    for value in properties.values():
        if r.random() < 0.5:
            value["description"] = _example(r, thing)
        if r.random() < 0.15 and value["type"] == "integer":
            value["default"] = r.randint(0, 99)
    return _tool(name, description, properties, [k for k in keys if r.random() < 0.8])


def spare(r: Random, count: int, but: frozenset[str] = frozenset()) -> list[dict]:
    """``count`` tools that an exercise without tools has no use for: no calculator, and none of the
    kinds ``but``."""
    kinds = r.sample([k for k in POOL if k not in {"calc", *but}], count)
    return [_made_up(r) if r.random() < 0.5 else define(k, r)[0] for k in kinds]
