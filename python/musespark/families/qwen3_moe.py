"""Qwen3 with experts (transformers: Qwen3MoeForCausalLM): qwen3 whose MLPs are chosen per token."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from musespark.families import llama, qwen3
from musespark.families.decoder import chosen_window, read_sizes
from musespark.families.fields import MAX_EXPERTS, MAX_LAYERS, MAX_WIDTH, Fields
from musespark.families.rope import context_with, rope_from_config
from musespark.families.spec import LayerSpec, MlpSpec, ModelSpec, NormSpec
from musespark.families.tensors import TensorMap, match_tensors

name = "qwen3_moe"
model_types = ("qwen3_moe",)
architectures = ("Qwen3MoeForCausalLM",)
models = "Qwen3 mixture of experts (30B-A3B, 235B-A22B)"

_LAYER_NAMES = qwen3.LAYER_NAMES | {"router": "mlp.gate.weight"}
_EXPERT_NAMES = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


def _sparse(c: Fields) -> MlpSpec:
    key = "num_local_experts" if c.has("num_local_experts") else "num_experts"
    experts = c.integer(key, 128, MAX_EXPERTS)
    return MlpSpec(
        kind="experts",
        activation=c.activation("hidden_act", "silu"),
        intermediate=c.integer("moe_intermediate_size", 768, MAX_WIDTH),
        experts=experts,
        experts_per_token=c.integer("num_experts_per_tok", 8, experts),
        router="softmax",
        router_renormalize=c.flag("norm_topk_prob", False),
    )


def mlps(c: Fields, layers: int, dense: MlpSpec, sparse: MlpSpec) -> list[MlpSpec]:
    """Which of the two each layer has, from ``decoder_sparse_step`` and ``mlp_only_layers``."""
    every = c.integer("decoder_sparse_step", 1, MAX_LAYERS)
    only = c.get("mlp_only_layers") or []
    known = isinstance(only, list) and len(only) <= layers
    if not known or any(type(i) is not int or not 0 <= i < layers for i in only):
        raise c.refuse("mlp_only_layers", f"a list of layers, of 0 … {layers - 1}, is needed")
    chosen = set(only)
    return [sparse if i not in chosen and (i + 1) % every == 0 else dense for i in range(layers)]


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; keys that are missing take Qwen3MoeConfig's defaults.

    A window holds for every layer: transformers reads no ``max_window_layers`` here.
    """
    c = Fields.of(config)
    c.architecture(*architectures)
    size = read_sizes(
        c,
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=24,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=32768,
    )
    window = chosen_window(c)
    bias = c.flag("attention_bias", False)
    norm = NormSpec("rms", c.number("rms_norm_eps", 1e-6))
    attention = size.attention(
        window=window or 0,
        q_norm=norm,
        k_norm=norm,
        qkv_bias=bias,
        o_bias=bias,
    )
    dense = MlpSpec(activation=c.activation("hidden_act", "silu"), intermediate=size.intermediate)
    rope = rope_from_config(c, size.head_dim, size.context)
    return ModelSpec(
        vocab=size.vocab,
        hidden=size.hidden,
        max_context=context_with(rope, size.context),
        final_norm=norm,
        tied_head=c.flag("tie_word_embeddings", False),
        ropes=[rope],
        layers=[
            LayerSpec(attention, mlp, attn_norm=norm, mlp_norm=norm)
            for mlp in mlps(c, size.layers, dense, _sparse(c))
        ],
    )


def expert_namer(whole: Callable[[str], str]) -> Callable[[str], str]:
    """`whole`, and the names of the experts' matrices, each a tensor of its own."""

    def source_of(canonical: str) -> str:
        parts = canonical.split(".")
        if len(parts) != 5:
            return whole(canonical)
        _, layer, _, expert, part = parts
        return f"model.layers.{layer}.mlp.experts.{expert}.{_EXPERT_NAMES[part]}.weight"

    return source_of


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names; every expert's matrices are tensors of their own."""
    source_of = expert_namer(llama.namer("model", _LAYER_NAMES))
    return match_tensors(model, names, source_of, llama.IGNORABLE)
