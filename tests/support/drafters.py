"""Tiny drafters with random weights for the tiny models of the engine's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from musespark.engine import Engine
from musespark.families import read_config
from musespark.families.spec import (
    AttentionSpec,
    LayerSpec,
    MlpSpec,
    ModelSpec,
    NormSpec,
    RopeSpec,
)
from musespark.families.tensors import EVERY_NAME, canonical_shapes
from support import engine_cases as cases
from support import tiny_models
from support.model_folder import write_folder
from support.run_engine import Packed, pack_weights

BLOCK = 8


def drafter_for(target: ModelSpec, window: int = 40) -> ModelSpec:
    """Two layers, one of them with a window, that read the first two of the target."""
    norm = NormSpec("rms", 1e-5)

    def layer(window: int) -> LayerSpec:
        attention = AttentionSpec(
            heads=4,
            kv_heads=2,
            head_dim=16,
            window=window,
            rope=0,
            q_norm=norm,
            k_norm=norm,
            query_scale=0.25,
        )
        return LayerSpec(attention, MlpSpec(intermediate=80), attn_norm=norm, mlp_norm=norm)

    return ModelSpec(
        vocab=4,
        hidden=target.hidden,
        max_context=4096,
        final_norm=norm,
        ropes=[RopeSpec(dim=16, theta=1000.0)],
        layers=[layer(window), layer(window and window + 30)],
        block=BLOCK,
        mask_token=3,
        target_layers=(0, max(0, len(target.layers) - 2)),
        context_norm=norm,
    )


def weights_for(spec: ModelSpec, *, silent: bool = False, fmt: str = "q8", seed: int = 3) -> Packed:
    """Random ones; ``silent``: every logit of it is 0."""
    weights = tiny_models.random_weights(spec, seed)
    if silent:
        weights["final_norm"] = np.zeros_like(weights["final_norm"])
    return pack_weights(weights, fmt)


def make_engine(name: str = "muse_kv8", *, silent: bool = False, **settings: Any) -> Engine:
    """:func:`engine_cases.make_engine` with a drafter. ``silent``: model and drafter give every
    token the same logit, so that what is sampled follows from seed and position alone: the drafter
    is always right, and nothing that was written comes again."""
    spec, tensors, kv = cases.packed(name)
    own = drafter_for(spec)
    if silent:
        zero = np.zeros_like(tensors["final_norm"][3])
        tensors = tensors | {"final_norm": (*tensors["final_norm"][:3], zero)}
    given = settings.pop("drafter", (own, weights_for(own, silent=silent)))
    defaults = {"threads": 1, "context": 1024, "memory_budget": 1 << 28, "kv": kv}
    engine = Engine(spec, tensors, drafter=given, **(defaults | settings))
    engine.vocab = spec.vocab
    return engine


NANO = {
    "model_type": "muse_glimmer_assistant",
    "architectures": ["MuseGlimmerAssistantModel"],
    "hidden_size": 192,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "sliding_window": 256,
    "block_size": BLOCK,
    "mask_token_id": 63,
    "target_layer_ids": [1, 4, 6],
}


def drafter_folder(folder: Path, **changes: Any) -> Path:
    """A drafter for Spark Nano, random, as transformers saves one."""
    config = NANO | changes
    family, spec, _ = read_config(config)
    shapes = canonical_shapes(spec)
    rng = np.random.default_rng(5)
    sources = family.tensors(spec, [EVERY_NAME]).sources
    tensors = {
        sources[name].name: (rng.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)
        for name, shape in shapes.items()
    }
    return write_folder(folder, config, tensors)
