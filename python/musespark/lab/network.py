"""The model: transformers' MuseGlimmer classes at Spark Nano's frozen shape, and the loss on
packed rows."""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from transformers import MuseGlimmerConfig, MuseGlimmerForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from . import tokenizer as tok

WINDOW = 256
#: Text tower by size: (layers, hidden, intermediate, heads, KV heads). "nano" ships; "large" is
#: for one GPU.
SIZES = {"tiny": (4, 64, 128, 2, 1), "nano": (8, 192, 512, 6, 2), "large": (12, 384, 1152, 12, 2)}


def config(size: str = "nano") -> MuseGlimmerConfig:
    """Head width 32, window 256, three sliding layers to one full, tied embeddings; 64 tokens an
    image of 128×128."""
    layers, hidden, intermediate, heads, kv_heads = SIZES[size]
    text = {
        "vocab_size": tok.VOCAB_SIZE,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 32,
        "sliding_window": WINDOW,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "bos_token_id": tok.BOS,
        "eos_token_id": [tok.EOT, tok.EOS],
        "pad_token_id": tok.PAD,
        "tie_word_embeddings": True,
        "output_multiplier": 1.0,
    }
    vision = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "patch_size": 8,
        "patch_temporal": 2,
        "pos_emb_height": 16,
        "pos_emb_width": 16,
        "max_position_embeddings": 256,
    }
    return MuseGlimmerConfig(
        text_config=text,
        vision_config=vision,
        out_hidden_size=512,
        projector_hidden_size=192,
        image_token_id=tok.PATCH,
        video_token_id=tok.VIDEO,
        tie_word_embeddings=True,
        bos_token_id=tok.BOS,
        eos_token_id=[tok.EOT, tok.EOS],
        pad_token_id=tok.PAD,
    )


def create(size: str, seed: int) -> MuseGlimmerForConditionalGeneration:
    """A freshly initialised model in float32."""
    torch.manual_seed(seed)
    return MuseGlimmerForConditionalGeneration(config(size))


def _plain_attention(module, query, key, value, mask, dropout=0.0, scaling=None, **_):
    """Batched products with an additive mask: on a CPU with AMX faster than the fused kernel,
    backward above all."""
    rows, heads, length, width = query.shape
    groups = key.shape[1]
    query = query.reshape(rows, groups, heads // groups * length, width)
    scores = torch.matmul(query, key.transpose(-1, -2)).view(
        rows, groups, heads // groups, length, length
    )
    weights = torch.softmax(scores * scaling + mask.unsqueeze(1), -1, dtype=torch.float32).to(
        value.dtype
    )
    out = torch.matmul(weights.view(rows, groups, heads // groups * length, length), value)
    return out.view(rows, heads, length, width).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register("musespark_plain", _plain_attention)


def use_plain_attention(model: MuseGlimmerForConditionalGeneration) -> None:
    """Train with the attention above (CPU)."""
    model.model.language_model.config._attn_implementation = "musespark_plain"


def freeze_vision(model: MuseGlimmerForConditionalGeneration) -> None:
    """Leave the vision half as initialised: no text item has a gradient for it."""
    for part in (
        model.model.vision_tower,
        model.model.vision_adapter,
        model.model.vision_projection,
    ):
        part.requires_grad_(False)


class PackedLoss(torch.nn.Module):
    """Mean cross-entropy of the trained positions of packed rows; nothing attends across
    documents."""

    def __init__(self, model: MuseGlimmerForConditionalGeneration):
        super().__init__()
        self.model = model

    def forward(self, ids, document, index, labels):
        """``ids``, ``document`` [rows, length]; ``index``, ``labels`` [targets]."""
        length = ids.shape[1]
        position = torch.arange(length, device=ids.device)
        back = position[:, None] - position[None, :]
        same = (document[:, :, None] == document[:, None, :])[:, None]
        dtype = torch.bfloat16 if torch.is_autocast_enabled(ids.device.type) else torch.float32
        zero, minus = (
            torch.zeros((), dtype=dtype, device=ids.device),
            torch.full((), -1e9, dtype=dtype, device=ids.device),
        )
        masks = {
            "full_attention": torch.where(same & (back >= 0), zero, minus),
            "sliding_attention": torch.where(same & (back >= 0) & (back < WINDOW), zero, minus),
        }
        text = self.model.model.language_model
        hidden = text(
            input_ids=ids, attention_mask=masks, position_ids=position[None], use_cache=False
        ).last_hidden_state
        logits = self.model.lm_head(hidden.flatten(0, 1)[index]).float()
        cap = text.config.final_logit_softcapping
        logits = torch.tanh(logits * (text.config.output_multiplier / cap)) * cap
        return F.cross_entropy(logits, labels)


def threads_of_this_machine() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
