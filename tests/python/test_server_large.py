"""Large bodies and answers: nobody else waits while they are read, computed and written."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import musespark
from musespark.encoder import Encoder
from musespark.errors import Cancelled, InvalidRequest
from musespark.server import Access, Limits, create_app, wire
from musespark.server.app import Server
from musespark.server.openai_completions import Completions
from musespark.server.wire import Served, json_in_steps, to_json
from support.asgi import CHAT, COMPLETIONS, run
from support.bert_models import CASES, SEEDS, folder_of
from support.exchanges import chat, messages, responses

EMBEDDINGS = "/v1/embeddings"
SCORED = {"model": "spark-nano", "prompt": "The fox", "max_tokens": 100, "min_tokens": 100}


@pytest.fixture(scope="module")
def model() -> Iterator[musespark.Model]:
    with musespark.load(threads=1) as loaded:
        yield loaded


@pytest.fixture
def bert(tmp_path: Path) -> Iterator[musespark.Model]:
    folder = folder_of(tmp_path / "bert", next(iter(CASES)), SEEDS[0])
    with musespark.load(folder, quantize="none", threads=1) as loaded:
        yield loaded


# ---- answers ------------------------------------------------------------------------------------

VALUES = [
    [],
    {},
    "a\u2028b",
    {"a": [], "b": {}, "c\u2028": [1, 2.5, None, True, "é\u2029"], "d": (1, 2)},
    {"data": [{"index": i, "row": [j / 7 for j in range(100)]} for i in range(70)]},
    {"choices": [{"top": [{"a": -1.5, "\u0085": i}] * 200, "text": "x" * 999} for i in range(9)]},
]


@pytest.mark.parametrize("value", VALUES)
def test_what_is_written_in_steps_is_what_is_written_at_once(value: Any) -> None:
    assert json_in_steps(value) == to_json(value)


def test_no_step_is_long(monkeypatch) -> None:
    write, steps = wire.to_json, list[int]()
    monkeypatch.setattr(
        wire, "to_json", lambda value: steps.append(len(write(value))) or write(value)
    )
    top = [{str(k): -0.25 for k in range(20)}] * 2000
    choices = [{"index": i, "logprobs": {"tokens": ["a"] * 2000, "top": top}} for i in range(3)]
    whole = json_in_steps({"choices": choices, "data": [{"row": [0.5] * 700}] * 200})
    assert len(whole) > 1 << 20 and max(steps) < 1 << 16


def threads_of(monkeypatch, kind: type, name: str) -> list[bool]:
    """Notes of each call of a method whether it is in the main thread."""
    found, call = list[bool](), getattr(kind, name)

    def noted(*given: Any, **more: Any) -> Any:
        found.append(threading.current_thread() is threading.main_thread())
        return call(*given, **more)

    monkeypatch.setattr(kind, name, noted)
    return found


@pytest.mark.parametrize(("logprobs", "here"), [(None, True), (1, True), (20, False)])
def test_a_large_answer_is_made_in_a_thread(model, monkeypatch, logprobs, here: bool) -> None:
    found = threads_of(monkeypatch, Completions, "answer")

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post(COMPLETIONS, json={**SCORED, "logprobs": logprobs})
        assert answer.status_code == 200 and found == [here]
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["usage"]["completion_tokens"] == 100

    run(create_app(model), scenario)


def test_a_large_piece_of_a_stream_is_made_in_a_thread(model, monkeypatch) -> None:
    found = threads_of(monkeypatch, Completions, "piece")
    body = {**SCORED, "prompt": "The fox. " * 100, "logprobs": 20, "echo": True, "stream": True}

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post(COMPLETIONS, json=body)
        assert answer.text.endswith("data: [DONE]\n\n")
        first = json.loads(answer.text.partition("\n")[0].removeprefix("data: "))
        assert len(first["choices"][0]["logprobs"]["tokens"]) > 100
        assert found[0] is False
        found.clear()
        more = {"prompt": "The fox", "max_tokens": 5, "min_tokens": 5}
        await client.post(COMPLETIONS, json={**body, **more})
        assert all(found), "what is small is not worth a thread"

    run(create_app(model), scenario)


def test_large_embeddings_are_written_in_a_thread(bert, monkeypatch) -> None:
    steps = list[bool]()
    write = wire._steps
    monkeypatch.setattr(wire, "_steps", lambda value: steps.append(True) or write(value))

    async def scenario(client: httpx.AsyncClient) -> None:
        for texts, large in ((["a"], False), (["a"] * 500, True)):
            answer = await client.post(EMBEDDINGS, json={"model": "bert", "input": texts})
            assert len(answer.json()["data"]) == len(texts)
            assert bool(steps) == large

    run(create_app(bert), scenario)


# ---- bodies -------------------------------------------------------------------------------------


def test_a_body_of_nothing_but_arrays_is_not_read(model) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        body = b'{"model":"spark-nano","messages":[' + b"[]," * 500_000 + b"[]]}"
        answer = await client.post(CHAT, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        said = answer.json()["error"]["message"]
        assert said.startswith("the body: 500003 of '[' and '{'") and "limit of 500000" in said

    run(create_app(model), scenario)


def completions(served: Served, **body: Any) -> Completions:
    return Completions({"model": "m", **body}, served)


TURN = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        (chat, {"messages": [TURN] * 20_000}, "^messages: got an array of 20000, .*10000"),
        (
            messages,
            {"messages": [TURN] * 20_000},
            "^messages: got an array of 20000, .*10000 items",
        ),
        (responses, {"input": [TURN] * 20_000}, "^input: got an array of 20000, .*10000"),
        (chat, {"stop": ["a"] * 65}, "^stop: got an array of 65, .*64 items"),
        (
            completions,
            {"prompt": [1] * ((1 << 22) + 1)},
            "^prompt: got an array of 4194305, .*4194304",
        ),
    ],
)
def test_no_more_of_a_body_is_read_than_there_may_be(kind: Any, body: dict, said: str) -> None:
    served = Served(("m",), musespark.Tokenizer.load(Path(musespark.__file__).parent / "nano"))
    with pytest.raises(InvalidRequest, match=said):
        kind(served, **body)


# ---- texts to embed -----------------------------------------------------------------------------


def encoded_by(model: musespark.Model, monkeypatch) -> list[str]:
    """The texts that its tokenizer encodes from now on."""
    encode, found = type(model.tokenizer).encode, list[str]()

    def noted(self: Any, text: str, **more: Any) -> Any:
        found.append(text)
        return encode(self, text, **more)

    monkeypatch.setattr(type(model.tokenizer), "encode", noted)
    return found


def test_a_model_without_embeddings_reads_no_text(model, monkeypatch) -> None:
    found = encoded_by(model, monkeypatch)

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post(EMBEDDINGS, json={"model": "spark-nano", "input": "a"})
        assert answer.status_code == 400 and "give no embeddings" in answer.text
        assert not found

    run(create_app(model), scenario)


def test_a_text_that_is_too_long_is_refused_before_the_next(bert, monkeypatch) -> None:
    found, most = encoded_by(bert, monkeypatch), bert.info.context
    long = "a " * (most + 1)
    for given, said, read in (
        (["a", "a" * (256 * most + 1), "b"], f"input[1]: characters: got {256 * most + 1}", ["a"]),
        (["a", long, "b"], f"input[1]: got {most + 3} tokens", ["a", long]),
        (["a", [5] * (most + 1), "b"], f"input[1]: got {most + 1} tokens", ["a"]),
    ):

        async def scenario(client: httpx.AsyncClient, given=given, said=said, read=read) -> None:
            found.clear()
            answer = await client.post(EMBEDDINGS, json={"model": "bert", "input": given})
            assert answer.status_code == 400 and said in answer.json()["error"]["message"]
            assert found == read

        run(create_app(bert), scenario)


def test_who_goes_away_holds_the_turn_as_long_as_what_embeds(bert, monkeypatch) -> None:
    entered, go_on = threading.Event(), threading.Event()
    told = list[bool]()

    def slow(self: Encoder, texts: Any, stopped: Any = None) -> np.ndarray:
        entered.set()
        go_on.wait(20)
        told.append(stopped())
        raise Cancelled("it was")

    monkeypatch.setattr(Encoder, "embed", slow)
    server = Server(bert, (), Access(), Limits(running=1))
    given = [{"type": "http.request", "body": b'{"model":"bert","input":"a"}', "more_body": False}]

    async def main() -> None:
        gone = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if given:
                return given.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None: ...

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": EMBEDDINGS, "headers": headers}
        scope |= {"raw_path": EMBEDDINGS.encode(), "query_string": b"", "client": ("::1", 1)}
        asked = asyncio.ensure_future(server.app(scope, receive, send))
        await asyncio.to_thread(entered.wait, 20)
        gone.set()
        await asyncio.sleep(0.05)
        assert server.work.turns.free == 0 and not asked.done()
        go_on.set()
        await asked
        assert server.work.turns.free == 1 and told == [True]

    try:
        asyncio.run(asyncio.wait_for(main(), 30))
    finally:
        go_on.set()
