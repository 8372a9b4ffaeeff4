"""Ids of tool calls: clients hear of none twice, and the model's prompts have its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

import musespark
from musespark.results import ChatResult, Delta, Usage
from musespark.server import create_app
from musespark.server.call_ids import told_id, with_own_ids
from musespark.server.wire import Ended, Served, new_id
from support.asgi import CHAT, HI, run
from support.exchanges import chat, messages, responses

NANO = Path(musespark.__file__).parent / "nano"
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "calculate", "arguments": {"expression": "1+2"}},
}
RESULT = ChatResult(
    text="",
    content="",
    reasoning="",
    tokens=(1,),
    seed=5,
    finish_reason="tool_calls",
    usage=Usage(10, 4, 6, 2, 1, 0),
    tool_calls=(CALL, {**CALL, "id": "call_2"}),
)


@pytest.fixture(scope="module")
def served() -> Served:
    return Served(("m",), musespark.Tokenizer.load(NANO))


def ids_of(value: Any) -> list[str]:
    """The ids of calls in an answer or in events, of any of the protocols."""
    if isinstance(value, list):
        return [id for one in value for id in ids_of(one)]
    if not isinstance(value, dict):
        return []
    if value.get("type") == "function_call":
        return [value["call_id"]]
    if value.get("type") in ("function", "tool_use") and "id" in value:
        return [value["id"]]
    return [id for one in value.values() for id in ids_of(one)]


@pytest.mark.parametrize("kind", [chat, responses, messages])
def test_no_two_answers_share_an_id(served: Served, kind: Any) -> None:
    told = [ids_of(kind(served).answer([Ended(0, RESULT)])) for _ in range(2)]
    assert [len(ids) for ids in told] == [2, 2]
    assert len({id for ids in told for id in ids}) == 4
    exchange = kind(served, stream=True)
    events = [e for call in RESULT.tool_calls for e in exchange.piece(0, Delta("", "tool", call))]
    streamed = dict.fromkeys(ids_of([event.data for event in events]))
    whole = dict.fromkeys(ids_of(exchange.answer([Ended(0, RESULT)])))
    assert [*streamed] == [*whole], "a stream's are others"


def test_choices_of_an_answer_share_none(served: Served) -> None:
    exchange = chat(served, n=2)
    answer = exchange.answer([Ended(0, RESULT), Ended(1, RESULT)])
    assert len({*ids_of(answer)}) == 4


def test_what_comes_back_has_the_ids_that_the_model_gave(served: Served) -> None:
    def of_chat() -> Any:
        answer = chat(served).answer([Ended(0, RESULT)])
        turn = {key: one for key, one in answer["choices"][0]["message"].items() if one is not None}
        told = [{"role": "tool", "tool_call_id": id, "content": "3"} for id in ids_of(answer)]
        return chat(served, messages=[{"role": "user", "content": "x"}, turn, *told])

    def of_responses() -> Any:
        items = responses(served).answer([Ended(0, RESULT)])["output"]
        told = [
            {"type": "function_call_output", "call_id": id, "output": "3"} for id in ids_of(items)
        ]
        return responses(served, input=[{"role": "user", "content": "x"}, *items, *told])

    def of_messages() -> Any:
        content = messages(served).answer([Ended(0, RESULT)])["content"]
        told = [
            {"type": "tool_result", "tool_use_id": id, "content": "3"} for id in ids_of(content)
        ]
        turns = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": content},
            {"role": "user", "content": told},
        ]
        return messages(served, messages=turns)

    for make in (of_chat, of_responses, of_messages):
        _, turn, *told = make().job.prompts[0]
        assert [call["id"] for call in turn["tool_calls"]] == ["call_1", "call_2"]
        assert [one["tool_call_id"] for one in told] == ["call_1", "call_2"]


def turns(*ids: str) -> list[dict[str, Any]]:
    calls = [{"role": "assistant", "tool_calls": [{**CALL, "id": id}]} for id in ids]
    told = [{"role": "tool", "tool_call_id": id, "content": "3"} for id in ids]
    return [one for pair in zip(calls, told, strict=True) for one in pair]


def read(*ids: str) -> list[str]:
    """The ids of the results of calls of some ids, which their calls have too."""
    out = with_own_ids(turns(*ids))
    results = [one["tool_call_id"] for one in out[1::2]]
    assert [one["tool_calls"][0]["id"] for one in out[::2]] == results
    return results


def test_ids_that_would_be_one_stay_as_they_came() -> None:
    """As of conversations that a client made one."""
    first, other = (told_id("call_1", new_id("chatcmpl-")) for _ in range(2))
    assert read(first, other) == [first, other]
    assert read(first, "call_1") == [first, "call_1"]
    assert read(first, told_id("call_2", new_id("msg_"))) == ["call_1", "call_2"]
    assert read(first, first) == ["call_1", "call_1"]  # one id twice, as the client has it


@pytest.mark.parametrize("id", ["a", "call_1", "toolu_01A09q90qw90lq917835lq9", "x" * 100])
def test_ids_of_others_stay_as_they_came(id: str) -> None:
    assert read(id) == [id]


def test_a_result_without_its_call_is_named_as_it_was_sent(served: Served) -> None:
    id = told_id("call_1", new_id("chatcmpl-"))
    lone = [{"role": "tool", "tool_call_id": id, "content": "3"}]
    with pytest.raises(musespark.InvalidRequest, match=f"no call before it has the id '{id}'"):
        chat(served, messages=lone)


def test_a_turn_behind_a_call_is_that_of_python() -> None:
    """The same prompt: what is cached of it is found again, and the answer is the same."""
    tool = {
        "type": "function",
        "function": {
            "name": "paint",
            "parameters": {
                "type": "object",
                "properties": {"word": {"enum": ["red", "blue"]}},
                "required": ["word"],
            },
        },
    }
    more = {"tools": [tool], "reasoning_effort": "none", "seed": 3}
    with musespark.load(threads=1) as model:
        here = model.chat(HI["messages"], tool_choice="required", **more)
        call = here.tool_calls[0]
        assert call["id"] == "call_1"
        turn = {"role": "assistant", "content": "", "tool_calls": [call]}
        told = {"role": "tool", "tool_call_id": "call_1", "name": "paint", "content": "done"}
        wanted = model.chat([*HI["messages"], turn, told], **more)

        async def scenario(client: httpx.AsyncClient) -> None:
            first = (await client.post(CHAT, json={**HI, **more, "tool_choice": "required"})).json()
            message = first["choices"][0]["message"]
            sent = message["tool_calls"][0]
            assert sent["id"] != "call_1"
            assert json.loads(sent["function"]["arguments"]) == call["function"]["arguments"]
            answered = {"role": "assistant", "content": "", "tool_calls": [sent]}
            back = {"role": "tool", "tool_call_id": sent["id"], "content": "done"}
            body = {**HI, **more, "messages": [*HI["messages"], answered, back]}
            second = (await client.post(CHAT, json=body)).json()
            assert second["choices"][0]["message"]["content"] == wanted.content
            assert second["usage"]["prompt_tokens"] == wanted.usage.prompt_tokens

        run(create_app(model), scenario)
