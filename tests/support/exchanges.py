"""The least bodies of the server's protocols, read, with what a test adds to them."""

from __future__ import annotations

from typing import Any

from musespark.server.anthropic import Messages
from musespark.server.openai_chat import ChatCompletions
from musespark.server.openai_responses import Responses
from musespark.server.wire import Served

HI = [{"role": "user", "content": "Hi"}]


def chat(served: Served, **body: Any) -> ChatCompletions:
    return ChatCompletions({"model": "m", "messages": HI, **body}, served)


def messages(served: Served, **body: Any) -> Messages:
    return Messages({"model": "m", "max_tokens": 9, "messages": HI, **body}, served)


def responses(served: Served, **body: Any) -> Responses:
    return Responses({"model": "m", "input": "Hi", **body}, served)
