"""Folders of tiny models with quantized matrices, and the same numbers in float32 beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from support import quantized as write

LLAMA = {
    "model_type": "llama", "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "rope_theta": 500.0,
}  # fmt: skip
PHI3 = LLAMA | {"model_type": "phi3", "pad_token_id": 0}
GPT_OSS = {
    "model_type": "gpt_oss", "vocab_size": 97, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "num_local_experts": 3, "num_experts_per_tok": 2, "max_position_embeddings": 512,
    "rope_scaling": None, "rope_theta": 500.0, "sliding_window": 32,
}  # fmt: skip


def linears(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Every linear of a layer (without ``.weight``) and its shape."""
    found = {}
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        if config["model_type"] == "phi3":
            found[f"{at}self_attn.qkv_proj"] = (128, 64)
            found[f"{at}mlp.gate_up_proj"] = (192, 64)
        else:
            found |= {f"{at}self_attn.q_proj": (64, 64)}
            found |= {f"{at}self_attn.{x}_proj": (32, 64) for x in "kv"}
            if config["model_type"] == "llama":
                found |= {f"{at}mlp.{x}_proj": (96, 64) for x in ("gate", "up")}
        found[f"{at}self_attn.o_proj"] = (64, 64)
        if config["model_type"] != "gpt_oss":
            found[f"{at}mlp.down_proj"] = (64, 96)
    return found


def around(config: dict[str, Any], rng: np.random.Generator) -> write.Tensors:
    """What is not quantized, in float32."""

    def normal(*shape: int, scale: float = 1.0) -> tuple[str, np.ndarray]:
        return "F32", (rng.standard_normal(shape) * scale).astype(np.float32)

    tensors = {"model.embed_tokens.weight": normal(97, 64), "lm_head.weight": normal(97, 64)}
    tensors["model.norm.weight"] = ("F32", np.ones(64, np.float32))
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}{norm}.weight"] = normal(64)
        if config["model_type"] == "gpt_oss":
            tensors[f"{at}mlp.router.weight"] = normal(3, 64)
            tensors[f"{at}mlp.router.bias"] = normal(3)
            tensors[f"{at}self_attn.sinks"] = normal(4)
            tensors[f"{at}mlp.experts.gate_up_proj_bias"] = normal(3, 192)
            tensors[f"{at}mlp.experts.down_proj_bias"] = normal(3, 64)
            for x, width in (("q", 64), ("k", 32), ("v", 32), ("o", 64)):
                tensors[f"{at}self_attn.{x}_proj.bias"] = normal(width)
                shape = (64, 64) if x in "qo" else (32, 64)
                tensors[f"{at}self_attn.{x}_proj.weight"] = normal(*shape, scale=0.1)
    return tensors


Written = tuple[write.Tensors, np.ndarray]


def integers(
    writer: Callable[..., write.Tensors], matrix: dict | None = None, **options
) -> Callable[..., Written]:
    """Writes a linear of codes and scales: what `matrix` says of them, `options` of the file."""

    def one(name: str, rng: np.random.Generator, shape: tuple[int, int]) -> Written:
        m = write.random_matrix(rng, *shape, **(matrix or {}))
        m.scales /= np.float32(16 if writer is write.int8 else 1)
        return writer(name, m, **options), m.values

    return one


def eights(**options) -> Callable[..., Written]:
    def one(name: str, rng: np.random.Generator, shape: tuple[int, int]) -> Written:
        return write.fp8(name, rng, *shape, (16, 32), **options)

    return one


def float4(kind: str) -> Callable[..., Written]:
    """MXFP4 or NVFP4 as compressed-tensors packs them."""

    def one(name: str, rng: np.random.Generator, shape: tuple[int, int]) -> Written:
        blocks, scales, values = write.mxfp4(rng, shape[0], cols=shape[1])
        tensors = {
            f"{name}.weight_packed": ("U8", blocks.reshape(shape[0], -1)),
            f"{name}.weight_scale": ("U8", scales),
        }
        if kind == "mxfp4":
            return tensors, values
        number = values / np.repeat(2.0 ** (scales.astype(np.float32) - 127), 32, axis=1)
        eight = rng.integers(60, 100, (shape[0], shape[1] // 16)).astype(np.uint8)
        each = np.array([[write.e4m3(int(b)) for b in row] for row in eight], np.float32)
        tensors[f"{name}.weight_scale"] = ("F8_E4M3", eight)
        tensors[f"{name}.weight_global_scale"] = ("F32", np.array([400], np.float32))
        return tensors, number.astype(np.float32) * np.repeat(each / np.float32(400), 16, axis=1)

    return one


def in_turn(*writers: Callable[..., Written]) -> Callable[..., Written]:
    """Another writer for each linear."""
    count = iter(range(1 << 20))
    return lambda *given: writers[next(count) % len(writers)](*given)


def section(form: str, **weights) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
# Kind -> quantization_config, writer of a linear, and what ``auto`` keeps it as (None: not exact).
KINDS: dict[str, tuple[dict[str, Any], Callable[..., Written], str | None]] = {
    "gptq": (GPTQ, integers(write.gptq, bits=4), "q4g32h"),
    "gptq_v2_asymmetric": (
        GPTQ | {"checkpoint_format": "gptq_v2", "sym": False},
        integers(write.gptq, {"symmetric": False}, bits=4, version=2),
        None,
    ),
    "gptq_act_order": (
        GPTQ | {"desc_act": True}, integers(write.gptq, {"order": True}, bits=4, g_idx=True), None,
    ),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"},
        integers(write.awq, {"symmetric": False}),
        None,
    ),
    "fp8": ({"quant_method": "fp8", "weight_block_size": [16, 32]}, eights(), None),
    "packed": (
        section("pack-quantized", num_bits=4, type="int", group_size=32),
        integers(write.compressed, {"dtype": "BF16"}, bits=4, symmetric=True),
        "q4g32h",
    ),
    "int8": (
        section("int-quantized", num_bits=8, type="int", strategy="channel"),
        integers(
            write.int8, {"bits": 8, "group": -1, "dtype": "F32"}, symmetric=True, dtype="F32"
        ),
        "q8g32h",
    ),
    "float8": (
        section("float-quantized", num_bits=8, type="float", strategy="block",
                block_structure=[16, 32]),
        eights(scale="weight_scale", dtype="BF16"),
        None,
    ),
    "mixed": (
        section("mixed-precision", num_bits=4, type="int", group_size=32,
                block_structure=[16, 32]),
        in_turn(
            integers(write.compressed, {"dtype": "BF16"}, bits=4, symmetric=True),
            integers(write.compressed, {"symmetric": False, "order": True}, bits=4,
                     symmetric=False, dtype="F16", order=True),
            integers(write.int8, {"bits": 8, "dtype": "BF16"}, symmetric=True, dtype="BF16"),
            eights(scale="weight_scale"),
            float4("mxfp4"),
            float4("nvfp4"),
        ),
        None,
    ),
}  # fmt: skip


def both_folders(tmp_path: Path, kind: str, config: dict[str, Any] = LLAMA) -> tuple[Path, Path]:
    """The quantized folder, and the same numbers in float32."""
    quantization, one, _ = KINDS[kind]
    rng = np.random.default_rng(7)
    plain = around(config, rng)
    stored = dict(plain)
    for name, shape in linears(config).items():
        tensors, values = one(name, rng, shape)
        stored |= tensors
        plain[f"{name}.weight"] = ("F32", values)
    quantized = write.write_folder(
        tmp_path / "quantized", config | {"quantization_config": quantization}, stored
    )
    return quantized, write.write_folder(tmp_path / "plain", config, plain)


def gpt_oss_folders(tmp_path: Path, given: dict[str, Any] = GPT_OSS) -> tuple[Path, Path]:
    rng = np.random.default_rng(8)
    plain = around(given, rng)
    stored = dict(plain)
    for i in range(given["num_hidden_layers"]):
        at = f"model.layers.{i}.mlp.experts."
        for name, rows, cols in (("gate_up_proj", 192, 64), ("down_proj", 64, 96)):
            blocks, scales, values = write.mxfp4(rng, 3, rows, cols=cols)
            stored[f"{at}{name}_blocks"] = ("U8", blocks)
            stored[f"{at}{name}_scales"] = ("U8", scales)
            plain[f"{at}{name}"] = ("F32", np.ascontiguousarray(values.transpose(0, 2, 1)))
    config = given | {"quantization_config": {"quant_method": "mxfp4"}}
    quantized = write.write_folder(tmp_path / "quantized", config, stored)
    return quantized, write.write_folder(tmp_path / "plain", given, plain)
