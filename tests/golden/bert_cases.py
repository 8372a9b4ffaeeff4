"""The golden BERT configurations, their random weights and texts; see make_bert.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from weights import uniform

_BERT = {"model_type": "bert", "architectures": ["BertModel"]}
CASES: dict[str, dict[str, Any]] = {
    "plain": _BERT
    | {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 90,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 96,
    },
    "tanh": _BERT
    | {
        "vocab_size": 61,
        "hidden_size": 72,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "max_position_embeddings": 80,
        "type_vocab_size": 1,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-5,
    },
    "wide_heads": _BERT
    | {
        "vocab_size": 80,
        "hidden_size": 80,
        "intermediate_size": 130,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 130,
        "hidden_act": "relu",
    },
}
SEEDS = (11, 12, 13)
LENGTHS = (1, 2, 17, 64, 80)


def weight(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One tensor: norms around 1, matrices that keep the size of what they multiply."""
    u = uniform(seed, name, shape)
    if name.endswith("LayerNorm.weight"):
        return np.float32(1) + np.float32(0.4) * u
    if len(shape) == 1:
        return np.float32(0.3) * u
    if "embeddings" in name:
        return u
    sharp = name.endswith(("query.weight", "key.weight"))
    return np.float32((3.0 if sharp else 1.8) / np.sqrt(shape[1])) * u


def texts(seed: int, vocab: int) -> list[np.ndarray]:
    """Random texts as ids, int32."""
    parts = [uniform(seed, f"text {n}", (n,)) * 0.5 + 0.5 for n in LENGTHS]
    return [(part * vocab).astype(np.int32).clip(0, vocab - 1) for part in parts]
