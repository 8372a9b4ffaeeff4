"""MuseSparkLLM beside the model that it wraps: the same turns, prompts and errors."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import (
    AudioBlock,
    ChatMessage,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
)
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool

import musespark
from musespark.integrations.llama_index import MuseSparkLLM
from support.scripted_model import calls, says, scripted_model, thinks

SUM = [ChatMessage("What is 47 + 38?")]
PICTURE = Path(musespark.__file__).parent / "nano" / "examples" / "window.png"


class Sum(pydantic.BaseModel):
    """A sum."""

    model_config = pydantic.ConfigDict(extra="forbid")
    sum: int = pydantic.Field(ge=0, le=999)


def calculate(expression: str) -> str:
    """Calculates."""
    return str(sum(map(int, expression.split("+"))))


class Paint(pydantic.BaseModel):
    """Paints."""

    color: Literal["red", "green"]


CALCULATE = FunctionTool.from_defaults(calculate)
PAINT = FunctionTool.from_defaults(lambda color: color, name="paint", fn_schema=Paint)


@pytest.fixture(scope="module")
def nano() -> Iterator[musespark.Model]:
    with musespark.load(threads=1) as loaded:
        yield loaded


async def test_a_turn_is_the_models_in_every_way_of_asking(nano) -> None:
    here = nano.chat(SUM[0].content, reasoning_effort="high")
    llm = MuseSparkLLM(model=nano, reasoning_effort="high")
    whole = llm.chat(SUM)
    thought = ThinkingBlock(content=here.reasoning, num_tokens=here.usage.reasoning_tokens)
    assert whole.message.blocks == [thought, TextBlock(text=here.content)]
    assert whole.additional_kwargs["reasoning_tokens"] == here.usage.reasoning_tokens > 0
    assert whole.raw["usage"]["completion_tokens"] == here.usage.completion_tokens
    streamed = list(llm.stream_chat(SUM))
    others = [streamed[-1], await llm.achat(SUM)]
    others += [piece async for piece in await llm.astream_chat(SUM)][-1:]
    assert [other.message for other in others] == [whole.message] * 3
    assert "".join(piece.delta for piece in streamed) == here.content
    thoughts = [piece.additional_kwargs.get("thinking_delta", "") for piece in streamed]
    assert "".join(thoughts) == here.reasoning
    asked = SUM[0].content
    texts = [llm.complete(asked).text, (await llm.acomplete(asked)).text]
    texts += [list(llm.stream_complete(asked))[-1].text]
    texts += [[piece async for piece in await llm.astream_complete(asked)][-1].text]
    assert texts == [here.content] * 4


def test_options_are_those_of_chat(nano) -> None:
    options = {"temperature": 1.5, "seed": 7, "reasoning_effort": "low", "max_tokens": 30}
    here = nano.chat(SUM[0].content, **options, stop=["9"]).content
    assert MuseSparkLLM(model=nano, **options, stop=["9"]).chat(SUM).message.content == here
    assert MuseSparkLLM(model=nano).chat(SUM, **options, stop=["9"]).message.content == here
    told = MuseSparkLLM(model=nano, max_tokens=30).metadata
    assert (told.context_window, told.num_output) == (nano.info.context, 30)


def test_a_call_and_its_result_are_the_prompt_that_chat_writes() -> None:
    turns = [thinks("I add.") + calls("calculate", expression="1+2"), says("3"), says("3")]
    with scripted_model(turns) as model:
        llm = MuseSparkLLM(model=model)
        called = llm.chat_with_tools([CALCULATE], "Add.")
        (call,) = llm.get_tool_calls_from_response(called)
        assert (call.tool_name, call.tool_kwargs) == ("calculate", {"expression": "1+2"})
        given = ChatMessage("3", role="tool", additional_kwargs={"tool_call_id": call.tool_id})
        history = [ChatMessage("Add."), called.message, given]
        assert llm.chat_with_tools([CALCULATE], chat_history=history).message.content == "3"
        plain: list[Any] = [{"role": "user", "content": "Add."}]
        function = {"name": "calculate", "arguments": {"expression": "1+2"}}
        turn = {"id": call.tool_id, "type": "function", "function": function}
        plain += [{"role": "assistant", "reasoning_content": "I add.", "tool_calls": [turn]}]
        plain += [{"role": "tool", "name": "calculate", "content": "3"}]
        parameters = {"type": "object", "properties": {"expression": {"type": "string"}}}
        told = {"name": "calculate", "description": CALCULATE.metadata.description}
        told["parameters"] = {**parameters, "required": ["expression"]}
        model.chat(plain, tools=[{"type": "function", "function": told}])
        assert "I add." in model.asked[1] == model.asked[2]


def test_calls_are_required_and_single_where_that_is_asked(nano) -> None:
    llm = MuseSparkLLM(model=nano, reasoning_effort="medium", max_tokens=200)
    forced = llm.chat_with_tools([PAINT], SUM[0].content, tool_required=True)
    (call,) = llm.get_tool_calls_from_response(forced)
    assert (call.tool_name, *call.tool_kwargs) == ("paint", "color")
    free = llm.chat_with_tools([PAINT], SUM[0].content, tool_choice="none")
    with pytest.raises(ValueError, match="called no tool, it said"):
        llm.get_tool_calls_from_response(free)
    for several in (False, True):
        asked = llm._prepare_chat_with_tools([PAINT], "Hi", allow_parallel_tool_calls=several)
        assert asked["parallel_tool_calls"] is several
    assert llm._prepare_chat_with_tools([PAINT], "Hi")["parallel_tool_calls"] is False


def test_a_picture_is_seen_as_by_chat(nano) -> None:
    question = {"type": "text", "text": "What is in the picture?"}
    part = {"type": "image", "image": PICTURE}
    here = nano.chat([{"role": "user", "content": [part, question]}], max_new_tokens=60)
    llm = MuseSparkLLM(model=nano, max_tokens=60)
    data = PICTURE.read_bytes()
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    for image in (ImageBlock(image=data), ImageBlock(path=PICTURE), ImageBlock(url=url)):
        blocks = [image, TextBlock(text=question["text"])]
        assert llm.chat([ChatMessage(blocks=blocks)]).message.content == here.content
    with pytest.raises(musespark.InvalidRequest, match="nothing is fetched or opened"):
        llm.chat([ChatMessage(blocks=[ImageBlock(url="https://example.org/a.png")])])


def test_structured_output(nano) -> None:
    llm = MuseSparkLLM(model=nano, reasoning_effort="low", max_tokens=60)
    assert isinstance(llm.structured_predict(Sum, PromptTemplate(SUM[0].content)), Sum)
    assert Sum.model_validate_json(llm.chat(SUM, json_schema=Sum).message.content)


def test_errors_are_musesparks(nano) -> None:
    llm = MuseSparkLLM(model=nano)
    with pytest.raises(musespark.ContextOverflow):
        llm.complete("word " * 5000)
    with pytest.raises(musespark.InvalidRequest, match="temperature: got -1"):
        llm.stream_chat(SUM, temperature=-1).__next__()
    with pytest.raises(musespark.InvalidRequest, match=r"messages\[0\].blocks\[0\]: got the type"):
        llm.chat([ChatMessage(blocks=[AudioBlock(audio=b"RIFF")])])


async def test_an_agent_of_llama_index_calls_and_answers() -> None:
    turns = [calls("calculate", expression="7509+100"), says("It is 7609.")]
    with scripted_model(turns) as model:
        agent = FunctionAgent(tools=[CALCULATE], llm=MuseSparkLLM(model=model))
        answer = await agent.run("How much is 7509+100?")
        assert "7609" in model.asked[1]
    assert str(answer) == "It is 7609."
    assert [call.tool_output.content for call in answer.tool_calls] == ["7609"]
