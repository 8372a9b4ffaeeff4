"""From what a caller says about thinking to what the core is told (csrc/decode/thinking.h)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from operator import itemgetter
from typing import Any

import numpy as np

from musespark.engine import TokenClasses
from musespark.errors import InvalidRequest
from musespark.options import GenerationOptions
from musespark.results import ThoughtSignals
from musespark.text import Tokenizer
from musespark.text.channels import THOUGHT
from musespark.text.protocols import Protocol
from musespark.thinking.policy import BUDGET, EXITS, OFF, POLICY, SIGNALS, Thinking, ThinkingPolicy

# The share of a budget in which the marker is raised before it, and by how much at its end.
_LANDING, _LANDING_BIAS = 0.25, 8.0
# A model's own closing words take at most one token of so many of a budget: to budgets below that,
# three quarters of Nano's thoughts, tokens of thought were worth more (`lab bench-thinking`).
_OWN_WORDS = 16
_SHORT_ANSWER = 24  # tokens that a deadline leaves to an answer
MOST_FRAMES = 8  # thoughts of a turn whose frames take nothing of the answer's length
_ANSWER = 512  # tokens of the context that a budget leaves to an answer of unknown length
_SENTENCE_ENDS = tuple(".!?…。！？\n")
_AROUND = " \t\r*_\"'”’»)]}"
_CUES = frozenset({"wait", "but", "hmm", "check", "alternatively"})
_BESIDE_WORDS = _AROUND + "\n.,:;!?…-–—“‘«([{"
_COUNT, _SENTENCE, _CUE = 7, 8, 16  # bits of TokenClasses, csrc/decode/thinking.h


def token_class(piece: bytes) -> int:
    """A token's byte of TokenClasses, csrc/decode/thinking.h."""
    continuation = 0
    while continuation < len(piece) and piece[continuation] & 0xC0 == 0x80:
        continuation += 1
    if continuation and continuation == len(piece):
        return 4 | min(continuation, 3)
    text = piece.decode("utf-8", "ignore")
    ends = "\n" in text or text.rstrip(_AROUND).endswith(_SENTENCE_ENDS)
    cue = text.strip(_BESIDE_WORDS).lower() in _CUES
    return _needed(piece) | _SENTENCE * ends | _CUE * cue


def _needed(piece: bytes) -> int:
    """Bytes that the last character still needs."""
    for back in range(1, min(4, len(piece) + 1)):
        byte = piece[-back]
        if byte & 0xC0 == 0x80:
            continue
        length = 2 if byte >> 5 == 6 else 3 if byte >> 4 == 14 else 4 if byte >> 3 == 30 else 1
        return max(0, length - back)
    return 0


@dataclass
class Thoughts:
    """How a model's thoughts are marked, closed and watched; one for all requests.

    ``marks``: of :func:`musespark.thought_cache.thought_marks`, None where no token marks one.
    """

    protocol: Protocol
    tokenizer: Tokenizer
    marks: Mapping[str, Any] | None
    vocab: int

    @cached_property
    def _fixed(self) -> dict[str, Any]:
        """What no request changes."""
        known, opens = self.tokenizer.markers, self.marks["opens"] if self.marks else []
        headers = self.protocol.headers
        more: dict[str, Any] = {}
        if headers:
            close = known[headers.end_channel]
            # What says that a channel is a thought is the last text before its content: the
            # header's end is that of any other channel too.
            behind = len([*takewhile(itemgetter(1), reversed(headers.open_thought))])
            openings = [ids[: len(ids) - behind] for ids in opens]
            more["header"] = self.tokenizer.encode_pieces(
                [(headers.start, True), (headers.role, False)]
            )
            more["answer"] = self.tokenizer.encode_pieces(headers.open_answer)
        else:
            tag = next(tag for tag in self.protocol.tags if tag.kind == THOUGHT)
            close = known[tag.close]
            openings = opens
        classes = TokenClasses(self._classes.tobytes())
        return {"close": close, "openings": openings, "classes": classes, **more}

    @cached_property
    def frame_tokens(self) -> int:
        """Tokens around a thought: what opens it, as the encoder writes that, what closes it, and
        the answer's header."""
        if self.marks is None:
            return 0
        fixed = self._fixed
        opening = len(self.marks["opens"][0])
        headers = len(fixed.get("header", [])) + len(fixed.get("answer", []))
        return opening + 1 + headers

    @cached_property
    def _classes(self) -> np.ndarray:
        """uint8 [vocab]"""
        pieces = self.tokenizer.all_bytes() or []
        known = bytes(token_class(piece) for piece in pieces[: self.vocab])
        return np.frombuffer(known.ljust(self.vocab, b"\0"), np.uint8)

    def signals(self, tokens: Sequence[int], rows: np.ndarray) -> ThoughtSignals:
        """Of thought tokens and the core's rows [n, 4] of them."""
        of = self._classes[np.asarray(tokens, np.int64)]
        borders = (of & (_SENTENCE | _COUNT)) == _SENTENCE
        return ThoughtSignals(*rows.T.copy(), borders, (of & _CUE) != 0)

    def refuse_unwritten(self, thinking: Thinking) -> None:
        """InvalidRequest for a caller's closing words that could never be written. A model's own
        are left out where a budget has no room for them, and so are the caller's where it is the
        context that leaves none."""
        words, budget = thinking.message, thinking.budget
        if self.marks is None or not words:
            return
        if budget is None and not thinking.policy.writes:
            raise InvalidRequest(
                f"thinking_closing_message: got {words!r:.60}, which nothing writes without a "
                "budget or a policy's loop, hopeless or deadline"
            )
        count = len(self.tokenizer.encode(words))
        if budget is not None and count >= budget:
            raise InvalidRequest(
                f"thinking_closing_message: got {count} tokens, allowed with a budget of {budget} "
                f"are at most {max(budget - 1, 0)}"
            )

    def asked(self, thinking: Thinking, *, tools: bool) -> dict[str, Any] | None:
        """``Request.thinking``; None where thoughts are not marked. InvalidRequest where a budget
        or a policy could do nothing. ``tools``: the turn may be a call in place of an answer."""
        if self.marks is None:
            if thinking in (Thinking(), Thinking(policy=OFF)):  # which ask for nothing
                return None
            raise InvalidRequest(
                f"{_asked_for(thinking)}: the model's protocol {self.protocol.name!r} marks no "
                "thoughts by tokens of its own; none can be limited, ended or measured"
            )
        if thinking == Thinking(policy=OFF, message=thinking.message):
            return None
        policy = thinking.policy
        landing = 0 if thinking.budget is None else int(thinking.budget * _LANDING)
        answer = [] if tools else self._fixed.get("answer", [])
        return {
            **self._fixed,
            "answer": answer,
            "message": self._closing_words(thinking),
            "budget": thinking.budget,
            "landing": landing,
            "landing_bias": _LANDING_BIAS,
            "margin": policy.margin,
            "least": policy.least,
            "loop": policy.loop,
            "deadline_s": policy.deadline,
            "signals": thinking.signals or bool(_stoppers(policy)),
            **({} if policy.trials else _stoppers(policy)),
        }

    def trials(self, thinking: Thinking, *, tools: bool) -> dict[str, Any] | None:
        """``Request.trials``; None where there are none."""
        policy = thinking.policy
        if self.marks is None or not policy.trials:
            return None
        return {
            "tokens": policy.trials,
            "confident": policy.confident,
            "stable": policy.stable,
            "every": policy.every,
            "close": self.closing(tools=tools),
            **_stoppers(policy),
        }

    def within_deadline(self, asked: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Of a request with a deadline: its thoughts leave time for closing words, markers and a
        short answer. ``asked``: of :meth:`asked`."""
        if asked is None:
            return None
        reserve = len(asked["message"]) + self.frame_tokens + _SHORT_ANSWER
        return {**asked, "reserve": reserve}

    def _closing_words(self, thinking: Thinking) -> list[int]:
        if thinking.message is not None:
            return self.tokenizer.encode(thinking.message)
        words = self.tokenizer.encode(self.protocol.closing) if self.protocol.closing else []
        short = thinking.budget is not None and thinking.budget < _OWN_WORDS * len(words)
        return [] if short else words

    def closing(self, *, tools: bool) -> list[int]:
        """The ids that end a thought on trial and open the answer; with ``tools`` up to where the
        model writes whom it turns to. Only where thoughts are marked."""
        fixed = self._fixed
        close = [fixed["close"], *fixed.get("header", [])]
        return close if tools else [*close, *fixed.get("answer", [])]


def _stoppers(policy: ThinkingPolicy) -> dict[str, Any]:
    """What the core is told of a policy's stoppers."""
    named = {"stopper": policy.stopper, "hopeless": policy.hopeless}
    return {name: one.fields() for name, one in named.items() if one is not None}


def _asked_for(thinking: Thinking) -> str:
    """The option that cannot be had."""
    if thinking.budget is not None:
        return BUDGET
    if thinking.exits is not None:
        return EXITS
    if thinking.message is not None:
        return "thinking_closing_message"
    return SIGNALS if thinking.signals else POLICY


def with_budget(
    options: GenerationOptions, budget: int | None, room: int, frame: int, total: int | None = None
) -> tuple[GenerationOptions, int | None, int | None]:
    """Options whose ``max_new_tokens`` has thoughts, their frames and the answer in it, the budget,
    and the answer's own most tokens. ``room``: tokens that the context leaves; ``frame``: of
    :attr:`Thoughts.frame_tokens`; ``total``: the most of all together, a smaller room. Thoughts do
    not starve the answer, nor does an answer's limit, which few reach, the thoughts: where both do
    not fit, the budget is what is left, half of the room at least; without a ``max_new_tokens``
    three quarters."""
    answer = options.max_new_tokens
    if budget is None or room <= 0:  # the core refuses a prompt that leaves no room
        most = answer if total is None else min(total, answer or max(1, room))
        return replace(options, max_new_tokens=most), budget, None
    room = room if total is None else min(room, total)
    if answer is None:
        budget = max(0, min(budget, room - frame - min(_ANSWER, room // 4)))
        return options if total is None else replace(options, max_new_tokens=room), budget, None
    budget = max(0, min(budget, room - frame - min(answer, room // 2)))
    most = min(room, answer + budget + MOST_FRAMES * frame)
    return replace(options, max_new_tokens=most), budget, max(answer, 1)
