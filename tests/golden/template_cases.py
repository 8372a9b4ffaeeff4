"""Conversations for the chat-template comparison, shared by the script that makes the fixture
(tests/golden/make_templates.py, with transformers) and the test that checks it (without)."""

from __future__ import annotations

import hashlib
import json
import re
from copy import deepcopy
from datetime import datetime as real_datetime
from itertools import combinations, product
from typing import Any

VARIABLES = {"bos_token": "<BOS>", "eos_token": "<EOS>", "pad_token": "<PAD>"}


class FixedClock(real_datetime):
    """``datetime`` whose ``now()`` never moves, for templates that print the date."""

    @classmethod
    def now(cls, tz: Any = None) -> FixedClock:
        return cls(2026, 2, 3, 4, 5, 6)


def _tool(name: str, description: str) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "A city, é"},
                    "days": {"type": "integer", "minimum": 1},
                    "unit": {"type": ["string", "null"], "enum": ["C", "F", None]},
                    "tags": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["city"],
            },
        },
    }


TOOLS = [_tool("get_weather", "The weather of a city."), _tool("geo.find", 'Finds "places".')]
_PLAIN = {
    "city": {"type": "string", "description": "A city"},
    "days": {"type": "integer", "description": "How many"},
}
PLAIN_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "now",
            "description": "The weather.",
            "parameters": {"type": "object", "properties": _PLAIN, "required": ["city"]},
        },
    }
]


def _call(name: str, arguments: dict[str, Any], call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _assistant(text: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


SYSTEM = {"role": "system", "content": "You are terse.\n\nAlways."}
_ARGUMENTS = {"city": "Zürich", "days": 3, "unit": None, "tags": ["a b", "ç"]}
_CALLED = _assistant("", tool_calls=[_call("get_weather", _ARGUMENTS, "call00001")])
_IMAGE = {"type": "image"}
_ANSWERED = {
    "role": "tool",
    "name": "get_weather",
    "tool_call_id": "call00001",
    "content": '{"sky": "clear", "t": [1, 2.5]}',
}

CASES: dict[str, dict[str, Any]] = {
    "user": {"messages": [_user("Hello, world!")]},
    "system": {"messages": [SYSTEM, _user("Hello")]},
    "turns": {
        "messages": [
            SYSTEM,
            _user(" a "),
            _assistant("b\n"),
            _user("c"),
            _assistant(" d"),
            _user("e"),
        ]
    },
    "ends_with_assistant": {"messages": [_user("a"), _assistant("b")]},
    "code": {"messages": [_user('if (a < b && b > c) { x[0] = "<b>"; } // </b> | é 你好 🙂')]},
    "empty": {"messages": [_user("")]},
    "parts": {
        "messages": [
            _user([{"type": "text", "text": "What is "}, {"type": "text", "text": "this?"}]),
            _assistant([{"type": "text", "text": "That."}]),
            _user([{"type": "text", "text": "Sure?"}]),
        ]
    },
    "image": {"messages": [_user([{"type": "image"}, {"type": "text", "text": "What is it?"}])]},
    "reasoning": {
        "messages": [
            _user("2+2?"),
            _assistant("4", reasoning_content="Two and two.\nFour."),
            _user("And 3+3?"),
            _assistant("6", reasoning_content="Three and three."),
            _user("Thanks"),
        ]
    },
    "tagged_reasoning": {
        "messages": [_user("2+2?"), _assistant("<think>\nTwo.\n</think>\n\n4"), _user("And 3+3?")]
    },
    "tools": {"messages": [SYSTEM, _user("Weather in Zürich?")], "tools": TOOLS},
    "tools_no_system": {"messages": [_user("Weather?")], "tools": TOOLS[:1]},
    "tool_result": {
        "messages": [SYSTEM, _user("Weather in Zürich?"), _CALLED, _ANSWERED],
        "tools": TOOLS,
    },
    "tool_turns": {
        "messages": [
            _user("Weather?"),
            _assistant(
                "Looking.",
                reasoning_content="I should look.",
                tool_calls=[_call("get_weather", _ARGUMENTS, "call00001")],
            ),
            _ANSWERED,
            _assistant("Clear."),
            _user("Thanks"),
        ],
        "tools": TOOLS,
    },
    "two_calls": {
        "messages": [
            _user("Both?"),
            _assistant(
                "",
                tool_calls=[
                    _call("get_weather", {"city": "A"}, "call00001"),
                    _call("geo.find", {"city": "B", "days": 2}, "call00002"),
                ],
            ),
            _ANSWERED,
            {**_ANSWERED, "name": "geo.find", "tool_call_id": "call00002", "content": "there"},
        ],
        "tools": TOOLS,
    },
    "image_turns": {
        "messages": [
            SYSTEM,
            _user([_IMAGE, {"type": "text", "text": "What is it?"}]),
            _assistant("A cat."),
            _user(
                [{"type": "text", "text": "And "}, _IMAGE, {"type": "text", "text": "or "}, _IMAGE]
            ),
            _assistant([{"type": "text", "text": "Dogs."}]),
            _user("Thanks"),
        ]
    },
    "image_url": {
        "messages": [
            _user(
                [
                    {"type": "text", "text": "Look:"},
                    {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
                ]
            )
        ]
    },
    "image_tools": {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Terse."}]},
            _user([_IMAGE, {"type": "text", "text": "Where is this, and the weather?"}]),
            _CALLED,
            _ANSWERED,
            _assistant("Clear."),
            _user([{"type": "text", "text": "And here?"}, _IMAGE]),
        ],
        "tools": TOOLS,
    },
    "tool_image": {
        "messages": [
            _user("Take a picture."),
            _CALLED,
            {**_ANSWERED, "content": [{"type": "text", "text": "here"}, _IMAGE]},
        ],
        "tools": TOOLS,
    },
    "tool_parts": {
        "messages": [
            _user("Weather?"),
            _CALLED,
            {**_ANSWERED, "content": [{"type": "text", "text": "clear"}]},
        ],
        "tools": TOOLS,
    },
    "long": {
        "messages": [
            SYSTEM,
            _user("Hello"),
            _assistant("Hi."),
            _user("Weather?"),
            {**_CALLED, "reasoning_content": "Look it up."},
            _ANSWERED,
            _assistant("Clear.", reasoning_content="So it is."),
            _user("Both?"),
            _assistant(
                "I look.",
                tool_calls=[
                    _call("get_weather", {"city": "A"}, "call00002"),
                    _call("geo.find", {"city": "B", "tags": []}, "call00003"),
                ],
            ),
            {**_ANSWERED, "tool_call_id": "call00002", "content": "rain"},
            {**_ANSWERED, "name": "geo.find", "tool_call_id": "call00003", "content": "[]"},
            _assistant("Rain."),
            _user("Thanks"),
            _assistant("Welcome."),
        ],
        "tools": TOOLS,
    },
    "no_content": {
        "messages": [
            _user("Weather?"),
            {k: v for k, v in _CALLED.items() if k != "content"},
            _ANSWERED,
        ],
        "tools": TOOLS,
    },
    "no_arguments": {
        "messages": [
            _user("Weather?"),
            _assistant(None, tool_calls=[_call("get_weather", {}, "call00001")]),
            {**_ANSWERED, "content": ""},
            _user("So?"),
        ],
        "tools": TOOLS[:1],
    },
    # Templates that cannot say types like ["string", "null"], and one that wants its own variables.
    "plain_tools": {"messages": [SYSTEM, _user("Weather?")], "tools": PLAIN_TOOLS},
    "plain_call": {
        "messages": [
            SYSTEM,
            _user("Weather?"),
            _assistant("", tool_calls=[_call("now", {"city": "A", "days": 2}, "call00001")]),
            {**_ANSWERED, "name": "now"},
            _assistant("Clear."),
            _user("Thanks"),
        ],
        "tools": PLAIN_TOOLS,
        "variables": {"functions": "[]", "datetime": "Feb 03 2026"},
    },
    "developer": {
        "messages": [{"role": "developer", "content": "Be terse."}, _user("Hello")],
        "tools": TOOLS[:1],
    },
    "effort": {
        "messages": [SYSTEM, _user("Hello")],
        "variables": {
            "reasoning_effort": "low",
            "reasoning_strength": "low",
            "enable_thinking": False,
        },
    },
    "thinking": {
        "messages": [_user("Hello")],
        "variables": {"enable_thinking": True, "thinking": True, "custom": ["x", 1]},
    },
}


EXPLICIT_NONE = "explicit_none"


def other_forms(messages: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The same conversation in every other form that a template may be written for: arguments as
    JSON text, lists of text parts joined, a developer as the system, and a blank content beside
    calls missing, empty or None."""
    lists = sorted({m["role"] for m in messages if _is_text_parts(m.get("content"))})
    joined = [set(found) for n in range(len(lists) + 1) for found in combinations(lists, n)]
    forms = product(joined, (False, True), ({}, {"content": ""}, {EXPLICIT_NONE: True}))
    made = [[_formed(m, *form) for m in messages] for form in forms]
    return [form for form in made if form != messages]


def _is_text_parts(content: Any) -> bool:
    return isinstance(content, list) and all(part["type"] == "text" for part in content)


def _formed(
    message: dict[str, Any], joined: set[str], as_text: bool, blank: dict[str, Any]
) -> dict[str, Any]:
    message = deepcopy(message)
    if message["role"] in joined and _is_text_parts(message.get("content")):
        message["content"] = "\n".join(part["text"] for part in message["content"])
    message["role"] = message["role"].replace("developer", "system")
    for call in message.get("tool_calls") or []:
        if as_text:
            arguments = call["function"]["arguments"]
            call["function"]["arguments"] = json.dumps(arguments, ensure_ascii=False)
    if message.get("tool_calls") and not message.get("content"):
        message.pop("content", None)
        message.update(blank)
    return message


def digest(text: str) -> str:
    """Length and the first 48 bits of SHA-256: the templates' text is not for the repository."""
    return f"{len(text)}:{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def spelled_markers(source: str) -> set[str]:
    """What looks like a marker in a template's source."""
    return set(re.findall(r"<[|｜][^\s<>]*[|｜]>|</?[a-z_]+>|\[/?[A-Z_]+\]", source))


# Conversations that end with the beginning of an answer, to be continued.
CONTINUED: dict[str, dict[str, Any]] = {
    "plain": {"messages": [_user("2+2?"), _assistant("The answer is")]},
    "space": {"messages": [SYSTEM, _user("Count"), _assistant("One, two, ")]},
    "lines": {"messages": [_user("A list"), _assistant("\n1. a\n2.\n")]},
    "empty": {"messages": [_user("2+2?"), _assistant("")]},
    "parts": {
        "messages": [
            _user([{"type": "text", "text": "What is this?"}]),
            _assistant([{"type": "text", "text": "That"}, {"type": "text", "text": " is "}]),
        ]
    },
    "reasoning": {"messages": [_user("2+2?"), _assistant("It is", reasoning_content="Two and.")]},
    "tagged": {"messages": [_user("2+2?"), _assistant("<think>\nTwo.\n</think>\n\nIt is")]},
    "turns": {
        "messages": [_user("a"), _assistant("b"), _user("c"), _assistant("b <|im_end|> x")],
        "tools": TOOLS,
    },
    "not_the_assistants": {"messages": [_user("2+2?")]},
}
