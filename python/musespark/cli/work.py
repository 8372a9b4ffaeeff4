"""What a model asks of the machine: bytes read for a token, operations of a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from musespark.families.spec import LayerSpec, ModelSpec
from musespark.families.tensors import canonical_shapes


def _shares(spec: ModelSpec) -> Iterator[tuple[str, float]]:
    """Each matrix and the part of it that one token goes through: that of the chosen experts; a
    looked-up row is nothing, unless the embedding is the head too."""
    for name, shape in canonical_shapes(spec).items():
        if len(shape) == 1 or name in ("positions", "token_types"):
            continue
        if name == "embed":
            yield name, float(spec.tied_head)
            continue
        layer = spec.layers[int(name.split(".")[1])] if name.startswith("layers.") else None
        chosen = layer is not None and ".experts." in name
        yield name, layer.mlp.experts_per_token / layer.mlp.experts if chosen else 1.0


def bytes_per_token(spec: ModelSpec, nbytes: Mapping[str, int]) -> int:
    """Bytes of weights that decoding one token of one row needs; ``nbytes``: canonical name ->
    stored bytes."""
    return round(sum(share * nbytes[name] for name, share in _shares(spec)))


def seen(position: int, window: int) -> int:
    """Positions that a query at ``position`` (from 0) sees, itself included."""
    return min(position + 1, window) if window else position + 1


def _attention(layer: LayerSpec, tokens: int) -> int:
    """Operations of scores and weighted values over all queries of a prompt."""
    a = layer.attention
    pairs = sum(seen(position, a.window) for position in range(tokens))
    return 4 * a.heads * a.head_dim * pairs


def prefill_operations(spec: ModelSpec, tokens: int) -> int:
    """Operations of a prompt, 2 for each multiply-add: linear layers, the head for the last token
    alone, and causal attention."""
    shapes = canonical_shapes(spec)
    linear = 0.0
    for name, share in _shares(spec):
        rows = 1 if name in ("embed", "head") else tokens
        linear += 2 * share * rows * shapes[name][0] * shapes[name][1]
    return round(linear) + sum(_attention(layer, tokens) for layer in spec.layers)


def step_operations(spec: ModelSpec, rows: int) -> int:
    """Operations of the linear layers when ``rows`` sequences decode a token each."""
    shapes = canonical_shapes(spec)
    one = sum(share * shapes[name][0] * shapes[name][1] for name, share in _shares(spec))
    return round(2 * rows * one)
