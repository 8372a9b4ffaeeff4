"""The most tokens of thought and answer together: a budget bounds the thought, the rest answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import musespark
from musespark.errors import InvalidRequest
from musespark.options import GenerationOptions
from musespark.server import create_app
from musespark.thinking.request import with_budget

SUM = "What is 47 + 38?"
TURN = [{"role": "user", "content": SUM}]


@pytest.fixture(scope="module")
def model() -> Iterator[musespark.Model]:
    with musespark.load(threads=1) as loaded:
        yield loaded


def post(model: musespark.Model, path: str, **body: Any) -> dict[str, Any]:
    """The answer to a request, none of which is refused."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(model))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post(path, json={"model": "spark-nano", **body}, timeout=60)

    answer = asyncio.run(ask())
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("budget", [9, 39, None])
@pytest.mark.parametrize("total", [1, 5, 20, 40])
def test_a_total_is_never_passed(model, total: int, budget: int | None) -> None:
    asked = {"reasoning_effort": "high", "thinking_token_budget": budget}
    found = model.chat(SUM, max_total_tokens=total, **asked)
    assert found.usage.completion_tokens <= total
    if total >= 20:  # the thought leaves the answer some of all
        assert found.content and found.usage.reasoning_tokens <= (budget or total)


def test_what_a_thought_leaves_is_the_answers(model) -> None:
    free = model.chat(SUM, thinking_token_budget=999)
    found = model.chat(SUM, thinking_token_budget=999, max_total_tokens=1000)
    assert found.tokens == free.tokens and found.finish_reason == "stop"
    assert found.content == "85"


@pytest.mark.parametrize("policy", ["auto", "off"])
def test_a_context_that_is_nearly_full_has_an_answer(model, policy: str) -> None:
    ask = "Sort the numbers 91 32 53 14 75 86 27 68 from small to large. " * 57
    asked = {"temperature": 0, "thinking_policy": policy}
    found = model.chat(ask, **asked)
    usage = found.usage
    room = model.info.context - usage.prompt_tokens
    assert room < 200 and usage.completion_tokens <= room
    assert bool(found.content) == (policy == "auto"), "off: nothing ends a thought"
    # A thought that is shorter than what the context leaves is as it was.
    short = [model.chat(SUM, temperature=0, thinking_policy=p).tokens for p in (policy, "off")]
    assert short[0] == short[1]


def test_the_answer_and_all_together_have_limits_of_their_own(model) -> None:
    asked = {"thinking_token_budget": 10, "max_total_tokens": 100}
    found = model.chat(SUM, max_new_tokens=1, **asked)
    assert found.finish_reason == "length" and len(found.content) == 1
    assert found.usage.reasoning_tokens == 10
    assert model.chat(SUM, max_new_tokens=100, max_total_tokens=4).usage.completion_tokens == 4


@pytest.mark.parametrize(
    ("given", "total", "most", "budget", "answer"),
    [
        ((None, None), 100, 100, None, None),
        ((30, None), 100, 30, None, None),
        ((300, None), 100, 100, None, None),
        ((None, 20), 100, 100, 20, None),
        ((None, 99), 100, 100, 71, None),  # a quarter of all is the answer's
        ((None, 99), 5000, 400, 99, None),  # no more than the room
        ((10, 20), 100, 62, 20, 10),
        ((90, 99), 100, 100, 46, 90),
        ((None, None), 5000, 400, None, None),
        ((500, None), 5000, 500, None, None),  # which the core refuses, as the caller's own
        ((None, None), None, None, None, None),
    ],
)
def test_lengths(given: tuple, total: int | None, most: Any, budget: Any, answer: Any) -> None:
    options = GenerationOptions(max_new_tokens=given[0])
    found = with_budget(options, given[1], 400, 4, total)
    assert (found[0].max_new_tokens, *found[1:]) == (most, budget, answer)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_total_tokens": 0}, "max_total_tokens: got 0, allowed is an integer from 1"),
        ({"max_total_tokens": "9"}, "max_total_tokens: got '9', allowed is an integer"),
        ({"max_total_tokens": 3, "min_new_tokens": 9}, "min_new_tokens: got 9, more than max_tot"),
    ],
)
def test_refusals(model, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        model.chat(SUM, **options)


def test_the_models_own_length_yields_to_it(model) -> None:
    own = model._requests.defaults.max_new_tokens
    assert own is not None
    asked = {"reasoning_effort": "none", "min_new_tokens": own + 9, "max_total_tokens": own + 9}
    assert model.chat("Tell a story.", **asked).usage.completion_tokens == own + 9


def test_a_session_has_it(model) -> None:
    with model.session() as session:
        assert session.chat(SUM, max_total_tokens=4).usage.completion_tokens <= 4


@pytest.mark.parametrize("effort", ["minimal", "high"])
def test_openais_limits_are_of_all_together(model, effort: str) -> None:
    chat = post(
        model,
        "/v1/chat/completions",
        messages=TURN,
        max_completion_tokens=5,
        reasoning_effort=effort,
    )
    assert chat["usage"]["completion_tokens"] <= 5
    whole = post(
        model, "/v1/responses", input=SUM, max_output_tokens=5, reasoning={"effort": effort}
    )
    assert whole["usage"]["output_tokens"] <= 5


def test_the_older_limit_beside_a_budget_is_the_answers(model) -> None:
    own = {"max_tokens": 5, "thinking_token_budget": 20}
    usage = post(model, "/v1/chat/completions", messages=TURN, **own)["usage"]
    assert usage["completion_tokens"] > 20


def test_anthropics_unused_budget_is_the_answers(model) -> None:
    thinking = {"type": "enabled", "budget_tokens": 999}
    found = post(model, "/v1/messages", messages=TURN, max_tokens=1000, thinking=thinking)
    assert found["stop_reason"] == "end_turn" and found["content"][-1]["text"] == "85"
    thinking = {"type": "enabled", "budget_tokens": 19}
    short = post(model, "/v1/messages", messages=TURN, max_tokens=20, thinking=thinking)
    assert short["usage"]["output_tokens"] <= 20
