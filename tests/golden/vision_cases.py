"""The golden configurations of vision towers, their random weights and patches; see
make_vision.py."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from weights import uniform

_LLAMA = {
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 40,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
_TINY = {
    "hidden_size": 48,
    "intermediate_size": 70,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "patch_size": 4,
}


@dataclass(frozen=True)
class VisionCase:
    """A config, the class that runs it, and grids (frames, height, width) of patches.

    ``how`` is the way patches go in: ``images`` (pixels of each grid), ``padded`` (rows padded to
    the longest grid) or ``packed`` (all rows and their grids).
    """

    architecture: str
    config: dict[str, Any]
    grids: list[tuple[int, int, int]]
    how: str

    @property
    def width(self) -> int:
        return self.config["text_config"]["hidden_size"]


def _idefics3(kind: str, **vision: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        "image_token_id": 120,
        "text_config": _LLAMA | {"pad_token_id": 0},
        "vision_config": _TINY | {"image_size": 24} | vision,
    }


_QWEN_TEXT = {
    "vocab_size": 128,
    "hidden_size": 40,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 3, 3]},
}
_QWEN_TINY = {"depth": 4, "num_heads": 4, "patch_size": 4, "temporal_patch_size": 2}


def _qwen(kind: str, **vision: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        "image_token_id": 120,
        "video_token_id": 121,
        "vision_start_token_id": 122,
        "vision_end_token_id": 123,
        "text_config": _QWEN_TEXT | {"model_type": f"{kind}_text"},
        "vision_config": _QWEN_TINY | vision,
    }


def _muse(kind: str, **vision: Any) -> dict[str, Any]:
    text = {
        "model_type": f"{kind}_text",
        "vocab_size": 128,
        "hidden_size": 40,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    tower = {"hidden_size": 48, "intermediate_size": 70, "num_attention_heads": 4}
    tower |= {"num_hidden_layers": 5, "patch_size": 4, "pos_emb_height": 4, "pos_emb_width": 4}
    more: dict[str, Any] = {}
    if kind == "muse_spark":
        text |= {"moe_hidden_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2}
        text |= {"moe_intermediate_size": 16}
        audio: dict[str, Any] = {"num_hidden_layers": 1, "patch_sizes": [16], "depths": [1]}
        more["audio_config"] = audio | {"hidden_sizes": [16], "out_hidden_size": 40}
    return {
        "model_type": kind,
        "image_token_id": 120,
        "video_token_id": 121,
        "audio_token_id": 122,
        "out_hidden_size": 192,
        "projector_hidden_size": 52,
        "text_config": text,
        "vision_config": tower | vision,
    } | more


_LLAVA = {
    "model_type": "llava",
    "image_token_index": 120,
    "text_config": _LLAMA,
    "vision_config": _TINY | {"model_type": "clip_vision_model", "image_size": 20},
}
_GEMMA3 = {
    "model_type": "gemma3",
    "image_token_index": 120,
    "boi_token_index": 121,
    "eoi_token_index": 122,
    "mm_tokens_per_image": 4,
    "text_config": {
        "model_type": "gemma3_text",
        "vocab_size": 128,
        "hidden_size": 40,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    },
    "vision_config": _TINY | {"model_type": "siglip_vision_model", "image_size": 24},
}
_LFM2 = {
    "model_type": "lfm2_vl",
    "image_token_id": 120,
    "projector_hidden_size": 56,
    "text_config": {
        "model_type": "lfm2",
        "vocab_size": 128,
        "hidden_size": 40,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "layer_types": ["conv", "full_attention"],
    },
    "vision_config": _TINY | {"model_type": "siglip2_vision_model", "num_patches": 36},
}

CASES = {
    "idefics3": VisionCase(
        "Idefics3ForConditionalGeneration", _idefics3("idefics3"), [(1, 6, 6)] * 2, "images"
    ),
    "smolvlm_between": VisionCase(
        "SmolVLMForConditionalGeneration",
        _idefics3("smolvlm", num_attention_heads=6, hidden_act="gelu") | {"scale_factor": 4},
        [(1, 8, 8)],
        "images",
    ),
    "qwen2_vl": VisionCase(
        "Qwen2VLForConditionalGeneration",
        _qwen("qwen2_vl", embed_dim=48, hidden_size=40, mlp_ratio=2),
        [(1, 6, 4), (2, 4, 8)],
        "packed",
    ),
    "qwen2_5_vl": VisionCase(
        "Qwen2_5_VLForConditionalGeneration",
        _qwen(
            "qwen2_5_vl",
            hidden_size=48,
            intermediate_size=70,
            out_hidden_size=40,
            window_size=16,
            fullatt_block_indexes=[1, 3],
        ),
        [(1, 6, 10), (2, 4, 8)],
        "packed",
    ),
    "qwen3_vl": VisionCase(
        "Qwen3VLForConditionalGeneration",
        _qwen(
            "qwen3_vl",
            hidden_size=48,
            intermediate_size=70,
            out_hidden_size=40,
            num_position_embeddings=25,
            deepstack_visual_indexes=[0, 2],
        ),
        [(1, 6, 4), (2, 4, 8), (1, 2, 2)],
        "packed",
    ),
    "gemma3": VisionCase("Gemma3ForConditionalGeneration", _GEMMA3, [(1, 6, 6)] * 2, "images"),
    "llava": VisionCase("LlavaForConditionalGeneration", _LLAVA, [(1, 5, 5)] * 2, "images"),
    "llava_last": VisionCase(
        "LlavaForConditionalGeneration",
        _LLAVA
        | {
            "vision_feature_layer": -1,
            "multimodal_projector_bias": False,
            "projector_hidden_act": "gelu_pytorch_tanh",
        },
        [(1, 5, 5)],
        "images",
    ),
    "lfm2_vl": VisionCase(
        "Lfm2VlForConditionalGeneration", _LFM2, [(1, 6, 6), (1, 8, 4), (1, 2, 10)], "padded"
    ),
    "lfm2_vl_plain": VisionCase(
        "Lfm2VlForConditionalGeneration",
        _LFM2 | {"projector_use_layernorm": False, "projector_bias": False},
        [(1, 4, 6)],
        "padded",
    ),
    "muse_glimmer": VisionCase(
        "MuseGlimmerForConditionalGeneration",
        _muse("muse_glimmer"),
        [(1, 6, 10), (2, 4, 8), (1, 2, 2)],
        "packed",
    ),
    "muse_spark": VisionCase(
        "MuseSparkForConditionalGeneration",
        _muse("muse_spark", patch_temporal=1, layer_norm_eps=1e-3),
        [(1, 6, 10), (1, 4, 2)],
        "packed",
    ),
}
SEED = 21
TEXT = re.compile(
    r".*(language_model|text_model|lm_head|audio).*|model\.(embed_tokens|layers|norm)\..*"
)


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """One tensor: norms around 1 (Gemma's around 0), matrices that keep the size of their input."""
    u = uniform(SEED, name, shape)
    if "mm_soft_emb_norm" in name:
        return np.float32(0.4) * u
    if len(shape) == 1 and name.endswith(".weight"):
        return np.float32(1) + np.float32(0.4) * u
    if len(shape) == 1:
        return np.float32(0.3) * u
    if "pos" in name and "embed" in name:
        return u
    if name.endswith("mm_input_projection_weight"):
        return np.float32(1.8 / np.sqrt(shape[0])) * u
    sharp = re.search(r"(q_proj|k_proj|qkv)\.weight$", name)
    return np.float32((3.0 if sharp else 1.8) / np.sqrt(np.prod(shape[1:]))) * u


def patches(name: str, patch_dim: int) -> np.ndarray:
    """The patches of all grids of a case, float32 [n, patch_dim]."""
    count = sum(t * h * w for t, h, w in CASES[name].grids)
    return uniform(SEED, f"patches of {name}", (count, patch_dim))
