"""Packing a checkpoint: which tensor gets which format, and the stream of packed bytes.

Recipes (``quantize``):

- ``q8``: every matrix q8.
- ``q4``: matrices q4; q6 the embedding and the head, and the keys' and values' matrices where heads
  share them (no more than half as many rows as columns): that is where a bit saves most
  (benchmarks/recipe.py), and they are small.
- ``none``: as stored: f32 stays f32, bf16 stays bf16; f16 becomes f32, which holds it exactly.
- ``auto``: q8 up to 50 million parameters, else q4. It looks at the model alone, never the machine.
  A model whose matrices are quantized already keeps their precision: ``gguf``, or ``kept`` from
  safetensors, which cannot be asked for: each in the format of ours that is nearest (:data:`KEPT`,
  weights/quantized), its scales found by a quick search (what is lost was lost before); the error
  goes into the notes.

Vectors (norms, biases) are always f32. Routers of experts and learned positions stay as stored with
every recipe: they are small, and a router decides. A vision tower's matrices are 8 bits with
every recipe but ``none``, with a scale per 1024 columns (:data:`TOWER`), but for layers that lose
too much so (weights/tower_choice.py); what makes rows of pixels stays as stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from musespark import _core
from musespark.errors import CorruptFile, InvalidRequest, UnsupportedModel
from musespark.families.tensors import Part
from musespark.families.vision.beside import PREFIX
from musespark.weights.calibration import Guides
from musespark.weights.files import check_disk, write_aside
from musespark.weights.packed import Planned, write_packed
from musespark.weights.packing_error import PackingError
from musespark.weights.quantized.linear import Rows
from musespark.weights.quantized.source import QuantizedEntry
from musespark.weights.tower_pieces import Tensor, aligned

RECIPES = ("q4", "q8", "none")
TOWER = "q8g1024h"  # of a vision tower's matrices, but where weights/tower_choice.py chose another
QUANTIZE = ("auto", "none", "q8", "q4")
AUTO_Q8_PARAMETERS = 50_000_000
_STORED = {"F32": "f32", "F16": "f32", "BF16": "bf16"}
# Stored block type -> the format that keeps its precision: to the bit (_KEPT_EXACTLY), IQ4_XS but
# for a rounding of its scales; the others are what adds least to the type's own error at about its
# own bits (tests/python/test_gguf_models.py has the bounds).
KEPT = {
    "Q4_0": "q4g32h", "IQ4_NL": "iq4g32h", "MXFP4": "mxfp4", "Q8_0": "q8g32h",
    "IQ4_XS": "iq4g32h", "Q2_K": "q4", "Q3_K": "q4g32h", "Q4_1": "q6", "Q4_K": "q6", "Q5_0": "q6",
    "Q5_1": "q6", "Q5_K": "q6", "Q6_K": "q8",
}  # fmt: skip
_KEPT_EXACTLY = ("Q4_0", "IQ4_NL", "MXFP4", "Q8_0")
KEEPING = ("gguf", "kept")
_PIXELS = (f"{PREFIX}patch", f"{PREFIX}positions")
_PIECE_BYTES = 16 << 20  # of source and of result held at a time, per piece

Shape = tuple[int, ...]


class StoredEntry(Protocol):
    """One stored tensor: ``dtype`` as the file calls it, ``begin`` and ``end`` in the file."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def begin(self) -> int: ...
    @property
    def end(self) -> int: ...


class SourceFile(Protocol):
    """One file of a source; ``header`` is everything in it but the tensors' bytes."""

    path: Path
    mapped: Any

    @property
    def header(self) -> bytes: ...


class TensorSource(Protocol):
    """Where tensors come from: safetensors (Checkpoint, QuantizedSource) or GGUF (GgufSource).

    ``array`` gives what ``_core.pack`` takes with the dtype in lower case: it has ``shape`` and
    ``itemsize``, and ``array(name)[begin:end]`` is a NumPy array of these rows. Where the entry is
    a QuantizedEntry these are Rows, which pack themselves.
    """

    @property
    def files(self) -> Sequence[SourceFile]: ...
    @property
    def file_of(self) -> Mapping[str, SourceFile]: ...
    def entry(self, name: str) -> StoredEntry: ...
    def array(self, name: str) -> Any: ...
    def forget(self, name: str) -> None: ...
    def close(self) -> None: ...


def check_quantize(quantize: str) -> None:
    """InvalidRequest for a recipe that does not exist."""
    if quantize not in QUANTIZE:
        raise InvalidRequest(f"quantize is {quantize!r:.40}; known are {', '.join(QUANTIZE)}")


def resolve_quantize(quantize: str, shapes: dict[str, Shape], stored: set[str]) -> str:
    """The recipe that ``auto`` stands for with this model, whose tensors are `stored` so."""
    check_quantize(quantize)
    if quantize != "auto":
        return quantize
    if stored & KEPT.keys():
        return "gguf"
    if stored - _STORED.keys():
        return "kept"
    return "q8" if count_parameters(shapes) <= AUTO_Q8_PARAMETERS else "q4"


def count_parameters(shapes: dict[str, Shape]) -> int:
    """Numbers in all tensors."""
    return sum(int(np.prod(shape, dtype=object)) for shape in shapes.values())


def matrix_format(quantize: str, name: str, stored: str, rows: int, cols: int) -> str:
    """The packed format of matrix `name` (canonical), stored as dtype or block type `stored`."""
    if quantize == "none" or name.endswith(".router") or name in ("positions", "token_types"):
        return _STORED.get(stored, "f32")
    if name.startswith(PREFIX):
        return _STORED.get(stored, "f32") if name in _PIXELS else TOWER
    if quantize in KEEPING:
        # The few floats beside quantized matrices are what their maker held to be sensitive.
        return KEPT.get(stored, "q8")
    shared = name.endswith((".k", ".v")) and 2 * rows <= cols
    if quantize == "q4" and (shared or name in ("embed", "head")):
        return "q6"
    return quantize


def plan(
    checkpoint: TensorSource,
    shapes: dict[str, Shape],
    sources: dict[str, Part],
    quantize: str,
    chosen: Mapping[str, str] = MappingProxyType({}),
) -> list[Planned]:
    """What to write: checks dtype and shape of every source tensor, without reading its data.

    `chosen`: by name, ``none`` or a format, of matrices for which the recipe does not hold.
    The recipe ``kept`` reads scales and zero points, which decide what can hold them.
    """
    planned = []
    for name, shape in shapes.items():
        part = sources[name]
        entry = checkpoint.entry(part.name)
        where = f"{checkpoint.file_of[entry.name].path}: tensor {entry.name!r:.120}"
        quantized = isinstance(entry, QuantizedEntry)
        if not quantized and entry.dtype not in _STORED and entry.dtype not in KEPT:
            raise UnsupportedModel(
                f"{where} has dtype {entry.dtype}; weights may be F32, F16 or BF16"
            )
        if entry.shape != part.stored:
            raise CorruptFile(
                f"{where} has shape {list(entry.shape)}, the config asks for {list(part.stored)}"
            )
        if len(shape) == 1:
            planned.append(Planned(name, "f32", 1, shape[0], True))
        else:
            packed_as = matrix_format(quantize, name, entry.dtype, *shape)
            own = chosen.get(name)
            if own is not None:
                stored_as = matrix_format("none", name, entry.dtype, *shape)
                packed_as = stored_as if own == "none" else own
            elif quantized and quantize == "kept":
                packed_as = part.of(checkpoint.array(part.name)).kept.form
            planned.append(Planned(name, packed_as, shape[0], shape[1], False))
    return planned


def least_nbytes(shapes: dict[str, Shape]) -> dict[str, int]:
    """Bytes of all weights once packed, for each recipe, of a checkpoint that is not here: the
    least that the types of its tensors can make it."""
    out = {}
    for recipe in RECIPES:
        planned = (
            Planned(name, "f32", 1, shape[0], True)
            if len(shape) == 1
            else Planned(name, matrix_format(recipe, name, "BF16", *shape), *shape, False)
            for name, shape in shapes.items()
        )
        out[recipe] = sum(p.nbytes for p in planned)
    return out


def stored_nbytes(checkpoint: TensorSource, shape: Shape, part: Part) -> int:
    """Bytes that a canonical tensor takes in the checkpoint."""
    entry = checkpoint.entry(part.name)
    return (entry.end - entry.begin) * math.prod(shape) // math.prod(part.stored)


def _vector_bytes(array: np.ndarray, dtype: str, where: str) -> np.ndarray:
    values = _core.decode(dtype, np.ascontiguousarray(np.atleast_2d(array)))[0]
    if not np.isfinite(values).all():
        raise CorruptFile(f"{where} holds a number that is not finite")
    out = np.zeros(-(-values.size // 16) * 16, np.float32)
    out[: values.size] = values
    return out


def _matrix_pieces(
    p: Planned,
    array: Any,
    dtype: str,
    threads: int,
    quick: bool,
    where: str,
    guide: Mapping[str, np.ndarray],
) -> Iterator[tuple[int, np.ndarray]]:
    """Packs rows in pieces: (first row, whole row blocks, which are packed independently)."""
    block_bytes = int(_core.packed_nbytes(p.format, 16, p.cols))
    source_bytes = 16 * array.shape[-1] * array.itemsize
    blocks = max(1, min(_PIECE_BYTES // block_bytes, _PIECE_BYTES // source_bytes))
    out = np.empty(blocks * block_bytes, np.uint8)
    for begin in range(0, p.rows, 16 * blocks):
        rows = array[begin : begin + 16 * blocks]
        piece = out[: -(-rows.shape[0] // 16) * block_bytes]
        try:
            _pack_rows(p.format, rows, dtype, piece, threads, quick, guide)
        except InvalidRequest as error:  # a number that is not finite
            raise CorruptFile(f"{where}, rows from {begin}: {error}") from None
        except UnsupportedModel as error:  # scales of MXFP4 that lie too far apart
            raise UnsupportedModel(f"{where}, rows from {begin}: {error}") from None
        yield begin, piece


def _pack_rows(
    form: str,
    rows: np.ndarray | Rows,
    dtype: str,
    out: np.ndarray,
    threads: int,
    quick: bool,
    guide: Mapping[str, np.ndarray],
) -> None:
    if isinstance(rows, Rows):
        rows.pack(form, out, threads, quick)
    else:
        rows = np.ascontiguousarray(rows)
        _core.pack(form, rows, dtype=dtype, out=out, threads=threads, quick=quick, **guide)


def pack_one(
    checkpoint: TensorSource, part: Part, p: Planned, threads: int, *, quick: bool
) -> Tensor:
    """One tensor as the core takes it, packed in memory as planned."""
    entry, array = checkpoint.entry(part.name), part.of(checkpoint.array(part.name))
    where = f"{checkpoint.file_of[part.name].path}: tensor {part.name!r:.120}"
    if p.vector:
        return "f32", 1, p.cols, _vector_bytes(array[:], _dtype(entry), where)[: p.cols]
    out = aligned(p.nbytes)
    pieces = _matrix_pieces(p, array, _dtype(entry), threads, quick, where, {})
    at = 0
    for _, piece in pieces:
        out[at : at + piece.nbytes] = piece
        at += piece.nbytes
    return p.format, p.rows, p.cols, out


def _kinds(
    checkpoint: TensorSource, sources: dict[str, Part], planned: list[Planned]
) -> dict[str, tuple[str, bool]]:
    """Of each matrix that is stored quantized: its type, and whether its format holds that."""
    out = {}
    for p in planned:
        part = sources[p.name]
        dtype = checkpoint.entry(part.name).dtype
        if not p.vector and dtype not in _STORED:
            array = part.of(checkpoint.array(part.name))
            out[p.name] = dtype, holds_exactly(p.format, array, dtype)
    return out


def holds_exactly(form: str, array: Any, dtype: str) -> bool:
    """Whether `form` holds any quantized rows of this kind to the bit, or cannot be packed."""
    if isinstance(array, Rows):
        return array.is_exact_in(form)
    return form == "f32" or (dtype in _KEPT_EXACTLY and form == KEPT[dtype])


def _dtype(entry: StoredEntry) -> str:
    """What ``_core`` calls the numbers of a tensor."""
    return "f32" if isinstance(entry, QuantizedEntry) else entry.dtype.lower()


def pack_checkpoint(
    checkpoint: TensorSource,
    destination: Path,
    *,
    shapes: dict[str, Shape],
    sources: dict[str, Part],
    quantize: str,
    spec: dict[str, Any],
    family: str,
    notes: list[str],
    assets: dict[str, bytes],
    progress: Callable[[int, int, str], None],
    label: str,
    threads: int | None = None,
    guides: Guides | None = None,
    use: Callable[[Path], None] | None = None,
    chosen: Mapping[str, str] = MappingProxyType({}),
    **header: Any,
) -> None:
    """Packs every tensor of `checkpoint` into the packed file `destination`.

    `shapes` are the canonical tensors, `sources` where they are stored; `quantize` is a resolved
    recipe. One piece of a tensor is in memory at a time, besides the map. Progress counts source
    bytes, under `label`. `threads` None uses every core. `guides` guide the rounding, and the file
    says so. `chosen`: as for :func:`plan`. `use`: see
    :func:`write_aside`; `header`: of :func:`write_packed`.
    """
    workers = _core.count_cores()["usable"] if threads is None else threads
    planned = plan(checkpoint, shapes, sources, quantize, chosen)
    error = PackingError(planned, _kinds(checkpoint, sources, planned), workers)
    total = sum(stored_nbytes(checkpoint, shapes[name], part) for name, part in sources.items())
    done, quick = 0, quantize in KEEPING

    def payload(p: Planned) -> Iterator[np.ndarray]:
        nonlocal done
        part = sources[p.name]
        entry, array = checkpoint.entry(part.name), part.of(checkpoint.array(part.name))
        where = f"{checkpoint.file_of[part.name].path}: tensor {part.name!r:.120}"
        size, before = stored_nbytes(checkpoint, shapes[p.name], part), done
        if p.vector:
            yield _vector_bytes(array[:], _dtype(entry), where)
        else:
            yielded, dtype, guide = 0, _dtype(entry), guides.of(p) if guides else {}
            for begin, piece in _matrix_pieces(p, array, dtype, workers, quick, where, guide):
                error.measure(p, array, dtype, begin, piece)
                yield piece
                yielded += piece.nbytes
                progress(before + size * yielded // p.nbytes, total, label)
        del array
        checkpoint.forget(part.name)
        done = before + size
        progress(done, total, label)

    check_disk(destination, sum(p.nbytes for p in planned) + sum(map(len, assets.values())))
    with write_aside(destination, use=use) as file:
        write_packed(
            file,
            spec=spec,
            family=family,
            quantize=quantize,
            notes=lambda: notes + error.notes() + (guides.notes() if guides else []),
            assets=assets,
            planned=planned,
            payload=payload,
            calibration=guides and guides.record,
            **header,
        )
