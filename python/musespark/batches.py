"""Several requests at once: submitted together, drained in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from musespark.adapters import split_adapters
from musespark.driver import CLOSED_MEANWHILE
from musespark.errors import Cancelled, Error, InvalidRequest
from musespark.generation import Stream
from musespark.options import OPTION_NAMES, split_seeds, unknown_argument


def run_batch(
    prepare: Callable[[Any, Mapping[str, Any]], tuple],
    submit: Callable[..., tuple],
    closed: Callable[[], bool],
    items: Sequence[Any],
    options: Mapping[str, Any],
) -> list[Any]:
    """What ``submit`` of ``prepare`` of each item gives, in one run of the engine."""
    if isinstance(items, (str, bytes)) or not isinstance(items, Sequence):
        raise InvalidRequest(f"a batch is a list, not {type(items).__name__}")
    if "stream" in options:
        raise unknown_argument("stream", OPTION_NAMES)
    seeds = split_seeds(options.get("seed"), len(items))
    adapters = split_adapters(options.get("adapter"), len(items))
    streams: list[Stream] = []
    try:
        for item, seed, adapter in zip(items, seeds, adapters, strict=True):
            prepared = prepare(item, {**options, "seed": seed, "adapter": adapter})
            streams.append(Stream(*submit(*prepared)))
        return [stream.drain() for stream in streams]
    except Error as error:
        if streams and closed() and not isinstance(error, Cancelled):
            raise Cancelled(CLOSED_MEANWHILE) from error
        raise
    finally:
        for stream in streams:
            stream.close()


def text_rows(texts: Any, ids: Callable[[Any, str], np.ndarray]) -> list[np.ndarray]:
    """Token ids of one text or of each of a list."""
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence):
        texts = [texts]
    return [ids(text, f"texts[{i}]") for i, text in enumerate(texts)]
