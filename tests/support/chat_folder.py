"""A tiny model folder that chats: random weights, a byte-level tokenizer with the markers given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from support.model_folder import write_folder
from support.tokenizers_zoo import byte_level

HIDDEN, HEADS = 64, 4
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# With thoughts, which the prompt opens.
THINK = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}"
)
THINK_MARKERS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>")


def chat_folder(path: Path, template: str | None = CHATML, markers: tuple[str, ...] = ()) -> Path:
    """``markers``: added tokens, flagged special; ``</s>`` is one of them and the only end that
    the configuration names."""
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["</s>", *markers])
    return random_folder(path, tokenizer, "</s>", template)


def random_folder(
    path: Path, tokenizer: Any, end: str, template: str | None = None, context: int = 512
) -> Path:
    """The same with a tokenizer (of the library tokenizers) whose token ``end`` ends a text."""
    vocab = tokenizer.get_vocab_size()
    rng = np.random.default_rng(5)
    shapes = {"model.embed_tokens": (vocab, HIDDEN), "lm_head": (vocab, HIDDEN)}
    layer = "model.layers.0"
    shapes |= {f"{layer}.self_attn.{x}_proj": (HIDDEN, HIDDEN) for x in "qkvo"}
    shapes |= {f"{layer}.mlp.{x}_proj": (HIDDEN, HIDDEN) for x in ("gate", "up", "down")}
    tensors = {
        f"{name}.weight": rng.normal(0, 0.1, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    norms = ("model.norm", f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm")
    tensors |= {f"{name}.weight": np.ones(HIDDEN, np.float32) for name in norms}
    config = {
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": HIDDEN,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "eos_token_id": tokenizer.token_to_id(end),
    }
    write_folder(path, config, tensors)
    (path / "tokenizer.json").write_text(tokenizer.to_str())
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}))
    if template is not None:
        (path / "chat_template.jinja").write_text(template)
    return path
