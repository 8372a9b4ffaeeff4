"""ChatMuseSpark beside the model that it wraps: the same turns, prompts and errors."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
from langchain.agents import create_agent
from langchain_core.exceptions import (
    ContextOverflowError,
    ModelInvalidRequestError,
    OutputParserException,
)
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool

import musespark
from musespark.integrations.langchain import ChatMuseSpark
from support.scripted_model import calls, says, scripted_model, thinks

SUM = "What is 47 + 38?"
PICTURE = Path(musespark.__file__).parent / "nano" / "examples" / "window.png"


class Sum(pydantic.BaseModel):
    """A sum."""

    sum: int = pydantic.Field(ge=0, le=999)


@tool
def calculate(expression: str) -> str:
    """Calculates."""
    return str(sum(map(int, expression.split("+"))))


@pytest.fixture(scope="module")
def nano() -> Iterator[musespark.Model]:
    with musespark.load(threads=1) as loaded:
        yield loaded


def together(pieces: list[Any]) -> AIMessageChunk:
    return sum(pieces[1:], pieces[0])


def told(message: AIMessage) -> tuple[Any, ...]:
    """What a turn says, however it came."""
    kinds = [block["type"] for block in message.content_blocks]
    used = message.usage_metadata["output_tokens"]
    return message.text, message.additional_kwargs, message.tool_calls, kinds, used


async def test_a_turn_is_the_models_in_every_way_of_asking(nano) -> None:
    here = nano.chat(SUM, reasoning_effort="high")
    llm = ChatMuseSpark(model=nano, reasoning_effort="high")
    whole = llm.invoke(SUM)
    assert (whole.text, whole.additional_kwargs["reasoning_content"]) == (
        here.content,
        here.reasoning,
    )
    assert whole.content_blocks == [
        {"type": "reasoning", "reasoning": here.reasoning},
        {"type": "text", "text": here.content},
    ]
    assert whole.response_metadata["seed"] == here.seed
    details = whole.usage_metadata["output_token_details"]
    assert details == {"reasoning": here.usage.reasoning_tokens} != {"reasoning": 0}
    others = [
        together(list(llm.stream(SUM))),
        await llm.ainvoke(SUM),
        together([piece async for piece in llm.astream(SUM)]),
        *llm.batch([SUM]),
    ]
    assert [told(other) for other in others] == [told(whole)] * 4
    assert len(list(llm.stream(SUM))) >= 2


def test_options_are_those_of_chat(nano) -> None:
    options = {"temperature": 1.5, "seed": 7, "top_k": 9, "reasoning_effort": "low"}
    here = nano.chat(SUM, **options, max_new_tokens=30, stop=["9"])
    of_model = ChatMuseSpark(model=nano, **options, max_tokens=30, stop=["9"]).invoke(SUM)
    of_call = ChatMuseSpark(model=nano, temperature=0).invoke(
        SUM, **options, max_tokens=30, stop=["9"]
    )
    assert of_model.text == of_call.text == here.content
    budget = ChatMuseSpark(model=nano, reasoning_effort="high", thinking_token_budget=10)
    assert budget.invoke(SUM).response_metadata["thinking_stop_reason"] == "budget"


def test_a_call_and_its_result_are_the_prompt_that_chat_writes() -> None:
    turns = [thinks("I add.") + calls("calculate", expression="1+2"), says("3"), says("3")]
    with scripted_model(turns) as model:
        llm = ChatMuseSpark(model=model).bind_tools([calculate])
        asked: list[Any] = [HumanMessage("Add.")]
        called = llm.invoke(asked)
        (call,) = called.tool_calls
        assert call["args"] == {"expression": "1+2"}
        given = ToolMessage("3", tool_call_id=call["id"])
        assert llm.invoke([*asked, called, given]).text == "3"
        plain = [{"role": "user", "content": "Add."}]
        function = {"name": "calculate", "arguments": {"expression": "1+2"}}
        turn = {"id": call["id"], "type": "function", "function": function}
        plain += [{"role": "assistant", "reasoning_content": "I add.", "tool_calls": [turn]}]
        plain += [{"role": "tool", "name": "calculate", "content": "3"}]
        parameters = {"type": "object", "properties": {"expression": {"type": "string"}}}
        told = {"name": "calculate", "description": "Calculates.", "parameters": parameters}
        parameters["required"] = ["expression"]
        model.chat(plain, tools=[{"type": "function", "function": told}])
        assert "I add." in model.asked[1] == model.asked[2]


def test_a_call_that_could_not_be_read_is_an_invalid_one() -> None:
    broken = " to=calculate<|message|><atem:function_calls>nonsense<|eot|>"
    with scripted_model([broken, broken]) as model:
        llm = ChatMuseSpark(model=model).bind_tools([calculate])
        whole, streamed = llm.invoke("Add."), together(list(llm.stream("Add.")))
    for message in (whole, streamed):
        assert message.tool_calls == []
        assert [call["args"] for call in message.invalid_tool_calls] == ["nonsense"]


def test_a_picture_is_seen_as_by_chat(nano) -> None:
    data = base64.b64encode(PICTURE.read_bytes()).decode()
    question = {"type": "text", "text": "What is in the picture?"}
    part = {"type": "image", "image": PICTURE}
    here = nano.chat([{"role": "user", "content": [part, question]}], max_new_tokens=60)
    llm = ChatMuseSpark(model=nano, max_tokens=60)
    block = {"type": "image", "base64": data, "mime_type": "image/png"}
    url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
    for image in (block, url):
        assert llm.invoke([HumanMessage([image, question])]).text == here.content
    for remote in ("https://example.org/a.png", str(PICTURE)):
        with pytest.raises(musespark.InvalidRequest, match="nothing is fetched or opened"):
            llm.invoke([HumanMessage([{"type": "image", "url": remote}])])


def test_structured_output_with_what_it_was_made_of(nano) -> None:
    llm = ChatMuseSpark(model=nano, reasoning_effort="low", max_tokens=40)
    found = llm.with_structured_output(Sum, include_raw=True).invoke(SUM)
    assert found["parsed"] == Sum.model_validate_json(found["raw"].text)
    assert found["parsing_error"] is None
    cut_short = ChatMuseSpark(model=nano, reasoning_effort="low", max_tokens=5)
    cut = cut_short.with_structured_output(Sum, include_raw=True).invoke(SUM)
    assert cut["parsed"] is None
    assert isinstance(cut["parsing_error"], OutputParserException)
    with pytest.raises(OutputParserException, match="not whole, it ended by 'length'"):
        cut_short.with_structured_output(Sum).invoke(SUM)
    with pytest.raises(musespark.InvalidRequest, match="method: got 'xml'"):
        llm.with_structured_output(Sum, method="xml")


def test_errors_are_musesparks_and_langchains(nano) -> None:
    llm = ChatMuseSpark(model=nano)
    with pytest.raises(musespark.ContextOverflow) as found:
        llm.invoke("word " * 5000)
    assert isinstance(found.value, ContextOverflowError)
    assert found.value.limit == nano.info.context
    with pytest.raises(musespark.InvalidRequest, match="temperature: got -1") as wrong:
        list(llm.stream(SUM, temperature=-1))
    assert isinstance(wrong.value, ModelInvalidRequestError)
    with pytest.raises(musespark.InvalidRequest, match="unknown argument 'max_retries'"):
        ChatMuseSpark(model=nano, max_retries=2).invoke(SUM)
    with pytest.raises(musespark.InvalidRequest, match="contemplating"):
        list(llm.stream(SUM, mode="contemplating"))
    with pytest.raises(musespark.InvalidRequest, match="no call before it has the id 'x'"):
        llm.invoke([HumanMessage("Add."), ToolMessage("3", tool_call_id="x")])
    with pytest.raises(musespark.InvalidRequest, match=r"messages\[0\].content\[0\]: got the type"):
        llm.invoke([HumanMessage([{"type": "audio", "base64": "AA", "mime_type": "audio/wav"}])])


def test_a_stream_that_is_left_ends_the_request(nano) -> None:
    stream = ChatMuseSpark(model=nano, max_tokens=1500, min_new_tokens=1500).stream("Hello")
    next(stream)
    stream.close()
    assert nano.chat("Hello").content


def test_an_agent_on_nano_does_what_act_does(nano) -> None:
    def calculate(expression: str) -> str:
        """Evaluate an expression."""
        return str(sum(map(int, expression.split("+"))))

    question = "Use the calculator for 7509+100."
    here = nano.act(question, [calculate])
    agent = create_agent(ChatMuseSpark(model=nano), [calculate])
    said = agent.invoke({"messages": [HumanMessage(question)]})["messages"]
    assert said[1].tool_calls[0]["args"] == here.uses[0].arguments
    assert (said[-1].text, len(said)) == (here.content, 4)
    assert "7609" in here.content


async def test_an_agent_of_langchain_calls_and_answers() -> None:
    turns = [calls("calculate", expression="7509+100"), says("It is 7609.")]
    with scripted_model([*turns, *turns]) as model:
        agent = create_agent(ChatMuseSpark(model=model), [calculate], system_prompt="Be brief.")
        question = {"messages": [HumanMessage("How much is 7509+100?")]}
        whole = agent.invoke(question)["messages"]
        steps = [step async for step in agent.astream(question, stream_mode="updates")]
        assert "Be brief." in model.asked[0]
    assert [message.type for message in whole] == ["human", "ai", "tool", "ai"]
    assert [whole[2].text, whole[3].text] == ["7609", "It is 7609."]
    assert len(steps) == 3
