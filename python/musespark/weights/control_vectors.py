"""Files of control vectors: safetensors of our own, and llama.cpp's GGUF.

Both hold a tensor ``direction.N`` [hidden] for each layer that is steered, float32, added to what
block N gives, blocks counted from 0. llama.cpp has none for N = 0, and writes
``general.architecture`` = ``controlvector`` (its tools/cvector-generator; repeng does so too).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from musespark.errors import CorruptFile, InvalidRequest, UnsupportedModel
from musespark.untrusted import plain_value
from musespark.weights.files import write_whole
from musespark.weights.gguf import GgufFile, is_gguf
from musespark.weights.safetensors import SafetensorsFile

Directions = dict[int, np.ndarray]  # layer -> float32 [hidden]

KIND = "musespark control vector"
VERSION = "1"
_ARCHITECTURE = "controlvector"
_HEAD = ("kind", "version")
_NAME = re.compile(r"direction\.(0|[1-9]\d{0,5})")


def read_control_vector(path: Path) -> tuple[Directions, dict[str, str]]:
    """The directions of a file, and what it says of them beside.

    Raises FileNotFoundError, CorruptFile, InvalidRequest for a file of another version, and
    UnsupportedModel for a GGUF or safetensors file of something else. What the numbers are is the
    caller's to check.
    """
    if is_gguf(path):
        file = GgufFile(path)
        try:
            return _of_gguf(file), {}
        finally:
            file.close()
    own = SafetensorsFile(path)
    try:
        return _of_safetensors(own), {k: v for k, v in own.metadata.items() if k not in _HEAD}
    finally:
        own.close()


def write_control_vector(
    path: Path, directions: Mapping[int, np.ndarray], about: Mapping[str, str]
) -> None:
    """Writes a safetensors file aside and renames it. Raises WriteFailed."""
    table: dict[str, object] = {"__metadata__": {"kind": KIND, "version": VERSION, **about}}
    at, parts = 0, []
    for layer, direction in sorted(directions.items()):
        data = np.ascontiguousarray(direction, "<f4").tobytes()
        entry = {"dtype": "F32", "shape": [len(direction)], "data_offsets": [at, at + len(data)]}
        table[f"direction.{layer}"] = entry
        at += len(data)
        parts.append(data)
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    write_whole(path, b"".join([len(header).to_bytes(8, "little"), header, *parts]))


def _of_safetensors(file: SafetensorsFile) -> Directions:
    if file.metadata.get("kind") != KIND:
        raise UnsupportedModel(
            f"{file.path}: its metadata has no kind {KIND!r}: it is no control vector"
        )
    if file.metadata.get("version") != VERSION:
        got = file.metadata.get("version")
        raise InvalidRequest(f"{file.path}: version: got {got!r:.40}, allowed is {VERSION!r}")
    shapes = {name: (entry.dtype, entry.shape) for name, entry in file.entries.items()}
    _check(file.path, shapes, least=0)
    return {_layer(name): np.array(file.array(name), np.float32) for name in shapes}


def _of_gguf(file: GgufFile) -> Directions:
    arch = plain_value(file.metadata, "general.architecture")
    if arch != _ARCHITECTURE:
        raise UnsupportedModel(
            f"{file.path}: general.architecture is {arch!r:.80}, not {_ARCHITECTURE!r}: it is no "
            "control vector"
        )
    shapes = {name: (entry.dtype, entry.shape) for name, entry in file.entries.items()}
    _check(file.path, shapes, least=1)
    return {_layer(name): file.array(name).view("<f4").astype(np.float32) for name in shapes}


def core_tensors(directions: Mapping[int, np.ndarray]) -> dict[str, tuple]:
    """The same as the core takes them (csrc/model/adapter.h)."""
    return {
        f"layers.{layer}.control": ("f32", 1, len(v), np.ascontiguousarray(v, np.float32))
        for layer, v in sorted(directions.items())
    }


def _layer(name: str) -> int:
    return int(name.partition(".")[2])


def _check(path: Path, shapes: Mapping[str, tuple[str, tuple[int, ...]]], least: int) -> None:
    """CorruptFile for tensors that are no directions of one width."""
    width = None
    for name, (dtype, shape) in shapes.items():
        where = f"{path}: tensor {name!r:.120}"
        if _NAME.fullmatch(name) is None or _layer(name) < least:
            raise CorruptFile(f"{where}: allowed is direction.N, N from {least}")
        if dtype != "F32" or len(shape) != 1:
            raise CorruptFile(f"{where} is {dtype} {list(shape)}; F32 of one dimension is needed")
        if width not in (None, shape[0]):
            raise CorruptFile(f"{where} has {shape[0]} numbers, another has {width}")
        width = shape[0]
    if width is None:
        raise CorruptFile(f"{path}: there are no directions")
