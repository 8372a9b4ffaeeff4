"""What OpenAI's protocols share: parts of bodies, usage, log-probabilities, errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from musespark.errors import InvalidRequest
from musespark.options import TOTAL
from musespark.results import TokenLogprob, Usage
from musespark.server.wire import (
    QUIET,
    Body,
    Ended,
    Event,
    Failure,
    Job,
    Named,
    Penalty,
    Sampling,
    Schema,
    Served,
    Several,
    Temperature,
    Text,
    Tokens,
    TopP,
    held_calls,
    new_id,
    now,
    nucleus,
)
from musespark.text import Tokenizer

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]
ServiceTier = Literal["auto", "default", "flex", "scale", "priority"]
CacheRetention = Literal["in_memory", "in-memory", "24h"]
Verbosity = Literal["low", "medium", "high"]
Bias = Annotated[float, Field(ge=-100, le=100)]
Budget = Annotated[int, Field(ge=0, lt=2**31)]


#: Fields by options of a model, where they have other names.
FIELDS = {"min_new_tokens": "min_tokens", "max_new_tokens": "max_tokens", "choices": "n"}
FIELDS |= {TOTAL: "max_completion_tokens"}


# ---- parts of bodies ----------------------------------------------------------------------------


class AnyText(Body):
    type: Literal["text"]


class AnyObject(Body):
    type: Literal["json_object"]


class NamedSchema(Body):
    name: str
    schema_: Schema = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


def schema_of(format: AnyText | AnyObject | NamedSchema | None) -> Schema | None:
    """The schema that a format stands for; ``strict`` or not, the answer is of it."""
    if isinstance(format, NamedSchema):
        return format.schema_
    return {"type": "object"} if isinstance(format, AnyObject) else None


class Function(Body):
    """A function that may be called. ``strict``: its calls are held to its schema."""

    name: Text
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None


class Chosen(NamedTuple):
    """A ``tool_choice``: auto, none, required or a tool's name; and the tools that may be called,
    all where None."""

    choice: str | None
    allowed: list[str] | None = None


def calls_of(
    functions: Sequence[Function], chosen: Chosen, parallel: bool | None
) -> dict[str, Any]:
    """``tools`` and what goes with them of :meth:`musespark.Model.chat`. ``parallel``: whether a
    turn may have several calls."""
    names = {"name", "description", "parameters"}
    described = [function.model_dump(include=names, exclude_none=True) for function in functions]
    tools = [{"type": "function", "function": one} for one in described]
    strict = any(function.strict for function in functions)
    choice, allowed = chosen
    return held_calls(tools, choice, strict=strict, allowed=allowed, parallel=parallel)


class ResponseStreamOptions(Body):
    """Of responses. What obfuscates is never written, so it cannot be asked for."""

    include_obfuscation: Literal[False] | None = None


class StreamOptions(ResponseStreamOptions):
    include_usage: bool = False


def check_streams(options: ResponseStreamOptions | None, streams: bool) -> None:
    """InvalidRequest for options of a stream where there is none."""
    if options is not None and not streams:
        raise InvalidRequest(
            "stream_options: got them without a stream, allowed beside stream: true"
        )


class CompletionOptions(Sampling):
    """What chat completions and completions have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=32)] | None = None
    max_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    stop: Text | Annotated[Several[Text], Field(max_length=64)] | None = None
    logit_bias: Named[Bias] | None = None
    user: str | None = None

    def sampling(self) -> dict[str, Any]:
        names = ("presence_penalty", "frequency_penalty", "stop")
        own = {name: getattr(self, name) for name in names}
        own |= nucleus(self.temperature, self.top_p)
        return super().sampling() | own | {"logit_bias": _bias(self.logit_bias)}


def _bias(given: dict[str, float] | None) -> dict[int, float] | None:
    """Token ids, which JSON has as texts, with what is added to their logits."""
    if given is None:
        return None
    for key in given:
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise InvalidRequest(f"logit_bias: got {key!r:.60}, allowed is a token id")
    return {int(key): bias for key, bias in given.items()}


# ---- completions of both kinds ------------------------------------------------------------------


class CompletionExchange:
    """A request of chat completions or completions, and what both say around an answer."""

    body_type: ClassVar[type[CompletionOptions]]
    quiet: ClassVar[bytes] = QUIET
    fields: ClassVar[Mapping[str, str]]
    id_prefix: ClassVar[str]
    object: ClassVar[str]  # of a whole answer
    chunk: ClassVar[str]  # of a piece of it
    job: Job

    def __init__(self, value: Any, served: Served):
        self._body: Any = served.read(self.body_type, value)
        self._served, self.streams = served, bool(self._body.stream)
        self._head = {"id": new_id(self.id_prefix), "created": now(), "model": self._body.model}
        options = self._body.stream_options
        check_streams(options, self.streams)
        self._tells_usage = options is not None and options.include_usage

    @staticmethod
    def error_body(failure: Failure) -> dict[str, Any]:
        """An error as the protocol writes it."""
        return openai_error(failure)

    def close(self, ended: Sequence[Ended]) -> list[Event]:
        done = Event("[DONE]")
        if not self._tells_usage:
            return [done]
        usage = openai_usage(self._usage(ended))
        return [Event({**self._head, "object": self.chunk, "choices": [], "usage": usage}), done]

    def failed(self, failure: Failure) -> list[Event]:
        return [Event(openai_error(failure))]

    def _whole(self, choices: list[dict[str, Any]], ended: Sequence[Ended]) -> dict[str, Any]:
        usage = openai_usage(self._usage(ended))
        return {**self._head, "object": self.object, "choices": choices, "usage": usage}

    def _piece(self, index: int, logprobs: Any, end: Mapping[str, Any], **grown: Any) -> Event:
        choice = {"index": index, **grown, "logprobs": logprobs, "finish_reason": None, **end}
        chunk = {**self._head, "object": self.chunk, "choices": [choice]}
        return Event({**chunk, "usage": None} if self._tells_usage else chunk)

    def _usage(self, ended: Sequence[Ended]) -> Usage:
        return total_usage(ended, self.job.choices)


# ---- writing ------------------------------------------------------------------------------------


def total_usage(ended: Sequence[Ended], choices: int) -> Usage:
    """Of all answers together; what answers to the same prompt share counts once."""
    all_of = [one.result.usage for one in sorted(ended, key=lambda one: one.index)]
    firsts = all_of[::choices]
    return Usage(
        prompt_tokens=sum(u.prompt_tokens for u in firsts),
        cached_tokens=sum(u.cached_tokens for u in firsts),
        image_tokens=sum(u.image_tokens for u in firsts),
        completion_tokens=sum(u.completion_tokens for u in all_of),
        reasoning_tokens=sum(u.reasoning_tokens for u in all_of),
        probe_tokens=sum(u.probe_tokens for u in all_of),
    )


def openai_usage(usage: Usage) -> dict[str, Any]:
    """As chat completions and completions have it; ``image_tokens`` and ``probe_tokens`` beside
    what the protocol knows."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "image_tokens": usage.image_tokens,
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "probe_tokens": usage.probe_tokens,
        },
    }


def openai_error(failure: Failure) -> dict[str, Any]:
    """An error as OpenAI's protocols write it."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
    kinds |= {429: "rate_limit_error"}
    other = "server_error" if failure.status >= 500 else "invalid_request_error"
    kind = kinds.get(failure.status, other)
    about = {"message": failure.message, "type": kind, "param": failure.param}
    return {"error": {**about, "code": failure.code}}


def openai_reason(result: Any) -> str:
    """Why an answer ended, in the words of OpenAI's protocols."""
    reasons = {"stop": "stop", "tool_calls": "tool_calls", "length": "length", "deadline": "length"}
    return reasons.get(result.finish_reason, "stop")


def spelled(tokenizer: Tokenizer, one: TokenLogprob, alternatives: int) -> dict[str, Any]:
    """A token's log-probability as chat completions and responses have it."""
    top = [_token(tokenizer, token, logprob) for token, logprob in one.top[:alternatives]]
    return {**_token(tokenizer, one.token, one.logprob), "top_logprobs": top}


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token by itself; a part of a character is U+FFFD."""
    return _bytes(tokenizer, token).decode("utf-8", "replace")


def _bytes(tokenizer: Tokenizer, token: int) -> bytes:
    if token >= tokenizer.vocab_size:  # a model may have more ids than its tokenizer
        return b""
    piece = tokenizer.token_bytes(token)
    return tokenizer.token(token).encode() if piece is None else piece


def _token(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    return {
        "token": token_text(tokenizer, token),
        "logprob": finite(logprob),
        "bytes": list(_bytes(tokenizer, token)),
    }


def finite(logprob: float) -> float:
    """JSON has no infinity: -9999 for what is less, as OpenAI's protocols have it."""
    return max(logprob, -9999.0)
