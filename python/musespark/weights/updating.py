"""New numbers for a model that runs: packed in memory as the old ones were."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from musespark import _core
from musespark.errors import CorruptFile, InvalidRequest, UnsupportedModel
from musespark.families.tensors import TensorMap
from musespark.families.vision.beside import PREFIX
from musespark.untrusted import parse_json_object
from musespark.weights.loading import LoadedWeights
from musespark.weights.model_source import read_config_files
from musespark.weights.pack import KEEPING, pack_one
from musespark.weights.packed import Checksum
from musespark.weights.sight import beside, sight_of

_DTYPES = {"float32": "F32", "float16": "F16"}


@dataclass(frozen=True)
class _Entry:
    """One of the caller's tensors as packing knows those of files."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int = 0
    end: int = 0


@dataclass(frozen=True)
class _Nowhere:
    """In place of a file, in what errors say."""

    path: Path = Path("tensors")
    mapped: Any = None
    header: bytes = b""


class _Given:
    """The caller's tensors, as packing reads those of a checkpoint."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._arrays = arrays
        self.files = (_Nowhere(),)
        self.file_of = dict.fromkeys(arrays, self.files[0])

    def entry(self, name: str) -> _Entry:
        array = self._arrays[name]
        return _Entry(name, _DTYPES[array.dtype.name], array.shape)

    def array(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def forget(self, name: str) -> None:
        pass

    def close(self) -> None:
        pass


def updated(weights: LoadedWeights, tensors: Mapping[str, Any]) -> LoadedWeights:
    """The same model with other numbers, each in the format that the old one had.

    ``tensors``: by the names of the checkpoint that the model was made from, float32 or float16
    arrays (or what ``np.asarray`` makes such). Those of the vision tower may be left out, all of
    them: it stays. InvalidRequest naming a tensor that is missing, unknown, of another shape or
    type, or not finite, with both values; UnsupportedModel for a model that was not made from a
    folder with plain weights.
    """
    if weights.info.get("merged"):
        raise InvalidRequest("update_weights: an adapter is merged into these weights")
    arrays = {name: _array(name, value) for name, value in tensors.items()}
    given, mapping = _Given(arrays), _mapping(weights, list(arrays))
    head = mapping.spare_head
    if head is not None and not np.array_equal(arrays[head], arrays[mapping.sources["embed"].name]):
        raise InvalidRequest(
            f"tensors[{head!r:.120}]: it is another matrix than the embedding, and this model's "
            "head is its embedding"
        )
    for part in mapping.sources.values():
        if arrays[part.name].shape != part.stored:
            raise InvalidRequest(
                f"tensors[{part.name!r:.120}]: shape {list(arrays[part.name].shape)}, this model "
                f"has {list(part.stored)}"
            )
    threads, quick = _core.count_cores()["usable"], weights.info["quantize"] in KEEPING
    text, tower, sums = dict(weights.tensors), dict(weights.tower), Checksum()
    for name, part in sorted(mapping.sources.items()):
        planned = weights.packed.planned[name]
        try:
            packed = pack_one(given, part, planned, threads, quick=quick)
        except CorruptFile as error:  # a number that is not finite
            raise InvalidRequest(str(error)) from None
        into, own = (tower, name[len(PREFIX) :]) if name.startswith(PREFIX) else (text, name)
        into[own] = packed
        sums.update(name.encode())
        sums.update(np.ascontiguousarray(packed[3]).view(np.uint8))
    return dataclasses.replace(weights, tensors=text, tower=tower, updated=sums.hex())


def _array(name: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor of torch in bfloat16, say
        raise InvalidRequest(f"tensors[{name!r:.120}]: {error}") from None
    if array.dtype.name not in _DTYPES:
        raise InvalidRequest(
            f"tensors[{name!r:.120}]: dtype {array.dtype}, allowed are {', '.join(_DTYPES)}"
        )
    return array


def _mapping(weights: LoadedWeights, names: list[str]) -> TensorMap:
    """What the tensors of these names become."""
    where = Path(str(weights.info["source"]))
    if "config.json" not in weights.assets:
        raise UnsupportedModel("update_weights: this model's file has no config.json")
    family, spec, _, reader, _ = read_config_files(weights.assets, where)
    if reader is not None or family.name != weights.info["family"]:
        raise UnsupportedModel("update_weights: this model was made from quantized weights")
    try:
        mapping = family.tensors(weights.spec, names)
        config = parse_json_object(weights.assets["config.json"], "config.json")
        sight = sight_of(config, spec, weights.assets)
        _, mapping = beside(sight, config, mapping, names)
    except CorruptFile as error:
        raise InvalidRequest(f"tensors: {error}") from None
    return mapping
