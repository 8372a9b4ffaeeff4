"""Canonical tensor names and shapes of a VisionSpec, and finding them in a checkpoint.

Canonical names: ``patch`` [hidden, patch_dim] and ``patch_bias``, ``class_token`` [hidden],
``positions`` [class_token + side * side, hidden], ``embed_norm``, ``layers.{i}.`` + the names of a
text layer, ``head.`` + norm, merged_norm, 0, 1, ... (and their biases), out_norm, and
``taps.{j}.`` + the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from musespark.errors import CorruptFile
from musespark.families.tensors import Part, Shape, TensorMap, layer_shapes, norm_shapes
from musespark.families.vision.spec import HeadSpec, VisionSpec


def _head_shapes(head: HeadSpec, spec: VisionSpec) -> dict[str, Shape]:
    width = spec.hidden * (1 if head.merge == "average" else spec.merge**2)
    shapes = norm_shapes("norm", head.norm, spec.hidden)
    shapes |= norm_shapes("merged_norm", head.merged_norm, width)
    for i, outputs in enumerate(head.widths):
        shapes[f"{i}"] = (outputs, width)
        if head.bias:
            shapes[f"{i}_bias"] = (outputs,)
        width = outputs
    return shapes | norm_shapes("out_norm", head.out_norm, width)


def canonical_shapes(spec: VisionSpec) -> dict[str, Shape]:
    """Every tensor the tower needs -> its shape, in the order of use."""
    shapes: dict[str, Shape] = {"patch": (spec.hidden, spec.patch_dim)}
    if spec.patch_bias:
        shapes["patch_bias"] = (spec.hidden,)
    if spec.class_token:
        shapes["class_token"] = (spec.hidden,)
    if spec.positions.side:
        shapes["positions"] = (spec.positions.side**2 + spec.class_token, spec.hidden)
    shapes |= norm_shapes("embed_norm", spec.embed_norm, spec.hidden)
    for i, layer in enumerate(spec.layers):
        for name, shape in layer_shapes(layer, spec.hidden).items():
            shapes[f"layers.{i}.{name}"] = shape
    heads = [("head.", spec.head), *((f"taps.{j}.", t.head) for j, t in enumerate(spec.taps))]
    for prefix, head in heads:
        shapes |= {prefix + name: shape for name, shape in _head_shapes(head, spec).items()}
    return shapes


def root_of(names: Iterable[str], landmark: str) -> str:
    """What stands before `landmark` in the one name of a checkpoint that ends with it."""
    found = sorted(name for name in names if re.search(rf"(^|\.){re.escape(landmark)}$", name))
    if len(found) != 1:
        raise CorruptFile(f"one tensor '*{landmark}' is needed, there are {found[:3]}")
    return found[0].removesuffix(landmark)


def match_vision(
    spec: VisionSpec,
    names: Iterable[str],
    source_of: Callable[[str], str | Part],
    roots: Iterable[str],
    ignorable: dict[str, re.Pattern[str]],
) -> TensorMap:
    """Finds every canonical tensor of `spec` among the checkpoint's `names`.

    `source_of` as in ``families.tensors.match_tensors``. Names below one of `roots` are the
    tower's: of them, one that is neither used nor matched whole by a pattern of `ignorable`
    (reason -> what follows the root) is ``CorruptFile``, as is a missing one. Other names are the
    text's.
    """
    left = set(names)
    sources: dict[str, Part] = {}
    for canonical, shape in canonical_shapes(spec).items():
        source = source_of(canonical)
        part = Part(source, shape) if isinstance(source, str) else source
        if part.name not in left:
            raise CorruptFile(f"tensor {part.name!r} of the vision tower is missing")
        sources[canonical] = part
    left -= {part.name for part in sources.values()}
    ignored: dict[str, list[str]] = {}
    for root in roots:
        for name in sorted(name for name in left if name.startswith(root)):
            reasons = [r for r, p in ignorable.items() if p.fullmatch(name.removeprefix(root))]
            if not reasons:
                raise CorruptFile(f"tensor {name!r} is not a part of this vision tower")
            ignored.setdefault(reasons[0], []).append(name)
    return TensorMap(sources, ignored)
