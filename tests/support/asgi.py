"""Requests to the server as an application, without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

CHAT, COMPLETIONS, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"
POSTS = (
    *(CHAT, COMPLETIONS, MESSAGES, "/v1/responses"),
    *("/v1/messages/count_tokens", "/v1/embeddings"),
)
HI = {"model": "spark-nano", "messages": [{"role": "user", "content": "What is 47 + 38?"}]}
TOKEN = "a-token-of-this-test"


Scenario = Callable[[httpx.AsyncClient], Awaitable[None]]


def run(app: Any, scenario: Scenario, **client: Any) -> None:
    async def main() -> None:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=True)
        base = client.pop("base_url", "http://localhost")
        async with httpx.AsyncClient(transport=transport, base_url=base, **client) as one:
            await asyncio.wait_for(scenario(one), 120)

    asyncio.run(main())


def events(response: httpx.Response) -> list[Any]:
    """The data of server-sent events."""
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]
