"""Which files of a repository a model needs: never pickled ones, never a second copy of weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from musespark.errors import CorruptFile, InvalidRequest, UnsupportedModel
from musespark.weights.hubids import HubId
from musespark.weights.mmproj import is_projector

INDEX = "model.safetensors.index.json"
MAX_SHARDS = 4096
_SAFE_PATH = re.compile(r"(?:[\w][\w.+ ()\[\]-]{0,254}/){0,3}[\w][\w.+ ()\[\]-]{0,254}", re.ASCII)
_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_IMPORTANCE = re.compile(r"(?:^|[/._-])imatrix(?=[/._-])", re.IGNORECASE)  # no models either
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Wanted:
    """The files to have, in the order to fetch them: whoever has the last has all of them.

    ``small`` are config, tokenizer and so on; ``weights`` the safetensors or GGUF files; ``entry``
    the file that is opened, None where it is the folder. ``projectors``: the projector files
    (mmproj) beside a GGUF model; of one alone it is among the ``weights`` too.
    """

    small: tuple[str, ...]
    weights: tuple[str, ...]
    entry: str | None = None
    projectors: tuple[str, ...] = ()

    @property
    def projector(self) -> str | None:
        """The one projector file there is."""
        return self.projectors[0] if len(self.projectors) == 1 else None


def safe_files(listing: Mapping[str, int | None]) -> dict[str, int | None]:
    """The files of a listing that a hub may make us write: plain relative paths."""
    return {
        name: size
        for name, size in listing.items()
        if _SAFE_PATH.fullmatch(name) and not any(p.strip(". ") == "" for p in name.split("/"))
    }


def choose_files(
    files: Mapping[str, int | None], hub_id: HubId, assets: tuple[str, ...], *, here: bool = False
) -> Wanted:
    """What to fetch of `files` (name -> bytes, None where that is not known).

    Shards are not known before their index was read: for a sharded model ``weights`` is empty and
    the index is the last of ``small``; see :func:`with_shards`. `here` says that the files are a
    cached snapshot, for the words of an error. Raises InvalidRequest where the id chooses no file
    or leaves a choice, UnsupportedModel where there are no weights that can be read.
    """
    small = tuple(name for name in assets if name in files)
    if hub_id.quant or hub_id.file:
        return _gguf(files, hub_id, here)
    if "config.json" in files:
        if "model.safetensors" in files:
            return Wanted(small, ("model.safetensors",))
        if INDEX in files:
            return Wanted((*small, INDEX), ())
    safetensors = [name for name in files if "/" not in name and name.endswith(".safetensors")]
    if len(safetensors) == 1 and not safetensors[0].startswith("adapter_"):
        return Wanted(small, (safetensors[0],))
    if _gguf_groups(files):
        return _gguf(files, hub_id, here)
    pickled = sorted(name for name in files if name.endswith(_PICKLED))
    hint = f"; {pickled[0]} is pickled, which is never read" if pickled else ""
    where = "the cached snapshot of " if here else ""
    raise UnsupportedModel(
        f"{where}{hub_id} has no model.safetensors, no {INDEX} and no GGUF file{hint}"
    )


def with_shards(
    wanted: Wanted, weight_map: object, files: Mapping[str, int | None], where: str
) -> Wanted:
    """`wanted` with the shards that an index's ``weight_map`` names; CorruptFile for odd ones."""
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptFile(f"{where}: weight_map is missing or empty")
    shards = {shard if isinstance(shard, str) else repr(shard) for shard in weight_map.values()}
    if len(shards) > MAX_SHARDS:
        raise CorruptFile(f"{where}: {len(shards)} shards, the limit is {MAX_SHARDS}")
    for shard in sorted(shards):
        if shard not in files or "/" in shard or not shard.endswith(".safetensors"):
            raise CorruptFile(f"{where}: shard {shard!r:.120} is not among the files")
    return replace(wanted, weights=tuple(sorted(shards)))


def with_projector(wanted: Wanted, files: Mapping[str, int | None]) -> Wanted:
    """`wanted` with the projector files beside a GGUF model."""
    entry = wanted.entry or ""
    if not entry.lower().endswith(".gguf") or is_projector(entry):
        return wanted
    folder = entry.rpartition("/")[0]
    found = sorted(n for n in files if is_projector(n) and n.rpartition("/")[0] == folder)
    more = tuple(found) if len(found) == 1 else ()
    return replace(wanted, weights=wanted.weights + more, projectors=tuple(found))


def _gguf_groups(files: Mapping[str, int | None]) -> dict[str, tuple[str, ...]]:
    """First file of each GGUF model -> all its files, in the order of their numbers."""
    groups: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    for name in sorted(files):
        if not name.lower().endswith(".gguf") or is_projector(name) or _IMPORTANCE.search(name):
            continue
        split = _SPLIT.fullmatch(name)
        key = f"{split['stem']}-of-{split['count']}" if split else name
        groups.setdefault(key, []).append(name)
        counts[key] = int(split["count"]) if split else 1
    return {names[0]: tuple(names) for key, names in groups.items() if len(names) == counts[key]}


def _gguf(files: Mapping[str, int | None], hub_id: HubId, here: bool) -> Wanted:
    groups = _gguf_groups(files)
    if hub_id.file is not None:
        found = [first for first, names in groups.items() if hub_id.file in names]
        if not found and hub_id.file in files:  # one that no list offers, asked for by name
            return Wanted((), (hub_id.file,), hub_id.file)
        asked = f"no GGUF file {hub_id.file!r}"
    elif hub_id.quant is not None:
        label = re.compile(rf"(?:^|[-._/]){re.escape(hub_id.quant)}(?=[-._/])", re.IGNORECASE)
        found = [first for first in groups if label.search(first)]
        asked = f"no one GGUF file of {hub_id.quant!r}"
    else:
        found = list(groups)
        asked = "several GGUF files and none was chosen"
    if len(found) == 1:
        return Wanted((), groups[found[0]], found[0])
    where = f"the cached snapshot of {hub_id.repo}" if here else hub_id.repo
    if not groups:
        raise InvalidRequest(f"{where} has {asked}: it has no GGUF file at all")
    raise InvalidRequest(f"{where} has {asked}; it has\n{_menu(hub_id, files, groups)}")


def _menu(
    hub_id: HubId, files: Mapping[str, int | None], groups: Mapping[str, tuple[str, ...]]
) -> str:
    """A line for each GGUF model: what to write to have it, and its size."""
    rows = []
    for first, names in groups.items():
        sizes = [files[name] for name in names]
        known = [size for size in sizes if size is not None]
        size = f"{sum(known) / 1e9:.2f} GB" if len(known) == len(sizes) else "size not known"
        split = f" in {len(names)} files" if len(names) > 1 else ""
        rows.append(f"  {_short_id(hub_id, first, groups)}    {size}{split}")
    return "\n".join(rows)


def _short_id(hub_id: HubId, first: str, groups: Mapping[str, tuple[str, ...]]) -> str:
    """The id that chooses the model whose first file is `first`."""
    if "/" not in first:
        return HubId(hub_id.repo, hub_id.revision, file=first).at(hub_id.revision)
    # A file in a folder has no id of its own: name it by a part of its path that no other has.
    parts = re.split(r"[-./]", re.sub(_SPLIT, r"\g<stem>.gguf", first).removesuffix(".gguf"))
    for part in reversed(parts):
        label = re.compile(rf"(?:^|[-._/]){re.escape(part)}(?=[-._/])", re.IGNORECASE)
        if part and [f for f in groups if label.search(f)] == [first]:
            return HubId(hub_id.repo, hub_id.revision, quant=part).at(hub_id.revision)
    return f"{first} (which no id can choose: fetch it yourself)"
