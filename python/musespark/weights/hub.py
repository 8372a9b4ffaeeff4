"""Models by hub id, through the cache of ``huggingface_hub`` and with its settings.

``HF_HOME``, ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` mean what they mean there. One
request asks for the commit and the list of files; what the cache has is not asked for again. A hub
that cannot be reached is stood in for by a snapshot that is whole, and a note says so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from musespark.errors import CorruptFile, Error, HubUnavailable, InvalidRequest
from musespark.untrusted import read_json_object
from musespark.weights import hubtransfer as transfer
from musespark.weights.hubfiles import (
    INDEX,
    Wanted,
    choose_files,
    safe_files,
    with_projector,
    with_shards,
)
from musespark.weights.hubids import HubId, parse_hub_id
from musespark.weights.mmproj import NOTHING, Mmproj, check_mmproj, several_say
from musespark.weights.progress import ProgressFn, progress_function


@dataclass(frozen=True)
class Snapshot:
    """A commit of a hub's model: what files it has, here or there.

    ``files`` are name -> bytes (None: not known). ``folder`` is where the cache keeps those that
    are here. ``unreachable`` says why only they count, "" where the hub was asked. ``blobs`` are
    the names that the cache gives the contents, where the hub says them.
    """

    hub_id: HubId
    commit: str
    files: dict[str, int | None]
    blobs: dict[str, str] = field(default_factory=dict)
    licence: str | None = None
    unreachable: str = ""

    @property
    def folder(self) -> Path:
        return transfer.storage_of(self.hub_id.repo) / "snapshots" / self.commit

    @property
    def name(self) -> str:
        """The id with its commit: loads the same bytes again."""
        return self.hub_id.at(self.commit)


@dataclass(frozen=True)
class Fetched:
    """A model that is here: the folder or GGUF file, its name with the commit, what to note, and
    the projector file that goes with it."""

    path: Path
    name: str
    notes: list[str] = field(default_factory=list)
    mmproj: Mmproj = NOTHING


def fetch(
    hub_id: HubId,
    assets: tuple[str, ...],
    progress: ProgressFn,
    refuse: Callable[[Snapshot, Wanted], None],
    projector: bool = True,
) -> Fetched:
    """The model of a hub id, downloaded where the cache does not have it.

    `assets` are the small files a model folder may have; with `projector` the one projector file
    beside a GGUF model comes too. When they are here `refuse` is called: it
    raises for what cannot be run, before the weights come.
    `progress` counts bytes of all files that were not here.

    Raises InvalidRequest (no such model, revision or file; several GGUF files and none chosen),
    AccessDenied, UnsupportedModel, HubUnavailable, and WriteFailed (disk full).
    """
    snapshot = snapshot_of(hub_id)
    if snapshot.unreachable:
        wanted = whole(snapshot, assets, projector)
    else:
        wanted = _download(snapshot, assets, progress, refuse, projector)
        transfer.note_revision(hub_id, snapshot.commit)
    entry = snapshot.folder / (wanted.entry or "")
    return Fetched(entry, snapshot.name, notes_of(snapshot), projector_of(snapshot, wanted))


def projector_of(snapshot: Snapshot, wanted: Wanted) -> Mmproj:
    """The projector file that goes with a GGUF model of a hub, where its files are here."""
    if wanted.projector is not None:
        return Mmproj(snapshot.folder / wanted.projector)
    if not wanted.projectors:
        return NOTHING
    repo, revision = snapshot.hub_id.repo, snapshot.hub_id.revision
    ids = [HubId(repo, revision, file=name).at(revision) for name in wanted.projectors]
    return Mmproj(why=several_say(ids))


def snapshot_of(hub_id: HubId) -> Snapshot:
    """What the hub says of a model now, else what the cache has of it."""
    try:
        with transfer.typed_errors(hub_id, f"asking for {hub_id}"):
            found = transfer.api().model_info(
                hub_id.repo,
                revision=hub_id.revision,
                timeout=transfer.TIMEOUT_S,
                files_metadata=True,
            )
    except HubUnavailable as error:
        return _cached(hub_id, error)
    commit = found.sha or ""
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise CorruptFile(f"{hub_id}: the hub names the commit {commit!r:.80}")
    files = safe_files({s.rfilename: s.size for s in found.siblings or ()})
    blobs = {s.rfilename: s.lfs.sha256 if s.lfs else s.blob_id for s in found.siblings or ()}
    known = {name: blobs[name] for name in files if blobs[name]}
    return Snapshot(hub_id, commit, files, known, _licence_of(found.card_data))


def named_projector(mmproj: Any, progress: bool | ProgressFn | None = None) -> Mmproj | None:
    """The projector file that a caller names, downloaded where it is a hub id; None where none is
    named (None, False). InvalidRequest where there is no such file."""
    check_mmproj(mmproj)
    if mmproj is None or mmproj is False:
        return None
    text = os.path.expanduser(os.fspath(mmproj))
    if os.path.isfile(text):
        return Mmproj(Path(text), named=True)
    hub_id = parse_hub_id(mmproj) if isinstance(mmproj, str) else None
    if hub_id is None or hub_id.file is None:
        raise InvalidRequest(
            f"mmproj {text!r:.300}: no such file, and no hub id of one (org/name/file.gguf)"
        )
    report = progress_function(progress)
    fetched = fetch(hub_id, (), report, lambda snapshot, wanted: None, projector=False)
    return Mmproj(fetched.path, named=True)


def fetch_small(snapshot: Snapshot, assets: tuple[str, ...], projector: bool = True) -> Wanted:
    """Downloads what is small (an index of shards too) and says which weights belong to it."""
    wanted = choose_files(snapshot.files, snapshot.hub_id, assets)
    wanted = with_projector(wanted, snapshot.files) if projector else wanted
    for name in wanted.small:
        _fetch(snapshot, name, lambda done: None)
    return _expanded(snapshot, wanted)


def _download(
    snapshot: Snapshot,
    assets: tuple[str, ...],
    progress: ProgressFn,
    refuse: Callable[[Snapshot, Wanted], None],
    projector: bool,
) -> Wanted:
    wanted = fetch_small(snapshot, assets, projector)
    refuse(snapshot, wanted)
    to_come = [name for name in wanted.weights if _state(snapshot, name) in ("damaged", "missing")]
    missing = {name: snapshot.files[name] or 0 for name in to_come}
    total, done = sum(missing.values()), 0
    transfer.check_room(
        snapshot.hub_id.repo, {snapshot.blobs.get(n, n): size for n, size in missing.items()}
    )
    label = f"downloading {snapshot.hub_id.repo}"
    for name in wanted.weights:

        def count(bytes_here: int, before: int = done) -> None:
            if total:
                progress(min(before + bytes_here, total - 1), total, label)

        _fetch(snapshot, name, count)
        done += missing.get(name, 0)
    if total:
        progress(total, total, label)
    return wanted


def _state(snapshot: Snapshot, name: str) -> transfer.State:
    """What the cache has of a file."""
    blob = snapshot.blobs.get(name)
    kept = transfer.storage_of(snapshot.hub_id.repo) / "blobs" / blob if blob else None
    return transfer.state_of(snapshot.folder / name, kept, snapshot.files[name])


def _fetch(snapshot: Snapshot, name: str, count: transfer.Count) -> Path:
    size, state = snapshot.files[name], _state(snapshot, name)
    return transfer.fetch_file(snapshot.hub_id, snapshot.commit, name, size, state, count)


def _expanded(snapshot: Snapshot, wanted: Wanted) -> Wanted:
    if wanted.weights:
        return wanted
    index = snapshot.folder / INDEX
    weight_map = read_json_object(index).get("weight_map")
    return with_shards(wanted, weight_map, snapshot.files, str(index))


def _cached(hub_id: HubId, error: HubUnavailable) -> Snapshot:
    commit = transfer.cached_commit(hub_id)
    folder = transfer.storage_of(hub_id.repo) / "snapshots" / (commit or "-")
    if commit is None or not folder.is_dir():
        raise HubUnavailable(f"{error}; and the cache has no snapshot of {hub_id}") from error
    found = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return Snapshot(hub_id, commit, safe_files(found), unreachable=str(error))


def whole(snapshot: Snapshot, assets: tuple[str, ...], projector: bool = True) -> Wanted:
    """The files of a cached snapshot; HubUnavailable where it has not all of them."""
    try:
        wanted = choose_files(snapshot.files, snapshot.hub_id, assets, here=True)
        wanted = with_projector(wanted, snapshot.files) if projector else wanted
        return _expanded(snapshot, wanted)
    except Error as error:
        if isinstance(error, InvalidRequest) and not (
            snapshot.hub_id.quant or snapshot.hub_id.file
        ):
            raise  # several GGUF files are here
        raise HubUnavailable(
            f"{snapshot.unreachable}; and the cached snapshot "
            f"{snapshot.commit[:12]} of {snapshot.hub_id.repo} is not whole: {error}"
        ) from error


def notes_of(snapshot: Snapshot) -> list[str]:
    """What to tell of where a model came from."""
    notes = []
    if snapshot.unreachable:
        notes.append(
            f"hub: not asked, the cached snapshot {snapshot.commit[:12]} was used "
            f"({snapshot.unreachable})"
        )
    if snapshot.licence:
        notes.append(f"licence: {snapshot.licence} (as the hub says)")
    return notes


def _licence_of(card: Any) -> str | None:
    """The licence of a model card: its name where the licence is "other"."""
    licence = getattr(card, "license", None)
    named = getattr(card, "license_name", None)
    found = named if licence == "other" and named else licence
    if isinstance(found, list):
        found = ", ".join(str(one) for one in found)
    return str(found)[:200] if found else None
