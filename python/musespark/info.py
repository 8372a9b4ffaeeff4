"""What a loaded model says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from musespark.options import unused_defaults
from musespark.results import ModelInfo
from musespark.sizes import kv_bytes, kv_bytes_per_token
from musespark.weights import LoadedWeights, describe, summary


def info_of(
    weights: LoadedWeights, *, context: int, kv: str, threads: int, isa: str, notes: list[str]
) -> ModelInfo:
    """Of these weights, and what was chosen for them."""
    spec, info = weights.spec, weights.info
    none = spec.bidirectional  # an encoder keeps no keys and values
    return ModelInfo(
        source=str(info["source"]),
        family=info["family"],
        parameters=info["parameters"],
        weight_formats=dict(info["formats"]),
        weight_bytes=info["bytes"],
        vocab=spec.vocab,
        layers=len(spec.layers),
        hidden=spec.hidden,
        context=context,
        max_context=spec.max_context,
        kv="none" if none else summary(kv, spec),
        kv_formats="" if none else kv,
        kv_bytes_per_token=0 if none else ceil(kv_bytes_per_token(spec, kv)),
        kv_bytes_full_context=0 if none else kv_bytes(spec, kv, context),
        threads=threads,
        isa=isa,
        notes=(*info.get("notes", ()), *notes),
    )


def chosen_notes(
    weights: LoadedWeights,
    generation_config: Mapping[str, Any],
    *,
    kv: str,
    threads: int | None,
    count: int,
) -> list[str]:
    """What was chosen where load was not told (``kv``, ``threads``: as load was given them; `count`
    threads run), and what of the model's defaults is left out."""
    spec, info, notes = weights.spec, weights.info, []
    if kv == "auto" and not spec.bidirectional:
        notes.append(f"kv auto: {describe(info['kv'], spec)}")
    left = unused_defaults(generation_config)
    notes += [f"generation_config.json: {field} is not applied" for field in left]
    if info.get("quantize_auto"):
        notes.append(f"quantize auto: {info['quantize']}")
    if threads is None:
        notes.append(f"threads auto: {count}, every core this process may use")
    return notes
