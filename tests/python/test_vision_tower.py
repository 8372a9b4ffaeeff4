"""Vision towers: families against transformers, the core against its twin, one result, errors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from musespark.errors import Cancelled, CorruptFile, InvalidRequest, UnsupportedModel
from musespark.families.spec import NormSpec
from musespark.families.vision import vision_spec, vision_tensors
from musespark.reference import vision as reference
from musespark.vision.tower import VisionTower, pack_tower
from support.compare import assert_same_bits, assert_within
from support.levels import stdout_by_level
from support.vision_towers import (
    CASES,
    canonical,
    checkpoint_shapes,
    golden,
    grids,
    patches_of,
    tower,
)

pytestmark = pytest.mark.isa


def stored_rows(name: str) -> list[np.ndarray]:
    return [golden(name)["rows"], *golden(name).get("taps", ())]


@pytest.mark.parametrize("name", CASES)
def test_the_twin_gives_the_rows_of_transformers(name: str) -> None:
    spec, weights = canonical(name)
    found = reference.encode(spec, weights, patches_of(name), grids(name))
    stored = stored_rows(name)
    assert len(found) == len(stored)
    for i, (rows, expected) in enumerate(zip(found, stored, strict=True)):
        # float32 through a few layers, places and angles in float32.
        assert_within(rows, expected, 1e-5 * float(np.ptp(expected)), f"{name} {i}")


@pytest.mark.parametrize("name", CASES)
def test_f32_gives_the_rows_of_transformers(name: str) -> None:
    """The bound of the issue: 1e-4 of the range; a tenth of it is what float32 needs."""
    found = tower(name, threads=2).encode(patches_of(name), grids(name))
    for rows, expected in zip([found.rows, *found.taps], stored_rows(name), strict=True):
        assert_within(rows, expected, 1e-5 * float(np.ptp(expected)), name)


def _changed(name: str, **changes: object) -> float:
    """How far the twin's rows are from transformers' if the spec says something else."""
    spec, weights = canonical(name)
    wrong = dataclasses.replace(spec, **changes)
    found = reference.encode(wrong, weights, patches_of(name), grids(name))[0]
    expected = stored_rows(name)[0]
    return float(np.abs(found - expected).max() / np.ptp(expected))


@pytest.mark.parametrize(
    ("name", "field", "changes"),
    [
        ("smolvlm_between", "positions", {"kind": "bilinear_zeros"}),
        ("smolvlm_between", "positions", {"kind": "bilinear_area"}),
        ("qwen3_vl", "positions", {"kind": "bilinear_area"}),
        ("muse_glimmer", "positions", {"turned": True}),
        ("muse_spark", "positions", {"turned": False}),
        ("muse_glimmer", "positions", {"kind": "bilinear_area"}),
        ("muse_glimmer", "rope", {"first": 0}),
        ("muse_glimmer", "rope", {"columns_first": False}),
        ("qwen2_vl", "rope", {"columns_first": True}),
        ("muse_glimmer", "head", {"merge": "concat"}),
        ("idefics3", "head", {"norm": NormSpec("layer", 1.0, bias=True)}),
        ("muse_spark", "head", {"out_norm": NormSpec()}),
    ],
)
def test_the_comparison_sees_planted_errors(name: str, field: str, changes: dict) -> None:
    inner = dataclasses.replace(getattr(canonical(name)[0], field), **changes)
    # Counting rotary positions from elsewhere turns queries and keys alike.
    invisible = changes == {"first": 0}
    assert (_changed(name, **{field: inner}) > 1e-4) is not invisible


@pytest.mark.parametrize("name", ["qwen2_5_vl", "muse_glimmer"])
def test_windows_are_seen(name: str) -> None:
    def full(layer: object) -> object:
        return dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, window=0))

    layers = canonical(name)[0].layers
    assert {layer.attention.window == 0 for layer in layers} == {True, False}
    assert _changed(name, layers=[full(layer) for layer in layers]) > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_q8_stays_near_the_twin(name: str) -> None:
    """About 0.7% of noise in each of six rounded inputs a layer, and a factor of three."""
    spec, weights = canonical(name)
    exact = reference.encode(spec, weights, patches_of(name), grids(name))[0]
    found = tower(name, "q8").encode(patches_of(name), grids(name)).rows
    error = float(np.sqrt(np.mean((found - exact) ** 2)) / exact.std())
    bound = 3 * 0.007 * (6 * len(spec.layers)) ** 0.5
    assert error < bound, f"relative error {error:.4g}, bound {bound:.4g}"
    cosine = (found * exact).sum(1) / np.sqrt((found**2).sum(1) * (exact**2).sum(1))
    assert cosine.min() > 0.99


@pytest.mark.parametrize("quantize", ["f32", "q8"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "lfm2_vl", "muse_spark"])
def test_alone_in_a_batch_and_on_threads(name: str, quantize: str) -> None:
    several = tower(name, quantize, threads=3)
    alone = tower(name, quantize, threads=1)
    patches, places = patches_of(name), grids(name)
    every = several.encode(patches, places)
    first = first_token = 0
    for grid in places:
        count, tokens = grid[0] * grid[1] * grid[2], several.tokens(grid)
        one = alone.encode(patches[first : first + count], [grid])
        for found, batch in zip([one.rows, *one.taps], [every.rows, *every.taps], strict=True):
            assert_same_bits(found, batch[first_token : first_token + tokens], str(grid))
        first, first_token = first + count, first_token + tokens
    assert first_token == len(every.rows)


@pytest.mark.parametrize("quantize", ["f32", "q8"])
def test_frames_beyond_a_batch_keep_their_bits(quantize: str) -> None:
    """More rows than one batch takes: 70 frames of 80 patches."""
    several = tower("muse_glimmer", quantize, threads=2)
    rng = np.random.default_rng(3)
    patches = rng.standard_normal((70 * 80, several.spec.patch_dim)).astype(np.float32)
    every = several.encode(patches, [(30, 8, 10), (40, 10, 8)]).rows
    for i in range(70):
        grid = (1, 8, 10) if i < 30 else (1, 10, 8)
        alone = several.encode(patches[80 * i : 80 * (i + 1)], [grid]).rows
        assert_same_bits(every[20 * i : 20 * (i + 1)], alone, f"frame {i}")


def test_every_level_gives_the_same_bits() -> None:
    outputs = stdout_by_level("from support.vision_towers import print_digests; print_digests()")
    assert "scalar" in outputs
    assert len(set(outputs.values())) == 1, outputs


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_of_the_checkpoint_is_used_or_named(name: str) -> None:
    case = CASES[name]
    spec, _ = canonical(name)
    shapes = checkpoint_shapes(name)
    found = vision_tensors(case.config, spec, shapes)
    used = {part.name for part in found.sources.values()}
    left = {one for names in found.ignored.values() for one in names}
    assert used | left == set(shapes)
    last = sorted(used)[-1]
    with pytest.raises(CorruptFile, match=r"missing|is needed"):
        vision_tensors(case.config, spec, set(shapes) - {last})
    root = next(iter(sorted(used)))
    with pytest.raises(CorruptFile, match="not a part"):
        vision_tensors(case.config, spec, [*shapes, f"{root}.more"])


def test_older_names_of_checkpoints() -> None:
    """`vision_model.` below the tower, nothing above it, as checkpoints on the hub have it."""
    case = CASES["llava"]
    spec, _ = canonical("llava")
    older = [
        name.replace("vision_tower.", "vision_tower.vision_model.")
        for name in checkpoint_shapes("llava")
    ]
    found = vision_tensors(case.config, spec, older).sources
    assert found["patch"].name.endswith("vision_model.embeddings.patch_embedding.weight")


@pytest.mark.parametrize(
    ("name", "section", "change", "what"),
    [
        ("llava", None, {"vision_feature_layer": [-2, -5]}, "vision_feature_layer"),
        ("llava", None, {"vision_feature_select_strategy": "full"}, "select_strategy"),
        ("llava", "vision_config", {"model_type": "pixtral"}, "model_type"),
        ("gemma3", None, {"mm_tokens_per_image": 25}, "mm_tokens_per_image"),
        ("lfm2_vl", "vision_config", {"num_patches": 35}, "num_patches"),
        ("qwen2_5_vl", "vision_config", {"window_size": 4}, "window_size"),
        ("qwen2_5_vl", "vision_config", {"out_hidden_size": 41}, "out_hidden_size"),
        ("qwen3_vl", "vision_config", {"deepstack_visual_indexes": [2, 0]}, "deepstack"),
        ("qwen3_vl", "vision_config", {"num_heads": 5}, "num_heads"),
        ("muse_glimmer", "vision_config", {"pos_emb_width": 5}, "pos_emb_width"),
        ("muse_glimmer", "vision_config", {"layer_types": ["chunked"] * 5}, "layer_types"),
        ("muse_glimmer", "vision_config", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type"),
        ("muse_spark", None, {"out_hidden_size": 100}, "out_hidden_size"),
        ("idefics3", None, {"scale_factor": 0}, "scale_factor"),
        ("idefics3", None, {"model_type": "blip"}, "model_type"),
    ],
)
def test_configs_that_are_refused(name: str, section: str | None, change: dict, what: str) -> None:
    case = CASES[name]
    config = dict(case.config)
    if section:
        config[section] = config[section] | change
    else:
        config |= change
    with pytest.raises(UnsupportedModel, match=what):
        vision_spec(config, case.width)


def test_specs_the_core_refuses() -> None:
    spec, weights = canonical("muse_glimmer")
    tensors = pack_tower(spec, weights.__getitem__)
    layer = spec.layers[0]
    odd = dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, window=3))
    for changes, what in [
        ({"layers": [*spec.layers[:1], odd, *spec.layers[2:]]}, "window"),
        ({"layers": []}, "layers"),
        ({"class_token": True}, "class token"),
        ({"merge": 0}, "merge"),
        ({"positions": dataclasses.replace(spec.positions, side=0)}, "positions.side"),
        ({"head": dataclasses.replace(spec.head, widths=())}, "widths"),
    ]:
        with pytest.raises(UnsupportedModel, match=what):
            VisionTower(dataclasses.replace(spec, **changes), tensors, threads=1)
    with pytest.raises(CorruptFile, match="patch"):
        VisionTower(spec, {k: v for k, v in tensors.items() if k != "patch"}, threads=1)
    with pytest.raises(CorruptFile, match="is not one of"):
        VisionTower(spec, tensors | {"more": tensors["patch"]}, threads=1)


@pytest.mark.parametrize(
    "grid", [(1, 6, 9), (1, 0, 4), (-1, 2, 2), (1, 2**21, 2), (2**20, 2**20, 2**20)]
)
def test_grids_that_are_refused(grid: tuple[int, int, int]) -> None:
    one = tower("muse_glimmer")
    with pytest.raises(InvalidRequest, match="grid 0"):
        one.encode(np.zeros((4, one.spec.patch_dim), np.float32), [grid])


def test_patches_that_are_refused() -> None:
    one = tower("gemma3")
    good = patches_of("gemma3")
    for patches in (good[:-1], good[:, :-1], good[0]):
        with pytest.raises(InvalidRequest, match="patches"):
            one.encode(patches, grids("gemma3"))
    with pytest.raises(InvalidRequest, match="float32"):
        one.encode(good.astype(np.float64), grids("gemma3"))
    with pytest.raises(InvalidRequest, match="6 x 6"):
        one.encode(good, [(1, 12, 6)])
    assert one.encode(good[:0], []).rows.shape == (0, 40)
    assert_same_bits(
        one.encode(np.asfortranarray(good), grids("gemma3")).rows,
        one.encode(good, grids("gemma3")).rows,
    )


def test_stopping_and_closing() -> None:
    one = tower("idefics3")
    asked = []

    def stopped() -> bool:
        asked.append(1)
        return len(asked) == 2

    with pytest.raises(Cancelled):
        one.encode(patches_of("idefics3"), grids("idefics3"), stopped)
    assert len(asked) == 2
    before = one.encode(patches_of("idefics3"), grids("idefics3")).rows
    assert_same_bits(
        before, tower("idefics3").encode(patches_of("idefics3"), grids("idefics3")).rows
    )
    one.close()
    one.close()
    with pytest.raises(Exception, match="closed"):
        one.encode(patches_of("idefics3"), grids("idefics3"))
