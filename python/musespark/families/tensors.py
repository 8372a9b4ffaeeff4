"""Canonical tensor names and shapes of a ModelSpec, and matching a checkpoint's names to them.

Canonical names: ``embed`` [vocab, hidden], ``head`` [vocab, hidden] (absent where tied),
``final_norm``, and for each layer i ``layers.{i}.`` + attn_norm, q, k, v, attn_gate, o, their
biases, q_norm, k_norm, sinks, post_attn_norm, mlp_norm, gate, up, down, their biases,
post_mlp_norm. Matrices are [outputs, inputs]; vectors [n].
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from musespark.errors import CorruptFile
from musespark.families.spec import LayerSpec, ModelSpec, NormSpec

Shape = tuple[int, ...]


@dataclass
class TensorMap:
    """Which checkpoint tensor becomes which canonical one, and which are knowingly left out."""

    sources: dict[str, str]
    ignored: dict[str, list[str]] = field(default_factory=dict)  # reason -> names
    spare_head: str | None = None  # a head beside a config that says tied: compared by the loader


def layer_shapes(layer: LayerSpec, hidden: int) -> dict[str, Shape]:
    """Name (without ``layers.{i}.``) -> shape of one layer's tensors."""
    a, mlp = layer.attention, layer.mlp
    q_width, kv_width = a.heads * a.head_dim, a.kv_heads * a.head_dim
    shapes: dict[str, Shape] = {}

    def norm(name: str, spec: NormSpec, width: int) -> None:
        if spec.weighted:
            shapes[name] = (width,)

    norm("attn_norm", layer.attn_norm, hidden)
    shapes["q"] = (q_width, hidden)
    shapes["k"] = shapes["v"] = (kv_width, hidden)
    if a.output_gate:
        shapes["attn_gate"] = (q_width, hidden)
    shapes["o"] = (hidden, q_width)
    if a.qkv_bias:
        shapes["q_bias"] = (q_width,)
        shapes["k_bias"] = shapes["v_bias"] = (kv_width,)
    if a.o_bias:
        shapes["o_bias"] = (hidden,)
    norm("q_norm", a.q_norm, a.head_dim)
    norm("k_norm", a.k_norm, a.head_dim)
    if a.sinks:
        shapes["sinks"] = (a.heads,)
    norm("post_attn_norm", layer.post_attn_norm, hidden)
    norm("mlp_norm", layer.mlp_norm, hidden)
    inner = ["gate", "up"] if mlp.gated else ["up"]
    for name in inner:
        shapes[name] = (mlp.intermediate, hidden)
    shapes["down"] = (hidden, mlp.intermediate)
    if mlp.bias:
        shapes |= {f"{name}_bias": (mlp.intermediate,) for name in inner}
        shapes["down_bias"] = (hidden,)
    norm("post_mlp_norm", layer.post_mlp_norm, hidden)
    return shapes


def canonical_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """Every tensor the model needs -> its shape, in the order of use."""
    shapes: dict[str, Shape] = {"embed": (spec.vocab, spec.hidden)}
    for i, layer in enumerate(spec.layers):
        for name, shape in layer_shapes(layer, spec.hidden).items():
            shapes[f"layers.{i}.{name}"] = shape
    if spec.final_norm.weighted:
        shapes["final_norm"] = (spec.hidden,)
    if not spec.tied_head:
        shapes["head"] = (spec.vocab, spec.hidden)
    return shapes


def match_tensors(
    spec: ModelSpec,
    names: Iterable[str],
    source_name: Callable[[str], str],
    ignorable: dict[str, re.Pattern[str]],
) -> TensorMap:
    """Finds every canonical tensor of `spec` among the checkpoint's `names`.

    `source_name` gives the checkpoint's name of a canonical one; `ignorable` is reason -> pattern
    of names that are left out knowingly. A tensor that is missing, and one left over, is
    ``CorruptFile`` naming it. With a tied head the matrix may be stored under either name.
    """
    left = set(names)
    sources: dict[str, str] = {}
    missing: list[str] = []
    head = source_name("head")
    for canonical in canonical_shapes(spec):
        name = source_name(canonical)
        if canonical == "embed" and spec.tied_head and name not in left and head in left:
            name = head
        if name in left:
            left.discard(name)
            sources[canonical] = name
        else:
            missing.append(name)
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise CorruptFile(f"tensor {missing[0]!r} is missing{more}")

    spare = head if spec.tied_head and head in left else None
    left.discard(head)
    ignored: dict[str, list[str]] = {}
    for reason, pattern in ignorable.items():
        found = sorted(name for name in left if pattern.fullmatch(name))
        if found:
            ignored[reason] = found
            left.difference_update(found)
    if left:
        more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
        raise CorruptFile(f"tensor {min(left)!r} is not a part of this model{more}")
    return TensorMap(sources, ignored, spare)
