"""Wire protocols as pure translations: bodies to jobs, deltas and results to what the wire has."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import musespark
from musespark.errors import InvalidRequest
from musespark.results import ChatResult, Completion, Delta, TokenLogprob, Usage
from musespark.server import Limits
from musespark.server.anthropic import CountTokens, Messages
from musespark.server.openai_completions import Completions
from musespark.server.wire import Ended, Event, Served, TextEvents, UnknownModel
from support.exchanges import HI, chat, messages, responses

NANO = Path(musespark.__file__).parent / "nano"
PIXEL = base64.b64encode(b"GIF89a picture").decode()
CALCULATE = {
    "type": "object",
    "properties": {"expression": {"type": "string"}},
    "required": ["expression"],
}
TOOL = {"name": "calculate", "description": "A sum.", "parameters": CALCULATE}


@pytest.fixture(scope="module")
def served() -> Served:
    return Served(("m",), musespark.Tokenizer.load(NANO))


def completions(served: Served, **body: Any) -> Completions:
    return Completions({"model": "m", "prompt": "Hi", **body}, served)


# ---- bodies to jobs -----------------------------------------------------------------------------

CALL = {"name": "calculate", "arguments": {"expression": "1+2"}}
#: What all three protocols say below.
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "See"},
            {"type": "image", "image": b"GIF89a picture"},
        ],
    },
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "A sum.",
        "tool_calls": [{"id": "c1", "type": "function", "function": CALL}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "3", "name": "calculate"},
]


def openai_conversation() -> list[dict[str, Any]]:
    url = {"url": f"data:image/gif;base64,{PIXEL}"}
    call = {"name": "calculate", "arguments": '{"expression": "1+2"}'}
    return [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "See"}, {"type": "image_url", "image_url": url}],
        },
        {
            "role": "assistant",
            "content": "",
            "reasoning": "A sum.",
            "tool_calls": [{"id": "c1", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
    ]


def test_chat_completions_say_a_conversation(served: Served) -> None:
    tools = [{"type": "function", "function": TOOL}]
    job = chat(served, messages=openai_conversation(), tools=tools).job
    assert list(job.prompts[0]) == CONVERSATION
    assert job.options["tools"] == tools


def test_messages_say_the_same_conversation(served: Served) -> None:
    image = {"type": "base64", "media_type": "image/gif", "data": PIXEL}
    turns = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "See"}, {"type": "image", "source": image}],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "A sum.", "signature": ""},
                {"type": "tool_use", "id": "c1", "name": "calculate", "input": CALL["arguments"]},
            ],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "3"}],
        },
    ]
    tool = {"name": "calculate", "description": "A sum.", "input_schema": CALCULATE}
    job = messages(served, system="Be brief.", messages=turns, tools=[tool]).job
    assert list(job.prompts[0]) == CONVERSATION
    assert job.options["tools"] == [{"type": "function", "function": TOOL}]


def test_responses_say_the_same_conversation(served: Served) -> None:
    image = {"type": "input_image", "image_url": f"data:image/gif;base64,{PIXEL}"}
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "See"}, image]},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "A sum."}]},
        {
            "type": "function_call",
            "call_id": "c1",
            "name": "calculate",
            "arguments": '{"expression": "1+2"}',
        },
        {"type": "function_call_output", "call_id": "c1", "output": "3"},
    ]
    tools = [{"type": "function", **TOOL}]
    job = responses(served, instructions="Be brief.", input=items, tools=tools).job
    assert list(job.prompts[0]) == CONVERSATION
    assert job.options["tools"] == [{"type": "function", "function": TOOL}]


def test_several_calls_of_a_turn_are_one_message(served: Served) -> None:
    call = {"type": "function_call", "name": "f", "arguments": "{}"}
    items = [
        {"role": "user", "content": "x"},
        {**call, "call_id": "a"},
        {**call, "call_id": "b"},
        {"type": "function_call_output", "call_id": "a", "output": "1"},
        {"type": "function_call_output", "call_id": "b", "output": "2"},
        {**call, "call_id": "c"},
        {"type": "function_call_output", "call_id": "c", "output": "3"},
    ]
    roles = [m["role"] for m in responses(served, input=items).job.prompts[0]]
    assert roles == ["user", "assistant", "tool", "tool", "assistant", "tool"]


def test_an_error_of_a_tool_is_told_as_one(served: Served) -> None:
    use = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "c", "content": "no disk", "is_error": True}
    turns = [
        *HI,
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result, {"type": "text", "text": "go on"}]},
    ]
    prompt = messages(served, messages=turns).job.prompts[0]
    assert prompt[-2]["content"] == "error: no disk"
    assert prompt[-1] == {"role": "user", "content": [{"type": "text", "text": "go on"}]}


@pytest.mark.parametrize(
    ("body", "options"),
    [
        ({"max_completion_tokens": 5}, {"max_total_tokens": 5}),
        ({"max_tokens": 5}, {"max_total_tokens": 5}),
        (
            {"max_tokens": 5, "thinking_token_budget": 9},
            {"max_total_tokens": None, "max_new_tokens": 5},
        ),
        ({"max_tokens": 5, "max_completion_tokens": 5}, {"max_total_tokens": 5}),
        ({"logprobs": True}, {"logprobs": 1}),
        ({"logprobs": True, "top_logprobs": 4}, {"logprobs": 4}),
        ({"logit_bias": {"7": -100}}, {"logit_bias": {7: -100}}),
        ({"response_format": {"type": "json_object"}}, {"json_schema": {"type": "object"}}),
        ({"reasoning_effort": "none"}, {"reasoning_effort": "none"}),
        ({"thinking_token_budget": 0}, {"thinking_token_budget": 0}),
        (
            {"tools": [{"type": "function", "function": TOOL}], "tool_choice": "none"},
            {"tools": None},
        ),
        ({"stop": ["a"], "seed": 3, "min_tokens": 2}, {"seed": 3, "min_new_tokens": 2}),
    ],
)
def test_options_of_chat_completions(served: Served, body: dict, options: dict) -> None:
    job = chat(served, **body).job
    assert options.items() <= job.options.items()


@pytest.mark.parametrize(
    ("body", "options"),
    [
        (
            {"thinking": {"type": "enabled", "budget_tokens": 7}, "max_tokens": 20},
            {"thinking_token_budget": 7, "max_total_tokens": 20},
        ),
        ({"thinking": {"type": "disabled"}}, {"reasoning_effort": "none"}),
        ({"thinking": {"type": "adaptive"}}, {"reasoning_effort": None}),
        ({"output_config": {"effort": "max"}}, {"reasoning_effort": "xhigh"}),
        (
            {"messages": [*HI, {"role": "assistant", "content": "Yes"}]},
            {"continue_final_message": True},
        ),
        ({"stop_sequences": ["x"]}, {"stop": ["x"]}),
    ],
)
def test_options_of_messages(served: Served, body: dict, options: dict) -> None:
    assert options.items() <= messages(served, **body).job.options.items()


HELD = [
    # what the wire says: of OpenAI's chat, of its responses, of Anthropic's; and what is asked
    (None, None, None, None),
    ("auto", "auto", {"type": "auto"}, None),
    ("required", "required", {"type": "any"}, "required"),
    (
        {"type": "function", "function": {"name": "calculate"}},
        {"type": "function", "name": "calculate"},
        {"type": "tool", "name": "calculate"},
        "calculate",
    ),
]


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("said", HELD)
def test_calls_are_held_to_their_schemas_where_that_is_asked(
    served: Served, said: tuple, strict: bool
) -> None:
    of_chat, of_responses, of_anthropic, choice = said
    own = {**TOOL, "strict": strict}
    spoken = {"name": "calculate", "description": "A sum.", "input_schema": CALCULATE}
    asked = [
        chat(served, tools=[{"type": "function", "function": own}], tool_choice=of_chat),
        responses(served, tools=[{"type": "function", **own}], tool_choice=of_responses),
        messages(served, tools=[{**spoken, "strict": strict}], tool_choice=of_anthropic),
    ]
    for exchange in asked:
        options = exchange.job.options
        assert options["tools"] == [{"type": "function", "function": TOOL}]
        assert options["tool_choice"] == (choice or ("auto" if strict else None))
    assert asked[1].begin(0)[0].data["response"]["tool_choice"] == (of_responses or "auto")


@pytest.mark.parametrize(
    ("given", "effort", "mode"),
    [
        ({"chat_template_kwargs": {"enable_thinking": False}}, "none", None),
        ({"chat_template_kwargs": {"enable_thinking": False}, "mode": "auto"}, "none", "auto"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, None, "thinking"),
        (
            {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "low"},
            "low",
            "thinking",
        ),
        (
            {"chat_template_kwargs": {"enable_thinking": True}, "mode": "contemplating"},
            None,
            "contemplating",
        ),
        ({"chat_template_kwargs": {}}, None, None),
    ],
)
def test_thinking_as_clients_of_other_servers_ask_for_it(
    served: Served, given: dict, effort: str | None, mode: str | None
) -> None:
    options = chat(served, **given).job.options
    assert (options["reasoning_effort"], options["mode"]) == (effort, mode)


@pytest.mark.parametrize("kind", [chat, responses, completions])
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"stream_options": {}}, "^stream_options: got them without a stream"),
        ({"stream_options": {}, "stream": False}, "^stream_options: got them without a stream"),
        (
            {"stream_options": {"include_obfuscation": True}, "stream": True},
            "^stream_options.include_obfuscation: got true, allowed is false",
        ),
    ],
)
def test_options_of_a_stream_are_for_streams(served, kind: Any, body: dict, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        kind(served, **body)
    kind(served, stream=True, stream_options={"include_obfuscation": False})


def test_the_tools_that_may_be_called(served: Served) -> None:
    name = {"type": "function", "function": {"name": "calculate"}}
    of_chat = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [name]}}
    bare = {"type": "function", "name": "calculate"}
    of_responses = {"type": "allowed_tools", "mode": "required", "tools": [bare]}
    one = chat(served, tools=[{"type": "function", "function": TOOL}], tool_choice=of_chat)
    other = responses(served, tools=[{"type": "function", **TOOL}], tool_choice=of_responses)
    assert [one.job.options["tool_choice"], other.job.options["tool_choice"]] == [None, "required"]
    assert one.job.options["allowed_tools"] == other.job.options["allowed_tools"] == ["calculate"]
    assert other.begin(0)[0].data["response"]["tool_choice"] == of_responses


@pytest.mark.parametrize("choice", [None, "auto", "required"])
def test_one_call_at_most(served: Served, choice: str | None) -> None:
    said = {"auto": "auto", None: "auto", "required": "any"}[choice]
    more = {"parallel_tool_calls": False, "tool_choice": choice}
    spoken = [{"name": "calculate", "input_schema": CALCULATE}]
    chosen = {"type": said, "disable_parallel_tool_use": True}
    for one in (
        chat(served, tools=[{"type": "function", "function": TOOL}], **more),
        responses(served, tools=[{"type": "function", **TOOL}], **more),
        messages(served, tools=spoken, tool_choice=chosen),
    ):
        assert one.job.options["parallel_tool_calls"] is False
    free = messages(served, tools=spoken, tool_choice={"type": said})
    assert free.job.options["parallel_tool_calls"] is None


def test_additions_are_named(served: Served) -> None:
    given = {"adapter": "mine", "steering": "calm"}
    for exchange in (chat(served, **given), messages(served, **given), responses(served, **given)):
        assert given.items() <= exchange.job.options.items()


def test_choices_have_seeds_of_their_own(served: Served) -> None:
    asks = chat(served, n=3, seed=2**64 - 1).job.asks()
    assert [ask.options["seed"] for ask in asks] == [2**64 - 1, 0, 1]
    assert all("seed" not in ask.options for ask in chat(served, n=2).job.asks())


def test_completions_take_texts_and_ids(served: Served) -> None:
    def prompts(given: Any) -> tuple:
        return Completions({"model": "m", "prompt": given}, served).job.prompts

    assert prompts("a") == ("a",)
    assert prompts([1, 2]) == ([1, 2],)
    assert prompts(["a", "b"]) == ("a", "b")
    assert prompts([[1], [2, 3]]) == ([1], [2, 3])
    job = Completions({"model": "m", "prompt": ["a", "b"], "n": 2}, served).job
    assert [ask.prompt for ask in job.asks()] == ["a", "a", "b", "b"]
    assert job.options["max_new_tokens"] == 16


# ---- what is refused ----------------------------------------------------------------------------


def image(url: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"chat_template": "{{ 1 }}"}, "chat_template: a template of a request is never run"),
        (
            {"chat_template_kwargs": {"template": "{{ 1 }}"}},
            "^chat_template_kwargs.template: allowed of chat_template_kwargs is enable_thinking",
        ),
        (
            {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "high"},
            "^chat_template_kwargs.enable_thinking: got false, which contradicts reasoning_effort",
        ),
        (
            {"chat_template_kwargs": {"enable_thinking": True}, "mode": "instant"},
            "^chat_template_kwargs.enable_thinking: got true, which contradicts mode 'instant'",
        ),
        ({"temprature": 1}, "temprature: unknown field"),
        ({"messages": []}, "messages: got an array of 0, allowed are at least 1 item"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, r"messages\[0\].role: got"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\].content is missing"),
        ({"messages": [{"role": "user", "content": 3}]}, r"messages\[0\].content: got 3"),
        ({"messages": image("https://example.com/a.png")}, "nothing is fetched or opened here"),
        ({"messages": image("file:///etc/passwd")}, "nothing is fetched or opened here"),
        ({"messages": image("/etc/passwd")}, "nothing is fetched or opened here"),
        ({"messages": image("data:image/png;base64,%%%")}, "not base64"),
        ({"temperature": "1"}, "temperature: got '1'"),
        ({"temperature": 1e300}, r"temperature: got 1e\+300"),
        ({"max_tokens": 0}, "max_tokens: got 0"),
        ({"max_tokens": 10**30}, "max_tokens: got 1"),
        ({"max_tokens": 1.5}, "max_tokens: got 1.5"),
        ({"max_tokens": True}, "max_tokens: got true"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "they are one option"),
        ({"seed": -(2**63) - 1}, "seed: got -9223372036854775809"),
        ({"seed": 2**64}, "seed: got 18446744073709551616"),
        ({"n": 1000}, "n: got 1000"),
        ({"top_logprobs": 3}, "without logprobs: true"),
        ({"logit_bias": {"x": 1}}, "logit_bias: got 'x'"),
        ({"logit_bias": {"²": 1}}, "logit_bias: got '²'"),
        ({"tool_choice": "always"}, "tool_choice: got 'always'"),
        ({"tool_choice": {"type": "function", "function": {"name": "none"}}}, "the tool 'none'"),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "none"}}},
            r"^tool_choice.allowed_tools",
        ),
        ({"store": True}, "store: got true"),
        ({"messages": {}}, "^messages: got an object, allowed is an array$"),
        ({"messages": ["x"]}, r"^messages\[0\]: got 'x', allowed is an object$"),
        (
            {"messages": [{"role": "alien", "content": "x"}]},
            r"^messages\[0\].role: got 'alien', allowed is one of 'system', 'developer', 'user',",
        ),
        ({"messages": [{"content": "x"}]}, r"^messages\[0\].role is missing$"),
        ({"stop": {}}, "^stop: got an object"),
        ({"messages": [{"role": "assistant", "audio": 1}]}, "audio: got 1, allowed is null$"),
        ({"mode": "contemplating", "n": 2}, "n: got 2, allowed is 1 beside mode"),
        (
            {"messages": [{"role": "tool", "tool_call_id": "x", "content": ""}]},
            r"messages\[0\]: no call before it has the id 'x'",
        ),
    ],
)
def test_chat_completions_refuse(served: Served, body: dict, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        chat(served, **body)


def test_one_call_at_most_is_taken_where_there_can_be_none(served: Served) -> None:
    assert chat(served, parallel_tool_calls=False).job.options["tools"] is None
    tools = [{"type": "function", "function": TOOL}]
    none = chat(served, parallel_tool_calls=False, tools=tools, tool_choice="none")
    assert none.job.options["tools"] is None
    told = responses(served, parallel_tool_calls=False)
    assert told.begin(1)[0].data["response"]["parallel_tool_calls"] is False


@pytest.mark.parametrize("detail", ["auto", "low", "high", None])
def test_the_detail_of_a_picture_changes_nothing(served: Served, detail: str | None) -> None:
    url = f"data:image/gif;base64,{PIXEL}"
    part = {"type": "image_url", "image_url": {"url": url, "detail": detail}}
    plain = {"type": "image_url", "image_url": {"url": url}}
    told = [
        chat(served, messages=[{"role": "user", "content": [one]}]).job for one in (part, plain)
    ]
    assert told[0] == told[1]
    item = {"type": "input_image", "image_url": url, "detail": detail}
    assert responses(served, input=[{"role": "user", "content": [item]}]).job.prompts


@pytest.mark.parametrize("arguments", ["[1]", "{", '{"a": NaN}', '{"a": 1, "a": 2}'])
def test_calls_have_arguments_that_are_objects(served: Served, arguments: str) -> None:
    call = {"id": "c", "function": {"name": "f", "arguments": arguments}}
    turns = [*HI, {"role": "assistant", "tool_calls": [call]}, *HI]
    with pytest.raises(InvalidRequest, match=r"messages\[1\].tool_calls\[0\].function.arguments"):
        chat(served, messages=turns)


def test_other_models_are_refused(served: Served) -> None:
    with pytest.raises(UnknownModel, match="got 'gpt-9', allowed is 'm'"):
        chat(served, model="gpt-9")
    for kind, body in ((Messages, {"max_tokens": 1}), (CountTokens, {})):
        with pytest.raises(UnknownModel):
            kind({"model": "x", "messages": HI, **body}, served)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"max_tokens": None}, "max_tokens: got null"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "budget_tokens: got 0"),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 20}, "max_tokens": 20},
            "budget_tokens: got 20, allowed is less than max_tokens, 20",
        ),
        ({"tool_choice": {"type": "all"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool", "name": "auto"}}, "the tool 'auto', which cannot"),
        ({"mcp_servers": []}, "mcp_servers: unknown field"),
        (
            {"thinking": {"type": "disabled"}, "output_config": {"effort": "low"}},
            "beside disabled thinking",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image", "source": {"type": "url", "url": "http://a/b"}}
                        ],
                    }
                ]
            },
            "nothing is fetched",
        ),
    ],
)
def test_messages_refuse(served: Served, body: dict, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        messages(served, **body)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"previous_response_id": "resp_1"}, "nothing is stored"),
        ({"tools": [{"type": "web_search"}]}, r"tools\[0\]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, r"input\[0\]"),
        ({"input": [{"type": 3}]}, r"^input\[0\].type: got 3, allowed is one of 'message', "),
        ({"input": [3]}, r"^input\[0\]: got 3, allowed is an object$"),
        ({"background": True}, "background: got true"),
        ({"input": [{"type": "reasoning", "content": []}]}, "reasoning alone"),
    ],
)
def test_responses_refuse(served: Served, body: dict, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        responses(served, **body)


@pytest.mark.parametrize(
    ("limits", "body", "said"),
    [
        ({"messages": 1}, {"messages": HI * 2}, "messages: got 2, allowed are at most 1"),
        (
            {"images": 1},
            {"messages": image(f"data:image/gif;base64,{PIXEL}") * 2 + HI},
            "images: got 2, allowed are at most 1",
        ),
        ({"choices": 2}, {"n": 3}, "choices: got 3"),
        ({"tools": 1}, {"tools": [{"type": "function", "function": TOOL}] * 2}, "tools: got 2"),
        (
            {"schema_bytes": 20},
            {"tools": [{"type": "function", "function": TOOL}]},
            r"tools\[0\]: bytes: got",
        ),
        ({"schema_bytes": 5}, {"regex": "[a-z]+"}, "regex: bytes: got 6"),
    ],
)
def test_limits(served: Served, limits: dict, body: dict, said: str) -> None:
    job = chat(served, **body).job
    Limits().check(job)
    with pytest.raises(InvalidRequest, match=said):
        Limits(**limits).check(job)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Limits)])
def test_limits_are_numbers(field: str) -> None:
    for value in (-1, "1", True):
        with pytest.raises(InvalidRequest, match=field):
            Limits(**{field: value})


# ---- deltas and results to the wire -------------------------------------------------------------

RESULT = ChatResult(
    text="3.",
    content="3.",
    reasoning="A sum.",
    tokens=(1, 2, 3),
    seed=5,
    finish_reason="tool_calls",
    usage=Usage(10, 4, 6, 2, 1, 0),
    tool_calls=({"id": "call_1", "type": "function", "function": CALL},),
)
PIECES = [
    Delta("A ", "reasoning"),
    Delta("sum.", "reasoning"),
    Delta("3"),
    Delta("."),
    Delta("<raw call>", "tool"),
    Delta("", "tool", RESULT.tool_calls[0]),
]


def streamed(exchange: Any, result: Any = RESULT) -> list[Any]:
    events = list(exchange.begin(10))
    for piece in PIECES:
        events += exchange.piece(0, piece)
    ended = [Ended(0, result)]
    return [*map(read, events), *exchange.ended(ended[0]), *exchange.close(ended)]


def read(event: Event) -> Event:
    """An event with its data as values, where it is JSON already."""
    return event._replace(data=json.loads(event.data)) if isinstance(event.data, str) else event


def test_events_of_texts_are_those_of_their_values() -> None:
    made = list[str]()

    def make(text: str, index: int) -> Event:
        made.append(text)
        return Event({"index": index, "a": text, "b": {"c": text}, "\u0000": 1.5}, "name")

    events = TextEvents(make)
    for text in ("a", "", 'é "quoted" \\ \n \u0000', "text_", "a"):
        for index in (0, 1):
            assert read(events.of(text, index)) == make(text, index)
    assert len([text for text in made if text.startswith("text_") and len(text) > 5]) == 2


def test_chat_completions_stream_what_they_answer(served: Served) -> None:
    answer = chat(served).answer([Ended(0, RESULT)])
    choice = answer["choices"][0]
    message = choice["message"]
    assert message["reasoning"] == message["reasoning_content"] == "A sum."
    assert message["tool_calls"][0]["function"]["arguments"] == '{"expression": "1+2"}'
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 4
    assert answer["usage"]["completion_tokens_details"] == {
        "reasoning_tokens": 2,
        "probe_tokens": 1,
    }
    events = streamed(chat(served, stream=True, stream_options={"include_usage": True}))
    assert events[-1].data == "[DONE]"
    assert events[-2].data["usage"] == answer["usage"]
    deltas = [e.data["choices"][0]["delta"] for e in events[:-2]]
    for name in ("content", "reasoning", "reasoning_content"):
        assert "".join(d.get(name, "") for d in deltas) == message[name]
    (call,) = [call for d in deltas for call in d.get("tool_calls", ())]
    assert {**call, "id": ""} == {"index": 0, **message["tool_calls"][0], "id": ""}
    reasons = [e.data["choices"][0]["finish_reason"] for e in events[:-2]]
    assert reasons == [None] * (len(reasons) - 1) + ["tool_calls"]


def test_messages_stream_what_they_answer(served: Served) -> None:
    answer = messages(served).answer([Ended(0, RESULT)])
    kinds = [block["type"] for block in answer["content"]]
    assert kinds == ["thinking", "text", "tool_use"]
    assert answer["stop_reason"] == "tool_use"
    assert (answer["usage"]["input_tokens"], answer["usage"]["cache_read_input_tokens"]) == (6, 4)
    events = streamed(messages(served, stream=True))
    assert all(event.name == event.data["type"] for event in events)
    begun = [e.data for e in events if e.name == "content_block_start"]
    ends = [e.data["index"] for e in events if e.name == "content_block_stop"]
    assert [b["content_block"]["type"] for b in begun] == kinds
    assert [b["index"] for b in begun] == ends == [0, 1, 2]
    texts = {0: "", 1: "", 2: ""}
    for event in events:
        if event.name == "content_block_delta":
            delta = event.data["delta"]
            (text,) = [value for key, value in delta.items() if key != "type"]
            texts[event.data["index"]] += text
    assert texts == {0: "A sum.", 1: "3.", 2: '{"expression": "1+2"}'}
    assert events[-2].data["usage"] == answer["usage"]
    assert events[-1].name == "message_stop"


@pytest.mark.parametrize(
    ("reason", "met", "stop"),
    [("stop", None, "end_turn"), ("stop", "x", "stop_sequence"), ("length", None, "max_tokens")],
)
def test_messages_say_why_they_stop(served: Served, reason: str, met: str | None, stop: str):
    result = dataclasses.replace(RESULT, finish_reason=reason, stop_string=met)
    answer = messages(served).answer([Ended(0, result)])
    assert (answer["stop_reason"], answer["stop_sequence"]) == (stop, met)


def test_responses_stream_what_they_answer(served: Served) -> None:
    def known(item: dict) -> dict:
        return {key: value for key, value in item.items() if key not in ("id", "call_id")}

    answer = responses(served).answer([Ended(0, RESULT)])
    assert [item["type"] for item in answer["output"]] == ["reasoning", "message", "function_call"]
    events = streamed(responses(served, stream=True))
    assert [event.data["sequence_number"] for event in events] == list(range(len(events)))
    last = events[-1].data
    assert last["type"] == "response.completed"
    assert list(map(known, last["response"]["output"])) == list(map(known, answer["output"]))
    done = [e.data["item"] for e in events if e.name == "response.output_item.done"]
    assert done == last["response"]["output"]
    begun = [e.data["item"]["id"] for e in events if e.name == "response.output_item.added"]
    assert begun == [item["id"] for item in done]


def test_what_is_cut_is_incomplete(served: Served) -> None:
    cut = dataclasses.replace(RESULT, finish_reason="length")
    answer = responses(served).answer([Ended(0, cut)])
    assert answer["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert streamed(responses(served), cut)[-1].data["type"] == "response.incomplete"


def test_calls_that_cannot_be_read_are_not_lost(served: Served) -> None:
    odd = dataclasses.replace(RESULT, malformed_tool_calls=("<call",), tool_calls=())
    assert chat(served).answer([Ended(0, odd)])["choices"][0]["malformed_tool_calls"] == ["<call"]
    assert messages(served).answer([Ended(0, odd)])["malformed_tool_calls"] == ["<call"]
    assert responses(served).answer([Ended(0, odd)])["malformed_tool_calls"] == ["<call"]


def test_logprobs_are_spelled_with_their_bytes(served: Served) -> None:
    (token,) = served.tokenizer.encode("the")
    told = TokenLogprob(token, -0.5, ((token, -0.5), (token, float("-inf"))))
    body = {"logprobs": True, "top_logprobs": 2}
    (one,) = chat(served, **body).answer([Ended(0, RESULT, (told,))])["choices"][0]["logprobs"][
        "content"
    ]
    assert (one["token"], bytes(one["bytes"]), one["logprob"]) == ("the", b"the", -0.5)
    assert [top["logprob"] for top in one["top_logprobs"]] == [-0.5, -9999.0]
    beyond = TokenLogprob(served.tokenizer.vocab_size + 7, -1.0)  # padded vocabularies have these
    (one,) = chat(served, **body).answer([Ended(0, RESULT, (beyond,))])["choices"][0]["logprobs"][
        "content"
    ]
    assert (one["token"], one["bytes"]) == ("", [])


def test_usage_of_several_choices_counts_a_prompt_once(served: Served) -> None:
    result = Completion("a", (1, 2), 0, "stop", Usage(10, 0, 2))
    later = dataclasses.replace(result, usage=Usage(20, 16, 2))
    exchange = Completions({"model": "m", "prompt": ["a", "b"], "n": 2}, served)
    ended = [Ended(0, result), Ended(1, result), Ended(2, later), Ended(3, later)]
    usage = exchange.answer(ended)["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (30, 8)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 16


def test_offsets_of_completions_go_on_through_a_stream(served: Served) -> None:
    exchange = Completions({"model": "m", "prompt": "a", "logprobs": 0}, served)
    (token,) = served.tokenizer.encode("the")
    delta = Delta("the", logprobs=(TokenLogprob(token, -1.0),))
    offsets = [
        exchange.piece(0, delta)[0].data["choices"][0]["logprobs"]["text_offset"] for _ in "123"
    ]
    assert offsets == [[0], [3], [6]]
