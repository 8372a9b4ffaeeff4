"""Turns whose calls always parse: sampled at temperature 2 from random models in every family's
way of writing calls, and with Spark Nano."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pytest

import musespark
from musespark.calls import offer_of, turn_grammar
from musespark.errors import InvalidRequest, MissingLibrary
from musespark.grammar import Grammars
from musespark.text import PROTOCOLS
from musespark.turn_start import Constraint
from support.sampled_calls import STYLES, Sampler, fits, sampler, wrong_calls
from support.turns import TOOLS, writer

NANO = Path(musespark.__file__).parent / "nano"


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

Word = Annotated[str, pydantic.Field(max_length=8)]


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    name: Word
    lives: Annotated[int, pydantic.Field(ge=1, le=9)] = 9


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]
    name: Annotated[int, pydantic.Field(ge=0, le=99)]


class Pet(pydantic.RootModel[Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]]): ...


class Either(pydantic.RootModel[Cat | Dog | None]): ...


class Pair(pydantic.BaseModel):
    word: Word
    of: Annotated[list[Pair], pydantic.Field(max_length=1)]


#: Tools whose arguments are said elsewhere than at the root of their schema.
JOINED = [
    {"type": "function", "function": {"name": name, "parameters": parameters}}
    for name, parameters in (
        ("union", Pet.model_json_schema()),
        ("either", Either.model_json_schema()),
        ("itself", Pair.model_json_schema()),
        (
            "one_of_two",
            {
                "properties": {"a": SHORT, "b": {"type": "boolean"}},
                "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
            },
        ),
        ("all", {"allOf": [{"properties": {"a": SHORT}}, {"required": ["a"]}]}),
    )
]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("tools", [CALLABLE, JOINED], ids=["plain", "joined"])
def test_every_call_of_a_random_model_parses_and_fits(style: str, tools: Any, tmp_path) -> None:
    with sampler(style, tmp_path / "m") as samples:
        begun = []
        for seed in range(2 * len(tools)):
            given = [tools[seed]] if seed < len(tools) else tools
            begun.append((given, samples.begin(given, seed)))
        whole = 0
        for given, handle in begun:
            result = handle.result()
            if result.reason == "length":  # in a thought, or a call of many: nothing bounds them
                continue
            whole += 1
            wrong = wrong_calls(samples.read(given, result.tokens), given)
            assert not wrong, (wrong, samples.text(result.tokens))
        assert whole >= len(tools)


@pytest.mark.parametrize("style", STYLES)
def test_an_answer_where_no_call_may_be(style: str, tmp_path) -> None:
    with sampler(style, tmp_path / "m") as samples:
        begun = [samples.begin(TOOLS, seed, "none") for seed in range(3)]
        for handle in begun:
            tokens = handle.result().tokens
            turn = samples.read(TOOLS, tokens).turn
            assert not turn.tool_calls and not turn.malformed_tool_calls, samples.text(tokens)


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


def _coded(open_: str, calls: int, close: str) -> str:
    return open_ + "[" + ", ".join(calls * ['weather(city="a")']) + "]" + close


def test_a_call_has_the_properties_of_one_member_of_a_union() -> None:
    form = '<tool_call>\n{{"name": "union", "arguments": {}}}\n</tool_call>'
    for arguments, allowed in (
        ('{"kind": "cat", "name": "a"}', True),
        ('{"kind": "cat", "name": "a", "lives": 3}', True),
        ('{"kind": "dog", "name": 3}', True),
        ('{"kind": "dog", "name": "a"}', False),
        ('{"kind": "dog", "name": 3, "lives": 3}', False),
        ("{}", False),
    ):
        assert fits("hermes", form.format(arguments), tools=JOINED) is allowed, arguments


def test_choices() -> None:
    geo = OSLO.replace("weather", "geo.find")
    assert fits("muse", geo, choice="geo.find") and not fits("muse", OSLO, choice="geo.find")
    assert fits("muse", OSLO, choice="required")
    assert not fits("muse", " to=user<|message|>Hi", choice="required")
    assert not fits("muse", OSLO, choice="none")
    assert fits("muse", " to=user<|message|>Hi", choice="none")
    for choice in ("none", "auto"):  # what is no call is not written as one
        body = OSLO.partition("<|message|>")[2]
        assert not fits("muse", f" to=user<|message|>{body}", choice=choice)
        assert not fits("muse", " to=user<|message|>Hi <atem:x>", choice=choice)
        assert fits("muse", " to=user<|message|>Hi <atem", choice=choice)


SHORT_CALL = '{"name": "weather", "arguments": {"city": "a"}}'
XML_CALL = "<function=weather>\n<parameter=city>\na\n</parameter>\n</function>\n"
DSML_CALL = (
    '<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="city" string="true">a'
    "</｜DSML｜parameter>\n</｜DSML｜invoke>\n"
)
DEEPSEEK = '<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "a"}<｜tool▁call▁end｜>'
#: A style, a turn of one call, and the same turn with another one.
ONE_AND_TWO = [
    ("muse", OSLO, f"{OSLO}{NEXT}{OSLO}"),
    ("hermes", *(n * f"<tool_call>\n{SHORT_CALL}\n</tool_call>" for n in (1, 2))),
    ("xml", *(f"<tool_call>\n{n * XML_CALL}</tool_call>" for n in (1, 2))),
    ("xml", *(n * f"<tool_call>\n{XML_CALL}</tool_call>" for n in (1, 2))),
    (
        "dsml",
        *(f"<｜DSML｜function_calls>\n{n * DSML_CALL}</｜DSML｜function_calls>" for n in (1, 2)),
    ),
    ("deepseek", *(f"<｜tool▁calls▁begin｜>{n * DEEPSEEK}<｜tool▁calls▁end｜>" for n in (1, 2))),
    ("phi4", *(f"<|tool_call|>[{', '.join(n * [SHORT_CALL])}]<|/tool_call|>" for n in (1, 2))),
    ("lfm2", *(_coded("<|tool_call_start|>", n, "<|tool_call_end|>") for n in (1, 2))),
    ("llama-4", *(_coded("", n, "") for n in (1, 2))),
    ("llama-3", *("; ".join(n * [SHORT_CALL.replace("arguments", "parameters")]) for n in (1, 2))),
]


@pytest.mark.parametrize(("style", "one", "two"), ONE_AND_TWO)
def test_one_call_at_most(style: str, one: str, two: str) -> None:
    assert fits(style, one) and fits(style, two)
    for choice in (None, "auto", "required", "weather"):
        assert fits(style, one, choice, parallel_tool_calls=False)
        assert not fits(style, two, choice, parallel_tool_calls=False)


@pytest.mark.parametrize("style", STYLES)
def test_a_random_model_calls_once_and_only_what_it_may(style: str, tmp_path) -> None:
    offer = {"parallel_tool_calls": False, "allowed_tools": ["nothing", "set"]}
    with sampler(style, tmp_path / "m") as samples:
        begun = [samples.begin(CALLABLE, seed, **offer) for seed in range(6)]
        found = [handle.result() for handle in begun]
        turns = [samples.read(CALLABLE, one.tokens).turn for one in found if one.reason != "length"]
    assert turns
    for turn in turns:
        (call,) = turn.tool_calls
        assert call.name in offer["allowed_tools"]


def test_tools_that_are_allowed() -> None:
    geo = OSLO.replace("weather", "geo.find")
    for choice in (None, "auto", "required", "geo.find"):
        assert fits("muse", geo, choice, allowed_tools=["geo.find"])
        assert choice == "geo.find" or not fits("muse", OSLO, choice, allowed_tools=["geo.find"])
    answer = " to=user<|message|>Hi"
    assert fits("muse", answer, None, allowed_tools=["geo.find"])
    assert not fits("muse", answer, "required", allowed_tools=["geo.find"])


def test_several_calls_are_no_option_by_themselves() -> None:
    assert offer_of(TOOLS) is None and offer_of(TOOLS, parallel_tool_calls=True) is None


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
        ({"parallel_tool_calls": 0}, "parallel_tool_calls: got 0, allowed is True or False"),
        ({"parallel_tool_calls": False, "tools": None}, "parallel_tool_calls: got False without"),
        ({"allowed_tools": ["f"], "tools": None}, r"allowed_tools: got \['f'\] without tools"),
        ({"allowed_tools": ["f"]}, r"allowed_tools: got 'f', allowed is some of \['calculate'\]"),
        ({"allowed_tools": []}, "allowed_tools: got .*, allowed is a list of names"),
        ({"allowed_tools": "calculate"}, "allowed_tools: got 'calculate', allowed is a list"),
        ({"tool_choice": "auto", "regex": "a"}, "regex contradicts tools"),
        ({"tool_choice": "auto", "min_new_tokens": 3}, "min_new_tokens contradicts tools"),
    ],
)
def test_refusals(nano, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        nano.chat(SUM, **{"tools": CALC, **options})


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"$ref": "#/x"}, r"tools: f.a: \$ref: '#/x' is no place in the schema"),
        ({"type": "frob"}, "tools: f.a: got the type 'frob', allowed are string"),
        ({"type": "array", "items": {"enum": []}}, "tools: f.a: got an empty enum"),
        ({"type": "integer", "minimum": 2, "maximum": 1}, "tools: .*minimum"),
        ({"type": "object", "not": {}}, "tools: .*not"),
    ],
)
def test_schemas_that_cannot_be_followed(nano, rule: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        nano.chat(SUM, tools=[tool("f", ["a"], a=rule)], tool_choice="auto")


DEEP_ROOT: dict[str, Any] = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
MANY = {"oneOf": [{"properties": {f"p{i}": {}}} for i in range(65)]}


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "tools: f: none of what its schema"),
        ({"oneOf": [{"enum": [1]}]}, "tools: f: got enum among what its arguments may be"),
        (DEEP_ROOT, "tools: f: its schema refers to itself without end"),
        ({"$ref": "#/$defs/b"}, r"tools: f: \$ref: '#/\$defs/b' is no place"),
        (MANY, "tools: f: its arguments have more than 64 shapes"),
        ({"anyOf": 3}, "tools: f: anyOf: got 3, allowed is an array"),
        (
            {"anyOf": [{"properties": [1]}]},
            r"tools: f: properties: got \[1\], allowed is an object",
        ),
    ],
)
def test_roots_that_cannot_be_followed(nano, parameters: Any, says: str) -> None:
    given = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    for choice in (None, "auto"):
        with pytest.raises(InvalidRequest, match=says):
            nano.chat(SUM, tools=given, tool_choice=choice)


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


def test_a_thought_spelled_with_other_tokens_is_none() -> None:
    """A budget counts what the header's own tokens open: Nano, who wanted another tool than the one
    it had to call, went on thinking behind a header in letters."""
    protocol, tokens = PROTOCOLS["muse"], musespark.Tokenizer.load(NANO)
    grammars = Grammars(tokens, tokens.vocab_size, {*tokens.eos_ids}, protocol.markers)
    prompt = tokens.encode("<|start|>assistant", parse_special=True)
    offer = offer_of(TOOLS, "required")
    assert offer is not None

    def opens(ids: list[int]) -> bool:
        constraint = Constraint(grammars, turn_grammar(protocol, tokens, prompt, offer))
        new: list[int] = []
        for token in ids:
            mask = constraint(new)
            if not mask[token >> 3] >> (token & 7) & 1:
                return False
            new = [token]
        return True

    message = tokens.markers["<|message|>"]
    header = tokens.encode(" to=self")
    spelled = [i for part in (" to=", *"self") for i in tokens.encode(part)]
    assert len(header) == 1 and tokens.decode(spelled) == " to=self"
    assert opens([*header, message]) and not opens([*spelled, message])
