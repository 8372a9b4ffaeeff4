"""GGUF files of tiny random models, laid out as llama.cpp's converter lays them out.

Written with gguf-py from a Hugging Face config and checkpoint tensors: its own table gives the
names, and what the converter does to a family's keys and tensors is written down here once more,
apart from the tables under test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from musespark.families import family_for, llama, qwen3
from musespark.families.tensors import canonical_shapes
from support.model_folder import random_weight

Encode = Callable[[str, np.ndarray], tuple[np.ndarray, Any]]

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
# name -> (config, the tensors with biases). Odd head sizes; rotations that differ between heads.
CASES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_SIZES, "rope_theta": 500.0},
    # At theta 50000 the frequencies of a head of 20 lie on both sides of llama3's ramp and on it.
    "llama_llama3": {
        "model_type": "llama", **_SIZES, "head_dim": 20, "num_attention_heads": 3,
        "num_key_value_heads": 1, "rope_theta": 50000.0, "rope_scaling": LLAMA3,
        "tie_word_embeddings": True,
    },
    "llama_linear_biases": {
        "model_type": "llama", **_SIZES, "attention_bias": True, "mlp_bias": True,
        "rope_scaling": {"rope_type": "linear", "factor": 2.5},
    },
    "llama_yarn": {
        "model_type": "llama", **_SIZES,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128,
        },
    },
    "qwen3": {"model_type": "qwen3", **_SIZES, "head_dim": 24, "rope_theta": 1e6},
    "qwen3_tied": {
        "model_type": "qwen3", **_SIZES, "head_dim": 16, "tie_word_embeddings": True,
    },
}  # fmt: skip


def checkpoint_of(config: Mapping[str, Any], seed: int = 11) -> dict[str, np.ndarray]:
    """Random tensors under llama's checkpoint names, for families that use them."""
    spec = family_for(config).spec(config)
    parts = qwen3.LAYER_NAMES if config["model_type"] == "qwen3" else llama.LAYER_NAMES
    name_of = llama.namer("model", parts)
    return {
        name_of(name): random_weight(
            config["model_type"], seed, name_of(name), shape, spec.tied_head
        )
        for name, shape in canonical_shapes(spec).items()
    }


def weave(weight: np.ndarray, heads: int) -> np.ndarray:
    """The converter's order of the rows of Q and K: pairs that rotate together are neighbours."""
    shape = weight.shape
    halves = weight.reshape(heads, 2, shape[0] // heads // 2, *shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(shape)


def llama3_factors(theta: float, dim: int, scaling: Mapping[str, Any]) -> np.ndarray:
    """float32 [dim / 2]: the converter's rope_freqs.weight."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    context, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    factors = []
    for i in range(0, dim, 2):
        wavelength = 2 * math.pi * float(np.float32(theta ** (i / dim)))
        if wavelength < context / high:
            factors.append(1.0)
        elif wavelength > context / low:
            factors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def plain(name: str, weight: np.ndarray) -> tuple[np.ndarray, Any]:
    """Everything F32."""
    return weight.astype(np.float32), None


def quantized(kind: str) -> Encode:
    """Matrices of `kind` (a gguf-py type it can write), vectors F32."""

    def encode(name: str, weight: np.ndarray) -> tuple[np.ndarray, Any]:
        if weight.ndim == 1:
            return plain(name, weight)
        found = gguf.GGMLQuantizationType[kind]
        return gguf.quants.quantize(weight.astype(np.float32), found), found

    return encode


def write_gguf(
    path: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    encode: Encode = plain,
    more: Callable[[Any], None] = lambda writer: None,
    **options: Any,
) -> Path:
    """Writes the model; ``tensors`` are named as in its Hugging Face checkpoint.

    ``encode`` gives a tensor's bytes and type; ``more`` adds keys; ``options`` are GGUFWriter's.
    """
    arch = config["model_type"]
    writer = gguf.GGUFWriter(str(path), arch, **options)
    _write_keys(writer, config)
    more(writer)
    head = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(config["rope_theta"], head, scaling))
    kind = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == arch)
    names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    heads = {
        "q_proj": config["num_attention_heads"],
        "k_proj": config["num_key_value_heads"],
    }
    for name, value in tensors.items():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        projection = name.split(".")[-2]
        if arch == "llama" and projection in heads:
            value = weave(value, heads[projection])
        data, stored = encode(found, value)
        writer.add_tensor(found, data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_vocabulary(writer: Any) -> None:
    """Keys of a byte-level vocabulary of 258 tokens: the bytes, a pair, an end of text."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*letters, "th", "<|endoftext|>"])
    writer.add_token_types([1] * 257 + [3])
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(257)
    writer.add_bos_token_id(257)
    writer.add_chat_template("{{ messages[0]['content'] }}")


def _write_keys(writer: Any, config: Mapping[str, Any]) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    if "rope_theta" in config:
        writer.add_rope_freq_base(config["rope_theta"])
    head = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    writer.add_rope_dimension_count(head)
    if "head_dim" in config:
        writer.add_key_length(head)
        writer.add_value_length(head)
    scaling = config.get("rope_scaling") or {}
    kinds = {"linear": gguf.RopeScalingType.LINEAR, "yarn": gguf.RopeScalingType.YARN}
    if scaling.get("rope_type") in kinds:
        writer.add_rope_scaling_type(kinds[scaling["rope_type"]])
        writer.add_rope_scaling_factor(scaling["factor"])
    if scaling.get("rope_type") == "yarn":
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
