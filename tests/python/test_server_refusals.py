"""What a server refuses, and how it says so."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from typing import Any

import httpx
import pytest
from PIL import Image

import musespark
from musespark.server import Limits, create_app
from support.asgi import CHAT, COMPLETIONS, HI, MESSAGES, POSTS, run


@pytest.fixture(scope="module")
def model():
    with musespark.load(threads=1) as loaded:
        yield loaded


DEEP = '{"a":' * 5000 + "1" + "}" * 5000
BODIES = {
    "empty": b"",
    "no JSON": b"{",
    "no object": b"[]",
    "a number": b"1",
    "not UTF-8": b'{"model": "\xff"}',
    "a lone surrogate": b'{"model": "\\ud800"}',
    "NaN": b'{"model": "spark-nano", "prompt": "x", "temperature": NaN}',
    "infinity": b'{"model": "spark-nano", "prompt": "x", "temperature": 1e999}',
    "many digits": b'{"model": "spark-nano", "prompt": "x", "seed": ' + b"9" * 5000 + b"}",
    "twice": b'{"model": "spark-nano", "model": "spark-nano"}',
    "deep": DEEP.encode(),
}


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_are_none(model, path: str, name: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        kind = {"content-type": "application/json"}
        answer = await client.post(path, content=BODIES[name], headers=kind)
        error = answer.json()["error"]
        assert 400 <= answer.status_code < 500, answer.text
        assert len(error["message"]) < 700
        assert (answer.json().get("type") == "error") == path.startswith(MESSAGES)

    run(create_app(model), scenario)


def test_what_is_checked_of_a_body_is_checked_in_no_event_loop(model, monkeypatch) -> None:
    """It may be megabytes of schemas, and others wait for the loop."""
    threads: list[bool] = []
    check = Limits.check

    def seen(self: Limits, job: Any) -> None:
        threads.append(threading.current_thread() is threading.main_thread())
        check(self, job)

    monkeypatch.setattr(Limits, "check", seen)

    async def scenario(client: httpx.AsyncClient) -> None:
        for path in (CHAT, f"{MESSAGES}/count_tokens"):
            many = {**HI, "messages": HI["messages"] * 3}
            answer = await client.post(path, json=many)
            assert answer.status_code == 400 and "messages: got 3" in answer.text
        assert threads == [False, False]

    run(create_app(model, limits=Limits(messages=2)), scenario)


def test_long_bodies_are_refused_before_they_are_read(model) -> None:
    sent = 0

    async def endless():
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b" " * 1000

    async def scenario(client: httpx.AsyncClient) -> None:
        kind = {"content-type": "application/json"}
        assert (await client.post(CHAT, content=b" " * 5000, headers=kind)).status_code == 413
        assert (await client.post(CHAT, content=endless(), headers=kind)).status_code == 413
        assert sent < 10
        told = {**kind, "content-length": "9" * 30}
        assert (await client.post(CHAT, content=b"{}", headers=told)).status_code == 400

    run(create_app(model, limits=Limits(body_bytes=4000)), scenario)


def test_bodies_are_bounded_together_until_they_are_answered(model) -> None:
    kind = {"content-type": "application/json"}
    lengths = {"max_tokens": 300, "min_tokens": 300}  # an answer that takes its time
    padded = {"model": "spark-nano", "prompt": "a", "user": "a" * 2500, **lengths}
    body = json.dumps(padded).encode()
    app: Any = create_app(model, limits=Limits(body_bytes=3000, bodies_bytes=4000))
    rest = asyncio.Event()

    async def halves():
        yield body[:2000]
        await rest.wait()
        yield body[2000:]

    async def scenario(client: httpx.AsyncClient) -> None:
        def post(content: Any) -> Any:
            return client.post(COMPLETIONS, content=content, headers=kind)

        async def refused() -> None:
            answer = await post(body)
            assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
            assert "have sent" in answer.text and "at most 4000 together" in answer.text

        async def held(size: int) -> None:
            while app._bodies.held != size:
                await asyncio.sleep(0.001)

        first = asyncio.ensure_future(post(halves()))
        await held(2000)  # while it is read
        await refused()
        rest.set()
        await held(len(body))  # while it is answered
        await refused()
        assert (await first).status_code == 200 and app._bodies.held == 0
        assert (await post(body)).status_code == 200

    run(app, scenario)


def test_bodies_together_are_at_least_one() -> None:
    with pytest.raises(musespark.InvalidRequest, match="bodies_bytes: got 9, allowed is at least"):
        Limits(body_bytes=10, bodies_bytes=9)


@pytest.mark.parametrize("streams", [False, True])
def test_a_request_that_is_cancelled_is_told_so_and_stays_cancelled(model, streams: bool) -> None:
    """Else who cancels it, such as a timeout around the application, hears that it ended well."""
    lengths = {"max_tokens": 1500, "min_tokens": 1500, "stream": streams}
    body = json.dumps({"model": "spark-nano", "prompt": "a", **lengths}).encode()
    received = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not received:
            await asyncio.Event().wait()
        return received.pop()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def main() -> None:
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": COMPLETIONS, "headers": headers}
        scope |= {"raw_path": COMPLETIONS.encode(), "query_string": b"", "client": ("::1", 1)}
        task = asyncio.ensure_future(create_app(model)(scope, receive, send))
        while model._engine.stats()["running"] == 0 or (streams and len(sent) < 3):
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait({task}, timeout=20)
        assert task.cancelled()

    asyncio.run(main())
    assert sent[0]["status"] == (200 if streams else 503)
    data = b"".join(message.get("body", b"") for message in sent).decode()
    last = data.strip().splitlines()[-1].removeprefix("data: ")
    assert json.loads(last)["error"]["message"] == "the server is shutting down"
    assert not sent[-1].get("more_body")


def test_bodies_that_do_not_come_are_not_waited_for(model) -> None:
    async def slow():
        yield b"{"
        await asyncio.sleep(60)

    async def scenario(client: httpx.AsyncClient) -> None:
        kind = {"content-type": "application/json"}
        answer = await client.post(CHAT, content=slow(), headers=kind)
        assert answer.status_code == 408

    run(create_app(model, limits=Limits(read_seconds=0.05)), scenario)


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/../etc/passwd", "/v1/%2e%2e/%2e%2e/etc/passwd", "//v1/models/", "/v1/models/../x"),
        *("/v1/models/%00", "/v1/models/" + "a" * 3000, "/docs", "/v1/chat/completions/"),
        *("/\\..\\x", "/v1/models;x", "/%ff"),
    ],
)
def test_paths_that_are_none(model, path: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "HEAD"):
            answer = await client.request(method, path)
            assert answer.status_code in (404, 405), (method, answer.text)
            assert "root:" not in answer.text

    run(create_app(model), scenario)


def test_a_model_that_is_none_is_told_as_one(model) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for answer in (
            await client.get("/v1/models/nope"),
            await client.post(CHAT, json={**HI, "model": "nope"}),
        ):
            assert answer.status_code == 404
            assert answer.json()["error"] == {
                "message": "model: got 'nope', allowed is 'spark-nano'",
                "type": "not_found_error",
                "param": "model",
                "code": "model_not_found",
            }

    run(create_app(model), scenario)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temperature": "1"}, "temperature"),
        ({"messages": [{"role": "alien"}]}, "messages[0].role"),
        ({"messages": None}, "messages"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"unknown": 1}, "unknown"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_errors_name_their_field(model, body: dict, param: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.post(CHAT, json={**HI, **body})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
        nothing = (await client.post(CHAT, json=[])).json()["error"]
        assert nothing["message"] == "the body: got an array, allowed is an object"
        assert nothing["param"] is None

    run(create_app(model), scenario)


def test_files_of_this_machine_are_not_opened(model, tmp_path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"\x89PNG no picture")

    async def scenario(client: httpx.AsyncClient) -> None:
        for url in (str(secret), f"file://{secret}", f"http://localhost{secret}"):
            part = {"type": "image_url", "image_url": {"url": url}}
            messages = [{"role": "user", "content": [part]}]
            answer = await client.post(CHAT, json={**HI, "messages": messages})
            assert answer.status_code == 400
            assert "nothing is fetched or opened" in answer.text

    run(create_app(model), scenario)


def test_pictures_have_limits(model) -> None:
    def part(side: int) -> dict:
        file = io.BytesIO()
        Image.new("RGB", (side, side)).save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        return {"type": "image_url", "image_url": {"url": url}}

    async def scenario(client: httpx.AsyncClient) -> None:
        async def ask(*sides: int) -> httpx.Response:
            content = [*map(part, sides), {"type": "text", "text": "What is it?"}]
            messages = [{"role": "user", "content": content}]
            return await client.post(CHAT, json={**HI, "messages": messages, "max_tokens": 4})

        seen = await ask(30)
        assert seen.status_code == 200, seen.text
        assert seen.json()["usage"]["prompt_tokens_details"]["image_tokens"] > 0
        assert "the limit is 1000" in (await ask(40)).text
        assert (await ask(30, 30)).status_code == 400

    run(create_app(model, limits=Limits(image_pixels=1000, pixels=1000)), scenario)


def test_messages_of_errors_have_no_path_of_this_machine(model, tmp_path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    path = folder / "plain.jinja"
    path.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    before = model.template
    try:
        model.template = path

        async def scenario(client: httpx.AsyncClient) -> None:
            tool = {"type": "function", "function": {"name": "f"}}
            answer = await client.post(CHAT, json={**HI, "tools": [tool]})
            assert answer.status_code == 400
            assert "plain.jinja" in answer.text
            assert str(folder) not in answer.text

        run(create_app(model), scenario)
    finally:
        model.template = before


def test_errors_of_our_own_are_not_told(model, monkeypatch, caplog) -> None:
    def broken(*args: Any, **more: Any) -> None:
        raise RuntimeError("the secret of line 7")

    monkeypatch.setattr(model, "_prepared_chat", broken)

    async def scenario(client: httpx.AsyncClient) -> None:
        for path, more in ((CHAT, {}), (MESSAGES, {"max_tokens": 4})):
            answer = await client.post(path, json={**HI, **more})
            assert answer.status_code == 500
            assert "secret" not in answer.text
            assert answer.json()["error"]["message"] == "an internal error"

    run(create_app(model), scenario)
    assert "the secret of line 7" in caplog.text, "who runs the server has to hear of it"
