"""MuseSparkModel for pydantic-ai beside the model that it wraps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest
from pydantic_ai import Agent, BinaryContent, ImageUrl, NativeOutput, ToolOutput
from pydantic_ai.direct import model_request
from pydantic_ai.messages import (
    AudioUrl,
    ModelRequest,
    ModelResponse,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.settings import ToolOrOutput
from pydantic_ai.tools import ToolDefinition

import musespark
from musespark.integrations.pydantic_ai import MuseSparkModel
from musespark.integrations.pydantic_ai_messages import tool_options
from support.scripted_model import calls, says, scripted_model, thinks

SUM = "What is 47 + 38?"
PICTURE = Path(musespark.__file__).parent / "nano" / "examples" / "window.png"


class Sum(pydantic.BaseModel):
    """A sum."""

    sum: int = pydantic.Field(ge=0, le=999)


def calculate(expression: str) -> str:
    """Calculates."""
    return str(sum(map(int, expression.split("+"))))


@pytest.fixture(scope="module")
def nano() -> Iterator[musespark.Model]:
    with musespark.load(threads=1) as loaded:
        yield loaded


async def test_a_turn_is_the_models_whole_and_streamed(nano) -> None:
    here = nano.chat(SUM, reasoning_effort="high")
    agent = Agent(MuseSparkModel(nano), model_settings={"thinking": "high"})
    run = await agent.run(SUM)
    response = run.all_messages()[-1]
    assert response.parts == [ThinkingPart(here.reasoning), TextPart(here.content)]
    assert response.usage.details["reasoning_tokens"] == here.usage.reasoning_tokens > 0
    assert (response.finish_reason, response.provider_details["seed"]) == ("stop", here.seed)
    async with agent.run_stream(SUM) as stream:
        pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
        last = stream.all_messages()[-1]
    assert "".join(pieces) == here.content
    assert (last.parts, last.finish_reason) == (response.parts, "stop")
    assert last.usage.output_tokens == here.usage.completion_tokens


def test_settings_are_options_of_chat(nano) -> None:
    options = {"temperature": 1.5, "seed": 7, "top_k": 9, "max_tokens": 30}
    here = nano.chat(SUM, **options, reasoning_effort="low", stop=["9"])
    settings = {**options, "thinking": "low", "stop_sequences": ["9"]}
    found = Agent(MuseSparkModel(nano, settings=settings)).run_sync(SUM)
    assert found.output == here.content
    ours = {"thinking": "high", "musespark_options": {"thinking_token_budget": 10}}
    cut = Agent(MuseSparkModel(nano)).run_sync(SUM, model_settings=ours)
    assert cut.all_messages()[-1].provider_details["thinking_stop_reason"] == "budget"
    silent = Agent(MuseSparkModel(nano)).run_sync(SUM, model_settings={"thinking": False})
    assert [part.part_kind for part in silent.all_messages()[-1].parts] == ["text"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"temprature": 3}, "unknown argument 'temprature'; did you mean 'temperature'"),
        ({"nope": 1}, "unknown argument 'nope'"),
        ({"musespark_options": {"nope": 1}}, "unknown argument 'nope'"),
        ({"citations": True}, "citations: got True, allowed is False"),
        ({"extra_body": {"a": 1}}, "extra_body: got {'a': 1}, allowed is {}"),
        ({"stream": True}, "stream: got it as a setting"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(nano, settings, says: str) -> None:
    with pytest.raises(musespark.InvalidRequest, match=says):
        Agent(MuseSparkModel(nano)).run_sync(SUM, model_settings=settings)


@pytest.mark.filterwarnings("ignore:.*timeout")
def test_settings_without_a_part_and_options_of_chat(nano) -> None:
    here = nano.chat(SUM, thinking_token_budget=10)
    settings = {"timeout": 9, "request_timeout": 600, "service_tier": "auto", "cache": True}
    settings |= {"parallel_tool_calls": True, "citations": False, "thinking_token_budget": 10}
    found = Agent(MuseSparkModel(nano)).run_sync(SUM, model_settings=settings)
    assert found.output == here.content
    details = found.all_messages()[-1].provider_details
    assert details["thinking_stop_reason"] == "budget"


async def test_a_call_and_its_result_are_the_prompt_that_chat_writes() -> None:
    turns = [thinks("I add.") + calls("calculate", expression="1+2"), says("3"), says("3")]
    with scripted_model(turns) as model:
        agent = Agent(
            MuseSparkModel(model), tools=[calculate], system_prompt="Be brief.", instructions="Now."
        )
        run = await agent.run("Add.")
        assert run.output == "3"
        (call,) = [p for m in run.all_messages() for p in m.parts if isinstance(p, ToolCallPart)]
        plain: list[Any] = [{"role": "system", "content": "Be brief.\n\nNow."}]
        plain += [{"role": "user", "content": "Add."}]
        function = {"name": "calculate", "arguments": {"expression": "1+2"}}
        turn = {"id": call.tool_call_id, "type": "function", "function": function}
        plain += [{"role": "assistant", "reasoning_content": "I add.", "tool_calls": [turn]}]
        plain += [{"role": "tool", "name": "calculate", "content": "3"}]
        schema = {"type": "object", "properties": {"expression": {"type": "string"}}}
        schema |= {"required": ["expression"], "additionalProperties": False}
        tool = {"name": "calculate", "description": "Calculates.", "parameters": schema}
        model.chat(plain, tools=[{"type": "function", "function": tool}])
        assert "I add." in model.asked[1] == model.asked[2]


def test_whether_a_turn_has_several_calls_is_passed_on() -> None:
    parameters = ModelRequestParameters(function_tools=[ToolDefinition(name="calculate")])
    for said in (None, True, False):
        settings = {} if said is None else {"parallel_tool_calls": said}
        assert tool_options(settings, parameters)["parallel_tool_calls"] is said


async def test_an_agent_of_pydantic_ai_streams_its_call_and_its_answer() -> None:
    turns = [calls("calculate", expression="7509+100"), says("It is 7609.")]
    with scripted_model(turns) as model:
        agent = Agent(MuseSparkModel(model), tools=[calculate])
        async with agent.run_stream("How much is 7509+100?") as stream:
            assert await stream.get_output() == "It is 7609."
        kinds = [part.part_kind for message in stream.all_messages() for part in message.parts]
    assert [kind for kind in kinds if kind.startswith("tool")] == ["tool-call", "tool-return"]


def test_a_picture_is_seen_as_by_chat(nano) -> None:
    question = {"type": "text", "text": "What is in the picture?"}
    part = {"type": "image", "image": PICTURE}
    here = nano.chat([{"role": "user", "content": [part, question]}], max_new_tokens=300)
    agent = Agent(MuseSparkModel(nano), model_settings={"max_tokens": 300})
    picture = BinaryContent(PICTURE.read_bytes(), media_type="image/png")
    for image in (picture, ImageUrl(picture.data_uri)):
        assert agent.run_sync([image, question["text"]]).output == here.content
    with pytest.raises(musespark.InvalidRequest, match="nothing is fetched or opened"):
        agent.run_sync([ImageUrl("https://example.org/a.png")])
    with pytest.raises(musespark.InvalidRequest, match="got a AudioUrl, allowed are text"):
        agent.run_sync([AudioUrl("https://example.org/a.wav")])


@pytest.mark.parametrize("kind", [NativeOutput, ToolOutput])
def test_structured_output(nano, kind: type) -> None:
    settings = {"thinking": "low", "max_tokens": 60}
    agent = Agent(MuseSparkModel(nano), output_type=kind(Sum), model_settings=settings)
    assert isinstance(agent.run_sync(SUM).output, Sum)


def test_structured_output_beside_tools(nano) -> None:
    both = Agent(MuseSparkModel(nano), tools=[calculate], output_type=NativeOutput(Sum))
    assert isinstance(both.run_sync(SUM).output, Sum)


def test_errors_are_musesparks(nano) -> None:
    agent = Agent(MuseSparkModel(nano))
    with pytest.raises(musespark.ContextOverflow):
        agent.run_sync("word " * 5000)
    with pytest.raises(musespark.InvalidRequest, match="temperature: got -1"):
        agent.run_sync(SUM, model_settings={"temperature": -1})


async def test_a_stream_that_is_cancelled_ends_the_request(nano) -> None:
    options = {"max_tokens": 1500, "musespark_options": {"min_new_tokens": 1500}}
    async with Agent(MuseSparkModel(nano)).run_stream("Hello", model_settings=options) as stream:
        async for _ in stream.stream_text(debounce_by=None):
            break
        await stream.cancel()
    assert stream.response.state == "interrupted"
    assert nano.chat("Hello").content


async def test_messages_without_an_agent() -> None:
    with scripted_model([says("3")]) as model:
        called = ModelResponse([TextPart("I add."), ToolCallPart("add", '{"a": 1}', "x")])
        given = ModelRequest([ToolReturnPart("add", "3", "x")], instructions="Be brief.")
        history = [ModelRequest([UserPromptPart("Add.")]), called, given]
        assert (await model_request(MuseSparkModel(model), history)).parts == [TextPart("3")]
        assert "Be brief." in model.asked[0]


Choice = Literal["auto", "required", "none"] | list[str] | ToolOrOutput | None


@pytest.mark.parametrize(
    ("choice", "text", "names", "mode"),
    [
        (None, True, ["add", "paint", "final"], "auto"),
        (None, False, ["add", "paint", "final"], "required"),
        ("required", True, ["add", "paint", "final"], "required"),
        ("none", True, ["final"], "auto"),
        ("none", False, ["final"], "required"),
        (["paint"], True, ["paint"], "required"),
        (ToolOrOutput(["add"]), False, ["add", "final"], "required"),
    ],
)
def test_the_choice_of_tools(choice: Choice, text: bool, names: list[str], mode: str) -> None:
    tools = [ToolDefinition(name=name) for name in ("add", "paint", "final")]
    asked = ModelRequestParameters(
        function_tools=tools[:2], output_tools=tools[2:], allow_text_output=text
    )
    found = tool_options({"tool_choice": choice}, asked)
    assert [tool["function"]["name"] for tool in found["tools"]] == names
    assert found["tool_choice"] == mode
    alone = ModelRequestParameters(function_tools=tools[:1])
    assert tool_options({"tool_choice": "none"}, alone)["tool_choice"] == "none"
    assert tool_options({}, ModelRequestParameters()) == {}
