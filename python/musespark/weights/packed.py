"""The packed container: one safetensors file that is mapped and used as it lies.

Its tensors, in this order, each beginning at a multiple of 64 bytes in the file:

- one U8 tensor for each weight matrix, in a format of ``csrc/formats/weights.h``;
- one F32 tensor for each vector, filled up with zeros to a multiple of 16;
- one U8 tensor ``asset/<file name>`` for each file of the model folder that is not weights, and
  for the outline of a large tokenizer.json (vocab/outline.py), filled up with zero bytes to a
  multiple of 64.

``__metadata__["musespark"]`` is a JSON object: version, arithmetic, family, quantize, notes, spec
(the fields of csrc/model/spec.h), tensors {name: {format, rows, cols, checksum}},
assets {name: {bytes, checksum}}, and of a file whose rounding was guided calibration
{method, tokens, checksum} (weights/calibration.py), and of one whose formats of keys and values
were measured kv (weights/kv_choice.py), and of a model that sees vision (the fields of
csrc/model/vision_spec.h; the tower's tensors are called ``vision.`` + their canonical names),
and where its layers were measured tower (weights/tower_choice.py).
Vectors have format f32 and rows 1. ``__metadata__["musespark_checksum"]`` covers this JSON and the
safetensors table; ``["musespark_source"]``, of a file in the packing cache, is the path that it was
made from. A checksum is XXH64 in 16 hexadecimal digits, of the XXH64 of each MiB: it finds
damage, not forgery. Opening checks the header, vectors and assets; :meth:`PackedFile.verify` all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from musespark import _core
from musespark.errors import CorruptFile, UnsupportedModel
from musespark.families.vision.beside import PREFIX
from musespark.untrusted import parse_json
from musespark.weights.files import AsideFile
from musespark.weights.safetensors import SafetensorsFile, TensorEntry

VERSION = 1
ARITHMETIC_VERSION: int = _core.arithmetic_version
FORMATS = _core.weight_formats
ALIGN = 64
_KEY = "musespark"
_SUM_KEY = "musespark_checksum"
SOURCE_KEY = "musespark_source"
_PIECE = 1 << 20
_NO_SUM = "0" * 16
_ASSET = "asset/"


class KvRecorder(Protocol):
    """What is written of keys and values: weights/kv_choice.py."""

    @property
    def room(self) -> dict[str, Any]: ...

    def measure(self, path: Path) -> dict[str, Any] | None: ...


class Checksum:
    """XXH64 of the XXH64s of each MiB, over a stream of any pieces."""

    def __init__(self) -> None:
        self._rest = b""
        self._sums = bytearray()

    def update(self, data: Any) -> None:
        """Takes more bytes (any contiguous buffer)."""
        view = memoryview(data).cast("B")
        if self._rest:
            need = _PIECE - len(self._rest)
            self._rest += view[:need]
            view = view[need:]
            if len(self._rest) < _PIECE:
                return
            self._add(self._rest)
            self._rest = b""
        whole = view.nbytes // _PIECE * _PIECE
        for at in range(0, whole, _PIECE):
            self._add(view[at : at + _PIECE])
        self._rest = bytes(view[whole:])

    def _add(self, piece: Any) -> None:
        self._sums += int(_core.checksum(piece)).to_bytes(8, "little")

    def hex(self) -> str:
        """The checksum of everything so far, 16 hexadecimal digits."""
        rest = int(_core.checksum(self._rest)).to_bytes(8, "little") if self._rest else b""
        return f"{int(_core.checksum(bytes(self._sums) + rest)):016x}"


def checksum_of(data: Any) -> str:
    """:class:`Checksum` of one buffer."""
    checksum = Checksum()
    checksum.update(data)
    return checksum.hex()


@dataclass(frozen=True)
class Planned:
    """One weight of a file to be written: its canonical name and how it will be stored."""

    name: str
    format: str
    rows: int
    cols: int
    vector: bool

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        if self.vector:
            return -(-self.cols // 16) * 64
        return int(_core.packed_nbytes(self.format, self.rows, self.cols))


def write_packed(
    file: AsideFile,
    *,
    spec: dict[str, Any],
    family: str,
    quantize: str,
    notes: Callable[[], list[str]],
    assets: dict[str, bytes],
    planned: list[Planned],
    payload: Callable[[Planned], Iterable[np.ndarray]],
    source: str | None = None,
    calibration: dict[str, Any] | None = None,
    kv: KvRecorder | None = None,
    vision: dict[str, Any] | None = None,
    tower: dict[str, Any] | None = None,
) -> None:
    """Writes a packed file; `payload` yields a weight's bytes in pieces, in the order of `planned`.

    `source`: where it comes from, for whoever lists packed files; no part of the model. `notes` is
    asked before the first and after the last of them, and may be shorter then. `kv` is
    asked when the file can be read; `vision` is the tower's spec, where there is one, and `tower`
    what was measured of its layers. Nothing but
    the piece at hand is held in memory until then.
    Raises whatever writing raises; the caller discards the file then (see
    :func:`musespark.weights.files.write_aside`).
    """
    planned = [p for p in planned if not p.vector] + [p for p in planned if p.vector]
    head = {
        "version": VERSION,
        "arithmetic": ARITHMETIC_VERSION,
        "family": family,
        "quantize": quantize,
        "notes": notes(),
        "spec": spec,
        "tensors": {
            p.name: {"format": p.format, "rows": p.rows, "cols": p.cols, "checksum": _NO_SUM}
            for p in planned
        },
        "assets": {
            name: {"bytes": len(data), "checksum": checksum_of(data)}
            for name, data in assets.items()
        },
    }
    further = {"calibration": calibration, "vision": vision, "tower": tower}
    head |= {name: value for name, value in further.items() if value is not None}
    table = _table(planned, assets)
    longest = head if kv is None else head | {"kv": kv.room}
    room = file.position = len(_encode(longest, table, source=source))
    for p in planned:
        checksum, written = Checksum(), 0
        for piece in payload(p):
            checksum.update(piece)
            file.write(piece)
            written += piece.nbytes
        if written != p.nbytes:
            raise ValueError(f"{p.name}: {written} bytes packed, {p.nbytes} planned")
        head["tensors"][p.name]["checksum"] = checksum.hex()
    for data in assets.values():
        file.write(data + bytes(-len(data) % ALIGN))
    head["notes"] = notes()
    _write_head(file, _encode(head, table, room, source), room)
    record = None if kv is None else kv.measure(file.aside)
    if record is not None:
        _write_head(file, _encode(head | {"kv": record}, table, room, source), room)


def _write_head(file: AsideFile, encoded: bytes, room: int) -> None:
    if len(encoded) != room:  # the first matrix begins behind its room
        raise ValueError(f"the header has {len(encoded)} bytes, {room} were planned")
    file.write_at(0, encoded)


def _table(planned: list[Planned], assets: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = {}
    at = 0

    def add(name: str, dtype: str, shape: int, nbytes: int) -> None:
        nonlocal at
        table[name] = {"dtype": dtype, "shape": [shape], "data_offsets": [at, at + nbytes]}
        at += nbytes

    for p in planned:
        add(p.name, "F32" if p.vector else "U8", p.nbytes // (4 if p.vector else 1), p.nbytes)
    for name, data in assets.items():
        nbytes = len(data) + -len(data) % ALIGN
        add(_ASSET + name, "U8", nbytes, nbytes)
    return table


def _encode(
    head: dict[str, Any],
    table: dict[str, dict[str, Any]],
    least: int = 0,
    source: str | None = None,
) -> bytes:
    """Header length and header, `least` bytes or more; as long for every value of the checksums."""
    text = json.dumps(head, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    metadata = {_KEY: text, _SUM_KEY: _header_sum(text, table)}
    if source is not None:
        metadata[SOURCE_KEY] = source
    encoded = json.dumps({"__metadata__": metadata} | table, separators=(",", ":")).encode()
    encoded = encoded.ljust(least - 8)
    encoded += b" " * (-(8 + len(encoded)) % ALIGN)
    return len(encoded).to_bytes(8, "little") + encoded


def _header_sum(text: str, table: dict[str, dict[str, Any]]) -> str:
    rows = [[name, e["dtype"], e["shape"], e["data_offsets"]] for name, e in table.items()]
    return checksum_of((text + json.dumps(sorted(rows))).encode())


def is_packed(file: SafetensorsFile) -> bool:
    """Whether a safetensors file claims to be a packed one."""
    return _KEY in file.metadata


class PackedFile:
    """A packed file, checked against itself; takes over `file` and closes it on failure.

    `shapes_of` gives the tensors (name -> shape) that the header's ``spec`` and ``vision`` ask for,
    and raises ``CorruptFile`` where they make no sense. Both are kept as they were read.
    """

    def __init__(
        self, file: SafetensorsFile, shapes_of: Callable[[Any, Any], dict[str, tuple[int, ...]]]
    ):
        self.file = file
        self.path = file.path
        self._shapes_of = shapes_of
        try:
            self._open()
        except BaseException:
            file.close()
            raise

    def _open(self) -> None:
        text = self.file.metadata.get(_KEY, "")
        head = parse_json(text.encode("utf-8", "surrogatepass"), f"{self.path}: packed header")
        if not isinstance(head, dict):
            raise CorruptFile(f"{self.path}: packed header is not an object")
        self._check_versions(head)
        if self.file.metadata.get(_SUM_KEY) != _header_sum(text, self._table()):
            raise CorruptFile(f"{self.path}: packed header does not match its checksum")
        self.family = self._string(head, "family")
        self.quantize = self._string(head, "quantize")
        notes = head.get("notes")
        if not isinstance(notes, list) or not all(isinstance(n, str) for n in notes):
            raise CorruptFile(f"{self.path}: notes must be a list of strings")
        self.notes: list[str] = notes
        self.calibration = self._read_calibration(head)
        self.kv: Any = head.get("kv")  # as it was read
        self.spec: Any = head.get("spec")
        self.vision: Any = head.get("vision")
        self.tower_record: Any = head.get("tower")
        self._sums: dict[str, str] = {}
        self.planned = self._check_tensors(self._object(head, "tensors"))
        self.assets = self._read_assets(self._object(head, "assets"))
        extra = set(self.file.entries) - set(self._sums)
        if extra:
            raise CorruptFile(f"{self.path}: tensor {min(extra)!r:.120} is not in the header")
        for name, planned in self.planned.items():
            if planned.vector:
                self._check_sum(name)

    def _table(self) -> dict[str, dict[str, Any]]:
        start = 8 + len(self.file.header)
        return {
            e.name: {
                "dtype": e.dtype,
                "shape": list(e.shape),
                "data_offsets": [e.begin - start, e.end - start],
            }
            for e in self.file.entries.values()
        }

    def _check_versions(self, head: dict[str, Any]) -> None:
        ours = {"version": VERSION, "arithmetic": ARITHMETIC_VERSION}
        for key, wanted in ours.items():
            found = head.get(key)
            if type(found) is not int or not 0 <= found < 2**31:
                raise CorruptFile(f"{self.path}: {key} is {found!r:.80}, a number is needed")
            if found != wanted:
                raise UnsupportedModel(
                    f"{self.path}: packed with {key} {found}, this musespark has {wanted}: "
                    "convert the original model again"
                )

    def _read_calibration(self, head: dict[str, Any]) -> dict[str, Any] | None:
        found = head.get("calibration")
        if found is None:
            return None
        kinds = {"method": str, "tokens": int, "checksum": str}
        if not isinstance(found, dict) or {k: type(v) for k, v in found.items()} != kinds:
            raise CorruptFile(
                f"{self.path}: calibration is {found!r:.80}; method, tokens and checksum are needed"
            )
        return found

    def _string(self, head: dict[str, Any], key: str) -> str:
        value = head.get(key)
        if not isinstance(value, str):
            raise CorruptFile(f"{self.path}: {key} is {value!r:.80}, a string is needed")
        return value

    def _object(self, head: dict[str, Any], key: str) -> dict[str, dict[str, Any]]:
        value = head.get(key)
        if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
            raise CorruptFile(f"{self.path}: {key} must be an object of objects")
        return value

    def _check_tensors(self, listed: dict[str, dict[str, Any]]) -> dict[str, Planned]:
        shapes = self._shapes_of(self.spec, self.vision)
        wrong = sorted(set(shapes) ^ set(listed))
        if wrong:
            what = "is missing" if wrong[0] in shapes else "is not a part of this model"
            raise CorruptFile(f"{self.path}: tensor {wrong[0]!r:.120} {what}")
        planned: dict[str, Planned] = {}
        for name, shape in shapes.items():
            one, where = listed[name], f"{self.path}: tensor {name!r}"
            rows, cols = shape if len(shape) == 2 else (1, shape[0])
            vector = len(shape) == 1
            if one.get("format") not in (("f32",) if vector else FORMATS):
                raise CorruptFile(f"{where}: format is {one.get('format')!r:.80}")
            if (one.get("rows"), one.get("cols")) != (rows, cols):
                raise CorruptFile(
                    f"{where}: rows and cols are {one.get('rows')!r:.40} and "
                    f"{one.get('cols')!r:.40}, the model has {rows} and {cols}"
                )
            planned[name] = Planned(name, one["format"], rows, cols, vector)
            self._check_entry(name, "F32" if vector else "U8", planned[name].nbytes, one)
        return planned

    def _check_entry(self, name: str, dtype: str, nbytes: int, listed: dict[str, Any]) -> None:
        entry: TensorEntry | None = self.file.entries.get(name)
        where = f"{self.path}: tensor {name!r:.120}"
        if entry is None:
            raise CorruptFile(f"{where} is missing")
        if entry.dtype != dtype or entry.end - entry.begin != nbytes:
            raise CorruptFile(
                f"{where}: {entry.end - entry.begin} bytes of {entry.dtype}, "
                f"{nbytes} of {dtype} are needed"
            )
        if entry.begin % ALIGN:
            raise CorruptFile(f"{where} begins at byte {entry.begin}, no multiple of {ALIGN}")
        checksum = listed.get("checksum")
        if not isinstance(checksum, str):
            raise CorruptFile(f"{where}: checksum is {checksum!r:.80}")
        self._sums[name] = checksum

    def _read_assets(self, listed: dict[str, dict[str, Any]]) -> dict[str, bytes]:
        assets: dict[str, bytes] = {}
        for name, one in listed.items():
            length = one.get("bytes")
            if type(length) is not int or not 0 <= length < 2**40:
                raise CorruptFile(f"{self.path}: asset {name!r:.120}: bytes is {length!r:.80}")
            self._check_entry(_ASSET + name, "U8", length + -length % ALIGN, one)
            self._check_sum(_ASSET + name, length)
            assets[name] = self.file.array(_ASSET + name)[:length].tobytes()
        return assets

    def _check_sum(self, name: str, length: int | None = None) -> None:
        data = self.file.array(name).view(np.uint8)[:length]
        found = checksum_of(data)
        if found != self._sums[name]:
            raise CorruptFile(
                f"{self.path}: tensor {name!r:.120} has checksum {found}, "
                f"the header says {self._sums[name]:.40}"
            )

    def verify(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Checks every matrix, as it was written and as a packer writes it: its checksum, scales
        that are finite, padding that is zero. The rest was checked when the file was opened.

        `progress` is called with bytes done and bytes in all.
        """
        matrices = [p for p in self.planned.values() if not p.vector]
        total, done = sum(p.nbytes for p in matrices), 0
        for p in matrices:
            self._check_sum(p.name)
            where = f"{self.path}: tensor {p.name!r:.120}"
            _core.check_packed(p.format, self.file.array(p.name), p.rows, p.cols, what=where)
            self.file.forget(p.name)
            done += p.nbytes
            if progress is not None:
                progress(done, total)

    def identity(self) -> str:
        """Checksum of what decides a result: the spec, the weights and their formats."""
        weights = {
            p.name: [p.format, p.rows, p.cols, self._sums[p.name]] for p in self.planned.values()
        }
        specs = [self.spec] if self.vision is None else [self.spec, self.vision]
        return checksum_of(json.dumps([*specs, weights], sort_keys=True).encode())

    def tensors(self) -> dict[str, tuple[str, int, int, np.ndarray]]:
        """The text's: name -> (format, rows, cols, view of the map), bytes of a matrix, floats of a
        vector."""
        return {name: self._view(name) for name in self.planned if not name.startswith(PREFIX)}

    def tower(self) -> dict[str, tuple[str, int, int, np.ndarray]]:
        """The vision tower's, by their own names; none where there is no tower."""
        own = (name for name in self.planned if name.startswith(PREFIX))
        return {name.removeprefix(PREFIX): self._view(name) for name in own}

    def of_tower(self) -> list[Planned]:
        """How the tower's tensors are stored."""
        return [p for p in self.planned.values() if p.name.startswith(PREFIX)]

    def _view(self, name: str) -> tuple[str, int, int, np.ndarray]:
        p, view = self.planned[name], self.file.array(name)
        return p.format, p.rows, p.cols, view[: p.cols] if p.vector else view

    def close(self) -> None:
        """Lets the map go (once no view of it is left)."""
        self.file.close()
