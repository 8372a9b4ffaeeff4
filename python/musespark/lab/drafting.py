"""A block drafter of Nano in torch: its shape, blocks at random places of packed rows, the loss.

As DFlash trains (arXiv:2602.06036): the model is frozen; blocks begin at random trained tokens of
a row, each sees what the model's layers give for the tokens before it, and itself; the cross
entropy of its masked positions counts less the further they are from the known token, for a wrong
one ends the draft.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers import (
    MuseGlimmerAssistantConfig,
    MuseGlimmerAssistantModel,
    MuseGlimmerForConditionalGeneration,
)

from . import network
from . import tokenizer as tok
from .pack import Batch

#: Stands where a token is to be drafted: the last of the reserved markers, which no text has.
MASK = len(tok.SPECIAL) - 1


def config(
    target: MuseGlimmerForConditionalGeneration,
    *,
    layers: int,
    intermediate: int,
    block: int,
    target_layers: list[int],
) -> MuseGlimmerAssistantConfig:
    """A drafter for ``target`` with its heads, its window, and its theta."""
    text = target.config.text_config
    return MuseGlimmerAssistantConfig(
        hidden_size=text.hidden_size,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=text.num_attention_heads,
        num_key_value_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        rms_norm_eps=text.rms_norm_eps,
        max_position_embeddings=text.max_position_embeddings,
        sliding_window=text.sliding_window,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": text.rope_parameters["rope_theta"],
        },
        bos_token_id=tok.BOS,
        eos_token_id=tok.EOT,
        pad_token_id=tok.PAD,
        block_size=block,
        mask_token_id=MASK,
        target_layer_ids=target_layers,
    )


@dataclass
class Blocks:
    """Where blocks begin in the rows of a batch: ``anchors`` int64 [rows, n], the known tokens;
    ``labels`` int64 [rows, n, block - 1], what follows them, -100 where nothing is trained."""

    anchors: torch.Tensor
    labels: torch.Tensor


def draw_blocks(batch: Batch, count: int, block: int, rng: np.random.Generator) -> Blocks:
    """``count`` blocks for each row, at tokens after which the model is trained to write."""
    rows, length = batch.ids.shape
    trained = np.zeros(rows * length, bool)
    trained[batch.index[batch.labels >= 0]] = True
    trained = trained.reshape(rows, length)
    anchors = np.zeros((rows, count), np.int64)
    for row in range(rows):
        places = np.flatnonzero(trained[row])
        if len(places):
            anchors[row] = rng.choice(places, count, replace=len(places) < count)
    at = anchors[:, :, None] + np.arange(1, block)
    inside = np.minimum(at, length - 1)
    line = np.arange(rows)[:, None, None]
    follows = trained[line, inside - 1] & (at < length)
    for field in (batch.document, batch.branch):
        follows &= field[line, inside] == field[line, anchors[:, :, None]]
    follows = np.logical_and.accumulate(follows, axis=2)
    labels = np.where(follows, batch.ids[line, inside], -100)
    return Blocks(torch.from_numpy(anchors), torch.from_numpy(labels))


class Target:
    """The frozen model that is drafted for."""

    def __init__(self, model: MuseGlimmerForConditionalGeneration, layers: list[int]):
        most = model.config.text_config.num_hidden_layers - 2
        for layer in layers:
            if not 0 <= layer <= most:
                raise ValueError(f"target layers: got {layer}, allowed is 0 to {most}")
        self.model, self.layers = model.eval().requires_grad_(False), layers

    @torch.no_grad()
    def states(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """[rows, length, layers * hidden]: what its layers give for packed rows of text."""
        text = self.model.model.language_model
        found = text(
            inputs_embeds=text.embed_tokens(batch["ids"]),
            attention_mask=network.masks_of(batch),
            position_ids=batch["position"],
            use_cache=False,
            output_hidden_states=[layer + 1 for layer in self.layers],
        ).hidden_states
        return torch.cat([found[layer + 1] for layer in self.layers], -1)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the embedding as they stand: drafters take them without the model's norm."""
        return F.embedding(ids, self.model.model.language_model.embed_tokens.weight)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of rows that the head reads, float32."""
        text = self.model.config.text_config
        cap = text.final_logit_softcapping
        logits = F.linear(hidden, self.model.lm_head.weight).float()
        return torch.tanh(logits * (text.output_multiplier / cap)) * cap


class BlockLoss(torch.nn.Module):
    """The weighted cross entropy of drafted positions; the weight of the i-th is
    exp(-(i - 1) / (block / 2))."""

    def __init__(self, drafter: MuseGlimmerAssistantModel):
        super().__init__()
        self.drafter = drafter
        self.block = drafter.config.block_size

    def forward(
        self, batch: dict[str, torch.Tensor], blocks: Blocks, states: torch.Tensor, target: Target
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, and how many drafted tokens of each block [rows, n] are right from its first
        on."""
        rows, count = blocks.anchors.shape
        first = torch.gather(batch["ids"], 1, blocks.anchors)
        noise = torch.full((rows, count, self.block), MASK, device=first.device)
        noise[:, :, 0] = first
        hidden = self.drafter(
            noise_embeds=target.embed(noise.flatten(1)),
            context_hidden_states=states,
            attention_mask={"sliding_attention": self._mask(batch, blocks, states.dtype)},
            position_ids=torch.cat([batch["position"], self._places(batch, blocks)], 1),
        ).last_hidden_state
        logits = target.logits(hidden.view(rows, count, self.block, -1)[:, :, 1:])
        known = blocks.labels >= 0
        losses = F.cross_entropy(
            logits.flatten(0, 2), blocks.labels.flatten(), reduction="none", ignore_index=-100
        ).view(blocks.labels.shape)
        far = torch.arange(self.block - 1, device=losses.device)
        weight = torch.exp(-far / (self.block / 2)) * known
        right = (logits.argmax(-1) == blocks.labels) & known
        return (losses * weight).sum() / weight.sum().clamp(min=1e-6), right.cumprod(-1).sum(-1)

    def _places(self, batch: dict[str, torch.Tensor], blocks: Blocks) -> torch.Tensor:
        """Positions of the blocks' rows, [rows, n * block]."""
        at = torch.gather(batch["position"], 1, blocks.anchors)[:, :, None]
        return (at + torch.arange(self.block, device=at.device)).flatten(1)

    def _mask(
        self, batch: dict[str, torch.Tensor], blocks: Blocks, dtype: torch.dtype
    ) -> torch.Tensor:
        """Additive [rows, 1, n * block, length + n * block]: a block's rows see what stands before
        its anchor in the document, through the window, and their own block."""

        def anchored(name: str) -> torch.Tensor:  # [rows, n * block, 1], of each block's anchor
            values = torch.gather(batch[name], 1, blocks.anchors)
            return values.repeat_interleave(self.block, 1)[:, :, None]

        document, branch, position = (batch[k][:, None] for k in ("document", "branch", "position"))
        seen = (document == anchored("document")) & (position < anchored("position"))
        seen &= (branch == 0) | (branch == anchored("branch"))
        far = self._places(batch, blocks)[:, :, None] - position
        seen &= far <= self.drafter.config.sliding_window
        count = blocks.anchors.shape[1]
        own = torch.arange(count, device=seen.device).repeat_interleave(self.block)
        same = (own[:, None] == own).expand(len(seen), -1, -1)
        zero = torch.zeros((), dtype=dtype, device=seen.device)
        return torch.where(torch.cat([seen, same], -1), zero, -1e9)[:, None].to(dtype)
