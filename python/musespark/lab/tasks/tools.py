"""Tool use: choose a function, fill its arguments, report its result, recover, or say that none
fits."""

from __future__ import annotations

from random import Random

from ..item import Problem, phrase, value_of
from .words import CITIES, FOODS, NAMES, WORDS

# kind: (names it may go by, description, {parameter names: type}, requests, words for the reply)
_POOL = {
    "weather": (
        ("get_weather", "weather", "forecast"),
        "Current weather of a city.",
        (("city", "location"),),
        (
            "What is the weather in {0}?",
            "How is the weather in {0} today?",
            "Weather in {0}?",
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
            "Change {0} dollars into {1}.",
        ),
    ),
    "search": (
        ("search", "web_search", "find"),
        "Search the web.",
        (("query", "q"),),
        ("Search for {0}.", "Look up {0}.", "Find pages about {0}.", "What can you find on {0}?"),
    ),
    "calc": (
        ("calculate", "calculator", "evaluate"),
        "Evaluate an expression.",
        (("expression", "expr"),),
        (
            "Use the calculator for {0}.",
            "Compute {0} with the tool.",
            "Calculate {0} with a tool.",
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
            "I want the light of the {0} {1}.",
        ),
    ),
    "order": (
        ("order_food", "order", "buy"),
        "Order food.",
        (("item", "food"), ("count", "quantity")),
        ("Order {1} {0}.", "Buy {1} {0}, please.", "We need {1} {0}."),
    ),
    "book": (
        ("book_train", "buy_ticket", "train"),
        "Book a train.",
        (("from", "origin"), ("to", "destination")),
        (
            "Book a train from {0} to {1}.",
            "I need a ticket from {0} to {1}.",
            "Get me on a train from {0} to {1}.",
        ),
    ),
    "time": (
        ("get_time", "clock", "time_in"),
        "Local time of a city.",
        (("city", "location"),),
        ("What time is it in {0}?", "Tell me the time in {0}.", "How late is it in {0}?"),
    ),
    "remind": (
        ("remind", "add_reminder", "reminder"),
        "Set a reminder.",
        (("text", "about"), ("day", "date")),
        (
            "Remind me of {0} on {1}.",
            "Set a reminder for {1}: {0}",
            "On {1} I must not forget {0}.",
        ),
    ),
}
_NUMERIC = {"minutes", "duration", "amount", "value", "count", "quantity"}


def _values(kind: str, r: Random) -> list[str]:
    word = " ".join(r.choice(WORDS) for _ in range(r.randint(1, 2)))
    return {
        "weather": lambda: [r.choice(CITIES)],
        "time": lambda: [r.choice(CITIES)],
        "timer": lambda: [str(r.randint(1, 90))],
        "note": lambda: [word],
        "search": lambda: [word],
        "mail": lambda: [r.choice(NAMES), word],
        "convert": lambda: [str(r.randint(1, 500)), r.choice(("euros", "pounds", "yen", "francs"))],
        "calc": lambda: [f"{r.randint(10, 9999)}{r.choice('+-*')}{r.randint(10, 999)}"],
        "light": lambda: [
            r.choice(("kitchen", "bedroom", "hall", "bathroom", "cellar")),
            r.choice(("on", "off")),
        ],
        "order": lambda: [r.choice(FOODS), str(r.randint(2, 12))],
        "book": lambda: r.sample(CITIES, 2),
        "remind": lambda: [word, r.choice(("Monday", "Tuesday", "Friday", "Sunday"))],
    }[kind]()


def _define(kind: str, r: Random) -> tuple[dict, str, list[str]]:
    names, description, parameters, _ = _POOL[kind]
    name, keys = r.choice(names), [r.choice(p) for p in parameters]
    properties = {k: {"type": "integer" if k in _NUMERIC else "string"} for k in keys}
    schema = {"type": "object", "properties": properties, "required": keys}
    return (
        {
            "type": "function",
            "function": {"name": name, "description": description, "parameters": schema},
        },
        name,
        keys,
    )


def tool_call(r: Random, level: str) -> Problem:
    """One of 1–2 functions; one of 3–5; several calls, a result to report, an error to recover
    from, or none that fits."""
    n = {"easy": r.randint(1, 2), "middle": r.randint(3, 5), "hard": r.randint(2, 3)}[level]
    kinds = r.sample(list(_POOL), n + 1)
    spare, kinds = kinds[0], kinds[1:]
    defined = [_define(k, r) for k in kinds]
    tools = [d[0] for d in defined]
    if level == "hard":
        if r.random() < 0.25:
            return _several(r, tools, kinds, defined)
        i = r.randrange(n)
        return r.choice((_none_fits, _report, _recover))(r, tools, spare, kinds[i], defined[i])
    i = r.randrange(n)
    values = _values(kinds[i], r)
    question = phrase(r, _POOL[kinds[i]][3]).format(*values)
    call = _call(defined[i], values)
    check, second = _routes([(defined[i], call)], tools)
    return Problem(
        "tool_call",
        level,
        question + " " + " ".join(d[1] for d in defined),
        question,
        "",
        "call",
        steps=lambda e: (f"{defined[i][1]}: {_pairs(call)}.", ""),
        check=lambda got: (check, True),
        second=second,
        tools=tools,
        calls=[call],
    )


def _routes(chosen: list[tuple[tuple, dict]], tools: list[dict]) -> tuple[str, str]:
    """A check: what each function wants, and that it is given; and another way: from what the
    functions are for."""
    parts, used = [], {call["name"] for _, call in chosen}
    for (_, name, keys), call in chosen:
        given = ", ".join(f"{k} is {call['arguments'][k]}" for k in keys)
        parts.append(f"{name} wants {', '.join(keys)}: {given}")
    told = []
    for tool in tools:
        function = tool["function"]
        fits = "yes" if function["name"] in used else "no"
        told.append(f"{function['name']}: {function['description'][:-1]}, {fits}")
    return f"{'; '.join(parts)}.", f"{'; '.join(told)}."


_TOGETHER = ("{} {}", "{} And: {}", "{} Then: {}", "Two things: {} {}")


def _several(r: Random, tools: list, kinds: list[str], defined: list[tuple]) -> Problem:
    """Two requests in one message: two calls, in their order."""
    chosen = r.sample(range(len(kinds)), 2)
    told = [_values(kinds[i], r) for i in chosen]
    asks = [
        phrase(r, _POOL[kinds[i]][3]).format(*values)
        for i, values in zip(chosen, told, strict=True)
    ]
    asks = [a if a[-1] in ".?!" else f"{a}." for a in asks]
    calls = [_call(defined[i], values) for i, values in zip(chosen, told, strict=True)]
    thought = "; ".join(f"{c['name']}: {_pairs(c)}" for c in calls)
    check, second = _routes([(defined[i], c) for i, c in zip(chosen, calls, strict=True)], tools)
    question = phrase(r, _TOGETHER).format(*asks)
    return Problem(
        "tool_call",
        "hard",
        f"several {' '.join(asks)} {' '.join(c['name'] for c in calls)}",
        question,
        "",
        "call",
        steps=lambda e: (f"{thought}.", ""),
        check=lambda got: (check, True),
        second=second,
        tools=tools,
        calls=calls,
    )


def _call(defined: tuple[dict, str, list[str]], values: list[str]) -> dict:
    _, name, keys = defined
    return {
        "name": name,
        "arguments": {k: int(v) if k in _NUMERIC else v for k, v in zip(keys, values, strict=True)},
    }


def _pairs(call: dict) -> str:
    return ", ".join(f"{k}={v}" for k, v in call["arguments"].items())


def _none_fits(r: Random, tools: list, spare: str, kind: str, defined: tuple) -> Problem:
    question = phrase(r, _POOL[spare][3]).format(*_values(spare, r))
    answer = "I have no tool for that."
    names = ", ".join(t["function"]["name"] for t in tools)
    told = "; ".join(f"{t['function']['name']}: {t['function']['description'][:-1]}" for t in tools)
    return Problem(
        "tool_call",
        "hard",
        f"none {question} {names}",
        question,
        answer,
        "string",
        tools=tools,
        steps=lambda e: (f"Tools: {names}. None fits.", answer),
        check=lambda got: (f"{told}; no for each.", got == answer),
        second=f"wanted: {_POOL[spare][1][:-1]}. Not among {names}.",
    )


def _history(r: Random, question: str, call: dict, result: str) -> list[dict]:
    """A request, the call and its result; half the calls with the thought that led to them, which
    a model that goes on has before it (unless its thought was empty)."""
    function = {"name": call["name"], "arguments": call["arguments"]}
    called = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
    }
    if r.random() < 0.5:
        called["reasoning_content"] = f"{call['name']}: {_pairs(call)}."
    told = {"role": "tool", "name": call["name"], "tool_call_id": "call_1", "content": result}
    return [{"role": "user", "content": question}, called, told]


def _report(r: Random, tools: list, spare: str, kind: str, defined: tuple) -> Problem:
    values = _values(kind, r)
    question, call = phrase(r, _POOL[kind][3]).format(*values), _call(defined, values)
    n = r.randint(2, 99)
    result, answer = {
        "weather": (
            f'{{"sky": "{r.choice(("rain", "sun", "snow", "clouds"))}", "degrees": {n}}}',
            "",
        ),
        "time": (f"{n % 24}:{n % 50 + 10}", f"It is {n % 24}:{n % 50 + 10} in {values[0]}."),
        "convert": (str(n * 3), f"That is {n * 3} {values[-1]}."),
        "search": (f"{n} pages found", f"I found {n} pages."),
    }.get(kind, ("ok", "Done."))
    if kind == "calc":
        result = str(value_of(values[0]))
        answer = f"The result is {result}."
    if kind == "weather":
        sky = result.split('"')[3]
        answer = f"{sky.capitalize()}, {n} degrees in {values[0]}."
    return Problem(
        "tool_call",
        "hard",
        f"report {question} {result}",
        question,
        answer,
        "string",
        tools=tools,
        messages=_history(r, question, call, result),
        steps=lambda e: (f"It says {result}.", answer),
    )


def _recover(r: Random, tools: list, spare: str, kind: str, defined: tuple) -> Problem:
    values = _values(kind, r)
    question, call = phrase(r, _POOL[kind][3]).format(*values), _call(defined, values)
    check, second = _routes([(defined, call)], tools)
    error = r.choice(("error: try again", "error: busy, try again", "error: timeout, try again"))
    return Problem(
        "tool_call",
        "hard",
        f"recover {question} {call['name']}",
        question,
        "",
        "call",
        tools=tools,
        messages=_history(r, question, call, error),
        calls=[call],
        steps=lambda e: (f"It failed. Again {call['name']}: {_pairs(call)}.", ""),
        check=lambda got: (check, True),
        second=second,
    )


TASKS = {"tool_call": tool_call}
