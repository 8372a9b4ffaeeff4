"""Several requests at once: submitted together, drained in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from musespark.adapters import split_additions
from musespark.driver import CLOSED_MEANWHILE
from musespark.encoder import Encoder, fitting
from musespark.errors import Cancelled, Error, InvalidRequest, UnsupportedModel
from musespark.generation import Stream
from musespark.options import OPTION_NAMES, split_seeds, unknown_argument

if TYPE_CHECKING:
    from musespark.model import Model


def drain_in_order(streams: Sequence[Stream]) -> list[Any]:
    """The results of streams whose requests need nobody to go on."""
    return [stream.drain() for stream in streams]


def run_batch(
    begin: Callable[[Any, Mapping[str, Any]], Stream],
    closed: Callable[[], bool],
    items: Sequence[Any],
    options: Mapping[str, Any],
    drain: Callable[[Sequence[Any]], list[Any]] = drain_in_order,
) -> list[Any]:
    """The results of what ``begin`` begins with each item and its options, in one run of the
    engine."""
    if isinstance(items, (str, bytes)) or not isinstance(items, Sequence):
        raise InvalidRequest(f"a batch is a list, not {type(items).__name__}")
    if "stream" in options:
        raise unknown_argument("stream", OPTION_NAMES)
    seeds = split_seeds(options.get("seed"), len(items))
    additions = split_additions(options, len(items))
    streams: list[Stream] = []
    try:
        for item, seed, more in zip(items, seeds, additions, strict=True):
            streams.append(begin(item, {**options, "seed": seed, **more}))
        return drain(streams)
    except Error as error:
        if streams and closed() and not isinstance(error, Cancelled):
            raise Cancelled(CLOSED_MEANWHILE) from error
        raise
    finally:
        for stream in streams:
            stream.close()


def embedded(
    model: Model, texts: Any, truncate: bool, stopped: Callable[[], bool] = lambda: False
) -> np.ndarray:
    """See :meth:`musespark.Model.embed`; ``stopped``: asked after each batch of texts."""
    encoder = encoder_of(model)
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence):
        texts = [texts]
    rows = [model._requests.ids(text, f"texts[{i}]") for i, text in enumerate(texts)]
    return encoder.embed(fitting(rows, model.info.context, truncate), stopped)


def encoder_of(model: Model) -> Encoder:
    """What embeds texts; UnsupportedModel where nothing does."""
    if model._encoder is None:
        raise UnsupportedModel(f"{model.info.family} models write text; they give no embeddings")
    return model._encoder
