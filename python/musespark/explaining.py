"""A result asked again: its thought is closed on trial at the end of each of its sentences.

Every place is read once, from the keys and values of the place before it, and kept while two
requests go on from it: one scores the final answer's tokens, one answers greedily. They run as rows
of one batch with each other, with the reading of later places, and with whatever else the model
does; none of that changes a bit of what they find.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from musespark.engine import Engine, Handle, Retained
from musespark.errors import Error, InvalidRequest
from musespark.events import Request, Result
from musespark.images import PromptImages, Source
from musespark.options import MAX_TOKENS
from musespark.text.protocols import Protocol
from musespark.thinking.request import Thoughts
from musespark.thinking.sentences import ThoughtSpan, sentence_ends, thought_spans
from musespark.thinking.xray import MOVED, ForcedAnswer, ThoughtSentence, ThoughtXray
from musespark.thought_cache import DEMOTE, thought_marks

if TYPE_CHECKING:
    from musespark.model import Model
    from musespark.results import ChatResult

_WHAT = "explain_thinking"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a model was asked in a chat, as far as its answer can be asked for again.

    ``ids`` int32 [n]: the prompt, with one id for each run of an image's rows. ``images``: opened.
    ``tools``: the turn may be a call. ``thought_cache``: as given. The
    model is known weakly: results do not keep one open.
    """

    question: str
    ids: np.ndarray
    images: Sequence[Source]
    protocol: Protocol
    stop_ids: frozenset[int]
    adapter: int | None
    tools: bool
    thought_cache: str | None
    model: weakref.ref[Model] | None = None
    engine: weakref.ref[Engine] | None = None

    def of(self, model: Model) -> Asked:
        """With the model that is asked."""
        return replace(self, model=weakref.ref(model), engine=weakref.ref(model._engine))

    def explain(self, result: ChatResult, answer_tokens: int) -> ThoughtXray:
        """See :meth:`musespark.ChatResult.explain_thinking`; ``result``: what was answered."""
        if type(answer_tokens) is not int or not 1 <= answer_tokens <= MAX_TOKENS:
            raise InvalidRequest(
                f"answer_tokens: got {answer_tokens!r:.60}, allowed is an integer >= 1"
            )
        model = self._known_model()
        turn = _Turn(model, self, result)
        probe = _Probe(model._engine, turn)
        answer, is_trial = turn.answer[:answer_tokens], not turn.answer
        if is_trial:
            answer = probe.write(turn.places[-1], answer_tokens)
        trials = probe.trials(answer)
        return ThoughtXray(
            model=model.info.source,
            question=self.question,
            answer=turn.text(answer),
            answer_tokens=len(answer),
            answer_is_trial=is_trial,
            thinking_stop_reason=result.thinking_stop_reason,
            before=trials[0],
            sentences=tuple(turn.sentences(trials)),
            probe_tokens=probe.computed,
        )

    def _known_model(self) -> Model:
        model = None if self.model is None else self.model()
        if model is None or self.engine is None:
            raise Error(f"{_WHAT}: the model that gave this result is gone; keep it until then")
        if self.engine() is not model._engine:
            raise InvalidRequest(f"{_WHAT}: the model's weights were replaced after this result")
        model._engine.stats()  # says so where the model is closed
        return model


@dataclass
class _Sentence:
    """Tokens begin .. end - 1 of prompt and completion together."""

    text: str
    thought: int
    begin: int
    end: int


class _Turn:
    """A turn that is written, and where its thoughts can be closed.

    ``tokens``: prompt and completion; ``request``: what goes with them. ``close``: the ids that
    close a thought. ``answer``: the ids after the last thought and its close, up to the turn's end;
    none where the turn has no answer. ``stops``: what ends an answer.
    """

    def __init__(self, model: Model, asked: Asked, result: ChatResult):
        self._tokenizer, requests = model.tokenizer, model._requests
        marks = thought_marks(asked.protocol, self._tokenizer)
        if marks is None:
            raise InvalidRequest(
                f"{_WHAT}: the model's protocol {asked.protocol.name!r} marks no thoughts by "
                "tokens of its own"
            )
        if result.thought_cache is not None and result.thought_cache.evictions:
            raise InvalidRequest(
                f"{_WHAT}: {result.thought_cache.evicted_tokens} tokens of the thought were "
                "evicted while it was written (thought_cache_tokens); it cannot be read again so"
            )
        spec = model._weights.spec
        images = PromptImages(requests.eyes, asked.images, requests.blind)
        prompt, rows = images.placed(asked.ids.tolist(), self._tokenizer, spec.hidden)
        self.tokens, self._first = [*prompt, *result.tokens], len(prompt)
        spans = thought_spans(self.tokens, marks, self._first)
        self._sentences = [one for i, span in enumerate(spans) for one in self._cut(span, i)]
        if not any(one.text.strip() for one in self._sentences):
            reason = result.thinking_stop_reason
            raise InvalidRequest(f"{_WHAT}: the result has no thought (it ended by {reason!r})")
        thoughts = requests.thoughts
        if thoughts.protocol is not asked.protocol:  # the model has another template since
            thoughts = Thoughts(asked.protocol, self._tokenizer, marks, spec.vocab)
        self._choose_close(thoughts, spans[-1], asked)
        demoted = {"cache": DEMOTE, "most_tokens": None, **marks}
        self.request = Request(
            tokens=(),
            stop_ids=sorted(self.stops),
            adapter=asked.adapter,
            given=rows,
            thoughts=demoted if asked.thought_cache == DEMOTE else None,
        )

    @property
    def places(self) -> list[int]:
        """Where the thought is closed: before it, and behind each of its sentences."""
        return [self._sentences[0].begin, *(one.end for one in self._sentences)]

    def _cut(self, span: ThoughtSpan, thought: int) -> Iterator[_Sentence]:
        ids = self.tokens[span.begin : span.end]
        stream = self._tokenizer.stream(continuing=True)
        texts = [stream.push(i) for i in ids]
        if texts:
            texts[-1] += stream.flush()
        pieces = [self._tokenizer.token_bytes(i) or b"" for i in ids]
        begin = 0
        for end in sentence_ends(texts, pieces):
            text = "".join(texts[begin:end])
            yield _Sentence(text, thought, span.begin + begin, span.begin + end)
            begin = end

    def _choose_close(self, thoughts: Thoughts, last: ThoughtSpan, asked: Asked) -> None:
        """The close as the model wrote it, as far as it is one that decoding writes, and the answer
        behind it; the close that decoding writes where there is none."""
        written = self.tokens[last.end :] if last.closed else []
        usual = thoughts.closing(tools=asked.tools)
        known = (usual, thoughts.closing(tools=True))
        begun = written != usual[: len(written)]  # else the turn ended before an answer
        found = next((ids for ids in known if begun and written[: len(ids)] == ids), None)
        self.close = usual if found is None else found
        self.stops = asked.stop_ids | {usual[0]}
        answer = [] if found is None else written[len(found) :]
        ends = (i + 1 for i, token in enumerate(answer) if token in self.stops)
        self.answer = answer[: next(ends, len(answer))]

    def text(self, ids: Sequence[int]) -> str:
        """Of an answer, without what ends it."""
        kept = [i for i in ids if i not in self.stops]
        return self._tokenizer.decode(kept, continuing=True).strip()

    def sentences(self, trials: Sequence[ForcedAnswer]) -> Iterator[ThoughtSentence]:
        """The sentences with what was found ``before`` the first and behind each."""
        for one, before, after in zip(self._sentences, trials, trials[1:], strict=False):
            moved = abs(after.confidence - before.confidence) >= MOVED
            yield ThoughtSentence(
                text=one.text,
                thought=one.thought,
                tokens=(one.begin - self._first, one.end - self._first),
                changed=moved or after.answer != before.answer,
                **vars(after),
            )


class _Probe:
    """Asks the engine at the places of a turn. ``computed``: tokens, for all of it."""

    def __init__(self, engine: Engine, turn: _Turn):
        self._engine, self._turn = engine, turn
        self.computed = 0

    def write(self, place: int, most: int) -> list[int]:
        """What the model answers where the thought is closed at ``place``."""
        tokens = self._closed(place)
        most = max(1, min(most, self._engine.context - len(tokens)))
        return self._taken(self._written(tokens, most, None)).tokens

    def trials(self, answer: Sequence[int]) -> list[ForcedAnswer]:
        """At each place: the probability of ``answer``, and what is answered instead."""
        asked: list[tuple[Handle, Handle]] = []
        base: Retained | None = None
        try:
            for place in self._turn.places:
                base = self._read(place, base)
                tokens = self._closed(place)
                written = self._written(tokens, len(answer), base)
                asked.append((written, self._scored(tokens, answer, base)))
            return [self._trial(*handles, answer) for handles in asked]
        finally:
            if base is not None:
                base.release()
            for handle in (one for pair in asked for one in pair):
                handle.cancel()

    def _closed(self, place: int) -> list[int]:
        return self._turn.tokens[:place] + self._turn.close

    def _read(self, place: int, before: Retained | None) -> Retained:
        """The keys and values of all tokens up to a place, from those of the place before it."""
        tokens = self._turn.tokens[:place]
        request = replace(self._turn.request, tokens=tokens, max_new_tokens=0, retain=True)
        handle = self._engine.submit(request, base=before)
        try:
            self._taken(handle)
        except BaseException:
            handle.discard()
            raise
        finally:
            if before is not None:
                before.release()
        return handle.retained

    def _written(self, tokens: list[int], most: int, base: Retained | None) -> Handle:
        request = replace(self._turn.request, tokens=tokens, max_new_tokens=most)
        return self._engine.submit(request, base=base)

    def _scored(self, tokens: list[int], answer: Sequence[int], base: Retained) -> Handle:
        given = {"logits": "score", "logits_from": len(tokens) - 1, "stop_ids": ()}
        request = replace(self._turn.request, tokens=[*tokens, *answer], **given)
        return self._engine.submit(request, base=base)

    def _taken(self, handle: Handle) -> Result:
        result = handle.result()
        stats = result.stats
        self.computed += stats["prompt_tokens"] - stats["cached_tokens"]
        self.computed += stats["completion_tokens"]
        return result

    def _trial(self, written: Handle, scored: Handle, answer: Sequence[int]) -> ForcedAnswer:
        ids = self._taken(written).tokens
        logprob = float(self._taken(scored).logits.astype(np.float64).sum())
        return ForcedAnswer(
            answer=self._turn.text(ids),
            is_final=ids == list(answer),
            probability=math.exp(logprob),
            confidence=math.exp(logprob / len(answer)),
            token_logprob=logprob / len(answer),
        )
