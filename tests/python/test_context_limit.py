"""How many tokens fit: the figures that choose and report the context are those of the engine."""

from __future__ import annotations

import dataclasses

import pytest

import musespark
from musespark import memory
from musespark.engine import Engine, Request
from musespark.errors import MemoryBudgetExceeded
from musespark.families.spec import ModelSpec
from musespark.sizes import kv_bytes, kv_bytes_per_token
from support import engine_cases as cases
from support import tiny_models


def with_windows(spec: ModelSpec, windows: list[int], max_context: int = 1 << 20) -> ModelSpec:
    layers = [
        dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, window=window))
        for layer, window in zip(spec.layers * 4, windows, strict=False)
    ]
    return dataclasses.replace(spec, layers=tuple(layers), max_context=max_context)


@pytest.mark.parametrize("name", ["muse_kv8", "llama_f32"])
@pytest.mark.parametrize("count", [1, 64, 65, 700, 1024])
def test_the_figure_is_what_the_engine_asks_for(name: str, count: int) -> None:
    spec, tensors, kv = cases.packed(name)
    needed = kv_bytes(spec, kv, count)
    request = Request(tokens=[1], max_new_tokens=count - 1) if count > 1 else Request(tokens=[1])
    for budget, fits in ((needed, True), (needed - 1, False)):
        with Engine(
            spec, tensors, threads=1, context=count + 1, kv=kv, memory_budget=budget
        ) as engine:
            if fits:
                engine.submit(request).cancel()
            else:
                with pytest.raises(MemoryBudgetExceeded):
                    engine.submit(request)


def test_a_token_of_a_wide_head_takes_what_the_readme_says() -> None:
    spec = with_windows(tiny_models.llama(), [0, 0])
    wide = [
        dataclasses.replace(
            layer,
            attention=dataclasses.replace(layer.attention, heads=4, kv_heads=2, head_dim=128),
        )
        for layer in spec.layers
    ]
    spec = dataclasses.replace(spec, layers=tuple(wide))
    assert kv_bytes_per_token(spec, "kv8") == len(wide) * 2 * 264
    assert kv_bytes_per_token(spec, "f32") == len(wide) * 2 * 128 * 2 * 4


def largest_in(spec, room: int) -> int:
    """The largest context whose keys and values fit in `room` bytes."""
    need = memory.Needs(spec, "q4")
    need.step = lambda tokens: 0
    return need.largest_context("kv8", room + need.process, 0)


def test_layers_with_a_window_count_up_to_it() -> None:
    """They once counted in full, and a model with three of four windowed got a quarter."""
    full = with_windows(tiny_models.llama(), [0, 0, 0, 0])
    windowed = with_windows(tiny_models.llama(), [256, 256, 256, 0])
    assert len(full.layers) == len(windowed.layers) == 4
    assert kv_bytes_per_token(full, "kv8") == kv_bytes_per_token(windowed, "kv8")
    budget = kv_bytes(full, "kv8", 10_000)
    for spec, least, most in ((full, 10_000, 10_048), (windowed, 37_000, 40_048)):
        limit = largest_in(spec, budget)
        assert least <= limit <= most
        assert kv_bytes(spec, "kv8", limit) <= budget < kv_bytes(spec, "kv8", limit + 1)
    small = dataclasses.replace(windowed, max_context=5000)
    assert largest_in(small, budget) == 5000
    assert largest_in(small, 0) == 0


def test_info_says_both_figures() -> None:
    with musespark.load(context=1024, threads=1) as model:
        info = model.info
        assert info.kv_bytes_full_context == kv_bytes(model._weights.spec, info.kv_formats, 1024)
        assert info.kv_bytes_per_token == kv_bytes_per_token(model._weights.spec, info.kv_formats)
