"""The headers of safetensors and GGUF files on a hub: what is in them, without downloading them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from musespark.errors import CorruptFile, UnsupportedModel
from musespark.weights import hubtransfer as transfer
from musespark.weights.gguf import MAX_HEADER_BYTES, EndsEarly, GgufFile
from musespark.weights.gguf_source import MAX_VECTOR, GgufCheckpoint, open_gguf
from musespark.weights.hub import Snapshot, Wanted, projector_of
from musespark.weights.mmproj import Mmproj
from musespark.weights.safetensors import Checkpoint, TensorEntry, parse_table


class RemoteSafetensors:
    """What a ``SafetensorsFile`` says of itself, of a file that is not here."""

    def __init__(self, path: Path, metadata: dict[str, str], entries: dict[str, TensorEntry]):
        self.path, self.metadata, self.entries = path, metadata, entries

    def array(self, name: str) -> Any:
        """Raises UnsupportedModel: what a tensor holds is not here."""
        raise UnsupportedModel(
            f"{self.path}: tensor {name!r:.120} has to be read, and the weights are not downloaded"
        )

    def close(self) -> None:
        """Nothing is held."""


def remote_checkpoint(snapshot: Snapshot, names: tuple[str, ...]) -> Checkpoint:
    """The tensors of the files `names` of a hub's model, by range requests of their headers."""
    files: list[Any] = [_header(snapshot, name) for name in names]
    return Checkpoint(files)


def _header(snapshot: Snapshot, name: str) -> RemoteSafetensors:
    hub_id, path = snapshot.hub_id, Path(f"{snapshot.hub_id.repo}/{name}")
    with transfer.typed_errors(hub_id, f"reading the header of {name} of {hub_id.repo}"):
        found = transfer.api().parse_safetensors_file_metadata(
            hub_id.repo, name, revision=snapshot.commit
        )
    values = {
        key: {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": list(one.data_offsets)}
        for key, one in found.tensors.items()
    }
    data = max((one["data_offsets"][1] for one in values.values()), default=0)
    size = snapshot.files[name]
    if size is not None and data > size:
        raise CorruptFile(f"{path}: the last tensor ends at byte {data}, the file has {size}")
    # The library does not say where the data begin: the table is checked against itself.
    return RemoteSafetensors(path, *parse_table({"__metadata__": {}, **values}, path, 0, data))


# ---- GGUF ---------------------------------------------------------------------------------------

_FIRST_BYTES = 256 << 10  # of a file; where its header is longer, four times as many, and so on


@dataclass
class _Beginning:
    """The first bytes of a file of `nbytes`, as a ``MappedFile`` gives all of them."""

    bytes: np.ndarray
    nbytes: int

    def close(self) -> None:
        """Nothing is held."""


class RemoteGguf(GgufFile):
    """The header of a GGUF file that is not here; small tensors are fetched when asked for."""

    def __init__(self, path: Path, mapped: _Beginning, read: Callable[[int, int], bytes]):
        self._read = read
        super().__init__(path, mapped)

    def array(self, name: str) -> np.ndarray:
        """As of a file that is here. UnsupportedModel for what is larger than a vector."""
        entry = self.entries[name]
        if entry.end - entry.begin > 8 * MAX_VECTOR:
            raise UnsupportedModel(
                f"{self.path}: tensor {name!r:.120} has to be read, and the weights are not "
                "downloaded"
            )
        data = np.frombuffer(self._read(entry.begin, entry.end), np.uint8)
        return data.reshape(*entry.shape[:-1], entry.row_bytes)

    def forget(self, name: str) -> None:
        """Nothing is held."""


def remote_gguf(snapshot: Snapshot, entry: str) -> GgufCheckpoint:
    """The metadata and tensors of a GGUF model on a hub, `entry` its first file, by range requests
    of the headers; a file that the cache has is opened there. Raises HubUnavailable where the hub
    answers no ranges, else what opening the downloaded model would."""
    root = Path(snapshot.hub_id.repo)

    def part(path: Path) -> GgufFile:
        name = path.relative_to(root).as_posix()
        here = snapshot.folder / name
        return GgufFile(here) if here.exists() else _remote_part(snapshot, name, path)

    return open_gguf(root / entry, part)


def remote_projector(snapshot: Snapshot, wanted: Wanted) -> Mmproj:
    """The projector file of a model on a hub, as far as its header says."""
    found = projector_of(snapshot, wanted)
    if found.path is None or wanted.projector is None:
        return found
    return replace(found, headers=remote_gguf(snapshot, wanted.projector))


def _remote_part(snapshot: Snapshot, name: str, path: Path) -> RemoteGguf:
    if name not in snapshot.files:
        raise FileNotFoundError(name)

    def read(begin: int, end: int) -> bytes:
        return transfer.read_range(snapshot.hub_id, snapshot.commit, name, begin, end)[0]

    wanted = _FIRST_BYTES
    while True:
        data, size = transfer.read_range(snapshot.hub_id, snapshot.commit, name, 0, wanted)
        try:
            return RemoteGguf(path, _Beginning(np.frombuffer(data, np.uint8), size), read)
        except EndsEarly:
            if wanted >= min(size, MAX_HEADER_BYTES):
                raise
            wanted *= 4
