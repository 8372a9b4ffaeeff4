"""The shapes that peers.py builds: a name, and the config of the family's own files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """``config`` is the model's config.json. ``gguf``: its architecture in GGUF files, with the
    pre-tokenizer's name. ``formats``: the precisions that are measured. ``floats``: whether a half
    precision checkpoint is written, from which other engines' files are exported."""

    name: str
    config: dict[str, Any]
    gguf: str
    pretokenizer: str
    formats: tuple[str, ...] = ("q4", "q8")
    floats: bool = True

    @property
    def text(self) -> dict[str, Any]:
        """The config of the text tower."""
        return self.config.get("text_config", self.config)


def _decoder(model_type: str, architecture: str, **sizes: Any) -> dict[str, Any]:
    """A config with what the decoders here share; the last 256 tokens are the special ones."""
    special = sizes["vocab_size"] - 256
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": special,
        "eos_token_id": special + 1,
        "torch_dtype": "float16",
        **sizes,
    }


def _qwen3(**sizes: int) -> dict[str, Any]:
    return _decoder(
        "qwen3",
        "Qwen3ForCausalLM",
        vocab_size=151936,
        num_key_value_heads=8,
        head_dim=128,
        rms_norm_eps=1e-6,
        rope_theta=1000000.0,
        max_position_embeddings=40960,
        attention_bias=False,
        **sizes,
    )


_LLAMA_1B = _decoder(
    "llama",
    "LlamaForCausalLM",
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    max_position_embeddings=131072,
)
_GLIMMER_30B = {
    "architectures": ["MuseGlimmerForConditionalGeneration"],
    "model_type": "muse_glimmer",
    "tie_word_embeddings": False,
    "text_config": {
        "model_type": "muse_glimmer_text",
        "vocab_size": 202048,
        "hidden_size": 6656,
        "intermediate_size": 19968,
        "num_hidden_layers": 52,
        "num_attention_heads": 32,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "sliding_window": 2048,
        "max_position_embeddings": 131072,
        "bos_token_id": 202048 - 256,
        "eos_token_id": 202048 - 255,
    },
}

SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llama-3.2-1b", _LLAMA_1B, "llama", "llama-bpe"),
        Shape(
            "qwen3-0.6b",
            _qwen3(
                hidden_size=1024,
                intermediate_size=3072,
                num_hidden_layers=28,
                num_attention_heads=16,
            ),
            "qwen3",
            "qwen2",
        ),
        Shape(
            "qwen3-4b",
            _qwen3(
                hidden_size=2560,
                intermediate_size=9728,
                num_hidden_layers=36,
                num_attention_heads=32,
            ),
            "qwen3",
            "qwen2",
        ),
        Shape(
            "muse-glimmer-30b",
            _GLIMMER_30B,
            "muse-glimmer",
            "llama4",
            formats=("q4",),
            floats=False,
        ),
    )
}
