"""``/v1/completions``: OpenAI's completions of plain text, without a chat template."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from musespark.errors import InvalidRequest
from musespark.options import MAX_TOKENS
from musespark.results import Delta, TokenLogprob
from musespark.server.openai_shared import (
    FIELDS,
    CompletionExchange,
    CompletionOptions,
    finite,
    openai_reason,
    token_text,
)
from musespark.server.wire import Ended, Event, Job, Served, Several, Text, TextEvents, TokenIds

PATH = "/v1/completions"
_DEFAULT_TOKENS = 16  # the protocol's own

Prompts = Annotated[Several[Text | TokenIds], Field(min_length=1)]


class CompletionBody(CompletionOptions):
    """A request. ``user`` has no effect. ``max_tokens`` 0: the prompt is read, and told with
    ``echo``."""

    prompt: Text | TokenIds | Prompts
    best_of: Literal[1] | None = None
    echo: bool | None = None
    max_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = None
    suffix: None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


def job_of(body: CompletionBody) -> Job:
    """What a body asks for."""
    if body.max_tokens == 0 and body.min_tokens:
        raise InvalidRequest(
            f"min_tokens: got {body.min_tokens}, allowed is 0 beside max_tokens = 0"
        )
    given = body.prompt
    several = isinstance(given, list) and not isinstance(given[0], int)
    prompts = tuple(given) if several else (given,)
    options = {
        "max_new_tokens": _DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens,
        "logprobs": None if body.logprobs is None else max(1, body.logprobs),
    }
    return Job(False, prompts, options | body.sampling(), body.n or 1, bool(body.echo))


def _given(one: TokenLogprob, value: Any) -> Any:
    """None of a prompt's first token, for it follows nothing."""
    return None if math.isnan(one.logprob) else value


class Completions(CompletionExchange):
    """One request and its answer."""

    body_type = CompletionBody
    id_prefix = "cmpl-"
    object = chunk = "text_completion"
    fields = FIELDS | {"prompt": "prompt[]", "text": "prompt[]", "tokens": "prompt[]"}

    def __init__(self, value: Any, served: Served):
        super().__init__(value, served)
        self.job, self._offsets = job_of(self._body), dict[int, int]()
        self._texts = TextEvents(lambda text, index: self._piece(index, None, {}, text=text))

    def answer(self, ended: Sequence[Ended]) -> dict[str, Any]:
        choices = [
            {
                "index": one.index,
                "text": one.echo + one.result.text,
                "logprobs": self._logprobs(one.index, one.logprobs),
                **self._end(one.result),
            }
            for one in ended
        ]
        return self._whole(choices, ended)

    @staticmethod
    def _end(result: Any) -> dict[str, Any]:
        return {"finish_reason": openai_reason(result), "seed": result.seed}

    def _logprobs(self, index: int, some: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if self._body.logprobs is None:
            return None
        tokenizer, alternatives = self._served.tokenizer, self._body.logprobs
        texts = [token_text(tokenizer, one.token) for one in some]
        if some and index not in self._offsets:
            texts = self._as_given(index, some, texts)
        offsets = []
        for text in texts:
            at = self._offsets.get(index, 0)
            offsets.append(at)
            self._offsets[index] = at + len(text)
        return {
            "tokens": texts,
            "token_logprobs": [_given(one, finite(one.logprob)) for one in some],
            "top_logprobs": [
                _given(
                    one, {token_text(tokenizer, t): finite(p) for t, p in one.top[:alternatives]}
                )
                for one in some
            ],
            "text_offset": offsets,
        }

    def _as_given(self, index: int, some: Sequence[TokenLogprob], texts: list[str]) -> list[str]:
        """The texts of the tokens that an answer begins with. Those of a text that is echoed are
        without what the tokenizer puts before one, special tokens (for the markers that it spells
        itself are text) and a space: their places are those in the text."""
        prompt = self.job.prompts[index // self.job.choices]
        if not self.job.echo or not isinstance(prompt, str):
            return texts
        special = self._served.tokenizer.special_ids
        added = next((at for at, one in enumerate(some) if one.token not in special), len(some))
        rest = texts[added:]
        if rest and not prompt.startswith(" "):
            rest[0] = rest[0].removeprefix(" ")
        return [""] * added + rest

    def begin(self, prompt_tokens: int) -> list[Event]:
        return []

    def piece(self, index: int, delta: Delta) -> list[Event]:
        if self._body.logprobs is None:
            return [self._texts.of(delta.text, index)]
        logprobs = self._logprobs(index, delta.logprobs)
        return [self._piece(index, logprobs, {}, text=delta.text)]

    def ended(self, one: Ended) -> list[Event]:
        return [self._piece(one.index, None, self._end(one.result), text="")]
