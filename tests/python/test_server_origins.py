"""Pages of other origins: those that are let in, and what their browsers ask before."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import pytest

import musespark
from musespark.server import Access, create_app

APP = "https://app.example"
TOKEN = "a-token-of-this-test"
HI = {"model": "spark-nano", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
ASKS = {"access-control-request-method": "POST"}
ASKS |= {"access-control-request-headers": "authorization,content-type,x-stainless-os"}
ALLOWED = "access-control-allow-origin"


@pytest.fixture(scope="module")
def model():
    with musespark.load(threads=1) as loaded:
        yield loaded


def run(model, access: Access, scenario: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    async def main() -> None:
        transport = httpx.ASGITransport(app=create_app(model, access=access))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as one:
            await asyncio.wait_for(scenario(one), 60)

    asyncio.run(main())


def test_a_browser_is_told_that_pages_of_an_allowed_origin_may_ask(model) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        answer = await client.options("/v1/chat/completions", headers={"origin": APP, **ASKS})
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers[ALLOWED] == APP and answer.headers["vary"] == "Origin"
        assert answer.headers["access-control-allow-methods"] == "GET, POST"
        wanted = ASKS["access-control-request-headers"]
        assert answer.headers["access-control-allow-headers"] == wanted
        key = {"authorization": f"Bearer {TOKEN}"}
        for headers, status in (({}, 401), (key, 200)):
            headers = {"origin": APP, **headers}
            answer = await client.post("/v1/chat/completions", json=HI, headers=headers)
            assert answer.status_code == status
            assert answer.headers[ALLOWED] == APP, "else the page cannot read why"

    run(model, Access(token=TOKEN, origins=frozenset([APP])), scenario)


@pytest.mark.parametrize(
    "origin",
    [f"{APP}.evil.example", f"{APP}:444", "http://app.example", "https://APP.example", "null", "*"],
)
def test_an_origin_is_allowed_exactly(model, origin: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for answer in (
            await client.options("/v1/models", headers={"origin": origin, **ASKS}),
            await client.get("/v1/models", headers={"origin": origin}),
        ):
            assert answer.status_code == 403 and ALLOWED not in answer.headers
            assert answer.headers["vary"] == "Origin"

    run(model, Access(origins=frozenset([APP])), scenario)


def test_an_allowed_origin_changes_nothing_for_others(model) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        plain = await client.get("/v1/models")
        assert plain.status_code == 200 and ALLOWED not in plain.headers
        own = await client.get("/v1/models", headers={"origin": "http://localhost"})
        assert own.status_code == 200 and ALLOWED not in own.headers
        assert (await client.options("/v1/models", headers=ASKS)).status_code == 405
        wrong = await client.options("/v1/models", headers={"origin": APP})
        assert wrong.status_code == 405, "it asks for nothing"
        elsewhere = {"host": "evil.example", "origin": APP, **ASKS}
        assert (await client.options("/v1/models", headers=elsewhere)).status_code == 403

    run(model, Access(origins=frozenset([APP])), scenario)


def test_names_of_the_server_are_its_own_origins(model) -> None:
    """As where something before it speaks TLS and asks it by its address."""

    async def scenario(client: httpx.AsyncClient) -> None:
        for origin, status in (
            ("https://box.lan", 200),
            ("http://box.lan", 200),
            ("https://box.lan:444", 403),
            ("ftp://box.lan", 403),
            ("https://other.lan", 403),
        ):
            answer = await client.get("/v1/models", headers={"origin": origin})
            assert answer.status_code == status, origin
            assert ALLOWED not in answer.headers

    run(model, Access(names=frozenset(["box.lan"])), scenario)


@pytest.mark.parametrize(
    "origin", ["*", "null", "app.example", "https://app.example/", "https://App.example", "http://"]
)
def test_origins_that_are_none_are_refused(origin: str) -> None:
    with pytest.raises(musespark.InvalidRequest, match=r"origins: got .*, allowed is a scheme"):
        Access(origins=frozenset([origin]))


def test_the_command_refuses_an_origin_that_is_none(capsys) -> None:
    from musespark.cli import main

    assert main(["serve", "--allow-origin", "*"]) == 1
    assert "origins: got '*'" in capsys.readouterr().err
