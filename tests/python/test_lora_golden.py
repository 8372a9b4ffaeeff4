"""LoRA on tiny models against PEFT: beside the matrices and merged, in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from musespark.weights.adapters import can_merge, merge, read_adapter, read_adapter_config
from musespark.weights.loading import LoadedWeights, open_model
from support import run_engine
from support.lora import LORA_CASES, LoraGolden
from support.model_folder import CASES, checkpoint_weights, to_bf16, write_folder
from support.packing import unpacked

LIMIT = 1e-4  # of the range of the logits


def opened(golden: LoraGolden, tmp_path: Path) -> tuple[LoadedWeights, object]:
    model = open_model(golden.model_folder(tmp_path / "model"), quantize="none")
    config = read_adapter_config(golden.adapter_folder(tmp_path / "adapter"))
    return model, read_adapter(config, model.spec, model.info["family"])


def logits(core, golden: LoraGolden, **params) -> np.ndarray:
    request = core.submit(golden.tokens, params={"logits": "all", **params})
    return np.concatenate(run_engine._drain(core, request)[1])[golden.positions]


@pytest.mark.parametrize("name", sorted(LORA_CASES))
def test_merged_beside_and_peft_agree(name: str, tmp_path: Path, own_cache: Path) -> None:
    golden = LoraGolden.of(name)
    assert golden.distance(golden.base, golden.logits) > 0.2, "an adapter that does nothing"
    model, lora = opened(golden, tmp_path)
    core = run_engine.engine(model.spec, model.tensors, context=len(golden.tokens))
    adapter = core.add_adapter(lora.tensors())
    assert golden.distance(logits(core, golden), golden.base) < LIMIT
    beside = logits(core, golden, adapter=adapter)
    assert golden.distance(beside, golden.logits) < LIMIT
    assert golden.distance(logits(core, golden), golden.base) < LIMIT, "switched off again"

    assert can_merge(model, lora)
    merge(model, lora)
    merged = run_engine.engine(model.spec, model.tensors, context=len(golden.tokens))
    whole = logits(merged, golden)
    assert golden.distance(whole, golden.logits) < LIMIT
    assert golden.distance(whole, beside) < LIMIT


def test_layers_without_an_adapter_have_none(tmp_path: Path, own_cache: Path) -> None:
    _, lora = opened(LoraGolden.of("lora_qwen2"), tmp_path)
    assert sorted(lora.matrices) == [
        f"layers.{i}.{target}" for i in (0, 2) for target in ("down", "q", "v")
    ]
    assert lora.targets == ("q", "v", "down") and lora.rank == 3


def test_merging_bf16_weights_keeps_the_sum(tmp_path: Path, own_cache: Path) -> None:
    """bfloat16 matrices become float32: rounded again, a small adapter would be lost."""
    golden = LoraGolden.of("lora_llama")
    case = CASES[LORA_CASES["lora_llama"].base]
    weights = {n: to_bf16(w) for n, w in checkpoint_weights(case, golden.seed).items()}
    model = open_model(write_folder(tmp_path / "m", case.config, weights), quantize="none")
    config = read_adapter_config(golden.adapter_folder(tmp_path / "adapter"))
    lora = read_adapter(config, model.spec, model.info["family"])
    before = unpacked(model)
    merge(model, lora)
    assert model.info["merged"] and model.info["bytes"] == sum(model.info["formats"].values())
    after = unpacked(model)
    for name, (a, b) in lora.matrices.items():
        assert model.tensors[name][0] == "f32"
        exact = before[name].astype(np.float64) + b.astype(np.float64) @ a.astype(np.float64)
        assert np.abs(after[name] - exact).max() <= 2.0**-23 * np.abs(exact).max(), name
    untouched = set(before) - set(lora.matrices)
    assert untouched and all(np.array_equal(after[n], before[n]) for n in untouched)
