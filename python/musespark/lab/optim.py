"""Muon for the hidden matrices (batched by shape), AdamW for the rest, an average of the weights.

Muon: Keller Jordan et al. 2024 (orthogonalised momentum by a quintic Newton-Schulz iteration),
with the
0.2 * sqrt(larger side) scale of Liu et al. 2025 (arXiv 2502.16982), so one learning rate serves
both.
"""

from __future__ import annotations

import torch


def orthogonalize(gradients: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """Near-orthogonal matrices [n, rows, columns] with the singular vectors of ``gradients``; in
    bfloat16."""
    x = gradients.bfloat16()
    if wide := x.shape[-2] > x.shape[-1]:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        a = x @ x.mT
        b = -4.7750 * a + 2.0315 * (a @ a)
        x = 3.4445 * x + b @ x
    return x.mT if wide else x


class Optimizer:
    """Steps all parameters; ``lr`` is given per step, so that a schedule can follow steps or
    flags."""

    def __init__(
        self,
        model: torch.nn.Module,
        weight_decay: float = 0.05,
        momentum: float = 0.95,
        average: float = 0.998,
    ):
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.matrices: dict[tuple[int, ...], list[torch.nn.Parameter]] = {}
        rest, self.names = {}, [n for n, _ in named]
        for name, p in named:
            if p.ndim == 2 and ".layers." in name:
                self.matrices.setdefault(tuple(p.shape), []).append(p)
            else:
                rest[name] = p
        self.parameters, self.rest = [p for _, p in named], rest
        self.momentum, self.weight_decay, self.decay = momentum, weight_decay, average
        self.buffers = {
            s: torch.zeros(len(ps), *s, device=ps[0].device) for s, ps in self.matrices.items()
        }
        fused = self.parameters[0].device.type in ("cuda", "cpu")
        self.adam = torch.optim.AdamW(
            list(rest.values()), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0, fused=fused
        )
        self.average = [p.detach().clone() for p in self.parameters]
        self.resting: dict = {"buffers": {}, "adam": {}, "average": {}}
        self.steps = 0

    @torch.no_grad()
    def step(self, lr: float, clip: float = 1.0) -> float:
        """One update from the gradients present; returns their norm before clipping."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, clip))
        for shape, parameters in self.matrices.items():
            buffer = self.buffers[shape]
            gradient = torch.stack([p.grad for p in parameters])
            buffer.mul_(self.momentum).add_(gradient)
            update = orthogonalize(gradient + self.momentum * buffer).float()
            scale = -lr * 0.2 * max(shape) ** 0.5
            torch._foreach_mul_(parameters, 1 - lr * self.weight_decay)
            torch._foreach_add_(parameters, list(update.unbind(0)), alpha=scale)
        for group in self.adam.param_groups:
            group["lr"] = lr
        self.adam.step()
        self.steps += 1
        weight = 1 - min(self.decay, self.steps / (self.steps + 10))
        torch._foreach_lerp_(self.average, self.parameters, weight)
        for p in self.parameters:
            p.grad = None
        return norm

    def state_dict(self) -> dict:
        """Everything a resumed run needs beside the weights; Adam's moments and the average by
        name."""
        return {
            "buffers": self.resting["buffers"] | self.buffers,
            "adam": self.resting["adam"]
            | {n: dict(self.adam.state[p]) for n, p in self.rest.items()},
            "average": self.resting["average"] | dict(zip(self.names, self.average, strict=True)),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from ``state``; parameters it does not know begin afresh, and what it knows of
        those that rest now is kept for when they are trained again."""
        self.buffers.update({s: b for s, b in state["buffers"].items() if s in self.buffers})
        self.resting = {
            "buffers": {s: b for s, b in state["buffers"].items() if s not in self.buffers},
            "adam": {n: m for n, m in state["adam"].items() if n not in self.rest},
            "average": {n: a for n, a in state["average"].items() if n not in self.names},
        }
        self.steps = state["steps"]
        for name, moments in state["adam"].items():
            if name in self.rest:
                self.adam.state[self.rest[name]] = moments
        for name, mine in zip(self.names, self.average, strict=True):
            if name in state["average"]:
                mine.copy_(state["average"][name])
