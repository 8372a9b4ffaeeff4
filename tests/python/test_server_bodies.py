"""What clients send that other servers take: read without an error, or without an effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import musespark
from musespark.server.anthropic import Messages
from musespark.server.openai_chat import ChatCompletions
from musespark.server.openai_responses import Responses
from musespark.server.wire import Served

NANO = Path(musespark.__file__).parent / "nano"
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def served() -> Served:
    return Served(("m",), musespark.Tokenizer.load(NANO))


def chat(served: Served, **body: Any) -> ChatCompletions:
    return ChatCompletions({"model": "m", "messages": HI, **body}, served)


def messages(served: Served, **body: Any) -> Messages:
    return Messages({"model": "m", "max_tokens": 9, "messages": HI, **body}, served)


def responses(served: Served, **body: Any) -> Responses:
    return Responses({"model": "m", "input": "Hi", **body}, served)


# ---- several messages of the system -------------------------------------------------------------


def test_messages_of_the_system_are_one(served: Served) -> None:
    one = [{"role": "system", "content": "Be brief.\n\nBe kind."}, *HI]
    brief, kind = ({"content": text} for text in ("Be brief.", "Be kind."))
    turns = [{"role": "system", **brief}, {"role": "developer", **kind}, *HI]
    assert list(chat(served, messages=turns).job.prompts[0]) == one
    items = [{"role": "developer", **kind}, *HI]
    asked = responses(served, instructions="Be brief.", input=items)
    assert list(asked.job.prompts[0]) == one
    parts = [{"type": "text", "text": text} for text in ("Be brief.", "", "Be kind.")]
    assert list(messages(served, system=parts).job.prompts[0]) == one


def test_one_message_of_the_system_is_as_it_came(served: Served) -> None:
    turns = [{"role": "developer", "content": [{"type": "text", "text": "a"}]}, *HI]
    assert list(chat(served, messages=turns).job.prompts[0]) == turns
