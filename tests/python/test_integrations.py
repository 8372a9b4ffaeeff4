"""What the adapters of agent frameworks share."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from typing import Any

import pytest

from musespark import InvalidRequest
from musespark.integrations.shared import chat_options, closed, streamed
from musespark.messages import conversation, tool_call

TOOL = {"type": "function", "function": {"name": "add", "description": "", "parameters": {}}}


@pytest.mark.parametrize(
    ("module", "framework", "extra"),
    [
        ("langchain", "langchain_core", "langchain"),
        ("llama_index", "llama_index", "llama-index"),
        ("smolagents", "smolagents", "smolagents"),
        ("pydantic_ai", "pydantic_ai", "pydantic-ai"),
    ],
)
def test_a_missing_framework_names_its_extra(module: str, framework: str, extra: str) -> None:
    code = f"""
import sys
import musespark.integrations
assert {framework!r} not in sys.modules
sys.modules[{framework!r}] = None
try:
    import musespark.integrations.{module}
except musespark.MissingLibrary as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"musespark.integrations.{module} needs {framework}")
    assert done.stdout.endswith(f"pip install 'musespark[{extra}]'\n")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("langchain", "ChatMuseSpark"),
        ("llama_index", "MuseSparkLLM"),
        ("smolagents", "MuseSparkModel"),
        ("pydantic_ai", "MuseSparkModel"),
    ],
)
def test_a_folder_is_no_model(module: str, name: str) -> None:
    adapter = getattr(importlib.import_module(f"musespark.integrations.{module}"), name)
    with pytest.raises(InvalidRequest, match=r"^model: got str, allowed is a model of musespark"):
        adapter(model="FOLDER")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, "auto"),
        ("any", "required"),
        (True, "required"),
        ("required", "required"),
        ("none", "none"),
        ("add", "add"),
        ({"type": "function", "function": {"name": "add"}}, "add"),
    ],
)
def test_a_choice_of_tools_in_each_way_to_write_it(given: Any, found: str) -> None:
    assert chat_options({"tools": [TOOL], "tool_choice": given})["tool_choice"] == found


@pytest.mark.parametrize("given", [["f"], 1, 1.0, {"type": "any"}, {"function": {"name": 1}}])
def test_a_choice_of_tools_that_is_none(given: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"tool_choice: got .*, allowed is auto, .* True,"):
        chat_options({"tools": [TOOL], "tool_choice": given})


def test_what_is_not_given_is_left_out() -> None:
    assert chat_options({"tools": [], "seed": None, "tool_choice": None, "top_k": 3}) == {
        "top_k": 3
    }


@pytest.mark.parametrize("form", ["json", {"type": "text"}, {"type": "json_schema"}])
def test_a_response_format_that_is_none(form: Any) -> None:
    with pytest.raises(InvalidRequest, match="response_format: got"):
        chat_options({"response_format": form})


def test_an_answers_schema_is_closed_unless_it_says_otherwise() -> None:
    inner = {"type": "object", "properties": {"type": {"type": "string"}, "properties": {}}}
    schema = {"type": "object", "properties": {"a": inner}, "$defs": {"b": {"anyOf": [inner]}}}
    done = {**inner, "additionalProperties": False}
    expected = {
        "type": "object",
        "properties": {"a": done},
        "$defs": {"b": {"anyOf": [done]}},
        "additionalProperties": False,
    }
    assert closed(schema) == expected
    assert closed(expected) == expected
    assert closed({**inner, "additionalProperties": True})["additionalProperties"] is True
    named = {"type": "json_schema", "json_schema": {"schema": inner}}
    assert chat_options({"response_format": named}) == {"json_schema": done}
    named["json_schema"]["strict"] = False
    assert chat_options({"response_format": named}) == {"json_schema": inner}
    assert chat_options({"response_format": {"type": "json_object"}}) == {
        "json_schema": {"type": "object"}
    }


def test_a_tool_is_described_alike_whichever_framework_it_comes_from() -> None:
    colors = {"enum": [{"title": "red"}], "title": "Title", "type": "string"}
    given = {"title": "Add", "properties": {"title": colors}, "additionalProperties": False}
    given |= {"required": ["title"], "type": "object"}
    tool = {"type": "function", "function": {"name": "add", "parameters": given}}
    (told,) = chat_options({"tools": [tool]})["tools"]
    expected = {
        "type": "object",
        "properties": {"title": {"type": "string", "enum": [{"title": "red"}]}},
        "required": ["title"],
        "additionalProperties": False,
    }
    assert json.dumps(told["function"]["parameters"]) == json.dumps(expected)
    assert chat_options({"tools": ["add"]})["tools"] == ["add"]


def test_the_system_messages_at_the_beginning_are_one() -> None:
    first, second = ({"role": "system", "content": text} for text in ("a", "b"))
    user = {"role": "user", "content": "c"}
    one = {"role": "system", "content": "a\n\nb"}
    assert conversation([first, second, user, second]) == [one, user, second]
    assert conversation([first, user]) == [first, user]
    told = {"role": "developer", "content": [{"type": "text", "text": t} for t in "bd"]}
    one["content"] = "a\n\nb\nd"
    assert conversation([first, told, user]) == [one, user]
    assert conversation([told, told])[0] == {"role": "developer", "content": "b\nd\n\nb\nd"}


def test_a_result_is_of_the_last_call_before_it_that_has_the_id() -> None:
    def called(name: str) -> dict[str, Any]:
        return {"role": "assistant", "content": "", "tool_calls": [tool_call("call_2", name, {})]}

    result = {"role": "tool", "tool_call_id": "call_2", "content": "ok"}
    turns = [called("weather"), {**result}, called("time"), {**result}]
    assert [turn.get("name") for turn in conversation(turns)] == [None, "weather", None, "time"]
    with pytest.raises(
        InvalidRequest, match=r"messages\[0\]: no call before it has the id 'call_2'"
    ):
        conversation([{**result}, called("time")])


def test_several_agents_do_not_stream() -> None:
    assert streamed({"mode": "thinking"}) == {"mode": "thinking", "stream": True}
    with pytest.raises(InvalidRequest, match="mode: got 'contemplating' in a stream"):
        streamed({"mode": "contemplating"})
