"""Did the answer lean on what was pointed at? Each region is masked and the question asked again.

Beside every region, regions of the same size elsewhere are masked in turn: what costs the answer no
more than those was not what it came from. This measures the model on these pixels; it does not
explain it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from musespark.errors import InvalidRequest
from musespark.vision.geometry import Transform
from musespark.vision.pixels import Picture, open_picture
from musespark.vision.trace.again import before_the_answer, filled
from musespark.vision.trace.data import Check, Step, TraceImage, VisualTrace, remade

# (pictures in the order of the conversation, messages, answer) -> natural logarithm of the
# probability of the answer as the next turn. Messages hold {"type": "image", "id": …} parts.
Score = Callable[[Sequence[Picture], Sequence[Mapping[str, Any]], str], float]
# (pictures, messages) -> the answer, greedy.
Ask = Callable[[Sequence[Picture], Sequence[Mapping[str, Any]]], str]


class Judge(Protocol):
    """What can be asked again: a model that sees."""

    def answer_logprob(self, messages: Sequence[Mapping[str, Any]], answer: str) -> float: ...
    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Any: ...


Box = tuple[int, int, int, int]

MARGIN = math.log(2)  # a region counts when it costs at least half of the probability
_TRIES = 64
_OVERLAP = 0.25
_POINT = 0.05  # side of the square that stands for a point, of the shorter side of its image


def verify(
    trace: VisualTrace,
    score: Score | Judge,
    *,
    ask: Ask | bool | None = None,
    draws: int = 3,
    seed: int = 0,
    limit: int = 16,
) -> VisualTrace:
    """The trace with a :class:`Check` for each region that the model cited.

    A region is painted over with the mean colour of its original, and every crop is cut anew from
    that. It is load-bearing where the answer's probability falls to half or less, and to half or
    less of what ``draws`` regions of equal area elsewhere (chosen with ``seed``) leave on average.
    ``score`` is a model, or what stands for one. ``ask``: with it (True: the model answers, greedy)
    it is also noted whether the answer itself changes. At most ``limit`` regions
    are checked, the first ones; a warning says so. Each costs 1 + ``draws`` calls of ``score``. A
    model scores the answer as the next turn with no thought before it, also where it thought.

    Raises InvalidRequest where the pixels are not attached, or there is no conversation.
    """
    if callable(getattr(score, "answer_logprob", None)):
        score, answers = _asking(trace, score)
        ask = answers if ask is True else ask
    if not callable(score):
        raise InvalidRequest(f"score: {type(score).__name__}, must be a model or callable")
    if ask is not None and not callable(ask):
        raise InvalidRequest(f"ask: {ask!r:.60}, must be callable, or True with a model")
    for name, value in (("draws", draws), ("limit", limit)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidRequest(f"{name}: {value!r:.60}, must be 1 or more")
    missing = [image.id for image in trace.images if image.id not in trace.pictures]
    if missing:
        raise InvalidRequest(f"pixels: not there for {missing}; attach() them first")
    if not trace.messages:
        raise InvalidRequest("messages: the trace has none, so nothing can be asked again")
    bench = _Bench(trace, score, ask, draws, random.Random(seed))
    cited = [
        (index, place)
        for index, step in enumerate(trace.steps)
        for place, region in enumerate(step.regions)
        if step.source == "model" and region.points and "off-image" not in region.flags
    ]
    checks: dict[int, list[Check]] = {}
    for index, place in cited[:limit]:
        checks.setdefault(index, []).append(bench.check(trace.steps[index], place))
    steps = [
        replace(step, checks=tuple(checks.get(index, ()))) for index, step in enumerate(trace.steps)
    ]
    warnings = trace.warnings
    if len(cited) > limit:
        warnings = (*warnings, f"verify: the first {limit} of {len(cited)} regions were checked")
    return replace(trace, steps=tuple(steps), warnings=warnings)


def _asking(trace: VisualTrace, model: Judge) -> tuple[Score, Ask]:
    """How a model scores an answer, and gives one."""

    def score(
        pictures: Sequence[Picture], turns: Sequence[Mapping[str, Any]], answer: str
    ) -> float:
        return model.answer_logprob(filled(trace, turns, pictures), answer)

    def ask(pictures: Sequence[Picture], turns: Sequence[Mapping[str, Any]]) -> str:
        return model.chat(filled(trace, turns, pictures), temperature=0.0).content

    return score, ask


class _Bench:
    """Asks with and without a region; what was asked before masking is asked once."""

    def __init__(
        self,
        trace: VisualTrace,
        score: Score,
        ask: Ask | None,
        draws: int,
        rng: random.Random,
    ):
        self._trace, self._score, self._ask = trace, score, ask
        self._draws, self._rng = draws, rng
        self._turns = before_the_answer(trace)
        whole = [trace.pictures[image.id] for image in trace.images]
        self._before = self._log_probability(whole)
        self._answer = ask(whole, self._turns) if ask else None

    def check(self, step: Step, place: int) -> Check:
        region = step.regions[place]
        original = self._trace.original(region.image or step.image)
        box = _pixels(region.bounds, original)
        others = [_elsewhere(box, original.size, self._rng) for _ in range(self._draws)]
        change, flipped = self._masked(original, box)
        results = [self._masked(original, other) for other in others]
        mean = sum(change for change, _ in results) / len(results)
        overlap = max(_overlap(box, other) for other in others)
        decided = overlap <= _OVERLAP
        return Check(
            region=place,
            change=change,
            random_change=mean,
            draws=self._draws,
            load_bearing=min(change, change - mean) <= -MARGIN if decided else None,
            flipped=flipped,
            random_flips=sum(bool(f) for _, f in results) if self._ask else None,
            note="" if decided else f"regions of equal area hold up to {overlap:.0%} of this one",
        )

    def _masked(self, original: TraceImage, box: Box) -> tuple[float, bool | None]:
        pictures = _with_mask(self._trace, original.id, box)
        change = self._log_probability(pictures) - self._before
        flipped = self._ask(pictures, self._turns) != self._answer if self._ask else None
        return change, flipped

    def _log_probability(self, pictures: Sequence[Picture]) -> float:
        value = self._score(pictures, self._turns, self._trace.answer)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidRequest(f"score: gave {value!r:.60}, must be a finite number")
        return float(value)


def _pixels(bounds: tuple[float, float, float, float] | None, original: TraceImage) -> Box:
    """The whole pixels a region touches; a square around a point."""
    x0, y0, x1, y1 = bounds or (0, 0, 0, 0)
    height, width = original.size
    if x0 == x1 and y0 == y1:
        half = max(0.5, _POINT * min(height, width) / 2)
        x0, y0, x1, y1 = x0 - half, y0 - half, x1 + half, y1 + half
    left = min(max(0, math.floor(x0)), width - 1)
    top = min(max(0, math.floor(y0)), height - 1)
    right = max(left + 1, min(width, math.ceil(x1)))
    return left, top, right, max(top + 1, min(height, math.ceil(y1)))


def _elsewhere(box: Box, size: tuple[int, int], rng: random.Random) -> Box:
    """A box of equal size at random, of some tries the one that holds least of ``box``."""
    width, height = box[2] - box[0], box[3] - box[1]
    best = box
    for _ in range(_TRIES):
        left, top = rng.randint(0, size[1] - width), rng.randint(0, size[0] - height)
        other = (left, top, left + width, top + height)
        if _overlap(box, other) < _overlap(box, best):
            best = other
        if not _overlap(box, best):
            break
    return best


def _overlap(box: Box, other: Box) -> float:
    """The share of ``box`` that the other, of equal size, holds."""
    across = max(0, min(box[2], other[2]) - max(box[0], other[0]))
    down = max(0, min(box[3], other[3]) - max(box[1], other[1]))
    return across * down / ((box[2] - box[0]) * (box[3] - box[1]))


def _with_mask(trace: VisualTrace, original: str, box: Box) -> list[Picture]:
    """All pictures, those made from the original anew from a copy in which the box is painted."""
    made: dict[str, Picture] = {}
    left, top, right, bottom = box
    for image in trace.images:
        picture = trace.pictures[image.id]
        if image.id == original:
            pixels = np.array(picture.pixels)
            pixels[top:bottom, left:right] = np.round(pixels.mean(axis=(0, 1))).astype(np.uint8)
            picture = replace(open_picture(pixels), transform=Transform())
        elif image.parent is not None:
            picture = remade(image, made[image.parent])
        made[image.id] = picture
    return [made[image.id] for image in trace.images]
