"""The golden configurations: tiny, with odd sizes, prompts longer than the windows, fixed seeds.

Each case is (family, config as it would stand in config.json, prompt length, seeds). Both the old
keys (rope_theta, rope_scaling) and rope_parameters occur; defaults are left out on purpose.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Case(NamedTuple):
    family: str
    config: dict[str, Any]
    prompt: int
    seeds: tuple[int, ...] = (11, 12)


_LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
_QWEN3 = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
_VISION = {
    "model_type": "muse_glimmer_vision",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "patch_size": 4,
    "pos_emb_height": 4,
    "pos_emb_width": 4,
}


def _muse(text: dict[str, Any], **outer: Any) -> dict[str, Any]:
    return {
        "model_type": "muse_glimmer",
        "architectures": ["MuseGlimmerForConditionalGeneration"],
        "text_config": {"model_type": "muse_glimmer_text"} | text,
        "vision_config": _VISION,
        "out_hidden_size": 64,
        "projector_hidden_size": 16,
        "image_token_id": 100000,
        "video_token_id": 100001,
    } | outer


def _sizes(vocab: int, hidden: int, inter: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inter,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


CASES: dict[str, Case] = {
    # Llama 2: no grouped heads, head_dim from hidden / heads = 12, tied, keys of 2023.
    "llama_plain": Case(
        "llama",
        _LLAMA
        | _sizes(97, 60, 72, 3, 5)
        | {"rope_theta": 10000.0, "rope_scaling": None, "tie_word_embeddings": True},
        37,
    ),
    # Llama 3.1: grouped heads, llama3 scaling in the old key, biases everywhere.
    "llama_llama3_biases": Case(
        "llama",
        _LLAMA
        | _sizes(101, 48, 88, 2, 3)
        | {
            "num_key_value_heads": 1,
            "head_dim": 20,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_theta": 500.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
        41,
    ),
    # Linear scaling, "type" instead of "rope_type", gelu; the prompt passes a page of 64.
    "llama_linear_gelu": Case(
        "llama",
        _LLAMA
        | _sizes(89, 56, 72, 4, 4)
        | {
            "num_key_value_heads": 2,
            "hidden_act": "gelu",
            "rms_norm_eps": 1e-5,
            "rope_scaling": {"type": "linear", "factor": 2.5},
        },
        90,
    ),
    # transformers 5 keys; original_max_position_embeddings defaults to the context.
    "llama_rope_parameters": Case(
        "llama",
        _LLAMA
        | _sizes(131, 64, 104, 5, 8)
        | {
            "num_key_value_heads": 4,
            "max_position_embeddings": 256,
            "hidden_act": "gelu_pytorch_tanh",
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
        },
        53,
    ),
    "llama_yarn": Case(
        "llama",
        _LLAMA
        | _sizes(97, 48, 72, 2, 6)
        | {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        80,
    ),
    "qwen3_full": Case(
        "qwen3",
        _QWEN3
        | _sizes(97, 56, 72, 3, 4)
        | {"num_key_value_heads": 1, "head_dim": 16, "rope_theta": 1000000.0},
        44,
    ),
    # Windows from max_window_layers on, shorter than the prompt; biases; tied.
    "qwen3_windows": Case(
        "qwen3",
        _QWEN3
        | _sizes(103, 48, 72, 4, 5)
        | {
            "num_key_value_heads": 5,
            "head_dim": 12,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 7,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
        45,
    ),
    # layer_types given; the window is wider than a page.
    "qwen3_layer_types": Case(
        "qwen3",
        _QWEN3
        | _sizes(61, 48, 80, 3, 6)
        | {
            "num_key_value_heads": 2,
            "head_dim": 20,
            "use_sliding_window": True,
            "sliding_window": 70,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        140,
    ),
    # Everything by default: positions and windows but for every fourth layer from the end.
    "muse_defaults": Case(
        "muse_glimmer",
        _muse(
            _sizes(97, 48, 72, 5, 3)
            | {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": 7}
        ),
        40,
    ),
    # Tied by the outer field, biases, positions switched by layer_rope_theta.
    "muse_tied_biases": Case(
        "muse_glimmer",
        _muse(
            _sizes(101, 60, 88, 4, 5)
            | {
                "num_key_value_heads": 1,
                "head_dim": 8,
                "sliding_window": 13,
                "attention_bias": True,
                "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
                "layer_rope_theta": [0, 500.0, 500.0, 0],
                "output_multiplier": 0.7,
                "final_logit_softcapping": 5.0,
            },
            tie_word_embeddings=True,
        ),
        47,
    ),
    # Windows wider than a page, layer_types and layer_rope_theta that do not go together.
    "muse_wide_window": Case(
        "muse_glimmer",
        _muse(
            _sizes(73, 56, 72, 3, 4)
            | {
                "num_key_value_heads": 2,
                "head_dim": 20,
                "sliding_window": 70,
                "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
                "layer_rope_theta": [10000.0, 0, 10000.0],
                "rope_theta": 10000.0,
                "qk_scale_factor": 2.0,
                "post_norm_eps": 1e-6,
            }
        ),
        140,
    ),
    # A head_dim that Hadamard rotation treats as 3 * 4, llama3 scaling inside text_config.
    "muse_llama3": Case(
        "muse_glimmer",
        _muse(
            _sizes(97, 48, 72, 2, 4)
            | {
                "num_key_value_heads": 4,
                "head_dim": 12,
                "sliding_window": 5,
                "max_position_embeddings": 512,
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 10000.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                },
            }
        ),
        50,
    ),
}
