"""Turns whose calls always parse: sampled at temperature 2 from random models in every family's
way of writing calls, and with Spark Nano."""

from __future__ import annotations

from typing import Any

import pytest

import musespark
from musespark.calls import turn_grammar
from musespark.errors import InvalidRequest, MissingLibrary
from musespark.grammar import Grammars
from musespark.text import PROTOCOLS
from musespark.turn_start import Constraint
from support.sampled_calls import STYLES, Sampler, sampler, wrong_calls
from support.turns import TOOLS, writer


def tool(name: str, required: list[str], /, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


SHORT = {"type": "string", "maxLength": 8}
TEXT = {"type": "string", "minLength": 2, "maxLength": 9}
NUMBERS = {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 3}
DEEP = {
    "type": "object",
    "properties": {"x": {"type": "number"}, "tags": {"type": "array", "items": SHORT}},
    "required": ["tags"],
}
DEEP["properties"]["tags"] |= {"maxItems": 2}
CALLABLE = [
    tool("weather", ["city"], city=SHORT, days={"type": "integer"}, exact={"type": "boolean"}),
    tool("geo.find", ["near", "kind"], kind={"enum": ["town", "lake é", 'a "b"']}, near=NUMBERS),
    tool("set", [], level={"type": "integer", "minimum": -5, "maximum": 250}, name=TEXT),
    tool("nothing", []),
    tool("plan", ["deep"], deep=DEEP, mode={"enum": [1, "two", None]}),
    tool("ref", ["color", "deep"], color={"$ref": "#/$defs/c"}, deep={"$ref": "#/$defs/d"}),
    tool("either", ["a", "b"], a={"anyOf": [{"type": "integer"}, {"type": "null"}]}, b=TEXT),
]
CALLABLE[5]["function"]["parameters"]["$defs"] = {"c": {"enum": ["red", "blue"]}, "d": DEEP}


@pytest.mark.parametrize("style", STYLES)
def test_every_call_of_a_random_model_parses_and_fits(style: str, tmp_path) -> None:
    with sampler(style, tmp_path / "m") as samples:
        begun = []
        for seed in range(2 * len(CALLABLE)):
            given = [CALLABLE[seed]] if seed < len(CALLABLE) else CALLABLE
            begun.append((given, samples.begin(given, seed)))
        whole = 0
        for given, handle in begun:
            result = handle.result()
            if result.reason == "length":  # in a thought, or a call of many: nothing bounds them
                continue
            whole += 1
            wrong = wrong_calls(samples.read(given, result.tokens), given)
            assert not wrong, (wrong, samples.text(result.tokens))
        assert whole >= len(CALLABLE)


@pytest.mark.parametrize("style", STYLES)
def test_an_answer_where_no_call_may_be(style: str, tmp_path) -> None:
    with sampler(style, tmp_path / "m") as samples:
        begun = [samples.begin(TOOLS, seed, "none") for seed in range(3)]
        for handle in begun:
            tokens = handle.result().tokens
            turn = samples.read(TOOLS, tokens).turn
            assert not turn.tool_calls and not turn.malformed_tool_calls, samples.text(tokens)


def fits(samples_of: str, text: str, tools: Any = TOOLS, choice: str = "auto") -> bool:
    """Whether a turn may be this text, to its end."""
    protocol = PROTOCOLS[samples_of]
    tokenizer = writer(protocol)
    ends = {*tokenizer.eos_ids}
    grammars = Grammars(tokenizer, tokenizer.vocab_size, ends, protocol.markers)
    begun = "<|start|>assistant" if protocol.headers else "Hi"
    prompt = tokenizer.encode(begun, parse_special=True)
    constraint = Constraint(grammars, turn_grammar(protocol, tokenizer, prompt, tools, choice))
    new: list[int] = []
    for token in [*tokenizer.encode(text, parse_special=True), *ends]:
        mask = constraint(new)
        if not mask[token >> 3] >> (token & 7) & 1:
            return False
        new = [token]
    return True


ATEM = (
    '<atem:function_calls>\n<atem:invoke name="weather">\n<atem:parameter name="city">{}'
    '</atem:parameter>\n<atem:parameter name="days">{}</atem:parameter>\n</atem:invoke>\n'
    "</atem:function_calls>"
)
OSLO = f" to=weather<|message|>{ATEM.format('Oslo', 3)}"
NEXT = "<|eom|><|start|>assistant"


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        (OSLO, True),
        (f" to=self<|message|>Hm.{NEXT}{OSLO}", True),
        (f" to=self<|message|>a{NEXT} to=self<|message|>b{NEXT}{OSLO}{NEXT}{OSLO}", True),
        (f" to=user<|message|>I look.{NEXT}{OSLO}", True),
        (" to=user<|message|>It rains.", True),
        (f" to=weather<|message|>{ATEM.format('a < b', 3)}", True),
        (f" to=weather<|message|>{ATEM.format('Oslo', 'three')}", False),
        (f" to=geo.find<|message|>{ATEM.format('Oslo', 3)}", False),
        (" to=self<|message|>Hm.", False),
        (f"{OSLO}{NEXT} to=user<|message|>And?", False),
        (" to=wether<|message|>", False),
        (" to=weather<|message|>Oslo", False),
    ],
)
def test_turns_of_muse(text: str, allowed: bool) -> None:
    assert fits("muse", text) is allowed


HERMES = '<tool_call>\n{{"name": "{}", "arguments": {}}}\n</tool_call>'


@pytest.mark.parametrize(
    ("style", "text", "allowed"),
    [
        ("think+hermes", "<think>Hm {.</think>\n\nOk.", True),
        (
            "hermes",
            '<tool_call>\n{"name": "weather", "arguments": {"city": "a"}}\n</tool_call>',
            True,
        ),
        (
            "hermes",
            '<tool_call>\n{"name": "weather", "arguments": {"days": 1}}\n</tool_call>',
            False,
        ),
        ("hermes", '<tool_call>\n{"name": "wether", "arguments": {"city": "a"}}', False),
        (
            "hermes",
            '<tool_call>{"name": "weather", "arguments": {"city": "a"}}</tool_call> b',
            False,
        ),
        ("llama-3", '{"name": "weather", "parameters": {"city": "a", "days": 2}}', True),
        ("llama-3", '{"name": "weather"}', False),
        ("llama-3", "It is fine.", True),
        ("llama-4", '[weather(city="a"), geo.find(city="b", days=2)]', True),
        ("gemma", '```tool_code\nweather(city="a")\n```', True),
        ("gemma", "```python\nprint()\n```", False),
        ("gemma-4", '<|tool_call>call:weather{city:<|"|>a<|"|>,days:3}<tool_call|>', True),
        ("harmony", "<|channel|>final<|message|>Ok.", True),
        (
            "harmony",
            '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "a"}',
            True,
        ),
    ],
)
def test_turns_of_others(style: str, text: str, allowed: bool) -> None:
    assert fits(style, text) is allowed


def test_references_that_double_are_followed_once(tmp_path) -> None:
    """Sixty steps, at each of which there is everything below twice."""
    below = [{"$ref": f"#/$defs/d{i + 1}"} for i in range(60)]
    defs: dict[str, Any] = {
        f"d{i}": {"type": "object", "properties": {"a": one, "b": one}, "required": []}
        for i, one in enumerate(below)
    }
    defs["d60"] = {"type": "integer"}
    parameters = {"type": "object", "properties": {"x": {"$ref": "#/$defs/d0"}}, "$defs": defs}
    one = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    for style in ("hermes", "muse"):
        with sampler(style, tmp_path / style) as samples:
            samples.compiles([one])


def test_choices() -> None:
    geo = OSLO.replace("weather", "geo.find")
    assert fits("muse", geo, choice="geo.find") and not fits("muse", OSLO, choice="geo.find")
    assert fits("muse", OSLO, choice="required")
    assert not fits("muse", " to=user<|message|>Hi", choice="required")
    assert not fits("muse", OSLO, choice="none")
    assert fits("muse", " to=user<|message|>Hi", choice="none")


# ---- Spark Nano --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nano() -> Any:
    with musespark.load(context=1024, threads=2) as model:
        yield model


CALC = [tool("calculate", ["expression"], expression=SHORT)]
SUM = "Use the calculator for 12*34."


def test_nano_calls_what_it_called_freely(nano) -> None:
    free = nano.chat(SUM, tools=CALC, temperature=0)
    held = nano.chat(SUM, tools=CALC, temperature=0, tool_choice="auto")
    assert free.tokens == held.tokens and held.tool_calls[0]["function"]["arguments"] == {
        "expression": "12*34"
    }
    chosen = nano.chat(SUM, tools=CALC, temperature=0, tool_choice="calculate")
    assert chosen.tool_calls == held.tool_calls and held.finish_reason == "tool_calls"


@pytest.mark.parametrize("seed", range(6))
def test_nano_at_temperature_two(nano, seed: int) -> None:
    more = {"temperature": 2.0, "seed": seed, "max_new_tokens": 400, "tool_choice": "required"}
    found = nano.chat(SUM, tools=CALLABLE, **more)
    assert not found.protocol_errors and (found.finish_reason == "length" or found.tool_calls)
    if found.finish_reason == "length":
        return
    again = nano.chat(SUM, tools=CALLABLE, **more)
    assert not found.malformed_tool_calls and again.tokens == found.tokens


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tool_choice": "calc"}, r"tool_choice: got 'calc', allowed is one of \['auto', 'req"),
        ({"tool_choice": 3}, "tool_choice: got 3, allowed is one of"),
        ({"tool_choice": "auto", "tools": None}, "tool_choice: got 'auto' without tools"),
        ({"tool_choice": "required", "mode": "instant"}, "the prompt has begun the answer"),
        ({"tool_choice": "auto", "json_schema": {}}, "json_schema contradicts tools"),
        ({"tool_choice": "auto", "min_new_tokens": 3}, "min_new_tokens contradicts tools"),
    ],
)
def test_refusals(nano, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        nano.chat(SUM, **{"tools": CALC, **options})


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"type": "frob"}, "tools: f.a: got the type 'frob', allowed are string"),
        ({"type": "array", "items": {"enum": []}}, "tools: f.a: got an empty enum"),
        ({"type": "integer", "minimum": 2, "maximum": 1}, "tools: .*minimum"),
        ({"type": "object", "not": {}}, "tools: .*not"),
    ],
)
def test_schemas_that_cannot_be_followed(nano, rule: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        nano.chat(SUM, tools=[tool("f", ["a"], a=rule)], tool_choice="auto")


def test_a_protocol_without_calls() -> None:
    with pytest.raises(InvalidRequest, match="tools: the model's chat protocol 'plain' has no"):
        fits("plain", "a")


def test_without_the_library(nano, monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingLibrary, match=r"tool_choice.*pip install 'musespark\[grammar\]'"):
        nano.chat(SUM, tools=CALC, tool_choice="auto")
    assert nano.chat(SUM, tools=CALC, max_new_tokens=2).tokens


def test_sampler_finds_what_is_wrong() -> None:
    """The judge of the tests above: a free turn is none of calls."""
    style = "hermes"
    samples = Sampler(style, None)  # type: ignore[arg-type]
    tokens = writer(PROTOCOLS[style]).encode("<tool_call>{}</tool_call>", parse_special=True)
    assert wrong_calls(samples.read(CALLABLE, tokens), CALLABLE)
