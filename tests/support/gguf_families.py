"""GGUF files of the golden cases, laid out as llama.cpp's converter lays each family out.

gguf-py's own table gives the names. What the converter does to a family's keys and tensors is
written down here once more, apart from the tables under test; numbers come from the ModelSpec,
which is compared with transformers elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from musespark.families.spec import ModelSpec
from support.gguf_models import Encode, plain, weave
from support.model_folder import Case

ARCHITECTURES = {
    "mistral": "llama", "mixtral": "llama", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe",
    "gpt_oss": "gpt-oss", "olmo3": "olmo2", "muse_glimmer": "muse-glimmer",
    "qwen2_vl": "qwen2vl", "qwen3_vl": "qwen3vl",
}  # fmt: skip
WOVEN = ("llama", "mistral3", "smollm3", "granite", "granitemoe", "muse-glimmer")
# gguf-py may be older than this family.
MUSE_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.gate_proj": "attn_gate", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
EXPERT = re.compile(
    r"model\.layers\.(\d+)\.(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)\.weight"
)


def write_family(
    path: Path,
    case: Case,
    spec: ModelSpec,
    weights: dict[str, np.ndarray],
    encode: Encode = plain,
    more: Callable[[Any], object] = lambda writer: None,
) -> Path:
    """Writes a golden case's checkpoint (names as transformers saves them) as a GGUF file.

    ``encode`` gives a tensor's bytes and type; ``more`` adds keys.
    """
    arch = ARCHITECTURES.get(case.family, case.family)
    writer = gguf.GGUFWriter(str(path), arch)
    _write_keys(writer, case, spec)
    more(writer)
    for name, value in _converted(case, spec, weights).items():
        found = _name(arch, name, len(spec.layers))
        projection = name.split(".")[-2]
        if arch in WOVEN and projection in ("q_proj", "k_proj"):
            a = spec.layers[0].attention
            value = weave(value, a.heads if projection == "q_proj" else a.kv_heads)
        if _zero_centred(case.family, name):
            value = value + 1
        data, stored = encode(found, value)
        writer.add_tensor(found, np.ascontiguousarray(data), raw_dtype=stored)
    if case.family == "phi3" and spec.ropes[0].scaling == "factors":
        writer.add_tensor("rope_factors_long.weight", np.float32(spec.ropes[0].factors))
        writer.add_tensor("rope_factors_short.weight", np.float32(spec.ropes[0].short_factors))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _name(arch: str, name: str, layers: int) -> str:
    if arch == "muse-glimmer":
        part = re.fullmatch(r"model\.language_model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if part:
            return f"blk.{part[1]}.{MUSE_NAMES[part[2]]}.{part[3]}"
        arch, name = "llama", name.replace("language_model.", "")
    if arch in ("mistral3", "qwen2vl", "qwen3vl"):
        name = name.replace("language_model.", "", 1)
    kind = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == arch)
    found = gguf.get_tensor_name_map(kind, layers).get_name(name, (".weight", ".bias"))
    assert found is not None, name
    return found


def _zero_centred(family: str, name: str) -> bool:
    end = "layernorm.weight" if family == "muse_glimmer" else "norm.weight"
    return family.startswith(("gemma", "muse_glimmer")) and name.endswith(end)


def _converted(
    case: Case, spec: ModelSpec, weights: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The tensors under names that gguf-py knows: experts in stacks, gpt_oss's as [out, in]."""
    family = case.family
    out: dict[str, np.ndarray] = {}
    if family == "muse_glimmer":
        dim = spec.layers[0].attention.head_dim
        scale = case.config["text_config"].get("qk_scale_factor", 3.87)
        for i in range(len(spec.layers)):
            at = f"model.language_model.layers.{i}.self_attn."
            out[f"{at}q_norm.weight"] = np.full(dim, scale, np.float32)
            out[f"{at}k_norm.weight"] = np.ones(dim, np.float32)
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for name, value in weights.items():
        expert = EXPERT.fullmatch(name)
        if expert:
            layer, number, part = expert[1], int(expert[2]), expert[3]
            stack = f"model.layers.{layer}.mlp.experts.{part}.weight"
            if family == "mixtral":
                stack = f"layers.{layer}.feed_forward.experts.{part}.weight"
            stacks.setdefault(stack, {})[number] = value
        elif family == "gpt_oss" and ".experts." in name:
            turned = value.swapaxes(1, 2) if value.ndim == 3 else value
            stem, _, suffix = name.partition("_proj")
            suffix = "_proj.bias" if suffix else "_proj.weight"
            if stem.endswith("gate_up"):
                stem = stem.removesuffix("gate_up")
                out[f"{stem}gate{suffix}"] = turned[:, ::2]
                out[f"{stem}up{suffix}"] = turned[:, 1::2]
            else:
                out[stem + suffix] = turned
        elif name.endswith("block_sparse_moe.input_linear.weight"):
            at = name.removesuffix("block_sparse_moe.input_linear.weight") + "mlp.experts."
            half = value.shape[1] // 2
            out[f"{at}gate_proj.weight"], out[f"{at}up_proj.weight"] = (
                value[:, :half],
                value[:, half:],
            )
        elif name.endswith("sinks"):
            out[name + ".weight"] = value
        elif name.endswith("shared_expert_gate.weight"):
            out[name] = value[0]
        else:
            out[name] = value
    for name, parts in stacks.items():
        out[name] = np.stack([parts[i] for i in range(len(parts))])
    return out


def _write_keys(writer: Any, case: Case, spec: ModelSpec) -> None:
    config, layer = case.config.get("text_config", case.config), spec.layers[0]
    a, mlp = layer.attention, layer.mlp
    writer.add_context_length(config.get("max_position_embeddings", spec.max_context))
    writer.add_embedding_length(spec.hidden)
    writer.add_block_count(len(spec.layers))
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(a.heads)
    writer.add_head_count_kv(a.kv_heads)
    if spec.final_norm.kind == "layer":
        writer.add_layer_norm_eps(spec.final_norm.eps)
    else:
        writer.add_layer_norm_rms_eps(spec.final_norm.eps)
    writer.add_rope_freq_base(spec.ropes[-1].theta)
    if "head_dim" in config or case.family == "gpt_oss":
        writer.add_key_length(a.head_dim)
        writer.add_value_length(a.head_dim)
    windows = [one.attention.window for one in spec.layers]
    if any(windows) or case.family == "phi3":
        writer.add_sliding_window(max(windows))
    if case.family in ("gemma3", "olmo3", "muse_glimmer"):
        writer.add_sliding_window_pattern([window > 0 for window in windows])
    if mlp.kind == "experts":
        writer.add_expert_count(mlp.experts)
        writer.add_expert_used_count(mlp.experts_per_token)
        if case.family not in ("mixtral", "granitemoe"):
            writer.add_expert_feed_forward_length(mlp.intermediate)
        if mlp.shared_intermediate:
            writer.add_expert_shared_feed_forward_length(mlp.shared_intermediate)
    if a.softcap:
        writer.add_attn_logit_softcapping(a.softcap)
    if spec.logit_softcap:
        writer.add_final_logit_softcapping(spec.logit_softcap)
    if case.family in ("granite", "granitemoe"):
        writer.add_attention_scale(a.query_scale)
        writer.add_embedding_scale(spec.embed_scale)
        writer.add_residual_scale(layer.residual_scale)
        writer.add_logit_scale(1 / spec.logit_scale)
    if case.family == "muse_glimmer":
        writer.add_logit_scale(spec.logit_scale)
    _write_rope(writer, case, spec)


def _write_rope(writer: Any, case: Case, spec: ModelSpec) -> None:
    rope = spec.ropes[-1]  # of full layers, where there are two
    if rope.axes:
        writer.add_rope_dimension_sections([*np.bincount(rope.axes, minlength=3).tolist(), 0])
    if case.family == "gemma3":
        writer.add_float32("gemma3.rope.freq_base_swa", spec.ropes[0].theta)
    elif case.family != "starcoder2":
        writer.add_rope_dimension_count(rope.dim)
    if case.family == "phi3":
        writer.add_rope_scaling_orig_ctx_len(rope.original_context or 4096)
        if rope.scaling == "factors":
            writer.add_rope_scaling_attn_factors(rope.attention_factor)
    elif rope.scaling == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope.factor)
    elif rope.scaling == "yarn" or case.family == "gpt_oss":
        said = case.config.get("rope_scaling") or {
            "factor": 32.0, "original_max_position_embeddings": 4096
        }  # fmt: skip
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(said["factor"])
        writer.add_rope_scaling_orig_ctx_len(said["original_max_position_embeddings"])
