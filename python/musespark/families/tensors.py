"""Canonical tensor names and shapes of a ModelSpec, and matching a checkpoint's names to them.

Canonical names: ``embed`` [vocab, hidden], ``head`` [vocab, hidden] (absent where tied),
``final_norm``, and for each layer i ``layers.{i}.`` + attn_norm, q, k, v, attn_gate, o, their
biases, q_norm, k_norm, sinks, out_norm, post_attn_norm, attn_residual_gate, mlp_norm, gate, up,
down, their biases, post_mlp_norm, mlp_residual_gate. A layer of experts has, for each expert e,
``experts.{e}.`` + gate, up, down and biases in place of the dense ones, and router, router_bias,
router_correction, expert_in, expert_in_norm, expert_out_norm, expert_out, shared_gate, shared_up,
shared_down, shared_router. Encoders have ``positions``, ``token_types`` and ``embed_norm`` beside
``embed``; drafters ``context`` [hidden, target layers * hidden] and ``context_norm`` in its place.
A norm with a bias has ``<norm>_bias``. Matrices are [outputs, inputs]; vectors [n].
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from musespark.errors import CorruptFile
from musespark.families.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec

Shape = tuple[int, ...]
NOT_RUN = "vision tower: left out"  # why its tensors are left out of the text's


@dataclass(frozen=True)
class Part:
    """Where a canonical tensor lies in a checkpoint: a whole stored tensor, or a part of one.

    Taken in this order: stored tensor `name`, which must have shape `stored`; of a stack of experts
    [experts, ...] number `expert`; turned where `transposed` (stored as [inputs, outputs]); of its
    rows `count` from `start` on, every `step`-th (all of them where `count` is 0). A convolution's
    weight [outputs, ...] becomes a matrix: `flat` makes one of all axes but the first.
    """

    name: str
    stored: Shape
    expert: int | None = None
    transposed: bool = False
    start: int = 0
    count: int = 0
    step: int = 1
    flat: bool = False

    def of(self, array: np.ndarray) -> np.ndarray:
        """The part, as a view of the stored tensor."""
        one = array if self.expert is None else array[self.expert]
        one = one.T if self.transposed else one
        one = one.reshape(len(one), -1) if self.flat else one
        end = self.start + self.step * self.count
        return one[self.start : end : self.step] if self.count else one


@dataclass
class TensorMap:
    """Which parts of the checkpoint become the canonical tensors, and what is left out."""

    sources: dict[str, Part]
    ignored: dict[str, list[str]] = field(default_factory=dict)  # reason -> names
    spare_head: str | None = None  # a head beside a config that says tied: compared by the loader


class _EveryName(str):
    """See :data:`EVERY_NAME`."""


# In place of a checkpoint's names: one that has whatever the model needs. The TensorMap then says
# how a checkpoint of the family is laid out, which is what names in an adapter refer to.
EVERY_NAME = _EveryName("every name")


def norm_shapes(name: str, spec: NormSpec, width: int) -> dict[str, Shape]:
    """The tensors of a norm of `width` columns: its weight and its bias, where it has them."""
    names = [name] * spec.weighted + [f"{name}_bias"] * spec.bias
    return dict.fromkeys(names, (width,))


def _attention_shapes(a: AttentionSpec, hidden: int) -> dict[str, Shape]:
    q_width, kv_width = a.heads * a.head_dim, a.kv_heads * a.head_dim
    shapes: dict[str, Shape] = {"q": (q_width, hidden)}
    shapes["k"] = shapes["v"] = (kv_width, hidden)
    if a.output_gate:
        shapes["attn_gate"] = (q_width, hidden)
    shapes["o"] = (hidden, q_width)
    if a.qkv_bias:
        shapes["q_bias"] = (q_width,)
        shapes["k_bias"] = shapes["v_bias"] = (kv_width,)
    if a.o_bias:
        shapes["o_bias"] = (hidden,)
    shapes |= norm_shapes("q_norm", a.q_norm, q_width if a.joint_qk_norm else a.head_dim)
    shapes |= norm_shapes("k_norm", a.k_norm, kv_width if a.joint_qk_norm else a.head_dim)
    if a.sinks:
        shapes["sinks"] = (a.heads,)
    return shapes | norm_shapes("out_norm", a.out_norm, a.head_dim)


def _dense_shapes(gated: bool, bias: bool, width: int, hidden: int) -> dict[str, Shape]:
    inner = ["gate", "up"] if gated else ["up"]
    shapes: dict[str, Shape] = dict.fromkeys(inner, (width, hidden))
    shapes["down"] = (hidden, width)
    if bias:
        shapes |= {f"{name}_bias": (width,) for name in inner}
        shapes["down_bias"] = (hidden,)
    return shapes


def _mlp_shapes(mlp: MlpSpec, hidden: int) -> dict[str, Shape]:
    if mlp.kind == "dense":
        return _dense_shapes(mlp.gated, mlp.bias, mlp.intermediate, hidden)
    shapes: dict[str, Shape] = {"router": (mlp.experts, hidden)}
    if mlp.router_bias:
        shapes["router_bias"] = (mlp.experts,)
    if mlp.router_correction:
        shapes["router_correction"] = (mlp.experts,)
    width = mlp.expert_width or hidden
    if mlp.expert_width:
        shapes["expert_in"] = (width, hidden)
        shapes |= norm_shapes("expert_in_norm", mlp.expert_in_norm, width)
    expert = _dense_shapes(mlp.gated, mlp.bias, mlp.intermediate, width)
    for e in range(mlp.experts):
        shapes |= {f"experts.{e}.{name}": shape for name, shape in expert.items()}
    shapes |= norm_shapes("expert_out_norm", mlp.expert_out_norm, width)
    if mlp.expert_width:
        shapes["expert_out"] = (hidden, width)
    if mlp.shared_intermediate:
        shared = _dense_shapes(mlp.gated, mlp.bias, mlp.shared_intermediate, hidden)
        shapes |= {f"shared_{name}": shape for name, shape in shared.items()}
    if mlp.shared_router:
        shapes["shared_router"] = (hidden,)
    return shapes


def layer_shapes(layer: LayerSpec, hidden: int) -> dict[str, Shape]:
    """Name (without ``layers.{i}.``) -> shape of one layer's tensors."""
    gate: dict[str, Shape] = {"residual_gate": (hidden,)} if layer.residual_gates else {}
    return (
        norm_shapes("attn_norm", layer.attn_norm, hidden)
        | _attention_shapes(layer.attention, hidden)
        | norm_shapes("post_attn_norm", layer.post_attn_norm, hidden)
        | {f"attn_{name}": shape for name, shape in gate.items()}
        | norm_shapes("mlp_norm", layer.mlp_norm, hidden)
        | _mlp_shapes(layer.mlp, hidden)
        | norm_shapes("post_mlp_norm", layer.post_mlp_norm, hidden)
        | {f"mlp_{name}": shape for name, shape in gate.items()}
    )


def canonical_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """Every tensor the model needs -> its shape, in the order of use."""
    shapes: dict[str, Shape] = {}
    if spec.block:
        shapes["context"] = (spec.hidden, len(spec.target_layers) * spec.hidden)
        shapes |= norm_shapes("context_norm", spec.context_norm, spec.hidden)
    else:
        shapes["embed"] = (spec.vocab, spec.hidden)
    if spec.positions:
        shapes["positions"] = (spec.positions, spec.hidden)
    if spec.token_types:
        shapes["token_types"] = (spec.token_types, spec.hidden)
    shapes |= norm_shapes("embed_norm", spec.embed_norm, spec.hidden)
    for i, layer in enumerate(spec.layers):
        for name, shape in layer_shapes(layer, spec.hidden).items():
            shapes[f"layers.{i}.{name}"] = shape
    shapes |= norm_shapes("final_norm", spec.final_norm, spec.hidden)
    if not spec.tied_head and spec.writes:
        shapes["head"] = (spec.vocab, spec.hidden)
    return shapes


def match_tensors(
    spec: ModelSpec,
    names: Iterable[str],
    source_of: Callable[[str], str | Part],
    ignorable: dict[str, re.Pattern[str]],
) -> TensorMap:
    """Finds every canonical tensor of `spec` among the checkpoint's `names`.

    `source_of` gives the checkpoint's name of a canonical one, or the :class:`Part` that it is;
    `ignorable` is reason -> pattern of names that are left out knowingly. A tensor that is missing,
    and one left over, is ``CorruptFile`` naming it. With a tied head the matrix may be stored under
    either name.
    """
    left = set(names)
    every = any(name is EVERY_NAME for name in left)
    used: set[str] = set()
    sources: dict[str, Part] = {}
    missing: list[str] = []
    head = "" if not spec.writes else _part(source_of("head"), ()).name
    for canonical, shape in canonical_shapes(spec).items():
        part = _part(source_of(canonical), shape)
        if canonical == "embed" and spec.tied_head and part.name not in left and head in left:
            part = Part(head, shape)
        if part.name in left or every:
            used.add(part.name)
            sources[canonical] = part
        else:
            missing.append(part.name)
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise CorruptFile(f"tensor {missing[0]!r} is missing{more}")

    left -= {*used, EVERY_NAME}
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


def vision_tower(*parts: str) -> dict[str, re.Pattern[str]]:
    """For :func:`match_tensors`: the tensors of a tower that is not run, stored under `parts`."""
    return {NOT_RUN: re.compile(rf"(model\.)?({'|'.join(parts)})\..+")}


def row_parts(
    spec: ModelSpec, prefix: str, fused: Mapping[str, tuple[str, ...]]
) -> dict[str, Part]:
    """Canonical matrices that are stored one below the other in one -> their rows of it.

    `fused` is stored name -> parts of a layer, first rows first; `prefix` holds the layer's number,
    as ``model.layers.{}.``.
    """
    shapes = canonical_shapes(spec)
    parts: dict[str, Part] = {}
    for layer in range(len(spec.layers)):
        for stored, names in fused.items():
            rows = [shapes[f"layers.{layer}.{name}"][0] for name in names]
            columns = shapes[f"layers.{layer}.{names[0]}"][1]
            for i, name in enumerate(names):
                parts[f"layers.{layer}.{name}"] = Part(
                    prefix.format(layer) + stored,
                    (sum(rows), columns),
                    start=sum(rows[:i]),
                    count=rows[i],
                )
    return parts


def _part(source: str | Part, shape: Shape) -> Part:
    return Part(source, shape) if isinstance(source, str) else source
