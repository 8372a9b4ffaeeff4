"""The model: transformers' MuseGlimmer classes at Spark Nano's frozen shape, and the loss on
packed rows."""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import MuseGlimmerConfig, MuseGlimmerForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.muse_glimmer.modeling_muse_glimmer import apply_rotary_pos_emb_vision

from . import tokenizer as tok
from .raster import (
    CELL,
    CHARACTERS,
    CLASSES,
    COLORS,
    LABEL_WIDTH,
    LABELS,
    PATCH,
    SHAPES,
    SIZE,
)

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


_BLOCK = 64


def _plain_attention(module, query, key, value, mask, dropout=0.0, scaling=None, **_):
    """Batched products with an additive mask: on a CPU with AMX faster than the fused kernel,
    backward above all. Queries go in blocks, each with the keys up to its own end: nothing in a
    packed row looks ahead."""
    rows, heads, length, width = query.shape
    groups = key.shape[1]
    shared = heads // groups
    out = []
    for begin in range(0, length, _BLOCK):
        end = min(begin + _BLOCK, length)
        count = end - begin
        block = query[:, :, begin:end].reshape(rows, groups, shared * count, width)
        scores = torch.matmul(block, key[:, :, :end].transpose(-1, -2))
        scores = scores.view(rows, groups, shared, count, end) * scaling
        scores = scores + mask[:, None, :, begin:end, :end]
        weights = torch.softmax(scores, -1, dtype=torch.float32).to(value.dtype)
        weights = weights.view(rows, groups, shared * count, end)
        out.append(torch.matmul(weights, value[:, :, :end]).view(rows, heads, count, width))
    return torch.cat(out, 2).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register("musespark_plain", _plain_attention)


def use_plain_attention(model: MuseGlimmerForConditionalGeneration) -> None:
    """Train with the attention above (CPU)."""
    model.model.language_model.config._attn_implementation = "musespark_plain"


def freeze_vision(model: MuseGlimmerForConditionalGeneration) -> None:
    """Leave the vision half as it is: text alone has no gradient for it."""
    for part in _vision(model):
        part.requires_grad_(False)


def freeze_all_but_vision(model: MuseGlimmerForConditionalGeneration) -> None:
    """Leave the text half as it is: pictures alone have no gradient for it."""
    model.requires_grad_(False)
    for part in _vision(model):
        part.requires_grad_(True)


def _vision(model: MuseGlimmerForConditionalGeneration) -> tuple[torch.nn.Module, ...]:
    whole = model.model
    return whole.vision_tower, whole.vision_adapter, whole.vision_projection


def patches_of(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [n, height, width, 3] as the tower's input [n, patches, 2 * 3 * 8 * 8]: scaled to
    -1…1, row by row, each patch (frame, channel, row, column), the one frame twice."""
    n, height, width, _ = pixels.shape
    x = pixels.to(torch.float32) * (2 / 255) - 1
    x = x.view(n, height // PATCH, PATCH, width // PATCH, PATCH, 3).permute(0, 1, 3, 5, 2, 4)
    x = x.reshape(n, (height // PATCH) * (width // PATCH), 3 * PATCH * PATCH)
    return torch.cat((x, x), -1)


class Sight(torch.nn.Module):
    """The model's vision half on a batch of pictures of 128×128, all at once.

    The same modules and results as transformers' ``get_image_features``, which takes one picture
    after the other: at this size its window is the whole picture, and its grid of positions is the
    table as it stands.
    """

    def __init__(self, model: MuseGlimmerForConditionalGeneration):
        super().__init__()
        self.model = model
        tower = model.model.vision_tower
        side = SIZE // PATCH
        row = torch.arange(side).repeat_interleave(side)
        column = torch.arange(side).repeat(side)
        places = torch.stack((column, row), -1) + 1
        cos, sin = tower.rotary_emb(torch.zeros(1), places)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [n, 128, 128, 3] to what stands at the image tokens [n, 64, hidden]."""
        whole = self.model.model
        tower = whole.vision_tower
        x = tower.patch_embedder.patch_embedding(patches_of(pixels))
        x = tower.ln_pre(x + tower.patch_embedder.position_embedding_table.weight)
        for layer in tower.layers:
            x = x + self._attend(layer.attn, layer.norm1(x))
            x = x + layer.mlp(layer.norm2(x))
        x = tower.ln_post(x)
        n, side, merge = len(x), SIZE // PATCH // tower.merge_size, tower.merge_size
        x = (
            x.view(n, side, merge, side, merge, -1)
            .permute(0, 1, 3, 5, 2, 4)
            .reshape(n, side**2, -1)
        )
        x = whole.vision_projection(whole.vision_adapter(x))
        return whole.perception_emb_norm(x)

    def _attend(self, attn: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        n, length, hidden = x.shape
        shape = (n, length, attn.num_heads, attn.head_dim)
        query, key, value = (p(x).view(shape) for p in (attn.q_proj, attn.k_proj, attn.v_proj))
        query, key = apply_rotary_pos_emb_vision(query, key, self.cos, self.sin)
        query, key, value = (t.transpose(1, 2).to(value.dtype) for t in (query, key, value))
        scores = torch.matmul(query, key.transpose(-1, -2)) * attn.scaling
        weights = torch.softmax(scores, -1, dtype=torch.float32).to(value.dtype)
        return attn.proj(torch.matmul(weights, value).transpose(1, 2).reshape(n, length, hidden))


class PatchHeads(torch.nn.Module):
    """Throw-away heads: from what stands at an image token, the class, color and character of each
    of its four patches and the box of the whole it is part of, and the token's own row and column.
    They help a young tower and are not part of the model. Before they asked for places, a tower of
    37 M tokens told things well (95% of the classes, 99% of the colors) and places not at all.

    With ``words`` an image token is also to look like the words for what it shows, as the text half
    embeds them: what that half can do with words (match them, copy them) it can then do with what
    it sees. A tower that told nine characters in ten, in directions of its own, was not read from
    within 3 M tokens.
    """

    def __init__(self, hidden: int, words: torch.Tensor | None = None):
        """``words`` [kinds of label, labels, 2]: tokens that name a label, -1 for none."""
        super().__init__()
        self.register_buffer("words", words, persistent=False)
        self.linear = torch.nn.Linear(hidden, 4 * sum(LABELS))
        self.place = torch.nn.Linear(hidden, 2 * (SIZE // CELL))
        self.box = torch.nn.Linear(hidden, 4 * 4)

    def forward(
        self, features: torch.Tensor, seen: torch.Tensor, embedded: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Mean cross-entropy, what is nothing counts a tenth; and the mean distance of the boxes in
        eighths of the picture. ``seen`` [n, 16, 16, LABEL_WIDTH], ``embedded`` [vocabulary, hidden]
        the text half's embeddings."""
        n, cells, _ = features.shape
        side = int(cells**0.5)
        at = torch.arange(cells, device=features.device).repeat(n)
        row, column = self.place(features).float().view(n * cells, 2, side).unbind(1)
        places = F.cross_entropy(row, at // side) + F.cross_entropy(column, at % side)
        truth = seen.view(n, side, 2, side, 2, LABEL_WIDTH).permute(0, 1, 3, 2, 4, 5)
        truth = truth.reshape(-1, LABEL_WIDTH).long()
        logits = self.linear(features).float().view(-1, sum(LABELS))
        total = torch.zeros((), device=features.device)
        for k, part in enumerate(logits.split(LABELS, -1)):
            known = (truth[:, k] < LABELS[k]).float()
            weight = known * torch.where(truth[:, k] == 0, 0.1, 1.0)
            losses = F.cross_entropy(part, truth[:, k].clamp(max=LABELS[k] - 1), reduction="none")
            total = total + (losses * weight).sum() / (weight.sum() + 1)
        if self.words is not None and embedded is not None:
            total = total + self._named(features, truth.view(n * cells, 4, -1), embedded)
        edges = truth[:, len(LABELS) :]
        boxed = ((truth[:, 0] < LABELS[0]) & (edges[:, 2] > 0)).float()
        away = (self.box(features).float().view(-1, 4) - edges / SIZE).abs().mean(-1) * 8
        return total + places + (away * boxed).sum() / (boxed.sum() + 1)

    def _named(
        self, features: torch.Tensor, truth: torch.Tensor, embedded: torch.Tensor
    ) -> torch.Tensor:
        """Mean cross-entropy of the words for the patches ``truth`` [n, 4, LABEL_WIDTH] of each
        image token, by its product with each of the vocabulary."""
        flat = features.reshape(len(truth), -1)
        chances = (flat @ embedded.T.to(flat.dtype)).float() / flat.shape[-1] ** 0.5
        chances = chances.log_softmax(-1)
        total, count = chances.new_zeros(()), 1.0
        for kind, size in enumerate(LABELS):
            label = truth[..., kind]
            words = self.words[kind][torch.where(label < size, label, 0)].flatten(1)
            known = (words >= 0).float()
            total = total - (chances.gather(1, words.clamp(min=0)) * known).sum()
            count = count + known.sum()
        return total / count


def words_of(tokenizer: Tokenizer) -> torch.Tensor:
    """For ``PatchHeads``: the first and the last token of a shape or color after a space;
    a character, and it after a space where that is one token."""
    table = torch.full((len(LABELS), max(LABELS), 2), -1)

    def ids(text: str) -> torch.Tensor:
        return torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)

    for i, shape in enumerate(SHAPES, CLASSES.index(SHAPES[0])):
        table[0, i] = ids(f" {shape}")[[0, -1]]
    for i, color in enumerate(COLORS, 1):
        table[1, i] = ids(f" {color}")[[0, -1]]
    for i, character in enumerate(CHARACTERS, 1):
        table[2, i, 0] = ids(character)[0]
        spaced = ids(f" {character}")
        if len(spaced) == 1:
            table[2, i, 1] = spaced[0]
    return table


class PackedLoss(torch.nn.Module):
    """Mean cross-entropy of the trained positions of packed rows; nothing attends across documents
    or from one branch to another. With pictures, ``heads`` times ``heads_weight`` is added."""

    def __init__(
        self,
        model: MuseGlimmerForConditionalGeneration,
        heads_weight: float = 0.0,
        words: torch.Tensor | None = None,
    ):
        super().__init__()
        self.model, self.heads_weight = model, heads_weight
        self.sight = Sight(model)
        self.heads = PatchHeads(model.config.text_config.hidden_size, words)

    def forward(
        self, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The loss, the cross-entropy of each target [targets] (0 where there is none), and the
        heads' loss; ``batch`` holds the arrays of ``pack.Batch``. Without rows the heads' loss is
        all there is."""
        text = self.model.model.language_model
        ids = batch["ids"]
        if not len(ids):
            extra = self._taught(self.sight(batch["pixels"]), batch["seen"])
            return extra, extra.new_zeros(len(batch["labels"])), extra.detach()
        embedded = text.embed_tokens(ids)
        extra = torch.zeros((), device=ids.device)
        if len(batch["pixels"]):
            features = self.sight(batch["pixels"])
            if self.heads_weight:
                extra = self._taught(features, batch["seen"])
            embedded = _with_pictures(embedded, features, batch["place"])
        hidden = text(
            inputs_embeds=embedded,
            attention_mask=masks_of(batch),
            position_ids=batch["position"],
            use_cache=False,
        ).last_hidden_state
        logits = self.model.lm_head(hidden.flatten(0, 1)[batch["index"]]).float()
        cap = text.config.final_logit_softcapping
        logits = torch.tanh(logits * (text.config.output_multiplier / cap)) * cap
        losses = F.cross_entropy(logits, batch["labels"], reduction="none")
        mean = (losses * batch["weight"]).sum() / (batch["labels"] >= 0).sum().clamp(min=1)
        return mean + self.heads_weight * extra, losses.detach(), extra.detach()

    def _taught(self, features: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        text = self.model.model.language_model.embed_tokens
        vocabulary = torch.arange(text.num_embeddings, device=features.device)
        return self.heads(features, seen, text(vocabulary).detach())


def masks_of(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Additive masks of packed rows: nothing attends across documents or from one branch to
    another."""
    document, branch, position = (batch[k] for k in ("document", "branch", "position"))
    device = document.device
    same = document[:, :, None] == document[:, None, :]
    same &= (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
    back = position[:, :, None] - position[:, None, :]
    seen = (same & (back >= 0))[:, None]
    near = (same & (back >= 0) & (back < WINDOW))[:, None]
    dtype = torch.bfloat16 if torch.is_autocast_enabled(device.type) else torch.float32
    zero = torch.zeros((), dtype=dtype, device=device)
    minus = torch.full((), -1e9, dtype=dtype, device=device)
    return {
        "full_attention": torch.where(seen, zero, minus),
        "sliding_attention": torch.where(near, zero, minus),
    }


def _with_pictures(
    embedded: torch.Tensor, features: torch.Tensor, place: torch.Tensor
) -> torch.Tensor:
    """Embeddings [rows, length, hidden] with ``features`` at ``place``; places of pictures that no
    row has lie beyond the rows and are dropped."""
    rows, length, hidden = embedded.shape
    flat = torch.cat((embedded.flatten(0, 1), embedded.new_zeros(len(place), hidden)))
    flat = flat.index_copy(0, place, features.reshape(-1, hidden).to(flat.dtype))
    return flat[: rows * length].view(rows, length, hidden)


def threads_of_this_machine() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
