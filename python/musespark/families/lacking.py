"""Families that people have and this version does not run: what each one needs, for the message."""

from __future__ import annotations

_GATED_DELTA = "gated delta net layers are"
_STATE_SPACE = "state space (Mamba) layers are"
_LATENT = "latent attention (one compressed row for keys and values) is"
_ENCODER_DECODER = "models with an encoder and a decoder are"
_NO_ROPE = "learned positions in a decoder are"

# model_type -> subject and verb of "... not part of this version".
LACKING = {
    "apertus": "xIELU activations are",
    "bamba": _STATE_SPACE,
    "bart": _ENCODER_DECODER,
    "bloom": "ALiBi positions are",
    "cohere": "LayerNorm decoders whose halves run side by side are",
    "cohere2": "LayerNorm decoders whose halves run side by side are",
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT,
    "ernie4_5": "rotary positions in neighbouring pairs of a Llama (ERNIE) are",
    "ernie4_5_moe": "experts chosen with a correction of their own (ERNIE) are",
    "exaone4": "norms behind the halves together with layers without positions are",
    "falcon": "layers whose halves run side by side are",
    "falcon_h1": _STATE_SPACE,
    "falcon_mamba": _STATE_SPACE,
    "gemma3n": "per-layer embeddings and alternating updates are",
    "gemma4": "per-layer embeddings and shared key-value layers are",
    "glm4_moe": "experts with groups and a shared expert beside them are",
    "gpt2": _NO_ROPE,
    "gpt_neox": "layers whose halves run side by side are",
    "granitemoehybrid": _STATE_SPACE,
    "hunyuan_v1_dense": "norms over heads behind the rotation are",
    "hunyuan_v1_moe": "norms over heads behind the rotation are",
    "internlm2": "fused wqkv matrices in groups of heads (InternLM) are",
    "internlm3": "biases chosen matrix by matrix (InternLM) are",
    "jamba": _STATE_SPACE,
    "kimi_k25": _LATENT,
    "kimi_linear": _GATED_DELTA,
    "lfm2": "short convolution layers are",
    "lfm2_moe": "short convolution layers are",
    "lfm2_vl": "short convolution layers (in the text tower) are",
    "llama4": "chunked attention and its temperature are",
    "mamba": _STATE_SPACE,
    "mamba2": _STATE_SPACE,
    "minicpm": "scaled embeddings and residuals under keys of their own (MiniCPM) are",
    "minicpm3": _LATENT,
    "ministral3": "attention whose temperature grows with the position is",
    "mllama": "cross attention to images is",
    "nemotron_h": _STATE_SPACE,
    "olmo": "LayerNorm without weights, and clipped queries, keys and values are",
    "olmoe": "norms over all heads together beside experts (OLMoE) are",
    "opt": _NO_ROPE,
    "phi": "layers whose halves run side by side are",
    "phimoe": "sparse mixer routing is",
    "qwen3_5": _GATED_DELTA,
    "qwen3_5_moe": _GATED_DELTA,
    "qwen3_next": _GATED_DELTA,
    "qwen3_vl_moe": "experts beside positions along three axes are",
    "recurrent_gemma": "recurrent layers (RG-LRU) are",
    "rwkv": "recurrent (RWKV) layers are",
    "seed_oss": "biases that attention has on its way in and not on its way out (Seed-OSS) are",
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
    "hunyuan-dense": "hunyuan_v1_dense",
    "hunyuan-moe": "hunyuan_v1_moe",
    "kimi-linear": "kimi_linear",
    "lfm2moe": "lfm2_moe",
    "phi2": "phi",
    "qwen35": "qwen3_5",
    "qwen35moe": "qwen3_5_moe",
    "qwen3next": "qwen3_next",
    "qwen3vlmoe": "qwen3_vl_moe",
}
