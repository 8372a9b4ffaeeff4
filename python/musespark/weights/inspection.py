"""What is in a model folder, packed file or hub's model, without packing or running it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from musespark.errors import CorruptFile, HubUnavailable
from musespark.families.spec import ModelSpec
from musespark.families.vision.beside import packed_shapes
from musespark.untrusted import MAX_TOKENIZER_BYTES, parse_json_object
from musespark.weights import hub, pack
from musespark.weights.hubheaders import remote_checkpoint, remote_gguf, remote_projector
from musespark.weights.kv_choice import KvChoice, report_of
from musespark.weights.licence import licence_of
from musespark.weights.loading import (
    ASSETS,
    EMBEDDED_PACKED,
    Source,
    hub_id_of,
    loaded_from,
    local_path,
    locate,
    packed_at,
)
from musespark.weights.mmproj import NOTHING, Mmproj, refuse_beside
from musespark.weights.model_source import ModelFolder, understand
from musespark.weights.packed import PackedFile
from musespark.weights.tower_choice import tower_report


@dataclass(frozen=True)
class Inspection:
    """What :func:`look` found: the report of :func:`inspect`, the model as data and the bytes of
    its weights for each recipe it can have (a packed file: its own alone), ``auto`` the one that
    load takes by itself, ``kv`` what a packed file records of keys and values.

    ``spec`` is None where the model is not known without downloading it.
    """

    report: dict[str, Any]
    spec: ModelSpec | None
    weights: dict[str, int]
    auto: str = ""
    kv: KvChoice | None = None
    merges: int | None = None  # of the tokenizer; None: not known


def inspect(source: Source = None, *, verify: bool = False, mmproj: Any = None) -> dict[str, Any]:
    """Family, formats, sizes and tensors of a model. `mmproj`: as for :func:`open_model`.

    Keys: source, packed, family, quantize (of a packed file), calibration (of one that was
    calibrated: method, tokens and their checksum; else None), kv (what was measured of formats of
    keys and values, weights/kv_choice.py; else None), tower (what was measured of a vision tower's
    layers, weights/tower_choice.py; else None), licence (None where none is stated),
    parameters, bytes, formats {format: bytes}, weights {recipe: bytes once packed}, layers, hidden,
    vocab, max_context, files, notes, verified, and tensors, a list of {name, format, shape, bytes}.
    With `verify` every checksum of a packed file is checked (``CorruptFile`` names the first that
    fails); plain safetensors and GGUF have none, and ``verified`` says so.

    Of a hub's model that is not in the cache only small files and the headers of the weights are
    fetched. Raises what :func:`open_model` raises for files that cannot be run.
    """
    return look(source, verify=verify, mmproj=mmproj).report


def look(source: Source = None, *, verify: bool = False, mmproj: Any = None) -> Inspection:
    """:func:`inspect`, with what memory is estimated from."""
    if local_path(source) is None:
        return _of_hub(hub.snapshot_of(hub_id_of(source)), verify, mmproj)
    located = locate(source, mmproj=mmproj)
    found = _of_path(located.path, verify, located.mmproj)
    if source is None:
        kv = _of_path(EMBEDDED_PACKED, False, NOTHING).kv if EMBEDDED_PACKED.exists() else None
        more = {"source": located.name, "kv": report_of(kv, found.spec) if found.spec else None}
        found = replace(found, report=found.report | more, kv=kv)
    return found


def _of_path(path: Path, verify: bool, mmproj: Mmproj) -> Inspection:
    packed = packed_at(path)
    if packed is None:
        return _of_folder(understand(path, mmproj=mmproj), str(path))
    try:
        refuse_beside(mmproj, path)
        return _of_packed(packed, path, verify)
    finally:
        packed.close()


def _of_hub(snapshot: hub.Snapshot, verify: bool, asked: Any) -> Inspection:
    named, search = hub.named_projector(asked), asked is None
    if snapshot.unreachable:
        wanted = hub.whole(snapshot, ASSETS, search)
    else:
        wanted = hub.fetch_small(snapshot, ASSETS, search)
    here = all((snapshot.folder / name).exists() for name in wanted.weights)
    if here:
        mmproj = named or hub.projector_of(snapshot, wanted)
        found = _of_path(snapshot.folder / (wanted.entry or ""), verify, mmproj)
    elif wanted.entry is not None and wanted.entry.lower().endswith(".gguf"):
        found = _of_gguf_headers(snapshot, wanted, wanted.entry, named)
    elif (snapshot.folder / "config.json").exists():
        headers = remote_checkpoint(snapshot, wanted.weights)
        folder = understand(snapshot.folder, headers, named or NOTHING)
        found = _of_folder(folder, snapshot.name)
    else:
        found = _unknown(snapshot, wanted)
    notes = [*found.report["notes"], *hub.notes_of(snapshot)]
    if not here:
        notes.append("the weights are on the hub: only their headers were read")
    licence = f"{snapshot.licence} (the hub)" if snapshot.licence else found.report["licence"]
    report = found.report | {"source": snapshot.name, "licence": licence, "notes": notes}
    return replace(found, report=report)


def _of_gguf_headers(
    snapshot: hub.Snapshot, wanted: hub.Wanted, entry: str, named: Mmproj | None
) -> Inspection:
    try:
        headers = remote_gguf(snapshot, entry)
        mmproj = named or remote_projector(snapshot, wanted)
    except HubUnavailable as error:  # a mirror that answers no ranges
        found = _unknown(snapshot, wanted)
        found.report["notes"].append(str(error))
        return found
    return _of_folder(understand(snapshot.folder / entry, headers, mmproj), snapshot.name)


def _unknown(snapshot: hub.Snapshot, wanted: hub.Wanted) -> Inspection:
    """A model whose file says what it is: nothing is known before it is downloaded."""
    sizes = [snapshot.files[name] or 0 for name in wanted.weights]
    report: dict[str, Any] = {
        "source": snapshot.name,
        "packed": None,
        "family": None,
        "quantize": None,
        "calibration": None,
        "kv": None,
        "tower": None,
        "licence": None,
        "bytes": sum(sizes),
        "formats": {},
        "weights": {},
        "files": list(wanted.weights),
        "notes": ["family, shapes and memory are in the file itself: not known before it is here"],
        "verified": "nothing",
        "tensors": [],
    }
    return Inspection(report, None, {})


def _of_packed(packed: PackedFile, path: Path, verify: bool) -> Inspection:
    loaded = loaded_from(packed, path, "auto", cached=False)
    if verify:
        loaded.verify()
    shapes = packed_shapes(loaded.spec, loaded.vision)
    tensors = [
        {"name": p.name, "format": p.format, "shape": list(shapes[p.name]), "bytes": p.nbytes}
        for p in packed.planned.values()
    ]
    info = loaded.info
    weights = {info["quantize"]: info["bytes"]}
    report = {
        "source": info["path"],
        "packed": True,
        "family": info["family"],
        "quantize": info["quantize"],
        "calibration": info["calibration"],
        "kv": report_of(info["kv"], loaded.spec),
        "tower": tower_report(info["tower"]),
        "licence": licence_of(path if path.is_dir() else path.parent),
        "parameters": info["parameters"],
        "bytes": info["bytes"],
        "formats": info["formats"],
        "weights": weights,
        **_shape_of(loaded.spec),
        "files": sorted(loaded.assets),
        "notes": info["notes"],
        "verified": "every checksum" if verify else "header, vectors and assets",
        "tensors": tensors,
    }
    merges = _merges(loaded.assets)
    return Inspection(report, loaded.spec, weights, info["quantize"], info["kv"], merges)


def _of_folder(folder: ModelFolder, source: str) -> Inspection:
    try:
        shapes = folder.shapes
        sources, weights = folder.mapping.sources, folder.weights()
        where = folder.path if folder.path.is_dir() else folder.path.parent
        tensors, formats = [], {}
        for name, part in sources.items():
            dtype = folder.checkpoint.entry(part.name).dtype
            size = pack.stored_nbytes(folder.checkpoint, shapes[name], part)
            formats[dtype] = formats.get(dtype, 0) + size
            one = {"name": name, "format": dtype, "shape": list(shapes[name]), "bytes": size}
            tensors.append(one)
        report = {
            "source": source,
            "packed": False,
            "family": folder.family,
            "quantize": None,
            "calibration": None,
            "kv": None,
            "tower": None,
            "licence": licence_of(where) or folder.licence,
            "parameters": pack.count_parameters(shapes),
            "bytes": sum(formats.values()),
            "formats": formats,
            "weights": weights,
            **_shape_of(folder.spec),
            "files": sorted(folder.assets),
            "notes": folder.notes + folder.aside,
            "verified": "headers only: safetensors and GGUF files have no checksums",
            "tensors": tensors,
        }
        merges = _merges(folder.assets)
        return Inspection(report, folder.spec, weights, folder.recipe("auto"), merges=merges)
    finally:
        folder.checkpoint.close()


def _merges(assets: Mapping[str, bytes]) -> int | None:
    """How many merges the tokenizer has: they are most of what it takes in memory."""
    text = assets.get("tokenizer.json")
    if text is None:
        return None
    try:
        model = parse_json_object(text, "tokenizer.json", MAX_TOKENIZER_BYTES).get("model")
    except CorruptFile:  # whoever needs it says so
        return None
    merges = model.get("merges") if isinstance(model, dict) else None
    return len(merges) if isinstance(merges, list) else 0


def _shape_of(spec: ModelSpec) -> dict[str, int]:
    return {
        "layers": len(spec.layers),
        "hidden": spec.hidden,
        "vocab": spec.vocab,
        "max_context": spec.max_context,
    }
