"""From engine events to results: text, channels, stop strings, usage. No model, no threads here.

A *collector* takes the events of one request in order and gives deltas; at the end it gives the
result. :class:`Stream` and :class:`AsyncStream` drive one from a handle.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from musespark.engine import Handle
from musespark.errors import Error, InvalidRequest
from musespark.events import Event, Finished, Tokens
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
    """What :class:`Stream` drives."""

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

    def take(self, event: Tokens, stops: StopStrings) -> Iterator[int]:
        """An event's tokens, each taken in as it is given out; none behind a stop string."""
        count = 0
        while count < len(event.ids) and stops.stopped is None:
            token = event.ids[count]
            self.ids.append(token)
            if self.options.logprobs and event.logprobs is not None and event.top is not None:
                top = tuple((int(t), float(p)) for t, p in event.top[count])
                self._logprobs.append(TokenLogprob(token, float(event.logprobs[count]), top))
            yield token
            count += 1
        if event.signals is not None and self._signals_of is not None:
            thought = np.flatnonzero(~np.isnan(event.signals[:count, 0]))
            self._thought += [event.ids[index] for index in thought]
            self._signals.append(event.signals[thought])

    def hold(self) -> None:
        """The last token is text, for the next delta to tell."""
        self._held += self._logprobs[-1:]

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
        for token in self._tokens.take(event, self._stops):
            if token not in self._stop_ids:
                self._tokens.hold()
                pieces.append(self._stops.feed(self._decoder.push(token)))
        return self._deltas("".join(pieces))

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

    @property
    def stopped(self) -> bool:
        return self._stops.stopped is not None

    @property
    def thinking(self) -> bool:
        """Whether what comes next is thought, as far as one can know."""
        return self._parser.kind == THOUGHT

    def push(self, event: Tokens) -> list[Delta]:
        deltas = []
        for token in self._tokens.take(event, self._stops):
            taken = self._take(self._parser.push(token))
            is_text = self._parser.is_text(token)
            if is_text:
                self._tokens.hold()
            deltas += self._tokens.tell(taken)
            if not is_text or self._parser.kind is None:  # None: in a header
                self._tokens.drop()
        return deltas

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


def _read_by_one(error: Exception) -> InvalidRequest | None:
    """The error of a generator that is running already, which it raises without a frame of its
    own, as one of ours; None for any other."""
    trace = error.__traceback__
    if trace is None or trace.tb_next is not None:
        return None
    return InvalidRequest("this stream is being read already; one reader at a time")


class _Driven:
    """What both streams share: the collector's state and the result."""

    def __init__(self, handle: Handle, collector: Collector):
        self.handle, self._collector = handle, collector
        self._result: Any = None
        self._failure: Exception | None = None
        self._closed = False

    @property
    def result(self) -> Any:
        """The final object; there once the iteration has ended or the stream was closed.

        Closed early it holds what was read until then, with finish_reason ``cancelled``. What ended
        the iteration with an error raises that error here too.
        """
        if self._result is not None:
            return self._result
        if self._failure is not None:
            raise self._failure
        if not self._closed:
            raise Error("the stream has not ended yet; read it to the end or close it")
        return self._partial()

    def _partial(self) -> Any:
        self.handle.cancel()
        try:
            for event in self.handle:  # what nobody read, and the end
                self._cut(event)
        except Error as error:
            self._failure = error
            raise
        return self._result

    def _cut(self, event: Event) -> None:
        """The result of a stream that nobody read to this end."""
        if isinstance(event, Finished):
            _, self._result = self._collector.finish(event._replace(reason="cancelled"))

    def cancel(self) -> None:
        """Ends the request within one layer; the iteration then ends with what there is."""
        self.handle.cancel()

    def _step(self, event: Event) -> list[Delta]:
        if isinstance(event, Finished):
            deltas, self._result = self._collector.finish(event)
            return deltas
        if not isinstance(event, Tokens) or self._collector.stopped:
            return []
        deltas = self._collector.push(event)
        if self._collector.stopped:
            self.handle.cancel()
        return deltas


class Stream(_Driven):
    """An iterator of :class:`Delta`; ``.result`` after the end. Closing it early cancels."""

    def __init__(self, handle: Handle, collector: Collector):
        super().__init__(handle, collector)
        self._deltas = self._run()

    def _run(self) -> Iterator[Delta]:
        try:
            for event in self.handle:
                yield from self._step(event)
        except Error as error:
            self._failure = error
            raise

    def __iter__(self) -> Iterator[Delta]:
        return self

    def __next__(self) -> Delta:
        try:
            return next(self._deltas)
        except ValueError as error:
            if refused := _read_by_one(error):
                raise refused from None
            raise

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancels the request if it still runs. Another thread that reads comes to an end."""
        self.handle.cancel()
        try:
            self._deltas.close()
        except ValueError as error:
            if not _read_by_one(error):
                raise
        else:
            self._closed = True

    def drain(self) -> Any:
        """Runs to the end and returns the result; what ends it early cancels."""
        try:
            for _ in self:
                pass
        finally:
            self.close()
        return self.result


class AsyncStream(_Driven):
    """The same for an event loop."""

    def __init__(self, handle: Handle, collector: Collector):
        super().__init__(handle, collector)
        self._deltas = self._run()

    async def _run(self) -> AsyncIterator[Delta]:
        try:
            async for event in self.handle:
                for delta in self._step(event):
                    yield delta
        except Error as error:
            self._failure = error
            raise

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        try:
            return await self._deltas.__anext__()
        except RuntimeError as error:
            if refused := _read_by_one(error):
                raise refused from None
            raise

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancels the request if it still runs, and waits until it has ended."""
        self.handle.cancel()
        try:
            await self._deltas.aclose()
        except RuntimeError as error:
            if not _read_by_one(error):
                raise
            return  # who reads it comes to an end
        if self._result is None and self._failure is None:
            try:
                await self._rest()
            except Error as error:  # the model was closed: result says so
                self._failure = error
        self._closed = True

    async def _rest(self) -> None:
        async for event in self.handle:
            self._cut(event)

    async def drain(self) -> Any:
        async for _ in self:
            pass
        return self.result
