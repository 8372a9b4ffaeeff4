"""A block drafter beside the model it drafts for: ``load(..., drafter=)``."""

from __future__ import annotations

import os

from musespark.errors import InvalidRequest
from musespark.results import human_bytes
from musespark.sizes import kv_bytes
from musespark.weights import LoadedWeights, open_model
from musespark.weights.progress import ProgressFn


def open_drafter(
    source: str | os.PathLike[str], progress: bool | ProgressFn | None = None
) -> LoadedWeights:
    """A drafter's folder, packed file or hub id, as of a model; packed as ``auto`` says (what is
    drafted decides no result). InvalidRequest where it holds no drafter."""
    drafter = open_model(source, progress=progress)
    if drafter.spec.block:
        return drafter
    family = drafter.info["family"]
    drafter.close()
    raise InvalidRequest(
        f"drafter: got {str(source)!r:.300}, a model ({family}), allowed is a block drafter"
    )


def give_drafter(weights: LoadedWeights, drafter: LoadedWeights) -> None:
    """Makes a drafter a part of the model that is loaded: of its engine, of the memory it takes, of
    what it says of itself, and closed with it. InvalidRequest for an embedding model; whether the
    two go together otherwise the core says."""
    if weights.spec.bidirectional:
        raise InvalidRequest(f"drafter: got one, {weights.info['source']} writes no text")
    info, spec = drafter.info, drafter.spec
    weights.drafter = drafter
    weights.beside = int(info["bytes"]) + kv_bytes(spec, "f32", weights.spec.max_context)
    size = f"{info['parameters'] / 1e6:.1f}M parameters, {human_bytes(info['bytes'])}"
    weights.info["notes"].append(f"drafter: {info['source']}, blocks of {spec.block}, {size}")
