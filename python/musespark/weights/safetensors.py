"""A mapped, distrusting reader of safetensors: one file, or shards with an index.

A file is: 8 bytes length N, little endian; N bytes JSON; the data. The JSON maps each name to
{dtype, shape, data_offsets}, offsets counted from the data's start, and may hold ``__metadata__``,
strings to strings. Tensors must cover the data without gap or overlap. Everything is checked
before any tensor is handed out; what does not hold raises ``CorruptFile`` with file and field.
Only header bytes are read here: tensors are views of the map.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from musespark.errors import CorruptFile, UnsupportedModel
from musespark.untrusted import parse_json_object, read_json_object, refuse_stand_in
from musespark.weights.files import MappedFile

MAX_HEADER_BYTES = 32 << 20
MAX_TENSORS = 200_000
MAX_DIMENSIONS = 8
MAX_NAME = 512
_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1,
    "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
# What can be a weight, a part of a quantized one, or a payload. bfloat16 and the floats of 8 bits
# have no NumPy type: a view of their bits.
_NUMPY = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"),
          "U8": np.dtype("u1"), "I8": np.dtype("i1"), "I32": np.dtype("<i4"),
          "I64": np.dtype("<i8"), "F8_E4M3": np.dtype("u1"), "F8_E5M2": np.dtype("u1"),
          "F8_E8M0": np.dtype("u1")}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file; ``begin`` and ``end`` are byte offsets in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """One mapped file: ``entries`` by name, ``metadata``, and ``header`` (the JSON's bytes)."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.mapped = MappedFile(self.path)
        try:
            self.header = self._read_header()
            values = parse_json_object(self.header, f"{path}: header", MAX_HEADER_BYTES)
            start, size = 8 + len(self.header), self.mapped.nbytes
            self.metadata, self.entries = parse_table(values, self.path, start, size)
        except BaseException:
            self.mapped.close()
            raise

    def _read_header(self) -> bytes:
        size = self.mapped.nbytes
        if size < 10:
            raise CorruptFile(f"{self.path}: {size} bytes are too few for a safetensors file")
        start = self.mapped.read(0, min(size, 64))
        refuse_stand_in(start, str(self.path))
        length = int.from_bytes(start[:8], "little")
        if length < 2 or length > min(size - 8, MAX_HEADER_BYTES):
            raise CorruptFile(
                f"{self.path}: header length is {length}; the file has {size} bytes and the "
                f"limit is {MAX_HEADER_BYTES}"
            )
        header = self.mapped.read(8, 8 + length)
        if header[:1] != b"{":
            raise CorruptFile(f"{self.path}: header does not begin with '{{'")
        return header

    def array(self, name: str) -> np.ndarray:
        """A view of a tensor; BF16 and the floats of 8 bits as unsigned bits. No copy."""
        entry = self.entries[name]
        if entry.dtype not in _NUMPY:
            raise UnsupportedModel(
                f"{self.path}: tensor {name!r:.120} has dtype {entry.dtype}; weights may be "
                "F32, F16 or BF16"
            )
        data = self.mapped.bytes[entry.begin : entry.end]
        dtype = _NUMPY[entry.dtype]
        if entry.begin % dtype.itemsize:  # allowed by the format, rare: only then a copy
            data = data.copy()
        return data.view(dtype).reshape(entry.shape)

    def forget(self, name: str) -> None:
        """Lets the kernel drop a tensor's pages from memory; they are read again when needed."""
        entry = self.entries[name]
        self.mapped.forget(entry.begin, entry.end)

    def close(self) -> None:
        """Lets the map go (once no view of it is left)."""
        self.mapped.close()


def parse_table(
    values: dict[str, Any], path: Path, start: int, size: int
) -> tuple[dict[str, str], dict[str, TensorEntry]]:
    """Metadata and tensors of a header, checked: they cover bytes `start` … `size` of the file."""
    metadata = values.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CorruptFile(f"{path}: __metadata__ must map strings to strings")
    if len(values) > MAX_TENSORS:
        raise CorruptFile(f"{path}: {len(values)} tensors, the limit is {MAX_TENSORS}")
    entries = {name: _entry(name, one, path, start, size) for name, one in values.items()}
    _check_cover(entries, path, start, size)
    return metadata, entries


def _entry(name: str, entry: Any, path: Path, start: int, size: int) -> TensorEntry:
    where = f"{path}: tensor {name!r:.120}"
    if len(name) > MAX_NAME:
        raise CorruptFile(f"{where}: the name is longer than {MAX_NAME}")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CorruptFile(f"{where}: exactly dtype, shape and data_offsets are needed")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise CorruptFile(f"{where}: dtype {dtype!r:.40} is not known")
    if not _integers(shape) or len(shape) > MAX_DIMENSIONS:
        raise CorruptFile(f"{where}: shape {shape!r:.80} is not a list of lengths")
    if not _integers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CorruptFile(f"{where}: data_offsets {offsets!r:.80} is not a range")
    begin, end = start + offsets[0], start + offsets[1]
    if end > size:
        raise CorruptFile(f"{where}: data_offsets end at byte {end}, the file at {size}")
    wanted = math.prod(shape) * _ITEM_BYTES[dtype]
    if wanted != end - begin:
        raise CorruptFile(
            f"{where}: shape {shape!r:.80} of {dtype} takes {wanted} bytes, "
            f"data_offsets give {end - begin}"
        )
    return TensorEntry(name, dtype, tuple(shape), begin, end)


def _check_cover(entries: dict[str, TensorEntry], path: Path, start: int, size: int) -> None:
    at = start
    for entry in sorted(entries.values(), key=lambda e: (e.begin, e.end)):
        if entry.begin != at:
            what = "overlaps another" if entry.begin < at else "leaves a gap before it"
            raise CorruptFile(
                f"{path}: tensor {entry.name!r:.120} begins at byte {entry.begin} and "
                f"{what}; {at} was expected"
            )
        at = entry.end
    if at != size:
        raise CorruptFile(f"{path}: the last tensor ends at byte {at}, the file at {size}")


class Checkpoint:
    """The tensors of a folder: one file, or all shards that an index names."""

    def __init__(self, files: list[SafetensorsFile]):
        self.files = files
        self.file_of: dict[str, SafetensorsFile] = {}
        for file in files:
            for name in file.entries:
                if name in self.file_of:
                    raise CorruptFile(
                        f"{file.path}: tensor {name!r:.120} is also in {self.file_of[name].path}"
                    )
                self.file_of[name] = file

    def entry(self, name: str) -> TensorEntry:
        """Type, shape and place of a tensor."""
        return self.file_of[name].entries[name]

    def array(self, name: str) -> np.ndarray:
        """See :meth:`SafetensorsFile.array`."""
        return self.file_of[name].array(name)

    def forget(self, name: str) -> None:
        """See :meth:`SafetensorsFile.forget`."""
        self.file_of[name].forget(name)

    def close(self) -> None:
        """Closes every file."""
        for file in self.files:
            file.close()


_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,254}\.safetensors")


def open_sharded(index: Path) -> Checkpoint:
    """Opens the shards of a ``model.safetensors.index.json``; they must lie beside it.

    The index and the shards must name the same tensors in the same files.
    """
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptFile(f"{index}: weight_map is missing or empty")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
            raise CorruptFile(
                f"{index}: weight_map[{name!r:.120}] is {shard!r:.120}: the plain name of a "
                ".safetensors file in the same folder is needed"
            )
    files: list[SafetensorsFile] = []
    try:
        for shard in sorted(set(weight_map.values())):
            if not (index.parent / shard).exists():
                raise CorruptFile(f"{index}: shard {shard} is not in the folder")
            files.append(SafetensorsFile(index.parent / shard))
        checkpoint = Checkpoint(files)
        for name, shard in weight_map.items():
            found = checkpoint.file_of.get(name)
            if found is None or found.path.name != shard:
                raise CorruptFile(f"{index}: tensor {name!r:.120} is not in shard {shard}")
        for name, file in checkpoint.file_of.items():
            if name not in weight_map:
                raise CorruptFile(f"{file.path}: tensor {name!r:.120} is not in the index")
    except BaseException:
        for file in files:
            file.close()
        raise
    return checkpoint


def _integers(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**62 for v in values)
