"""Completions that begin with their prompt: how programs that evaluate models score texts."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

import musespark
from musespark.server import Limits, create_app

PROMPT = "What is 47 + 38? It is"


@pytest.fixture(scope="module")
def model():
    with musespark.load(threads=1) as loaded:
        yield loaded


def posted(model: musespark.Model, **body: Any) -> httpx.Response:
    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(app=create_app(model, limits=Limits()))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post("/v1/completions", json={"model": "spark-nano", **body})

    return asyncio.run(asyncio.wait_for(main(), 60))


def answered(model: musespark.Model, **body: Any) -> dict[str, Any]:
    response = posted(model, **body)
    assert response.status_code == 200, response.text
    return response.json()


def test_an_answer_begins_with_its_prompt(model) -> None:
    more = {"prompt": PROMPT, "max_tokens": 6, "temperature": 0}
    plain, echoed = answered(model, **more), answered(model, **more, echo=True)
    assert echoed["choices"][0]["text"] == PROMPT + plain["choices"][0]["text"]
    assert echoed["choices"][0]["logprobs"] is None
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [echoed["usage"][name] for name in counts] == [plain["usage"][name] for name in counts]


def test_tokens_of_the_prompt_have_their_logprobs(model) -> None:
    ids = model.tokenizer.encode(PROMPT)
    more = {"max_tokens": 3, "temperature": 0, "logprobs": 2}
    (plain,) = answered(model, prompt=ids, **more)["choices"]
    (echoed,) = answered(model, prompt=ids, **more, echo=True)["choices"]
    assert echoed["text"] == PROMPT + plain["text"]
    found, wanted = echoed["logprobs"], model.prompt_logprobs(ids, logprobs=2)
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    said = [one.logprob for one in wanted[1:]]
    assert found["token_logprobs"][1:] == said + plain["logprobs"]["token_logprobs"]
    assert [len(top) for top in found["top_logprobs"][1 : len(ids)]] == [2] * (len(ids) - 1)
    assert "".join(found["tokens"]) == echoed["text"]
    starts = [sum(map(len, found["tokens"][:i])) for i in range(len(found["tokens"]))]
    assert found["text_offset"] == starts


def test_several_prompts_are_scored_without_an_answer(model) -> None:
    prompts = [model.tokenizer.encode(text) for text in (PROMPT, "A red square.")]
    more = {"prompt": prompts, "max_tokens": 0, "logprobs": 1, "echo": True}
    report = answered(model, **more)
    assert report["usage"]["completion_tokens"] == 0
    for choice, ids in zip(report["choices"], prompts, strict=True):
        assert (choice["text"], choice["finish_reason"]) == (model.tokenizer.decode(ids), "length")
        assert choice["logprobs"]["token_logprobs"][1:] == model.score(ids)[1:].tolist()
    assert [answered(model, prompt=PROMPT, max_tokens=0)["choices"][0]["text"]] == [""]


def test_what_ended_an_answer_is_one_of_its_tokens(model) -> None:
    """Who scores a text asks for one token more, and leaves the last one out."""
    ids, end = model.tokenizer.encode(PROMPT), model.tokenizer.markers["<|eot|>"]
    more = {"prompt": ids, "max_tokens": 1, "logprobs": 1, "logit_bias": {str(end): 100}}
    (choice,) = answered(model, **more, echo=True)["choices"]
    assert choice["text"] == PROMPT and choice["finish_reason"] == "stop"
    assert choice["logprobs"]["tokens"][len(ids) :] == ["<|eot|>"]


def test_pieces_are_the_whole(model) -> None:
    more = {"prompt": PROMPT, "n": 2, "seed": 3, "temperature": 1.0, "max_tokens": 12}
    for logprobs in (None, 1):
        body = {**more, "logprobs": logprobs, "echo": True}
        whole = answered(model, **body)["choices"]
        response = posted(model, **body, stream=True)
        lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
        pieces = [json.loads(line)["choices"][0] for line in lines if line != "[DONE]"]
        for choice in whole:
            own = [piece for piece in pieces if piece["index"] == choice["index"]]
            assert "".join(piece["text"] for piece in own) == choice["text"]
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                parts = [piece["logprobs"][name] for piece in own if piece["logprobs"]]
                joined = [one for part in parts for one in part]
                assert joined == (choice["logprobs"] or {name: []})[name]


def test_prompts_that_are_too_long_are_refused(model) -> None:
    response = posted(model, prompt=[7] * (model.info.context + 1), logprobs=1, echo=True)
    assert response.status_code == 400 and "tokens" in response.json()["error"]["message"]
