"""The server over a socket, with the clients it is made for: openai, anthropic, schemathesis."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anthropic
import httpx
import openai
import pydantic
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

import musespark
from musespark.server import Limits, create_app
from support.serving import serve_process, served, within

MODEL = "spark-nano"
SUM = [{"role": "user", "content": "What is 47 + 38?"}]
USE_IT = "Use the calculator for 7509+100."
CALCULATE = {
    "type": "object",
    "properties": {"expression": {"type": "string"}},
    "required": ["expression"],
}
TOOL = {"name": "calculate", "description": "Calculates.", "parameters": CALCULATE}
PICTURE = Path(musespark.__file__).parent / "nano" / "examples" / "window.png"
DATA = base64.b64encode(PICTURE.read_bytes()).decode()
LONG = {"model": MODEL, "prompt": "The fox", "max_tokens": 1900, "min_tokens": 1900}


@pytest.fixture(scope="module")
def model() -> Iterator[musespark.Model]:
    with musespark.load(threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def url(model) -> Iterator[str]:
    with served(create_app(model, limits=Limits(running=4, waiting=8))) as address:
        yield address


@pytest.fixture(scope="module")
def gpt(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def claude(url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        yield client


# ---- openai -------------------------------------------------------------------------------------


def test_openai_chat_and_its_stream(gpt, model) -> None:
    here = model.chat(SUM, reasoning_effort="high")
    asked: dict[str, Any] = {"model": MODEL, "messages": SUM, "reasoning_effort": "high"}
    whole = gpt.chat.completions.create(**asked)
    message = whole.choices[0].message
    assert message.content == here.content
    assert message.reasoning == message.reasoning_content == here.reasoning
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.completion_tokens_details.reasoning_tokens == here.usage.reasoning_tokens
    with gpt.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == here.content
    assert final.usage.completion_tokens == whole.usage.completion_tokens


def after_the_tool(model: musespark.Model) -> tuple[str, str]:
    """What the model thinks and says once the tool has answered; in Python."""
    tools = [{"type": "function", "function": TOOL}]
    messages: list[Any] = [{"role": "user", "content": USE_IT}]
    call = model.chat(messages, tools=tools)
    told = {"tool_call_id": call.tool_calls[0]["id"], "name": "calculate", "content": "7609"}
    messages += [call.message, {"role": "tool", **told}]
    answer = model.chat(messages, tools=tools)
    assert "7609" in answer.reasoning
    return answer.reasoning, answer.content


def test_openai_tools(gpt, model) -> None:
    tools = [{"type": "function", "function": TOOL}]
    messages: list[Any] = [{"role": "user", "content": USE_IT}]
    asked: dict[str, Any] = {"model": MODEL, "tools": tools}
    message = gpt.chat.completions.create(messages=messages, **asked).choices[0].message
    (call,) = message.tool_calls
    assert json.loads(call.function.arguments) == {"expression": "7509+100"}
    chunks = list(gpt.chat.completions.create(messages=messages, stream=True, **asked))
    (streamed,) = [c for chunk in chunks for c in chunk.choices[0].delta.tool_calls or ()]
    assert streamed.function.arguments == call.function.arguments
    assert (streamed.function.name, streamed.index) == ("calculate", 0)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "7609"}]
    answer = gpt.chat.completions.create(messages=messages, **asked).choices[0].message
    assert (answer.reasoning, answer.content) == after_the_tool(model)


def test_calls_that_have_to_come_are_typed(gpt, claude) -> None:
    tools = [{"type": "function", "function": TOOL}]
    named = {"type": "function", "function": {"name": "calculate"}}
    for choice in ("required", named):
        asked: dict[str, Any] = {"messages": SUM, "tools": tools, "tool_choice": choice}
        whole = gpt.chat.completions.create(model=MODEL, **asked).choices[0]
        (call,) = whole.message.tool_calls[:1]
        assert whole.finish_reason == "tool_calls" and call.function.name == "calculate"
        assert isinstance(json.loads(call.function.arguments)["expression"], str)
    response = gpt.responses.create(
        model=MODEL,
        input="What is 47 + 38?",
        tools=[{"type": "function", **TOOL}],
        tool_choice={"type": "function", "name": "calculate"},
    )
    assert "calculate" in [i.name for i in response.output if i.type == "function_call"]
    assert response.tool_choice.name == "calculate"
    message = claude.messages.create(
        model=MODEL,
        max_tokens=300,
        messages=SUM,
        tools=[{"name": "calculate", "input_schema": CALCULATE}],
        tool_choice={"type": "any"},
    )
    assert message.stop_reason == "tool_use" and message.content[-1].name == "calculate"


def test_openai_sees_a_picture(gpt, model) -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DATA}"}}
    question = {"type": "text", "text": "What is in the picture?"}
    asked = [{"role": "user", "content": [image, question]}]
    answer = gpt.chat.completions.create(model=MODEL, messages=asked, max_tokens=60)
    part = {"type": "image", "image": PICTURE}
    here = model.chat([{"role": "user", "content": [part, question]}], max_total_tokens=60)
    assert answer.choices[0].message.content == here.content != ""
    assert answer.usage.prompt_tokens_details.image_tokens == here.usage.image_tokens > 0


def test_openai_parses_what_it_asked_for(gpt) -> None:
    class Sum(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")
        sum: int

    parsed = gpt.chat.completions.parse(model=MODEL, messages=SUM, response_format=Sum)
    assert isinstance(parsed.choices[0].message.parsed, Sum)
    response = gpt.responses.parse(model=MODEL, input="What is 47 + 38?", text_format=Sum)
    assert isinstance(response.output_parsed, Sum)


def test_openai_completions(gpt, model) -> None:
    here = model.generate("Once upon a time", max_new_tokens=20, seed=3, temperature=1.0)
    asked: dict[str, Any] = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 20}
    asked |= {"seed": 3, "temperature": 1.0}
    assert gpt.completions.create(**asked).choices[0].text == here.text
    chunks = gpt.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == here.text


def test_openai_responses_and_their_stream(gpt, model) -> None:
    here = model.chat(SUM)
    whole = gpt.responses.create(model=MODEL, input="What is 47 + 38?")
    assert whole.output_text == here.content
    assert whole.output[0].type == "reasoning"
    assert whole.output[0].content[0].text == here.reasoning
    assert whole.usage.output_tokens_details.reasoning_tokens == here.usage.reasoning_tokens
    with gpt.responses.stream(model=MODEL, input="What is 47 + 38?") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == here.content
    assert kinds[0] == "response.created"
    assert {"response.reasoning_text.delta", "response.output_text.delta"} <= set(kinds)
    assert kinds[-1] == "response.completed"


def test_openai_responses_call_tools_and_go_on(gpt, model) -> None:
    asked: dict[str, Any] = {"model": MODEL, "tools": [{"type": "function", **TOOL}]}
    first = gpt.responses.create(input=USE_IT, **asked)
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert json.loads(call.arguments) == {"expression": "7509+100"}
    items: list[Any] = [{"role": "user", "content": USE_IT}]
    items += [item.model_dump(exclude_none=True) for item in first.output]
    items += [{"type": "function_call_output", "call_id": call.call_id, "output": "7609"}]
    answer = gpt.responses.create(input=items, **asked)
    assert (answer.output[0].content[0].text, answer.output_text) == after_the_tool(model)
    with gpt.responses.stream(input=USE_IT, **asked) as stream:
        done = [e for e in stream if e.type == "response.function_call_arguments.done"]
    assert [json.loads(e.arguments) for e in done] == [{"expression": "7509+100"}]


def test_openai_errors_are_typed(gpt) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature"):
        gpt.chat.completions.create(model=MODEL, messages=SUM, temperature=9)
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        gpt.chat.completions.create(model="gpt-9", messages=SUM)
    with pytest.raises(openai.BadRequestError, match="give no embeddings"):
        gpt.embeddings.create(model=MODEL, input="x")
    assert [one.id for one in gpt.models.list()] == [MODEL]


# ---- anthropic ----------------------------------------------------------------------------------


def test_anthropic_messages_and_their_stream(claude, model) -> None:
    here = model.chat(SUM)
    asked: dict[str, Any] = {"model": MODEL, "messages": SUM, "max_tokens": 400}
    whole = claude.messages.create(**asked)
    thought, text = whole.content
    assert (thought.type, thought.thinking) == ("thinking", here.reasoning)
    assert (text.type, text.text, whole.stop_reason) == ("text", here.content, "end_turn")
    with claude.messages.stream(**asked) as stream:
        texts = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert texts == here.content
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert final.usage.output_tokens == whole.usage.output_tokens
    counted = claude.messages.count_tokens(model=MODEL, messages=SUM).input_tokens
    assert counted == here.usage.prompt_tokens
    (listed,) = claude.models.list()
    assert (listed.id, listed.created_at.year >= 2024) == (MODEL, True)


def test_anthropic_thinking_is_a_budget_or_off(claude) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": SUM, "max_tokens": 2000}
    short = claude.messages.create(thinking={"type": "enabled", "budget_tokens": 9}, **asked)
    assert short.usage.output_tokens_details.thinking_tokens <= 9
    none = claude.messages.create(thinking={"type": "disabled"}, **asked)
    assert [block.type for block in none.content] == ["text"]


def test_anthropic_tools_and_pictures(claude, model) -> None:
    tool = {"name": "calculate", "description": "Calculates.", "input_schema": CALCULATE}
    messages: list[Any] = [{"role": "user", "content": USE_IT}]
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 300, "tools": [tool]}
    first = claude.messages.create(messages=messages, **asked)
    use = first.content[-1]
    assert (use.type, use.input, first.stop_reason) == (
        "tool_use",
        {"expression": "7509+100"},
        "tool_use",
    )
    with claude.messages.stream(messages=messages, **asked) as stream:
        assert stream.get_final_message().content[-1].input == use.input
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "7609"}
    messages += [
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    answer = claude.messages.create(messages=messages, **asked)
    assert answer.content[0].thinking == after_the_tool(model)[0]
    source = {"type": "base64", "media_type": "image/png", "data": DATA}
    shown = [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]
    seen = claude.messages.create(
        model=MODEL, max_tokens=40, messages=[{"role": "user", "content": shown}]
    )
    assert seen.usage.input_tokens + seen.usage.cache_read_input_tokens > 60


def test_anthropic_says_which_stop_sequence_it_met(claude) -> None:
    met = claude.messages.create(
        model=MODEL, max_tokens=400, messages=SUM, stop_sequences=["nowhere", "5"]
    )
    assert (met.stop_reason, met.stop_sequence) == ("stop_sequence", "5")
    with pytest.raises(anthropic.BadRequestError, match="max_tokens: got 0"):
        claude.messages.create(model=MODEL, max_tokens=0, messages=SUM)


# ---- those that go away, wait, or are many ------------------------------------------------------


def running(model: musespark.Model) -> int:
    return model._engine.stats()["running"]


def written(url: str) -> str:
    """How many tokens answers that ended have, as the metrics tell it."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return next(line for line in lines if line.startswith('musespark_tokens_total{kind="compl'))


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_row(url: str, model, stream: bool) -> None:
    host, before = urlsplit(url).netloc, written(url)
    connection = http.client.HTTPConnection(host, timeout=30)
    body = json.dumps({**LONG, "stream": stream})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    within(lambda: running(model) == 1, "it did not begin")
    if stream:
        with connection.getresponse() as response:
            response.read(10)
    connection.close()
    within(lambda: running(model) == 0, "its row is still there")
    assert written(url) == before, "it ran to its end"


def test_a_client_that_goes_away_inside_prefill_frees_its_row(url, model, monkeypatch) -> None:
    making, go_on = threading.Event(), threading.Event()

    def held(*args: Any) -> None:
        making.set()
        go_on.wait(30)
        raise musespark.InvalidRequest("nobody waits for this")

    monkeypatch.setattr("musespark.images._make", held)
    source = {"type": "base64", "media_type": "image/png", "data": DATA}
    turn = {
        "role": "user",
        "content": [{"type": "image", "source": source}, {"type": "text", "text": "new?"}],
    }
    body = json.dumps({"model": MODEL, "max_tokens": 9, "messages": [turn], "stream": True})
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    connection.request("POST", "/v1/messages", body, {"Content-Type": "application/json"})
    assert making.wait(20), "no rows were asked for: the prompt was known"
    assert running(model) == 1
    response = connection.getresponse()
    response.close()
    connection.close()
    try:
        within(lambda: running(model) == 0, "its row is still there")
    finally:
        go_on.set()


def test_many_clients_and_a_full_queue(url: str) -> None:
    async def main() -> list[int]:
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            body = {**LONG, "max_tokens": 300, "min_tokens": 300}
            asked = [client.post("/v1/completions", json=body) for _ in range(40)]
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    statuses = asyncio.run(main())
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 12


def test_a_row_that_waits_for_its_turn_is_given_up_too(url: str, model) -> None:
    async def main() -> int:
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:
            held = [
                asyncio.ensure_future(client.post("/v1/completions", json=LONG)) for _ in range(12)
            ]
            await asyncio.to_thread(within, lambda: running(model) == 4, "they did not begin")
            for task in held:
                task.cancel()
            await asyncio.gather(*held, return_exceptions=True)
            short = {**LONG, "max_tokens": 1, "min_tokens": 1}
            for _ in range(200):  # the server hears of those that went away a little later
                answer = await client.post("/v1/completions", json=short)
                if answer.status_code != 429:
                    break
                await asyncio.sleep(0.1)
            return answer.status_code

    assert asyncio.run(main()) == 200
    within(lambda: running(model) == 0, "rows are still there")


# ---- the command --------------------------------------------------------------------------------


def test_the_command_drains_on_sigterm(tmp_path) -> None:
    """What is under way ends as it would, nothing new is taken, and the process is gone."""
    with serve_process("--threads", "1") as (process, url):
        got: list[str] = []
        first = threading.Event()

        def read() -> None:
            with (
                httpx.Client(timeout=60) as client,
                client.stream("POST", f"{url}/v1/completions", json={**LONG, "stream": True}) as r,
            ):
                for line in r.iter_lines():
                    got.append(line)
                    if line:
                        first.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert first.wait(60)
        process.send_signal(signal.SIGTERM)
        reader.join(60)
        lines = [line for line in got if line]
        assert lines[-1] == "data: [DONE]", "the answer was cut"
        assert json.loads(lines[-2][6:])["choices"][0]["finish_reason"] == "length"
        assert process.wait(60) == 143
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_the_command_ends_what_does_not_end_in_time() -> None:
    with serve_process("--threads", "1", "--drain", "0") as (process, url):
        with (
            httpx.Client(timeout=60) as client,
            client.stream(
                "POST", f"{url}/v1/completions", json={**LONG, "stream": True, "n": 32}
            ) as response,
        ):
            next(response.iter_lines())
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 143
        assert time.monotonic() - begun < 30


@pytest.mark.parametrize(("drain", "signals"), [("1", 1), ("60", 2)])
def test_what_the_end_of_the_drain_cuts_is_told_so(drain: str, signals: int) -> None:
    """What runs, what waits and what streams, of each protocol; at a second Ctrl-C too."""
    told = {name: value for name, value in LONG.items() if name != "prompt"} | {"messages": SUM}
    posts = [("/v1/completions", {**LONG, "n": 4})] * 3 + [("/v1/messages", told)] * 2

    async def main(process: Any, url: str) -> tuple[list[httpx.Response], str]:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            body = {**LONG, "n": 16, "stream": True}
            async with client.stream("POST", "/v1/completions", json=body) as stream:
                lines = stream.aiter_lines()
                await anext(lines)
                asked = [asyncio.ensure_future(client.post(p, json=body)) for p, body in posts]
                for _ in range(signals):
                    await asyncio.sleep(0.3)
                    process.send_signal(signal.SIGINT)
                written = "\n".join([line async for line in lines])
            return await asyncio.gather(*asked), written

    with serve_process("--threads", "1", "--running", "2", "--drain", drain) as (process, url):
        answers, written = asyncio.run(main(process, url))
        process.wait(60)
        assert process.stderr is not None
        console = process.stderr.read()
    error = {"message": "the server is shutting down", "type": "server_error"}
    error |= {"param": None, "code": "unavailable"}
    assert [answer.status_code for answer in answers] == [503] * 5
    assert [answer.json() for answer in answers[:3]] == [{"error": error}] * 3
    assert all(answer.json()["type"] == "error" for answer in answers[3:])
    assert json.loads(written.strip().splitlines()[-1][6:]) == {"error": error}
    # Nothing else but an empty line, and none where Ctrl-C is ignored (a background job's is).
    assert console.strip() == (
        f"ending: 6 requests are under way, for at most {drain} s; Ctrl-C again ends it at once"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "without a token"),
        (["--token", "short"], "token: allowed are 16"),
        (["--port", "70000"], "--port: got 70000"),
        (["--running", "0"], "running: got 0"),
        (["--port", "0", "--context", "1"], "--context: got 1, allowed is 21 or more: a question"),
        (["--port", "0", "--context", "20"], "--context: got 20, allowed is 21 or more"),
        (["--drain", "-1"], "--drain: got -1"),
        (["--prefix-cache-bytes", "many"], "--prefix-cache-bytes is 'many'; such as"),
    ],
)
def test_the_command_refuses(capsys, arguments: list[str], said: str) -> None:
    from musespark.cli import main

    assert main(["serve", *arguments]) == 1
    assert said in capsys.readouterr().err


def gauge(url: str, name: str) -> float:
    """One of the engine's figures, as the metrics tell it."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    (found,) = [line for line in lines if line.startswith(f"musespark_engine_{name} ")]
    return float(found.rpartition(" ")[2])


@pytest.mark.parametrize("kept", [200 << 10, 0])
def test_what_prompts_begin_with_is_kept_within_what_is_asked(kept: int) -> None:
    with serve_process("--threads", "1", "--prefix-cache-bytes", f"{kept >> 10}K") as (_, url):
        for seed in range(4):
            body = {"model": "spark-nano", "prompt": [seed + 20] * 300, "max_tokens": 1}
            assert httpx.post(f"{url}/v1/completions", json=body).status_code == 200
            assert gauge(url, "prefix_bytes") <= kept
        assert (gauge(url, "prefix_bytes") > 0) is (kept > 0)
        assert gauge(url, "kv_bytes_allocated") > 200 << 10  # a request holds more while it runs


# ---- what nobody thought of ---------------------------------------------------------------------


@pytest.mark.slow
def test_requests_made_from_the_description_are_answered_with_less_than_500(model) -> None:
    """schemathesis: bodies that fit our OpenAPI and bodies that do not."""
    app = create_app(model, limits=Limits(running=4))
    with served(app) as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        statuses: dict[int, int] = {}
        right, wrong = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE
        for operation in (one.ok() for one in schema.get_all_operations()):
            for mode in [right, wrong] if operation.method == "post" else [right]:

                @settings(
                    max_examples=10,
                    deadline=None,
                    database=None,
                    derandomize=True,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                @given(case=operation.as_strategy(generation_mode=mode))
                def ask(case: Any) -> None:
                    response = case.call(base_url=url, timeout=60)
                    statuses[response.status_code] = statuses.get(response.status_code, 0) + 1
                    assert response.status_code < 500, response.text
                    assert "Traceback" not in response.text

                ask()
        assert statuses.get(200, 0) > 10
        assert sum(count for status, count in statuses.items() if 400 <= status < 500) > 10
        assert httpx.get(f"{url}/health").status_code == 200
