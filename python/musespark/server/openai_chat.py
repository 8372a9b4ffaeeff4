"""``/v1/chat/completions``: OpenAI's chat completions.

Beyond the protocol a body may have the options of :class:`musespark.server.wire.Sampling`,
``thinking_token_budget``, ``mode``, ``continue_final_message``, ``chat_template_kwargs`` with
``enable_thinking`` alone and, for several agents, those of :class:`musespark.ContemplatingOptions`.
Messages and deltas have the thought as ``reasoning`` and as ``reasoning_content``; of several
agents there are deltas ``agent``. The end of a choice has its ``timings`` in seconds, with
``visual_trace: true`` the :class:`musespark.VisualTrace` of an answer about images (null where
there were none), and what became of each of several agents.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from musespark.contemplating import AgentResult
from musespark.errors import InvalidRequest
from musespark.messages import arguments_of, call_text, conversation, image_part, tool_call
from musespark.options import AGGREGATES, CONTEMPLATING, MODES, TOTAL
from musespark.results import Delta
from musespark.server.call_ids import told_id, with_own_ids
from musespark.server.openai_shared import (
    FIELDS,
    AnyObject,
    AnyText,
    Budget,
    CacheRetention,
    Chosen,
    CompletionExchange,
    CompletionOptions,
    Effort,
    Function,
    NamedSchema,
    ServiceTier,
    Verbosity,
    calls_of,
    openai_reason,
    schema_of,
    spelled,
)
from musespark.server.wire import (
    Alternatives,
    Body,
    Ended,
    Event,
    Job,
    Named,
    Served,
    Several,
    Text,
    TextEvents,
    Tokens,
    named_choice,
)

if TYPE_CHECKING:
    from musespark.vision.trace import VisualTrace

PATH = "/v1/chat/completions"


class TextPart(Body):
    type: Literal["text"]
    text: str


class ImageUrl(Body):
    """``detail``: a hint, which is not used: a picture has the tokens that the model gives it."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(Body):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class SystemMessage(Body):
    role: Literal["system", "developer"]
    content: str | Several[TextPart]
    name: str | None = None


class UserMessage(Body):
    role: Literal["user"]
    content: str | Several[Part]
    name: str | None = None


class CalledFunction(Body):
    name: Text
    arguments: str


class Call(Body):
    """``index``: of a stream's deltas, which clients send back as they put them together."""

    id: Text
    index: Annotated[int, Field(ge=0)] | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(Body):
    role: Literal["assistant"]
    content: str | Several[TextPart] | None = None
    name: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: Several[Call] | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[Any] | None = None


class ToolMessage(Body):
    role: Literal["tool"]
    content: str | Several[Part]
    tool_call_id: Text
    name: str | None = None


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class Tool(Body):
    type: Literal["function"]
    function: Function


class FunctionName(Body):
    name: Text


class NamedChoice(Body):
    type: Literal["function"]
    function: FunctionName


class AllowedTools(Body):
    mode: Literal["auto", "required"]
    tools: Annotated[Several[NamedChoice], Field(min_length=1)]


class AllowedChoice(Body):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = Annotated[NamedChoice | AllowedChoice, Field(discriminator="type")]


class OfSchema(Body):
    type: Literal["json_schema"]
    json_schema: NamedSchema


Format = Annotated[AnyText | AnyObject | OfSchema, Field(discriminator="type")]


class TemplateOptions(Body):
    """What clients of other servers give chat templates: whether there is to be a thought."""

    enable_thinking: bool | None = None


class ChatBody(CompletionOptions):
    """A request. What changes nothing here is taken and has no effect: ``user``, ``metadata``,
    ``safety_identifier``, ``prompt_cache_key``, ``prompt_cache_retention``, ``service_tier``,
    ``verbosity``."""

    messages: Annotated[Several[Message], Field(min_length=1)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = None
    tools: Several[Tool] | None = None
    tool_choice: Literal["auto", "none", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: Format | None = None
    reasoning_effort: Effort | None = None
    thinking_token_budget: Budget | None = None
    mode: Literal["auto", "instant", "thinking", "contemplating"] | None = None
    n_agents: Annotated[int, Field(ge=1, le=64)] | None = None
    rounds: Annotated[int, Field(ge=1, le=8)] | None = None
    aggregate: Literal["vote", "confidence", "refine"] | None = None
    continue_final_message: bool | None = None
    visual_trace: bool | None = None
    chat_template_kwargs: TemplateOptions | None = None
    modalities: Several[Literal["text"]] | None = None
    store: Literal[False] | None = None
    metadata: Named[str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: CacheRetention | None = None
    service_tier: ServiceTier | None = None
    verbosity: Verbosity | None = None


assert {*MODES, CONTEMPLATING} == {"auto", "instant", "thinking", "contemplating"}
assert {*AGGREGATES} == {"vote", "confidence", "refine"}


# ---- what is asked ------------------------------------------------------------------------------


def plain_content(content: str | list[Any] | None, where: str) -> Any:
    """A content of the wire as the model takes it."""
    if content is None or isinstance(content, str):
        return content
    parts: Several[dict[str, Any]] = []
    for index, part in enumerate(content):
        if isinstance(part, ImagePart):
            parts.append(image_part(part.image_url.url, f"{where}[{index}].image_url.url"))
        else:
            parts.append({"type": "text", "text": part.text})
    return parts


def plain_messages(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Messages of the wire as the model takes them."""
    out = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        plain = {
            "role": message.role,
            "content": plain_content(message.content, f"{where}.content"),
        }
        if isinstance(message, AssistantMessage):
            plain |= _of_assistant(message, where)
        elif isinstance(message, ToolMessage):
            plain["tool_call_id"] = message.tool_call_id
        out.append({key: value for key, value in plain.items() if value is not None})
    return conversation(with_own_ids(out))


def _of_assistant(message: AssistantMessage, where: str) -> dict[str, Any]:
    calls = [
        tool_call(
            call.id,
            call.function.name,
            arguments_of(
                call.function.arguments, f"{where}.tool_calls[{index}].function.arguments"
            ),
        )
        for index, call in enumerate(message.tool_calls or ())
    ]
    thought = message.reasoning_content or message.reasoning
    return {"reasoning_content": thought, "tool_calls": calls or None}


def lengths(body: ChatBody) -> dict[str, int | None]:
    """Of thought and answer together, ``max_completion_tokens`` or the older ``max_tokens``, which
    beside a budget of thought is the answer's alone."""
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise InvalidRequest(
            f"max_tokens: got {old} beside max_completion_tokens {new}; they are one option"
        )
    if body.thinking_token_budget is None:
        return {TOTAL: new if old is None else old}
    return {"max_new_tokens": old, TOTAL: new}


def thinking_of(body: ChatBody) -> dict[str, Any]:
    """``reasoning_effort`` and ``mode``, which ``enable_thinking`` is another way to say."""
    effort, mode, given = body.reasoning_effort, body.mode, body.chat_template_kwargs
    thinks = None if given is None else given.enable_thinking
    if thinks is not None:
        for name, value in (("reasoning_effort", effort), ("mode", mode)):
            if value not in (None, "auto") and (value in ("none", "instant")) == thinks:
                said = "true" if thinks else "false"
                raise InvalidRequest(
                    f"chat_template_kwargs.enable_thinking: got {said}, which contradicts {name} "
                    f"{value!r}"
                )
    if thinks is False and effort is None:
        effort = "none"
    if thinks and mode in (None, "auto"):
        mode = "thinking"
    return {"reasoning_effort": effort, "mode": mode}


def job_of(body: ChatBody) -> Job:
    """What a body asks for."""
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest(f"top_logprobs: got {body.top_logprobs} without logprobs: true")
    choices = body.n or 1
    if body.mode == CONTEMPLATING and choices > 1:
        raise InvalidRequest(f"n: got {choices}, allowed is 1 beside mode {CONTEMPLATING!r}")
    names = ("thinking_token_budget", "n_agents", "rounds", "aggregate", "continue_final_message")
    options = thinking_of(body) | {name: getattr(body, name) for name in names}
    format = body.response_format
    options |= {
        **lengths(body),
        "logprobs": max(1, body.top_logprobs or 0) if body.logprobs else None,
        "json_schema": schema_of(format.json_schema if isinstance(format, OfSchema) else format),
    }
    functions = [tool.function for tool in body.tools or ()]
    options |= calls_of(functions, _chosen(body.tool_choice), body.parallel_tool_calls)
    messages = plain_messages(body.messages)
    return Job(True, (messages,), options | body.sampling(), choices)


def _chosen(choice: str | NamedChoice | AllowedChoice | None) -> Chosen:
    if isinstance(choice, NamedChoice):
        return Chosen(named_choice(choice.function.name))
    if isinstance(choice, AllowedChoice):
        allowed = choice.allowed_tools
        return Chosen(allowed.mode, [tool.function.name for tool in allowed.tools])
    return Chosen(choice)


# ---- what is answered ---------------------------------------------------------------------------

_TIMINGS = ("prefill_s", "first_token_s", "decode_s")


def _agent(one: AgentResult) -> dict[str, Any]:
    """What became of an agent; rounds and agents count from 0, as in its deltas."""
    names = ("round", "seed", "key", "weight", "confidence", "stop_reason")
    told = {"index": one.agent} | {name: getattr(one, name) for name in names}
    return told | {"completion_tokens": one.usage.completion_tokens}


class ChatCompletions(CompletionExchange):
    """One request and its answer."""

    body_type = ChatBody
    id_prefix = "chatcmpl-"
    object, chunk = "chat.completion", "chat.completion.chunk"
    fields = FIELDS | {"json_schema": "response_format.json_schema.schema"}

    def __init__(self, value: Any, served: Served):
        super().__init__(value, served)
        self.job = job_of(self._body)
        self._calls = dict[int, int]()
        self._agents = self._body.mode == CONTEMPLATING
        self._texts = TextEvents(self._text)

    def answer(self, ended: Sequence[Ended]) -> dict[str, Any]:
        return self._whole([self._choice(one) for one in ended], ended)

    def _choice(self, one: Ended) -> dict[str, Any]:
        result = one.result
        message: dict[str, Any] = {
            "role": "assistant",
            "content": result.content if result.content or not result.tool_calls else None,
            "refusal": None,
        }
        if result.reasoning:
            message |= {"reasoning": result.reasoning, "reasoning_content": result.reasoning}
        if result.tool_calls:
            calls = [self._told(call, one.index) for call in result.tool_calls]
            message["tool_calls"] = calls
        logprobs = self._logprobs(one.logprobs) if self._body.logprobs else None
        choice = {"index": one.index, "message": message, "logprobs": logprobs}
        return choice | self._end(result)

    def _told(self, call: Mapping[str, Any], index: int) -> dict[str, Any]:
        id = told_id(call["id"], self._head["id"], index)
        return call_text({**call, "id": id})

    def _logprobs(self, some: Sequence[Any]) -> dict[str, Any]:
        alternatives = self._body.top_logprobs or 0
        told = [spelled(self._served.tokenizer, one, alternatives) for one in some]
        return {"content": told, "refusal": None}

    def _end(self, result: Any) -> dict[str, Any]:
        """How a choice ended. Beyond the protocol: its seed, what ended its thought, how long it
        took, calls that could not be read, what it says of images, and the votes of agents."""
        end = {"finish_reason": openai_reason(result), "seed": result.seed}
        end["thinking_stop_reason"] = result.thinking_stop_reason
        end["timings"] = {name: getattr(result.timings, name) for name in _TIMINGS}
        if result.malformed_tool_calls:
            end["malformed_tool_calls"] = list(result.malformed_tool_calls)
        if self._body.visual_trace:
            end["visual_trace"] = self._trace(result.trace)
        if self._agents:
            end |= {"votes": result.votes, "stop_reason": result.stop_reason}
            end |= {"answer": result.answer, "agents": [_agent(one) for one in result.agents]}
        return end

    def _trace(self, trace: VisualTrace | None) -> dict[str, Any] | None:
        """Under the model's name here: where its files lie is nobody's concern."""
        if trace is None:
            return None
        return json.loads(replace(trace, model=self._body.model).to_json())

    # ---- streams ------------------------------------------------------------------------------

    def begin(self, prompt_tokens: int) -> list[Event]:
        start = {"role": "assistant", "content": ""}
        return [self._chunk(index, start) for index in range(self.job.choices)]

    def piece(self, index: int, delta: Delta) -> list[Event]:
        if self._agents:
            told = {"index": delta.agent, "round": delta.round, "channel": delta.channel}
            return [self._chunk(index, {"agent": told | {"text": delta.text}})]
        if delta.tool_call is not None:
            at = self._calls.get(index, 0)
            self._calls[index] = at + 1
            call = {"index": at, **self._told(delta.tool_call, index)}
            return [self._chunk(index, {"tool_calls": [call]})]
        if delta.channel == "tool":
            return []  # the call comes when it is whole
        if delta.channel == "content" and self._body.logprobs:
            logprobs = self._logprobs(delta.logprobs)
            return [self._chunk(index, {"content": delta.text}, logprobs)]
        return [self._texts.of(delta.text, index, delta.channel)]

    def _text(self, text: str, index: int, channel: str) -> Event:
        if channel == "reasoning":
            return self._chunk(index, {"reasoning": text, "reasoning_content": text})
        return self._chunk(index, {"content": text})

    def ended(self, one: Ended) -> list[Event]:
        events = []
        if self._agents:  # who speaks for all is known at the end
            thought = one.result.reasoning
            told = {"reasoning": thought, "reasoning_content": thought} if thought else {}
            events = [self._chunk(one.index, {"content": one.result.content, **told})]
        return [*events, self._chunk(one.index, {}, **self._end(one.result))]

    def _chunk(self, index: int, delta: dict[str, Any], logprobs: Any = None, **end: Any) -> Event:
        return self._piece(index, logprobs, end, delta=delta)
