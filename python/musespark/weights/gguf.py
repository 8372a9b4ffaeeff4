"""A mapped, distrusting reader of one GGUF file, version 2 or 3, little endian.

A file is: ``GGUF``, version u32, tensors u64, keys u64; the keys (name, type u32, value); the
tensors (name, dimensions u32, their lengths u64, fastest first, type u32, offset u64); zeros up to
``general.alignment``; the data, which offsets count from. A string is a length u64 and its bytes,
an array the type u32 and number u64 of its items, which may be arrays.

Everything is checked before anything is handed out, and counts against the bytes that are left
before anything is allocated; what does not hold raises ``CorruptFile`` with file, field and both
values. Arrays are decoded when they are asked for, tensors are views of the map.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from musespark import _core
from musespark.errors import CorruptFile, UnsupportedModel
from musespark.untrusted import plain_value, refuse_stand_in
from musespark.weights.files import MappedFile

MAGIC = b"GGUF"
MAX_HEADER_BYTES = 256 << 20
MAX_KEYS = 16_384
MAX_TENSORS = 16_384
MAX_DIMENSIONS = 4
MAX_NAME = 65_535  # the format's own limit of a key
MAX_STRINGS = 1 << 22  # of one array
MAX_NESTED = 16_384  # arrays inside arrays, in all
MAX_DEPTH = 4
MAX_ALIGNMENT = 1 << 20

_STRING, _ARRAY, _BOOL = 8, 9, 7
# Value type -> NumPy type of the plain ones.
_SCALARS = {
    0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8",
    11: "<i8", 12: "<f8",
}  # fmt: skip
# Tensor type -> name, values and bytes of a block (csrc/formats/stored.h).
_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 20: ("IQ4_NL", 32, 18), 23: ("IQ4_XS", 256, 136),
    39: ("MXFP4", 32, 17),
}  # fmt: skip
_NOT_READ = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 34: "TQ1_0", 35: "TQ2_0",
    40: "NVFP4", 41: "Q1_0",
}  # fmt: skip


@dataclass(frozen=True)
class GgufEntry:
    """One tensor: ``shape`` with rows last but one, ``begin`` and ``end`` byte offsets."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row (the last axis)."""
        return (self.end - self.begin) // math.prod(self.shape[:-1])


@dataclass(frozen=True)
class _Array:
    """An array that was walked over but not decoded; ``items`` where it holds arrays."""

    kind: int
    begin: int
    count: int
    items: tuple[_Array, ...] = ()


class EndsEarly(CorruptFile):
    """A header that goes on where the bytes at hand end."""


class _Cursor:
    """Reads forward in the header; every read says what it is for."""

    def __init__(self, path: Path, data: np.ndarray):
        self.path = path
        self.data = data
        self.at = 0
        # Nothing of a header may lie beyond, however long the file is.
        self.size = min(len(data), MAX_HEADER_BYTES)
        self.nested = 0

    def refuse(self, what: str) -> CorruptFile:
        return CorruptFile(f"{self.path}: {what}")

    def take(self, length: int, what: str) -> int:
        """The offset of the next `length` bytes, which are passed over."""
        begin = self.at
        if length > self.size - begin:
            raise EndsEarly(
                f"{self.path}: {what} at byte {begin} takes {length} bytes, {self.size - begin} "
                "are left"
            )
        self.at = begin + length
        return begin

    def integer(self, what: str, code: str = "<Q") -> int:
        size = struct.calcsize(code)
        return struct.unpack_from(code, self.data, self.take(size, what))[0]

    def string(self, what: str, limit: int = MAX_HEADER_BYTES) -> bytes:
        length = self.integer(f"{what}: length")
        if length > limit:
            raise self.refuse(f"{what}: length is {length}, the limit is {limit}")
        begin = self.take(length, what)
        return self.data[begin : begin + length].tobytes()

    def name(self, what: str) -> str:
        """A key or a tensor's name: UTF-8, not empty."""
        raw = self.string(what, MAX_NAME)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.refuse(f"{what}: not UTF-8 at byte {error.start}") from None
        if not text:
            raise self.refuse(f"{what} is empty")
        return text

    def count(self, what: str, each: int, limit: int) -> int:
        """A u64 number of things that take at least `each` bytes, at most `limit` of them."""
        count = self.integer(what)
        fits = (self.size - self.at) // each
        if count > min(limit, fits):
            kind = CorruptFile if count > limit else EndsEarly
            raise kind(
                f"{self.path}: {what} is {count}; at most {fits} fit in the "
                f"{self.size - self.at} bytes left, and the limit is {limit}"
            )
        return count

    def value(self, what: str) -> Any:
        kind = self.integer(f"{what}: type", "<I")
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self.array(what, 1)
        if kind not in _SCALARS:
            raise self.refuse(f"{what}: type is {kind}, known are 0 … 12")
        dtype = np.dtype(_SCALARS[kind])
        begin = self.take(dtype.itemsize, what)
        value = self.data[begin : begin + dtype.itemsize].view("u1" if kind == _BOOL else dtype)[0]
        if kind == _BOOL:
            if value > 1:
                raise self.refuse(f"{what}: a boolean is {value}, 0 or 1 is needed")
            return bool(value)
        return value.item()

    def array(self, what: str, depth: int) -> _Array:
        kind = self.integer(f"{what}: type of its items", "<I")
        if kind == _STRING:
            return self._strings(what)
        if kind == _ARRAY:
            return self._arrays(what, depth)
        if kind not in _SCALARS:
            raise self.refuse(f"{what}: type of its items is {kind}, known are 0 … 12")
        item = np.dtype(_SCALARS[kind]).itemsize
        count = self.count(f"{what}: number of items", item, MAX_HEADER_BYTES)
        begin = self.take(count * item, what)
        if kind == _BOOL and count and self.data[begin : begin + count].max() > 1:
            raise self.refuse(f"{what}: a boolean is neither 0 nor 1")
        return _Array(kind, begin, count)

    def _strings(self, what: str) -> _Array:
        count = self.count(f"{what}: number of items", 8, MAX_STRINGS)
        begin = self.at
        if count:
            try:
                self.at = int(_core.string_ends(self.data[: self.size], begin, count)[-1])
            except CorruptFile as error:
                raise EndsEarly(f"{self.path}: {what}: {error}") from None
        return _Array(_STRING, begin, count)

    def _arrays(self, what: str, depth: int) -> _Array:
        if depth == MAX_DEPTH:
            raise self.refuse(f"{what}: arrays are nested more than {MAX_DEPTH} deep")
        count = self.count(f"{what}: number of items", 12, MAX_NESTED - self.nested)
        self.nested += count
        begin = self.at
        items = tuple(self.array(f"{what}[{i}]", depth + 1) for i in range(count))
        return _Array(_ARRAY, begin, count, items)


class Metadata(Mapping[str, Any]):
    """The keys of a file. int, float, bool; str (bytes where it is not UTF-8); arrays of numbers
    are NumPy arrays, of strings lists of str (of bytes where one is not UTF-8), nested ones lists.

    An array is decoded each time it is asked for.
    """

    def __init__(self, data: np.ndarray, values: dict[str, Any]):
        self._data = data
        self._values = values

    def __getitem__(self, key: str) -> Any:
        value = self._values[key]
        if isinstance(value, _Array):
            return self._decode(value)
        if isinstance(value, bytes):
            try:
                return value.decode("utf-8")
            except UnicodeDecodeError:
                return value
        return value

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def length(self, key: str) -> int | None:
        """The number of items of an array, without decoding it; None where it is none."""
        value = self._values.get(key)
        return value.count if isinstance(value, _Array) else None

    def _decode(self, array: _Array) -> Any:
        if array.kind == _ARRAY:
            return [self._decode(one) for one in array.items]
        if array.kind == _STRING:
            return self._strings(array)
        dtype = np.dtype(_SCALARS[array.kind])
        raw = self._data[array.begin : array.begin + array.count * dtype.itemsize]
        return raw.copy().view(dtype)

    def _strings(self, array: _Array) -> list[str] | list[bytes]:
        if not array.count:
            return []
        ends = _core.string_ends(self._data, array.begin, array.count)
        data = self._data[array.begin : ends[-1]].tobytes()
        starts = np.concatenate([[0], ends[:-1] - array.begin]) + 8
        bounds = zip(starts.tolist(), (ends - array.begin).tolist(), strict=True)
        raw = [data[begin:end] for begin, end in bounds]
        try:
            return [one.decode("utf-8") for one in raw]
        except UnicodeDecodeError:
            return raw

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class GgufFile:
    """One mapped file: ``metadata``, ``entries`` by name, ``version`` and ``alignment``.

    ``mapped`` stands in for a file that is not here; of its ``bytes`` the header is read, and
    EndsEarly raised where it goes on behind them.
    """

    def __init__(self, path: Path, mapped: Any = None):
        self.path = Path(path)
        self.mapped = MappedFile(self.path) if mapped is None else mapped
        try:
            self._open()
        except BaseException:
            self.mapped.close()
            raise

    def _open(self) -> None:
        cursor = _Cursor(self.path, self.mapped.bytes)
        begin = cursor.take(4, "magic")
        magic = self.mapped.bytes[begin : begin + 4].tobytes()
        if magic != MAGIC:
            refuse_stand_in(self.mapped.bytes[:64].tobytes(), str(self.path))
            raise cursor.refuse(f"magic is {magic!r}, {MAGIC!r} is needed")
        self.version = self._read_version(cursor)
        # A tensor takes at least a name's length, dimensions, type and offset; a key its length,
        # type and one byte.
        tensors = cursor.integer("tensor_count")
        keys = cursor.count("metadata_kv_count", 13, MAX_KEYS)
        self.metadata = Metadata(self.mapped.bytes, self._read_keys(cursor, keys))
        if tensors > min(MAX_TENSORS, (cursor.size - cursor.at) // 24):
            kind = CorruptFile if tensors > MAX_TENSORS else EndsEarly
            raise kind(
                f"{self.path}: tensor_count is {tensors}; {cursor.size - cursor.at} bytes are left "
                f"for them, and the limit is {MAX_TENSORS}"
            )
        self.alignment = self._read_alignment(cursor)
        infos = [self._read_info(cursor) for _ in range(tensors)]
        self._header_bytes = cursor.at
        start = -(-cursor.at // self.alignment) * self.alignment
        self.entries: dict[str, GgufEntry] = {}
        for info in infos:
            entry = self._entry(start, *info)
            if entry.name in self.entries:
                raise cursor.refuse(f"tensor {entry.name!r:.120} stands twice")
            self.entries[entry.name] = entry
        self._check_overlap()

    def _read_version(self, cursor: _Cursor) -> int:
        version = cursor.integer("version", "<I")
        if version and version & 0xFFFF == 0:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            raise UnsupportedModel(
                f"{self.path}: version is {swapped} in big-endian order; only little-endian GGUF "
                "is supported"
            )
        if version not in (2, 3):
            raise UnsupportedModel(f"{self.path}: GGUF version is {version}, supported are 2 and 3")
        return version

    def _read_keys(self, cursor: _Cursor, count: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for i in range(count):
            key = cursor.name(f"key {i}")
            if key in values:
                raise cursor.refuse(f"key {key!r:.120} stands twice")
            values[key] = cursor.value(f"key {key!r:.120}")
        return values

    def _read_alignment(self, cursor: _Cursor) -> int:
        key = "general.alignment"
        value = plain_value(self.metadata, key) if key in self.metadata else 32
        known = type(value) is int and 8 <= value <= MAX_ALIGNMENT and value & (value - 1) == 0
        if not known:
            raise cursor.refuse(
                f"{key} is {value!r:.80}, a power of two in 8 … {MAX_ALIGNMENT} is needed"
            )
        return value

    def _read_info(self, cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
        name = cursor.name("a tensor's name")
        where = f"tensor {name!r:.120}"
        dimensions = cursor.integer(f"{where}: number of dimensions", "<I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise cursor.refuse(
                f"{where}: number of dimensions is {dimensions}, 1 … {MAX_DIMENSIONS} is needed"
            )
        at = cursor.take(8 * dimensions + 12, where)
        *lengths, kind, offset = struct.unpack_from(f"<{dimensions}QIQ", cursor.data, at)
        return name, tuple(lengths), kind, offset

    def _entry(
        self, start: int, name: str, lengths: tuple[int, ...], kind: int, offset: int
    ) -> GgufEntry:
        where = f"{self.path}: tensor {name!r:.120}"
        if kind not in _TYPES:
            known = ", ".join(dtype for dtype, _, _ in _TYPES.values())
            raise UnsupportedModel(
                f"{where} has type {_NOT_READ.get(kind, 'unknown')} ({kind}); supported are {known}"
            )
        dtype, values, size = _TYPES[kind]
        if 0 in lengths or lengths[0] % values:
            raise CorruptFile(
                f"{where}: dimensions are {list(lengths)}; none may be 0 and the first must be a "
                f"multiple of {values}, the values of a {dtype} block"
            )
        nbytes = math.prod(lengths) // values * size
        begin, end = start + offset, start + offset + nbytes
        if offset % self.alignment:
            raise CorruptFile(
                f"{where}: offset is {offset}, no multiple of the alignment, {self.alignment}"
            )
        if end > self.mapped.nbytes:
            raise CorruptFile(
                f"{where}: {nbytes} bytes of {dtype} at byte {begin} end at byte {end}, the file "
                f"at {self.mapped.nbytes}"
            )
        return GgufEntry(name, dtype, lengths[::-1], begin, end)

    def _check_overlap(self) -> None:
        before: GgufEntry | None = None
        for entry in sorted(self.entries.values(), key=lambda e: (e.begin, e.end)):
            if before is not None and entry.begin < before.end:
                raise CorruptFile(
                    f"{self.path}: tensor {entry.name!r:.120} begins at byte {entry.begin}, "
                    f"{before.name!r:.120} ends at byte {before.end}"
                )
            before = entry

    @property
    def header(self) -> bytes:
        """Everything before the data."""
        return self.mapped.bytes[: self._header_bytes].tobytes()

    def array(self, name: str) -> np.ndarray:
        """A view of a tensor: uint8, its last axis the bytes of a row. No copy."""
        entry = self.entries[name]
        data = self.mapped.bytes[entry.begin : entry.end]
        return data.reshape(*entry.shape[:-1], entry.row_bytes)

    def forget(self, name: str) -> None:
        """Lets the kernel drop a tensor's pages from memory; they are read again when needed."""
        entry = self.entries[name]
        self.mapped.forget(entry.begin, entry.end)

    def close(self) -> None:
        """Lets the map go (once no view of it is left)."""
        self.mapped.close()


def is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF file, or is named as one and begins as nothing else known."""
    named = path.suffix.lower() == ".gguf"
    if not path.is_file():
        return named
    with open(path, "rb") as file:
        start = file.read(9)
    return start[:4] == MAGIC or (named and start[8:] != b"{")  # safetensors begin so
