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
    name: str = ""
    # Where images stand in the prompt: position, rows and columns of embeddings; and after how many
    # layers further rows are added.
    images: tuple[tuple[int, int, int], ...] = ()
    taps: int = 0


def _causal(model_type: str, name: str) -> dict[str, Any]:
    return {"model_type": model_type, "architectures": [f"{name}ForCausalLM"]}


_LLAMA = _causal("llama", "Llama")
_MISTRAL = _causal("mistral", "Mistral")
_QWEN2 = _causal("qwen2", "Qwen2")
_QWEN3 = _causal("qwen3", "Qwen3")
_GEMMA2 = _causal("gemma2", "Gemma2")
_GEMMA3 = _causal("gemma3_text", "Gemma3")
_PHI3 = _causal("phi3", "Phi3") | {"pad_token_id": 0}
_SMOLLM3 = _causal("smollm3", "SmolLM3") | {"pad_token_id": 0}
_QWEN3_MOE = _causal("qwen3_moe", "Qwen3Moe")
_GPT_OSS = _causal("gpt_oss", "GptOss")
_OLMO2 = _causal("olmo2", "Olmo2")
_OLMO3 = _causal("olmo3", "Olmo3")
_MIXTRAL = _causal("mixtral", "Mixtral")
_QWEN2_MOE = _causal("qwen2_moe", "Qwen2Moe")
_GEMMA = _causal("gemma", "Gemma")
_GRANITE_MOE = _causal("granitemoe", "GraniteMoe")
_STARCODER2 = _causal("starcoder2", "Starcoder2")
_GLM = _causal("glm", "Glm") | {"pad_token_id": 0}
_GLM4 = _causal("glm4", "Glm4") | {"pad_token_id": 0}
_GRANITE = _causal("granite", "Granite")
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


def _spark(text: dict[str, Any], **outer: Any) -> dict[str, Any]:
    return {
        "model_type": "muse_spark",
        "architectures": ["MuseSparkForConditionalGeneration"],
        "text_config": {"model_type": "muse_spark_text"} | text,
        "vision_config": _VISION | {"model_type": "muse_spark_vision"},
        "audio_config": {
            "model_type": "muse_spark_audio",
            "patch_sizes": [2, 2],
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "num_hidden_layers": 2,
            "out_hidden_size": text["hidden_size"],
        },
        "out_hidden_size": 64,
        "projector_hidden_size": 16,
        "image_token_id": 100000,
        "video_token_id": 100001,
        "audio_token_id": 100002,
    } | outer


def _mistral3(text: dict[str, Any], **outer: Any) -> dict[str, Any]:
    return {
        "model_type": "mistral3",
        "architectures": ["Mistral3ForConditionalGeneration"],
        "text_config": {"model_type": "mistral"} | text,
        "vision_config": {
            "model_type": "pixtral",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "head_dim": 16,
            "patch_size": 4,
            "image_size": 16,
        },
        "image_token_index": 10,
    } | outer


IMAGE_TOKEN = 3
_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "patch_size": 4,
    "image_size": 16,
}
_IDEFICS = {key: value for key, value in _SIGLIP.items() if key != "model_type"}
_CLIP = _SIGLIP | {
    "model_type": "clip_vision_model",
    "num_hidden_layers": 2,
    "projection_dim": 16,
}
_QWEN_VISION = {
    "depth": 1,
    "hidden_size": 16,
    "embed_dim": 16,
    "intermediate_size": 16,
    "num_heads": 1,
    "patch_size": 4,
    "mlp_ratio": 1,
}


def _sees(
    model_type: str, name: str, text: dict[str, Any], vision: dict[str, Any], **outer: Any
) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "architectures": [f"{name}ForConditionalGeneration"],
        "text_config": text,
        "vision_config": vision,
        "image_token_id": IMAGE_TOKEN,
    } | outer


def _sizes(vocab: int, hidden: int, inter: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inter,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def _factors(count: int, first: float, last: float) -> list[float]:
    return [round(first + (last - first) * i / (count - 1), 3) for i in range(count)]


_CASES: dict[str, Case] = {
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
    # A window in every layer, shorter than the prompt; the class's own eight KV heads.
    "mistral_window": Case(
        "mistral",
        _MISTRAL
        | _sizes(97, 64, 72, 3, 8)
        | {"sliding_window": 9, "rope_theta": 1000.0, "torch_dtype": "bfloat16"},
        43,
    ),
    # Nemo: head_dim of its own, no window.
    "mistral_head_dim": Case(
        "mistral",
        _MISTRAL
        | _sizes(83, 44, 100, 2, 6)
        | {
            "num_key_value_heads": 3,
            "head_dim": 20,
            "sliding_window": None,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
        70,
    ),
    # A window wider than a page, yarn with mscale, tied.
    "mistral_wide_yarn": Case(
        "mistral",
        _MISTRAL
        | _sizes(71, 56, 64, 3, 4)
        | {
            "num_key_value_heads": 2,
            "sliding_window": 71,
            "tie_word_embeddings": True,
            "max_position_embeddings": 512,
            "rope_scaling": {
                "type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 48,
                "beta_fast": 16.0,
                "mscale": 1.0,
                "mscale_all_dim": 0.7,
            },
        },
        135,
    ),
    # Qwen2.5: biases on q, k, v; a sliding_window that use_sliding_window switches off; tied.
    "qwen2_full": Case(
        "qwen2",
        _QWEN2
        | _sizes(101, 60, 88, 3, 5)
        | {
            "num_key_value_heads": 1,
            "rope_theta": 1000000.0,
            "rope_scaling": None,
            "sliding_window": 5,
            "use_sliding_window": False,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
        39,
    ),
    "qwen2_windows": Case(
        "qwen2",
        _QWEN2
        | _sizes(89, 48, 72, 4, 4)
        | {
            "num_key_value_heads": 2,
            "use_sliding_window": True,
            "sliding_window": 11,
            "max_window_layers": 2,
        },
        44,
    ),
    # As its model card says for long texts; the prompt is beyond the trained length.
    "qwen2_yarn": Case(
        "qwen2",
        _QWEN2
        | _sizes(97, 56, 80, 2, 4)
        | {
            "num_key_value_heads": 4,
            "max_position_embeddings": 64,
            "layer_types": ["full_attention", "full_attention"],
            "rope_scaling": {
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "type": "yarn",
            },
        },
        85,
    ),
    # Everything by default: windows in even layers, both soft caps, gelu_tanh.
    "gemma2_defaults": Case(
        "gemma2",
        _GEMMA2
        | _sizes(97, 48, 72, 4, 4)
        | {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 7},
        41,
    ),
    # Small caps that bend, a scalar that is not head_dim, biases.
    "gemma2_caps": Case(
        "gemma2",
        _GEMMA2
        | _sizes(89, 60, 88, 3, 3)
        | {
            "num_key_value_heads": 1,
            "head_dim": 24,
            "sliding_window": 66,
            "query_pre_attn_scalar": 9,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 6.0,
            "attention_bias": True,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_act": "gelu_pytorch_tanh",
            "rope_theta": 500.0,
        },
        100,
    ),
    # As the 2B and 9B models: queries scaled by the root of head_dim.
    "gemma2_head_scale": Case(
        "gemma2",
        _GEMMA2
        | _sizes(79, 56, 80, 3, 4)
        | {
            "num_key_value_heads": 2,
            "head_dim": 20,
            "sliding_window": 9,
            "query_pre_attn_scalar": 20,
        },
        44,
    ),
    # No caps, untied, layer_types given.
    "gemma2_untied": Case(
        "gemma2",
        _GEMMA2
        | _sizes(73, 40, 56, 3, 4)
        | {
            "num_key_value_heads": 4,
            "head_dim": 12,
            "sliding_window": 13,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "tie_word_embeddings": False,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        },
        45,
    ),
    # The keys of 2025: two bases, a pattern, linear scaling of the full layers only.
    "gemma3_old_keys": Case(
        "gemma3",
        _GEMMA3
        | _sizes(97, 48, 72, 4, 4)
        | {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "sliding_window": 7,
            "sliding_window_pattern": 3,
            "query_pre_attn_scalar": 16,
            "rope_theta": 50000.0,
            "rope_local_base_freq": 300.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
        47,
    ),
    # Those of transformers 5, biases, a final cap; seven layers, the sixth full by default.
    "gemma3_new_keys": Case(
        "gemma3",
        _GEMMA3
        | _sizes(83, 36, 48, 7, 3)
        | {
            "num_key_value_heads": 1,
            "head_dim": 20,
            "sliding_window": 66,
            "attention_bias": True,
            "final_logit_softcapping": 7.0,
            "tie_word_embeddings": False,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 2000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
        90,
    ),
    # With a vision tower beside it, as the 4B and larger models are stored.
    "gemma3_vision": Case(
        "gemma3",
        {
            "model_type": "gemma3",
            "architectures": ["Gemma3ForConditionalGeneration"],
            "text_config": {"model_type": "gemma3_text"}
            | _sizes(101, 56, 64, 3, 2)
            | {
                "num_key_value_heads": 2,
                "head_dim": 28,
                "sliding_window": 5,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 1,
                "patch_size": 4,
                "image_size": 16,
            },
            "mm_tokens_per_image": 4,
            "image_token_index": 100000,
            "boi_token_index": 100001,
            "eoi_token_index": 100002,
        },
        40,
    ),
    # Phi-3-mini-4k: every head its own key, a window.
    "phi3_window": Case(
        "phi3",
        _PHI3 | _sizes(97, 48, 72, 3, 4) | {"sliding_window": 10, "rope_scaling": None},
        42,
    ),
    # Phi-4-mini: part of a head rotates, grouped heads, tied.
    "phi3_partial": Case(
        "phi3",
        _PHI3
        | _sizes(89, 64, 104, 2, 4)
        | {
            "num_key_value_heads": 2,
            "partial_rotary_factor": 0.75,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "lm_head_bias": False,
            "full_attn_mod": 1,
            "interpolate_factor": 1,
        },
        51,
    ),
    # Phi-4: fourteen billion in small, wide window.
    "phi3_grouped": Case(
        "phi3",
        _PHI3
        | _sizes(79, 60, 88, 3, 6)
        | {"num_key_value_heads": 2, "rope_theta": 250000, "sliding_window": 70},
        100,
    ),
    "smollm3_defaults": Case(
        "smollm3", _SMOLLM3 | _sizes(97, 48, 72, 5, 4) | {"num_key_value_heads": 2}, 44
    ),
    # Windows where there are no positions; biases; untied.
    "smollm3_windows": Case(
        "smollm3",
        _SMOLLM3
        | _sizes(89, 60, 88, 4, 5)
        | {
            "num_key_value_heads": 1,
            "no_rope_layer_interval": 2,
            "use_sliding_window": True,
            "sliding_window": 9,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
            "rope_theta": 5000000.0,
        },
        46,
    ),
    # Yarn beyond the trained length, layers given one by one, a window wider than a page.
    "smollm3_yarn": Case(
        "smollm3",
        _SMOLLM3
        | _sizes(71, 56, 64, 3, 7)
        | {
            "num_key_value_heads": 7,
            "no_rope_layers": [1, 0, 1],
            "layer_types": ["sliding_attention", "full_attention", "full_attention"],
            "use_sliding_window": True,
            "sliding_window": 67,
            "max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 2.0,
                "original_max_position_embeddings": 64,
            },
        },
        110,
    ),
    # As released: no window, a head of its own beside an outer config that does not say so.
    "mistral3_untied": Case(
        "mistral3",
        _mistral3(
            _sizes(97, 48, 72, 3, 4)
            | {
                "num_key_value_heads": 2,
                "head_dim": 20,
                "sliding_window": None,
                "rope_theta": 1000000000.0,
            },
            tie_word_embeddings=False,
        ),
        41,
    ),
    "mistral3_tied": Case(
        "mistral3",
        _mistral3(
            _sizes(89, 60, 88, 2, 5) | {"num_key_value_heads": 1, "sliding_window": 9},
        ),
        44,
    ),
    "mistral3_wide": Case(
        "mistral3",
        _mistral3(
            _sizes(71, 56, 64, 4, 7)
            | {"num_key_value_heads": 7, "sliding_window": 66, "rms_norm_eps": 1e-5},
            tie_word_embeddings=False,
        ),
        95,
    ),
    # Phi-3-mini-128k: longrope under its old name; the text is beyond the trained length.
    "phi3_longrope": Case(
        "phi3",
        _PHI3
        | _sizes(83, 56, 80, 3, 7)
        | {
            "max_position_embeddings": 320,
            "original_max_position_embeddings": 64,
            "rope_scaling": {
                "type": "yarn",
                "long_factor": _factors(4, 1.1, 6.0),
                "short_factor": _factors(4, 1.0, 1.6),
            },
        },
        70,
    ),
    # Phi-4-mini: longrope over part of a head.
    # Greedy decoding crosses the trained length: what was read before is read again.
    "phi3_longrope_grows": Case(
        "phi3",
        _PHI3
        | _sizes(83, 56, 80, 2, 7)
        | {
            "max_position_embeddings": 320,
            "original_max_position_embeddings": 90,
            "rope_scaling": {
                "type": "longrope",
                "long_factor": _factors(4, 1.1, 6.0),
                "short_factor": _factors(4, 1.0, 1.6),
            },
        },
        60,
    ),
    # All of it within the trained length.
    "phi3_longrope_short": Case(
        "phi3",
        _PHI3
        | _sizes(83, 56, 80, 2, 7)
        | {
            "max_position_embeddings": 640,
            "original_max_position_embeddings": 120,
            "rope_scaling": {
                "type": "longrope",
                "long_factor": _factors(4, 1.1, 6.0),
                "short_factor": _factors(4, 1.0, 2.6),
            },
        },
        40,
    ),
    "phi3_longrope_partial": Case(
        "phi3",
        _PHI3
        | _sizes(79, 64, 88, 2, 4)
        | {
            "num_key_value_heads": 1,
            "max_position_embeddings": 512,
            "original_max_position_embeddings": 32,
            "partial_rotary_factor": 0.75,
            "tie_word_embeddings": True,
            "rope_scaling": {
                "type": "longrope",
                "long_factor": _factors(6, 1.0, 9.0),
                "short_factor": _factors(6, 1.0, 1.0),
            },
        },
        40,
    ),
    # OLMo 2: every head its own key, norms over all heads together.
    "olmo2_plain": Case("olmo2", _OLMO2 | _sizes(97, 60, 88, 3, 5) | {"rope_theta": 500000}, 41),
    "olmo2_grouped": Case(
        "olmo2",
        _OLMO2
        | _sizes(89, 56, 72, 2, 7)
        | {"num_key_value_heads": 1, "attention_bias": True, "tie_word_embeddings": True},
        52,
    ),
    "olmo2_yarn": Case(
        "olmo2",
        _OLMO2
        | _sizes(71, 48, 104, 4, 6)
        | {
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 256,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "attention_factor": 1.1,
                "original_max_position_embeddings": 64,
            },
        },
        80,
    ),
    # Granite: four multipliers, tied.
    "granite_multipliers": Case(
        "granite",
        _GRANITE
        | _sizes(97, 60, 88, 3, 5)
        | {
            "num_key_value_heads": 1,
            "embedding_multiplier": 0.3,
            "logits_scaling": 4.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.25,
            "tie_word_embeddings": True,
        },
        43,
    ),
    "granite_biases": Case(
        "granite",
        _GRANITE
        | _sizes(83, 48, 72, 4, 4)
        | {
            "num_key_value_heads": 2,
            "embedding_multiplier": 12,
            "logits_scaling": 8,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.0625,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_theta": 5000000,
        },
        48,
    ),
    "granite_defaults": Case(
        "granite",
        _GRANITE
        | _sizes(71, 56, 64, 2, 7)
        | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        75,
    ),
    # Every layer sparse; scores of all experts, not renormalized.
    "qwen3_moe_plain": Case(
        "qwen3_moe",
        _QWEN3_MOE
        | _sizes(97, 48, 72, 3, 4)
        | {
            "num_key_value_heads": 2,
            "head_dim": 20,
            "num_experts": 7,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "max_window_layers": 1,
        },
        42,
    ),
    # As the released models: renormalized; dense layers between.
    "qwen3_moe_mixed": Case(
        "qwen3_moe",
        _QWEN3_MOE
        | _sizes(89, 56, 88, 4, 4)
        | {
            "num_key_value_heads": 1,
            "head_dim": 16,
            "num_experts": 5,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 40,
            "norm_topk_prob": True,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "tie_word_embeddings": True,
            "rope_theta": 1000000.0,
        },
        44,
    ),
    # As released, no layer dense.
    "qwen3_moe_renormalized": Case(
        "qwen3_moe",
        _QWEN3_MOE
        | _sizes(79, 40, 56, 3, 5)
        | {
            "num_key_value_heads": 1,
            "head_dim": 12,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
            "attention_bias": True,
        },
        43,
    ),
    # One of many experts; biases; a window in every layer.
    "qwen3_moe_window": Case(
        "qwen3_moe",
        _QWEN3_MOE
        | _sizes(71, 40, 64, 2, 5)
        | {
            "num_key_value_heads": 5,
            "num_experts": 16,
            "num_experts_per_tok": 1,
            "norm_topk_prob": True,
            "moe_intermediate_size": 16,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 9,
        },
        45,
    ),
    # The rotation by default (yarn between dimensions, factor 32), windows in even layers.
    "gpt_oss_defaults": Case(
        "gpt_oss",
        _GPT_OSS
        | _sizes(97, 48, 40, 3, 6)
        | {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "sliding_window": 9,
        },
        42,
    ),
    # The keys of the released files, a text beyond the trained length, a limit that bites.
    "gpt_oss_old_keys": Case(
        "gpt_oss",
        _GPT_OSS
        | _sizes(89, 56, 24, 4, 4)
        | {
            "num_key_value_heads": 1,
            "head_dim": 24,
            "num_local_experts": 5,
            "num_experts_per_tok": 4,
            "experts_per_token": 4,
            "sliding_window": 67,
            "swiglu_limit": 0.7,
            "initial_context_length": 48,
            "max_position_embeddings": 192,
            "rope_theta": 150000,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 48,
            },
        },
        90,
    ),
    # No biases in attention, layers given, another slope, tied.
    "gpt_oss_full": Case(
        "gpt_oss",
        _GPT_OSS
        | _sizes(71, 40, 36, 2, 5)
        | {
            "num_key_value_heads": 5,
            "head_dim": 12,
            "num_local_experts": 9,
            "num_experts_per_tok": 1,
            "layer_types": ["full_attention", "full_attention"],
            "attention_bias": False,
            "swiglu_alpha": 1.2,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
        },
        50,
    ),
    # Everything by default: windows and positions but for every fourth layer from the end.
    "spark_defaults": Case(
        "muse_spark",
        _spark(
            _sizes(97, 48, 72, 5, 3)
            | {
                "num_key_value_heads": 1,
                "head_dim": 16,
                "sliding_window": 7,
                "num_local_experts": 6,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 40,
                "moe_hidden_size": 32,
            }
        ),
        40,
    ),
    # Dense layers between, a window wider than a page, scores scaled, gates made softer.
    "spark_mixed": Case(
        "muse_spark",
        _spark(
            _sizes(89, 56, 88, 4, 4)
            | {
                "num_key_value_heads": 2,
                "head_dim": 20,
                "sliding_window": 66,
                "attention_bias": True,
                "num_local_experts": 5,
                "num_experts_per_tok": 3,
                "moe_intermediate_size": 24,
                "moe_hidden_size": 36,
                "mlp_layer_types": ["dense", "sparse", "dense", "sparse"],
                "routed_scaling_factor": 2.5,
                "residual_gate_temperature": 0.8,
                "output_multiplier": 0.6,
                "final_logit_softcapping": 6.0,
            }
        ),
        90,
    ),
    # Positions in every layer, layer_types given, one expert of many at more than the full width.
    "spark_wide": Case(
        "muse_spark",
        _spark(
            _sizes(71, 40, 64, 3, 5)
            | {
                "num_key_value_heads": 5,
                "head_dim": 12,
                "sliding_window": 11,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
                "layer_rope_theta": [500000.0, 500000.0, 500000.0],
                "qk_scale_factor": 2.0,
                "num_local_experts": 12,
                "num_experts_per_tok": 1,
                "moe_intermediate_size": 16,
                "moe_hidden_size": 48,
                "rms_norm_eps": 1e-6,
            }
        ),
        47,
    ),
    "mixtral_plain": Case(
        "mixtral",
        _MIXTRAL
        | _sizes(97, 64, 40, 3, 8)
        | {"num_local_experts": 5, "num_experts_per_tok": 2, "router_jitter_noise": 0.0},
        42,
    ),
    "mixtral_window": Case(
        "mixtral",
        _MIXTRAL
        | _sizes(83, 48, 24, 2, 6)
        | {
            "num_key_value_heads": 2,
            "num_local_experts": 9,
            "num_experts_per_tok": 3,
            "sliding_window": 10,
            "tie_word_embeddings": True,
        },
        45,
    ),
    "mixtral_head_dim": Case(
        "mixtral",
        _MIXTRAL
        | _sizes(71, 40, 56, 2, 3)
        | {
            "num_key_value_heads": 1,
            "head_dim": 20,
            "num_local_experts": 4,
            "num_experts_per_tok": 4,
            "rope_theta": 10000.0,
        },
        70,
    ),
    # A shared expert beside the chosen ones, weighed by its gate.
    "qwen2_moe_plain": Case(
        "qwen2_moe",
        _QWEN2_MOE
        | _sizes(97, 48, 72, 3, 4)
        | {
            "num_key_value_heads": 2,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
            "sliding_window": 9,
        },
        42,
    ),
    # Windows in even layers up to one; dense layers; renormalized.
    "qwen2_moe_windows": Case(
        "qwen2_moe",
        _QWEN2_MOE
        | _sizes(89, 60, 88, 5, 5)
        | {
            "num_key_value_heads": 1,
            "num_experts": 5,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 56,
            "norm_topk_prob": True,
            "use_sliding_window": True,
            "sliding_window": 9,
            "max_window_layers": 4,
            "mlp_only_layers": [0],
        },
        44,
    ),
    "qwen2_moe_no_biases": Case(
        "qwen2_moe",
        _QWEN2_MOE
        | _sizes(71, 56, 64, 2, 7)
        | {
            "num_key_value_heads": 7,
            "num_experts": 12,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 24,
            "qkv_bias": False,
            "decoder_sparse_step": 2,
            "tie_word_embeddings": True,
            "rope_theta": 1000000.0,
        },
        47,
    ),
    "gemma_defaults": Case(
        "gemma",
        _GEMMA | _sizes(97, 48, 72, 3, 3) | {"num_key_value_heads": 1, "head_dim": 20},
        43,
    ),
    # The first releases say gelu and mean its tanh formula.
    "gemma_legacy": Case(
        "gemma",
        _GEMMA
        | _sizes(83, 60, 88, 2, 4)
        | {
            "num_key_value_heads": 4,
            "head_dim": 16,
            "hidden_act": "gelu",
            "hidden_activation": None,
            "attention_bias": True,
        },
        48,
    ),
    "gemma_untied": Case(
        "gemma",
        _GEMMA
        | _sizes(71, 40, 64, 4, 2)
        | {
            "num_key_value_heads": 2,
            "head_dim": 28,
            "tie_word_embeddings": False,
            "rope_theta": 500.0,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        },
        75,
    ),
    # Three windows to one full layer by default.
    "olmo3_defaults": Case("olmo3", _OLMO3 | _sizes(97, 60, 88, 5, 5) | {"sliding_window": 7}, 42),
    # As released: yarn over full layers alone, in the older key.
    "olmo3_yarn": Case(
        "olmo3",
        _OLMO3
        | _sizes(83, 48, 72, 4, 6)
        | {
            "num_key_value_heads": 2,
            "sliding_window": 66,
            "max_position_embeddings": 256,
            "rope_theta": 500000,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 8.0,
                "attention_factor": 1.2079441541679836,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "original_max_position_embeddings": 32,
            },
        },
        95,
    ),
    "olmo3_new_keys": Case(
        "olmo3",
        _OLMO3
        | _sizes(71, 56, 64, 3, 4)
        | {
            "num_key_value_heads": 1,
            "sliding_window": 11,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 3000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 200.0},
            },
        },
        50,
    ),
    # Half of each head rotates by default, neighbouring floats as pairs; biases on q, k, v.
    "glm4_defaults": Case(
        "glm4",
        _GLM4 | _sizes(97, 48, 72, 3, 4) | {"num_key_value_heads": 2, "head_dim": 20},
        43,
    ),
    "glm4_share": Case(
        "glm4",
        _GLM4
        | _sizes(83, 60, 88, 2, 3)
        | {
            "num_key_value_heads": 1,
            "head_dim": 24,
            "partial_rotary_factor": 0.75,
            "attention_bias": False,
            "tie_word_embeddings": True,
            "rope_theta": 500.0,
        },
        70,
    ),
    # 2024: no norms after the halves.
    "glm_old": Case(
        "glm4",
        _GLM
        | _sizes(71, 40, 64, 4, 5)
        | {
            "num_key_value_heads": 5,
            "head_dim": 16,
            "partial_rotary_factor": 0.5,
            "rms_norm_eps": 1e-5,
        },
        47,
    ),
    "granitemoe_plain": Case(
        "granitemoe",
        _GRANITE_MOE
        | _sizes(97, 48, 40, 3, 4)
        | {
            "num_key_value_heads": 2,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "attention_multiplier": 0.2,
        },
        42,
    ),
    "granitemoe_multipliers": Case(
        "granitemoe",
        _GRANITE_MOE
        | _sizes(83, 60, 24, 2, 5)
        | {
            "num_key_value_heads": 1,
            "num_local_experts": 9,
            "num_experts_per_tok": 4,
            "embedding_multiplier": 0.5,
            "logits_scaling": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": 0.25,
            "tie_word_embeddings": True,
        },
        45,
    ),
    "granitemoe_biases": Case(
        "granitemoe",
        _GRANITE_MOE
        | _sizes(71, 40, 56, 4, 5)
        | {
            "num_key_value_heads": 5,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "attention_bias": True,
            "attention_multiplier": 0.35,
            "rope_theta": 1000000.0,
        },
        70,
    ),
    # LayerNorm with biases, an MLP without a gate; tied by default.
    "starcoder2_defaults": Case(
        "starcoder2", _STARCODER2 | _sizes(97, 48, 72, 3, 4) | {"num_key_value_heads": 2}, 43
    ),
    "starcoder2_window": Case(
        "starcoder2",
        _STARCODER2
        | _sizes(83, 60, 88, 2, 5)
        | {
            "num_key_value_heads": 1,
            "sliding_window": 9,
            "tie_word_embeddings": False,
            "rope_theta": 100000,
            "norm_type": "layer_norm",
            "mlp_type": "default",
        },
        46,
    ),
    "starcoder2_no_biases": Case(
        "starcoder2",
        _STARCODER2
        | _sizes(71, 56, 64, 4, 7)
        | {
            "num_key_value_heads": 7,
            "use_bias": False,
            "tie_word_embeddings": False,
            "hidden_act": "gelu",
            "norm_epsilon": 1e-6,
            "sliding_window": 66,
        },
        90,
    ),
    # As released: everything at the top of the config, the rope's type as it was called then.
    "qwen2_vl_flat": Case(
        "qwen2_vl",
        {
            "model_type": "qwen2_vl",
            "architectures": ["Qwen2VLForConditionalGeneration"],
            "vision_config": _QWEN_VISION | {"hidden_size": 48},
            "image_token_id": IMAGE_TOKEN,
        }
        | _sizes(97, 48, 72, 3, 4)
        | {
            "num_key_value_heads": 2,
            "rope_theta": 500.0,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 1]},
            "tie_word_embeddings": True,
        },
        70,
        images=((4, 5, 6), (50, 2, 3)),
    ),
    "qwen2_5_vl_nested": Case(
        "qwen2_vl",
        _sees(
            "qwen2_5_vl",
            "Qwen2_5_VL",
            {"model_type": "qwen2_5_vl_text"}
            | _sizes(83, 60, 88, 2, 3)
            | {
                "num_key_value_heads": 1,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1000.0,
                    "mrope_section": [4, 2, 4],
                },
            },
            _QWEN_VISION | {"out_hidden_size": 60},
        ),
        90,
        images=((0, 8, 4), (34, 1, 5), (60, 3, 3)),
    ),
    "qwen2_5_vl_windows": Case(
        "qwen2_vl",
        _sees(
            "qwen2_5_vl",
            "Qwen2_5_VL",
            {"model_type": "qwen2_5_vl_text"}
            | _sizes(79, 64, 72, 3, 4)
            | {
                "num_key_value_heads": 2,
                "use_sliding_window": True,
                "sliding_window": 21,
                "max_window_layers": 1,
                "rms_norm_eps": 1e-6,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 20000.0,
                    "mrope_section": [1, 3, 4],
                },
            },
            _QWEN_VISION | {"out_hidden_size": 64},
            tie_word_embeddings=True,
        ),
        70,
        images=((9, 6, 5),),
    ),
    # Axes in turn, and rows added after the first two layers.
    "qwen3_vl_deep": Case(
        "qwen3_vl",
        _sees(
            "qwen3_vl",
            "Qwen3VL",
            {"model_type": "qwen3_vl_text"}
            | _sizes(89, 56, 64, 4, 4)
            | {
                "num_key_value_heads": 2,
                "head_dim": 20,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 5000.0,
                    "mrope_section": [4, 3, 3],
                    "mrope_interleaved": True,
                },
            },
            _QWEN_VISION | {"out_hidden_size": 56, "deepstack_visual_indexes": [0]},
        ),
        80,
        images=((6, 6, 7), (60, 3, 4)),
        taps=2,
    ),
    "qwen3_vl_tied": Case(
        "qwen3_vl",
        _sees(
            "qwen3_vl",
            "Qwen3VL",
            {"model_type": "qwen3_vl_text"}
            | _sizes(97, 40, 56, 2, 5)
            | {
                "num_key_value_heads": 1,
                "head_dim": 12,
                "attention_bias": True,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 700.0,
                    "mrope_section": [2, 2, 2],
                },
            },
            _QWEN_VISION | {"out_hidden_size": 40, "deepstack_visual_indexes": []},
            tie_word_embeddings=True,
        ),
        60,
        images=((0, 3, 9), (40, 4, 4)),
    ),
    # As released: the rope under its older name; taps behind all layers but the last.
    "qwen3_vl_scaling": Case(
        "qwen3_vl",
        _sees(
            "qwen3_vl",
            "Qwen3VL",
            {"model_type": "qwen3_vl_text"}
            | _sizes(73, 48, 80, 4, 3)
            | {
                "num_key_value_heads": 3,
                "head_dim": 16,
                "rope_theta": 5000000,
                "rope_scaling": {
                    "rope_type": "default",
                    "mrope_section": [4, 2, 2],
                    "mrope_interleaved": True,
                },
            },
            _QWEN_VISION | {"out_hidden_size": 48, "deepstack_visual_indexes": [0]},
        ),
        90,
        images=((70, 2, 7),),
        taps=3,
    ),
    "smolvlm_plain": Case(
        "smolvlm",
        _sees(
            "smolvlm",
            "SmolVLM",
            {"model_type": "llama", "pad_token_id": 0}
            | _sizes(97, 60, 72, 2, 5)
            | {"num_key_value_heads": 1, "rope_theta": 273768.0, "rms_norm_eps": 1e-5},
            _IDEFICS,
            tie_word_embeddings=True,
        ),
        60,
        images=((3, 4, 4), (20, 4, 4)),
    ),
    "idefics3_untied": Case(
        "smolvlm",
        _sees(
            "idefics3",
            "Idefics3",
            {"model_type": "llama", "pad_token_id": 0}
            | _sizes(101, 48, 88, 2, 3)
            | {"num_key_value_heads": 3, "head_dim": 20},
            _IDEFICS,
        ),
        40,
        images=((0, 2, 8),),
    ),
    "smolvlm_biased": Case(
        "smolvlm",
        _sees(
            "smolvlm",
            "SmolVLM",
            {"model_type": "llama", "pad_token_id": 0}
            | _sizes(89, 64, 96, 3, 4)
            | {
                "num_key_value_heads": 2,
                "attention_bias": True,
                "mlp_bias": True,
                "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            },
            _IDEFICS,
        ),
        50,
        images=((30, 4, 4),),
    ),
    "llava_tied": Case(
        "llava",
        _sees(
            "llava",
            "Llava",
            {"model_type": "llama"} | _sizes(83, 60, 64, 2, 3),
            _CLIP,
            image_token_index=IMAGE_TOKEN,
            tie_word_embeddings=True,
        ),
        40,
        images=((0, 4, 4), (20, 4, 4)),
    ),
    "llava_grouped": Case(
        "llava",
        _sees(
            "llava",
            "Llava",
            {"model_type": "llama"}
            | _sizes(97, 64, 72, 2, 8)
            | {"num_key_value_heads": 4, "rms_norm_eps": 1e-5, "rope_theta": 500.0},
            _CLIP,
            image_token_index=IMAGE_TOKEN,
        ),
        60,
        images=((33, 4, 4),),
    ),
    "llava_plain": Case(
        "llava",
        _sees(
            "llava",
            "Llava",
            {"model_type": "llama"} | _sizes(89, 56, 72, 3, 4) | {"num_key_value_heads": 2},
            _CLIP,
            image_token_index=IMAGE_TOKEN,
        ),
        50,
        images=((5, 4, 4),),
    ),
    # Rows of an image see each other, through windows narrower and wider than it.
    "gemma3_images": Case(
        "gemma3",
        _sees(
            "gemma3",
            "Gemma3",
            {"model_type": "gemma3_text"}
            | _sizes(101, 56, 64, 3, 2)
            | {
                "num_key_value_heads": 2,
                "head_dim": 28,
                "sliding_window": 19,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            _SIGLIP,
            mm_tokens_per_image=4,
            image_token_index=IMAGE_TOKEN,
            boi_token_index=1,
            eoi_token_index=2,
        ),
        80,
        images=((3, 2, 5), (20, 6, 6)),
    ),
    # Looked-up rows are normed, an image's are not.
    "muse_images": Case(
        "muse_glimmer",
        _muse(
            _sizes(97, 64, 88, 4, 4)
            | {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 23}
        ),
        70,
        images=((2, 5, 5), (40, 3, 4)),
    ),
}
CASES = {name: case._replace(name=name) for name, case in _CASES.items()}
