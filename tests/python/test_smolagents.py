"""MuseSparkModel for smolagents beside the model that it wraps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import smolagents
from PIL import Image
from smolagents.models import agglomerate_stream_deltas

import musespark
from musespark.integrations.smolagents import MuseSparkModel
from support.scripted_model import calls, says, scripted_model, thinks

PICTURE = Path(musespark.__file__).parent / "nano" / "examples" / "window.png"
ANSWER = {
    "type": "object",
    "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 999}},
}


@smolagents.tool
def calculate(expression: str) -> str:
    """Calculates.

    Args:
        expression: What to calculate.
    """
    return str(sum(map(int, expression.split("+"))))


def asks(*content: Any) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": one} if isinstance(one, str) else one for one in content]
    return [{"role": "user", "content": parts}]


SUM = asks("What is 47 + 38?")


@pytest.fixture(scope="module")
def nano() -> Iterator[musespark.Model]:
    with musespark.load(threads=1) as loaded:
        yield loaded


def test_a_turn_is_the_models_whole_and_streamed(nano) -> None:
    here = nano.chat("What is 47 + 38?", reasoning_effort="high")
    model = MuseSparkModel(nano, reasoning_effort="high")
    whole = model.generate(SUM)
    assert (whole.content, whole.tool_calls) == (here.content, None)
    assert whole.raw["choices"][0]["message"]["reasoning_content"] == here.reasoning
    details = whole.raw["usage"]["completion_tokens_details"]
    assert details["reasoning_tokens"] == here.usage.reasoning_tokens > 0
    assert whole.token_usage.output_tokens == here.usage.completion_tokens
    streamed = agglomerate_stream_deltas(list(model.generate_stream(SUM)))
    assert (streamed.content, streamed.token_usage) == (whole.content, whole.token_usage)


def test_options_are_those_of_chat(nano) -> None:
    options = {"temperature": 1.5, "seed": 7, "reasoning_effort": "low", "max_tokens": 30}
    here = nano.chat("What is 47 + 38?", **options, stop=["9"])
    found = MuseSparkModel(nano, **options).generate(SUM, stop_sequences=["9"])
    assert found.content == here.content
    assert MuseSparkModel(nano).generate(SUM, ["9"], **options).content == here.content


def test_calls_are_required_and_come_whole() -> None:
    turn = thinks("I add.") + calls("calculate", expression="1+2")
    with scripted_model([turn, turn]) as scripted:
        model = MuseSparkModel(scripted)
        whole = model.generate(asks("Add."), tools_to_call_from=[calculate])
        pieces = list(model.generate_stream(asks("Add."), tools_to_call_from=[calculate]))
    (call,), (streamed,) = whole.tool_calls, agglomerate_stream_deltas(pieces).tool_calls
    assert (call.function.name, call.function.arguments) == ("calculate", {"expression": "1+2"})
    assert json.loads(streamed.function.arguments) == call.function.arguments
    assert (streamed.id, streamed.function.name) == (call.id, "calculate")


def test_a_forced_call_fits_what_the_tool_takes(nano) -> None:
    tokens = nano.tokenizer  # Nano may write on and on where any text will do
    ends = [i for i in range(tokens.vocab_size) if (tokens.token_bytes(i) or b"").startswith(b"</")]
    bias = dict.fromkeys(ends, 8.0)
    model = MuseSparkModel(nano, thinking_token_budget=8, max_tokens=80, logit_bias=bias)
    tool = smolagents.FinalAnswerTool()
    forced = {"type": "function", "function": {"name": "final_answer"}}
    for choice in (forced, "final_answer"):
        message = model.generate(SUM, tools_to_call_from=[calculate, tool], tool_choice=choice)
        (call,) = message.tool_calls
        assert (call.function.name, *call.function.arguments) == ("final_answer", "answer")
    with pytest.raises(musespark.InvalidRequest, match="tool_choice: got"):
        model.generate(SUM, tools_to_call_from=[calculate], tool_choice={"type": "tool"})


def test_a_picture_is_seen_as_by_chat(nano) -> None:
    question = {"type": "text", "text": "What is in the picture?"}
    part = {"type": "image", "image": PICTURE}
    here = nano.chat([{"role": "user", "content": [part, question]}], max_new_tokens=60)
    model = MuseSparkModel(nano, max_tokens=60)
    picture = {"type": "image", "image": Image.open(PICTURE)}
    assert model.generate(asks(picture, question["text"])).content == here.content
    remote = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    with pytest.raises(musespark.InvalidRequest, match="nothing is fetched or opened"):
        model.generate(asks(remote))


def test_an_answer_of_a_schema(nano) -> None:
    model = MuseSparkModel(nano, reasoning_effort="low", max_tokens=40)
    form = {"type": "json_schema", "json_schema": {"name": "sum", "schema": ANSWER}}
    assert {*json.loads(model.generate(SUM, response_format=form).content)} == {"sum"}
    with pytest.raises(musespark.InvalidRequest, match="response_format: got"):
        model.generate(SUM, response_format={"type": "xml"})


def test_errors_are_musesparks(nano) -> None:
    model = MuseSparkModel(nano)
    with pytest.raises(musespark.ContextOverflow):
        model.generate(asks("word " * 5000))
    with pytest.raises(musespark.InvalidRequest, match="unknown argument 'api_base'"):
        MuseSparkModel(nano, api_base="here").generate(SUM)
    agent = smolagents.ToolCallingAgent(
        tools=[calculate], model=MuseSparkModel(nano, temperature=-1), verbosity_level=0
    )
    with pytest.raises(smolagents.AgentGenerationError) as found:
        agent.run("Add.")
    assert isinstance(found.value.__cause__, musespark.InvalidRequest)


@pytest.mark.parametrize("stream", [False, True])
def test_an_agent_of_smolagents_calls_and_answers(stream: bool) -> None:
    turns = [calls("calculate", expression="7509+100"), calls("final_answer", answer="7609")]
    with scripted_model(turns) as scripted:
        agent = smolagents.ToolCallingAgent(
            tools=[calculate],
            model=MuseSparkModel(scripted),
            stream_outputs=stream,
            verbosity_level=0,
        )
        assert agent.run("How much is 7509+100?") == "7609"
        assert "Observation:\n7609" in scripted.asked[1]


def test_a_code_agent_answers() -> None:
    code = "Thought: I add.\n<code>\nfinal_answer(7509 + 100)\n</code>"
    with scripted_model([says(code)]) as scripted:
        agent = smolagents.CodeAgent(tools=[], model=MuseSparkModel(scripted), verbosity_level=0)
        assert agent.run("How much is 7509+100?") == 7609
