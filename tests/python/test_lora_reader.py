"""PEFT's adapter folders: what is read, what is refused, and that nothing else happens."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musespark.errors import CorruptFile, InvalidRequest, UnsupportedModel
from musespark.families import MODULES
from musespark.families.tensors import EVERY_NAME, canonical_shapes
from musespark.weights.adapters import LoraConfig, read_adapter, read_adapter_config
from support.lora import LoraGolden, lora_config, write_adapter
from support.model_folder import CASES

CASE = CASES["llama_plain"]
SPEC = next(f for f in MODULES if f.name == "llama").spec(CASE.config)  # 60 wide, 3 layers
PREFIX = "base_model.model.model.layers."


def tensors(*modules: str, rank: int = 4, outputs: int = 60, inputs: int = 60) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    out = {}
    for module in modules or ("0.self_attn.q_proj", "2.self_attn.o_proj"):
        name = module if module.startswith("base") else PREFIX + module
        out[f"{name}.lora_A.weight"] = rng.standard_normal((rank, inputs)).astype(np.float32)
        out[f"{name}.lora_B.weight"] = rng.standard_normal((outputs, rank)).astype(np.float32)
    return out


def read(tmp_path: Path, config: dict[str, Any] | None = None, stored: dict | None = None):
    given = tensors() if stored is None else stored
    folder = write_adapter(tmp_path / "a", config or lora_config(), given)
    return read_adapter(read_adapter_config(folder), SPEC, "llama")


def test_numbers_arrive_with_their_scale(tmp_path: Path) -> None:
    stored = tensors()
    lora = read(tmp_path, stored=stored)
    assert list(lora.matrices) == ["layers.0.q", "layers.2.o"]
    a, b = lora.matrices["layers.2.o"]
    np.testing.assert_array_equal(a, stored[f"{PREFIX}2.self_attn.o_proj.lora_A.weight"])
    np.testing.assert_array_equal(b, 2 * stored[f"{PREFIX}2.self_attn.o_proj.lora_B.weight"])


def test_half_precision_is_read(tmp_path: Path) -> None:
    stored = tensors()
    halves = {name: value.astype(np.float16) for name, value in stored.items()}
    shorts = {name: (v.view(np.uint32) >> 16).astype(np.uint16) for name, v in stored.items()}
    for given, bound in ((halves, 2.0**-11), (shorts, 2.0**-7)):
        a, _ = read(tmp_path, stored=given).matrices["layers.0.q"]
        exact = stored[f"{PREFIX}0.self_attn.q_proj.lora_A.weight"]
        assert 0 < np.abs(a - exact).max() <= bound * np.abs(exact).max()


@pytest.mark.parametrize(
    ("changes", "module", "scale"),
    [
        ({}, "model.layers.1.mlp.down_proj", 2.0),
        ({"use_rslora": True}, "model.layers.1.mlp.down_proj", 4.0),
        ({"alpha_pattern": {"down_proj": 3}}, "model.layers.1.mlp.down_proj", 0.75),
        ({"alpha_pattern": {"own_proj": 3}}, "model.layers.1.mlp.down_proj", 2.0),
        ({"alpha_pattern": {"layers.1.mlp.down_proj": 1, "down_proj": 3}},
         "model.layers.1.mlp.down_proj", 0.25),
        ({"alpha_pattern": {"down_proj": 3, "layers.1.mlp.down_proj": 1}},
         "model.layers.1.mlp.down_proj", 0.75),
        ({"rank_pattern": {"down_proj": 16}, "use_rslora": True}, "down_proj", 2.0),
        ({"rank_pattern": None, "alpha_pattern": None}, "q_proj", 2.0),
    ],
)  # fmt: skip
def test_scales(tmp_path: Path, changes: dict, module: str, scale: float) -> None:
    folder = write_adapter(tmp_path / "a", lora_config(**changes), tensors())
    assert read_adapter_config(folder).scale_of(module) == scale


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"peft_type": None}, "peft_type is None"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"use_dora": True}, "use_dora is True"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "target_parameters"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"init_lora_weights": 1}, "init_lora_weights is 1"),
        ({"of_a_later_peft": {"on": True}}, "of_a_later_peft"),
        ({"alpha_pattern": {r"layers\.\d+": 2}}, "a key of alpha_pattern"),
        ({"rank_pattern": {"(a+)+$": 2}}, "a key of rank_pattern"),
    ],
)
def test_what_changes_the_result_is_refused_by_name(
    tmp_path: Path, changes: dict, text: str
) -> None:
    with pytest.raises(UnsupportedModel, match=text):
        read(tmp_path, lora_config(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": False},
        {"layers_to_transform": [2, 0]},
        {"modules_to_save": None, "use_dora": False, "loftq_config": {}, "lora_dropout": 0.1},
        {"of_a_later_peft": None, "target_modules": "all-linear", "inference_mode": True},
    ],
)
def test_what_does_not_is_read_over(tmp_path: Path, changes: dict) -> None:
    assert read(tmp_path, lora_config(**changes)).rank == 4


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"r": 0}, "r is 0, not a rank"),
        ({"r": True}, "r is True"),
        ({"r": None}, "r is None"),
        ({"r": 2**40}, "not a rank of 1 to 4096"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'"),
        ({"lora_alpha": 1e300}, "lora_alpha"),
        ({"use_rslora": 1}, "use_rslora is 1"),
        ({"rank_pattern": [1]}, "rank_pattern is"),
        ({"layers_to_transform": ["0"]}, "layers_to_transform is"),
        ({"layers_to_transform": [0]}, r"2\.self_attn.* layers_to_transform .* it has \[0\]"),
        ({"layers_to_transform": 0}, r"layers_to_transform of adapter_config.json leaves out"),
        ({"alpha_pattern": {"q_proj": None}}, "alpha_pattern.q_proj is None"),
        ({"r": 5}, r"has shape \[4, 60\]; .* ask for \[5, 60\]"),
    ],
)
def test_values_that_make_no_sense(tmp_path: Path, changes: dict, text: str) -> None:
    with pytest.raises(CorruptFile, match=text):
        read(tmp_path, lora_config(**changes))


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.lm_head.weight",
        f"{PREFIX}0.self_attn.q_proj.lora_magnitude_vector",
        f"{PREFIX}0.self_attn.q_proj.lora_A.bias",
        "layers.0.attention.wq.lora_a",
        f"{PREFIX}3.self_attn.q_proj.lora_A.weight",
        f"{PREFIX}00.self_attn.q_proj.lora_A.weight",
        f"{PREFIX}{2**70}.self_attn.q_proj.lora_A.weight",
        f"{PREFIX}0.self_attn.qkv_proj.lora_A.weight",
        f"{PREFIX}0.input_layernorm.lora_A.weight",
        "base_model.model.model.vision_tower.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.lm_head.lora_A.weight",
    ],
)
def test_tensors_of_other_things_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnsupportedModel, match="tensor '"):
        read(tmp_path, stored=tensors() | {name: np.zeros((4, 60), np.float32)})


def test_routers_and_experts_are_refused(tmp_path: Path) -> None:
    case = CASES["mixtral_plain"]
    spec = next(f for f in MODULES if f.name == "mixtral").spec(case.config)
    for module in ("block_sparse_moe.gate", "block_sparse_moe.experts.0.w1", "mlp.gate"):
        folder = write_adapter(tmp_path / "a", lora_config(), tensors(f"0.{module}"))
        with pytest.raises(UnsupportedModel, match="dense MLPs alone"):
            read_adapter(read_adapter_config(folder), spec, "mixtral")


def test_broken_tensors(tmp_path: Path) -> None:
    a, b = (f"{PREFIX}0.self_attn.q_proj.lora_{x}.weight" for x in "AB")
    good = tensors("0.self_attn.q_proj")
    for change, text in (
        ({b: None}, "lora_A.weight' has no partner"),
        ({a: None}, "lora_B.weight' has no partner"),
        ({a: good[a][:, :59]}, r"\[4, 59\]; .* \[4, 60\]"),
        ({b: good[b][:59]}, r"\[59, 4\]; .* \[60, 4\]"),
        ({b: good[b] * np.float32(np.nan)}, "not finite"),
        ({b: np.full_like(good[b], 3e38)}, "not finite"),
        ({a: np.full_like(good[a], np.inf)}, "not finite"),
        ({a: None, b: None}, "there are no tensors"),
    ):
        changed = {n: v for n, v in (good | change).items() if v is not None}
        with pytest.raises(CorruptFile, match=text):
            read(tmp_path, stored={n: np.ascontiguousarray(v) for n, v in changed.items()})
    with pytest.raises(UnsupportedModel, match="has dtype U8"):
        read(tmp_path, stored=good | {a: np.zeros((4, 60), np.uint8)})
    elsewhere = "base_model.model.language_model.layers.0.self_attn.q_proj"
    twice = tensors("0.self_attn.q_proj", elsewhere)
    with pytest.raises(CorruptFile, match="two names"):
        read(tmp_path, stored=twice)


def test_no_such_folder(tmp_path: Path) -> None:
    for given in ("org/name", tmp_path, "", "x" * 5000):
        with pytest.raises(InvalidRequest, match=r"adapter .* there is no adapter_config.json"):
            read_adapter_config(given)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InvalidRequest, match="no adapter_model"):
        read_adapter_config(tmp_path)
    for wrong in (5, None, b"x"):
        with pytest.raises(InvalidRequest, match="allowed is the path"):
            read_adapter_config(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("family", sorted({case.family for case in CASES.values()}))
def test_every_family_says_where_its_matrices_lie(family: str) -> None:
    """What a checkpoint with every name would give is what the family's own checkpoint gives."""
    module = next(f for f in MODULES if f.name == family)
    case = next(c for c in CASES.values() if c.family == family)
    spec = module.spec(case.config)
    mapping = module.tensors(spec, [EVERY_NAME])
    assert set(mapping.sources) == set(canonical_shapes(spec)) and not mapping.ignored
    again = module.tensors(spec, {part.name for part in mapping.sources.values()})
    assert again.sources == mapping.sources


def test_damaged_folders_give_only_typed_errors(tmp_path: Path) -> None:
    """400 byte flips and cuts of a real adapter's two files."""
    golden = LoraGolden.of("lora_phi3")
    folder = golden.adapter_folder(tmp_path / "a")
    case = CASES["phi3_grouped"]
    spec = next(f for f in MODULES if f.name == "phi3").spec(case.config)
    whole = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    rng, refused = random.Random(4), 0
    for i in range(400):
        path = list(whole)[i % 2]
        data = bytearray(whole[path])
        for _ in range(rng.choice((1, 1, 3))):
            data[rng.randrange(min(len(data), 4000))] = rng.randrange(256)
        path.write_bytes(data[: rng.randrange(len(data))] if rng.random() < 0.2 else data)
        try:
            lora = read_adapter(read_adapter_config(folder), spec, "phi3")
            assert all(np.isfinite(a).all() and np.isfinite(b).all()
                       for a, b in lora.matrices.values())  # fmt: skip
        except (CorruptFile, UnsupportedModel):
            refused += 1
        path.write_bytes(whole[path])
    assert refused > 150


def test_many_patterns_are_not_searched_for_each_module() -> None:
    """65,000 keys fit in a config; they took 24 ms a module."""
    ranks = {f"a{i:05d}": 4 for i in range(65_000)} | {"q_proj": 5, "self_attn.q_proj": 6}
    config = LoraConfig(Path(), 3, 2.0, False, ranks, {})
    begin = time.process_time()
    found = {config.rank_of(f"model.layers.{i}.self_attn.q_proj") for i in range(1000)}
    assert found == {5} and config.rank_of("model.layers.0.mlp.up_proj") == 3
    assert time.process_time() - begin < 3


def test_scales_are_exact_of_a_config() -> None:
    config = LoraConfig(Path(), 3, 2.0, True, {}, {})
    assert config.scale_of("q_proj") == 2.0 / 3**0.5
