"""Families that people have and this version does not run: what each one needs, for the message."""

from __future__ import annotations

_GATED_DELTA = "gated delta net layers are"
_STATE_SPACE = "state space (Mamba) layers are"
_LATENT = "latent attention (one compressed row for keys and values) is"
_ENCODER_DECODER = "models with an encoder and a decoder are"
_NO_ROPE = "learned positions in a decoder are"

# model_type -> subject and verb of "... not part of this version".
LACKING = {
    "bamba": _STATE_SPACE,
    "bart": _ENCODER_DECODER,
    "bloom": "ALiBi positions are",
    "cohere": "LayerNorm decoders whose halves run side by side are",
    "cohere2": "LayerNorm decoders whose halves run side by side are",
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT,
    "falcon": "layers whose halves run side by side are",
    "falcon_h1": _STATE_SPACE,
    "falcon_mamba": _STATE_SPACE,
    "gemma3n": "per-layer embeddings and alternating updates are",
    "gemma4": "per-layer embeddings and shared key-value layers are",
    "glm4_moe": "experts with groups and a shared expert beside them are",
    "gpt2": _NO_ROPE,
    "gpt_neox": "layers whose halves run side by side are",
    "granitemoehybrid": _STATE_SPACE,
    "jamba": _STATE_SPACE,
    "kimi_k25": _LATENT,
    "kimi_linear": _GATED_DELTA,
    "lfm2": "short convolution layers are",
    "lfm2_moe": "short convolution layers are",
    "llama4": "chunked attention and its temperature are",
    "mamba": _STATE_SPACE,
    "mamba2": _STATE_SPACE,
    "minicpm3": _LATENT,
    "ministral3": "attention whose temperature grows with the position is",
    "mllama": "cross attention to images is",
    "nemotron_h": _STATE_SPACE,
    "opt": _NO_ROPE,
    "phi": "layers whose halves run side by side are",
    "phimoe": "sparse mixer routing is",
    "qwen2_5_vl": "positions in three dimensions (mrope) are",
    "qwen2_vl": "positions in three dimensions (mrope) are",
    "qwen3_5": _GATED_DELTA,
    "qwen3_5_moe": _GATED_DELTA,
    "qwen3_next": _GATED_DELTA,
    "qwen3_vl": "positions in three dimensions (mrope) are",
    "qwen3_vl_moe": "positions in three dimensions (mrope) are",
    "recurrent_gemma": "recurrent layers (RG-LRU) are",
    "rwkv": "recurrent (RWKV) layers are",
    "stablelm": "LayerNorm decoders of this shape are",
    "t5": _ENCODER_DECODER,
    "t5gemma": _ENCODER_DECODER,
    "whisper": _ENCODER_DECODER,
    "zamba2": _STATE_SPACE,
}

# general.architecture of GGUF files -> model_type above, where dashes are not the only difference.
GGUF_LACKING = {
    "command-r": "cohere",
    "deepseek2": "deepseek_v3",
    "deepseek32": "deepseek_v32",
    "falcon-h1": "falcon_h1",
    "glm4moe": "glm4_moe",
    "gptneox": "gpt_neox",
    "granitehybrid": "granitemoehybrid",
    "kimi-linear": "kimi_linear",
    "lfm2moe": "lfm2_moe",
    "phi2": "phi",
    "qwen2vl": "qwen2_vl",
    "qwen35": "qwen3_5",
    "qwen35moe": "qwen3_5_moe",
    "qwen3next": "qwen3_next",
    "qwen3vl": "qwen3_vl",
    "qwen3vlmoe": "qwen3_vl_moe",
}
