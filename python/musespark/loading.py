"""From a source and options to a running model: :func:`load`."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from musespark.assets import check_usable, check_use
from musespark.calibration import read_calibration, sample_text
from musespark.drafters import bytes_of_drafter, drafter_of, give_drafter, open_drafter
from musespark.errors import InvalidRequest, UnsupportedModel
from musespark.families.spec import ModelSpec
from musespark.memory import KV_FORMATS, choose_context
from musespark.model import Model
from musespark.options import refuse_unknown
from musespark.untrusted import checked_path
from musespark.vision.opening import IMAGE_CACHE_BYTES, IMAGE_FOLDER_BYTES, open_eyes
from musespark.vision.pixels import open_pictures
from musespark.vision.samples import sample_views
from musespark.weights import (
    METHODS,
    Calibration,
    LoadedWeights,
    LoraConfig,
    LoraWeights,
    can_merge,
    merge,
    open_model,
    place,
    read_adapter,
    read_adapter_config,
)
from musespark.weights import convert as pack_into

MAX_THREADS, MAX_CONTEXT = 1024, 2**31 - 1
LOAD_OPTIONS = (
    *("quantize", "kv", "context", "threads", "prefix_cache", "adapter", "progress", "verify"),
    *("mmproj", "drafter"),
    *("lock_memory", "huge_pages", "prefix_folder", "prefix_folder_bytes"),
    *("prefix_cache_bytes", "image_cache_bytes", "image_folder", "image_folder_bytes"),
)
PREFIX_FOLDER_BYTES = 8 << 30


def load(
    source: str | os.PathLike[str] | None = None,
    *,
    quantize: str = "auto",
    kv: str = "auto",
    context: int | None = None,
    threads: int | None = None,
    prefix_cache: bool = True,
    prefix_cache_bytes: int | None = None,
    adapter: str | os.PathLike[str] | None = None,
    mmproj: str | os.PathLike[str] | bool | None = None,
    drafter: str | os.PathLike[str] | None = None,
    progress: Any = None,
    verify: bool = False,
    lock_memory: bool = False,
    huge_pages: bool = False,
    prefix_folder: str | os.PathLike[str] | None = None,
    prefix_folder_bytes: int = PREFIX_FOLDER_BYTES,
    image_cache_bytes: int = IMAGE_CACHE_BYTES,
    image_folder: str | os.PathLike[str] | None = None,
    image_folder_bytes: int = IMAGE_FOLDER_BYTES,
    **unknown: Any,
) -> Model:
    """Loads a model.

    ``source``: None is Spark Nano, the model inside the package; else a folder (config.json,
    safetensors, tokenizer.json), a GGUF file, a packed file, or a hub id: ``org/name``,
    ``org/name@revision``, ``org/name:Q4_K_M`` and ``org/name/file.gguf``. A path that exists wins
    over a hub id. What is not cached is downloaded, and what is not packed is packed once into the
    cache folder, with a progress bar on a terminal (``progress``: False for none, or a function of
    done, total and what). ``quantize``: auto (what is quantized already keeps its precision), none
    (as stored), q8 or q4; auto is q8 up to 50 million parameters and q4 above. ``kv``: the format
    of keys and values: f32; kv8, 8 bits each; kv8v4, values in 4 bits; kv4, both. auto is what the
    packed file records: for each KV head the smallest that stays within a stated error, measured
    when the model was packed (weights/kv_choice.py); kv8v4 where it records nothing. The first 64
    tokens of a text are at 8 bits in any case. ``context``: the most tokens of one sequence; None
    is the model's own limit or what fits in half of the free memory. ``threads``: None is every
    core this process may use.
    ``prefix_cache``: keep the keys and values of past prompts and answers in memory that is free
    for keys and values, so that a request which begins as an earlier one did computes only what is
    new (``usage.cached_tokens``); results are the same. ``prefix_cache_bytes``: at most so many
    bytes, the least recently used go first; None: all that is free, half of the machine's free
    memory with what requests use. ``verify``: check every checksum of the
    packed file first; it reads all of it.
    ``adapter``: the folder of a LoRA adapter (PEFT's adapter_config.json and
    adapter_model.safetensors) that every request gets: merged into weights that are floats
    (``quantize="none"``), beside packed ones. To switch adapters, or to have none in some requests,
    leave it out and use :meth:`Model.load_adapter`. ``model.info`` says what was chosen.
    ``mmproj``: the file with the vision tower of a GGUF model, as llama.cpp writes it: a path, or
    the hub id of a file (``org/name/mmproj-F16.gguf``). None takes the one ``*mmproj*.gguf`` that
    lies beside the model, here or on the hub, where it is made for this model; what was not taken,
    and why, stands in ``model.info.notes``. False takes none.
    ``drafter``: a block drafter made for this model (``muse_glimmer_assistant``) or a smaller model
    with the same tokens, named as a model is; ``"own"`` is the one that comes with the model (Spark
    Nano's, or the folder ``drafter`` in the model's): several tokens for one step of the model, the
    same to the bit; where it does not pay it rests (``timings``, ``speculation="off"``).
    ``lock_memory``: read all weights in and keep them in memory, whatever else asks for it; what
    the system does not allow raises MemoryBudgetExceeded with the limit. ``huge_pages``: copy the
    weights into memory of this process, in huge pages where the system has them; some processors
    read those faster, some slower (``musespark bench --huge-pages`` measures it), and processes no
    longer share the weights. ``prefix_folder``: keep the beginnings of prompts in this folder too,
    so that a long document is never computed twice, by this process or another; at most
    ``prefix_folder_bytes`` of files, the least recently used go first (8 GiB unless given).
    Any number of models and processes may share a folder. Its files hold what prompts said, are not
    encrypted, and are trusted as the model's own: keep it yours. Results are the same;
    :attr:`Model.prefix_folder` says what was read and written.
    Models that see: up to ``image_cache_bytes`` of embeddings of images are remembered (64 MiB
    unless given; in memory beside what :func:`musespark.estimate` counts), so that an image which
    stands in another conversation is not encoded again;
    ``image_folder``: keep them in this folder too, at most ``image_folder_bytes`` (2 GiB unless
    given), under the same terms as ``prefix_folder``.

    The packed file is mapped, not copied, but for ``huge_pages``. Replace it by renaming another
    over it, and the running model keeps the old one; who overwrites or truncates it in place
    changes the model, or ends the process with SIGBUS.

    Raises UnsupportedModel, CorruptFile, InvalidRequest; MemoryBudgetExceeded, which says what
    would fit; HubUnavailable and AccessDenied; and OSError where the disk is full.
    """
    refuse_unknown(unknown, LOAD_OPTIONS)
    given = {"quantize": quantize, "kv": kv, "context": context, "threads": threads}
    given |= {"lock_memory": lock_memory, "huge_pages": huge_pages, "prefix_cache": prefix_cache}
    given |= {"mmproj": mmproj, "drafter": drafter}
    given |= {"prefix_folder": prefix_folder, "prefix_folder_bytes": prefix_folder_bytes}
    given |= {"prefix_cache_bytes": prefix_cache_bytes, "image_cache_bytes": image_cache_bytes}
    given |= {"image_folder": image_folder, "image_folder_bytes": image_folder_bytes}
    return load_for(None, source, adapter=adapter, progress=progress, verify=verify, **given)


@dataclass(frozen=True)
class _Remember:
    """What a model remembers of prompts and images, and where: options of :func:`load`."""

    prefix_cache: bool = True
    prefix_cache_bytes: int | None = None
    prefix_folder: str | os.PathLike[str] | None = None
    prefix_folder_bytes: int = PREFIX_FOLDER_BYTES
    image_cache_bytes: int = IMAGE_CACHE_BYTES
    image_folder: str | os.PathLike[str] | None = None
    image_folder_bytes: int = IMAGE_FOLDER_BYTES

    def prefixes(self) -> tuple[Path, int] | None:
        _check_switches(prefix_cache=self.prefix_cache)
        if self.prefix_cache_bytes is not None:
            _check_bytes("prefix_cache_bytes", self.prefix_cache_bytes, 0)
        found = _folder("prefix_folder", self.prefix_folder, self.prefix_folder_bytes)
        if found and not self.prefix_cache:
            raise InvalidRequest(
                "prefix_folder: what it keeps goes through prefix_cache, which is off"
            )
        return found

    def images(self) -> tuple[Path, int] | None:
        _check_bytes("image_cache_bytes", self.image_cache_bytes, 0)
        return _folder("image_folder", self.image_folder, self.image_folder_bytes)


def load_for(
    use: str | None,
    source: str | os.PathLike[str] | None,
    *,
    quantize: str,
    kv: str,
    context: int | None,
    threads: int | None,
    adapter: str | os.PathLike[str] | None,
    progress: Any,
    verify: bool,
    lock_memory: bool,
    huge_pages: bool,
    mmproj: Any = None,
    drafter: str | os.PathLike[str] | None = None,
    **remembered: Any,
) -> Model:
    """:func:`load` for one use (chat, generate, embed; None: any): a model that is not for it is
    refused before it is packed."""
    _check_options(progress, kv, threads, context)
    _check_switches(verify=verify, lock_memory=lock_memory, huge_pages=huge_pages)
    remember = _Remember(**remembered)
    prefixes, images = remember.prefixes(), remember.images()
    eyes = functools.partial(open_eyes, cache_bytes=remember.image_cache_bytes, folder=images)
    lora = None if adapter is None else read_adapter_config(adapter)

    def ready(spec: ModelSpec, assets: dict[str, bytes], name: str) -> None:
        check_usable(spec, assets, name, use)

    more = {"quantize": quantize, "progress": progress, "text": sample_text, "look": sample_views}
    with contextlib.ExitStack() as opened:
        drafts = _opened_drafter(opened, drafter_of(drafter, source), progress)
        admit = _admission(source, kv, context, lora, drafts)
        weights = open_model(source, admit=admit, ready=ready, mmproj=mmproj, **more)
        opened.callback(weights.close)
        _refuse_drafter(weights.spec, source)
        if drafts is not None:
            give_drafter(weights, drafts, context)
        if use is not None:  # what was packed before has not been asked
            check_use(weights.spec, weights.assets, str(weights.info["source"]), use)
        if verify:
            weights.verify(progress)
        adapted = None if lora is None else _adapted(lora, weights)
        model = Model(
            weights,
            kv=kv,
            context=context,
            threads=threads,
            prefix_cache=remember.prefix_cache,
            prefix_cache_bytes=remember.prefix_cache_bytes,
            prefix_folder=prefixes,
            adapter=adapted,
            eyes=eyes,
            place=functools.partial(place, lock_memory=lock_memory, huge_pages=huge_pages),
        )
        opened.pop_all()
    return model


def _admission(
    source: Any, kv: str, context: int | None, lora: LoraConfig | None, drafts: LoadedWeights | None
) -> Callable[[ModelSpec, dict[str, int], str], None]:
    """What refuses a model that does not fit, with what is loaded beside it."""

    def admit(spec: ModelSpec, weights: dict[str, int], recipe: str) -> None:
        _refuse_drafter(spec, source)
        beside = {}
        if lora is not None and recipe != "none":
            # Merged into floats it takes nothing of its own; the model counts what it then is.
            beside["adapter"] = lora.stored_bytes()
        if drafts is not None:
            beside["drafter"] = bytes_of_drafter(drafts, context or spec.max_context)
        # auto is not known yet; with kv4 it fits, or nothing does
        choose_context(spec, weights, recipe, "kv4" if kv == "auto" else kv, context, beside)

    return admit


def _check_options(progress: Any, kv: str, threads: int | None, context: int | None) -> None:
    _check_progress(progress)
    _check_kv(kv)
    _check_count("threads", threads, MAX_THREADS)
    _check_count("context", context, MAX_CONTEXT)


def _opened_drafter(
    opened: contextlib.ExitStack, drafter: str | os.PathLike[str] | None, progress: Any
) -> LoadedWeights | None:
    """The drafter's weights, which ``opened`` closes; None without one."""
    if drafter is None:
        return None
    weights = open_drafter(drafter, progress)
    opened.callback(weights.close)
    return weights


def _refuse_drafter(spec: ModelSpec, source: Any) -> None:
    if spec.block:
        raise UnsupportedModel(
            f"{source} is a block drafter, which writes nothing by itself: give it as drafter= to "
            "the model that it was made for"
        )


def _adapted(lora: LoraConfig, weights: LoadedWeights) -> LoraWeights:
    """An adapter's matrices, merged where that can be."""
    adapted = read_adapter(lora, weights.spec, weights.info["family"])
    if can_merge(weights, adapted):
        merge(weights, adapted)
    return adapted


def convert(
    source: str | os.PathLike[str] | None,
    destination: str | os.PathLike[str],
    *,
    quantize: str = "q4",
    calibration: Any = None,
    method: str | None = None,
    pictures: Sequence[Any] = (),
    mmproj: str | os.PathLike[str] | bool | None = None,
    progress: Any = None,
) -> dict[str, Any]:
    """Packs the model folder or GGUF file ``source`` into the file ``destination``, which
    :func:`load` takes; returns what was packed: family, quantize, parameters, bytes, formats …

    ``quantize``: q4 unless given; q8, none (as stored), or auto as in :func:`load`. The file
    appears whole or not at all, in place of one that is there. Peak memory stays below 500 MB
    besides the mapped file.

    ``calibration``: text like what the model will see, which makes rounding cheaper for it: the
    path of a text file, a list of texts, or lists of token ids. ``method``: ``"error-feedback"``
    (the default with a calibration: what rounding a column of a matrix misses is made up for by the
    columns after it, as GPTQ does) or ``"importance"`` (columns whose inputs are large count more
    when scales are chosen). The file is as large and as fast as without; it records method, number
    of tokens and their checksum. Error feedback needs as many tokens as the widest matrix has
    inputs, better several times that, and takes minutes and gigabytes with large models
    (weights/calibration.py says what).

    The packed model then runs over the calibration, or a text of this package, and the file records
    what ``kv="auto"`` is for it (``kv`` of what is returned; weights/kv_choice.py).

    The vision tower of a model that sees runs over pictures of this package, and over ``pictures``
    (paths, arrays, Pillow images): layers that lose too much in 8 bits stay as stored, and the file
    records which (``tower`` of what is returned; weights/tower_choice.py). ``mmproj``: as for
    :func:`load`; a GGUF model and its tower become one packed file.

    Raises what :func:`load` raises for a model that cannot be read, before anything is written;
    InvalidRequest for a destination that could not be read back; and :class:`WriteFailed`.
    """

    def ready(spec: ModelSpec, assets: dict[str, bytes], name: str) -> None:
        if not spec.block:  # a drafter has no tokenizer of its own
            check_usable(spec, assets, name, None)

    look = functools.partial(sample_views, more=open_pictures(pictures))
    if calibration is None:
        if method is not None:
            raise InvalidRequest(f"method is {method!r:.40}, and there is no calibration for it")
        more = {"ready": ready, "text": sample_text, "look": look, "mmproj": mmproj}
        return pack_into(source, destination, quantize=quantize, progress=progress, **more)
    chosen = METHODS[-1] if method is None else method

    def calibrate(spec: ModelSpec, assets: dict[str, bytes], name: str) -> Calibration:
        return read_calibration(calibration, chosen, spec, assets, name)

    def text(spec: ModelSpec, assets: dict[str, bytes], name: str) -> Sequence[np.ndarray]:
        return calibrate(spec, assets, name).chunks

    return pack_into(
        source,
        destination,
        quantize=quantize,
        progress=progress,
        ready=ready,
        method=chosen,
        calibrate=calibrate,
        text=text,
        look=look,
        mmproj=mmproj,
    )


def _check_progress(progress: Any) -> None:
    if progress is not None and not isinstance(progress, bool) and not callable(progress):
        raise InvalidRequest(f"progress: got {progress!r:.60}, allowed is a bool or a function")


def _check_kv(kv: str) -> None:
    if not isinstance(kv, str) or kv not in KV_FORMATS:
        raise InvalidRequest(f"kv: got {kv!r}, allowed is one of {list(KV_FORMATS)}")


def _check_count(name: str, value: Any, most: int) -> None:
    if value is None or (type(value) is int and 1 <= value <= most):
        return
    raise InvalidRequest(f"{name}: got {value!r:.60}, allowed is 1 to {most} or None")


def _check_bytes(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidRequest(f"{name}: got {value!r:.60}, allowed is an int >= {least}")


def _folder(name: str, path: Any, limit: Any) -> tuple[Path, int] | None:
    _check_bytes(f"{name}_bytes", limit, 1)
    if path is None:
        return None
    return checked_path(path, name, "a path or None"), limit


def _check_switches(**values: Any) -> None:
    for name, value in values.items():
        if not isinstance(value, bool):
            raise InvalidRequest(f"{name}: got {value!r:.60}, allowed is a bool")
