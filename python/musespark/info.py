"""What a loaded model says of itself."""

from __future__ import annotations

from math import ceil

from musespark.results import ModelInfo
from musespark.sizes import kv_bytes, kv_bytes_per_token
from musespark.weights import LoadedWeights, summary


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
