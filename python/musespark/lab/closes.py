"""A thought that was written once, closed anywhere along it.

What ends a thought without a word of its own leaves the words before that as they were, for
decoding is greedy. So its outcome is a *close* of the reply in which nothing ended the thought: the
words up to there, what closes it, and what the model answers then. All closes of a reply share its
keys and values. From them any threshold of trial answers and any budget can be read off without
writing the thought again; what changes the words themselves (an effort, a bias) cannot.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

import musespark

from ..engine import Handle
from ..events import Request, Result
from ..text.channels import THOUGHT, ChannelParser, Turn
from ..thinking.policy import OFF, Thinking
from ..thinking.request import token_class
from ..thinking.sentences import whole_characters
from .backends import Reply, right
from .engine import Conversation, MusesparkBackend, plain, run
from .grading import grade, normalize
from .item import Item
from .oracle import thinking_tokens, thoughts

#: Of a token's class (csrc/decode/thinking.h): whether a sentence may end with it.
_SENTENCE = 8
#: Tokens before a thought's end at which a budget tells at the latest (kLongestRest there): what
#: begins a character then has to be one that it leaves room to end.
_REST = 3
#: How a budget ends a thought: the marker alone; the model's closing message on top of the budget,
#: then the marker; musespark's own way, both within the budget.
HARD, MESSAGE, LANDING = "hard cut", "hard cut + message", "budget"


@dataclass(frozen=True)
class End:
    """How an item ended: whether its answer is right; tokens of thoughts; rows of trials."""

    right: bool
    thinking: int
    probe: int = 0


@dataclass(frozen=True)
class Budget:
    """So many thought ``tokens`` and what happens then: HARD, MESSAGE or LANDING."""

    tokens: int
    how: str


@dataclass(frozen=True)
class Trial:
    """What a model answers where its thought is closed at the end of a sentence
    (csrc/decode/trial.h), written to its end: ``thinking`` tokens of thoughts before it,
    ``written`` ids of the reply, of which the thought's begin after ``begin``.

    ``close``: how many ids close the thought and open the answer. ``left``: how many ids the reply
    may have after its place. ``answer``: its ids, up to what ends it; ``logprobs`` of them and of
    what ends it, in nats. ``stated``: whether the sentence before it says just this answer.
    """

    thinking: int
    written: int
    begin: int
    close: int
    answer: tuple[int, ...]
    logprobs: tuple[float, ...]
    right: bool
    stated: bool
    left: int = 1 << 31

    def confidence(self, most: int) -> np.float32:
        """Of a trial of ``most`` tokens: the geometric mean of their probabilities."""
        seen = self.logprobs[:most]
        return np.float32(math.exp(sum(seen) / len(seen)))

    def rows(self, most: int) -> int:
        """Rows computed for a trial of ``most`` tokens: the last token needs none."""
        return self.close + min(len(self.logprobs), most) - 1


@dataclass(frozen=True)
class Trace:
    """A reply and its closes. ``whole``: nothing ended its thought. ``stable``: thinking tokens of
    its stable oracle (lab.oracle). ``trials``: at the ends of its sentences, in order."""

    whole: End
    stable: int
    trials: tuple[Trial, ...]
    budgets: Mapping[Budget, End]


class Tracer(MusesparkBackend):
    """A backend that closes the thoughts of replies; of models whose thoughts are Muse's channels
    (else UnsupportedModel, at once)."""

    def _take(self, model: musespark.Model) -> None:
        super()._take(model)
        self._need_channels("closes along a thought")

    def trace(
        self,
        items: Sequence[Item],
        replies: Sequence[Reply],
        limit: int,
        *,
        trials: bool = True,
        budgets: Sequence[Budget] = (),
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Trace]:
        """Traces of ``replies`` that nothing ended (thinking_policy ``off``), answers of at most
        ``limit`` tokens. Without ``trials`` neither these nor the stable oracle."""
        pieces = self.model.tokenizer.all_bytes() or []
        turns = (
            self._traced(_Written(self, item, reply, limit, pieces), trials, budgets)
            for item, reply in zip(items, replies, strict=True)
        )
        return run(turns, len(items), progress)

    def _traced(self, written: _Written, trials: bool, budgets: Sequence[Budget]) -> Conversation:
        whole = written.whole
        if not whole.thinking:
            return Trace(whole, 0, (), dict.fromkeys(budgets, whole))
        base = written.computed()
        yield base
        found, ends, stable = [], {}, whole.thinking
        if trials:
            for place in written.sentence_ends():
                result = yield written.trial(place, base)
                found.append(written.tried(place, result))
            if whole.right:
                args = (written.item, written.reply, 0, written.limit, base)
                stable = yield from self._stable(*args)
        for budget in budgets:
            ends[budget] = whole
            if (asked := written.budgeted(budget, base)) is not None:
                ends[budget] = written.ended(asked, (yield asked))
        base.close()
        return Trace(whole, stable, tuple(found), ends)


class _Bare:
    """A request without a collector, as ``engine.run`` drives it. ``begun``: ids of the reply that
    it begins with."""

    def __init__(self, handle: Handle, begun: Sequence[int] = ()):
        self.handle, self.begun = handle, begun

    def drain(self) -> Result:
        return self.handle.result()

    def close(self) -> None:
        self.handle.discard()


@dataclass(frozen=True)
class _Place:
    """The end of a sentence, as :class:`Trial` has it; the sentence begins after ``before`` ids."""

    before: int
    written: int
    begin: int
    thinking: int


class _Written:
    """A reply under way to its trace: the requests that are made of it, and what they say."""

    def __init__(
        self, backend: Tracer, item: Item, reply: Reply, limit: int, pieces: Sequence[bytes]
    ):
        self.item, self.reply, self.limit = item, reply, limit
        self.whole = End(right(item, reply), reply.thinking_tokens)
        self._backend, self._model, self._pieces = backend, backend.model, pieces
        self._ids = list(reply.tokens)
        self._spans = list(thoughts(self._ids, backend._markers)) if self.whole.thinking else []
        if self._spans:
            self._asked: Request = backend._request(item, limit, thinking_policy="off")[0]
            self._room = self._model.info.context - len(self._asked.tokens)
        self._marked = self._model._requests.thoughts
        self._close = self._marked.closing(tools=bool(item.tools))

    # ---- places -------------------------------------------------------------------------------

    def sentence_ends(self) -> list[_Place]:
        """Where the engine would try: not where the thought ends by itself, nor where the context
        has no room for an answer."""
        places, thinking = [], 0
        most = self._room - len(self._close) - 1
        for first, last in self._spans:
            before = first
            for at in range(first, min(last - 1, most)):
                if token_class(self._pieces[self._ids[at]]) & _SENTENCE:
                    places.append(_Place(before, at + 1, first, thinking + at + 1 - first))
                    before = at + 1
            thinking += last - first
        return places

    def _after(self, tokens: int) -> int:
        """Ids of the reply up to its first so many thought tokens, as many fewer as its characters
        need to be whole."""
        while tokens and not self._whole_after[tokens - 1]:
            tokens -= 1
        return self._places[tokens]

    @cached_property
    def _places(self) -> list[int]:
        """Of each thought token, where it stands in the reply."""
        return [at for first, last in self._spans for at in range(first, last)]

    @cached_property
    def _whole_after(self) -> list[bool]:
        return whole_characters([self._pieces[self._ids[at]] for at in self._places])

    # ---- requests -----------------------------------------------------------------------------

    def computed(self) -> _Bare:
        """All of the reply; its keys and values stay."""
        told = {"logits": "last", "retain": True, "max_new_tokens": None}
        return self._submit(self._ids, (), None, **told)

    def trial(self, place: _Place, base: _Bare) -> _Bare:
        return self._submit(self._ids[: place.written], self._close, base, logprobs=1)

    def budgeted(self, budget: Budget, base: _Bare) -> _Bare | None:
        """The reply from where the budget begins to tell, the engine's own rules from there on;
        None where the thought has ended before."""
        # Other engines write their message whatever the budget.
        words = self._model._requests.protocol.closing if budget.how == MESSAGE else None
        thinking = Thinking(budget=budget.tokens, policy=OFF, message=words)
        rules: dict[str, Any] = self._marked.asked(thinking, tools=bool(self.item.tools)) or {}
        most = budget.tokens
        if budget.how != LANDING:
            rules["landing"] = 0
        if budget.how == HARD:
            rules["message"] = []
        elif budget.how == MESSAGE:
            most += len(rules["message"])
        shared = max(0, most - len(rules["message"]) - max(rules["landing"], _REST))
        if shared >= self.whole.thinking:
            return None
        written = self._after(shared)
        left = most - thinking_tokens(self._ids[:written], self._backend._markers)
        more = {
            "thinking": rules | {"budget": left},
            "max_new_tokens": left + self._marked.frame_tokens + self.limit,
            "max_answer_tokens": self.limit,
        }
        return self._submit(self._ids[:written], (), base, **more)

    def _submit(
        self, begun: Sequence[int], tail: Sequence[int], base: _Bare | None, **more: Any
    ) -> _Bare:
        tokens = np.concatenate([self._asked.tokens, [*begun, *tail]]).astype(np.int32)
        request = replace(self._asked, tokens=tokens, **more)
        if request.max_new_tokens is not None:
            room = self._room - len(begun) - len(tail)
            request = replace(request, max_new_tokens=min(room, request.max_new_tokens))
        kept = base and base.handle.retained
        return _Bare(self._model._engine.submit(request, base=kept), begun)

    # ---- results ------------------------------------------------------------------------------

    def tried(self, place: _Place, result: Result) -> Trial:
        ends = self._model._requests.stop_ids | {self._close[0]}
        length = next((k for k, i in enumerate(result.tokens) if i in ends), len(result.tokens))
        turn = self._turn(self._close, result)
        sentence = self._model.tokenizer.decode(self._ids[place.before : place.written])
        return Trial(
            thinking=place.thinking,
            written=place.written,
            begin=place.begin,
            close=len(self._close),
            answer=tuple(result.tokens[:length]),
            logprobs=tuple(result.logprobs or ())[: length + 1],
            right=self._right(turn, result),
            stated=states(sentence, turn.content),
            left=min(self.limit, self._room) - place.written,
        )

    def ended(self, asked: _Bare, result: Result) -> End:
        ids = [*asked.begun, *result.tokens]
        turn = self._turn((), result)
        return End(self._right(turn, result), thinking_tokens(ids, self._backend._markers))

    def _turn(self, tail: Sequence[int], result: Result) -> Turn:
        """What follows the thought that these close."""
        requests = self._model._requests
        known = {"tools": self.item.tools, "opened": THOUGHT, "ends": requests.stop_ids}
        parser = ChannelParser(requests.protocol, self._model.tokenizer, **known)
        for token in (*tail, *result.tokens):
            parser.push(token)
        parser.finish()
        return parser.turn

    def _right(self, turn: Turn, result: Result) -> bool:
        calls = [plain(call.to_openai()["function"]) for call in turn.tool_calls]
        return result.reason == "stop" and grade(self.item, turn.content, calls)


def states(sentence: str, answer: str) -> bool:
    """Whether ``sentence`` says ``answer``: all of it, not as a part of a word or number."""
    said = normalize(answer)
    return bool(said) and bool(re.search(rf"(?<![\w.]){re.escape(said)}(?!\.?\w)", sentence))
