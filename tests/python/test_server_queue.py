"""The queue of a server: full, fair, and clients that take nothing."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

import musespark
from musespark.server import Limits, create_app
from musespark.server.security import client_of
from support.asgi import COMPLETIONS, run


@pytest.fixture(scope="module")
def model():
    with musespark.load(threads=1) as loaded:
        yield loaded


def test_a_full_queue_is_429_and_what_was_taken_is_answered(model) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        body = {"model": "spark-nano", "prompt": "The fox", "max_tokens": 200, "min_tokens": 200}
        answers = await asyncio.gather(*(client.post(COMPLETIONS, json=body) for _ in range(12)))
        statuses = sorted(a.status_code for a in answers)
        assert statuses == [200] * 3 + [429] * 9
        for answer in answers:
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.json()["error"]["code"] == "queue_full"
        assert (await client.post(COMPLETIONS, json=body)).status_code == 200

    run(create_app(model, limits=Limits(running=1, waiting=2)), scenario)


def test_one_client_with_many_requests_does_not_hold_up_another(model) -> None:
    body = {"model": "spark-nano", "prompt": "The fox", "max_tokens": 40, "min_tokens": 40}
    order: list[str] = []
    app = create_app(model, limits=Limits(running=1))

    async def scenario(client: httpx.AsyncClient) -> None:
        async def ask(who: str) -> None:
            address = {"greedy": "192.0.2.7", "modest": "192.0.2.8"}[who], 1
            transport = httpx.ASGITransport(app=app, client=address)
            key = {"authorization": f"Bearer {len(order)}"}  # which nobody checks
            async with httpx.AsyncClient(transport=transport, headers=key) as one:
                answer = await one.post(f"http://localhost{COMPLETIONS}", json=body)
            assert answer.status_code == 200
            order.append(who)

        many = [asyncio.ensure_future(ask("greedy")) for _ in range(20)]
        while "musespark_waiting 19.0" not in (await client.get("/metrics")).text and not order:
            await asyncio.sleep(0.001)
        await ask("modest")
        assert order.index("modest") < 10
        await asyncio.gather(*many)

    run(app, scenario)


def test_a_client_is_an_address_whatever_key_it_makes_up() -> None:
    assert client_of("192.0.2.7") != client_of("192.0.2.8")
    assert client_of("2001:db8::1") == client_of("2001:db8::ffff:1") != client_of("2001:db8:0:1::1")
    assert client_of("::ffff:192.0.2.7") == client_of("192.0.2.7")
    assert client_of("::1") != client_of("::2")
    assert client_of("testclient") == "testclient"
    assert client_of("192.0.2.7", "a") == client_of("192.0.2.7", "b")


def test_keys_tell_the_programs_of_this_machine_apart() -> None:
    assert client_of("127.0.0.1", "a") != client_of("127.0.0.1", "b") != client_of("127.0.0.1")
    assert client_of("::1", "a") == client_of("::1", "a")
    assert "secret" not in client_of("::1", "secret")


def test_what_does_not_fit_is_refused_with_the_numbers(model) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        body = {"model": "spark-nano", "prompt": "The fox", "max_tokens": 100_000}
        answer = await client.post(COMPLETIONS, json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert "2048" in answer.text

    run(create_app(model), scenario)


def test_a_client_that_takes_nothing_is_cut_off(model) -> None:
    app = create_app(model, limits=Limits(write_seconds=0.2))
    body = {"model": "spark-nano", "prompt": "The fox", "max_tokens": 1900, "min_tokens": 1900}
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    path = {"path": COMPLETIONS, "raw_path": COMPLETIONS.encode(), "root_path": ""}
    scope = {"type": "http", "method": "POST", "headers": headers, "query_string": b"", **path}
    sent: list[dict] = []

    async def main() -> None:
        stays = asyncio.Event()

        async def receive() -> dict:
            if not sent and not asked:
                asked.append(True)
                data = json.dumps({**body, "stream": True}).encode()
                return {"type": "http.request", "body": data, "more_body": False}
            await stays.wait()
            raise AssertionError("nobody goes away")

        async def send(message: dict) -> None:
            sent.append(message)
            if message["type"] == "http.response.body":
                await stays.wait()

        asked: list[bool] = []
        await asyncio.wait_for(app(scope, receive, send), 30)

    asyncio.run(main())
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert model._engine.stats()["running"] == 0
