"""``/v1/responses``: OpenAI's responses: items in, items and typed events out. Nothing is stored.

Thoughts are ``reasoning`` items whose ``content`` is the whole thought. Beyond the protocol a body
may have the options of :class:`musespark.server.wire.Sampling` and ``thinking_token_budget``.
``max_output_tokens`` bounds thoughts and answer together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from musespark.errors import InvalidRequest
from musespark.messages import arguments_of, conversation, image_part, tool_call
from musespark.options import TOTAL
from musespark.results import Delta
from musespark.server.call_ids import with_own_ids
from musespark.server.openai_shared import (
    FIELDS,
    AnyObject,
    AnyText,
    Budget,
    CacheRetention,
    Chosen,
    Effort,
    Function,
    NamedSchema,
    ResponseStreamOptions,
    ServiceTier,
    Verbosity,
    calls_of,
    check_streams,
    openai_error,
    schema_of,
)
from musespark.server.refusing import renaming
from musespark.server.response_items import Items
from musespark.server.wire import (
    QUIET,
    Alternatives,
    Body,
    Ended,
    Event,
    Failure,
    Job,
    Named,
    Sampling,
    Served,
    Several,
    Temperature,
    Text,
    Tokens,
    TopP,
    named_choice,
    new_id,
    now,
    nucleus,
)

PATH = "/v1/responses"

Status = Literal["in_progress", "completed", "incomplete"]


class InputText(Body):
    type: Literal["input_text"]
    text: str


class InputImage(Body):
    """``detail``: a hint, which is not used: a picture has the tokens that the model gives it."""

    type: Literal["input_image"]
    image_url: str
    detail: Literal["auto", "low", "high"] | None = None
    file_id: None = None


class OutputText(Body):
    type: Literal["output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


Part = Annotated[InputText | InputImage | OutputText, Field(discriminator="type")]


class Message(Body):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Several[Part]
    id: str | None = None
    status: Status | None = None
    phase: str | None = None


class FunctionCall(Body):
    type: Literal["function_call"]
    call_id: Text
    name: Text
    arguments: str
    id: str | None = None
    status: Status | None = None
    caller: None = None
    namespace: None = None
    async_: None = Field(default=None, alias="async")


class FunctionOutput(Body):
    type: Literal["function_call_output"]
    call_id: Text
    output: str | Several[Part]
    id: str | None = None
    status: Status | None = None
    name: str | None = None


class ThoughtText(Body):
    type: Literal["reasoning_text", "summary_text"]
    text: str


class Thought(Body):
    type: Literal["reasoning"]
    id: str | None = None
    summary: Several[ThoughtText] = Field(default_factory=list)
    content: Several[ThoughtText] | None = None
    encrypted_content: None = None
    status: Status | None = None


def _kind(item: Any) -> str:
    kind = item.get("type", "message") if isinstance(item, dict) else None
    return kind if isinstance(kind, str) else ""


Item = Annotated[
    Annotated[Message, Tag("message")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionOutput, Tag("function_call_output")]
    | Annotated[Thought, Tag("reasoning")],
    Discriminator(_kind),
]


class Tool(Function):
    type: Literal["function"]


class NamedChoice(Body):
    type: Literal["function"]
    name: Text


class AllowedChoice(Body):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[Several[NamedChoice], Field(min_length=1)]


ToolChoice = Annotated[NamedChoice | AllowedChoice, Field(discriminator="type")]


class OfSchema(NamedSchema):
    type: Literal["json_schema"]


class TextConfig(Body):
    verbosity: Verbosity | None = None
    format: Annotated[AnyText | AnyObject | OfSchema, Field(discriminator="type")] | None = None


class Reasoning(Body):
    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class ResponseBody(Sampling):
    """A request. What changes nothing here is taken and has no effect: ``user``, ``metadata``,
    ``safety_identifier``, ``prompt_cache_key``, ``prompt_cache_retention``, ``service_tier``,
    ``verbosity``, ``max_tool_calls`` (of tools that a server runs, which there are none of), a
    reasoning's ``summary`` (thoughts come whole), encrypted reasoning."""

    model: str
    input: Text | Annotated[Several[Item], Field(min_length=1)]
    instructions: str | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    max_output_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_logprobs: Alternatives | None = None
    include: (
        Several[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None
    ) = None
    tools: Several[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    thinking_token_budget: Budget | None = None
    truncation: Literal["disabled"] | None = None
    store: Literal[False] | None = None
    background: Literal[False] | None = None
    user: str | None = None
    metadata: Named[str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: CacheRetention | None = None
    service_tier: ServiceTier | None = None
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None

    @property
    def wants_logprobs(self) -> bool:
        return "message.output_text.logprobs" in (self.include or ())


# ---- what is asked ------------------------------------------------------------------------------


def _content(given: str | Sequence[Any], where: str) -> Any:
    if isinstance(given, str):
        return given
    parts = [
        image_part(part.image_url, f"{where}[{index}].image_url")
        if isinstance(part, InputImage)
        else {"type": "text", "text": part.text}
        for index, part in enumerate(given)
    ]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    return "".join(texts) if len(texts) == len(parts) else parts


class _Conversation:
    """Items as messages: a thought goes to the turn after it, a call to the turn it is part of."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._thought: list[str] = []

    def add(self, item: Any, where: str) -> None:
        if isinstance(item, Thought):
            self._thought += [part.text for part in item.content or item.summary]
        elif isinstance(item, FunctionCall):
            self._call(item, where)
        elif isinstance(item, FunctionOutput):
            content = _content(item.output, f"{where}.output")
            self.messages.append({"role": "tool", "tool_call_id": item.call_id, "content": content})
        elif item.role == "assistant":
            self._turn(_content(item.content, f"{where}.content"))
        else:
            content = _content(item.content, f"{where}.content")
            self.messages.append({"role": item.role, "content": content})

    def _turn(self, content: Any) -> dict[str, Any]:
        turn: dict[str, Any] = {"role": "assistant", "content": content}
        if self._thought:
            turn["reasoning_content"] = "\n\n".join(self._thought)
            self._thought = []
        self.messages.append(turn)
        return turn

    def _call(self, item: FunctionCall, where: str) -> None:
        arguments = arguments_of(item.arguments, f"{where}.arguments")
        goes_on = self.messages and self.messages[-1]["role"] == "assistant" and not self._thought
        turn = self.messages[-1] if goes_on else self._turn("")
        calls = turn.setdefault("tool_calls", [])
        calls.append(tool_call(item.call_id, item.name, arguments))


def job_of(body: ResponseBody) -> Job:
    """What a body asks for."""
    talk = _Conversation()
    if body.instructions:
        talk.messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        talk.messages.append({"role": "user", "content": body.input})
    else:
        for index, item in enumerate(body.input):
            talk.add(item, f"input[{index}]")
    messages = conversation(with_own_ids(talk.messages))
    if not messages:
        raise InvalidRequest("input: got reasoning alone, allowed is at least one message")
    if messages[-1]["role"] == "assistant":  # to go on with it is no option of this protocol
        raise InvalidRequest(
            "input: the last item is the assistant's, allowed is one of the user or the output of "
            "a call"
        )
    if body.top_logprobs and not body.wants_logprobs:
        wanted = "include: message.output_text.logprobs"
        raise InvalidRequest(f"top_logprobs: got {body.top_logprobs} without {wanted}")
    options: dict[str, Any] = {
        **nucleus(body.temperature, body.top_p),
        TOTAL: body.max_output_tokens,
        "reasoning_effort": None if body.reasoning is None else body.reasoning.effort,
        "thinking_token_budget": body.thinking_token_budget,
        "logprobs": max(1, body.top_logprobs or 0) if body.wants_logprobs else None,
        "json_schema": schema_of(None if body.text is None else body.text.format),
    }
    options |= calls_of(body.tools or (), _chosen(body.tool_choice), body.parallel_tool_calls)
    return Job(True, (messages,), options | body.sampling())


def _chosen(choice: str | NamedChoice | AllowedChoice | None) -> Chosen:
    if isinstance(choice, NamedChoice):
        return Chosen(named_choice(choice.name))
    if isinstance(choice, AllowedChoice):
        return Chosen(choice.mode, [tool.name for tool in choice.tools])
    return Chosen(choice)


# ---- what is answered ---------------------------------------------------------------------------


class Responses:
    """One request and its answer."""

    error_body = staticmethod(openai_error)
    body_type = ResponseBody
    quiet = QUIET
    fields = FIELDS | {
        "messages": "input[]",
        "json_schema": "text.format.schema",
        "reasoning_effort": "reasoning.effort",
        TOTAL: "max_output_tokens",
    }

    def __init__(self, value: Any, served: Served):
        self._body: ResponseBody = served.read(ResponseBody, value)
        with renaming(self.fields):
            self.job = job_of(self._body)
        self.streams = bool(self._body.stream)
        check_streams(self._body.stream_options, self.streams)
        alternatives = self._body.top_logprobs or 0
        wants = self._body.wants_logprobs
        self._head = {"id": new_id("resp_"), "object": "response", "created_at": now()}
        self._items = Items(self._head["id"], served.tokenizer, alternatives if wants else None)
        self._count = 0

    def answer(self, ended: Sequence[Ended]) -> dict[str, Any]:
        (one,) = ended
        return self._response(one, self._items.of_result(one, _status(one.result)))

    def begin(self, prompt_tokens: int) -> list[Event]:
        begun = self._response(None, [])
        return [
            self._numbered({"type": "response.created", "response": begun}),
            self._numbered({"type": "response.in_progress", "response": begun}),
        ]

    def piece(self, index: int, delta: Delta) -> list[Event]:
        return [self._numbered(event) for event in self._items.piece(delta)]

    def ended(self, one: Ended) -> list[Event]:
        status = _status(one.result)
        events = [self._numbered(event) for event in self._items.finish(status)]
        response = self._response(one, self._items.done)
        return [*events, self._numbered({"type": f"response.{status}", "response": response})]

    def close(self, ended: Sequence[Ended]) -> list[Event]:
        return []

    def failed(self, failure: Failure) -> list[Event]:
        error = {"code": "server_error", "message": failure.message}
        response = {**self._response(None, self._items.done), "status": "failed", "error": error}
        return [self._numbered({"type": "response.failed", "response": response})]

    def _numbered(self, event: dict[str, Any]) -> Event:
        self._count += 1
        return Event({**event, "sequence_number": self._count - 1}, event["type"])

    def _response(self, one: Ended | None, output: list[dict[str, Any]]) -> dict[str, Any]:
        body = self._body
        status = "in_progress" if one is None else _status(one.result)
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        given = body.model_dump(
            by_alias=True, include={"text", "tools", "tool_choice", "reasoning"}
        )
        response = {
            **self._head,
            "status": status,
            "error": None,
            "incomplete_details": cut,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": body.model,
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": given["reasoning"] or {"effort": None, "summary": None},
            "store": False,
            "temperature": body.temperature,
            "text": given["text"] or {"format": {"type": "text"}},
            "tool_choice": given["tool_choice"] or "auto",
            "tools": [{"strict": None, **tool} for tool in given["tools"] or ()],
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None if one is None else _usage(one.result.usage),
        }
        return response if one is None else response | _beyond(one.result)


def _beyond(result: Any) -> dict[str, Any]:
    """What the protocol has no place for."""
    told: dict[str, Any] = {"seed": result.seed}
    told["thinking_stop_reason"] = result.thinking_stop_reason
    if result.malformed_tool_calls:
        told["malformed_tool_calls"] = list(result.malformed_tool_calls)
    return told


def _status(result: Any) -> str:
    return "incomplete" if result.finish_reason in ("length", "deadline") else "completed"


def _usage(usage: Any) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": 0,
            "image_tokens": usage.image_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "probe_tokens": usage.probe_tokens,
        },
        "total_tokens": usage.total_tokens,
    }
