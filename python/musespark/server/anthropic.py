"""``/v1/messages`` and ``/v1/messages/count_tokens``: Anthropic's messages.

Thoughts are ``thinking`` blocks, with an empty signature; those that come back are put where they
were. A body may also have the options of :class:`musespark.server.wire.Sampling`. Without
``thinking`` the model decides whether it thinks. ``max_tokens`` bounds thought and answer together,
the budget of ``thinking`` the thought alone: what a thought leaves of it is the answer's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from musespark.errors import InvalidRequest
from musespark.messages import conversation, image_part, tool_call
from musespark.options import TOTAL
from musespark.results import Delta, Usage
from musespark.server.call_ids import told_id, with_own_ids
from musespark.server.wire import (
    Body,
    Ended,
    Event,
    Failure,
    Job,
    Named,
    Sampling,
    Schema,
    Served,
    Several,
    Text,
    TextEvents,
    Tokens,
    TopP,
    held_calls,
    named_choice,
    new_id,
    nucleus,
)

PATH = "/v1/messages"
COUNT_PATH = "/v1/messages/count_tokens"


class CacheControl(Body):
    """Taken without an effect: what prompts begin with is always cached."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None
    scope: Text | None = None


class Block(Body):
    cache_control: CacheControl | None = None


class TextBlock(Block):
    type: Literal["text"]
    text: str
    citations: Annotated[list[Any], Field(max_length=0)] | None = None


class FileSource(Body):
    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str


class UrlSource(Body):
    type: Literal["url"]
    url: str


class ImageBlock(Block):
    type: Literal["image"]
    source: Annotated[FileSource | UrlSource, Field(discriminator="type")]


class ThinkingBlock(Body):
    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class UseBlock(Block):
    type: Literal["tool_use"]
    id: Text
    name: Text
    input: dict[str, Any]
    caller: dict[str, Any] | None = None


Shown = Annotated[TextBlock | ImageBlock, Field(discriminator="type")]


class ResultBlock(Block):
    type: Literal["tool_result"]
    tool_use_id: Text
    content: str | Several[Shown] | None = None
    is_error: bool | None = None


OfUser = Annotated[TextBlock | ImageBlock | ResultBlock, Field(discriminator="type")]
OfAssistant = Annotated[TextBlock | ThinkingBlock | UseBlock, Field(discriminator="type")]


class UserTurn(Body):
    role: Literal["user"]
    content: str | Annotated[Several[OfUser], Field(min_length=1)]


class AssistantTurn(Body):
    role: Literal["assistant"]
    content: str | Annotated[Several[OfAssistant], Field(min_length=1)]


Turn = Annotated[UserTurn | AssistantTurn, Field(discriminator="role")]


class InputSchema(Body):
    model_config = Body.model_config | {"extra": "allow"}
    type: Literal["object"] | None = None  # a root may be a union or a reference


class Tool(Block):
    type: Literal["custom"] | None = None
    name: Text
    description: str | None = None
    input_schema: InputSchema
    strict: bool | None = None
    eager_input_streaming: bool | None = None


class Choice(Body):
    type: Literal["auto", "none", "any"]
    disable_parallel_tool_use: bool | None = None


class NamedChoice(Body):
    type: Literal["tool"]
    name: Text
    disable_parallel_tool_use: bool | None = None


class Enabled(Body):
    """``display`` has no effect: a thought comes whole, for it has to come back as it was."""

    type: Literal["enabled"]
    budget_tokens: Annotated[int, Field(ge=1, lt=2**31)]
    display: Literal["summarized", "omitted"] | None = None


class Adaptive(Body):
    type: Literal["adaptive"]
    display: Literal["summarized", "omitted"] | None = None


class Disabled(Body):
    type: Literal["disabled"]


class JsonFormat(Body):
    type: Literal["json_schema"]
    schema_: Schema = Field(alias="schema")


class OutputConfig(Body):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class CountBody(Body):
    """What is counted: all that stands in the prompt. ``context_management`` has no effect: what
    the client sends is what the model reads."""

    model: str
    messages: Annotated[Several[Turn], Field(min_length=1)]
    system: str | Several[TextBlock] | None = None
    tools: Several[Tool] | None = None
    tool_choice: Annotated[Choice | NamedChoice, Field(discriminator="type")] | None = None
    thinking: Annotated[Enabled | Adaptive | Disabled, Field(discriminator="type")] | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None
    context_management: dict[str, Any] | None = None


class MessagesBody(CountBody, Sampling):
    """A request. ``metadata``, ``service_tier``, ``speed``, ``cache_control`` and a tool's
    ``eager_input_streaming`` have no effect."""

    max_tokens: Tokens
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=1)] | None = None
    top_p: TopP | None = None
    stop_sequences: Annotated[Several[Text], Field(max_length=64)] | None = None
    metadata: Named[str | None] | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    speed: Literal["standard"] | None = None
    container: None = None


# ---- what is asked ------------------------------------------------------------------------------


def plain_messages(body: CountBody) -> list[dict[str, Any]]:
    """System and turns as messages of the model; results of tools are messages of their own."""
    out: Several[dict[str, Any]] = []
    if body.system:
        given = body.system
        text = given if isinstance(given, str) else "\n".join(block.text for block in given)
        out.append({"role": "system", "content": text})
    for index, turn in enumerate(body.messages):
        where = f"messages[{index}].content"
        if isinstance(turn.content, str):
            out.append({"role": turn.role, "content": turn.content})
        elif isinstance(turn, UserTurn):
            out += _of_user(turn.content, where)
        else:
            out.append(_of_assistant(turn.content))
    return conversation(with_own_ids(out))


def _of_user(blocks: Sequence[Any], where: str) -> list[dict[str, Any]]:
    out: Several[dict[str, Any]] = []
    for index, block in enumerate(blocks):
        if isinstance(block, ResultBlock):
            content = _shown(block.content or "", f"{where}[{index}].content")
            if block.is_error:  # as Model.act tells a model of one
                content = _as_error(content)
            out.append({"role": "tool", "tool_call_id": block.tool_use_id, "content": content})
            continue
        if not out or out[-1]["role"] != "user":
            out.append({"role": "user", "content": []})
        out[-1]["content"].append(_part(block, f"{where}[{index}]"))
    return out


def _as_error(content: Any) -> Any:
    if isinstance(content, str):
        return f"error: {content}"
    return [{"type": "text", "text": "error: "}, *content]


def _shown(content: str | Sequence[Any], where: str) -> Any:
    if isinstance(content, str):
        return content
    parts = [_part(block, f"{where}[{index}]") for index, block in enumerate(content)]
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _part(block: TextBlock | ImageBlock, where: str) -> dict[str, Any]:
    if isinstance(block, TextBlock):
        return {"type": "text", "text": block.text}
    source = block.source
    if isinstance(source, UrlSource):
        return image_part(source.url, f"{where}.source.url")
    return image_part(f"data:{source.media_type};base64,{source.data}", f"{where}.source.data")


def _of_assistant(blocks: Sequence[Any]) -> dict[str, Any]:
    texts = [block.text for block in blocks if isinstance(block, TextBlock)]
    thoughts = [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]
    calls = [
        tool_call(block.id, block.name, block.input)
        for block in blocks
        if isinstance(block, UseBlock)
    ]
    message: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts)}
    if thoughts:
        message["reasoning_content"] = "\n\n".join(thoughts)
    return message | ({"tool_calls": calls} if calls else {})


def prompt_options(body: CountBody) -> dict[str, Any]:
    """Options of the model that stand in its prompt, and how long it thinks."""
    config = body.output_config
    effort = None if config is None else config.effort
    options: dict[str, Any] = {"reasoning_effort": "xhigh" if effort == "max" else effort}
    if isinstance(body.thinking, Disabled):
        if effort is not None:
            raise InvalidRequest(f"output_config.effort: got {effort!r} beside disabled thinking")
        options["reasoning_effort"] = "none"
    elif isinstance(body.thinking, Enabled):
        options["thinking_token_budget"] = body.thinking.budget_tokens
    if body.messages[-1].role == "assistant":
        options["continue_final_message"] = True
    format = None if config is None else config.format
    options["json_schema"] = None if format is None else format.schema_
    return options | _calls(body)


def _calls(body: CountBody) -> dict[str, Any]:
    tools, chosen = body.tools or [], body.tool_choice
    if isinstance(chosen, NamedChoice):
        choice: str | None = named_choice(chosen.name)
    else:
        choice = None if chosen is None else chosen.type.replace("any", "required")
    if choice is not None and chosen is not None and choice not in ("auto", "none") and not tools:
        raise InvalidRequest(f"tool_choice.type: got {chosen.type!r} without tools")
    names = [tool.name for tool in tools]
    if isinstance(chosen, NamedChoice) and chosen.name not in names:
        raise InvalidRequest(f"tool_choice.name: got {chosen.name!r}, allowed is one of {names}")
    strict = any(tool.strict for tool in tools)
    parallel = None if chosen is None else not chosen.disable_parallel_tool_use
    return held_calls([_tool(tool) for tool in tools], choice, strict=strict, parallel=parallel)


def _tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "parameters": tool.input_schema.model_dump(exclude_unset=True)}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function}


#: Fields by options of a model, where they have other names.
FIELDS = {
    "messages": "messages[]",
    "json_schema": "output_config.format.schema",
    "reasoning_effort": "output_config.effort",
    "thinking_token_budget": "thinking.budget_tokens",
    "stop": "stop_sequences",
    "min_new_tokens": "min_tokens",
    TOTAL: "max_tokens",
}


class CountTokens:
    """One request for the length of a prompt. ``messages`` and ``options``: of it."""

    body_type = CountBody
    fields = FIELDS

    def __init__(self, value: Any, served: Served):
        body: CountBody = served.read(CountBody, value)
        given = {name: one for name, one in prompt_options(body).items() if one is not None}
        self.job = Job(True, (plain_messages(body),), given)

    @staticmethod
    def error_body(failure: Failure) -> dict[str, Any]:
        """An error as the protocol writes it."""
        kinds = {
            401: "authentication_error",
            403: "permission_error",
            404: "not_found_error",
            413: "request_too_large",
            429: "rate_limit_error",
            503: "overloaded_error",
        }
        other = "api_error" if failure.status >= 500 else "invalid_request_error"
        error = {"type": kinds.get(failure.status, other), "message": failure.message}
        return {"type": "error", "error": error}

    def answer(self, tokens: int) -> dict[str, Any]:
        return {"input_tokens": tokens}


# ---- what is answered ---------------------------------------------------------------------------


class Messages:
    """One request and its answer."""

    error_body = CountTokens.error_body
    body_type = MessagesBody
    quiet = b'event: ping\ndata: {"type":"ping"}\n\n'
    fields = FIELDS

    def __init__(self, value: Any, served: Served):
        body: MessagesBody = served.read(MessagesBody, value)
        options = prompt_options(body) | body.sampling()
        options |= nucleus(body.temperature, body.top_p)
        budget = options.get("thinking_token_budget", 0)
        if budget >= body.max_tokens:
            raise InvalidRequest(
                f"thinking.budget_tokens: got {budget}, allowed is less than max_tokens, "
                f"{body.max_tokens}"
            )
        options |= {TOTAL: body.max_tokens, "stop": body.stop_sequences}
        self.job = Job(True, (plain_messages(body),), options)
        self.streams = bool(body.stream)
        self._head = {"id": new_id("msg_"), "type": "message", "role": "assistant"}
        self._head["model"] = body.model
        self._blocks, self._open = 0, ""
        self._texts = TextEvents(_text_delta)

    def answer(self, ended: Sequence[Ended]) -> dict[str, Any]:
        (one,) = ended
        result = one.result
        content: list[dict[str, Any]] = []
        if result.reasoning:
            content.append(_thinking(result.reasoning))
        if result.content:
            content.append({"type": "text", "text": result.content})
        content += [_use(call, self._head["id"]) for call in result.tool_calls]
        usage = _usage(result.usage)
        return {**self._head, "content": content, "usage": usage, **_stop(result)}

    def begin(self, prompt_tokens: int) -> list[Event]:
        usage = _usage(Usage(prompt_tokens=prompt_tokens))
        end = {"stop_reason": None, "stop_sequence": None}
        message = {**self._head, "content": [], "usage": usage, **end}
        return [_event("message_start", message=message)]

    def piece(self, index: int, delta: Delta) -> list[Event]:
        if delta.tool_call is not None:
            return self._call(delta.tool_call)
        if delta.channel == "tool":
            return []  # the call comes when it is whole
        thinks = delta.channel == "reasoning"
        kind = "thinking" if thinks else "text"
        events = self._begin_block(kind, _thinking("") if thinks else {"type": "text", "text": ""})
        return [*events, self._texts.of(delta.text, kind, self._blocks)]

    def ended(self, one: Ended) -> list[Event]:
        usage = _usage(one.result.usage)
        delta = _event("message_delta", delta=_stop(one.result), usage=usage)
        return [*self._end_block(), delta]

    def close(self, ended: Sequence[Ended]) -> list[Event]:
        return [_event("message_stop")]

    def failed(self, failure: Failure) -> list[Event]:
        return [Event(self.error_body(failure), "error")]

    def _call(self, call: Mapping[str, Any]) -> list[Event]:
        block = _use(call, self._head["id"])
        arguments = json.dumps(block["input"], ensure_ascii=False)
        return [
            *self._end_block(),
            *self._begin_block("tool_use", {**block, "input": {}}),
            self._delta({"type": "input_json_delta", "partial_json": arguments}),
            *self._end_block(),
        ]

    def _begin_block(self, kind: str, block: dict[str, Any]) -> list[Event]:
        if self._open == kind:
            return []
        events = self._end_block()
        self._open = kind
        return [*events, _event("content_block_start", index=self._blocks, content_block=block)]

    def _end_block(self) -> list[Event]:
        if not self._open:
            return []
        events = [_event("content_block_stop", index=self._blocks)]
        self._open, self._blocks = "", self._blocks + 1
        return events

    def _delta(self, delta: dict[str, Any]) -> Event:
        return _event("content_block_delta", index=self._blocks, delta=delta)


def _event(kind: str, **fields: Any) -> Event:
    return Event({"type": kind, **fields}, kind)


def _text_delta(text: str, kind: str, block: int) -> Event:
    delta = {"type": f"{kind}_delta", kind: text}
    return _event("content_block_delta", index=block, delta=delta)


def _thinking(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": ""}


def _use(call: Mapping[str, Any], answer: str) -> dict[str, Any]:
    function = call["function"]
    return {
        "type": "tool_use",
        "id": told_id(call["id"], answer),
        "name": function["name"],
        "input": function["arguments"],
    }


def _usage(usage: Usage) -> dict[str, Any]:
    """Of the prompt, ``input_tokens`` are those that were computed. ``probe_tokens`` is ours."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
        "probe_tokens": usage.probe_tokens,
    }


def _stop(result: Any) -> dict[str, Any]:
    met = result.stop_string
    reasons = {"tool_calls": "tool_use", "length": "max_tokens", "deadline": "max_tokens"}
    reason = reasons.get(result.finish_reason, "end_turn")
    reason = "stop_sequence" if met is not None and reason == "end_turn" else reason
    end: dict[str, Any] = {"stop_reason": reason, "stop_sequence": met}
    if result.malformed_tool_calls:  # beyond the protocol: nothing is lost
        end["malformed_tool_calls"] = list(result.malformed_tool_calls)
    return end
