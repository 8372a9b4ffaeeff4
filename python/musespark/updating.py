"""Other weights for a model that runs: :meth:`musespark.Model.update_weights`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from musespark.driver import CLOSED_MEANWHILE
from musespark.engine import Engine
from musespark.errors import Cancelled, InvalidRequest, UnsupportedModel
from musespark.prefix_store import prefixes_in
from musespark.thinking.thresholds import key_of, lookup
from musespark.vision.eyes import Eyes
from musespark.weights import LoadedWeights, updated

if TYPE_CHECKING:
    from musespark.model import Model


@dataclass(frozen=True)
class Again:
    """What a model was started with, to start it with other weights: where they are placed, its
    eyes, its engine; the folder of its prompts, the formats of keys and values, its threads."""

    place: Callable[[LoadedWeights], None]
    see: Callable[[LoadedWeights, int], Eyes | None]
    start: Callable[..., Engine]
    prefix_folder: tuple[Path, int] | None
    kv: str
    threads: int


def update_weights(model: Model, tensors: Mapping[str, Any]) -> None:
    """A second engine is started beside the first, which then ends: an error leaves all as it was.

    Everything that remembers (prefixes, embeddings of images, prompts on disk) begins anew under
    the name of the new weights; what sessions kept is the first engine's, and taken by no other.
    """
    if not isinstance(tensors, Mapping) or not all(isinstance(name, str) for name in tensors):
        got = type(tensors).__name__
        raise InvalidRequest(f"tensors: got {got}, allowed is a dict of arrays by name")
    with model._updating:
        _update(model, tensors)


def _update(model: Model, tensors: Mapping[str, Any]) -> None:
    again = model._again
    if model._encoder is not None:
        raise UnsupportedModel("update_weights: embedding models are loaded again instead")
    model._adapters.must_be_none("update_weights")
    model._engine.stats()  # says so where the model is closed
    weights = updated(model._weights, tensors)
    again.place(weights)
    eyes = again.see(weights, again.threads)
    try:
        engine = again.start(weights.spec, weights.tensors)
    except BaseException:
        if eyes is not None:
            eyes.close()
        raise
    try:
        given = (engine, weights, again.prefix_folder, again.kv)
        prefixes = prefixes_in(*given, model._adapters.checksum_of)
        if model._engine.closed:  # meanwhile
            raise Cancelled(CLOSED_MEANWHILE)
    except BaseException:
        engine.close()
        if eyes is not None:
            eyes.close()
        raise
    old = model._prefixes, model._engine, model._eyes
    model._weights, model._engine, model._eyes = weights, engine, eyes
    model._requests.eyes, model._prefixes = eyes, prefixes
    model._requests.calibrated = lookup(functools.partial(key_of, weights, again.kv))
    model._adapters.move(engine)
    note = f"weights replaced by update_weights: {weights.updated}"
    kept = tuple(n for n in model._info.notes if not n.startswith("weights replaced by"))
    model._info = replace(model._info, notes=(*kept, note))
    old[0].close()
    if old[2] is not None:
        old[2].stop()
    old[1].close()
    if old[2] is not None:
        old[2].close()
