"""A GGUF model of one file or several, and its rows of stored blocks as packing reads them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from musespark import _core
from musespark.errors import CorruptFile, InvalidRequest
from musespark.families.gguf import unpermute
from musespark.families.vision.mmproj import Remade
from musespark.untrusted import plain_value
from musespark.weights.gguf import GgufEntry, GgufFile

MAX_PARTS = 1_024
MAX_VECTOR = 1 << 16


class GgufCheckpoint:
    """All parts of a model: the first one's ``metadata``, and every tensor."""

    def __init__(self, files: list[GgufFile]):
        self.files = files
        self.metadata = files[0].metadata
        self.file_of: dict[str, GgufFile] = {}
        for file in files:
            for name in file.entries:
                if name in self.file_of:
                    raise CorruptFile(
                        f"{file.path}: tensor {name!r:.120} is also in {self.file_of[name].path}"
                    )
                self.file_of[name] = file

    def entry(self, name: str) -> GgufEntry:
        """Type, shape and place of a tensor."""
        return self.file_of[name].entries[name]

    def array(self, name: str) -> np.ndarray:
        """See :meth:`GgufFile.array`."""
        return self.file_of[name].array(name)

    def vector(self, name: str) -> np.ndarray:
        """A small tensor of one dimension as float32 [n]."""
        entry = self.entry(name)
        if len(entry.shape) != 1 or entry.shape[0] > MAX_VECTOR:
            raise CorruptFile(
                f"tensor {name!r:.120} has shape {list(entry.shape)}, one dimension of at most "
                f"{MAX_VECTOR} is needed"
            )
        return _core.decode(entry.dtype.lower(), self.array(name)[None])[0]

    def forget(self, name: str) -> None:
        """See :meth:`GgufFile.forget`."""
        self.file_of[name].forget(name)

    def close(self) -> None:
        """Closes every file."""
        for file in self.files:
            file.close()


_PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


Open = Callable[[Path], GgufFile]


def open_gguf(path: Path, part: Open = GgufFile) -> GgufCheckpoint:
    """Opens a GGUF file; of a split one give the first part, the others must lie beside it. `part`
    opens each."""
    files = [part(path)]
    try:
        files += _other_parts(files[0], part)
        return GgufCheckpoint(files)
    except BaseException:
        for file in files:
            file.close()
        raise


def _split_key(file: GgufFile, key: str) -> int:
    value = plain_value(file.metadata, key)
    if type(value) is not int:
        raise CorruptFile(f"{file.path}: {key} is {value!r:.80}, an integer is needed")
    return value


def _other_parts(first: GgufFile, part: Open) -> list[GgufFile]:
    if "split.count" not in first.metadata:
        return []
    count = _split_key(first, "split.count")
    if count == 1:
        return []
    number = _split_key(first, "split.no")
    if not 2 <= count <= MAX_PARTS or not 0 <= number < count:
        raise CorruptFile(
            f"{first.path}: split.no is {number} and split.count {count}; at most {MAX_PARTS} "
            "parts are read"
        )
    name = _PART_NAME.fullmatch(first.path.name)
    if name is None or (int(name["number"]), int(name["count"])) != (number + 1, count):
        raise CorruptFile(
            f"{first.path}: split.no is {number} and split.count {count}; the name must end in "
            f"-{number + 1:05d}-of-{count:05d}.gguf"
        )
    if number:
        raise InvalidRequest(f"{first.path} is part {number + 1} of {count}; give part 1")
    files: list[GgufFile] = []
    try:
        for i in range(1, count):
            path = first.path.with_name(f"{name['stem']}-{i + 1:05d}-of-{count:05d}.gguf")
            try:
                files.append(part(path))
            except FileNotFoundError:
                raise CorruptFile(
                    f"{first.path}: part {i + 1} of {count}, {path.name}, is missing"
                ) from None
            found = _split_key(files[-1], "split.no"), _split_key(files[-1], "split.count")
            if found != (i, count):
                raise CorruptFile(
                    f"{path}: split.no and split.count are {found[0]} and {found[1]}, "
                    f"{i} and {count} were expected"
                )
        total = sum(len(file.entries) for file in [first, *files])
        if _split_key(first, "split.tensors.count") != total:
            raise CorruptFile(
                f"{first.path}: split.tensors.count is {first.metadata['split.tensors.count']}, "
                f"the parts hold {total} tensors"
            )
    except BaseException:
        for file in files:
            file.close()
        raise
    return files


# ---- for packing -------------------------------------------------------------------------------


class _Reordered:
    """Rows of an array in another order; a slice of them is a copy of these rows alone."""

    def __init__(self, array: np.ndarray, order: np.ndarray):
        self._array = array
        self._order = order
        self.shape = array.shape
        self.itemsize = array.itemsize

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._array[self._order[rows]]


class GgufSource:
    """The tensors of `checkpoint` for weights/pack.py.

    ``interleaved``: stored tensor -> heads, where llama.cpp wove the halves of each head's rows
    (families/gguf.py: unpermute). ``remade``: tensors that are put together, as floats. Of others
    one of one dimension is uint8 [bytes], a matrix uint8 [rows, bytes of a row].
    """

    def __init__(
        self,
        checkpoint: GgufCheckpoint,
        interleaved: Mapping[str, int],
        remade: Mapping[str, Remade] | None = None,
    ):
        self._checkpoint = checkpoint
        self._interleaved = interleaved
        self._remade = remade or {}
        self.file_of = checkpoint.file_of

    @property
    def files(self) -> Sequence[GgufFile]:
        """The parts, first to last."""
        return self._checkpoint.files

    def entry(self, name: str) -> GgufEntry:
        """Type, shape and place of a tensor; F32 for what :meth:`array` decodes."""
        entry = self._checkpoint.entry(name)
        if name in self._remade:
            shape = self._remade[name].shape
            end = entry.begin + 4 * math.prod(shape)
            return dataclasses.replace(entry, dtype="F32", shape=shape, end=end)
        if name in self._interleaved and len(entry.shape) == 1:
            return dataclasses.replace(entry, dtype="F32")
        return entry

    def array(self, name: str) -> np.ndarray | _Reordered:
        """The stored rows in our order; only sliced (``[begin:end]``).

        A vector whose numbers change places is decoded first, for it may be made of blocks:
        float32 [n].
        """
        if name in self._remade:
            return self._made(self._remade[name])
        stored, entry = self._checkpoint.array(name), self._checkpoint.entry(name)
        heads = self._interleaved.get(name)
        if heads is None:
            return stored
        order = unpermute(entry.shape[0], heads)
        if len(entry.shape) > 1:
            return _Reordered(stored, order)
        return _core.decode(entry.dtype.lower(), stored[None])[0][order]

    def _made(self, remade: Remade) -> np.ndarray:
        parts = []
        for name in remade.names:
            entry, stored = self._checkpoint.entry(name), self._checkpoint.array(name)
            rows = _core.decode(entry.dtype.lower(), stored.reshape(-1, entry.row_bytes))
            parts.append(rows.reshape(entry.shape))
        whole = parts[0] if len(parts) == 1 else np.stack(parts, axis=2)
        return np.ascontiguousarray(whole.transpose(remade.axes) if remade.axes else whole)

    def forget(self, name: str) -> None:
        """See :meth:`GgufFile.forget`."""
        for one in self._remade[name].names if name in self._remade else (name,):
            self._checkpoint.forget(one)

    def close(self) -> None:
        """Closes every file."""
        self._checkpoint.close()
