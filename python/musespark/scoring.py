"""What a model computes of a text that is given: logits, probabilities, where attention goes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from musespark.errors import InvalidRequest, MemoryBudgetExceeded, UnsupportedModel
from musespark.events import Request, Result
from musespark.machine import available_memory
from musespark.options import MAX_LOGPROBS, integer
from musespark.results import ImageAttention, TokenLogprob
from musespark.sizes import LOGGED_QUERIES

if TYPE_CHECKING:
    from musespark.adapters import Adapter, Adapters, Steering
    from musespark.engine import Engine
    from musespark.families.spec import ModelSpec
    from musespark.requests import Requests
    from musespark.results import ModelInfo
    from musespark.vision.embedding import ImageOutline
    from musespark.weights import LoadedWeights


class Scoring:
    """The part of :class:`musespark.Model` that writes nothing."""

    _adapters: Adapters
    _engine: Engine
    _info: ModelInfo
    _requests: Requests
    _weights: LoadedWeights

    def logits(
        self,
        ids: Sequence[int],
        *,
        adapter: Adapter | str | None = None,
        steering: Steering | str | None = None,
    ) -> np.ndarray:
        """float32 [n, vocab]: the logits after each of n token ids.

        MemoryBudgetExceeded where the array does not fit into the memory that is free.
        """
        chosen = self._adapters.chosen({"adapter": adapter, "steering": steering})
        ids = self._requests.ids(ids, "ids", most=self._info.context)
        return every_logit(self._engine, ids, self._weights.spec.vocab, chosen)

    def score(
        self,
        text: str | Sequence[int],
        *,
        adapter: Adapter | str | None = None,
        steering: Steering | str | None = None,
    ) -> np.ndarray:
        """float32 [n]: the natural-log probability of each token of ``text`` (encoded as
        :meth:`Model.generate` does, or given as ids) after those before it. The first has none:
        NaN."""
        chosen = self._adapters.chosen({"adapter": adapter, "steering": steering})
        ids = self._requests.ids(text, "text", most=self._info.context)
        return token_scores(self._engine, ids, chosen)

    def prompt_logprobs(
        self,
        text: str | Sequence[int],
        *,
        logprobs: int = 1,
        adapter: Adapter | str | None = None,
        steering: Steering | str | None = None,
    ) -> tuple[TokenLogprob, ...]:
        """What :meth:`score` gives, each token with the ``logprobs`` (1 to 64) that were likeliest
        in its place. The first token has no log-probability (NaN) and none beside it."""
        chosen = self._adapters.chosen({"adapter": adapter, "steering": steering})
        count = integer("logprobs", logprobs, 1, min(MAX_LOGPROBS, self._info.vocab))
        ids = self._requests.ids(text, "text", most=self._info.context)
        request = Request(tokens=ids, logits="score", logprobs=count, adapter=chosen)
        return scored_tokens(ids, self._engine.submit(request).result())

    def answer_logprob(
        self, messages: Sequence[Mapping[str, Any]], answer: str, **options: Any
    ) -> float:
        """The natural logarithm of the probability that the next turn begins with ``answer``,
        without a thought before it. ``options``: ``tools``, ``adapter`` and ``steering``."""
        request, _ = self._requests.answer(messages, answer, options)
        return float(self._engine.submit(request).result().logits.astype(np.float64).sum())

    def image_attention(
        self, messages: Sequence[Mapping[str, Any]], answer: str, **options: Any
    ) -> ImageAttention:
        """Where the model looks in the images of ``messages`` when it writes ``answer``: the
        weights of attention, measured from its keys and values. ``options``: ``tools``, ``adapter``
        and ``steering``. InvalidRequest where there are no images; models whose layers all have a
        window have none to look at."""
        request, images = self._requests.answer(messages, answer, options)
        return image_attention(self._engine, self._weights.spec, request, images.outlines)


def every_logit(engine: Engine, ids: np.ndarray, vocab: int, adapter: int | None) -> np.ndarray:
    """See :meth:`musespark.Model.logits`."""
    needed, free = 4 * len(ids) * vocab, available_memory()
    if needed > free:
        raise MemoryBudgetExceeded(
            f"logits of {len(ids)} tokens are {needed} bytes ({vocab} numbers each); "
            f"{free} are free; give fewer tokens at once, or use score"
        )
    return engine.submit(Request(tokens=ids, logits="all", adapter=adapter)).result().logits


def token_scores(engine: Engine, ids: np.ndarray, adapter: int | None) -> np.ndarray:
    """See :meth:`musespark.Model.score`."""
    out = np.full(len(ids), np.nan, np.float32)
    if len(ids) > 1:
        request = Request(tokens=ids, logits="score", adapter=adapter)
        out[1:] = engine.submit(request).result().logits.ravel()
    return out


def scored_tokens(ids: Sequence[int], result: Result) -> tuple[TokenLogprob, ...]:
    """Of a request with ``logits="score"`` and ``logprobs``."""
    of_each = zip(result.tokens, result.logprobs or (), result.top or (), strict=True)
    later = (TokenLogprob(token, logprob, tuple(top)) for token, logprob, top in of_each)
    return (TokenLogprob(int(ids[0]), math.nan), *later)


def image_attention(
    engine: Engine, spec: ModelSpec, scored: Request, outlines: Sequence[ImageOutline]
) -> ImageAttention:
    """See :meth:`musespark.Model.image_attention`; ``scored``: what asks for the probability of
    the answer to a conversation with these images."""
    if not outlines:
        raise InvalidRequest("messages: there are no images to look at")
    places = [_whole(outline) for outline in outlines]
    look_at = [(given.first, given.count) for given in scored.given]
    layers = [i for i, layer in enumerate(spec.layers) if layer.attention.window == 0]
    parts = []
    first, end = scored.logits_from, len(scored.tokens) - 1  # the rows that chose the answer
    for at in range(first, end, LOGGED_QUERIES):
        stop = min(at + LOGGED_QUERIES, end)
        given = {"logits": "attention", "logits_from": 0, "look_at": look_at}
        request = replace(scored, tokens=scored.tokens[:stop], **given)
        rows = min(LOGGED_QUERIES, stop)
        weights = engine.submit(request).result().logits
        parts.append(weights.reshape(len(layers), rows, -1)[:, rows - (stop - at) :])
    weights = np.concatenate(parts, axis=1)
    maps, column = [], 0
    for outline, (offset, height, width) in zip(outlines, places, strict=True):
        part = weights[:, :, column + offset : column + offset + height * width]
        maps.append(part.reshape(*part.shape[:2], height, width))
        column += outline.tokens
    return ImageAttention(tuple(maps), tuple(layers))


def _whole(outline: ImageOutline) -> tuple[int, int, int]:
    """Of the part that shows all of an image: its first row among the image's, and how many rows
    and columns it has."""
    transforms = outline.transform if isinstance(outline.transform, tuple) else [outline.transform]
    best, largest, at = None, -1.0, 0
    tiles = zip(outline.grid, outline.runs, transforms, strict=False)
    for (frames, height, width), count, transform in tiles:
        x0, y0, x1, y1 = transform.box((0, 0, width, height)) if transform else (0, 0, 1, 1)
        area = abs((x1 - x0) * (y1 - y0))
        if frames * height * width == count and frames == 1 and area > largest:
            best, largest = (at, height, width), area
        at += count
    if best is None and len(outline.grid) == 1 and (frames := outline.grid[0][0]) > 1:
        raise UnsupportedModel(
            f"video: where attention goes is mapped for images, not for {frames} groups of frames"
        )
    if best is None:
        raise UnsupportedModel("images: this family's rows form no grid to look at")
    return best
