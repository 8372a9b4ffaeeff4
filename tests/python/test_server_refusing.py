"""Bodies that are refused: the place that was meant, what it got, and all that is allowed there."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

import musespark
from musespark.errors import InvalidRequest
from musespark.server import create_app
from musespark.server.openai_completions import Completions
from musespark.server.wire import Served
from support.asgi import events, run
from support.exchanges import chat, messages, responses

NANO = Path(musespark.__file__).parent / "nano"


@pytest.fixture(scope="module")
def served() -> Served:
    return Served(("m",), musespark.Tokenizer.load(NANO))


@pytest.fixture(scope="module")
def model():
    with musespark.load(threads=1) as loaded:
        yield loaded


def completions(served: Served, **body: Any) -> Completions:
    return Completions({"model": "m", **body}, served)


def turn(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


EFFORTS = "'none', 'minimal', 'low', 'medium', 'high' or 'xhigh'"


@pytest.mark.parametrize(
    ("ask", "body", "said"),
    [
        # Of values that may be of several kinds, the kind that it is of.
        (responses, {"input": []}, "input: got an array of 0, allowed are at least 1 item"),
        (completions, {"prompt": []}, "prompt: got an array of 0, allowed are at least 1 item"),
        (completions, {"prompt": ["", ""]}, "prompt[0]: got '', allowed are at least 1 character"),
        (completions, {"prompt": [1, "a"]}, "prompt[1]: got 'a', allowed is an integer"),
        (completions, {"prompt": [[1], [2, -1]]}, "prompt[1][1]: got -1, allowed is 0 or more"),
        (
            messages,
            {"messages": turn([])},
            "messages[0].content: got an array of 0, allowed are",
        ),
        # All kinds, where it is of none.
        (completions, {"prompt": 5}, "prompt: got 5, allowed is a string or an array"),
        (chat, {"stop": True}, "stop: got true, allowed is a string or an array"),
        (
            chat,
            {"tool_choice": None, "messages": turn(None)},
            "messages[0].content: got null, allowed is a string or an array",
        ),
        (
            chat,
            {"tool_choice": 5},
            "tool_choice: got 5, allowed is 'auto', 'none' or 'required' or an object",
        ),
        # A type that is none before what one of that type would need.
        (chat, {"tools": [{"type": "custom"}]}, "tools[0].type: got 'custom', allowed is 'func"),
        (responses, {"tools": [{"type": "web_search"}]}, "tools[0].type: got 'web_search', allow"),
        (
            messages,
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            "tools[0].type: got 'web_search_20250305', allowed is 'custom'",
        ),
        (
            chat,
            {"messages": turn([{"type": "text", "text": 5}])},
            "messages[0].content[0].text: got 5, allowed is a string",
        ),
        # Numbers.
        (chat, {"temperature": "hot"}, "temperature: got 'hot', allowed is a number"),
        (chat, {"temperature": 3}, "temperature: got 3, allowed is at most 2"),
        (chat, {"n": 0}, "n: got 0, allowed is 1 or more"),
        (chat, {"n": 1.5}, "n: got 1.5, allowed is an integer"),
        (chat, {"reasoning_effort": "max"}, f"reasoning_effort: got 'max', allowed is {EFFORTS}"),
    ],
)
def test_refusals(served: Served, ask: Any, body: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        ask(served, **body)
    assert str(error.value).startswith(said)


MULTIPLES = {"type": "number", "multipleOf": 0}
RESULT = {"type": "function_call_output", "call_id": "x", "output": "5"}
AGENT = {"messages": turn("Hi"), "max_tokens": 9}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (
            "chat/completions",
            {"messages": turn("Hi"), "min_tokens": 9, "max_tokens": 3},
            "min_tokens",
        ),
        (
            "chat/completions",
            {
                "messages": turn("Hi"),
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": MULTIPLES},
                },
            },
            "response_format.json_schema.schema",
        ),
        ("completions", {"prompt": [10**9]}, "prompt"),
        ("completions", {"prompt": ["a"] * 200}, "prompt"),
        ("responses", {"input": [RESULT]}, "input"),
        (
            "responses",
            {
                "input": "Hi",
                "text": {"format": {"type": "json_schema", "name": "a", "schema": MULTIPLES}},
            },
            "text.format.schema",
        ),
        ("messages", {**AGENT, "tool_choice": {"type": "any"}}, "tool_choice.type"),
        (
            "messages",
            {
                **AGENT,
                "tools": [{"name": "g", "input_schema": {"type": "object"}}],
                "tool_choice": {"type": "tool", "name": "f"},
            },
            "tool_choice.name",
        ),
        ("messages", {**AGENT, "min_tokens": 10}, "min_tokens"),
    ],
)
def test_errors_name_what_the_client_sent(model: Any, path: str, body: Any, field: str) -> None:
    """And not the option that it became, nor its place there."""

    async def scenario(client: httpx.AsyncClient) -> None:
        given = {"model": "spark-nano", **body}
        answer = await client.post(f"/v1/{path}", json=given)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error["message"].startswith((f"{field}: ", f"{field} "))
        if path != "messages":
            assert error["param"] == field

    run(create_app(model), scenario)


BEGUN = [*turn("Hi"), {"role": "assistant", "content": "Yes, it"}]


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("chat/completions", {"messages": BEGUN}, "go on with it by continue_final_message: true"),
        ("responses", {"input": BEGUN}, "input: the last item is the assistant's, allowed is"),
    ],
)
def test_an_answer_that_has_begun_is_told_of_in_json(
    model: Any, path: str, body: Any, said: str
) -> None:
    """And not of a field that the protocol does not have."""

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post(f"/v1/{path}", json={"model": "spark-nano", **body})
        error = answer.json()["error"]
        assert answer.status_code == 400 and said in error["message"]
        assert ("continue_final_message" in error["message"]) == (path == "chat/completions")

    run(create_app(model), scenario)


def test_a_stream_says_so_too(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known after it has begun is an event of it."""

    def refused(*_: Any) -> None:
        raise InvalidRequest("messages[3].content: got none")

    monkeypatch.setattr(model, "_prepared_chat", refused)
    monkeypatch.setattr("musespark.server.work.Run.begun", lambda *_: asyncio.sleep(0))

    async def scenario(client: httpx.AsyncClient) -> None:
        body = {"model": "spark-nano", "input": "Hi", "stream": True}
        answer = await client.post("/v1/responses", json=body)
        assert answer.status_code == 200
        assert "input: got none" in str(events(answer)[-1])

    run(create_app(model), scenario)
