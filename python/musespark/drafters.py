"""A drafter beside the model it drafts for: ``load(..., drafter=)``."""

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
    """A block drafter, or a model that drafts: folder, packed file or hub id, packed as ``auto``
    says (what is drafted decides no result). InvalidRequest for a model that writes no text."""
    drafter = open_model(source, progress=progress)
    if drafter.spec.bidirectional:
        family = drafter.info["family"]
        drafter.close()
        raise InvalidRequest(
            f"drafter: got {str(source)!r:.300} ({family}), which writes no text, allowed is a "
            "block drafter or a model with the same tokens"
        )
    return drafter


def give_drafter(weights: LoadedWeights, drafter: LoadedWeights, context: int | None) -> None:
    """Makes a drafter a part of the model that is loaded: of its engine, of the memory it takes
    with texts of ``context`` tokens (None: of the model's most), of what it says of itself, and
    closed with it. InvalidRequest for an embedding model; whether the
    two go together otherwise the core says."""
    if weights.spec.bidirectional:
        raise InvalidRequest(f"drafter: got one, {weights.info['source']} writes no text")
    info, spec = drafter.info, drafter.spec
    formats = "f32" if spec.block else "kv8"  # csrc/bindings/register_engine.cc
    weights.drafter = drafter
    tokens = weights.spec.max_context if context is None else context
    weights.beside = int(info["bytes"]) + kv_bytes(spec, formats, tokens)
    kind = f"blocks of {spec.block}" if spec.block else f"a {info['family']} model"
    size = f"{info['parameters'] / 1e6:.1f}M parameters, {human_bytes(info['bytes'])}"
    weights.info["notes"].append(f"drafter: {info['source']}, {kind}, {size}")
