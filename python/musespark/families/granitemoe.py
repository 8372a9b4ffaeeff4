"""Granite 3 with experts (transformers: GraniteMoeForCausalLM): granite, its MLPs chosen per token.

``input_linear`` [experts, 2 * intermediate, hidden] holds gate above up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from musespark.families import llama
from musespark.families.fields import MAX_EXPERTS, Fields
from musespark.families.granite import granite_spec
from musespark.families.spec import MlpSpec, ModelSpec
from musespark.families.tensors import Part, TensorMap, match_tensors

name = "granitemoe"
model_types = ("granitemoe",)
architectures = ("GraniteMoeForCausalLM",)
models = "Granite 3.x mixture of experts (1B-A400M, 3B-A800M)"

_LAYER_NAMES = llama.LAYER_NAMES | {"router": "block_sparse_moe.router.layer.weight"}


def _sparse(c: Fields, intermediate: int) -> MlpSpec:
    experts = c.integer("num_local_experts", 8, MAX_EXPERTS)
    return MlpSpec(
        kind="experts",
        activation=c.activation("hidden_act", "silu"),
        intermediate=intermediate,
        experts=experts,
        experts_per_token=c.integer("num_experts_per_tok", 2, experts),
        router="softmax_chosen",
    )


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; keys that are missing take GraniteMoeConfig's defaults."""
    c = Fields.of(config)
    c.architecture(*architectures)
    return granite_spec(c, _sparse)


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names: experts are slices of stacks."""
    whole = llama.namer("model", _LAYER_NAMES)
    mlp, hidden = model.layers[0].mlp, model.hidden
    width, experts = mlp.intermediate, mlp.experts

    def source_of(canonical: str) -> str | Part:
        parts = canonical.split(".")
        if len(parts) != 5:
            return whole(canonical)
        _, layer, _, expert, part = parts
        at, number = f"model.layers.{layer}.block_sparse_moe.", int(expert)
        if part == "down":
            return Part(f"{at}output_linear.weight", (experts, hidden, width), number)
        start = width if part == "up" else 0
        stored = (experts, 2 * width, hidden)
        return Part(f"{at}input_linear.weight", stored, number, start=start, count=width)

    return match_tensors(model, names, source_of, llama.IGNORABLE)
