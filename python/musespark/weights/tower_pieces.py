"""A vision tower run a piece at a time: embedding, layers, heads, each as a tower of its own.

The core runs whole towers. One layer between an identity for its patches and an identity for its
head is such a tower, and gives that layer's bits: a product with 1 and a sum of zeros are exact
(but where patches come in blocks or windows: attention adds up keys in the order of rows). So a
layer can be run on what the layer before gave, in whatever format, and no more than one layer is in
memory. Everything between pieces is in raster order, and a class token is the first row of its
frame (which is then a frame of one row of patches: attention over all rows has no geometry).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from math import isqrt
from typing import Any

import numpy as np

from musespark import _core
from musespark.errors import UnsupportedModel
from musespark.families.spec import AttentionSpec, LayerSpec, MlpSpec
from musespark.families.tensors import layer_shapes
from musespark.families.vision import VisionSpec
from musespark.families.vision.spec import AxialRopeSpec, HeadSpec, PositionSpec
from musespark.families.vision.tensors import canonical_shapes

Tensor = tuple[str, int, int, np.ndarray]
# Canonical name, and a form (weights/tower_choice.py) -> what the core takes.
Read = Callable[[str, str], Tensor]
_ALIGNMENT = 64
STORED = "stored"
# Adds nothing; windows so that what is not used costs little.
_NOTHING = LayerSpec(
    AttentionSpec(heads=1, kv_heads=1, head_dim=16, query_scale=0.25, window=8),
    MlpSpec(activation="gelu", gated=False, intermediate=16),
)


@dataclasses.dataclass(frozen=True)
class View:
    """A frame as a family's processor gives it: ``patches`` float32 [height * width, patch_dim], in
    the order that the tower takes."""

    patches: np.ndarray
    height: int
    width: int


def groups_of(spec: VisionSpec) -> list[str]:
    """What gets one kind of format: layers, taps and the head, as their tensors' names begin."""
    layers = [f"layers.{i}" for i in range(len(spec.layers))]
    return [*layers, *(f"taps.{j}" for j in range(len(spec.taps))), "head"]


def group_of(name: str) -> str | None:
    """The group of a canonical tensor; None for what makes rows of pixels."""
    first, _, rest = name.partition(".")
    if first == "head":
        return first
    return f"{first}.{rest.partition('.')[0]}" if first in ("layers", "taps") else None


def aligned(nbytes: int) -> np.ndarray:
    """Bytes at an address that the kernels take."""
    room: Any = np.zeros(nbytes + _ALIGNMENT, np.uint8)
    skip = -room.ctypes.data % _ALIGNMENT
    return room[skip : skip + nbytes]


def _packed(matrix: np.ndarray) -> Tensor:
    out = aligned(_core.packed_nbytes("f32", *matrix.shape))
    _core.pack("f32", np.ascontiguousarray(matrix, np.float32), out=out, dtype="f32")
    return ("f32", *matrix.shape, out)


class Pieces:
    """The pieces of a tower, over the views' middles: at most `most` patches of each.

    UnsupportedModel where the core does not run the tower, or pieces are not the whole (a class
    token beside rotary places or windows, which the core refuses too).
    """

    def __init__(self, spec: VisionSpec, read: Read, threads: int, *, most: int):
        if spec.class_token and (spec.rope.on or any(la.attention.window for la in spec.layers)):
            raise UnsupportedModel("vision spec: a class token beside places is not supported")
        self.spec, self._read, self._threads = spec, read, threads
        self._side = max(1, isqrt(most) // spec.merge) * spec.merge
        self._one = _packed(np.eye(spec.hidden, dtype=np.float32))
        self._nothing: dict[str, Tensor] = {}
        for name, shape in layer_shapes(_NOTHING, spec.hidden).items():
            self._nothing[f"layers.0.{name}"] = _packed(np.zeros(shape, np.float32))
        self.grids: list[tuple[int, int, int]] = []  # of the middles

    # ---- frames --------------------------------------------------------------------------------

    def embed(self, views: Sequence[View]) -> np.ndarray:
        """Rows of the first layer [n, hidden], of all views one after the other."""
        rows = []
        spec = dataclasses.replace(
            self._of(_NOTHING, HeadSpec(widths=(self.spec.hidden,))),
            patch_dim=self.spec.patch_dim,
            patch_bias=self.spec.patch_bias,
            positions=self.spec.positions,
            embed_norm=self.spec.embed_norm,
        )
        tensors = self._embedding() | self._nothing | {"head.0": self._one}
        for view in views:
            grid = (1, view.height, view.width)
            found = self._run(spec, tensors, self._raster(view), [grid])
            rows += [*self._class_row(), self._middle(found, view)]
        return np.concatenate(rows)

    def _embedding(self) -> dict[str, Tensor]:
        tensors = self._tensors("", lambda name: group_of(name) is None, STORED)
        if self.spec.class_token:
            del tensors["class_token"]
            tensors["positions"] = _packed(self._table()[1:])
        return tensors

    def _table(self) -> np.ndarray:
        form, rows, cols, data = self._read("positions", STORED)
        return _core.unpack(form, data, rows, cols)

    def _class_row(self) -> list[np.ndarray]:
        if not self.spec.class_token:
            return []
        row = self._read("class_token", STORED)[3] + self._table()[0]
        spec = self._of(_NOTHING, HeadSpec(widths=(self.spec.hidden,)))
        spec = dataclasses.replace(spec, embed_norm=self.spec.embed_norm)
        tensors = self._tensors("", lambda name: name.startswith("embed_norm"), STORED)
        tensors |= {"patch": self._one, "head.0": self._one} | self._nothing
        return [self._run(spec, tensors, row[None], [(1, 1, 1)])]

    def _raster(self, view: View) -> np.ndarray:
        if self.spec.order == "raster":
            return view.patches
        m = self.spec.merge
        blocks = view.patches.reshape(view.height // m, view.width // m, m, m, -1)
        return np.ascontiguousarray(blocks.swapaxes(1, 2)).reshape(view.patches.shape)

    def _middle(self, rows: np.ndarray, view: View) -> np.ndarray:
        m = self.spec.merge
        height, width = min(view.height, self._side), min(view.width, self._side)
        top = (view.height - height) // 2 // m * m
        left = (view.width - width) // 2 // m * m
        self.grids.append((1, height, width))
        frame = rows.reshape(view.height, view.width, -1)
        return frame[top : top + height, left : left + width].reshape(height * width, -1)

    # ---- layers and heads ----------------------------------------------------------------------

    def layer(self, index: int, x: np.ndarray, form: str) -> np.ndarray:
        """What a layer makes of the rows `x`."""
        prefix = f"layers.{index}."
        tensors = self._tensors(prefix, lambda name: name.startswith(prefix), form)
        own = {f"layers.0.{name}": one for name, one in tensors.items()}
        spec = self._of(self.spec.layers[index], HeadSpec(widths=(self.spec.hidden,)))
        grids = self.grids
        if self.spec.class_token:
            grids = [(1, 1, 1 + height * width) for _, height, width in grids]
        return self._run(spec, own | {"patch": self._one, "head.0": self._one}, x, grids)

    def head(self, group: str, x: np.ndarray, form: str) -> np.ndarray:
        """Rows of the text side that ``head`` or ``taps.j`` makes of the rows `x`."""
        head = self.spec.head
        if group != "head":
            head = self.spec.taps[int(group.removeprefix("taps."))].head
        tensors = self._tensors(group + ".", lambda name: group_of(name) == group, form)
        own = {f"head.{name}": one for name, one in tensors.items()}
        spec = dataclasses.replace(self._of(_NOTHING, head), merge=self.spec.merge)
        if self.spec.class_token:
            x = np.concatenate([frame[1:] for frame in self.frames(x)])
        return self._run(spec, own | self._nothing | {"patch": self._one}, x, self.grids)

    def frames(self, x: np.ndarray) -> list[np.ndarray]:
        """The rows of each view, of rows of patches or of tokens."""
        counts = np.array([height * width for _, height, width in self.grids])
        if self.spec.class_token and len(x) == counts.sum() + len(counts):
            counts += 1
        elif len(x) != counts.sum():
            counts //= self.spec.merge**2
        return np.split(x, np.cumsum(counts)[:-1])

    def _of(self, layer: LayerSpec, head: HeadSpec) -> VisionSpec:
        """A tower of this layer and head on rows that are there already."""
        rope = self.spec.rope if layer.attention.rope >= 0 else AxialRopeSpec()
        return VisionSpec(
            patch_dim=self.spec.hidden,
            hidden=self.spec.hidden,
            positions=PositionSpec(),
            rope=rope,
            layers=[layer],
            head=head,
        )

    def _tensors(self, prefix: str, wanted: Callable[[str], bool], form: str) -> dict[str, Tensor]:
        names = [name for name in canonical_shapes(self.spec) if wanted(name)]
        return {name.removeprefix(prefix): self._read(name, form) for name in names}

    def _run(
        self,
        spec: VisionSpec,
        tensors: dict[str, Tensor],
        rows: np.ndarray,
        grids: Sequence[tuple[int, int, int]],
    ) -> np.ndarray:
        core = _core.VisionTower(dataclasses.asdict(spec), tensors, threads=self._threads)
        found = core.encode(np.ascontiguousarray(rows, np.float32), list(grids), stopped=bool)
        return found[0]
