"""Tiny models and what may be laid over their weights: LoRA adapters, control vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from musespark.engine import Engine
from musespark.reference import forward as reference
from support import engine_cases as cases
from support.lora import adapter_tensors, random_adapter
from support.steering import control_tensors, random_directions, twin_weights
from support.tiny_models import SPECS, Runner, pack, random_weights

MODELS = ("llama", "muse", "everything", "experts")


@dataclass(frozen=True)
class Kind:
    """``weights`` and ``tensors`` of (spec, seed=, …): random ones, for the reference twin and as
    the core takes them. ``few``: options of one that changes a part of the model alone."""

    name: str
    weights: Callable[..., dict[str, np.ndarray]]
    tensors: Callable[..., dict[str, tuple]]
    few: Mapping[str, Any]


LORA = Kind(
    "adapter",
    random_adapter,
    lambda spec, **options: adapter_tensors(random_adapter(spec, **options)),
    {"targets": ("q", "v", "gate", "up", "down")},
)
CONTROL = Kind(
    "control vector",
    lambda spec, **options: twin_weights(random_directions(spec, **options)),
    control_tensors,
    {"layers": [1]},
)
KINDS = {kind.name: kind for kind in (LORA, CONTROL)}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


class Adapted:
    """A tiny model and what is laid over it."""

    def __init__(self, name: str, recipe: str, kv: str = "f32", threads: int = 1):
        self.spec = SPECS[name]()
        self.tensors = pack(random_weights(self.spec, seed=6), recipe)
        self.runner = Runner(self.spec, self.tensors, kv=kv, threads=threads)

    def add(self, kind: Kind, over: Any = None, **options: Any) -> Any:
        return self.runner.model.adapter(kind.tensors(self.spec, **options), over)

    def logits(self, tokens, adapter=None, cut: int = 10_000) -> np.ndarray:
        """All logits of a fresh sequence, fed in pieces of `cut`."""
        sequence, rows = self.runner.sequence(), []
        for at in range(0, len(tokens), cut):
            piece = [int(t) for t in tokens[at : at + cut]]
            step = [(sequence, piece, "all")]
            rows.append(self.runner.model.forward(step, adapters=[adapter]))
            sequence.accept(sequence.length)
        return np.concatenate(rows)


def twin_and_bound(model: Adapted, weights: dict, tokens) -> tuple[np.ndarray, float]:
    """The twin's logits, and the bound of the model alone (test_model_reference.py)."""
    exact = reference.logits(model.spec, weights, tokens)
    single = reference.logits(model.spec, weights, tokens, np.float32)
    bound = 8 * float(np.abs(single - exact).max()) + 2.0**-22 * float(np.abs(exact).max())
    assert bound < 1e-4 * np.ptp(exact), "the bound says nothing"
    return exact, bound


def add(engine: Engine, kind: Kind, over: int | None = None, **options: Any) -> int:
    """Its id, on the engine of a model of engine_cases."""
    ids: list[int] = []
    tensors = kind.tensors(cases.packed("muse_kv8")[0], **options)
    engine.add_adapter(ids, tensors, over=over)
    return ids[0]
