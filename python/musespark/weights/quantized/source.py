"""A quantized checkpoint as packing reads one: each matrix under its name in floats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from musespark.errors import CorruptFile, UnsupportedModel
from musespark.weights.quantized.config import KEYS, Collection
from musespark.weights.quantized.floating import Experts
from musespark.weights.quantized.linear import Rows, Stored
from musespark.weights.safetensors import Checkpoint, SafetensorsFile, TensorEntry

_ZERO_BIASES = "biases that hold only zeros"


_MARKS = (".qweight", ".weight_packed", ".weight_scale_inv", ".SCB", ".weight.absmax")


def refuse_unexplained(checkpoint: Checkpoint) -> None:
    """UnsupportedModel for a part of a quantized matrix where no config says how to read it."""
    for name, file in checkpoint.file_of.items():
        if name.endswith(_MARKS):
            raise UnsupportedModel(
                f"{file.path}: tensor {name!r:.120} belongs to a quantized matrix, but "
                f"config.json has no {KEYS[0]}"
            )


@dataclass(frozen=True)
class QuantizedEntry:
    """A matrix made of parts: ``dtype`` is its kind; ``begin`` is 0, ``end`` the bytes of all."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class QuantizedSource:
    """The tensors of a checkpoint, of which `collection` are quantized matrices.

    ``ignored`` is reason -> names of tensors that are left out.
    """

    def __init__(self, stored: Stored, collection: Collection):
        self._stored = stored
        self._checkpoint = checkpoint = stored.checkpoint
        self._matrices = collection.matrices
        self.ignored = dict(collection.ignored)
        taken = {part for matrix in self._matrices.values() for part in matrix.parts}
        taken.update(name for names in self.ignored.values() for name in names)
        self.file_of: dict[str, SafetensorsFile] = {
            name: file for name, file in checkpoint.file_of.items() if name not in taken
        }
        for name, matrix in self._matrices.items():
            if name in self.file_of:
                raise CorruptFile(f"{self.file_of[name].path}: tensor {name!r:.120} is there twice")
            self.file_of[name] = checkpoint.file_of[matrix.parts[0]]

    @property
    def files(self) -> Sequence[SafetensorsFile]:
        """The files of the checkpoint."""
        return self._checkpoint.files

    def entry(self, name: str) -> TensorEntry | QuantizedEntry:
        """Type, shape and place of a tensor."""
        matrix = self._matrices.get(name)
        if matrix is None:
            return self._checkpoint.entry(name)
        return QuantizedEntry(name, matrix.kind, matrix.shape, 0, matrix.nbytes)

    def array(self, name: str) -> np.ndarray | Rows | Experts:
        """A view of a tensor; the rows of a quantized one, decoded on demand."""
        matrix = self._matrices.get(name)
        if matrix is None:
            return self._checkpoint.array(name)
        return matrix if isinstance(matrix, Experts) else Rows(matrix)

    def drop_zero_biases(self) -> bool:
        """Leaves out biases of quantized matrices that are zeros; whether there were any.

        Older versions of AutoGPTQ wrote one for every matrix, whether its model has it or not.
        """
        found = []
        for name in self._matrices:
            bias = name.removesuffix(".weight") + ".bias"
            readable = self._stored.readable
            if bias in self.file_of and not (readable and self._checkpoint.array(bias).any()):
                found.append(bias)
                del self.file_of[bias]
        if found:
            self.ignored[_ZERO_BIASES] = found
        return bool(found)

    def forget(self, name: str) -> None:
        """See :meth:`SafetensorsFile.forget`."""
        matrix = self._matrices.get(name)
        for part in (name,) if matrix is None else matrix.parts:
            self._checkpoint.forget(part)

    def close(self) -> None:
        """Closes every file."""
        self._checkpoint.close()
