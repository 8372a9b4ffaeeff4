"""LoRA adapters on golden cases' models, recorded from PEFT (make_lora.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from weights import uniform


@dataclass(frozen=True)
class LoraCase:
    """`base` and `seed`: the model, of cases.py. `config`: keyword arguments of LoraConfig."""

    base: str
    config: dict[str, Any]
    seed: int = 11


LORA_CASES = {
    "lora_llama": LoraCase(
        "llama_plain",
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": [
                *("q_proj", "k_proj", "v_proj", "o_proj"),
                *("gate_proj", "up_proj", "down_proj"),
            ],
        },
    ),
    # Biases under the addition; one layer left out; alpha / sqrt(r).
    "lora_qwen2": LoraCase(
        "qwen2_full",
        {
            "r": 3,
            "lora_alpha": 2,
            "use_rslora": True,
            "target_modules": ["q_proj", "v_proj", "down_proj"],
            "layers_to_transform": [0, 2],
        },
    ),
    # One A for q, k and v, and for gate and up; ranks and alphas of their own.
    "lora_phi3": LoraCase(
        "phi3_grouped",
        {
            "r": 5,
            "lora_alpha": 6,
            "target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
            "rank_pattern": {"qkv_proj": 7, "layers.1.mlp.down_proj": 2},
            "alpha_pattern": {"layers.1.mlp.down_proj": 3, "o_proj": 10},
        },
    ),
    # gate_proj is the attention's gate and the MLP's; a key of a pattern tells them apart.
    "lora_muse": LoraCase(
        "muse_defaults",
        {
            "r": 4,
            "lora_alpha": 4,
            "target_modules": r".*language_model.*\.(q_proj|k_proj|o_proj|gate_proj|down_proj)",
            "rank_pattern": {"self_attn.gate_proj": 17},
        },
    ),
}


def lora_value(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One tensor of an adapter; B is far from the zeros that training begins with."""
    gain = 1.2 if "lora_A" in name else 1.0
    return np.float32(gain / np.sqrt(shape[1])) * uniform(seed, name, shape)
