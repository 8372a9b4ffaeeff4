"""gpt-oss (transformers: GptOssForCausalLM).

Every MLP is a mixture of experts with biases and a clamped activation; every attention has a sink
for each head and biases, every other one a window. Experts are stored as stacks, turned:
``gate_up_proj`` [experts, hidden, 2 * intermediate] alternates gate and up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from musespark.families import llama
from musespark.families.decoder import read_sizes, read_windows
from musespark.families.fields import MAX_CONTEXT, MAX_EXPERTS, Fields
from musespark.families.rope import rope_from_config
from musespark.families.spec import LayerSpec, MlpSpec, ModelSpec, NormSpec
from musespark.families.tensors import Part, TensorMap, match_tensors

name = "gpt_oss"
model_types = ("gpt_oss",)
architectures = ("GptOssForCausalLM",)
models = "gpt-oss 20B and 120B"

LAYER_NAMES = llama.LAYER_NAMES | {
    "sinks": "self_attn.sinks",
    "router": "mlp.router.weight",
    "router_bias": "mlp.router.bias",
}
_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def _mlp(c: Fields, intermediate: int) -> MlpSpec:
    c.must_be("hidden_act", "silu", None)
    experts = c.integer("num_local_experts", 128, MAX_EXPERTS)
    chosen = c.integer("num_experts_per_tok", 4, experts)
    c.must_be("experts_per_token", chosen, None)
    return MlpSpec(
        kind="experts",
        bias=True,
        intermediate=intermediate,
        experts=experts,
        experts_per_token=chosen,
        swiglu_limit=c.number("swiglu_limit", 7.0),
        swiglu_alpha=c.number("swiglu_alpha", 1.702),
        router="softmax_chosen",
        router_bias=True,
    )


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; keys that are missing take GptOssConfig's defaults."""
    c = Fields.of(config)
    c.architecture(*architectures)
    size = read_sizes(
        c,
        vocab_size=201088,
        hidden_size=2880,
        intermediate_size=2880,
        num_hidden_layers=36,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=64,
        max_position_embeddings=131072,
    )
    bias = c.flag("attention_bias", True)
    norm = NormSpec("rms", c.number("rms_norm_eps", 1e-5))
    mlp = _mlp(c, size.intermediate)
    kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(size.layers)]
    window = c.optional_integer("sliding_window", 128, MAX_CONTEXT)

    def layer(window: int) -> LayerSpec:
        attention = size.attention(window=window, sinks=True, qkv_bias=bias, o_bias=bias)
        return LayerSpec(attention, mlp, attn_norm=norm, mlp_norm=norm)

    return ModelSpec(
        vocab=size.vocab,
        hidden=size.hidden,
        max_context=size.context,
        final_norm=norm,
        tied_head=c.flag("tie_word_embeddings", False),
        ropes=[
            rope_from_config(c, size.head_dim, size.context, default_theta=150000.0, default=_ROPE)
        ],
        layers=[layer(w) for w in read_windows(c, window, kinds)],
    )


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names: experts are slices of stacks."""
    whole = llama.namer("model", LAYER_NAMES)
    mlp, hidden = model.layers[0].mlp, model.hidden
    width, experts = mlp.intermediate, mlp.experts

    def source_of(canonical: str) -> str | Part:
        parts = canonical.split(".")
        if len(parts) != 5:
            return whole(canonical)
        _, layer, _, expert, part = parts
        at, number = f"model.layers.{layer}.mlp.experts.", int(expert)
        if part == "down":
            return Part(f"{at}down_proj", (experts, width, hidden), number, True)
        if part == "down_bias":
            return Part(f"{at}down_proj_bias", (experts, hidden), number)
        start = 1 if part.startswith("up") else 0
        if part.endswith("_bias"):
            stored = (experts, 2 * width)
            return Part(f"{at}gate_up_proj_bias", stored, number, False, start, width, 2)
        stored = (experts, hidden, 2 * width)
        return Part(f"{at}gate_up_proj", stored, number, True, start, width, 2)

    return match_tensors(model, names, source_of, llama.IGNORABLE)
