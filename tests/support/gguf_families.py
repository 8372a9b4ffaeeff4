"""GGUF files of a tiny model of each architecture, from a ModelSpec and canonical tensors.

What llama.cpp's converter does to a family's tensors and keys is written down here once more, apart
from the tables under test; names are gguf-py's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from musespark.families.spec import ModelSpec
from support.gguf_models import weave

T = gguf.MODEL_TENSOR
_PARTS = {
    "attn_norm": T.ATTN_NORM, "q": T.ATTN_Q, "k": T.ATTN_K, "v": T.ATTN_V, "o": T.ATTN_OUT,
    "q_norm": T.ATTN_Q_NORM, "k_norm": T.ATTN_K_NORM, "sinks": T.ATTN_SINKS,
    "post_attn_norm": T.ATTN_POST_NORM, "mlp_norm": T.FFN_NORM, "gate": T.FFN_GATE,
    "up": T.FFN_UP, "down": T.FFN_DOWN, "post_mlp_norm": T.FFN_POST_NORM, "router": T.FFN_GATE_INP,
    "experts.gate": T.FFN_GATE_EXP, "experts.up": T.FFN_UP_EXP, "experts.down": T.FFN_DOWN_EXP,
}  # fmt: skip
_SIZES = {
    "vocab_size": 97, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}  # fmt: skip
_FACTORS = [1.0, 1.25, 2.0, 3.5, 6.0, 8.0]


def _gemma2(writer: Any, spec: ModelSpec) -> None:
    writer.add_sliding_window(7)
    writer.add_attn_logit_softcapping(spec.layers[0].attention.softcap)
    writer.add_final_logit_softcapping(spec.logit_softcap)


def _gemma3(writer: Any, spec: ModelSpec) -> None:
    writer.add_sliding_window(7)
    writer.add_rope_freq_base(50000.0)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(8.0)


def _phi3(writer: Any, spec: ModelSpec) -> None:
    writer.add_sliding_window(0)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_scaling_orig_ctx_len(64)
    writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(256 / 64) / math.log(64)))
    writer.add_tensor("rope_factors_long.weight", np.array(_FACTORS, np.float32))
    writer.add_tensor("rope_factors_short.weight", np.ones(6, np.float32))


def _experts(writer: Any, spec: ModelSpec) -> None:
    mlp = spec.layers[0].mlp
    writer.add_expert_count(mlp.experts)
    writer.add_expert_used_count(mlp.experts_per_token)
    writer.add_expert_feed_forward_length(mlp.intermediate)


def _gpt_oss(writer: Any, spec: ModelSpec) -> None:
    _experts(writer, spec)
    writer.add_sliding_window(9)
    writer.add_rope_freq_base(150000.0)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(32.0)
    writer.add_rope_scaling_orig_ctx_len(64)


def _granite(writer: Any, spec: ModelSpec) -> None:
    writer.add_logit_scale(4.0)
    writer.add_embedding_scale(0.5)
    writer.add_residual_scale(0.25)
    writer.add_attention_scale(0.125)


def _theta(writer: Any, spec: ModelSpec) -> None:
    writer.add_rope_freq_base(spec.ropes[0].theta)


# general.architecture -> (config of the same model, what the converter writes besides the sizes)
Keys = Callable[[Any, ModelSpec], None]
FAMILIES: dict[str, tuple[dict[str, Any], Keys]] = {
    "qwen2": (
        _SIZES | {"model_type": "qwen2", "rope_theta": 1e6, "tie_word_embeddings": True}, _theta,
    ),
    "qwen3moe": (
        _SIZES | {"model_type": "qwen3_moe", "head_dim": 20, "num_experts": 6,
                  "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True,
                  "rope_theta": 1e6},
        lambda writer, spec: (_experts(writer, spec), _theta(writer, spec)),
    ),
    "gemma2": (
        _SIZES | {"model_type": "gemma2", "head_dim": 16, "sliding_window": 7,
                  "query_pre_attn_scalar": 16, "attn_logit_softcapping": 3.0,
                  "final_logit_softcapping": 6.0},
        _gemma2,
    ),
    "gemma3": (
        _SIZES | {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 7,
                  "num_hidden_layers": 7, "query_pre_attn_scalar": 16, "rope_theta": 50000.0,
                  "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        _gemma3,
    ),
    "phi3": (
        _SIZES | {"model_type": "phi3", "original_max_position_embeddings": 64,
                  "rope_scaling": {"type": "longrope", "long_factor": _FACTORS,
                                   "short_factor": [1.0] * 6}},
        _phi3,
    ),
    "smollm3": (
        _SIZES | {"model_type": "smollm3", "num_hidden_layers": 5, "rope_theta": 5e6,
                  "tie_word_embeddings": True},
        _theta,
    ),
    "olmo2": (_SIZES | {"model_type": "olmo2", "rope_theta": 500000.0}, _theta),
    "granite": (
        _SIZES | {"model_type": "granite", "logits_scaling": 4.0, "embedding_multiplier": 0.5,
                  "residual_multiplier": 0.25, "attention_multiplier": 0.125,
                  "attention_bias": True, "mlp_bias": True},
        _granite,
    ),
    "gpt-oss": (
        _SIZES | {"model_type": "gpt_oss", "head_dim": 16, "num_local_experts": 6,
                  "num_experts_per_tok": 2, "sliding_window": 9, "intermediate_size": 40,
                  "rope_theta": 150000.0,
                  "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "truncate": False,
                                   "original_max_position_embeddings": 64}},
        _gpt_oss,
    ),
}  # fmt: skip


def _place(arch: str, part: str) -> tuple[Any, bool]:
    """The tensor that a layer's part is (in), and whether several parts are joined there."""
    if arch == "gpt-oss" and part == "mlp_norm":
        return T.ATTN_POST_NORM, False
    if arch.startswith("gemma") and part == "mlp_norm":
        return T.FFN_PRE_NORM, False
    if arch == "phi3" and part in ("q", "k", "v"):
        return T.ATTN_QKV, True
    if arch == "phi3" and part in ("gate", "up"):
        return T.FFN_UP, True
    return _PARTS[part], part.startswith("experts.")


def _stored(arch: str, spec: ModelSpec, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The file's tensors: rows of Q and K woven, norms with their 1, fused matrices, stacks."""
    kind = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == arch)
    tops = {"embed": T.TOKEN_EMBD, "final_norm": T.OUTPUT_NORM, "head": T.OUTPUT}
    out: dict[str, Any] = {}
    for canonical, value in weights.items():
        if arch.startswith("gemma") and canonical.endswith("norm"):
            value = value + np.float32(1)
        if canonical in tops:
            out[gguf.TENSOR_NAMES[tops[canonical]] + ".weight"] = value
            continue
        _, index, part = canonical.removesuffix("_bias").split(".", 2)
        if part.startswith("experts."):
            part = "experts." + part.split(".")[2]
        a = spec.layers[int(index)].attention
        if arch in ("granite", "smollm3") and part in ("q", "k"):
            value = weave(value, a.heads if part == "q" else a.kv_heads)
        tensor, joined = _place(arch, part)
        assert tensor in gguf.MODEL_TENSORS[kind], (arch, canonical)
        suffix = ".bias" if canonical.endswith("_bias") else ".weight"
        name = gguf.TENSOR_NAMES[tensor].format(bid=index) + suffix
        if joined:
            out.setdefault(name, []).append(value)
        else:
            out[name] = value
    join = {True: np.stack, False: np.concatenate}
    return {
        name: join["exps" in name](value) if isinstance(value, list) else value
        for name, value in out.items()
    }


def write_family(path: Path, arch: str, spec: ModelSpec, weights: dict[str, np.ndarray]) -> Path:
    """Writes the model of :data:`FAMILIES`, every tensor F32."""
    config, keys = FAMILIES[arch]
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    head = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    if "head_dim" in config:
        writer.add_key_length(head)
        writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    keys(writer, spec)
    for name, value in _stored(arch, spec, weights).items():
        writer.add_tensor(name, np.ascontiguousarray(value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
