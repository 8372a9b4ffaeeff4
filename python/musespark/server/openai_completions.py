"""``/v1/completions``: OpenAI's completions of plain text, without a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from musespark.results import Delta, TokenLogprob
from musespark.server.openai_chat import Bias, StreamOptions, bias_of
from musespark.server.wire import (
    Ended,
    Event,
    Failure,
    Job,
    Penalty,
    Probability,
    Sampling,
    Served,
    Temperature,
    Text,
    TokenId,
    Tokens,
    finite,
    new_id,
    now,
    openai_error,
    openai_reason,
    openai_usage,
    read_body,
    token_text,
    total_usage,
)

PATH = "/v1/completions"
_DEFAULT_TOKENS = 16  # the protocol's own

Prompt = Text | Annotated[list[TokenId], Field(min_length=1)]
Prompts = Annotated[list[Prompt], Field(min_length=1)]


class CompletionBody(Sampling):
    """A request. ``user`` has no effect."""

    model: str
    prompt: Text | Annotated[list[TokenId], Field(min_length=1)] | Prompts
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=32)] | None = None
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: None = None
    max_tokens: Tokens | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    stop: Text | Annotated[list[Text], Field(max_length=64)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=1024)] | None = None
    user: str | None = None


def job_of(body: CompletionBody) -> Job:
    """What a body asks for."""
    given = body.prompt
    several = isinstance(given, list) and not isinstance(given[0], int)
    prompts = tuple(given) if several else (given,)
    names = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "stop")
    options = {name: getattr(body, name) for name in names}
    options |= {
        "max_new_tokens": body.max_tokens or _DEFAULT_TOKENS,
        "logprobs": None if body.logprobs is None else max(1, body.logprobs),
        "logit_bias": bias_of(body.logit_bias),
    }
    return Job(False, prompts, options | body.sampling(), body.n or 1)


class Completions:
    """One request and its answer."""

    error_body = staticmethod(openai_error)
    body_type = CompletionBody

    def __init__(self, value: Any, served: Served):
        self._body: CompletionBody = read_body(CompletionBody, value)
        served.check_name(self._body.model)
        self.job, self.streams = job_of(self._body), bool(self._body.stream)
        self._served, self._offsets = served, dict[int, int]()
        self._head = {
            "id": new_id("cmpl-"),
            "object": "text_completion",
            "created": now(),
            "model": self._body.model,
        }
        options = self._body.stream_options
        self._tells_usage = options is not None and options.include_usage

    def answer(self, ended: Sequence[Ended]) -> dict[str, Any]:
        usage = openai_usage(total_usage(ended, self.job.choices))
        choices = [
            {
                "index": one.index,
                "text": one.result.text,
                "logprobs": self._logprobs(one.index, one.logprobs),
                **self._end(one.result),
            }
            for one in ended
        ]
        return {**self._head, "choices": choices, "usage": usage}

    @staticmethod
    def _end(result: Any) -> dict[str, Any]:
        return {"finish_reason": openai_reason(result), "seed": result.seed}

    def _logprobs(self, index: int, some: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if self._body.logprobs is None:
            return None
        tokenizer, alternatives = self._served.tokenizer, self._body.logprobs
        texts = [token_text(tokenizer, one.token) for one in some]
        offsets = []
        for text in texts:
            at = self._offsets.get(index, 0)
            offsets.append(at)
            self._offsets[index] = at + len(text)
        return {
            "tokens": texts,
            "token_logprobs": [finite(one.logprob) for one in some],
            "top_logprobs": [
                {token_text(tokenizer, t): finite(p) for t, p in one.top[:alternatives]}
                for one in some
            ],
            "text_offset": offsets,
        }

    def begin(self, prompt_tokens: int) -> list[Event]:
        return []

    def piece(self, index: int, delta: Delta) -> list[Event]:
        return [self._chunk(index, delta.text, self._logprobs(index, delta.logprobs))]

    def ended(self, one: Ended) -> list[Event]:
        return [self._chunk(one.index, "", **self._end(one.result))]

    def close(self, ended: Sequence[Ended]) -> list[Event]:
        events = []
        if self._tells_usage:
            usage = openai_usage(total_usage(ended, self.job.choices))
            events = [Event({**self._head, "choices": [], "usage": usage})]
        return [*events, Event("[DONE]")]

    def failed(self, failure: Failure) -> list[Event]:
        return [Event(openai_error(failure))]

    def _chunk(self, index: int, text: str, logprobs: Any = None, **end: Any) -> Event:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}
        chunk = {**self._head, "choices": [choice | end]}
        return Event({**chunk, "usage": None} if self._tells_usage else chunk)
