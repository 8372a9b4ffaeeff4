"""LoRA adapters as PEFT saves them: adapter_config.json and adapter_model.safetensors.

For a matrix W an adapter means W + scale B A, with A [rank, inputs], B [outputs, rank] and scale =
alpha / rank (alpha / sqrt(rank) with ``use_rslora``). Everything is checked against the model's
spec before the core sees it. What changes a result and is not computed here is refused by name.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from musespark import _core
from musespark.errors import CorruptFile, InvalidRequest, UnsupportedModel
from musespark.families import MODULES
from musespark.families.spec import ModelSpec
from musespark.families.tensors import EVERY_NAME, Part, canonical_shapes
from musespark.untrusted import read_json_object
from musespark.weights.loading import LoadedWeights
from musespark.weights.packed import Checksum
from musespark.weights.safetensors import SafetensorsFile

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TARGETS = ("q", "k", "v", "attn_gate", "o", "gate", "up", "down")
MAX_RANK = 4096
_MAX_CONFIG_BYTES = 1 << 20
_DTYPES = ("F32", "F16", "BF16")
# Keys of a LoraConfig that do not change what a saved adapter computes: which matrices have one is
# said by the tensors, and the rest is of training.
_WITHOUT_EFFECT = {
    "auto_mapping", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "inference_mode", "layers_pattern", "lora_dropout",
    "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config",
    "target_modules", "task_type",
}  # fmt: skip
_READ = {"alpha_pattern", "base_model_name_or_path", "bias", "init_lora_weights",
         "layers_to_transform", "lora_alpha", "peft_type", "r", "rank_pattern",
         "use_rslora"}  # fmt: skip
# The others (pissa, olora, corda, loftq) also change the base model when training begins.
_INITS = (None, "gaussian", "eva", "orthogonal")
_NAME = re.compile(r"base_model\.model\.(.+)\.(lora_A|lora_B)\.weight")
_LAYER = re.compile(r"(?:(.+)\.)?layers\.(0|[1-9]\d{0,5})\.(.+)")
# Where a text tower may stand in a model of transformers, whose releases moved it about.
_TEXT_ROOTS = ("model", "model.language_model", "language_model.model", "language_model")
_LITERAL = re.compile(r"[A-Za-z0-9_.]+")
_PIECE_BYTES = 2 << 20  # of a merged matrix, in float64, at a time


@dataclass(frozen=True)
class LoraConfig:
    """What an adapter_config.json says that matters."""

    folder: Path
    rank: int
    alpha: float
    rank_stabilized: bool
    ranks: dict[str, int]  # rank_pattern
    alphas: dict[str, float]  # alpha_pattern
    base: str = ""  # the model it was made for, by its maker's name
    layers: frozenset[int] | None = None  # layers_to_transform; None is every layer

    def stored_bytes(self) -> int:
        """Bytes of the file with the weights: the least, but for its header, that they can take."""
        return os.path.getsize(self.folder / WEIGHTS)

    @cached_property
    def _patterns(self) -> tuple[_ByEnd, _ByEnd]:
        return _ByEnd(self.ranks), _ByEnd(self.alphas)

    def rank_of(self, module: str) -> int:
        """The rank of a module, named as in the base model."""
        return self._patterns[0].of(module, self.rank)

    def scale_of(self, module: str) -> float:
        """What B A is multiplied with."""
        rank = self.rank_of(module)
        divisor = math.sqrt(rank) if self.rank_stabilized else rank
        return self._patterns[1].of(module, self.alpha) / divisor


class _ByEnd:
    """PEFT's rule for literal names: the first key that is a module or the end of its path."""

    def __init__(self, pattern: dict[str, Any]):
        self._values = pattern
        self._order = {key: i for i, key in enumerate(pattern)}

    def of(self, module: str, default: Any) -> Any:
        """The value of a module; looks at no more keys than its path has ends."""
        parts = module.split(".")
        ends = (".".join(parts[i:]) for i in range(len(parts)))
        found = [end for end in ends if end in self._order]
        return self._values[min(found, key=self._order.__getitem__)] if found else default


@dataclass(frozen=True)
class LoraWeights:
    """An adapter's numbers, checked: canonical matrix -> (A [rank, inputs], B [outputs, rank]).
    ``base``: the model that its maker names.

    float32; the scale is multiplied into B, rounded once.
    """

    folder: Path
    matrices: dict[str, tuple[np.ndarray, np.ndarray]]
    base: str = ""

    @property
    def rank(self) -> int:
        """The largest."""
        return max(len(a) for a, _ in self.matrices.values())

    @property
    def targets(self) -> tuple[str, ...]:
        """The kinds of matrices it adds to, in the order of a layer."""
        kinds = {name.rpartition(".")[2] for name in self.matrices}
        return tuple(t for t in TARGETS if t in kinds)

    def tensors(self) -> dict[str, tuple[str, int, int, np.ndarray]]:
        """As ``_core.Engine.add_adapter`` takes them."""
        packed: dict[int, tuple[str, int, int, np.ndarray]] = {}  # parts of a matrix share one A
        out = {}
        for name, pair in self.matrices.items():
            for kind, values in zip(("lora_a", "lora_b"), pair, strict=True):
                if id(values) not in packed:
                    packed[id(values)] = _packed(values)
                out[f"{name}.{kind}"] = packed[id(values)]
        return out


def core_bytes(tensors: dict[str, tuple[str, int, int, np.ndarray]]) -> int:
    """What the core's copy of :meth:`LoraWeights.tensors` takes: padding columns are left out."""
    sizes = {"f32": 4, "bf16": 2}
    return sum(
        -(-rows // 16) * 16 * -(-cols // 2) * 2 * sizes[form]
        for form, rows, cols, _ in tensors.values()
    )


def _packed(values: np.ndarray) -> tuple[str, int, int, np.ndarray]:
    """Numbers that bfloat16 holds are kept so: half the memory, the same bits of every result."""
    values = np.ascontiguousarray(values)
    bits = values.view(np.uint32)
    form = "f32" if (bits & 0xFFFF).any() else "bf16"
    source = values if form == "f32" else (bits >> 16).astype(np.uint16)
    out = np.empty(_core.packed_nbytes(form, *values.shape), np.uint8)
    _core.pack(form, source, dtype=form, out=out)
    return form, *values.shape, out


# ---- adapter_config.json ------------------------------------------------------------------------


def read_adapter_config(path: str | os.PathLike[str]) -> LoraConfig:
    """Reads and checks an adapter folder's config; its weights are not touched.

    InvalidRequest where `path` is no such folder; UnsupportedModel names a key and value that this
    version does not compute; CorruptFile for a value that makes no sense.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidRequest(f"adapter: got {path!r:.60}, allowed is the path of an adapter folder")
    folder = Path(path)
    for name in (CONFIG, WEIGHTS):
        if not os.path.exists(folder / name):
            raise InvalidRequest(
                f"adapter {os.fspath(path)!r:.300}: there is no {name}; an adapter is a local "
                f"folder with {CONFIG} and {WEIGHTS}, as PEFT saves it"
            )
    where = folder / CONFIG
    config = read_json_object(where, _MAX_CONFIG_BYTES)
    if config.get("peft_type") != "LORA":
        raise _refuse(where, "peft_type", config.get("peft_type"), "LORA is supported")
    if config.get("bias", "none") != "none":
        raise _refuse(where, "bias", config["bias"], "none is supported")
    init = config.get("init_lora_weights")
    if not isinstance(init, bool) and init not in _INITS:
        raise _refuse(where, "init_lora_weights", init, "it changes the base model")
    for key, value in config.items():
        if key not in _READ | _WITHOUT_EFFECT and value not in (None, False, "", [], {}):
            raise _refuse(where, key, value, "it is not part of this version")
    rank = _rank(where, "r", config.get("r"))
    stabilized = config.get("use_rslora", False)
    if not isinstance(stabilized, bool):
        raise CorruptFile(f"{where}: use_rslora is {stabilized!r:.80}, not true or false")
    return LoraConfig(
        folder,
        rank,
        _alpha(where, "lora_alpha", config.get("lora_alpha")),
        stabilized,
        {k: _rank(where, f"rank_pattern.{k}", v) for k, v in _pattern(where, config, "rank")},
        {k: _alpha(where, f"alpha_pattern.{k}", v) for k, v in _pattern(where, config, "alpha")},
        str(config.get("base_model_name_or_path") or "")[:200],
        _layers(where, config.get("layers_to_transform")),
    )


def _layers(where: Path, given: Any) -> frozenset[int] | None:
    if given is None or given == []:
        return None
    layers = given if isinstance(given, list) else [given]
    if not all(type(layer) is int and layer >= 0 for layer in layers):
        raise CorruptFile(f"{where}: layers_to_transform is {given!r:.80}, not numbers of layers")
    return frozenset(layers)


def _refuse(where: Path, key: str, value: Any, why: str) -> UnsupportedModel:
    return UnsupportedModel(f"{where}: {key} is {value!r:.80}; {why}")


def _rank(where: Path, key: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise CorruptFile(f"{where}: {key:.120} is {value!r:.80}, not a rank of 1 to {MAX_RANK}")
    return value


def _alpha(where: Path, key: str, value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) < 1e9:
        raise CorruptFile(f"{where}: {key:.120} is {value!r:.80}, not a number below 1e9")
    return float(value)


def _pattern(where: Path, config: dict[str, Any], kind: str) -> list[tuple[str, Any]]:
    """PEFT reads the keys as regular expressions; here they are names, and others are refused."""
    pattern = config.get(f"{kind}_pattern") or {}
    if not isinstance(pattern, dict):
        raise CorruptFile(f"{where}: {kind}_pattern is {pattern!r:.80}, not an object")
    for key in pattern:
        if not _LITERAL.fullmatch(key):
            raise _refuse(where, f"a key of {kind}_pattern", key, "names are supported")
    return list(pattern.items())


# ---- adapter_model.safetensors ------------------------------------------------------------------


def read_adapter(config: LoraConfig, spec: ModelSpec, family: str) -> LoraWeights:
    """The adapter's matrices for a model of this spec and family.

    UnsupportedModel names a tensor that adds to something else than the matrices of attention and
    of dense MLPs; CorruptFile one without its partner, of another shape or not finite.
    """
    if spec.bidirectional:
        raise UnsupportedModel(f"{config.folder}: {family} models take no adapter")
    file = SafetensorsFile(config.folder / WEIGHTS)
    try:
        return LoraWeights(config.folder, _matrices(file, config, spec, family), config.base)
    finally:
        file.close()


def _modules(spec: ModelSpec, family: str) -> dict[tuple[int, str], dict[str, Part]]:
    """(layer, name in it) of every module of the text tower -> the canonical matrices it holds."""
    mapping = next(f for f in MODULES if f.name == family).tensors(spec, [EVERY_NAME])
    out: dict[tuple[int, str], dict[str, Part]] = {}
    for canonical, part in mapping.sources.items():
        _, _, target = canonical.rpartition(".")
        found = _LAYER.fullmatch(part.name.removesuffix(".weight"))
        if found and canonical.count(".") == 2 and target in TARGETS:
            out.setdefault((int(found[2]), found[3]), {})[canonical] = part
    return out


def _matrices(
    file: SafetensorsFile, config: LoraConfig, spec: ModelSpec, family: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    known, inputs = _modules(spec, family), canonical_shapes(spec)
    found: dict[str, dict[str, str]] = {}  # module -> lora_A, lora_B -> tensor
    for name in file.entries:
        match = _NAME.fullmatch(name)
        if match is None:
            raise UnsupportedModel(
                f"{file.path}: tensor {name!r:.160}: only lora_A and lora_B of matrices are "
                "supported (not embeddings, magnitudes, biases or whole modules)"
            )
        found.setdefault(match[1], {})[match[2]] = name
    out: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for module, pair in found.items():
        place = _LAYER.fullmatch(module)
        parts = known.get((int(place[2]), place[3])) if place else None
        if place is None or parts is None or place[1] not in _TEXT_ROOTS:
            raise UnsupportedModel(
                f"{file.path}: tensor {next(iter(pair.values()))!r:.160}: a model of the family "
                f"{family} takes adapters on its {len(spec.layers)} layers' matrices of attention "
                "and of dense MLPs alone"
            )
        if config.layers is not None and int(place[2]) not in config.layers:
            raise CorruptFile(
                f"{file.path}: tensor {next(iter(pair.values()))!r:.160} is of a layer that "
                f"layers_to_transform of {CONFIG} leaves out: it has {sorted(config.layers)[:8]}"
            )
        if len(pair) == 1:
            raise CorruptFile(f"{file.path}: tensor {pair.popitem()[1]!r:.160} has no partner")
        first, part = next(iter(parts.items()))
        rank = config.rank_of(module)
        a = _values(file, pair["lora_A"], (rank, inputs[first][1]), 1.0)
        b = _values(file, pair["lora_B"], (part.stored[0], rank), config.scale_of(module))
        for canonical, own in parts.items():
            if canonical in out:
                raise CorruptFile(f"{file.path}: {module!r:.160} stands there under two names")
            out[canonical] = (a, np.ascontiguousarray(own.of(b)))
    if not out:
        raise CorruptFile(f"{file.path}: there are no tensors")
    return out


def _values(file: SafetensorsFile, name: str, shape: tuple[int, int], scale: float) -> np.ndarray:
    entry = file.entries[name]
    where = f"{file.path}: tensor {name!r:.160}"
    if entry.dtype not in _DTYPES:
        raise UnsupportedModel(f"{where} has dtype {entry.dtype}; {', '.join(_DTYPES)} are read")
    if entry.shape != shape:
        raise CorruptFile(
            f"{where} has shape {list(entry.shape)}; the model and the config ask for {list(shape)}"
        )
    values = _core.decode(entry.dtype.lower(), np.ascontiguousarray(file.array(name)))
    with np.errstate(over="ignore", invalid="ignore"):
        values = values if scale == 1.0 else (values.astype(np.float64) * scale).astype(np.float32)
    if not np.isfinite(values).all():
        raise CorruptFile(f"{where} holds a number that is not finite")
    return values


# ---- merging ------------------------------------------------------------------------------------


def can_merge(weights: LoadedWeights, lora: LoraWeights) -> bool:
    """Whether the matrices that it adds to are floats: a packed one would be rounded once more."""
    return all(weights.tensors[name][0] in ("f32", "bf16") for name in lora.matrices)


def merge(weights: LoadedWeights, lora: LoraWeights) -> None:
    """Replaces each matrix W by W + scale B A: in memory, as float32, the file stays as it is.

    The sum is in float64, ranks ascending, and rounded once. ``info["merged"]`` is the
    checksum of what was merged.
    """
    formats, merged_in = weights.info["formats"], Checksum()
    for name, (a, b) in sorted(lora.matrices.items()):
        for part in (f"{name} {a.shape} {b.shape}\n".encode(), a, b):
            merged_in.update(np.ascontiguousarray(part) if isinstance(part, np.ndarray) else part)
        form, rows, cols, data = weights.tensors[name]
        merged = np.asarray(_core.unpack(form, data, rows, cols))
        step = max(1, _PIECE_BYTES // (8 * cols))
        for begin in range(0, rows, step):
            piece = merged[begin : begin + step].astype(np.float64)
            for column, row in zip(b[begin : begin + step].T, a, strict=True):
                piece += column[:, None].astype(np.float64) * row
            merged[begin : begin + step] = piece
        if not np.isfinite(merged).all():
            raise CorruptFile(f"{lora.folder}: merged, {name} holds a number that is not finite")
        out = _aligned(_core.packed_nbytes("f32", rows, cols))
        _core.pack("f32", merged, out=out)
        weights.tensors[name] = ("f32", rows, cols, out)
        formats[form] -= data.nbytes
        formats["f32"] = formats.get("f32", 0) + out.nbytes
    weights.info["formats"] = {form: size for form, size in formats.items() if size}
    weights.info["bytes"] = sum(formats.values())
    weights.info["weights"] |= {weights.info["quantize"]: weights.info["bytes"]}
    weights.info["merged"] = merged_in.hex()


def _aligned(nbytes: int) -> np.ndarray:
    """Bytes at a 64-byte boundary, as the core reads weights."""
    raw = np.empty(nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]
