"""Mixtral (transformers: MixtralForCausalLM): mistral whose MLPs are chosen per token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from musespark.families import llama
from musespark.families.decoder import read_sizes
from musespark.families.fields import MAX_CONTEXT, MAX_EXPERTS, Fields
from musespark.families.rope import context_with, rope_from_config
from musespark.families.spec import LayerSpec, MlpSpec, ModelSpec, NormSpec
from musespark.families.tensors import TensorMap, match_tensors

name = "mixtral"
model_types = ("mixtral",)
architectures = ("MixtralForCausalLM",)
models = "Mixtral 8x7B and 8x22B"

_LAYER_NAMES = llama.LAYER_NAMES | {"router": "block_sparse_moe.gate.weight"}
_EXPERT_NAMES = {"gate": "w1", "up": "w3", "down": "w2"}


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; keys that are missing take MixtralConfig's defaults."""
    c = Fields.of(config)
    c.architecture(*architectures)
    size = read_sizes(
        c,
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
    )
    c.get("router_jitter_noise")  # of training
    norm = NormSpec("rms", c.number("rms_norm_eps", 1e-5))
    experts = c.integer("num_local_experts", 8, MAX_EXPERTS)
    layer = LayerSpec(
        attention=size.attention(
            window=c.optional_integer("sliding_window", None, MAX_CONTEXT) or 0,
        ),
        mlp=MlpSpec(
            kind="experts",
            activation=c.activation("hidden_act", "silu"),
            intermediate=size.intermediate,
            experts=experts,
            experts_per_token=c.integer("num_experts_per_tok", 2, experts),
            router="softmax",
            router_renormalize=True,
        ),
        attn_norm=norm,
        mlp_norm=norm,
    )
    rope = rope_from_config(c, size.head_dim, size.context, default_theta=1000000.0)
    return ModelSpec(
        vocab=size.vocab,
        hidden=size.hidden,
        max_context=context_with(rope, size.context),
        final_norm=norm,
        tied_head=c.flag("tie_word_embeddings", False),
        ropes=[rope],
        layers=[layer] * size.layers,
    )


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names; every expert's matrices are tensors of their own."""
    whole = llama.namer("model", _LAYER_NAMES)

    def source_of(canonical: str) -> str:
        parts = canonical.split(".")
        if len(parts) != 5:
            return whole(canonical)
        _, layer, _, expert, part = parts
        stored = _EXPERT_NAMES[part]
        return f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{stored}.weight"

    return match_tensors(model, names, source_of, llama.IGNORABLE)
