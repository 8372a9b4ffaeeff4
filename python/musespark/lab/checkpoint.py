"""Checkpoints: the weights, the throw-away heads, optimizer state, the averaged weights."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .network import PackedLoss
from .optim import Optimizer


def save(
    path: Path,
    loss: PackedLoss,
    optimizer: Optimizer,
    step: int,
    tokens: int,
    decay_from: int | None,
    size: str,
) -> None:
    """Write atomically."""
    state = {
        "model": loss.model.state_dict(),
        "heads": loss.heads.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": averaged(loss.model, optimizer),
        "step": step,
        "tokens": tokens,
        "decay_from": decay_from,
        "size": size,
    }
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def averaged(model: torch.nn.Module, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    """The running average of the trained weights of ``model``, by name."""
    mine = dict(model.named_parameters())
    pairs = zip(optimizer.names, optimizer.average, strict=True)
    return {n.removeprefix("model."): a for n, a in pairs if n.removeprefix("model.") in mine}


def load_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Load all weights; a missing or extra name raises."""
    model.load_state_dict(weights, strict=True)
