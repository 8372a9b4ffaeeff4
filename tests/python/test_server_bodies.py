"""What clients send that other servers take: read without an error, or without an effect."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import musespark
from musespark.errors import InvalidRequest
from musespark.results import ChatResult, Delta, Usage
from musespark.server.anthropic import CountTokens
from musespark.server.openai_completions import Completions
from musespark.server.transport import _written
from musespark.server.wire import Ended, Event, Served, TextEvents, to_json
from support.exchanges import HI, chat, messages, responses

NANO = Path(musespark.__file__).parent / "nano"


@pytest.fixture(scope="module")
def served() -> Served:
    return Served(("m",), musespark.Tokenizer.load(NANO))


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


# ---- fields that change nothing here ------------------------------------------------------------

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    "body",
    [
        {"verbosity": "low"},
        {"prompt_cache_retention": "24h"},
        *({"service_tier": tier} for tier in ("auto", "default", "flex", "priority", "scale")),
    ],
)
def test_fields_of_chat_completions_without_an_effect(served: Served, body: dict) -> None:
    assert chat(served, **body).job == chat(served).job


@pytest.mark.parametrize(
    "body",
    [
        *({"reasoning": {"summary": word}} for word in ("auto", "concise", "detailed")),
        {"text": {"verbosity": "high", "format": {"type": "text"}}},
        {"max_tool_calls": 3},
        {"prompt_cache_retention": "in_memory"},
        {"service_tier": "flex"},
    ],
)
def test_fields_of_responses_without_an_effect(served: Served, body: dict) -> None:
    asked = responses(served, **body)
    assert asked.job == responses(served).job
    told = asked.begin(1)[0].data["response"]
    for name in ("reasoning", "text"):
        if name in body:
            assert body[name].items() <= told[name].items()


EDITS = {"edits": [{"type": "clear_tool_uses_20250919"}]}


@pytest.mark.parametrize(
    "body",
    [
        {"context_management": EDITS},
        {"cache_control": {"type": "ephemeral", "scope": "global"}},
        {"thinking": {"type": "adaptive", "display": "omitted"}},
        {"speed": "standard"},
        {"container": None},
    ],
)
def test_fields_of_messages_without_an_effect(served: Served, body: dict) -> None:
    assert messages(served, **body).job == messages(served).job


def test_a_count_takes_what_a_request_takes(served: Served) -> None:
    asked = {"model": "m", "messages": HI, "context_management": EDITS}
    assert CountTokens(asked, served).job.prompts[0] == HI


def test_calls_come_back_with_the_index_of_their_deltas(served: Served) -> None:
    told = [
        chat(served, messages=[*HI, {"role": "assistant", "tool_calls": [call]}, *HI]).job
        for call in (CALL, {**CALL, "index": 0})
    ]
    assert told[0] == told[1]


def test_tools_have_names_of_128_letters_and_stream_as_they_like(served: Served) -> None:
    tool = {"name": "t" * 128, "input_schema": {"type": "object"}}
    asked = [
        messages(served, tools=[one]) for one in (tool, {**tool, "eager_input_streaming": True})
    ]
    assert asked[0].job == asked[1].job
    musespark.text.toolcalls.schemas_of(asked[0].job.options["tools"])


@pytest.mark.parametrize("kind", [chat, messages, responses])
def test_a_nucleus_of_nothing_is_greedy(served: Served, kind: Any) -> None:
    options = kind(served, top_p=0, temperature=1).job.options
    assert (options["temperature"], options["top_p"]) == (0, None)
    options = kind(served, top_p=0.5, temperature=1).job.options
    assert (options["temperature"], options["top_p"]) == (1, 0.5)


@pytest.mark.parametrize(("given", "seed"), [(-1, 2**64 - 1), (-(2**63), 2**63), (7, 7)])
def test_seeds_with_a_sign(served: Served, given: int, seed: int) -> None:
    assert chat(served, seed=given).job.options["seed"] == seed


# ---- bodies that are wrong throughout -----------------------------------------------------------

MANY = 20_000
WRONG = [
    (chat, {"messages": [1] * MANY}, r"^messages\[0\]: got 1, allowed is an object$"),
    (chat, {"messages": [{"role": "user", "content": [1] * MANY}]}, r"^messages\[0\].content"),
    (chat, {"messages": [{}] * MANY}, r"^messages\[0\].role is missing$"),
    (chat, {"stop": [1] * MANY}, r"^stop"),
    (chat, {"tools": [1] * MANY}, r"^tools\[0\]: got 1"),
    (chat, {"logit_bias": {f"x{i}": "a" for i in range(MANY)}}, "^logit_bias: got an object, of 2"),
    (chat, {"metadata": dict.fromkeys(map(str, range(MANY)), 1)}, "^metadata: got an object, of 2"),
    (chat, dict.fromkeys(map("x{}".format, range(MANY)), 1), "allowed are at most 100$"),
    (
        chat,
        {"messages": [dict.fromkeys(map(str, range(MANY)), 1) | HI[0]]},
        r"^messages\[0\]: got an object, of 20002 entries, allowed are at most 100$",
    ),
    (messages, {"messages": [1] * MANY}, r"^messages\[0\]: got 1"),
    (messages, {"system": [1] * MANY}, r"^system"),
    (responses, {"input": [1] * MANY}, r"^input\[0\]: got 1"),
    (responses, {"input": [{}] * MANY}, r"^input\[0\]"),
    (responses, {"include": [1] * MANY}, r"^include\[0\]"),
]


@pytest.mark.parametrize(("kind", "body", "said"), WRONG)
def test_a_body_that_is_wrong_throughout_costs_little(
    served: Served, kind: Any, body: dict, said: str
) -> None:
    tracemalloc.start()
    began = time.monotonic()
    try:
        with pytest.raises(InvalidRequest, match=said):
            kind(served, **body)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 4 << 20 and time.monotonic() - began < 1


def test_prompts_that_are_wrong_throughout_cost_little(served: Served) -> None:
    for prompt in ([1.5] * MANY, [[]] * MANY, [[1.5] * MANY]):
        tracemalloc.start()
        try:
            with pytest.raises(InvalidRequest, match=r"^prompt"):
                Completions({"model": "m", "prompt": prompt}, served)
            assert tracemalloc.get_traced_memory()[1] < 4 << 20
        finally:
            tracemalloc.stop()


# ---- lines --------------------------------------------------------------------------------------

ENDS = "a\u2028b\u2029c\u0085d\x0b\x0c\x1c\x1d\x1e\r\né"


def test_a_value_is_one_line() -> None:
    value = {"text": ENDS, ENDS: [ENDS]}
    assert json.loads(to_json(value)) == value and len(to_json(value).splitlines()) == 1
    assert "é" in to_json(value)  # what ends no line goes as it is


def test_events_are_split_by_no_text() -> None:
    events = TextEvents(lambda text: Event({"delta": text}, "name"))
    sent = [events.of("x"), events.of(ENDS), Event({"delta": ENDS})]
    lines = _written(sent).decode().splitlines()
    assert len(lines) == 3 + 3 + 2
    read = [json.loads(line[6:])["delta"] for line in lines if line.startswith("data: ")]
    assert read == ["x", ENDS, ENDS]


# ---- a response that is cut ---------------------------------------------------------------------


def cut(reasoning: str, content: str, calls: tuple = ()) -> Ended:
    made = {"text": content, "content": content, "reasoning": reasoning, "tool_calls": calls}
    result = ChatResult(**made, tokens=(1,), seed=5, finish_reason="length", usage=Usage(1, 0, 1))
    return Ended(0, result)


MADE = {"id": "c", "type": "function", "function": {"name": "f", "arguments": {}}}


@pytest.mark.parametrize(
    ("ended", "items"),
    [
        (cut("Hm", ""), [("reasoning", "incomplete")]),
        (cut("Hm", "So"), [("reasoning", "completed"), ("message", "incomplete")]),
        (cut("", "So"), [("message", "incomplete")]),
        (cut("", ""), []),
        (
            cut("Hm", "", (MADE,)),
            [("reasoning", "completed"), ("function_call", "completed")],
        ),
    ],
)
def test_a_cut_response_is_the_same_whole_and_streamed(
    served: Served, ended: Ended, items: list
) -> None:
    whole = responses(served).answer([ended])
    exchange = responses(served, stream=True)
    exchange.begin(1)
    for channel, text in (("reasoning", ended.result.reasoning), ("content", ended.result.content)):
        for letter in text:
            exchange.piece(0, Delta(letter, channel))
    for call in ended.result.tool_calls:
        exchange.piece(0, Delta("", "tool", call))
    streamed = exchange.ended(ended)[-1].data["response"]
    for response in (whole, streamed):
        assert response["status"] == "incomplete"
        assert [(item["type"], item["status"]) for item in response["output"]] == items
        for item in response["output"]:
            item |= {key: "" for key in ("id", "call_id") if key in item}
    assert whole["output"] == streamed["output"]
