"""What is in a model folder or packed file, without packing or running it."""

from __future__ import annotations

from typing import Any

from musespark.families.tensors import canonical_shapes
from musespark.weights import pack
from musespark.weights.loading import (
    Source,
    loaded_from,
    locate,
    packed_at,
)
from musespark.weights.model_source import understand
from musespark.weights.packed import PackedFile


def inspect(source: Source = None, *, verify: bool = False) -> dict[str, Any]:
    """Family, formats, sizes and tensors of a model.

    Keys: source, packed, family, quantize (of a packed file), parameters, bytes, formats
    {format: bytes}, layers, hidden, vocab, max_context, files, notes, verified, and tensors, a list
    of {name, format, shape, bytes}. With `verify` every checksum of a packed file is checked
    (``CorruptFile`` names the first that fails); plain safetensors and GGUF have none, and
    ``verified`` says so. Raises what :func:`open_model` raises for files that cannot be run.
    """
    path = locate(source).path
    packed = packed_at(path)
    if packed is None:
        return _of_folder(path)
    try:
        return _of_packed(packed, path, verify)
    finally:
        packed.close()


def _of_packed(packed: PackedFile, path: Any, verify: bool) -> dict[str, Any]:
    loaded = loaded_from(packed, path, "auto", cached=False)
    if verify:
        loaded.verify()
    shapes = canonical_shapes(loaded.spec)
    tensors = [
        {"name": p.name, "format": p.format, "shape": list(shapes[p.name]), "bytes": p.nbytes}
        for p in packed.planned.values()
    ]
    info = loaded.info
    return {
        "source": info["path"],
        "packed": True,
        "family": info["family"],
        "quantize": info["quantize"],
        "parameters": info["parameters"],
        "bytes": info["bytes"],
        "formats": info["formats"],
        "layers": len(loaded.spec.layers),
        "hidden": loaded.spec.hidden,
        "vocab": loaded.spec.vocab,
        "max_context": loaded.spec.max_context,
        "files": sorted(loaded.assets),
        "notes": info["notes"],
        "verified": "every checksum" if verify else "header, vectors and assets",
        "tensors": tensors,
    }


def _of_folder(path: Any) -> dict[str, Any]:
    folder = understand(path)
    try:
        shapes = canonical_shapes(folder.spec)
        folder.plan("q8")  # the checks of shape and type that packing would make
        tensors, formats = [], {}
        for name, part in folder.mapping.sources.items():
            dtype = folder.checkpoint.entry(part.name).dtype
            size = pack.stored_nbytes(folder.checkpoint, shapes[name], part)
            formats[dtype] = formats.get(dtype, 0) + size
            one = {"name": name, "format": dtype, "shape": list(shapes[name]), "bytes": size}
            tensors.append(one)
        return {
            "source": str(path),
            "packed": False,
            "family": folder.family,
            "quantize": None,
            "parameters": pack.count_parameters(shapes),
            "bytes": sum(formats.values()),
            "formats": formats,
            "layers": len(folder.spec.layers),
            "hidden": folder.spec.hidden,
            "vocab": folder.spec.vocab,
            "max_context": folder.spec.max_context,
            "files": sorted(folder.assets),
            "notes": folder.notes,
            "verified": "headers only: safetensors and GGUF files have no checksums",
            "tensors": tensors,
        }
    finally:
        folder.checkpoint.close()
