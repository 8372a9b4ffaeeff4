"""Vision towers: patches in, rows of the text side out; the Python face of the C++ tower."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from musespark import _core
from musespark.errors import Cancelled, Error, InvalidRequest
from musespark.families.vision import VisionSpec
from musespark.families.vision.tensors import canonical_shapes

QUANTIZE = ("f32", "q8")
WIDE = "q8g1024h"  # 8 bits, a scale per 1024 columns: what products of many rows are fastest with
_ALIGNMENT = 64
# Bumped whenever a tower gives other bits for the same packed bytes, as the arithmetic version is
# for the kernels of the text side: embeddings on disk are of both.
TOWER_ARITHMETIC = 1


@dataclasses.dataclass(frozen=True)
class Features:
    """``rows`` float32 [tokens, width], tokens frame after frame in raster order; ``taps`` as many
    such arrays as the tower has taps (deep-stack features), for the text side's first layers."""

    rows: np.ndarray
    taps: tuple[np.ndarray, ...]


class VisionTower:
    """A vision tower on its own threads.

    ``spec``: a ``families.vision.VisionSpec``. ``tensors``: canonical name -> (format, rows, cols,
    buffer), as :func:`pack_tower` gives them.
    """

    def __init__(self, spec: VisionSpec, tensors: Mapping[str, tuple], *, threads: int) -> None:
        self._core: _core.VisionTower | None = _core.VisionTower(
            dataclasses.asdict(spec), dict(tensors), threads=threads
        )
        self.spec = spec
        self.width, self.taps = spec.head.widths[-1], len(spec.taps)
        self._one_call = threading.Lock()

    def tokens(self, grid: Sequence[int]) -> int:
        """Rows of the text side that a grid (frames, height, width) of patches becomes."""
        frames, height, width = grid
        return frames * (height // self.spec.merge) * (width // self.spec.merge)

    def encode(
        self,
        patches: np.ndarray,
        grids: Sequence[Sequence[int]],
        stopped: Callable[[], bool] = lambda: False,
    ) -> Features:
        """Features of images, tiles or clips, as one batch.

        `patches` float32 [n, patch_dim]: flattened patches, columns as the checkpoint's patch
        embedding has them, rows as the family's processor emits them, one grid after the other.
        `grids`: (frames, height, width) in patches for each image or tile; heights and widths are
        multiples of ``spec.merge``. A frame's rows are the same alone and in any batch.

        InvalidRequest where shapes do not fit; Cancelled where `stopped` was true between layers.
        """
        if not isinstance(patches, np.ndarray) or patches.dtype != np.float32:
            raise InvalidRequest(
                f"patches: a float32 array is needed, not {type(patches).__name__}"
            )
        with self._one_call:
            if self._core is None:
                raise Error("the model is closed")
            found = self._core.encode(np.ascontiguousarray(patches), list(grids), stopped=stopped)
        if found is None:
            raise Cancelled("the request whose images were being encoded was cancelled")
        return Features(found[0], tuple(found[1:]))

    def close(self) -> None:
        """Lets go of threads and tensors. Idempotent."""
        with self._one_call:
            self._core = None


def matrix_format(name: str, quantize: str) -> str:
    """The format of a canonical matrix: what makes rows of pixels, and the table of positions, stay
    in floats; they are small."""
    if quantize != "q8":
        return quantize
    return "f32" if name in ("patch", "positions") else WIDE


def pack_tower(
    spec: VisionSpec, read: Callable[[str], np.ndarray], quantize: str = "f32"
) -> dict[str, tuple[str, int, int, np.ndarray]]:
    """The tensors of a :class:`VisionTower` in `quantize` (``f32`` or ``q8``).

    `read`: canonical name -> float32 array of the shape that ``canonical_shapes(spec)`` says.
    """
    if quantize not in QUANTIZE:
        raise InvalidRequest(f"quantize is {quantize!r:.80}: one of {QUANTIZE} is needed")
    tensors: dict[str, tuple[str, int, int, np.ndarray]] = {}
    for name, shape in canonical_shapes(spec).items():
        array = np.ascontiguousarray(read(name), np.float32)
        if array.shape != shape:
            raise InvalidRequest(f"tensor {name!r} is {array.shape}; the tower needs {shape}")
        if len(shape) == 1:
            tensors[name] = ("f32", 1, shape[0], array)
            continue
        form = matrix_format(name, quantize)
        packed = _aligned(_core.packed_nbytes(form, *shape))
        _core.pack(form, array, out=packed, dtype="f32")
        tensors[name] = (form, *shape, packed)
    return tensors


def _aligned(nbytes: int) -> np.ndarray:
    room: Any = np.zeros(nbytes + _ALIGNMENT, np.uint8)
    skip = -room.ctypes.data % _ALIGNMENT
    return room[skip : skip + nbytes]
