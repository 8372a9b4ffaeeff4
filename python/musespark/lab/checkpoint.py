"""Checkpoints: text-tower and vision weights, optimizer state, the averaged weights."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from .optim import Optimizer


def save(
    path: Path,
    model: torch.nn.Module,
    optimizer: Optimizer,
    step: int,
    tokens: int,
    decay_from: int | None,
    size: str,
) -> None:
    """Write atomically."""
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": averaged(model, optimizer),
        "step": step,
        "tokens": tokens,
        "decay_from": decay_from,
        "size": size,
    }
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def averaged(model: torch.nn.Module, optimizer: Optimizer) -> dict[str, torch.Tensor]:
    """The running average of the trained weights, by name."""
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    return dict(zip(names, optimizer.average, strict=True))


def load_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Load all weights; a missing or extra name raises."""
    model.load_state_dict(weights, strict=True)
