"""From a model folder to one packed file: :func:`convert`."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from musespark import _core
from musespark.errors import InvalidRequest
from musespark.families.spec import ModelSpec
from musespark.untrusted import checked_path
from musespark.weights import pack
from musespark.weights.calibration import Calibration, Guides, check_method
from musespark.weights.kv_choice import report_of
from musespark.weights.loading import (
    Ready,
    Source,
    Text,
    ignored,
    loaded_from,
    locate,
    open_packed,
    pack_folder,
    packed_at,
)
from musespark.weights.model_source import ModelFolder, understand
from musespark.weights.progress import ProgressFn, progress_function
from musespark.weights.quantized.source import QuantizedSource
from musespark.weights.safetensors import SafetensorsFile
from musespark.weights.tower_choice import tower_report
from musespark.weights.tower_packing import Look

# Called like Ready, gives what to calibrate with.
Calibrate = Callable[[ModelSpec, dict[str, bytes], str], Calibration]
_OTHER_SUFFIXES = (".gguf", ".bin", ".pt", ".pth", ".ckpt", ".json", ".onnx")


def convert(
    source: Source,
    destination: str | os.PathLike[str],
    *,
    quantize: str = "q4",
    progress: bool | ProgressFn | None = None,
    ready: Ready | None = None,
    method: str | None = None,
    calibrate: Calibrate | None = None,
    text: Text | None = None,
    look: Look | None = None,
    mmproj: Any = None,
) -> dict[str, Any]:
    """Packs the model folder or GGUF file `source` into `destination`; returns its ``info``.

    `quantize`: q4 unless given; q8, none (as stored), or auto as in :func:`musespark.load`. The
    file appears whole or not at all, in place of one that is there; a full disk raises
    :class:`musespark.WriteFailed`. What a killed conversion to the same destination left is
    removed. Peak memory stays below 500 MB besides the mapped file. `ready`: as for
    :func:`open_model`. `method` and `calibrate`, both or none: see weights/calibration.py; the
    model that runs is packed beside `target` into a file without a name. `text`
    and `look`, and `mmproj`: as for :func:`open_model`.
    """
    pack.check_quantize(quantize)
    target = checked_path(destination, "destination")
    if target.is_dir():
        raise InvalidRequest(f"destination {target} is a folder; a file name is needed")
    if not target.parent.is_dir():
        raise InvalidRequest(f"destination {target}: the folder {target.parent} does not exist")
    located = locate(source, progress, mmproj=mmproj)
    path = located.path
    already = packed_at(path)
    if already is not None:
        already.close()
        raise InvalidRequest(f"source {path} is packed already; give the original model folder")
    folder = understand(path, mmproj=located.mmproj)
    try:
        if target.exists() and any(f.exists() and target.samefile(f) for f in folder.own_files):
            raise InvalidRequest(f"destination {target} is a file of the source")
        if target.suffix.lower() in _OTHER_SUFFIXES:
            raise InvalidRequest(
                f"destination {target}: a packed file is safetensors, and is not read as "
                f"{target.suffix}; call it {target.with_suffix('.safetensors').name}"
            )
        if ready is not None:
            ready(folder.spec, folder.all_assets, str(folder.path))
        recipe = folder.recipe(quantize)
        if method is not None and calibrate is not None:
            check_method(method, recipe)
            _pack_calibrated(folder, target, recipe, progress, calibrate, text, look)
        else:
            label = f"packing {target.name}"
            pack_folder(folder, target, recipe, progress, label, text=text, look=look)
    finally:
        folder.checkpoint.close()
    loaded = loaded_from(open_packed(SafetensorsFile(target)), path, recipe, cached=False)
    loaded.close()
    loaded.info["notes"] += folder.aside
    kv = report_of(loaded.info["kv"], folder.spec)
    tower = tower_report(loaded.info["tower"])
    return loaded.info | {"ignored": ignored(folder), "kv": kv, "tower": tower}


def _pack_calibrated(
    folder: ModelFolder,
    target: Path,
    recipe: str,
    progress: bool | ProgressFn | None,
    calibrate: Calibrate,
    text: Text | None,
    look: Look | None,
) -> None:
    """Packs with guides from a run of the model, unquantized where it is small, else as q8."""
    if isinstance(folder.checkpoint, QuantizedSource):
        raise InvalidRequest(f"{folder.path} is quantized already: calibration is for floats")
    calibration = calibrate(folder.spec, folder.all_assets, str(folder.path))
    small = pack.resolve_quantize("auto", folder.shapes, set()) == "q8"
    report = progress_function(progress)
    total = folder.weights()[recipe]
    opened = []
    what_runs = "none" if small else "q8"

    def use(path: Path) -> None:
        opened.append(open_packed(SafetensorsFile(path)))

    pack_folder(folder, target, what_runs, progress, "packing what runs", use=use)
    packed = opened[0]
    try:
        guides = Guides(
            calibration,
            folder.spec,
            packed.tensors(),
            folder.plan(recipe),
            threads=_core.count_cores()["usable"],
            report=lambda what: report(0, total, what),
        )
        label = f"packing {target.name}"
        more = {"text": text, "look": look, "guides": guides}
        pack_folder(folder, target, recipe, progress, label, **more)
    finally:
        packed.close()
