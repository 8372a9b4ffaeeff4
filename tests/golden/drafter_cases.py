"""Tiny block drafters, and what they are asked: contexts that grow from pass to pass.

Weights, states and embeddings are pure functions of (seed, name), as those of weights.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from weights import uniform

SEEDS = (11, 12)
_BASE = {
    "model_type": "muse_glimmer_assistant",
    "architectures": ["MuseGlimmerAssistantModel"],
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "mask_token_id": 5,
}
CASES: dict[str, dict[str, Any]] = {
    # Contexts beyond the window, pages of 64 crossed by a block.
    "window": _BASE | {"sliding_window": 20, "block_size": 8, "target_layer_ids": [0, 2, 3]},
    "mixed": _BASE
    | {
        "sliding_window": 9,
        "block_size": 5,
        "target_layer_ids": [1],
        "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.0},
        "hidden_act": "gelu",
        "rms_norm_eps": 1e-3,
    },
    # Everything that is left out: theta, window, sliding layers.
    "defaults": _BASE | {"block_size": 16, "target_layer_ids": [2, 0], "num_key_value_heads": 4},
}
# Positions that the target computed before each pass.
GROWS = (30, 3, 1, 16, 11, 64)


def weight(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One tensor of a checkpoint: matrices that keep sizes, norms around 1."""
    u = uniform(seed, name, shape)
    if len(shape) == 1:
        return np.float32(1) + np.float32(0.4) * u
    gain = 3.0 if "q_proj" in name or "k_proj" in name else 1.8
    return np.float32(gain / np.sqrt(shape[1])) * u


def states(seed: int, config: dict[str, Any]) -> np.ndarray:
    """float32 [positions, layers * hidden] of all passes together."""
    width = config["hidden_size"] * len(config["target_layer_ids"])
    return np.float32(2) * uniform(seed, "states", (sum(GROWS), width))


def embeds(seed: int, config: dict[str, Any], turn: int) -> np.ndarray:
    """float32 [block, hidden]: of the last token, which is another one each time, and of masks."""
    hidden, block = config["hidden_size"], config["block_size"]
    rows = np.repeat(uniform(seed, "mask", (1, hidden)), block, axis=0)
    rows[0] = uniform(seed, f"last {turn}", (hidden,))
    return np.float32(1.7) * rows
