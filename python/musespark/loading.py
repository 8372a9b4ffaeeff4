"""From a source and options to a running model: :func:`load`."""

from __future__ import annotations

import os
from typing import Any

from musespark.errors import InvalidRequest
from musespark.families.spec import ModelSpec
from musespark.memory import KV_FORMATS, choose_context
from musespark.model import Model
from musespark.weights import can_merge, merge, open_model, read_adapter, read_adapter_config

MAX_THREADS, MAX_CONTEXT = 1024, 2**31 - 1
_LATER_KV = ("kv8v4", "kv4")


def load(
    source: str | os.PathLike[str] | None = None,
    *,
    quantize: str = "auto",
    kv: str = "auto",
    context: int | None = None,
    threads: int | None = None,
    adapter: str | os.PathLike[str] | None = None,
    progress: Any = None,
    verify: bool = False,
) -> Model:
    """Loads a model.

    ``source``: None is Spark Nano, the model inside the package; else a folder (config.json,
    safetensors, tokenizer.json), a GGUF file, a packed file, or a hub id: ``org/name``,
    ``org/name@revision``, ``org/name:Q4_K_M`` and ``org/name/file.gguf``. A path that exists wins
    over a hub id. What is not cached is downloaded, and what is not packed is packed once into the
    cache folder, with a progress bar on a terminal (``progress``: False for none, or a function of
    done, total and what). ``quantize``: auto (what is quantized already keeps its precision), none
    (as stored), q8 or q4; auto is q8 up to 50 million parameters and q4 above. ``kv``: auto, f32 or
    kv8, the format of keys and values. ``context``: the most tokens of one sequence; None is the
    model's own limit or what fits in half of the free memory. ``threads``: None is every core this
    process may use. ``verify``: check every checksum of the packed file first; it reads all of it.
    ``adapter``: the folder of a LoRA adapter (PEFT's adapter_config.json and
    adapter_model.safetensors) that every request gets: merged into weights that are floats
    (``quantize="none"``), beside packed ones. To switch adapters, or to have none in some requests,
    leave it out and use :meth:`Model.load_adapter`. ``model.info`` says what was chosen.

    The packed file is mapped, not copied. Replace it by renaming another over it, and the running
    model keeps the old one; who overwrites or truncates it in place changes the model, or ends the
    process with SIGBUS.

    Raises UnsupportedModel, CorruptFile, InvalidRequest; MemoryBudgetExceeded, which says what
    would fit; HubUnavailable and AccessDenied; and OSError where the disk is full.
    """
    if source is not None and not isinstance(source, (str, os.PathLike)):
        raise InvalidRequest(f"source: got {source!r:.60}, allowed is a path or None")
    if progress is not None and not isinstance(progress, bool) and not callable(progress):
        raise InvalidRequest(f"progress: got {progress!r:.60}, allowed is a bool or a function")
    if not isinstance(kv, str) or kv not in KV_FORMATS:
        known = list(KV_FORMATS)
        if kv in _LATER_KV:
            raise InvalidRequest(f"kv: {kv!r} is not part of this version; there are {known}")
        raise InvalidRequest(f"kv: got {kv!r}, allowed is one of {known}")
    _check_count("threads", threads, MAX_THREADS)
    _check_count("context", context, MAX_CONTEXT)
    if not isinstance(verify, bool):
        raise InvalidRequest(f"verify: got {verify!r:.60}, allowed is a bool")

    lora = None if adapter is None else read_adapter_config(adapter)

    def admit(spec: ModelSpec, weights: dict[str, int], recipe: str) -> None:
        # Merged into floats it takes nothing of its own; the model counts what it then is.
        beside = lora.stored_bytes() if lora is not None and recipe != "none" else 0
        choose_context(spec, weights, recipe, KV_FORMATS[kv], context, beside)

    weights = open_model(source, quantize=quantize, progress=progress, admit=admit)
    try:
        if verify:
            weights.verify(progress)
        adapted = None
        if lora is not None:
            adapted = read_adapter(lora, weights.spec, weights.info["family"])
            if can_merge(weights, adapted):
                merge(weights, adapted)
        return Model(weights, kv=kv, context=context, threads=threads, adapter=adapted)
    except BaseException:
        weights.close()
        raise


def _check_count(name: str, value: Any, most: int) -> None:
    if value is None or (type(value) is int and 1 <= value <= most):
        return
    raise InvalidRequest(f"{name}: got {value!r:.60}, allowed is 1 to {most} or None")
