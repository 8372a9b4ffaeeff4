"""A drafter beside the model it drafts for: ``load(..., drafter=)``."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from musespark.assets import tokenizer_of
from musespark.errors import InvalidRequest
from musespark.results import human_bytes
from musespark.sizes import kv_bytes
from musespark.text import Tokenizer
from musespark.weights import LoadedWeights, open_model
from musespark.weights.progress import ProgressFn

OWN = "own"
#: Spark Nano's, made by `musespark lab drafter` and `musespark convert`.
SHIPPED = Path(__file__).resolve().parent / "nano" / "packed" / "drafter-q8.safetensors"


def drafter_of(drafter: Any, source: Any) -> Any:
    """``drafter`` as :func:`open_drafter` takes it: for ``own`` the one that comes with the model,
    which Spark Nano's (``source`` None) does, and that of a folder which has a folder ``drafter``.
    InvalidRequest where none does."""
    if drafter != OWN:
        return drafter
    found = SHIPPED if source is None else Path(source) / "drafter"
    if not found.exists():
        raise InvalidRequest(
            f"drafter: got {OWN!r}, but none comes with {source}: Spark Nano has one, and a folder "
            "with a folder drafter in it"
        )
    return found


def open_drafter(
    source: str | os.PathLike[str], progress: bool | ProgressFn | None = None
) -> LoadedWeights:
    """A block drafter, or a model that drafts: folder, packed file or hub id, packed as ``auto``
    says (what is drafted decides no result). InvalidRequest for a model that writes no text."""
    try:
        drafter = open_model(source, progress=progress)
    except InvalidRequest as error:
        raise InvalidRequest(f"drafter: {error}") from None
    if drafter.spec.bidirectional:
        family = drafter.info["family"]
        drafter.close()
        raise InvalidRequest(
            f"drafter: got {str(source)!r:.300} ({family}), which writes no text, allowed is a "
            "block drafter or a model with the same tokens"
        )
    return drafter


def bytes_of_drafter(drafter: LoadedWeights, context: int) -> int:
    """What a drafter takes in memory, with texts of ``context`` tokens."""
    formats = "f32" if drafter.spec.block else "kv8"  # csrc/bindings/register_engine.cc
    return int(drafter.info["bytes"]) + kv_bytes(drafter.spec, formats, context)


def give_drafter(weights: LoadedWeights, drafter: LoadedWeights, context: int | None) -> None:
    """Makes a drafter a part of the model that is loaded: of its engine, of the memory it takes
    with texts of ``context`` tokens (None: of the model's most), of what it says of itself, and
    closed with it. InvalidRequest for an embedding model, and for a model that drafts whose tokens
    are others; whether the two go together otherwise the core says."""
    if weights.spec.bidirectional:
        raise InvalidRequest(f"drafter: got one, {weights.info['source']} writes no text")
    info, spec = drafter.info, drafter.spec
    if not spec.block:
        _check_tokens(weights, drafter)
    weights.drafter = drafter
    weights.beside = bytes_of_drafter(drafter, context or weights.spec.max_context)
    kind = f"blocks of {spec.block}" if spec.block else f"a {info['family']} model"
    size = f"{info['parameters'] / 1e6:.1f}M parameters, {human_bytes(info['bytes'])}"
    weights.info["notes"].append(f"drafter: {info['source']}, {kind}, {size}")


def _check_tokens(weights: LoadedWeights, drafter: LoadedWeights) -> None:
    """Ids that are text in both must be the same text: families pad their vocabularies, and give
    markers to ids that others keep in reserve, which costs a draft and no more."""
    ours, theirs = (tokenizer_of(one.assets, str(one.info["source"])) for one in (weights, drafter))
    apart = ours.special_ids | theirs.special_ids
    for token in range(min(ours.vocab_size, theirs.vocab_size)):
        text, other = _spelled(ours, token), _spelled(theirs, token)
        if token not in apart and None not in (text, other) and text != other:
            raise InvalidRequest(
                f"drafter: token {token} is {other!r:.60}, the model's is {text!r:.60}: a model "
                "that drafts has the same tokens"
            )


def _spelled(tokenizer: Tokenizer, token: int) -> str | None:
    """None for an id that the vocabulary does not have."""
    with contextlib.suppress(InvalidRequest):
        return tokenizer.token(token)
    return None
