"""What ``quantization_config`` says: which reader takes which tensors of the checkpoint.

Every key that changes what the bytes mean is read, and a value that is not known is refused with
its name. A module is quantized where its parts are in the checkpoint: the lists of modules that a
config keeps in floats are not needed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from musespark.errors import CorruptFile
from musespark.families.fields import Fields
from musespark.weights.quantized.compressed import Int8Linear, PackedLinear
from musespark.weights.quantized.floating import FLOAT8, Experts, Float4Linear, Float8Linear
from musespark.weights.quantized.gptq import (
    GPTQ_BITS,
    AwqLinear,
    GptqLinear,
    IntegerScheme,
)
from musespark.weights.quantized.linear import Linear, Stored

KEYS = ("quantization_config", "compression_config")
# Files beside config.json that have the settings where it has none, as older tools wrote them.
FILES = ("quantize_config.json", "quant_config.json")
_OF_AWQ = {"w_bit", "q_group_size", "zero_point"}
MAX_GROUP = 1 << 20
_SCALES_OF_ACTIVATIONS = "scales of activations, which stay as they are here"
# Tuning, bookkeeping and the choice of a kernel: nothing that the bytes depend on.
_IDLE = """
    act_group_aware activation_scale_ub amp autoround_version backend batch_size
    block_name_to_quantize cache_block_outputs cache_examples_on_gpu damp_auto_increment
    damp_percent data_type dataset dequantize disable_exllama do_fuse enable_alg_ext
    enable_minmax_tuning enable_norm_bias_tuning enable_quanted_input exllama_config
    extra_config failsafe fuse_max_seq_len global_compression_ratio gptaq
    gradient_accumulate_steps hyb_act ignore ignored_layers iters kv_cache_dtype lm_head
    low_gpu_mem_usage lr max_input_length meta minmax_lr model_file_base_name model_name_or_path
    model_seqlen module_name_preceding_first_block modules_in_block_to_quantize modules_to_fuse
    modules_to_not_convert mse nsamples offload_to_disk pad_token_id quantization_status
    run_compressed scale_dtype seqlen static_groups sym to_quant_block_names tokenizer
    true_sequential use_cuda_fp16 use_exllama use_exllama_v2 v2 version zero_point
"""


@dataclass
class Collection:
    """Quantized tensors under the name their matrix would have, and what was left out."""

    matrices: dict[str, Linear | Experts] = field(default_factory=dict)
    ignored: dict[str, list[str]] = field(default_factory=dict)  # reason -> names

    def add(self, name: str, matrix: Linear | Experts) -> None:
        """Takes a matrix."""
        self.matrices[name] = matrix


Reader = Callable[[Stored], Collection]


def read_quantization(
    config: Mapping[str, Any], beside: Mapping[str, Any] | None = None
) -> tuple[Reader | None, list[str]]:
    """The reader that a ``config.json`` asks for, None for plain floats; and notes.

    `beside`: name -> content of those of :data:`FILES` that are there; the first counts, where the
    config says nothing. UnsupportedModel names a method, format or option that is not supported.
    """
    fields = Fields(config)
    given = [key for key in KEYS if fields.has(key)]
    if len(given) == 2:
        raise fields.refuse(KEYS[1], f"{KEYS[0]} is there too")
    if given:
        default = "compressed-tensors" if given[0] == KEYS[1] else None
        return _reader_of(fields.section(given[0]), default)
    for name, content in (beside or {}).items():
        section = Fields(content, name)
        return _reader_of(section, "awq" if _OF_AWQ & section.values.keys() else "gptq")
    return None, []


def _reader_of(section: Fields, default: str | None) -> tuple[Reader, list[str]]:
    method = section.get("quant_method", default)
    if not isinstance(method, str) or method not in METHODS:
        raise section.refuse("quant_method", f"supported are {', '.join(sorted(METHODS))}")
    reader = METHODS[method](section)
    said = _of_activations(section.values, section.where)
    notes = [f"activations stay as they are, whatever {said[0]:.200} says"] if said else []
    unknown = [path for path in section.unknown() if path.rpartition(".")[2] not in _IDLE.split()]
    if unknown:
        notes += [f"config keys that this version does not read: {', '.join(sorted(unknown))}"]
    return reader, notes


def _of_activations(values: Any, where: str) -> list[str]:
    """The keys that say how activations, or keys and values, are quantized."""
    names = ("activation_scheme", "kv_cache_scheme", "input_activations", "output_activations")
    inside = ("quantization_config", "config_groups")
    found = []
    for key, value in values.items() if isinstance(values, Mapping) else ():
        if key in names and value is not None:
            found.append(f"{where}.{key}")
        elif key in inside or where.endswith(".config_groups"):
            found += _of_activations(value, f"{where}.{key}")
    return found


def _one_of(section: Fields, name: str, known: tuple[Any, ...], default: Any) -> Any:
    value = section.get(name)
    value = default if value is None else value
    if not any(type(value) is type(one) and value == one for one in known):
        raise section.refuse(name, f"supported: {', '.join(str(one) for one in known)}")
    return value


def _group_size(section: Fields, name: str, default: int) -> int:
    value = section.get(name, default)
    if type(value) is not int or not (value == -1 or 0 < value <= MAX_GROUP):
        raise section.refuse(name, f"-1 or 1 to {MAX_GROUP} is needed")
    return value


# --- GPTQ and AWQ --------------------------------------------------------------------------------


def _collect_words(linear: type[GptqLinear | AwqLinear], scheme: IntegerScheme) -> Reader:
    def collect(stored: Stored) -> Collection:
        found = Collection()
        for name in stored.checkpoint.file_of:
            if name.endswith(".qweight"):
                base = name.removesuffix(".qweight")
                found.add(f"{base}.weight", linear(stored, base, scheme))
        return found

    return collect


def _gptq(section: Fields) -> Reader:
    bits = _one_of(section, "bits", GPTQ_BITS, None)
    form = section.get("checkpoint_format") or section.get("format") or "gptq"
    if form not in ("gptq", "gptq_v2"):
        key = "checkpoint_format" if section.has("checkpoint_format") else "format"
        raise section.refuse(key, "supported: gptq, gptq_v2")
    section.get("format")
    _one_of(section, "pack_dtype", ("int32",), "int32")
    _one_of(section, "method", ("gptq",), "gptq")
    _one_of(section, "is_marlin_format", (False,), False)
    section.must_be_absent("adapter", "rotation")
    scheme = IntegerScheme(
        bits=bits,
        group=_group_size(section, "group_size", 128),
        mixed=bool(section.get("dynamic")),
        symmetric=section.flag("sym", True),
        desc_act=section.flag("desc_act", False),
        first_version=form == "gptq",
    )
    return _collect_words(GptqLinear, scheme)


def _awq(section: Fields) -> Reader:
    _one_of(section, "w_bit" if section.has("w_bit") else "bits", (4,), 4)
    for key in ("version", "format"):
        value = section.get(key)
        if value is not None and (not isinstance(value, str) or value.lower() != "gemm"):
            raise section.refuse(key, "supported: gemm")
    if section.get("backend") == "llm-awq":
        raise section.refuse("backend", "supported: the gemm layout of AutoAWQ")
    size = "q_group_size" if section.has("q_group_size") else "group_size"
    symmetric = not section.flag("zero_point", True)
    scheme = IntegerScheme(4, _group_size(section, size, 128), symmetric=symmetric)
    return _collect_words(AwqLinear, scheme)


def _auto_round(section: Fields) -> Reader:
    _one_of(section, "data_type", ("int",), "int")
    packings = ("auto_round:auto_gptq", "auto_round:auto_awq")
    packing = _one_of(section, "packing_format", packings, None)
    mixed = bool(section.get("extra_config"))
    group = _group_size(section, "group_size", 128)
    symmetric = section.flag("sym", True)
    if packing == packings[1]:
        _one_of(section, "bits", (4,), None)
        return _collect_words(AwqLinear, IntegerScheme(4, group, mixed, symmetric))
    bits = _one_of(section, "bits", GPTQ_BITS, None)
    return _collect_words(GptqLinear, IntegerScheme(bits, group, mixed, symmetric))


# --- FP8 and MXFP4 -------------------------------------------------------------------------------

_ACTIVATIONS = re.compile(
    r".*\.(input_scale|activation_scale|output_scale|input_zero_point|output_zero_point"
    r"|input_global_scale|[qkv]_scale|[qkv]_zero_point)"
)


def _drop_scales_of_activations(stored: Stored, found: Collection) -> Collection:
    names = sorted(n for n in stored.checkpoint.file_of if _ACTIVATIONS.fullmatch(n))
    if names:
        found.ignored[_SCALES_OF_ACTIVATIONS] = names
    return found


def _pair(section: Fields, name: str) -> tuple[int, int] | None:
    value = section.get(name)
    if value is None:
        return None
    whole = isinstance(value, list) and len(value) == 2
    if not whole or not all(type(n) is int and 0 < n <= MAX_GROUP for n in value):
        raise section.refuse(name, f"two lengths of 1 to {MAX_GROUP} are needed")
    return value[0], value[1]


def _collect_float8(*tiles: tuple[int, int]) -> Reader:
    def collect(stored: Stored) -> Collection:
        found = Collection()
        for name in stored.checkpoint.file_of:
            if name.endswith(".weight") and stored.checkpoint.entry(name).dtype in FLOAT8:
                base = name.removesuffix(".weight")
                inverse, scale = f"{name}_scale_inv", f"{name}_scale"
                if stored.has(inverse) and stored.has(scale):
                    raise CorruptFile(f"{stored.where(scale)} and {inverse!r:.120} are both there")
                scale = inverse if stored.has(inverse) else scale
                found.add(name, Float8Linear(stored, base, scale, tiles))
        return _drop_scales_of_activations(stored, found)

    return collect


def _fp8(section: Fields) -> Reader:
    _one_of(section, "activation_scheme", ("dynamic", "static"), "dynamic")
    _one_of(section, "fmt", ("e4m3", "e5m2"), "e4m3")
    _one_of(section, "scale_fmt", ("float", "ue8m0"), "float")
    _one_of(section, "expert_dtype", ("fp8",), "fp8")
    # transformers' default; a scale for the tensor or for each output is known by its shape.
    return _collect_float8(_pair(section, "weight_block_size") or (128, 128))


def _fbgemm_fp8(section: Fields) -> Reader:
    return _collect_float8()


def _mxfp4(section: Fields) -> Reader:
    def collect(stored: Stored) -> Collection:
        found = Collection()
        for name in stored.checkpoint.file_of:
            if not name.endswith("_blocks"):
                continue
            base = name.removesuffix("_blocks")
            found.add(base, Experts(stored, base))
        return found

    return collect


# --- compressed-tensors --------------------------------------------------------------------------

_FORMATS = (
    "pack-quantized", "int-quantized", "float-quantized", "naive-quantized",
    "nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized", "mixed-precision", "dense",
)  # fmt: skip


@dataclass(frozen=True)
class _Groups:
    """What the groups of a compressed-tensors config allow their modules."""

    bits: tuple[int, ...]
    sizes: tuple[int, ...]
    blocks: tuple[tuple[int, int], ...]

    @property
    def tiles(self) -> tuple[tuple[int, int], ...]:
        """[rows, cols] that may share a scale."""
        return *self.blocks, *((1, size) for size in self.sizes if size > 0)


def _compressed_tensors(section: Fields) -> Reader:
    if section.has("quantization_config"):  # an older nesting
        inner = section.section("quantization_config")
        section = inner.laid_over(section)
    _one_of(section, "format", _FORMATS, "dense")
    sparsity = section.section("sparsity_config")
    _one_of(sparsity, "format", ("dense",), "dense")
    for name in ("targets", "ignore", "global_sparsity", "sparsity_structure"):
        sparsity.get(name)
    for name in ("transform_config", "moe_sparsity_config"):
        if section.get(name):
            raise section.refuse(name, "this field is not supported")
    section.get("kv_cache_scheme")
    return _collect_compressed(_read_groups(section.section("config_groups")))


def _read_groups(groups: Fields) -> _Groups:
    bits, sizes, blocks = set(), set(), set()
    for name in groups.values:
        group = groups.section(name)
        _one_of(group, "format", _FORMATS, "dense")
        for key in ("targets", "input_activations", "output_activations"):
            group.get(key)
        if not group.has("weights"):
            continue
        weights = group.section("weights")
        if _one_of(weights, "type", ("int", "float"), "int") == "int":
            bits.add(_one_of(weights, "num_bits", tuple(range(1, 9)), 8))
        else:
            _one_of(weights, "num_bits", (4, 8), 8)
        _one_of(weights, "dynamic", (False,), False)
        _one_of(
            weights, "strategy", ("tensor", "channel", "group", "block", "tensor_group"), "tensor"
        )
        if weights.has("group_size"):
            sizes.add(_group_size(weights, "group_size", -1))
        block = _pair(weights, "block_structure")
        if block:
            blocks.add(block)
        for key in ("symmetric", "actorder", "observer", "observer_kwargs", "zp_dtype"):
            weights.get(key)
    return _Groups(tuple(sorted(bits)), tuple(sorted(sizes)), tuple(sorted(blocks)))


def _collect_compressed(groups: _Groups) -> Reader:
    def packed(stored: Stored, base: str) -> Linear:
        data, scale = f"{base}.weight_packed", f"{base}.weight_scale"
        if stored.checkpoint.entry(data).dtype != "U8":
            return PackedLinear(stored, base, groups.bits, groups.sizes)
        whole = f"{base}.weight_global_scale"
        return Float4Linear(stored, base, data, scale, whole if stored.has(whole) else None)

    def plain(stored: Stored, base: str) -> Linear:
        if stored.checkpoint.entry(f"{base}.weight").dtype == "I8":
            return Int8Linear(stored, base, groups.sizes)
        return Float8Linear(stored, base, f"{base}.weight_scale", groups.tiles)

    def collect(stored: Stored) -> Collection:
        found = Collection()
        for name in stored.checkpoint.file_of:
            base, _, part = name.rpartition(".")
            if part == "weight_packed":
                found.add(f"{base}.weight", packed(stored, base))
            elif part == "weight" and stored.checkpoint.entry(name).dtype in ("I8", *FLOAT8):
                found.add(name, plain(stored, base))
        return _drop_scales_of_activations(stored, found)

    return collect


METHODS: dict[str, Callable[[Fields], Reader]] = {
    "gptq": _gptq,
    "awq": _awq,
    "auto-round": _auto_round,
    "fp8": _fp8,
    "fbgemm_fp8": _fbgemm_fp8,
    "mxfp4": _mxfp4,
    "compressed-tensors": _compressed_tensors,
}
