"""How the server says that it is well, that nothing is there, that it waits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

import musespark
from musespark.server import Access, Limits, create_app
from musespark.server.app import Server
from musespark.server.transport import ABORT, UNSENT
from support.asgi import POSTS
from support.bert_models import CASES, SEEDS, folder_of

CHAT, COMPLETIONS, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"
RESPONSES = "/v1/responses"
MODEL = "spark-nano"
HI = {"model": MODEL, "messages": [{"role": "user", "content": "What is 47 + 38?"}]}
LONG = {"model": MODEL, "prompt": "The fox", "max_tokens": 1900, "min_tokens": 1900}
# One body for each protocol.
STREAMS = {
    CHAT: {**HI, "stream": True},
    COMPLETIONS: {"model": MODEL, "prompt": "The fox", "max_tokens": 9, "stream": True},
    RESPONSES: {"model": MODEL, "input": "What is 47 + 38?", "stream": True},
    MESSAGES: {**HI, "max_tokens": 200, "stream": True},
}


@pytest.fixture(scope="module")
def model():
    with musespark.load(threads=1) as loaded:
        yield loaded


def run(app: Any, scenario: Callable[[httpx.AsyncClient], Awaitable[None]], **client: Any) -> None:
    async def main() -> None:
        transport = httpx.ASGITransport(app=app, **client)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as one:
            await asyncio.wait_for(scenario(one), 60)

    asyncio.run(main())


# ---- an engine that is gone ---------------------------------------------------------------------


def test_a_server_whose_engine_is_gone_says_so() -> None:
    async def well(client: httpx.AsyncClient) -> None:
        answer = await client.get("/health")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})

    async def gone(client: httpx.AsyncClient) -> None:
        answer = await client.get("/health")
        assert (answer.status_code, answer.json()) == (503, {"status": "the model is closed"})
        metrics = await client.get("/metrics")
        assert metrics.status_code == 200
        assert 'musespark_requests_total{path="/health",status="503"} 1.0' in metrics.text
        assert "musespark_engine" not in metrics.text

    with musespark.load(threads=1) as model:
        app = create_app(model)
        run(app, well)
        assert b"musespark_engine_running" in app._meter.text()
    run(app, gone)


def test_why_an_engine_has_failed_is_told_without_what_failed_in_it(monkeypatch) -> None:
    with musespark.load(threads=1) as model:
        monkeypatch.setattr(model._engine._driver, "failure", ValueError("the secret of line 7"))

        async def scenario(client: httpx.AsyncClient) -> None:
            answer = await client.get("/health")
            assert (answer.status_code, answer.json()) == (503, {"status": "the engine failed"})

        run(create_app(model), scenario)
        monkeypatch.undo()


def test_an_encoder_that_is_closed_says_so(tmp_path) -> None:
    folder = folder_of(tmp_path / "bert", next(iter(CASES)), SEEDS[0])
    with musespark.load(folder, quantize="none", threads=1) as bert:
        bert._engine.check()
    with pytest.raises(musespark.Error, match="the model is closed"):
        bert._engine.check()


def test_texts_to_embed_are_made_tokens_once(tmp_path, monkeypatch) -> None:
    folder = folder_of(tmp_path / "bert", next(iter(CASES)), SEEDS[0])
    with musespark.load(folder, quantize="none", threads=1) as bert:
        encode, encoded = type(bert.tokenizer).encode, []

        def counted(self: Any, text: str, **more: Any) -> Any:
            encoded.append(text)
            return encode(self, text, **more)

        monkeypatch.setattr(type(bert.tokenizer), "encode", counted)
        tokens = sum(len(bert.tokenizer.encode(text, add_special=True)) for text in ("a text", "b"))
        encoded.clear()

        async def scenario(client: httpx.AsyncClient) -> None:
            body = {"model": "bert", "input": ["a text", "b"]}
            answer = (await client.post("/v1/embeddings", json=body)).json()
            assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
            assert encoded == ["a text", "b"]

        run(create_app(bert), scenario)


# ---- errors -------------------------------------------------------------------------------------


def test_errors_of_what_is_got_are_told_as_those_of_what_is_posted(model, monkeypatch) -> None:
    app = create_app(model)

    def broken() -> bytes:
        raise RuntimeError("the secret of line 7")

    monkeypatch.setattr(app._meter, "text", broken)

    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.get("/metrics")
        assert answer.status_code == 500
        assert answer.json()["error"]["message"] == "an internal error"

    run(app, scenario)


def test_what_is_not_there_is_told_as_its_protocol_does(model) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for method, path, status in (
            ("GET", MESSAGES, 405),
            ("GET", f"{MESSAGES}/count_tokens", 405),
            ("POST", f"{MESSAGES}/batches", 404),
        ):
            answer = await client.request(method, path)
            assert answer.status_code == status
            assert answer.json()["type"] == "error", "as Anthropic writes it"
            assert answer.json()["error"]["message"]
        answer = await client.get(CHAT)
        assert answer.status_code == 405 and answer.headers["allow"] == "POST"
        error = answer.json()["error"]
        assert error["code"] is None
        assert error["message"] == f"{CHAT}: got GET, allowed is POST"
        for path in ("/v1", "/chat/completions", "/page/none.js"):
            answer = await client.get(path)
            said = answer.json()["error"]["message"]
            assert answer.status_code == 404 and said.startswith(f"there is nothing at {path!r}; ")
            paths = {*POSTS, "/v1/models", "/health", "/metrics", "/openapi.json", "/"}
            assert {word.strip(",;") for word in said.split(path, 1)[1].split()} >= paths
            assert "/page/" not in said.split(";", 1)[1]

    run(create_app(model), scenario)


# ---- streams that wait --------------------------------------------------------------------------


def server_of(model: musespark.Model, **limits: Any) -> Server:
    return Server(model, (), Access(), Limits(**limits))


async def streamed(app: Any, path: str, body: dict[str, Any], enough: Callable[[str], bool]) -> str:
    """What a stream sends until it is enough or the stream ends: as it comes, unlike httpx's."""
    got: list[str] = []
    done = asyncio.Event()
    given = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if given:
            return given.pop()
        await done.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        got.append(str(message.get("status", "")) + message.get("body", b"").decode())
        if enough("".join(got)):
            done.set()

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    scope |= {"raw_path": path.encode(), "query_string": b"", "client": ("192.0.2.9", 1)}
    await asyncio.wait_for(app(scope, receive, send), 60)
    return "".join(got)


@pytest.mark.parametrize("path", STREAMS)
def test_a_stream_that_waits_for_its_turn_says_so(model, path: str) -> None:
    server = server_of(model, running=1, quiet_seconds=0.05)
    ping = 'event: ping\ndata: {"type":"ping"}\n\n' if path == MESSAGES else ": wait\n\n"

    async def main() -> None:
        turns = server.work.turns
        (held,) = turns.take("another", [1], 1)

        def enough(text: str) -> bool:
            if text.count(ping) == 3:
                held.release()
            return False

        text = await streamed(server.app, path, STREAMS[path], enough)
        assert text.startswith("200" + ping), "nothing of the answer has begun"
        assert text.count(ping) >= 3
        events = [line for line in text.splitlines() if line.startswith("data: {")]
        ends = (None, "message_stop", "response.completed")
        assert json.loads(events[-1][6:]).get("type") in ends
        assert "85" in text or path == COMPLETIONS

    asyncio.run(main())


def test_a_stream_whose_prompt_is_long_says_that_it_waits(model, monkeypatch) -> None:
    """After it has begun, too."""
    server = server_of(model, quiet_seconds=0.05)
    begun = server.work.stream

    async def slow(*given: Any, **more: Any) -> Any:
        stream, tokens = await begun(*given, **more)
        anext_event, late = stream.__class__.__anext__, [1]

        class Late:
            async def __aenter__(self) -> Any:
                await stream.__aenter__()
                return self

            async def __aexit__(self, *exc: Any) -> None:
                await stream.__aexit__(*exc)

            def __aiter__(self) -> Any:
                return self

            async def __anext__(self) -> Any:
                if late:
                    late.pop()
                    await asyncio.sleep(0.3)
                return await anext_event(stream)

            @property
            def result(self) -> Any:
                return stream.result

        return Late(), tokens

    monkeypatch.setattr(server.work, "stream", slow)
    text = asyncio.run(streamed(server.app, MESSAGES, STREAMS[MESSAGES], lambda text: False))
    assert text.index("message_start") < text.index("event: ping") < text.index("content_block")


def test_what_is_known_at_once_has_its_own_status(model) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post(COMPLETIONS, json={**LONG, "max_tokens": 9000, "stream": True})
        assert answer.status_code == 400

    run(create_app(model), scenario)


def test_who_makes_room_later_hears_it_in_its_stream(model) -> None:
    """A stream has a status of 200 by then."""
    server = server_of(model, running=1, waiting=2, quiet_seconds=0.05)

    async def main() -> None:
        turns = server.work.turns
        (held,) = turns.take("another", [1], 1)
        (first,) = turns.take("192.0.2.9", [1], 1)
        waits = asyncio.ensure_future(
            streamed(server.app, RESPONSES, STREAMS[RESPONSES], lambda text: False)
        )
        while turns.waiting < 2:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.3)
        (third,) = turns.take("modest", [1], 7)
        text = await waits
        for one in (first, held, third):
            one.release()
        events = [json.loads(line[6:]) for line in text.splitlines() if line[:6] == "data: "]
        kinds = [event["type"] for event in events]
        assert kinds == ["response.created", "response.in_progress", "response.failed"]
        assert "try again in 7 s" in events[-1]["response"]["error"]["message"]

    asyncio.run(main())


def test_who_makes_room_at_once_hears_429(model) -> None:
    server = server_of(model, running=1, waiting=2)

    async def main() -> None:
        turns = server.work.turns
        (held,) = turns.take("another", [1], 1)
        body = {**LONG, "max_tokens": 5, "min_tokens": 1}
        asked = [
            asyncio.ensure_future(streamed(server.app, COMPLETIONS, body, lambda text: False))
            for _ in range(2)
        ]
        while turns.waiting < 2:
            await asyncio.sleep(0.001)
        (third,) = turns.take("modest", [1], 7)
        held.release()
        third.release()
        statuses = sorted([(await one)[:3] for one in asked])
        assert statuses == ["200", "429"]

    asyncio.run(main())


@pytest.mark.parametrize(("takes", "step"), [(0, 0), (40, 200), (400, 1)])
def test_the_connection_of_a_client_that_takes_nothing_is_ended(
    model, takes: int, step: int
) -> None:
    """By what serves the application, which says in the scope how; not while it takes some."""
    server = server_of(model, write_seconds=0.1)
    body = json.dumps({**LONG, "stream": True}).encode()
    given = [{"type": "http.request", "body": body, "more_body": False}]

    async def main() -> None:
        ended = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if given:
                return given.pop()
            await ended.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.body":
                await asyncio.Event().wait()

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": COMPLETIONS, "headers": headers}
        scope |= {"raw_path": COMPLETIONS.encode(), "query_string": b"", "client": ("::1", 1)}
        unsent = [one * step for one in range(takes)]
        scope["extensions"] = {ABORT: ended.set, UNSENT: lambda: unsent.pop() if unsent else 0}
        await asyncio.wait_for(server.app(scope, receive, send), 30)
        assert ended.is_set()
        assert bool(unsent) == (step == 1), "it took some of it, or next to nothing, meanwhile"
        assert model._engine.stats()["running"] == 0

    asyncio.run(main())
