"""From a source (folder, GGUF or packed file, hub id) to weights that the core can run."""

from __future__ import annotations

import errno
import functools
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from musespark.errors import (
    CorruptFile,
    HubUnavailable,
    InvalidRequest,
    MemoryBudgetExceeded,
    UnsupportedModel,
)
from musespark.families.spec import ModelSpec, spec_from_dict, spec_to_file
from musespark.families.vision import VisionSpec
from musespark.families.vision.beside import packed_shapes, vision_from_dict
from musespark.untrusted import MAX_TOKENIZER_BYTES, no_tokenizer, read_small_file
from musespark.vocab import OUTLINE, make_outline
from musespark.weights import cache, hub, pack
from musespark.weights.files import WriteFailed
from musespark.weights.gguf import is_gguf
from musespark.weights.hubheaders import remote_gguf, remote_projector
from musespark.weights.hubids import GRAMMAR, SCHEME, HubId, parse_hub_id
from musespark.weights.kv_choice import Recorder, read_record
from musespark.weights.mmproj import NOTHING, SEARCH, Mmproj, refuse_beside
from musespark.weights.model_source import ASSETS, ModelFolder, read_config_files, understand
from musespark.weights.packed import PackedFile, is_packed
from musespark.weights.progress import ProgressFn, progress_function
from musespark.weights.quantized.config import FILES as QUANTIZATION_FILES
from musespark.weights.safetensors import SafetensorsFile
from musespark.weights.tower_choice import FORMATS, describe_tower, read_tower_record, record_of
from musespark.weights.tower_packing import Look, chosen_formats, measured_tower

Source = str | os.PathLike[str] | None
# Called with the model, the bytes of its weights for each recipe, and the recipe to be used.
Admit = Callable[[ModelSpec, dict[str, int], str], None]
# Called with the model, the files beside its weights, and the source's name, before it is packed.
Ready = Callable[[ModelSpec, dict[str, bytes], str], None]
# Called likewise, gives chunks of tokens to measure formats of keys and values with.
Text = Callable[[ModelSpec, dict[str, bytes], str], Sequence[np.ndarray]]
Refuse = Callable[[hub.Snapshot, hub.Wanted], None]
EMBEDDED = "Spark Nano, inside the package"
_AT_LEAST = "The weights are not here yet: their bytes are the least they can be"
_OUTLINE_FROM = 1 << 20  # bytes of a tokenizer.json; smaller ones are built in milliseconds
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)
_SET_CACHE = "set MUSESPARK_CACHE to a folder that can be written"
_WAITING = "waiting for the process that packs this model"
_NANO = Path(__file__).resolve().parent.parent / "nano"
# Made from _NANO by `musespark convert`; a test packs it again and compares.
EMBEDDED_PACKED = _NANO / "packed" / "nano-q8.safetensors"


@dataclass
class LoadedWeights:
    """An opened model.

    ``tensors`` is canonical name -> (format, rows, cols, view of the mapped file), ``tower`` the
    same of the vision tower (``vision``; None: there is none); ``assets`` the model folder's other
    files; ``info`` what was opened: family, quantize, quantize_auto (whether
    ``auto`` chose it now), parameters, bytes, formats {format: bytes}, weights {recipe: bytes, for
    each that could have been chosen}, path (of the packed file), source, cached, ignored {reason:
    tensors}, notes, calibration, and kv (a KvChoice; None where nothing was measured).
    """

    spec: ModelSpec
    tensors: dict[str, tuple[str, int, int, np.ndarray]]
    assets: dict[str, bytes]
    info: dict[str, Any]
    packed: PackedFile
    vision: VisionSpec | None = None
    tower: dict[str, tuple[str, int, int, np.ndarray]] = field(default_factory=dict)
    updated: str = ""  # checksum of numbers that came after the file's
    drafter: LoadedWeights | None = None  # that was opened with it
    beside: int = 0  # bytes that it takes

    @property
    def drafts(self) -> tuple[ModelSpec, dict[str, tuple[str, int, int, np.ndarray]]] | None:
        """The drafter as an engine takes it."""
        return None if self.drafter is None else (self.drafter.spec, self.drafter.tensors)

    def verify(self, progress: bool | ProgressFn | None = None) -> None:
        """Checks every checksum of the packed file; ``CorruptFile`` names the first that fails."""
        report = progress_function(progress)
        self.packed.verify(lambda done, total: report(done, total, "verifying"))

    def identity(self) -> str:
        """Checksum of what decides a result: spec, weights, and the adapter merged into them."""
        more = [text for text in (self.info.get("merged"), self.updated) if text]
        return "+".join([self.packed.identity(), *more])

    def close(self) -> None:
        """Lets the file go; tensors handed out before keep it mapped until they are gone."""
        self.tensors, self.tower = {}, {}
        self.packed.close()
        if self.drafter is not None:
            self.drafter.close()


def open_model(
    source: Source = None,
    *,
    quantize: str = "auto",
    progress: bool | ProgressFn | None = None,
    admit: Admit | None = None,
    ready: Ready | None = None,
    text: Text | None = None,
    look: Look | None = None,
    mmproj: Any = None,
) -> LoadedWeights:
    """Opens a model for running. Nothing of a packed file is read before it is used.

    `source`: None (Spark Nano, inside the package), a folder with config.json and safetensors, a
    GGUF file (of a split one the first part), a packed file, or a hub id (weights/hubids.py). What
    is not packed is packed once, into the cache (musespark.weights.cache), with a progress bar on a
    terminal; ``info["path"]`` says where. `quantize`: see weights/pack.py; for a packed file
    ``auto`` or what it was packed with. `admit` is asked before anything large is downloaded or
    packed, and raises for what does not fit; `ready` before anything is packed, and raises for what
    could not be used then. `text`: what formats of keys and values are measured with, where the
    model is packed now; None: they are not, and the file says nothing of them.
    `look`: what a tower's layers are measured with, likewise. `mmproj`: the projector file of a
    GGUF model, a path or the hub id of a file; None: the one that lies beside it; False: none.
    """
    pack.check_quantize(quantize)
    located = locate(source, progress, _refusal(quantize, admit), mmproj)
    path = located.path
    if source is None and quantize in ("auto", "q8") and EMBEDDED_PACKED.exists():
        path = EMBEDDED_PACKED
    loaded = _opened(path, located.mmproj, quantize, progress, admit, ready, text, look)
    loaded.info["source"] = located.name
    loaded.info["notes"] += located.notes
    return loaded


def _opened(
    path: Path,
    mmproj: Mmproj,
    quantize: str,
    progress: bool | ProgressFn | None,
    admit: Admit | None,
    ready: Ready | None,
    text: Text | None,
    look: Look | None,
) -> LoadedWeights:
    packed = packed_at(path)
    if packed is not None:
        try:
            refuse_beside(mmproj, path)
            return loaded_from(packed, path, quantize, cached=False)
        except BaseException:
            packed.close()
            raise
    folder = understand(path, mmproj=mmproj)
    try:
        weights = folder.weights()
        if admit is not None:
            admit(folder.spec, weights, folder.recipe(quantize))
            folder.check_tokenizer()
        loaded = _through_cache(folder, quantize, progress, ready, text, look)
    finally:
        folder.checkpoint.close()
    loaded.info["quantize_auto"] = quantize == "auto"
    loaded.info["weights"] = weights
    loaded.info["notes"] += folder.aside
    return loaded


def locate(
    source: Source,
    progress: bool | ProgressFn | None = None,
    refuse: Refuse | None = None,
    mmproj: Any = None,
) -> hub.Fetched:
    """The folder or file that a source names; a hub id is downloaded where it is not cached.

    `refuse` is called before weights are downloaded; see :func:`hub.fetch`. `mmproj`: see
    :func:`open_model`.

    A path that exists always wins, and nothing that looks like a path goes to a network (see
    :func:`musespark.weights.hubids.parse_hub_id`). InvalidRequest where there is none of both.
    """
    named = hub.named_projector(mmproj, progress)
    path = local_path(source)
    if path is None:
        report, admitted = progress_function(progress), refuse or _refusal()
        found = hub.fetch(hub_id_of(source), ASSETS, report, admitted, projector=mmproj is None)
        return found if named is None else replace(found, mmproj=named)
    name = EMBEDDED if source is None else str(path)
    return hub.Fetched(path, name, mmproj=named or (SEARCH if mmproj is None else NOTHING))


def local_path(source: Source) -> Path | None:
    """The folder or file that a source names on this machine, None where there is none."""
    if source is None:
        if not (_NANO / "config.json").exists() and not any(_NANO.glob("*.safetensors")):
            raise InvalidRequest("source is None: this installation has no embedded model")
        return _NANO
    if not isinstance(source, (str, os.PathLike)):
        raise InvalidRequest(f"source: got {source!r:.60}, allowed is a path or None")
    text = os.fspath(source)  # os.path.exists: Path.exists raises for names that are too long
    if not os.path.lexists(text):
        text = os.path.expanduser(text)
    if os.path.islink(text) and not os.path.exists(text):
        target = os.readlink(text)
        raise InvalidRequest(f"source {text!r:.300}: a link to {target!r:.300}, which is not there")
    return Path(text) if text and os.path.exists(text) else None


def hub_id_of(source: Source) -> HubId:
    """The hub id of a source that is no path; InvalidRequest where it cannot be one."""
    hub_id = parse_hub_id(source) if isinstance(source, str) else None
    if hub_id is None:
        raise InvalidRequest(
            f"source {os.fspath(source or '')!r:.300}: no such file or folder, and it looks "
            f"like a path; a hub id is {GRAMMAR}, and {SCHEME}org/name is one in any case"
        )
    return hub_id


def _refusal(quantize: str = "auto", admit: Admit | None = None) -> Refuse:
    """Refuses a model that cannot be run, before its weights are downloaded: by its config, by the
    header of its GGUF file."""

    def refuse(snapshot: hub.Snapshot, wanted: hub.Wanted) -> None:
        entry, folder = wanted.entry or "", snapshot.folder
        if all((folder / name).exists() for name in wanted.weights):
            return  # opening it tells
        if entry.lower().endswith(".gguf"):
            _refuse_gguf(snapshot, wanted, entry, quantize, admit)
        elif (folder / entry / "config.json").exists():
            _refuse_config(folder / entry / "config.json", quantize, admit)

    return refuse


def _refuse_config(config: Path, quantize: str, admit: Admit | None) -> None:
    folder = config.parent
    files = {
        name: read_small_file(folder / name, MAX_TOKENIZER_BYTES)
        for name in (config.name, *QUANTIZATION_FILES)
        if (folder / name).exists()
    }
    _, spec, _, _, sight = read_config_files(files, folder)
    if admit is not None:
        shapes = packed_shapes(spec, sight.spec)
        recipe = pack.resolve_quantize(quantize, shapes, set())
        try:
            admit(spec, pack.least_nbytes(shapes), recipe)
        except MemoryBudgetExceeded as error:
            raise MemoryBudgetExceeded(f"{error}. {_AT_LEAST}") from None


def _refuse_gguf(
    snapshot: hub.Snapshot, wanted: hub.Wanted, entry: str, quantize: str, admit: Admit | None
) -> None:
    try:
        headers = remote_gguf(snapshot, entry)
        mmproj = remote_projector(snapshot, wanted)
    except HubUnavailable:
        return  # a mirror that answers no ranges: the downloaded file tells
    folder = understand(snapshot.folder / entry, headers, mmproj)
    assets, weights = folder.made_assets(), folder.weights()
    if admit is not None:
        if "tokenizer.json" not in assets:
            raise UnsupportedModel(no_tokenizer(f"{snapshot.hub_id.repo}/{entry}"))
        admit(folder.spec, weights, folder.recipe(quantize))


def open_packed(file: SafetensorsFile) -> PackedFile:
    where = str(file.path)

    def shapes_of(spec: Any, vision: Any) -> dict[str, tuple[int, ...]]:
        return packed_shapes(spec_from_dict(spec, where), vision_from_dict(vision, where))

    return PackedFile(file, shapes_of)


def packed_at(path: Path) -> PackedFile | None:
    """The packed file that `path` is, or that is the one safetensors file of the folder `path`."""
    if path.is_file() and is_gguf(path):
        return None
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            return None
        path = found[0]
        file = SafetensorsFile(path)
        if not is_packed(file):
            file.close()
            return None
        return open_packed(file)
    file = SafetensorsFile(path)
    if not is_packed(file):
        file.close()
        if (path.parent / "config.json").exists():
            raise InvalidRequest(f"{path} is not packed; give its folder, {path.parent}")
        raise CorruptFile(
            f"{path}: the packed header (__metadata__.musespark) is missing; of one that is not "
            "packed give the folder, with config.json and tokenizer.json beside the weights"
        )
    return open_packed(file)


def loaded_from(packed: PackedFile, source: Path, quantize: str, *, cached: bool) -> LoadedWeights:
    """An opened packed file as the core takes it; `quantize` must be auto or the file's own."""
    if quantize not in ("auto", packed.quantize):
        raise InvalidRequest(
            f"quantize is {quantize!r}, but {packed.path} is packed as {packed.quantize!r}; "
            "convert the original model instead"
        )
    spec = spec_from_dict(packed.spec, str(packed.path))
    vision = vision_from_dict(packed.vision, str(packed.path))
    where, matrices = str(packed.path), packed.planned.values()
    tower_record = read_tower_record(packed.tower_record, vision, matrices, where)
    formats: dict[str, int] = {}
    for p in packed.planned.values():
        formats[p.format] = formats.get(p.format, 0) + p.nbytes
    info = {
        "family": packed.family,
        "quantize": packed.quantize,
        "quantize_auto": False,
        "parameters": pack.count_parameters(packed_shapes(spec, vision)),
        "bytes": sum(formats.values()),
        "formats": formats,
        "weights": {packed.quantize: sum(formats.values())},
        "path": str(packed.path),
        "source": str(source),
        "cached": cached,
        "ignored": {},
        "notes": list(packed.notes),
        "calibration": packed.calibration,
        "kv": read_record(packed.kv, spec, str(packed.path)),
        "tower": tower_record,
    }
    if tower_record is not None or any(p.format in FORMATS.values() for p in packed.of_tower()):
        info["notes"].append(f"vision tower: {describe_tower(tower_record)}")
    tensors, tower = packed.tensors(), packed.tower()
    return LoadedWeights(spec, tensors, packed.assets, info, packed, vision, tower)


def pack_folder(
    folder: ModelFolder,
    target: Path,
    recipe: str,
    progress: bool | ProgressFn | None,
    label: str,
    origin: str | None = None,
    text: Text | None = None,
    look: Look | None = None,
    **more: Any,
) -> None:
    report = progress_function(progress)
    tower = measured_tower(folder, recipe, look, report)
    kv = None
    if text is not None and folder.spec.writes:
        chunks = functools.partial(text, folder.spec, folder.all_assets, str(folder.path))
        kv = Recorder(folder.spec, chunks, lambda what: report(0, 1, what))
    pack.pack_checkpoint(
        folder.checkpoint,
        target,
        shapes=folder.shapes,
        sources=folder.mapping.sources,
        quantize=recipe,
        spec=spec_to_file(folder.spec),
        family=folder.family,
        notes=folder.notes,
        assets=_with_outline(folder.all_assets),
        progress=report,
        label=label,
        source=origin,
        kv=kv,
        vision=None if folder.vision is None else spec_to_file(folder.vision),
        tower=record_of(tower),
        chosen=chosen_formats(folder, tower),
        **more,
    )


def _with_outline(assets: dict[str, bytes]) -> dict[str, bytes]:
    """The assets, and what spares the next load from building a large tokenizer."""
    text = assets.get("tokenizer.json", b"")
    outline = make_outline(text) if len(text) >= _OUTLINE_FROM else None
    return assets if outline is None else assets | {OUTLINE: outline}


def _through_cache(
    folder: ModelFolder,
    quantize: str,
    progress: bool | ProgressFn | None,
    ready: Ready | None = None,
    text: Text | None = None,
    look: Look | None = None,
) -> LoadedWeights:
    """Opens the folder's packed file in the cache; writes it first where it is not there."""
    recipe = folder.recipe(quantize)
    measured = text is not None, look is not None
    key = cache.source_key(folder.path, folder.checkpoint, folder.assets, recipe, measured)
    target = cache.cached_path(key, folder.path, recipe)
    report = progress_function(progress)

    @functools.cache
    def planned() -> int:  # reads the scales of a quantized folder: not where it is packed already
        return sum(p.nbytes for p in folder.plan(recipe))

    def waiting(written: int) -> None:
        report(min(written, planned() - 1), planned(), _WAITING)

    try:
        loaded = _open_cached(folder, target) if target.exists() else None
        if loaded is not None:
            return loaded
        if ready is not None:
            ready(folder.spec, folder.all_assets, str(folder.path))
        with cache.packing_lock(target, waiting) as waited:
            if waited:
                report(planned(), planned(), _WAITING)
            # Another process may have written it while this one waited.
            loaded = _open_cached(folder, target) if target.exists() else None
            if loaded is None:
                label = f"packing into {cache.packed_folder()}"
                origin = str(folder.path.resolve())
                pack_folder(folder, target, recipe, progress, label, origin, text, look)
    except OSError as error:
        if error.errno in _NOT_WRITABLE:
            return _packed_for_now(folder, recipe, progress, error, text, look)
        if isinstance(error, WriteFailed):
            raise
        raise WriteFailed(
            error.errno or 0,
            f"the packing cache cannot be used ({error.strerror}); {_SET_CACHE}",
            str(target.parent),
        ) from error
    if loaded is None:
        loaded = loaded_from(
            open_packed(SafetensorsFile(target)), folder.path, recipe, cached=False
        )
        loaded.info["ignored"] = ignored(folder)
    return loaded


def _packed_for_now(
    folder: ModelFolder,
    recipe: str,
    progress: bool | ProgressFn | None,
    why: OSError,
    text: Text | None,
    look: Look | None,
) -> LoadedWeights:
    """Packs into a file without a name, in the folder for temporary files or else in memory: it is
    gone when the model is closed."""
    for parent in dict.fromkeys([tempfile.gettempdir(), "/dev/shm"]):
        try:
            with tempfile.TemporaryDirectory(prefix="musespark-", dir=parent) as made:
                target = Path(made) / "packed.safetensors"
                label = f"packing into {parent}, for now"
                pack_folder(folder, target, recipe, progress, label, text=text, look=look)
                packed = open_packed(SafetensorsFile(target))
        except OSError:  # full, or not writable either
            continue
        loaded = loaded_from(packed, folder.path, recipe, cached=False)
        loaded.info["ignored"] = ignored(folder)
        loaded.info["notes"].append(
            f"the packing cache {cache.packed_folder()} cannot be used ({os.strerror(why.errno)}): "
            f"packed into {parent} for this process alone; {_SET_CACHE}"
        )
        return loaded
    raise WriteFailed(
        why.errno or 0,
        f"the packing cache cannot be used ({os.strerror(why.errno)}), nor is there room for a "
        f"temporary file; {_SET_CACHE}",
        str(cache.packed_folder()),
    ) from why


def _open_cached(folder: ModelFolder, target: Path) -> LoadedWeights | None:
    """The cached file; None where it is damaged: it can be made again from the source."""
    try:
        packed = open_packed(SafetensorsFile(target))
    except (CorruptFile, FileNotFoundError):  # the latter: removed just now
        return None
    cache.mark_used(target)
    loaded = loaded_from(packed, folder.path, "auto", cached=True)
    loaded.info["ignored"] = ignored(folder)
    return loaded


def ignored(folder: ModelFolder) -> dict[str, int]:
    return {reason: len(names) for reason, names in folder.mapping.ignored.items()}
