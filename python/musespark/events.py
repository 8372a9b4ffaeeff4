"""What is asked of the engine, and the events it answers with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from musespark.errors import InvalidRequest, MemoryBudgetExceeded


@dataclass(frozen=True, kw_only=True)
class GivenRows:
    """Rows that stand in a prompt in place of embeddings: csrc/model/given_rows.h.

    ``make`` gives float32 [count, hidden] and as many for each tap. It is called once at most, in a
    thread of the engine, where keys and values of the rows are not known already.
    """

    first: int
    count: int
    advance: int
    places: np.ndarray | None  # int32 [count, 3]
    make: Callable[[], tuple[np.ndarray, Sequence[np.ndarray]]]

    def fields(self) -> dict[str, Any]:
        """What the core is told."""
        fields = {"first": self.first, "count": self.count, "advance": self.advance}
        return {**fields, "places": self.places}


@dataclass(frozen=True, kw_only=True)
class Request:
    """Token ids and how to continue them; the meaning of each field is in csrc/decode/sampler.h.

    ``logits``: ``none``, ``last``, ``all``, ``score`` (the log-probability of each token but the
    first; with ``logprobs`` these tokens in place of logits, the likeliest beside each) or
    ``attention``: in place of logits float32 [layers without a window * rows, tokens of
    ``look_at``], the weights with which the last 8 tokens (or all) look at those of the spans
    (first, count), the mean over heads; or ``states``: in place of each token's logits float32
    [(layers - 1) * hidden], the residual stream after each layer but the last. Anything but
    ``none`` samples nothing. ``logits_from``: of ``all``, ``score`` and ``states``, tokens before
    it have none, and may be known already. ``deadline``: seconds from submission.
    ``adapter``: an id from :meth:`musespark.engine.Engine.add_adapter`.
    ``thoughts``: how they are marked and what becomes of them, see
    :func:`musespark.thought_cache.request_thoughts`.
    ``thinking``: how long it thinks, see :meth:`musespark.thinking.request.Thoughts.asked`;
    ``trials``: of answers, csrc/decode/trial.h. ``max_answer_tokens``: tokens
    outside thoughts, their markers and headers.
    ``draft_tokens``: of drafts at most, csrc/decode/speculation.h; ``draft_eagerly``: whatever they
    cost, for measurements, and of the drafter where there is one.
    ``constraint``: what may be written, as csrc/bindings/constraint_from_python.h says; of this
    request alone.
    ``given``: rows in place of embeddings, by position; the tokens there are negative.
    ``retain``: keep keys and values after the end, see :attr:`musespark.engine.Handle.retained`.
    """

    tokens: Sequence[int] | np.ndarray
    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    stream: int = 0
    stop_ids: Sequence[int] = ()
    logit_bias: Mapping[int, float] | None = None
    allowed_ids: Sequence[int] | None = None
    logprobs: int = 0
    logits: str = "none"
    logits_from: int = 0
    look_at: Sequence[tuple[int, int]] = ()
    deadline: float | None = None
    draft_tokens: int = 0
    draft_eagerly: bool = False
    retain: bool = False
    adapter: int | None = None
    thoughts: Mapping[str, Any] | None = None
    thinking: Mapping[str, Any] | None = None
    trials: Mapping[str, Any] | None = None
    max_answer_tokens: int | None = None
    given: Sequence[GivenRows] = ()
    constraint: Callable[[list[int]], bytes | None] | None = None

    def params(self) -> dict[str, Any]:
        """The core's parameter dict."""
        params = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del params["tokens"]
        params["deadline_s"] = params.pop("deadline")
        params["given"] = [span.fields() for span in self.given] or None
        if self.logit_bias is not None:
            params["logit_bias"] = dict(self.logit_bias)
        return params


class Tokens(NamedTuple):
    """Tokens since the last event; a stop id is the last one where it ended the sequence."""

    ids: list[int]
    logprobs: list[float] | None  # of each, under the model's own distribution
    top: list[list[tuple[int, float]]] | None  # the most likely of each, best first
    # float32 [n, 4], csrc/decode/signals.h; NaN where a token is no thought's, None where none is
    signals: np.ndarray | None = None


class LogitsRows(NamedTuple):
    """Rows of logits float32 [n, vocab] (``score``: [n]) for positions ``first`` and after."""

    first: int
    values: np.ndarray


class Finished(NamedTuple):
    """How the request ended: ``stop``, ``length``, ``cancelled`` or ``deadline``."""

    reason: str
    stats: dict[str, Any]


Event = Tokens | LogitsRows | Finished


@dataclass(frozen=True)
class Result:
    """Everything a request produced."""

    tokens: list[int]
    logprobs: list[float] | None
    top: list[list[tuple[int, float]]] | None
    logits: np.ndarray | None
    signals: np.ndarray | None  # float32 [thought tokens, 4], where they were taken
    reason: str
    stats: dict[str, Any]


@dataclass(frozen=True)
class Kept:
    """A retained sequence without its pages.

    ``tokens`` int32 [n]: those that have keys and values. ``prompt``: how many of them a second
    sequence has, at the last prompt's end (models with windows), else 0. ``short_rope``: made with
    the ropes' short factors (longrope).
    """

    tokens: np.ndarray
    prompt: int
    short_rope: bool


def token_array(tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    """int32 [n], contiguous; InvalidRequest for anything that is not a list of 32-bit ids."""
    array = np.asarray(tokens)
    if array.ndim != 1:
        raise InvalidRequest(f"tokens: got {array.ndim} dimensions, allowed is 1")
    if array.size and array.dtype.kind not in "iu":
        raise InvalidRequest(f"tokens: got {array.dtype} values, allowed are integers")
    limits = np.iinfo(np.int32)
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        worst = array.max() if array.max() > limits.max else array.min()
        raise InvalidRequest(f"tokens: got {worst}, allowed is a token id of the vocabulary")
    return np.ascontiguousarray(array, np.int32)


def _joined(rows: list[np.ndarray]) -> np.ndarray:
    """All rows as one array; ``rows`` is emptied on the way, so that no row is held twice."""
    if len(rows) == 1:
        return rows[0]
    count = sum(len(part) for part in rows)
    try:
        out = np.empty((count, *rows[0].shape[1:]), rows[0].dtype)  # pages come as they are written
    except MemoryError:
        raise MemoryBudgetExceeded(f"no memory for the logits of {count} positions") from None
    while rows:
        part = rows.pop()
        out[count - len(part) : count] = part
        count -= len(part)
    return out


def measured(signals: np.ndarray) -> np.ndarray:
    """The rows of tokens that are thoughts'."""
    return signals[~np.isnan(signals[:, 0])]


def collect(events: list[Event]) -> Result:
    """All events of one request, in order and ended by :class:`Finished`, as its result.

    ``events`` is emptied: logits fill most of the memory there is, and stay in it once.
    """
    finished = events[-1]
    assert isinstance(finished, Finished)
    parts = [e for e in events if isinstance(e, Tokens)]
    rows = [e.values for e in events if isinstance(e, LogitsRows)]
    events.clear()
    signals = [e.signals for e in parts if e.signals is not None]
    with_logprobs = bool(parts) and parts[0].logprobs is not None
    return Result(
        tokens=[t for p in parts for t in p.ids],
        logprobs=[x for p in parts for x in p.logprobs or ()] if with_logprobs else None,
        top=[x for p in parts for x in p.top or ()] if with_logprobs else None,
        logits=_joined(rows) if rows else None,
        signals=measured(np.concatenate(signals)) if signals else None,
        reason=finished.reason,
        stats=finished.stats,
    )
