"""From engine events to results: text, channels, stop strings, usage. No model, no threads here.

A *collector* takes the events of one request in order and gives deltas; at the end it gives the
result. The streams of :mod:`musespark.generation` drive one from a handle. How an event's tokens
are spread over deltas depends on how many came at once; what the deltas of a channel add up to,
log-probabilities too, the result and which tokens a stop string leaves do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from musespark.events import Finished, Tokens
from musespark.options import GenerationOptions
from musespark.results import (
    ChatResult,
    Completion,
    Delta,
    ImageUse,
    ThoughtCache,
    ThoughtSignals,
    Timings,
    TokenLogprob,
    TrialAnswer,
    Usage,
)
from musespark.text.channels import ANSWER, THOUGHT, TOOL, ChannelParser, Text
from musespark.text.decoding import StreamDecoder
from musespark.text.stops import StopStrings
from musespark.text.toolcalls import ToolCall

if TYPE_CHECKING:
    from musespark.explaining import Asked
    from musespark.vision.trace import VisualTrace

_CHANNEL = {ANSWER: "content", THOUGHT: "reasoning", TOOL: "tool"}


class Collector(Protocol):
    """What a stream drives."""

    @property
    def stopped(self) -> bool: ...  # a stop string was met: nothing after it counts

    def push(self, event: Tokens) -> list[Delta]: ...

    def finish(self, event: Finished) -> tuple[list[Delta], Completion]: ...


#: From thought tokens and the core's rows [n, 4] of them to what a result has.
SignalsOf = Callable[[Sequence[int], np.ndarray], ThoughtSignals]
Parse = Callable[[str], tuple[Any, str]]


class _Tokens:
    """Ids, log-probabilities and signals so far, and the parts of a result that come from them."""

    def __init__(self, options: GenerationOptions, kv: str, signals: SignalsOf | None):
        self.options, self._kv, self._signals_of = options, kv, signals
        self.ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._held: list[TokenLogprob] = []  # of text that no delta has told
        self._thought: list[int] = []
        self._signals: list[np.ndarray] = []

    def take(
        self, event: Tokens, stops: StopStrings, run_length: Callable[[Sequence[int], int], int]
    ) -> Iterator[Sequence[int]]:
        """An event's tokens, each run taken in as it is given out; none behind a stop string.
        ``run_length``: of ids, how many from one on can be read at once."""
        ids, at = event.ids, 0
        while at < len(ids) and stops.stopped is None:
            end = at + (1 if at + 1 == len(ids) else run_length(ids, at))
            run = ids[at:end]
            self.ids += run
            if self.options.logprobs and event.logprobs is not None and event.top is not None:
                for token, own, top in zip(
                    run, event.logprobs[at:end], event.top[at:end], strict=True
                ):
                    most = tuple((int(t), float(p)) for t, p in top)
                    self._logprobs.append(TokenLogprob(token, float(own), most))
            yield run
            at = end
        if event.signals is not None and self._signals_of is not None:
            thought = np.flatnonzero(~np.isnan(event.signals[:at, 0]))
            self._thought += [ids[index] for index in thought]
            self._signals.append(event.signals[thought])

    def hold(self, count: int) -> None:
        """The last ``count`` tokens are text, for the next delta to tell."""
        self._held += self._logprobs[-count:]

    def drop(self) -> None:
        """What was held is text of nothing that follows."""
        self._held.clear()

    def tell(self, deltas: list[Delta]) -> list[Delta]:
        """The deltas, the first with what was held."""
        if not deltas or not self._held:
            return deltas
        told = tuple(self._held)
        self._held.clear()
        return [replace(deltas[0], logprobs=told), *deltas[1:]]

    def _measured(self) -> ThoughtSignals | None:
        if self._signals_of is None:
            return None
        rows = [np.empty((0, 4), np.float32), *self._signals]
        return self._signals_of(self._thought, np.concatenate(rows))

    def fields(self, stats: Mapping[str, Any], reasoning_tokens: int = 0) -> dict[str, Any]:
        return {
            "tokens": tuple(self.ids),
            "seed": self.options.seed,
            "kv": self._kv,
            "logprobs": tuple(self._logprobs) if self.options.logprobs else None,
            "signals": self._measured(),
            "usage": Usage(
                prompt_tokens=stats["prompt_tokens"],
                cached_tokens=stats["cached_tokens"],
                completion_tokens=len(self.ids),
                reasoning_tokens=reasoning_tokens,
                probe_tokens=stats["trial_tokens"],
            ),
            "timings": Timings(
                prefill_s=stats["prefill_s"],
                first_token_s=stats["first_token_s"],
                decode_s=stats["decode_s"],
                drafted_tokens=stats["drafted_tokens"],
                accepted_tokens=stats["accepted_tokens"],
                drafter_passes=stats["drafter_passes"],
                drafter_accepted=stats["drafter_accepted_tokens"],
            ),
        }


def _parsed(parse: Parse | None, text: str, reason: str) -> dict[str, Any]:
    """A result's fields of what a text means, where it is whole."""
    if parse is None or reason != "stop":
        return {}
    value, error = parse(text)
    return {"parsed": value, "parse_error": error}


class CompletionCollector:
    """Plain text: all tokens but the final stop id; markers have no text. ``parse``: the value of a
    text that is whole, and why there is none. ``signals``: where they are asked for."""

    def __init__(
        self,
        decoder: StreamDecoder,
        stop_ids: frozenset[int],
        options: GenerationOptions,
        kv: str,
        *,
        parse: Parse | None = None,
        signals: SignalsOf | None = None,
    ):
        self._decoder, self._stop_ids, self._parse = decoder, stop_ids, parse
        self._tokens = _Tokens(options, kv, signals)
        self._stops = StopStrings(options.stop)
        self._text: list[str] = []

    @property
    def stopped(self) -> bool:
        return self._stops.stopped is not None

    def push(self, event: Tokens) -> list[Delta]:
        pieces = []
        for run in self._tokens.take(event, self._stops, self._run_length):
            if run[0] not in self._stop_ids:
                self._tokens.hold(len(run))
                pieces.append(self._stops.feed(self._decoder.push_run(run)))
        return self._deltas("".join(pieces))

    def _run_length(self, ids: Sequence[int], start: int) -> int:
        if self._stops:  # any token may be the last
            return 1
        end = start
        while end < len(ids) and ids[end] not in self._stop_ids:
            end += 1
        return max(1, end - start)

    def finish(self, event: Finished) -> tuple[list[Delta], Completion]:
        last = ""
        if not self.stopped:
            last = self._stops.feed(self._decoder.flush()) + self._stops.flush()
        deltas = self._deltas(last)
        reason = "stop" if self.stopped else event.reason
        fields, text = self._tokens.fields(event.stats), "".join(self._text)
        fields |= _parsed(self._parse, text, reason) | {"stop_string": self._stops.stopped}
        return deltas, Completion(text=text, finish_reason=reason, **fields)

    def _deltas(self, text: str) -> list[Delta]:
        if not text:
            return []
        self._text.append(text)
        return self._tokens.tell([Delta(text)])


class ChatCollector:
    """Channels of a turn. Stop strings look at the answer only.

    ``thought_cache``: what was asked for, None where thoughts are not marked. ``images``: what
    became of the prompt's. ``trace``: what was said of them. ``parse``: the value of an answer
    that is whole, and why there is none. ``decode``: the text of a trial's answer. ``asked``: for
    the result. ``signals``: where they are asked for. ``thinking_policy``: as the result has it.
    """

    def __init__(
        self,
        parser: ChannelParser,
        options: GenerationOptions,
        kv: str,
        thought_cache: str | None = None,
        images: Callable[[], ImageUse | None] = lambda: None,
        trace: Callable[[ChatResult], VisualTrace | None] = lambda result: None,
        *,
        parse: Parse | None = None,
        decode: Callable[[list[int]], str] = lambda ids: "",
        asked: Asked | None = None,
        signals: SignalsOf | None = None,
        thinking_policy: str = "none",
    ):
        self._parser, self._thought_cache, self._parse = parser, thought_cache, parse
        self._decode, self.asked, self._policy = decode, asked, thinking_policy
        self._images, self._trace = images, trace
        self._tokens = _Tokens(options, kv, signals)
        self._stops = StopStrings(options.stop)
        self._content: list[str] = []
        self.thought_tokens = 0  # so far: after what opens a thought, before what closes it

    @property
    def stopped(self) -> bool:
        return self._stops.stopped is not None

    @property
    def has_stop_strings(self) -> bool:
        return bool(self._stops)

    @property
    def thinking(self) -> bool:
        """Whether what comes next is thought, as far as one can know."""
        return self._parser.kind == THOUGHT

    def push(self, event: Tokens) -> list[Delta]:
        deltas, parser = [], self._parser
        for run in self._tokens.take(event, self._stops, self._run_length):
            before = self.thinking
            taken = self._take(parser.push_run(run) if len(run) > 1 else parser.push(run[0]))
            is_text = parser.is_text(run[0])
            if is_text:
                self._tokens.hold(len(run))
            deltas += self._tokens.tell(taken)
            if not is_text or parser.kind is None:  # None: in a header
                self._tokens.drop()
            self.thought_tokens += len(run) if before and self.thinking else 0
        return deltas

    def _run_length(self, ids: Sequence[int], start: int) -> int:
        # A stop string may end an answer at any token. Log-probabilities are told with the text
        # that is certain with their token: what a thought is trimmed of is told with none.
        one = self._tokens.options.logprobs or (self._stops and not self.thinking)
        return 1 if one else self._parser.run_length(ids, start)

    def finish(self, event: Finished) -> tuple[list[Delta], ChatResult]:
        deltas = []
        if not self.stopped:
            deltas += self._take(self._parser.finish())
        if not self.stopped:
            deltas += self._answer(self._stops.flush())
        deltas = self._tokens.tell(deltas)
        turn = self._parser.turn
        reason = "stop" if self.stopped else event.reason
        if reason == "stop" and turn.tool_calls:
            reason = "tool_calls"
        content, images = "".join(self._content), self._images()
        thought = turn.reasoning_tokens
        if self._thought_cache is not None:  # without the markers
            thought = min(thought, event.stats["thought_tokens"])
        fields = self._tokens.fields(event.stats, thought)
        if images is not None:
            fields["usage"] = replace(fields["usage"], image_tokens=images.tokens)
        result = ChatResult(
            text=content,
            content=content,
            finish_reason=reason,
            reasoning=turn.reasoning,
            tool_calls=tuple(call.to_openai() for call in turn.tool_calls),
            malformed_tool_calls=tuple(turn.malformed_tool_calls),
            protocol_errors=tuple(turn.protocol_errors),
            trials=tuple(
                TrialAnswer(at, self._decode(answer), confidence)
                for at, answer, confidence, _ in event.stats["trials"]
            ),
            thinking_stop_reason=self._thinking(reason, event.stats["thought_stop"], thought),
            thinking_policy=self._policy,
            thought_cache=self._thoughts(event.stats),
            images=images,
            **_parsed(self._parse, content, reason),
            stop_string=self._stops.stopped,
            **fields,
        )
        return deltas, replace(result, trace=self._trace(result), asked=self.asked)

    def _thoughts(self, stats: Mapping[str, Any]) -> ThoughtCache | None:
        if self._thought_cache is None:
            return None
        return ThoughtCache(
            policy=self._thought_cache,
            tokens=stats["thought_tokens"],
            bytes=stats["thought_bytes"],
            freed_bytes=stats["freed_bytes"],
            demoted_pages=stats["demoted_pages"],
            evictions=stats["evictions"],
            evicted_tokens=stats["evicted_tokens"],
        )

    def _thinking(self, reason: str, stop: str, thought: int) -> str:
        turn = self._parser.turn
        if turn.open_kind == THOUGHT and not self.stopped:
            return reason if reason in ("length", "cancelled", "deadline") else "natural"
        if thought == 0 and stop in ("budget", "deadline"):
            return "none"
        if stop in ("none", "natural"):  # of those that are not watched it is not known
            return "natural" if turn.reasoning_tokens else "none"
        return stop

    def _take(self, events: Sequence[Any]) -> list[Delta]:
        deltas: list[Delta] = []
        for event in events:
            if isinstance(event, ToolCall):
                deltas.append(Delta("", "tool", event.to_openai()))
            elif not isinstance(event, Text):
                continue
            elif event.kind == ANSWER:
                deltas += self._answer(self._stops.feed(event.text))
                if self.stopped:
                    break
            else:
                deltas.append(Delta(event.text, _CHANNEL[event.kind]))
        return deltas

    def _answer(self, text: str) -> list[Delta]:
        if not text:
            return []
        self._content.append(text)
        return [Delta(text)]
