"""OLMo 3 (transformers: Olmo3ForCausalLM): olmo2 with a window in three layers of four.

Full layers rotate with ``rope_parameters.full_attention``, window layers with
``rope_parameters.sliding_attention``; ``rope_scaling`` of older configs is for full layers alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from musespark.families import olmo2
from musespark.families.decoder import read_windows
from musespark.families.fields import MAX_CONTEXT, Fields
from musespark.families.rope import context_with, ropes_of_kinds
from musespark.families.spec import LayerSpec, ModelSpec
from musespark.families.tensors import TensorMap

name = "olmo3"
model_types = ("olmo3",)
architectures = ("Olmo3ForCausalLM",)
models = "OLMo 3"


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; keys that are missing take Olmo3Config's defaults."""
    c = Fields.of(config)
    c.architecture(*architectures)
    size, layer = olmo2.read_layer(c)
    window = c.optional_integer("sliding_window", 4096, MAX_CONTEXT)
    kinds = ["sliding_attention" if (i + 1) % 4 else "full_attention" for i in range(size.layers)]
    ropes = ropes_of_kinds(c, size.head_dim, size.context, 500000.0, None)

    def with_window(window: int) -> LayerSpec:
        attention = dataclasses.replace(layer.attention, window=window, rope=0 if window else 1)
        return dataclasses.replace(layer, attention=attention)

    return ModelSpec(
        vocab=size.vocab,
        hidden=size.hidden,
        max_context=context_with(ropes[1], size.context),
        final_norm=layer.post_attn_norm,
        tied_head=c.flag("tie_word_embeddings", False),
        ropes=ropes,
        layers=[with_window(w) for w in read_windows(c, window, kinds)],
    )


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """As :func:`olmo2.tensors`."""
    return olmo2.tensors(model, names)
