"""Packing a checkpoint: which tensor gets which format, and the stream of packed bytes.

Recipes (``quantize``):

- ``q8``: every matrix q8.
- ``q4``: matrices q4; the embedding and the head q6, as llama.cpp's Q4_0 files keep theirs in Q6_K:
  they are where four bits cost most. Measured in benchmarks/quality.py.
- ``none``: as stored: f32 stays f32, bf16 stays bf16; f16 becomes f32, which holds it exactly.
- ``auto``: q8 up to 50 million parameters, else q4. It looks at the model alone, never the machine.

Vectors (norms, biases) are always f32. Routers of experts and learned positions stay as stored with
every recipe: they are small, and a router decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from musespark import _core
from musespark.errors import CorruptFile, InvalidRequest, UnsupportedModel
from musespark.families.tensors import Part
from musespark.weights.files import write_aside
from musespark.weights.packed import Planned, write_packed
from musespark.weights.safetensors import Checkpoint

QUANTIZE = ("auto", "none", "q8", "q4")
AUTO_Q8_PARAMETERS = 50_000_000
_STORED = {"F32": "f32", "F16": "f32", "BF16": "bf16"}
_DTYPE = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_PIECE_BYTES = 16 << 20  # of source and of result held at a time, per piece

Shape = tuple[int, ...]


def check_quantize(quantize: str) -> None:
    """InvalidRequest for a recipe that does not exist."""
    if quantize not in QUANTIZE:
        raise InvalidRequest(f"quantize is {quantize!r:.40}; known are {', '.join(QUANTIZE)}")


def resolve_quantize(quantize: str, shapes: dict[str, Shape]) -> str:
    """The recipe that ``auto`` stands for with this model."""
    check_quantize(quantize)
    if quantize != "auto":
        return quantize
    return "q8" if count_parameters(shapes) <= AUTO_Q8_PARAMETERS else "q4"


def count_parameters(shapes: dict[str, Shape]) -> int:
    """Numbers in all tensors."""
    return sum(int(np.prod(shape, dtype=object)) for shape in shapes.values())


def matrix_format(quantize: str, name: str, stored: str) -> str:
    """The packed format of matrix `name` (canonical), stored as safetensors dtype `stored`."""
    if quantize == "none" or name.endswith(".router") or name in ("positions", "token_types"):
        return _STORED[stored]
    if quantize == "q4" and name in ("embed", "head"):
        return "q6"
    return quantize


def plan(
    checkpoint: Checkpoint, shapes: dict[str, Shape], sources: dict[str, Part], quantize: str
) -> list[Planned]:
    """What to write: checks dtype and shape of every source tensor, without reading its data."""
    planned = []
    for name, shape in shapes.items():
        part = sources[name]
        entry = checkpoint.entry(part.name)
        where = f"{checkpoint.file_of[entry.name].path}: tensor {entry.name!r:.120}"
        if entry.dtype not in _STORED:
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
            packed_as = matrix_format(quantize, name, entry.dtype)
            planned.append(Planned(name, packed_as, shape[0], shape[1], False))
    return planned


def stored_nbytes(checkpoint: Checkpoint, shape: Shape, part: Part) -> int:
    """Bytes that a canonical tensor takes in the checkpoint."""
    entry = checkpoint.entry(part.name)
    return (entry.end - entry.begin) // math.prod(part.stored) * math.prod(shape)


def _float32(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint16:  # bfloat16: the upper half of a float32
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def _vector_bytes(array: np.ndarray, where: str) -> np.ndarray:
    values = _float32(array)
    if not np.isfinite(values).all():
        raise CorruptFile(f"{where} holds a number that is not finite")
    out = np.zeros(-(-values.size // 16) * 16, np.float32)
    out[: values.size] = values
    return out


def _matrix_pieces(
    p: Planned, array: np.ndarray, dtype: str, threads: int, where: str
) -> Iterator[np.ndarray]:
    """Packs rows in pieces: whole row blocks, which are packed independently of each other."""
    block_bytes = int(_core.packed_nbytes(p.format, 16, p.cols))
    source_bytes = 16 * p.cols * array.itemsize
    blocks = max(1, min(_PIECE_BYTES // block_bytes, _PIECE_BYTES // source_bytes))
    out = np.empty(blocks * block_bytes, np.uint8)
    for begin in range(0, p.rows, 16 * blocks):
        rows = np.ascontiguousarray(array[begin : begin + 16 * blocks])
        piece = out[: -(-rows.shape[0] // 16) * block_bytes]
        try:
            _core.pack(p.format, rows, dtype=dtype, out=piece, threads=threads)
        except InvalidRequest as error:  # a number that is not finite
            raise CorruptFile(f"{where}, rows from {begin}: {error}") from None
        yield piece


def pack_checkpoint(
    checkpoint: Checkpoint,
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
) -> None:
    """Packs every tensor of `checkpoint` into the packed file `destination`.

    `shapes` are the canonical tensors, `sources` where they are in the checkpoint; `quantize` is a
    resolved recipe. Streams: one piece of a tensor is in memory at a time, besides the map.
    Progress counts source bytes, under `label`. `threads` None uses every core.
    """
    workers = _core.count_cores()["usable"] if threads is None else threads
    planned = plan(checkpoint, shapes, sources, quantize)
    total = sum(stored_nbytes(checkpoint, shapes[name], part) for name, part in sources.items())
    done = 0

    def payload(p: Planned) -> Iterator[np.ndarray]:
        nonlocal done
        part = sources[p.name]
        entry = checkpoint.entry(part.name)
        where = f"{checkpoint.file_of[part.name].path}: tensor {part.name!r:.120}"
        array = part.of(checkpoint.array(part.name))
        size, before = stored_nbytes(checkpoint, shapes[p.name], part), done
        if p.vector:
            yield _vector_bytes(array, where)
        else:
            yielded = 0
            bits = array.view(np.uint16) if entry.dtype == "F16" else array
            for piece in _matrix_pieces(p, bits, _DTYPE[entry.dtype], workers, where):
                yield piece
                yielded += piece.nbytes
                progress(before + size * yielded // p.nbytes, total, label)
        del array
        checkpoint.forget(part.name)
        done = before + size
        progress(done, total, label)

    with write_aside(destination) as file:
        write_packed(
            file,
            spec=spec,
            family=family,
            quantize=quantize,
            notes=notes,
            assets=assets,
            planned=planned,
            payload=payload,
        )
