"""A schema of the answer beside tools: a turn is calls, or an answer of the schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

import musespark
from musespark.calls import offer_of, turn_grammar
from musespark.errors import InvalidRequest
from musespark.grammar import chosen_grammar
from musespark.text import PROTOCOLS
from support.sampled_calls import STYLES, fits
from support.turns import TOOLS, writer

SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}},
    "required": ["sum"],
    "additionalProperties": False,
}
CALCULATE = {
    "type": "object",
    "properties": {"expression": {"type": "string"}},
    "required": ["expression"],
}
TOOL = {
    "type": "function",
    "function": {"name": "calculate", "description": "Calculates.", "parameters": CALCULATE},
}
SUM = "What is 47 + 38?"
USE_IT = "Use the calculator for 7509+100."
NEXT = "<|eom|><|start|>assistant"
OSLO = (
    ' to=weather<|message|><atem:function_calls>\n<atem:invoke name="weather">\n'
    '<atem:parameter name="city">Oslo</atem:parameter>\n</atem:invoke>\n</atem:function_calls>'
)
ANSWERS = " to=user<|message|>"
HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "a"}}\n</tool_call>'
HARMONY = '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "a"}'


def rule() -> str:
    grammar = chosen_grammar({"json_schema": SCHEMA})
    assert grammar is not None
    return grammar.rule


@pytest.fixture(scope="module")
def model() -> Iterator[musespark.Model]:
    with musespark.load(threads=1) as loaded:
        yield loaded


@pytest.mark.parametrize(
    ("style", "text", "allowed"),
    [
        ("muse", OSLO, True),
        ("muse", f"{OSLO}{NEXT}{OSLO}", True),
        ("muse", f' to=self<|message|>Hm.{NEXT}{ANSWERS}{{"sum": 3}}', True),
        ("muse", f'{ANSWERS}{{"sum": 3}}', True),
        ("muse", f"{ANSWERS}It rains.", False),
        ("muse", f'{ANSWERS}{{"sum": "3"}}', False),
        ("muse", f"{ANSWERS}I look.{NEXT}{OSLO}", False),
        ("muse", f'{ANSWERS}{{"sum": 3}}{NEXT}{OSLO}', False),
        ("hermes", HERMES, True),
        ("hermes", '{"sum": -3}', True),
        ("hermes", f'{{"sum": 3}}{HERMES}', False),
        ("hermes", f"I look. {HERMES}", False),
        ("hermes", "Ok.", False),
        ("think+hermes", '<think>Hm {.</think>\n\n{"sum": 3}', True),
        ("think+hermes", f"<think>Hm {{.</think>\n\n{HERMES}", True),
        ("think+hermes", "<think>Hm {.</think>\n\nOk.", False),
        ("llama-3", '{"sum": 3}', True),
        ("llama-3", '{"name": "weather", "parameters": {"city": "a", "days": 2}}', True),
        ("llama-3", '{"name": "weather"}', False),
        ("llama-3", "It is fine.", False),
        ("harmony", HARMONY, True),
        ("harmony", '<|channel|>final<|message|>{"sum": 3}', True),
        ("harmony", "<|channel|>final<|message|>Ok.", False),
    ],
)
def test_a_turn_is_calls_or_an_answer_of_the_schema(style: str, text: str, allowed: bool) -> None:
    assert fits(style, text, form=rule()) is allowed


PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}
NAMES = {"type": "array", "items": {"type": "string"}, "minItems": 1}


@pytest.mark.parametrize("style", ["llama-3", "llama-4", "gemma"])
@pytest.mark.parametrize(
    ("schema", "text", "allowed"),
    [
        (PERSON, '{"name": "Bob", "age": 3}', True),
        (PERSON, '{"name": "weather"}', True),
        (PERSON, '{"name": "wea"}', True),
        (PERSON, '{"name": 3}', False),
        (PERSON, '{"name": "weather", "parameters": {"city": "a"}}', True),
        (PERSON, '{"name": "Bob", "parameters": {"city": "a"}}', False),
        (NAMES, '["a", "weather"]', True),
        (NAMES, '["weather(city=1)"]', True),
        (NAMES, "Bob", False),
    ],
)
def test_answers_that_begin_as_calls_without_tags_do(
    style: str, schema: dict, text: str, allowed: bool
) -> None:
    grammar = chosen_grammar({"json_schema": schema})
    assert grammar is not None and fits(style, text, form=grammar.rule) is allowed


@pytest.mark.parametrize("style", STYLES)
def test_every_family_has_answers_of_the_schema(style: str) -> None:
    header = {"muse": ANSWERS, "harmony": "<|channel|>final<|message|>"}.get(style, "")
    for choice in ("auto", "none"):
        assert fits(style, f'{header}{{"sum": 12}}', choice, form=rule())
        assert not fits(style, f"{header}Twelve.", choice, form=rule())
    assert not fits(style, f'{header}{{"sum": 12}}', "required", form=rule())


def test_an_answer_that_the_prompt_has_begun() -> None:
    begun = "<|start|>assistant to=user<|message|>"
    assert fits("muse", '{"sum": 3}', form=rule(), begun=begun)
    assert fits("muse", f"{NEXT}{OSLO}", form=rule(), begun=begun)
    assert not fits("muse", f"I look.{NEXT}{OSLO}", form=rule(), begun=begun)
    assert not fits("muse", f"{NEXT}{OSLO}", "none", form=rule(), begun=begun)


def test_a_family_without_known_calls() -> None:
    protocol = PROTOCOLS["plain"]
    offer = offer_of(TOOLS, "auto")
    with pytest.raises(InvalidRequest, match="no calls that are known; json_schema beside tools"):
        turn_grammar(protocol, writer(protocol), [1], offer, rule())


def test_a_model_calls_or_answers_by_the_schema(model) -> None:
    asked: dict[str, Any] = {"tools": [TOOL], "json_schema": SCHEMA}
    called = model.chat(USE_IT, **asked)
    (call,) = called.tool_calls
    assert call["function"]["name"] == "calculate" and called.finish_reason == "tool_calls"
    assert called.content == "" and called.parsed is None
    told = {"tool_call_id": call["id"], "name": "calculate", "content": "7609"}
    turns = [{"role": "user", "content": USE_IT}, called.message, {"role": "tool", **told}]
    answer = model.chat(turns, **asked, tool_choice="none")
    assert answer.parsed == json.loads(answer.content) and isinstance(answer.parsed["sum"], int)
    assert not answer.tool_calls and answer.finish_reason == "stop"
    with pytest.raises(InvalidRequest, match="json_schema"):
        model.chat(SUM, tools=[TOOL], json_schema={"type": "strange"})


def test_an_agent_answers_by_a_schema(model) -> None:
    def calculate(expression: str) -> str:
        """Calculates.

        Args:
            expression: A sum.
        """
        return str(sum(map(int, expression.split("+"))))

    result = model.act(USE_IT, [calculate], json_schema=SCHEMA, max_steps=3)
    assert isinstance(json.loads(result.content)["sum"], int)
