"""Qwen1.5 and Qwen2 with experts (transformers: Qwen2MoeForCausalLM).

qwen2 whose MLPs are chosen per token, with one more beside them that every token takes, weighed by
a gate of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from musespark.families import llama, qwen3_moe
from musespark.families.decoder import chosen_window, read_sizes, read_windows
from musespark.families.fields import MAX_EXPERTS, MAX_WIDTH, Fields
from musespark.families.rope import context_with, rope_from_config
from musespark.families.spec import LayerSpec, MlpSpec, ModelSpec, NormSpec
from musespark.families.tensors import Part, TensorMap, match_tensors

name = "qwen2_moe"
model_types = ("qwen2_moe",)
architectures = ("Qwen2MoeForCausalLM",)
models = "Qwen1.5-MoE, Qwen2-57B-A14B"

_LAYER_NAMES = llama.LAYER_NAMES | {
    "router": "mlp.gate.weight",
    "shared_gate": "mlp.shared_expert.gate_proj.weight",
    "shared_up": "mlp.shared_expert.up_proj.weight",
    "shared_down": "mlp.shared_expert.down_proj.weight",
}
_SHARED_ROUTER = "mlp.shared_expert_gate.weight"


def _windows(c: Fields, layers: int) -> list[int]:
    window = chosen_window(c)
    last = c.integer("max_window_layers", 28, 2**31, low=0)
    default = [
        "sliding_attention" if window and i % 2 == 0 and i < last else "full_attention"
        for i in range(layers)
    ]
    return read_windows(c, window, default)


def _sparse(c: Fields) -> MlpSpec:
    experts = c.integer("num_experts", 60, MAX_EXPERTS)
    return MlpSpec(
        kind="experts",
        activation=c.activation("hidden_act", "silu"),
        intermediate=c.integer("moe_intermediate_size", 1408, MAX_WIDTH),
        experts=experts,
        experts_per_token=c.integer("num_experts_per_tok", 4, experts),
        router="softmax",
        router_renormalize=c.flag("norm_topk_prob", False),
        shared_intermediate=c.integer("shared_expert_intermediate_size", 5632, MAX_WIDTH),
        shared_router=True,
    )


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; keys that are missing take Qwen2MoeConfig's defaults."""
    c = Fields.of(config)
    c.architecture(*architectures)
    size = read_sizes(
        c,
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=32768,
    )
    bias = c.flag("qkv_bias", True)
    norm = NormSpec("rms", c.number("rms_norm_eps", 1e-6))
    dense = MlpSpec(activation=c.activation("hidden_act", "silu"), intermediate=size.intermediate)
    mlps = qwen3_moe.mlps(c, size.layers, dense, _sparse(c))

    def layer(window: int, mlp: MlpSpec) -> LayerSpec:
        attention = size.attention(window=window, qkv_bias=bias)
        return LayerSpec(attention, mlp, attn_norm=norm, mlp_norm=norm)

    rope = rope_from_config(c, size.head_dim, size.context)
    return ModelSpec(
        vocab=size.vocab,
        hidden=size.hidden,
        max_context=context_with(rope, size.context),
        final_norm=norm,
        tied_head=c.flag("tie_word_embeddings", False),
        ropes=[rope],
        layers=[layer(w, m) for w, m in zip(_windows(c, size.layers), mlps, strict=True)],
    )


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names; the shared expert's gate is stored as one row."""
    named = qwen3_moe.expert_namer(llama.namer("model", _LAYER_NAMES))

    def source_of(canonical: str) -> str | Part:
        *layer, part = canonical.split(".")
        if part != "shared_router":
            return named(canonical)
        return Part(f"model.layers.{layer[1]}.{_SHARED_ROUTER}", (1, model.hidden), 0)

    return match_tensors(model, names, source_of, llama.IGNORABLE)
