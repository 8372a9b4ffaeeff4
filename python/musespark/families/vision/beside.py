"""A tower among a model's packed tensors: under which names, and as what a file's header has it."""

from __future__ import annotations

from typing import Any

from musespark.errors import CorruptFile
from musespark.families import spec as text
from musespark.families import tensors
from musespark.families.spec import ModelSpec
from musespark.families.tensors import Shape
from musespark.families.vision.spec import (
    MERGES,
    PATCH_ORDERS,
    POSITION_KINDS,
    HeadSpec,
    PositionSpec,
    VisionSpec,
)
from musespark.families.vision.tensors import canonical_shapes

PREFIX = "vision."
_MOST = 1 << 24  # of any one dimension
_ENUMS = text.ENUMS | {
    (PositionSpec, "kind"): POSITION_KINDS,
    (HeadSpec, "merge"): MERGES,
    (HeadSpec, "activation"): text.ACTIVATIONS,
    (VisionSpec, "order"): PATCH_ORDERS,
}


def packed_shapes(spec: ModelSpec, vision: VisionSpec | None) -> dict[str, Shape]:
    """Every tensor of a packed model -> its shape: the text's, and the tower's under `PREFIX`."""
    shapes = tensors.canonical_shapes(spec)
    if vision is not None:
        own = canonical_shapes(vision)
        shapes |= {PREFIX + name: shape for name, shape in own.items()}
    return shapes


def vision_from_dict(values: Any, where: str) -> VisionSpec | None:
    """The inverse of :func:`families.spec.spec_to_file` for a VisionSpec that was read from a file
    (None: there is none): every field with its type and nothing else, and tensors of sizes that can
    be, else ``CorruptFile``. What is run of them the core says."""
    if values is None:
        return None
    spec = text.build(VisionSpec, values, f"{where}: vision", _ENUMS)
    for name, shape in canonical_shapes(spec).items():
        if not all(1 <= size <= _MOST for size in shape):
            raise CorruptFile(f"{where}: vision: tensor {name!r} of {list(shape)}")
    if not spec.merge >= 1 or not spec.head.widths:
        raise CorruptFile(f"{where}: vision: merge is {spec.merge}, widths {spec.head.widths}")
    return spec
