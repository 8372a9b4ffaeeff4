"""Completions that begin with their prompt: how programs that evaluate models score texts."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

import musespark
from musespark.scoring import scored_tokens
from musespark.server import Limits, create_app, work
from musespark.server.metrics import Meter
from musespark.server.wire import Job
from musespark.server.work import Work
from support.chat_folder import random_folder
from support.tokenizers_zoo import byte_level

PROMPT = "What is 47 + 38? It is"


@pytest.fixture(scope="module")
def model():
    with musespark.load(threads=1) as loaded:
        yield loaded


def posted(model: musespark.Model, **body: Any) -> httpx.Response:
    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(app=create_app(model, names=["spark-nano"]))
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


def begins(tokenizer: Any, start: str) -> Any:
    """A tokenizer that puts a marker before each text."""
    tokenizer.add_special_tokens([start, "</s>"])
    pair = (start, tokenizer.token_to_id(start))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", special_tokens=[pair]
    )
    return tokenizer


def prefixed() -> Any:
    """Of SentencePiece, with a space before each text."""
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "▁": 2, "▁a": 3}, [("▁", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("make", "prompt"), [(byte_level, "<s>The fox"), (prefixed, "ab aab")])
def test_what_is_put_before_a_text_is_not_in_it(tmp_path, make, prompt: str, stream: bool) -> None:
    folder = random_folder(tmp_path / "model", begins(make(), "<s>"), "</s>")
    body = {"prompt": prompt, "logprobs": 1, "max_tokens": 0, "echo": True}
    with musespark.load(folder, quantize="none", threads=1) as model:
        response = posted(model, **body, stream=stream)
        ids = model.tokenizer.encode(prompt, add_special=True)
        given = posted(model, **{**body, "prompt": ids}).json()["choices"][0]["logprobs"]
    data = response.text.partition("\n")[0].removeprefix("data: ") if stream else response.text
    found = json.loads(data)["choices"][0]["logprobs"]
    assert "".join(found["tokens"]) == prompt and found["tokens"][0] == ""
    assert found["text_offset"][:2] == [0, 0]
    for at, text in zip(found["text_offset"], found["tokens"], strict=True):
        assert prompt[at:].startswith(text)
    assert found["token_logprobs"] == given["token_logprobs"]
    assert given["tokens"][0] == "<s>", "who gives token ids hears of all of them"


def scores(model: musespark.Model, monkeypatch) -> list[Any]:
    """What its engine is given to score from now on."""
    found, submit = [], model._engine.submit

    def noted(request: Any, **more: Any) -> Any:
        found.extend([request] if request.logits == "score" else [])
        return submit(request, **more)

    monkeypatch.setattr(model._engine, "submit", noted)
    return found


def test_a_prompt_is_scored_once_for_all_its_answers(model, monkeypatch) -> None:
    found = scores(model, monkeypatch)
    more = {"n": 4, "logprobs": 1, "max_tokens": 2, "echo": True}
    choices = answered(model, prompt=[PROMPT, "A red square."], **more)["choices"]
    assert len(found) == 2 and len(choices) == 8
    for choice in choices:
        prompt = PROMPT if choice["index"] < 4 else "A red square."
        ids = model.tokenizer.encode(prompt, add_special=True)
        assert choice["text"].startswith(prompt)
        scored = choice["logprobs"]["token_logprobs"][1 : len(ids)]
        assert scored == model.score(ids)[1:].tolist()


def test_who_goes_away_while_a_prompt_is_scored_holds_the_turn_until_its_end(
    model, monkeypatch
) -> None:
    async def scenario() -> None:
        scoring, go_on, told = asyncio.Event(), asyncio.Event(), list[str]()

        class Slow:
            async def aresult(self) -> Any:
                scoring.set()
                await go_on.wait()
                told.append("ended")

            def cancel(self) -> None:
                told.append("cancelled")

        monkeypatch.setattr(model._engine, "submit", lambda request: Slow())
        queue = Work(model, Limits(running=8), Meter(model))
        job = Job(False, (PROMPT,), {"logprobs": 1, "max_new_tokens": 2}, choices=3, echo=True)
        run = queue.begin("client", job, False)
        await scoring.wait()
        closing = asyncio.ensure_future(run.close())
        await asyncio.sleep(0.05)
        assert not closing.done() and queue.turns.free == 5 and {*told} == {"cancelled"}
        go_on.set()
        await closing
        assert queue.turns.free == 8 and told[-1] == "ended"

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_prompts_that_are_too_long_are_refused(model) -> None:
    response = posted(model, prompt=[7] * (model.info.context + 1), logprobs=1, echo=True)
    assert response.status_code == 400 and "tokens" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prompt": ["a"] * 40}, "prompt: got 40 texts with 1 answers each, .* most 32"),
        ({"prompt": ["a"] * 5, "n": 8}, "prompt: got 5 texts with 8 answers each, .* most 32"),
        ({"prompt": "a", "max_tokens": 0, "min_tokens": 5}, "min_tokens: got 5, .*max_tokens = 0"),
    ],
)
def test_what_is_refused_is_what_was_sent(model, body: dict[str, Any], said: str) -> None:
    response = posted(model, **body)
    error = response.json()["error"]
    assert response.status_code == 400 and re.match(said, error["message"])
    assert error["param"] == said.partition(":")[0]


def test_a_prompt_is_scored_in_a_thread(model, monkeypatch) -> None:
    here = list[bool]()

    def scored(*given: Any) -> Any:
        here.append(threading.current_thread() is threading.main_thread())
        return scored_tokens(*given)

    monkeypatch.setattr(work, "scored_tokens", scored)
    answered(model, prompt=PROMPT, logprobs=1, echo=True, max_tokens=0)
    assert here == [False]
