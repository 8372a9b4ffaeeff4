"""The headers of safetensors files on a hub: what is in them, without downloading them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from musespark.errors import CorruptFile, UnsupportedModel
from musespark.weights import hubtransfer as transfer
from musespark.weights.hub import Snapshot
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
