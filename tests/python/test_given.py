"""What callers give to chat: tools and messages in OpenAI's shapes, options a template lacks."""

from __future__ import annotations

import dataclasses
import json

import pytest

import musespark
from musespark import prompts
from musespark.errors import InvalidRequest
from musespark.text import PROTOCOLS, ChatTemplate, checked_messages, checked_tools

USER = {"role": "user", "content": "hi"}
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def tool(**function):
    return [{"type": "function", "function": {"name": "f", **function}}]


@pytest.fixture(scope="module")
def model():
    with musespark.load(context=512, threads=1) as loaded:
        yield loaded


def ids(model, source: str, **options) -> list[int]:
    template = ChatTemplate.from_named(source, origin="chat_template.jinja")
    return prompts.chat_ids(model.tokenizer, template, PROTOCOLS["plain"], [USER], **options)


def rendered(model, source: str, **options) -> str:
    return model.tokenizer.decode(ids(model, source, **options))


# ---- options that a template does not use -------------------------------------------------------


@pytest.mark.parametrize(
    "source", [PLAIN, "{% if tools %}{% endif %}" + PLAIN, "{# tools #}" + PLAIN]
)
def test_tools_that_a_template_drops_are_refused(model, source) -> None:
    """They were dropped in silence: the model answered without ever having heard of them."""
    with pytest.raises(InvalidRequest, match=r"chat_template\.jinja does not use tools"):
        ids(model, source, tools=tool())
    assert ids(model, source, tools=[]) == ids(model, source) == ids(model, source, tools=None)


@pytest.mark.parametrize("name", ["tools", "xml_tools", "python_tools"])
def test_tools_come_under_the_name_a_template_has_for_them(model, name) -> None:
    source = f"{{% for t in {name} or [] %}}[{{{{ t.function.name }}}}]{{% endfor %}}" + PLAIN
    assert rendered(model, source, tools=tool(name="look_up")).startswith("[look_up]user")


def test_tools_go_to_the_template_made_for_them(model) -> None:
    named = {"default": PLAIN, "tool_use": "{{ tools[0].function.name }}" + PLAIN}
    template = ChatTemplate.from_named(named, origin="chat_template.jinja")
    got = prompts.chat_ids(model.tokenizer, template, PROTOCOLS["plain"], "hi", tools=tool())
    assert model.tokenizer.decode(got).startswith("fuser")


def test_a_template_for_tools_only_says_so(model) -> None:
    source = "{% for t in tools %}{{ t }}{% endfor %}" + PLAIN
    with pytest.raises(InvalidRequest, match=r"pass tools=\[\.\.\.\]"):
        ids(model, source)


@pytest.mark.parametrize("name", ["reasoning_effort", "reasoning_strength"])
def test_an_effort_that_changes_nothing_is_refused(model, name) -> None:
    """The word in a comment or in an unused branch was enough."""
    for source in (f"{{# {name} #}}" + PLAIN, f"{{% set a = {name} %}}" + PLAIN):
        with pytest.raises(InvalidRequest, match="knows no effort"):
            ids(model, source, reasoning_effort="low")
    source = f"{{{{ {name} | default('medium') }}}} " + PLAIN
    default = ids(model, source)
    assert ids(model, source, reasoning_effort="medium") == default  # the template's own level
    assert ids(model, source, reasoning_effort="low") != default


def test_a_level_that_a_template_refuses_is_its_error(model) -> None:
    source = "{% if reasoning_effort == 'xhigh' %}{{ raise_exception('too high') }}{% endif %}"
    with pytest.raises(InvalidRequest, match="too high"):
        ids(model, source + PLAIN, reasoning_effort="xhigh")
    ids(model, source + PLAIN, reasoning_effort="low")  # xhigh differs, in its way


def test_a_mode_that_changes_nothing_is_refused(model) -> None:
    with pytest.raises(InvalidRequest, match="cannot choose it"):
        ids(model, "{% set a = enable_thinking %}" + PLAIN, mode="instant")
    source = "{{ 'T' if enable_thinking | default(true) else 'I' }}" + PLAIN
    assert rendered(model, source, mode="instant").startswith("I")
    assert rendered(model, source, mode="thinking").startswith("T")


@pytest.mark.parametrize("wrong", [[], 5, "", {"mode": "auto"}])
def test_modes_are_words(model, wrong) -> None:
    with pytest.raises(InvalidRequest, match="mode: got"):
        model.chat("hi", mode=wrong)
    with pytest.raises(InvalidRequest, match="reasoning_effort: got"):
        model.chat("hi", reasoning_effort=wrong)


# ---- tools --------------------------------------------------------------------------------------


def test_what_openai_lets_out_of_a_tool_is_filled_in(model) -> None:
    """Spark Nano's own template failed on a tool without a description."""
    assert checked_tools(tool()) == tool(
        description="", parameters={"type": "object", "properties": {}}
    )
    whole = tool(description="d", parameters={"properties": {"a": {}}, "type": "object"})
    assert json.dumps(checked_tools(whole)) == json.dumps(whole)
    assert checked_tools(tool(strict=True))[0]["function"]["strict"] is True
    for given in (tool(), tool(description=None, parameters=None), tool(parameters={})):
        assert model.chat("hi", tools=given, max_new_tokens=2).tokens
    for name in ("größe", "1st", "mcp_a.b-c", "a" * 128):
        assert checked_tools(tool(name=name))[0]["function"]["name"] == name
    assert checked_tools(None) is None and checked_tools([]) == []


cyclic: dict = {}
cyclic["a"] = cyclic


@pytest.mark.parametrize(
    ("tools", "field"),
    [
        (tool(name=5), r"tools\[0\]\.function\.name: got 5"),
        (tool(name=None), r"tools\[0\]\.function\.name: got None"),
        (tool(name=""), r"tools\[0\]\.function\.name"),
        *(
            (tool(name=name), r"tools\[0\]\.function\.name: got .*, allowed is 1 to 128 letters")
            for name in ("a b<", "a\nb", "get weather<x>", "a" * 129)
        ),
        (tool() + tool(), r"tools\[1\]\.function\.name: got '.*', allowed is each name once"),
        (
            tool(parameters={"type": "objekt"}),
            r"parameters\.type: got 'objekt', allowed is 'object'",
        ),
        (tool(parameters={"type": "string"}), r"parameters\.type: got 'string'"),
        (tool(parameters={"type": "array"}), r"parameters\.type: got 'array'"),
        (tool(parameters={"type": ["object"]}), r"parameters\.type: got a value of type list"),
        (tool(parameters={"not": {}}), r"function\.parameters\.not: got a value of type dict"),
        (tool(parameters={"const": 3}), r"function\.parameters\.const: got 3"),
        (tool(description=5), r"tools\[0\]\.function\.description: got 5"),
        (tool(parameters=[]), r"tools\[0\]\.function\.parameters"),
        (tool(parameters={"x": {1, 2}}), r"tools\[0\]\.function\.parameters\.x: .* type set"),
        (tool(parameters={"x": [float("nan")]}), r"function\.parameters\.x\[0\]: got nan"),
        (tool(parameters={1: 2}), r"function\.parameters: got 1, allowed is a str as key"),
        (tool(parameters=cyclic), "nested more than"),
        (tool(parameters={"x\ud800": 1}), r"a key of .*parameters: a lone surrogate at index 1"),
        (
            tool(parameters={"properties": ["a"]}),
            r"parameters\.properties: .* type list",
        ),
        ([*tool(), {"type": "function", "function": {}}], r"tools\[1\]\.function\.name"),
        ([{"type": "function"}], r"tools\[0\]\.function is missing"),
        ([{"name": "f", "parameters": {}}], r"tools\[0\]\.function is missing"),
        ([{"type": "web_search"}], r"tools\[0\]\.type: got 'web_search'"),
        (tool(name="f\ud800"), r"function\.name: a lone surrogate at index 1"),
        ([print], "tools: print\\(args\\): arguments are given by name"),
        ([5], r"tools\[0\]: got 5"),
        ("x", "tools: got 'x'"),
        (tool()[0], "tools: got a value of type dict"),
    ],
)
def test_wrong_tools_name_the_field(model, tools, field) -> None:
    with pytest.raises(InvalidRequest, match=field):
        model.chat("hi", tools=tools)


# ---- messages -----------------------------------------------------------------------------------


def calls(value):
    return [USER, {"role": "assistant", "content": None, "tool_calls": value}]


def call(**function):
    return calls([{"id": "1", "type": "function", "function": {"name": "f", **function}}])


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        (calls(5), r"messages\[1\]\.tool_calls: got 5"),
        (calls("abc"), r"messages\[1\]\.tool_calls: got 'abc'"),
        (calls([5]), r"messages\[1\]\.tool_calls\[0\]: got 5"),
        (calls([{"id": "1"}]), r"messages\[1\]\.tool_calls\[0\]\.name: got None"),
        (calls([{"function": 5}]), r"messages\[1\]\.tool_calls\[0\]\.function: got 5"),
        (call(name=5), r"tool_calls\[0\]\.function\.name: got 5"),
        (call(name="f\ud800"), r"tool_calls\[0\]\.function\.name: a lone surrogate"),
        (calls([{"id": "\ud800", "function": {"name": "f"}}]), r"calls\[0\]\.id: a lone surrogate"),
        ([{**USER, "name": "\ud800"}], r"messages\[0\]\.name: a lone surrogate"),
        (call(arguments=5), r"tool_calls\[0\]\.function\.arguments: got 5"),
        (call(arguments={"x": {1}}), r"tool_calls\[0\]\.function\.arguments\.x: .* type set"),
        (calls(None), r"messages\[1\]\.content: got None, .* missing beside tool_calls"),
        (calls([]), r"messages\[1\]\.content: got None"),
        ([{"role": "user"}], r"messages\[0\]\.content: got None"),
        ([{"role": "user", "content": 5}], r"messages\[0\]\.content: got 5"),
        ([{"role": "user", "content": b"hi"}], r"messages\[0\]\.content: .* type bytes"),
        ([{"role": "user", "content": {"a": 1}}], r"messages\[0\]\.content: .* type dict"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\]\.text: got None"),
        ([{"role": "tool", "content": {"a": {1}}}], r"messages\[0\]\.content\.a: .* type set"),
        ([{"role": None, "content": "hi"}], r"messages\[0\]\.role: got None"),
        ([{"content": "hi"}], r"messages\[0\]\.role: got None"),
        ([{**USER, "reasoning": 5}], r"messages\[0\]\.reasoning: got 5"),
        ([{"role": "user", "content": "a\ud800"}], r"\[0\]\.content: a lone surrogate at index 1"),
        (["hi"], r"messages\[0\]: got 'hi'"),
        ([], "messages: got an empty list"),
        (5, "messages: got 5"),
        (USER, "messages: got a value of type dict"),
        (None, "messages: got None"),
    ],
)
def test_wrong_messages_name_the_field(model, messages, field) -> None:
    """They came out as Python's own errors, or as the template's."""
    with pytest.raises(InvalidRequest, match=field):
        model.chat(messages)


def test_messages_of_every_kind_are_taken() -> None:
    @dataclasses.dataclass
    class Message:
        role: str
        content: str

    class Pydantic:
        def model_dump(self):
            return USER

    given = [
        USER,
        Message("user", "hi"),
        Pydantic(),
        {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": 1}}]},
        {"role": "tool", "content": {"a": 1}},
        {"role": "assistant", "content": None, "reasoning_content": "so"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
    ]
    checked = checked_messages(given, "")
    assert checked[0] == checked[1] == checked[2] == checked_messages("hi", "")[0]
    assert len(checked) == len(given)


# ---- lengths that come from the model -----------------------------------------------------------


def test_a_models_own_length_is_cut_to_the_context(model, monkeypatch) -> None:
    """Conversations died when less than generation_config.json's max_new_tokens was left."""
    own = dataclasses.replace(model._requests.defaults, max_new_tokens=400, min_new_tokens=300)
    monkeypatch.setattr(model._requests, "defaults", own)
    result = model.generate([5] * 500)
    assert (result.finish_reason, len(result.tokens)) == ("length", 12)
    assert model.chat("word " * 60, max_new_tokens=3).usage.completion_tokens == 3
    for explicit in ({"max_new_tokens": 400}, {"min_new_tokens": 400, "max_new_tokens": 400}):
        with pytest.raises(musespark.ContextOverflow, match="the context has 512"):
            model.generate([5] * 500, **explicit)
    with pytest.raises(InvalidRequest, match=r"= 400 \(from the model's gen"):
        model.generate("hi", min_new_tokens=401)
