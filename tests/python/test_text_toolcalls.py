"""Tool calls: ATEM and JSON parsed to the schema's types, anything malformed reported."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musespark.text import (
    PROTOCOLS,
    ChannelParser,
    ChatTemplate,
    Event,
    Tokenizer,
    ToolCall,
    ToolCallError,
)
from musespark.text.calls_json import parse_json
from musespark.text.calls_tagged import parse_atem
from musespark.text.toolcalls import convert

NANO = Path(__file__).parents[2] / "python" / "musespark" / "nano"


@cache
def nano() -> Tokenizer:
    return Tokenizer.load(NANO)


@cache
def nano_template() -> ChatTemplate:
    return ChatTemplate(NANO)


def muse(text: str, tools: Any) -> tuple[ChannelParser, list[Event]]:
    parser = ChannelParser(PROTOCOLS["muse"], nano(), tools=tools)
    ids = nano().encode(text, parse_special=True)
    return parser, [event for i in ids for event in parser.push(i)] + parser.finish()


_CALL_OF_T = '<atem:function_calls><atem:invoke name="t">'
_SCHEMA = {
    "properties": {
        "s": {"type": "string"},
        "i": {"type": "integer"},
        "n": {"type": "number"},
        "b": {"type": "boolean"},
        "l": {"type": "array"},
        "o": {"type": "object"},
        "u": {"type": ["string", "null"]},
        "a": {"anyOf": [{"type": "integer"}, {"type": "boolean"}]},
        "e": {"enum": ["1", "2"]},
    }
}
_TOOL = {"type": "function", "function": {"name": "t", "description": "", "parameters": _SCHEMA}}


@pytest.mark.parametrize(
    ("text", "schema", "expected"),
    [
        ("5", {"type": "string"}, "5"),
        (" 5 ", {"type": "integer"}, 5),
        ("5.0", {"type": "integer"}, 5),
        ("-2.5e3", {"type": "number"}, -2500.0),
        ("7", {"type": "number"}, 7),
        ("true", {"type": "boolean"}, True),
        ("true", {"type": "string"}, "true"),
        ("null", {"type": ["string", "null"]}, None),
        ("nil", {"type": ["string", "null"]}, "nil"),
        (" a ", {"type": "string"}, " a "),
        ("[1, 2]", {"type": "array"}, [1, 2]),
        ('{"a": 1}', {"type": "object"}, {"a": 1}),
        ("1", {"enum": ["1", "2"]}, "1"),
        ("1", {"const": 1}, 1),
        ("3", {}, 3),
        ("x", {}, "x"),
        ('"x"', {}, '"x"'),
        ("[1]", None, [1]),
        ("NaN", None, "NaN"),
        ("9" * 5000, {"type": "string"}, "9" * 5000),
        ("2", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, 2),
        ("2", {"anyOf": [{}, {"type": "null"}]}, 2),
    ],
)
def test_convert(text: str, schema: Any, expected: Any) -> None:
    given = convert(text, schema)
    assert given == expected and type(given) is type(expected)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("abc", "integer"),
        ("5.5", "integer"),
        ("NaN", "number"),
        ("1", "boolean"),
        ("yes", "boolean"),
        ("[1", "array"),
        ("[1]", "object"),
        ("9" * 5000, "integer"),
        ("[" * 99999, "array"),
        ("1e999", "integer"),
    ],
)
def test_convert_refuses(text: str, kind: str) -> None:
    with pytest.raises(ValueError, match="is not of type"):
        convert(text, {"type": kind})


_values = st.fixed_dictionaries(
    {},
    optional={
        "s": st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
        "i": st.integers(),
        "n": st.floats(allow_nan=False, allow_infinity=False),
        "b": st.booleans(),
        "l": st.lists(
            st.one_of(st.integers(), st.text(st.characters(exclude_categories=["Cs"]))), max_size=3
        ),
        "o": st.dictionaries(st.sampled_from(["a", "b"]), st.booleans()),
        "u": st.one_of(
            st.none(), st.sampled_from(["x", "</atem:parameter>", "</atem:parameter>\n<b>"])
        ),
    },
)


@settings(max_examples=150, deadline=None)
@given(arguments=_values)
def test_rendered_calls_parse_back(arguments: dict[str, Any]) -> None:
    """What Nano's template writes for a call, the parser reads as the same call."""
    message = {
        "role": "assistant",
        "tool_calls": [
            {"id": "x", "type": "function", "function": {"name": "t", "arguments": arguments}}
        ],
    }
    text = nano_template().render([{"role": "user", "content": "q"}, message])
    turn = text[text.rindex("<|start|>assistant") + len("<|start|>assistant") :]
    body = turn[turn.index("<|message|>") + len("<|message|>") : -len("<|eot|>")]
    schemas = {"t": _SCHEMA}
    (call,) = parse_atem(body, schemas, "t")
    assert isinstance(call, ToolCall), call
    assert call.arguments == arguments


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected"),
        ("hello", "expected"),
        ("<atem:function_calls>", "cut short"),
        ("<atem:function_calls></atem:function_calls>", "no call"),
        ("<atem:function_calls>x</atem:function_calls>", "expected a call"),
        ('<atem:function_calls><atem:invoke name="t', "name does not end"),
        ('<atem:function_calls><atem:invoke name="t">', "cut short"),
        ('<atem:function_calls><atem:invoke name="t"><atem:para', "cut short"),
        ('<atem:function_calls><atem:invoke name="t">x</atem:invoke>', "expected a parameter"),
        ('<atem:function_calls><atem:invoke name="t"><atem:parameter name="s">v', "does not end"),
        (
            _CALL_OF_T + '<atem:parameter name="s">v</atem:parameter>',
            "does not end",
        ),
        (
            _CALL_OF_T + '<atem:parameter name="i">v</atem:parameter></atem:invoke>',
            "'i'.*not of type integer",
        ),
        (
            '<atem:function_calls><atem:invoke name="t"><atem:parameter name="s">1</atem:parameter>'
            '<atem:parameter name="s">2</atem:parameter></atem:invoke>',
            "twice",
        ),
        (
            '<atem:function_calls><atem:invoke name="w"></atem:invoke></atem:function_calls>',
            "'t'.*'w'",
        ),
        (
            '<atem:function_calls><atem:invoke name="t"></atem:invoke></atem:function_calls> x',
            "text after",
        ),
    ],
)
def test_malformed_calls(text: str, reason: str) -> None:
    parser, events = muse(f" to=t<|message|>{text}<|eot|>", tools=[_TOOL])
    errors = [e for e in events if isinstance(e, ToolCallError)]
    assert len(errors) == 1
    assert re.search(reason, errors[0].reason), errors[0].reason
    assert errors[0].raw in text or errors[0].raw == text
    assert parser.turn.malformed_tool_calls == [errors[0].raw]


def test_good_calls_before_a_bad_one_count() -> None:
    good = '<atem:invoke name="t">\n<atem:parameter name="i">1</atem:parameter>\n</atem:invoke>\n'
    parser, _ = muse(f" to=t<|message|><atem:function_calls>\n{good}{good}<atem:inv", tools=[_TOOL])
    assert [c.id for c in parser.turn.tool_calls] == ["call_1", "call_2"]
    assert parser.turn.malformed_tool_calls == ["<atem:inv"]
    assert parser.turn.open_kind == "tool"
    assert parser.turn.tool_calls[0].to_openai() == {
        "id": "call_1",
        "type": "function",
        "function": {"name": "t", "arguments": {"i": 1}},
    }


def test_long_calls_are_linear() -> None:
    """Many closing tags inside a value and long white space: no quadratic search."""
    value = "</atem:parameter> x" * 20_000 + " " * 100_000
    text = _CALL_OF_T + f'<atem:parameter name="s">{value}</atem:parameter></atem:invoke>'
    (call,) = parse_atem(text, {})
    assert call.arguments["s"] == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"name": 5}',
        '{"name": "f", "arguments": "x"}',
        '{"name": "f", "arguments": [1]}',
        "[" * 99999,
    ],
)
def test_malformed_json_calls(text: str) -> None:
    (call,) = parse_json(text, {})
    assert isinstance(call, ToolCallError) and call.raw == text


def test_json_calls() -> None:
    (call,) = parse_json(' {"name": "f", "arguments": "{\\"a\\": 1}"}\n', {})
    assert (call.name, call.arguments) == ("f", {"a": 1})


def test_numbers_beyond_float64_stay_text():
    assert convert("1e999", None) == "1e999"
