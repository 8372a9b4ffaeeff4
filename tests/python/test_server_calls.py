"""What a server answers that is no plain text: calls, agents, control vectors, embeddings."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import numpy as np
import pytest

import musespark
from musespark.server import Limits, create_app
from support.asgi import CHAT, COMPLETIONS, HI, MESSAGES, run
from support.bert_models import CASES, SEEDS, folder_of


@pytest.fixture(scope="module")
def model():
    with musespark.load(threads=1) as loaded:
        yield loaded


TOOLS = [
    {
        "name": name,
        "parameters": {
            "type": "object",
            "properties": {"word": {"enum": ["red", "blue"]}},
            "required": ["word"],
        },
    }
    for name in ("paint", "wash")
]
# A question that the model answers without a call, and two protocols' ways to force one.
NAMED = {"type": "function", "function": {"name": "wash"}}
ALLOWED_IN_CHAT = {
    "type": "allowed_tools",
    "allowed_tools": {"mode": "required", "tools": [NAMED]},
}
ALLOWED_IN_RESPONSES = {
    "type": "allowed_tools",
    "mode": "required",
    "tools": [{"type": "function", "name": "wash"}],
}
FORCED = [
    (CHAT, {"tool_choice": "required"}, {"paint", "wash"}),
    (CHAT, {"tool_choice": NAMED}, {"wash"}),
    (CHAT, {"tool_choice": ALLOWED_IN_CHAT}, {"wash"}),
    ("/v1/responses", {"tool_choice": ALLOWED_IN_RESPONSES}, {"wash"}),
    ("/v1/responses", {"tool_choice": "required"}, {"paint", "wash"}),
    ("/v1/responses", {"tool_choice": {"type": "function", "name": "wash"}}, {"wash"}),
    (MESSAGES, {"tool_choice": {"type": "any"}}, {"paint", "wash"}),
    (MESSAGES, {"tool_choice": {"type": "tool", "name": "wash"}}, {"wash"}),
]


def tools_for(path: str, **more: Any) -> dict[str, Any]:
    """A body with the tools, as the protocol of a path has them; with a short thought, for Nano may
    think about tools that it does not know until it is cut."""
    brief = {"thinking_token_budget": 8}
    if path == CHAT:
        tools = [{"type": "function", "function": {**t, **more}} for t in TOOLS]
        return {**HI, "tools": tools, **brief}
    if path == MESSAGES:
        given = [{"name": t["name"], "input_schema": t["parameters"], **more} for t in TOOLS]
        thinking = {"type": "enabled", "budget_tokens": 8}
        return {**HI, "tools": given, "max_tokens": 300, "thinking": thinking}
    tools = [{"type": "function", **t, **more} for t in TOOLS]
    return {"model": "spark-nano", "input": "What is 47 + 38?", "tools": tools, **brief}


def calls_in(path: str, answer: Any) -> list[tuple[str, Any]]:
    """The calls of an answer: names and arguments."""
    if path == CHAT:
        found = [c["function"] for c in answer["choices"][0]["message"].get("tool_calls", ())]
        return [(one["name"], json.loads(one["arguments"])) for one in found]
    if path == MESSAGES:
        return [(b["name"], b["input"]) for b in answer["content"] if b["type"] == "tool_use"]
    found = [i for i in answer["output"] if i["type"] == "function_call"]
    return [(one["name"], json.loads(one["arguments"])) for one in found]


@pytest.mark.parametrize(("path", "choice", "names"), FORCED)
def test_calls_that_have_to_come_come(model, path: str, choice: dict, names: set[str]) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post(path, json={**tools_for(path), **choice})
        assert answer.status_code == 200, answer.text
        calls = calls_in(path, answer.json())
        assert calls and {name for name, _ in calls} <= names
        assert all(arguments["word"] in ("red", "blue") for _, arguments in calls)
        streamed = await client.post(path, json={**tools_for(path), **choice, "stream": True})
        assert calls[0][0] in streamed.text

    run(create_app(model), scenario)


def test_one_call_where_one_is_asked_for(model) -> None:
    """Where a turn may have several, one that had rather not end goes on with another call. What
    the other protocols make of theirs: test_server_protocols."""
    end = {str(model.tokenizer.markers["<|eot|>"]): -100}

    async def scenario(client: httpx.AsyncClient) -> None:
        for several in (False, True):
            more = {"parallel_tool_calls": several, "tool_choice": "required", "logit_bias": end}
            body = {**tools_for(CHAT), **more, "max_tokens": 150}
            calls = calls_in(CHAT, (await client.post(CHAT, json=body)).json())
            assert (len(calls) > 1) == several, calls

    run(create_app(model), scenario)


@pytest.mark.parametrize("path", [CHAT, "/v1/responses", MESSAGES])
def test_tools_that_are_strict_have_calls_that_parse(model, path: str) -> None:
    """At a temperature at which the model's free calls do not."""
    more = {"temperature": 1.0, "seed": 5, "top_p": 1.0}

    async def scenario(client: httpx.AsyncClient) -> None:
        for seed in range(6):
            body = {**tools_for(path, strict=True), **more, "seed": seed}
            answer = (await client.post(path, json=body)).json()
            assert "malformed_tool_calls" not in json.dumps(answer)
            for name, arguments in calls_in(path, answer):
                assert name in ("paint", "wash") and arguments["word"] in ("red", "blue")

    run(create_app(model), scenario)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"type": "function", "function": {"name": "cook"}}, "tool_choice: got 'cook', allowed"),
        ("required", "without tools"),
    ],
)
def test_calls_that_cannot_come_are_refused(model, choice: Any, said: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        tools = {} if choice == "required" else {"tools": tools_for(CHAT)["tools"]}
        answer = await client.post(CHAT, json={**HI, **tools, "tool_choice": choice})
        assert answer.status_code == 400 and said in answer.text

    run(create_app(model), scenario)


def test_control_vectors_are_chosen_by_name(model) -> None:
    rng = np.random.default_rng(1)
    directions = {2: rng.standard_normal(model._weights.spec.hidden).astype(np.float32)}
    vector = musespark.ControlVector(directions)
    asked = {"model": "spark-nano", "prompt": "The fox", "max_tokens": 20}
    plain = model.generate("The fox", max_new_tokens=20).text
    with model.steer(vector, strength=20.0, everywhere=False, name="odd") as odd:
        steered = model.generate("The fox", max_new_tokens=20, steering=odd).text
        assert steered != plain == model.generate("The fox", max_new_tokens=20).text

        async def scenario(client: httpx.AsyncClient) -> None:
            async def text(**more: Any) -> str:
                answer = await client.post(COMPLETIONS, json={**asked, **more})
                return answer.json()["choices"][0]["text"]

            assert await text() == await text(steering="off") == plain
            assert await text(steering="odd") == steered
            for more in ({"steering": "other"}, {"adapter": "none"}):
                answer = await client.post(COMPLETIONS, json={**asked, **more})
                assert answer.status_code == 400 and next(iter(more)) in answer.text

        run(create_app(model), scenario)
        with pytest.raises(musespark.InvalidRequest, match="name: got 'odd', which another"):
            model.steer(vector, everywhere=False, name="odd")
    with pytest.raises(musespark.InvalidRequest, match="name: got 'off'"):
        model.steer(vector, everywhere=False, name="off")


def test_agents_take_rows_as_other_answers_do(model) -> None:
    """Not one place for sixty-four of them."""

    async def scenario(client: httpx.AsyncClient) -> None:
        body = {**HI, "mode": "contemplating", "n_agents": 4, "temperature": 1.0}
        asked = asyncio.ensure_future(client.post(CHAT, json={**body, "min_tokens": 300}))
        while model._engine.stats()["running"] < 4:
            assert not asked.done(), asked.result().text
            await asyncio.sleep(0)
        plain = {"model": "spark-nano", "prompt": "The fox", "max_tokens": 4}
        assert (await client.post(COMPLETIONS, json=plain)).status_code == 429
        assert (await asked).status_code == 200
        assert (await client.post(COMPLETIONS, json=plain)).status_code == 200

    run(create_app(model, limits=Limits(running=4, waiting=0)), scenario)


def test_embeddings(tmp_path) -> None:
    folder = folder_of(tmp_path / "bert", next(iter(CASES)), SEEDS[0])
    with musespark.load(folder, quantize="none", threads=1) as bert:
        rows = bert.embed(["a text", "b"])

        async def scenario(client: httpx.AsyncClient) -> None:
            body = {"model": "bert", "input": ["a text", "b"]}
            answer = (await client.post("/v1/embeddings", json=body)).json()
            found = np.array([one["embedding"] for one in answer["data"]], np.float32)
            assert np.array_equal(found, rows)
            assert answer["usage"]["prompt_tokens"] > 2
            refused = await client.post(CHAT, json={**HI, "model": "bert"})
            assert refused.status_code == 400

        run(create_app(bert), scenario)
