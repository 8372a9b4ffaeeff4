"""One quantized matrix of a checkpoint, whatever stores it: rows of it on demand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np

from musespark import _core
from musespark.errors import CorruptFile
from musespark.weights.quantized.numbers import are_halves, floats
from musespark.weights.safetensors import Checkpoint

_BLOCK = 32  # columns that share a scale in the formats that hold foreign codes
_SCAN = 1 << 22  # scales looked at at a time
_PART = 64  # rows decoded at a time


@dataclass(frozen=True)
class Kept:
    """The packed format that keeps a matrix best, and whether it holds it to the bit."""

    form: str
    exact: bool


class Stored:
    """The tensors of a checkpoint, taken with their type and shape checked.

    Not `readable` where only the headers are here: then what the data decide is guessed.
    """

    def __init__(self, checkpoint: Checkpoint, readable: bool = True):
        self.checkpoint = checkpoint
        self.readable = readable

    def where(self, name: str) -> str:
        """File and tensor, for messages."""
        return f"{self.checkpoint.file_of[name].path}: tensor {name!r:.120}"

    def missing(self, name: str, why: str = "") -> CorruptFile:
        """The error for a tensor that should be there."""
        folder = self.checkpoint.files[0].path.parent
        return CorruptFile(f"{folder}: tensor {name!r:.120} is missing{why}")

    def shape(self, name: str, dtypes: tuple[str, ...], dimensions: int) -> tuple[int, ...]:
        """The shape of a tensor that must be there, of one of `dtypes`; no length is 0."""
        if name not in self.checkpoint.file_of:
            raise self.missing(name)
        entry = self.checkpoint.entry(name)
        if entry.dtype not in dtypes:
            raise CorruptFile(
                f"{self.where(name)} has dtype {entry.dtype}, {' or '.join(dtypes)} is needed"
            )
        if len(entry.shape) != dimensions or 0 in entry.shape:
            raise CorruptFile(
                f"{self.where(name)} has shape {list(entry.shape)}, {dimensions} lengths above 0 "
                "are needed"
            )
        return entry.shape

    def need(self, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...], by: str) -> None:
        """CorruptFile unless the tensor is there with this shape, which follows from `by`."""
        found = self.shape(name, dtypes, len(shape))
        if found != shape:
            raise CorruptFile(
                f"{self.where(name)} has shape {list(found)}, {list(shape)} is needed by "
                f"{by!r:.120}"
            )

    def has(self, name: str) -> bool:
        """Whether the checkpoint has this tensor."""
        return name in self.checkpoint.file_of

    def array(self, name: str) -> np.ndarray:
        """A view of its bits."""
        return self.checkpoint.array(name)

    def floats(self, name: str, index: Any = ...) -> np.ndarray:
        """Float32 of a tensor, or of the part that `index` picks."""
        return floats(self.array(name)[index], self.checkpoint.entry(name).dtype)


class Linear(ABC):
    """A matrix [outputs, inputs]: W[n, k] = level[n, k] * scale[n, group of k], in float32.

    ``kind`` names it for notes and checks; ``parts`` are the stored tensors it is made of.
    ``group`` is the columns that share a scale (the last group may have fewer), or, for columns in
    another order, int32 [cols], the group of each.
    """

    kind: str
    parts: tuple[str, ...]
    shape: tuple[int, int]
    group: int | np.ndarray

    def __init__(self, stored: Stored, name: str):
        self.stored = stored
        self.name = name

    @abstractmethod
    def levels(self, rows: range) -> np.ndarray:
        """[len(rows), cols]: small integers, or float32."""

    @abstractmethod
    def scales(self, rows: range) -> np.ndarray:
        """Float32 [len(rows), groups]."""

    @cached_property
    @abstractmethod
    def kept(self) -> Kept:
        """What keeps it best. May read the scales and zero points, never the codes."""

    @property
    def groups(self) -> int:
        """How many scales a row has."""
        if isinstance(self.group, int):
            return -(-self.shape[1] // self.group)
        return int(self.group.max()) + 1

    def spread(self, per_group: np.ndarray) -> np.ndarray:
        """[rows, groups] to [rows, cols]."""
        if isinstance(self.group, int):
            return np.repeat(per_group, self.group, axis=1)[:, : self.shape[1]]
        return np.take(per_group, self.group, axis=1)

    def floats(self, rows: range) -> np.ndarray:
        """Float32 [len(rows), cols]: the product of level and scale, rounded once."""
        levels, scales = self.levels(rows).astype(np.float32, copy=False), self.scales(rows)
        cols = self.shape[1]
        if scales.shape[1] == 1:
            return levels * scales
        if isinstance(self.group, int) and cols % self.group == 0:
            grouped = levels.reshape(len(rows), -1, self.group) * scales[:, :, None]
            return grouped.reshape(len(rows), cols)
        return levels * self.spread(scales)

    def pack(
        self, form: str, rows: range, out: np.ndarray, threads: int, quick: bool = False
    ) -> None:
        """Packs these rows into `out`; to the bit where `form` holds them so.

        InvalidRequest for a number that is not finite. `quick` tries fewer scales.
        """
        if self.kept == Kept(form, True):
            self._pack_exact(rows, out, threads)
        else:
            values = by_parts(self.floats, rows, threads)
            _core.pack(form, values, dtype="f32", out=out, threads=threads, quick=quick)

    def _pack_exact(self, rows: range, out: np.ndarray, threads: int) -> None:
        raise NotImplementedError(self.kind)

    @property
    def nbytes(self) -> int:
        """Bytes of its parts in the checkpoint."""
        entries = (self.stored.checkpoint.entry(part) for part in self.parts)
        return sum(entry.end - entry.begin for entry in entries)


def by_parts(decode: Callable[[range], np.ndarray], rows: range, threads: int) -> np.ndarray:
    """What `decode` gives for `rows`, a few rows at a time: as many as stay in a cache."""

    def one(begin: int) -> np.ndarray:
        with np.errstate(all="ignore"):
            return decode(rows[begin : begin + _PART])

    first = one(0)
    if len(rows) <= _PART:
        return first
    out = np.empty((len(rows), first.shape[1]), first.dtype)
    out[:_PART] = first

    def fill(begin: int) -> None:
        out[begin : begin + _PART] = one(begin)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, range(_PART, len(rows), _PART)))
    return out


class IntegerLinear(Linear):
    """Unsigned codes of ``bits`` minus a zero point per group: level = code - zero."""

    bits: int
    scale: str  # the stored tensor of the scales
    symmetric: bool  # what config and names say of the zero points: a guess, the data decide

    @abstractmethod
    def codes(self, rows: range) -> np.ndarray:
        """uint8 [len(rows), cols]."""

    @abstractmethod
    def zeros(self, rows: range) -> np.ndarray | int:
        """int16 [len(rows), groups], or the one that serves everywhere."""

    @cached_property
    def level_range(self) -> tuple[int, int]:
        """Lowest and highest level that codes and zero points could give."""
        if not self.stored.readable:
            half = 1 << (self.bits - 1)
            return (-half, half - 1) if self.symmetric else (1 - 2 * half, 2 * half - 1)
        zeros = self.zeros(range(self.shape[0]))
        low, high = (zeros, zeros) if isinstance(zeros, int) else (zeros.min(), zeros.max())
        return -int(high), (1 << self.bits) - 1 - int(low)

    def levels(self, rows: range) -> np.ndarray:
        low, high = self.level_range
        dtype = np.int8 if low >= -128 and high <= 127 else np.int16
        zeros = self.zeros(rows)
        each = zeros if isinstance(zeros, int) else self._shared(zeros)
        return np.subtract(self.codes(rows), each, dtype=np.int16).astype(dtype, copy=False)

    def _shared(self, zeros: np.ndarray) -> np.ndarray | int:
        first = int(zeros[0, 0])
        return first if (zeros == first).all() else self.spread(zeros)

    @cached_property
    def kept(self) -> Kept:
        low, high = self.level_range
        if self._blocks_fit() and self._scales_fit():
            if low >= -8 and high <= 7:
                return Kept("q4g32h", True)
            if self.bits > 4 and low >= -128 and high <= 127:
                return Kept("q8g32h", True)
        return Kept("q6" if self.bits <= 4 else "q8", False)

    def _blocks_fit(self) -> bool:
        return isinstance(self.group, int) and (self.group % _BLOCK == 0 or self.groups == 1)

    def _scales_fit(self) -> bool:
        if not self.stored.readable or self.stored.checkpoint.entry(self.scale).dtype == "F16":
            return True
        step = max(1, _SCAN // self.groups)
        rows = range(self.shape[0])
        return all(are_halves(self.scales(rows[i : i + step])) for i in rows[::step])

    def _pack_exact(self, rows: range, out: np.ndarray, threads: int) -> None:
        form = self.kept.form
        levels = by_parts(self.levels, rows, threads)
        codes = levels + np.int8(8) if form == "q4g32h" else levels
        assert isinstance(self.group, int)
        blocks = -(-self.shape[1] // _BLOCK)
        per_group = -(-self.group // _BLOCK)
        scales = np.repeat(self.scales(rows), per_group, axis=1)[:, :blocks]
        _core.pack_codes(
            form,
            codes,
            np.ascontiguousarray(scales),
            out=out,
            scale_dtype="f32",
            threads=threads,
        )


class Rows:
    """Some rows of a matrix, decoded when they are asked for; a slice of them is Rows again.

    What packing asks of an array: ``shape``, ``itemsize``, slices, and numpy.asarray (float32).
    """

    itemsize = 4
    ndim = 2

    def __init__(self, linear: Linear, rows: range | None = None):
        self.linear = linear
        self.rows = range(linear.shape[0]) if rows is None else rows

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.rows), self.linear.shape[1]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, part: slice) -> Rows: ...
    @overload
    def __getitem__(self, part: int) -> np.ndarray: ...
    def __getitem__(self, part: slice | int) -> Rows | np.ndarray:
        if isinstance(part, int):
            return np.asarray(self[part : part + 1])[0]
        return Rows(self.linear, self.rows[part])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        with np.errstate(all="ignore"):
            values = self.linear.floats(self.rows)
        return values if dtype is None else values.astype(dtype)

    @property
    def kept(self) -> Kept:
        """See :attr:`Linear.kept`."""
        return self.linear.kept

    def is_exact_in(self, form: str) -> bool:
        """Whether `form` holds these rows to the bit."""
        return form == "f32" or self.kept == Kept(form, True)

    def pack(self, form: str, out: np.ndarray, threads: int, quick: bool = False) -> None:
        """See :meth:`Linear.pack`."""
        self.linear.pack(form, self.rows, out, threads, quick)
