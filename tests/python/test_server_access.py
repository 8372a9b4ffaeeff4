"""Who may ask a server: hosts, origins, tokens."""

from __future__ import annotations

import json

import httpx
import pytest

import musespark
from musespark.server import Access, create_app
from support.asgi import CHAT, HI, POSTS, TOKEN, run


@pytest.fixture(scope="module")
def model():
    with musespark.load(threads=1) as loaded:
        yield loaded


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "10.0.0.1", "localhost@evil", "", "[::2]:80"]
)
def test_other_hosts_are_refused(model, host: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for path in ("/health", "/v1/models"):
            answer = await client.get(path, headers={"host": host})
            assert answer.status_code == 403
            said = answer.json()["error"]["message"]
            assert f"Host: got {host!r}, allowed is" in said and "--allow-host" in said
        assert (await client.post(CHAT, json=HI, headers={"host": host})).status_code == 403

    run(create_app(model), scenario)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000"])
def test_names_of_loopback_are_known(model, host: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await client.get("/health", headers={"host": host})).status_code == 200

    run(create_app(model), scenario)


def test_pages_of_other_origins_are_refused(model) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for origin in ("http://evil.example", "null", "http://localhost:9", "file://localhost"):
            answer = await client.post(CHAT, json=HI, headers={"origin": origin})
            assert answer.status_code == 403, origin
            said = answer.json()["error"]["message"]
            assert f"Origin: got {origin!r}, allowed are" in said and "--allow-origin" in said
        own = await client.get("/v1/models", headers={"origin": "http://localhost"})
        assert own.status_code == 200
        assert "access-control-allow-origin" not in own.headers
        form = {"content-type": "text/plain"}  # what a page may post without being asked
        simple = await client.post(CHAT, content=json.dumps(HI), headers=form)
        assert simple.status_code == 415

    run(create_app(model), scenario)


def test_a_token_is_asked_for(model) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
            assert (await client.get(path)).status_code == 401
        for path in POSTS:
            assert (await client.post(path, json=HI)).status_code == 401
        assert (await client.get("/health")).status_code == 200
        for headers in (
            {"authorization": f"Bearer {TOKEN}"},
            {"authorization": f"bearer  {TOKEN}"},
            {"x-api-key": TOKEN},
        ):
            assert (await client.get("/v1/models", headers=headers)).status_code == 200
        for headers in (
            {"authorization": f"Bearer {TOKEN}x"},
            {"authorization": f"Basic {TOKEN}"},
            {"x-api-key": "é".encode()},
        ):
            assert (await client.get("/v1/models", headers=headers)).status_code == 401

    run(create_app(model, access=Access(token=TOKEN)), scenario)


def test_only_loopback_goes_without_a_token() -> None:
    for host in ("0.0.0.0", "192.168.0.7", "::", "example.com"):
        with pytest.raises(musespark.InvalidRequest, match="without a token"):
            Access(host)
    for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9"):
        Access(host)
    with pytest.raises(musespark.InvalidRequest, match="16 ASCII"):
        Access(token="short")
    wide = Access("0.0.0.0", TOKEN, frozenset(["box.lan"]))
    known = ["192.168.0.7:8000", "box.lan", "localhost"]
    assert [wide.allows_host(h) for h in [*known, "evil.example"]] == [True, True, True, False]


def test_names_are_those_that_a_host_header_can_say() -> None:
    access = Access(names=frozenset(["Box.LAN", "FD00::7"]))
    assert access.names == {"box.lan", "fd00::7"}
    assert all(map(access.allows_host, ["box.lan:8000", "BOX.lan", "[fd00::7]:80", "[FD00::7]"]))
    for name in ("box.lan:8000", "http://box.lan", "box.lan/", "bücher.lan", "", "[::1]", "a b", 7):
        with pytest.raises(musespark.InvalidRequest, match=r"names: got .*, allowed are hosts"):
            Access(names=frozenset([name]))
    for names in ("box.lan", 7, None):
        with pytest.raises(musespark.InvalidRequest, match=f"names: got {names!r}, allowed"):
            Access(names=names)  # type: ignore[arg-type]
