"""Replies by the package's own engine, as a user gets them: packed weights, default cache.

Every item is a small conversation: a turn, a zoom and a further turn, forced closes of its thought.
Each is a generator that hands out one request at a time; many of them are under way at once, so
that the engine always has a full batch, whatever their tasks, tools and efforts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import musespark

from ..errors import ContextOverflow, InvalidRequest, UnsupportedModel
from ..events import Request
from ..generation import Collector, Stream
from ..thinking import ThinkingPolicy
from . import zoom
from .backends import EMPTY, FREE, ZOOMS, Reply, right
from .item import Item
from .oracle import Cut, Markers, cuts, first_attempt, thinking_tokens

#: Conversations under way: more than a batch of the engine, so that none of its rows waits.
_UNDER_WAY = 96
#: The effort of items that ask for none: models whose template knows no effort.
ANY_EFFORT = "default"
Conversation = Generator[Any, Any, Any]


class MusesparkBackend:
    """``source`` and options as :func:`musespark.load` has them."""

    name = "musespark"

    def __init__(self, source: str | Path | None, **load: Any):
        self._take(musespark.load(source, **load))

    @classmethod
    def of(cls, model: musespark.Model) -> MusesparkBackend:
        """Of a model that is loaded already."""
        self = cls.__new__(cls)
        self._take(model)
        return self

    def _take(self, model: musespark.Model) -> None:
        self.model, tokenizer = model, model.tokenizer
        self._text: Callable[[int], str] = lambda token: tokenizer.decode([token])
        self._markers: Markers | None = None
        if all(tokenizer.find(m) is not None for m in ("<|start|>", "<|message|>", "<|eom|>")):
            self._markers = Markers.of(tokenizer.id, tokenizer.encode)

    @property
    def blind(self) -> str:
        """Why the model sees no pictures; empty where it does."""
        return "" if self.model._requests.eyes else self.model._requests.blind

    def close(self) -> None:
        """Lets the model go."""
        self.model.close()

    def reply(
        self,
        items: list[Item],
        max_new_tokens: int,
        *,
        thinking: str = FREE,
        oracle: bool = False,
        options: Mapping[str, Any] | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Reply]:
        """See :class:`lab.backends.Backend`. ``options``: of :meth:`musespark.Model.chat`, for each
        turn. An item that does not fit into the context is a reply that did not finish.
        UnsupportedModel for ``oracle`` and empty thoughts of a model whose thoughts are not Muse's
        channels."""
        if oracle or thinking != FREE:
            self._need_channels("oracle and empty thoughts")
        told = options or {}
        turns = (self._conversation(i, max_new_tokens, thinking, oracle, told) for i in items)
        return run(turns, len(items), progress)

    def replies(
        self,
        items: Sequence[Item],
        count: int,
        max_new_tokens: int,
        options: Callable[[Item, int], Mapping[str, Any]],
        made: Callable[[Item, Reply], Any] = lambda item, reply: reply,
        *,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[list[Any]]:
        """What is ``made`` of ``count`` replies to each item, in order, all under way beside each
        other. ``options``: those of :meth:`reply`, of the k-th reply to an item."""

        def one(item: Item, k: int) -> Conversation:
            told = options(item, k)
            reply = yield from self._conversation(item, max_new_tokens, FREE, False, told)
            return made(item, reply)

        turns = (one(item, k) for item in items for k in range(count))
        flat = run(turns, len(items) * count, progress)
        return [flat[at : at + count] for at in range(0, len(flat), count)]

    def _need_channels(self, what: str) -> None:
        if self._markers is None:
            raise UnsupportedModel(
                f"{what}: this model's thoughts are not channels between <|start|> and <|eom|>"
            )

    # ---- one item -----------------------------------------------------------------------------

    def _conversation(
        self, item: Item, limit: int, thinking: str, oracle: bool, options: Mapping[str, Any]
    ) -> Conversation:
        begun = self._markers.empty_thought if thinking == EMPTY else []
        before = probed = computed = 0
        for zooms in range(ZOOMS + 1):
            try:
                stream = self._ask(item, begun, limit, retain=oracle, **options)
            except ContextOverflow as error:
                return Reply("", finished=False, raw=f"error: {error}", too_long=True)
            except InvalidRequest as error:  # what a chat template refuses
                raise InvalidRequest(f"{item.where}: {error}") if item.where else error from None
            result = yield stream
            reply = self._reply(result)
            computed += reply.computed
            further = None
            if reply.calls and item.checker != "call" and zooms < ZOOMS:
                further = zoom.answered(item, reply.thought, reply.calls)
            if further is None:
                break
            _release(stream)
            before += reply.thinking_tokens
            probed += reply.probe_tokens
            item = further
        reply.computed = computed
        reply.thinking_tokens += before
        reply.probe_tokens += probed
        if oracle:
            reply.stable = reply.thinking_tokens
            if right(item, reply):
                reply.stable = yield from self._stable(item, reply, before, limit, stream)
            if attempt := first_attempt(reply.tokens, self._markers, self._text):
                reply.first = yield from self._close(item, reply, attempt, limit, stream)
            _release(stream)
        return reply

    def _stable(
        self, item: Item, reply: Reply, before: int, limit: int, stream: Stream
    ) -> Conversation:
        """Backwards over the sentence ends for as long as a forced close answers right. Thinking
        before a zoom counts in full."""
        stable = reply.thinking_tokens
        for cut in reversed(cuts(reply.tokens, self._markers, self._text)):
            if not (yield from self._close(item, reply, cut, limit, stream)):
                break
            stable = before + cut.thinking
        return stable

    def _close(
        self, item: Item, reply: Reply, cut: Cut, limit: int, stream: Stream
    ) -> Conversation:
        """Whether the reply is right where its thought is closed at ``cut``. All closes share the
        keys and values of the reply; one that the context has no room for is not right."""
        forced = self._markers.forced(reply.tokens[: cut.written])
        try:
            asked = self._ask(item, forced, limit, base=stream.handle.retained)
        except ContextOverflow:
            return False
        result = yield asked
        return right(item, self._reply(result))

    def _request(
        self, item: Item, limit: int, *, retain: bool = False, **options: Any
    ) -> tuple[Request, Collector, Any]:
        """The turn after ``item``, greedy where ``options`` say nothing else, and with the thought
        that the model itself ends: none that was calibrated for it."""
        given = {"tools": item.tools, "temperature": 0.0, "max_new_tokens": limit}
        given["thinking_policy"] = ThinkingPolicy()
        if item.effort != ANY_EFFORT:
            given["reasoning_effort"] = item.effort
        return self.model._chat_request(messages_of(item), given | options, retain=retain)

    def _ask(
        self,
        item: Item,
        begun: list[int],
        limit: int,
        *,
        retain: bool = False,
        base: Any = None,
        **options: Any,
    ) -> Stream:
        """The turn after ``item`` and what of it has ``begun`` (ids), as long as there is room."""
        request, collector, kept = self._request(item, limit, retain=retain, **options)
        if begun:
            tokens = np.concatenate([request.tokens, np.asarray(begun, np.int32)])
            room = max(0, self.model.info.context - len(tokens))
            request = replace(request, tokens=tokens, max_new_tokens=min(limit, room))
        return Stream(*self.model._submit(request, collector, base or kept))

    def _thinking(self, result: Any) -> int:
        if self._markers is None:
            return result.usage.reasoning_tokens
        return thinking_tokens(result.tokens, self._markers)

    def _reply(self, result: Any) -> Reply:
        return Reply(
            result.content or "",
            [plain(call["function"]) for call in result.tool_calls],
            result.reasoning or "",
            self._thinking(result),
            result.finish_reason in ("stop", "tool_calls"),
            self.model.tokenizer.decode(result.tokens),
            result.tokens,
            computed=result.usage.prompt_tokens
            - result.usage.cached_tokens
            + result.usage.completion_tokens,
            probe_tokens=result.usage.probe_tokens,
            stopped=result.thinking_stop_reason,
            logprobs=tuple(one.logprob for one in result.logprobs or ()),
            signals=result.signals,
        )


def run(
    turns: Iterator[Conversation], total: int, progress: Callable[[int, int], None]
) -> list[Any]:
    """Drives the conversations, ``_UNDER_WAY`` at a time; the oldest is waited for. What they hand
    out has ``drain()`` and ``close()`` as a Stream has."""
    replies: dict[int, Any] = {}
    flying: deque[tuple[int, Conversation, Any]] = deque()

    def advance(index: int, turn: Conversation, result: Any) -> None:
        try:
            flying.append((index, turn, turn.send(result)))
        except StopIteration as end:
            replies[index] = end.value
            progress(len(replies), total)

    waiting = enumerate(turns)
    try:
        while True:
            while len(flying) < _UNDER_WAY and (one := next(waiting, None)):
                advance(*one, None)
            if not flying:
                break
            index, turn, stream = flying.popleft()
            advance(index, turn, stream.drain())
    finally:
        for _, _, stream in flying:
            stream.close()
    return [replies[i] for i in range(total)]


def _release(stream: Stream) -> None:
    if stream.handle.retained is not None:
        stream.handle.retained.release()


def plain(function: dict) -> dict:
    return {"name": function["name"], "arguments": dict(function["arguments"])}


def messages_of(item: Item) -> list[dict]:
    """The messages with the pictures in their places, the originals where there are some."""
    pictures = iter(item.pictures or [])

    def part(one: dict) -> dict:
        if one["type"] != "image":
            return one
        picture = next(pictures)
        original = picture.original
        return {"type": "image", "image": picture.pixels if original is None else original}

    def message(m: dict) -> dict:
        content = m["content"]
        told = content if isinstance(content, str) else [part(one) for one in content]
        return {**m, "content": told}

    return [{k: v for k, v in message(m).items() if k != "trained"} for m in item.messages]
