"""Block drafters: the reference and the core against transformers, and what the core refuses."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import numpy as np
import pytest

from musespark import _core
from musespark.errors import CorruptFile, InvalidRequest, UnsupportedModel
from musespark.families import read_config
from musespark.families.spec import ModelSpec, NormSpec, spec_from_dict, spec_to_file
from musespark.reference import drafter as reference
from musespark.reference import forward
from support import tiny_models
from support.model_folder import GOLDEN
from support.run_engine import pack_weights

sys.path.insert(0, str(GOLDEN))
from drafter_cases import CASES, GROWS, SEEDS, embeds, states, weight

RUNS = [(name, seed) for name in CASES for seed in SEEDS]
# float64 against transformers' float32: measured 3e-6 at most, of rows whose values are about 1.
CLOSE = 1e-5


def golden(name: str, seed: int) -> np.ndarray:
    """float32 [passes, block, hidden]."""
    with np.load(GOLDEN / "drafter.npz") as stored:
        return stored[f"rows_{name}_{seed}"]


def drafter_of(name: str, seed: int) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """Spec and weights by canonical names."""
    with np.load(GOLDEN / "drafter.npz") as stored:
        shapes = json.loads(stored[f"tensors_{name}"].tobytes())
    family, spec, notes = read_config(CASES[name])
    assert not [note for note in notes if "does not read" in note]
    sources = family.tensors(spec, shapes).sources
    weights = {
        canonical: weight(seed, part.name, tuple(shapes[part.name]))
        for canonical, part in sources.items()
    }
    return spec, weights


def target_of(spec: ModelSpec, vocab: int, **more: Any) -> ModelSpec:
    """A model that `spec` drafts for, as far as a drafter looks at it."""
    layers = tiny_models.llama().layers * (max(spec.target_layers) + 2)
    made = dataclasses.replace(tiny_models.llama(), layers=layers, vocab=vocab, hidden=spec.hidden)
    return dataclasses.replace(made, **more)


def core_of(
    spec: ModelSpec, weights: dict[str, np.ndarray], table: np.ndarray, **more: Any
) -> _core.testing.Drafter:
    """The core's drafter for a target that embeds with `table` [2, hidden]: the mask is id 0, and
    whose head is the identity, so that logits are the rows the head reads."""
    spec = dataclasses.replace(spec, mask_token=0)
    target = target_of(spec, spec.hidden)
    embedding = np.zeros((spec.hidden, spec.hidden), np.float32)
    embedding[: len(table)] = table
    ends = {"embed": embedding, "head": np.eye(spec.hidden, dtype=np.float32)}
    return _core.testing.Drafter(
        dataclasses.asdict(spec),
        pack_weights(weights),
        dataclasses.asdict(target),
        pack_weights(ends),
        **more,
    )


@pytest.mark.parametrize(("name", "seed"), RUNS)
def test_the_reference_is_transformers(name: str, seed: int) -> None:
    spec, weights = drafter_of(name, seed)
    exact = {key: value.astype(np.float64) for key, value in weights.items()}
    known, end = states(seed, CASES[name]), 0
    for turn, count in enumerate(GROWS):
        end += count
        rows = embeds(seed, CASES[name], turn)
        found = reference.draft_rows(spec, exact, rows.astype(np.float64), known[:end])
        assert np.abs(found - golden(name, seed)[turn]).max() < CLOSE


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("name", "seed"), RUNS)
def test_the_core_is_transformers(name: str, seed: int, threads: int) -> None:
    spec, weights = drafter_of(name, seed)
    known, at, wanted = states(seed, CASES[name]), 0, golden(name, seed)
    masks = embeds(seed, CASES[name], 0)[1]
    lasts = [embeds(seed, CASES[name], turn)[0] for turn in range(len(GROWS))]
    core = core_of(spec, weights, np.stack([masks, *lasts]), threads=threads)
    for turn, count in enumerate(GROWS):
        core.extend(known[at : at + count])
        at += count
        found = core.draft(turn + 1, spec.block - 1)
        assert core.length == at, "a block stayed in the context"
        assert np.abs(found - wanted[turn, 1:]).max() < CLOSE


def _planted(spec: ModelSpec, error: str) -> ModelSpec:
    layer = spec.layers[0]
    if error == "window":
        attention = dataclasses.replace(layer.attention, window=layer.attention.window - 1)
        layers = [dataclasses.replace(layer, attention=attention)] * 2
        return dataclasses.replace(spec, layers=layers)
    if error == "theta":
        return dataclasses.replace(
            spec, ropes=[dataclasses.replace(spec.ropes[0], theta=spec.ropes[0].theta * 1.05)]
        )
    changed = {"context norm": "context_norm", "final norm": "final_norm"}[error]
    return dataclasses.replace(
        spec, **{changed: dataclasses.replace(spec.final_norm, kind="rms_centered")}
    )


@pytest.mark.parametrize("error", ["window", "theta", "context norm", "final norm"])
def test_the_comparison_sees_planted_errors(error: str) -> None:
    spec, weights = drafter_of("window", 11)
    known, rows = states(11, CASES["window"]), embeds(11, CASES["window"], 0)
    found = reference.draft_rows(_planted(spec, error), weights, rows, known[: GROWS[0]])
    assert np.abs(found - golden("window", 11)[0]).max() > 100 * CLOSE


@pytest.mark.parametrize("recipe", ["q8", "mixed"])
def test_packed_weights_are_the_numbers_they_stand_for(recipe: str) -> None:
    """Activations are 8 bits then: a hundredth of the rows' size, with room for two layers."""
    spec, weights = drafter_of("window", 12)
    packed = tiny_models.pack(weights, recipe)
    spec = dataclasses.replace(spec, mask_token=0)
    target = target_of(spec, spec.hidden)
    rows = embeds(12, CASES["window"], 0)
    table = np.zeros((spec.hidden, spec.hidden), np.float32)
    table[:2] = rows[1], rows[0]
    ends = pack_weights({"embed": table, "head": np.eye(spec.hidden, dtype=np.float32)})
    plain = [dataclasses.asdict(one) for one in (spec, target)]
    core = _core.testing.Drafter(plain[0], packed, plain[1], ends)
    known = states(12, CASES["window"])[:90]
    core.extend(known)
    wanted = reference.draft_rows(spec, tiny_models.unpack(packed), rows, known)[1:]
    error = np.abs(core.draft(1, spec.block - 1) - wanted)
    assert error.mean() < 0.03 < np.abs(wanted).mean() / 10, error.mean()


def test_a_context_that_begins_later_stands_where_it_is() -> None:
    """Rotary positions are the text's, whatever is not known of it."""
    spec, weights = drafter_of("mixed", 11)
    known, rows = states(11, CASES["mixed"])[:40], embeds(11, CASES["mixed"], 0)
    core = core_of(spec, weights, rows[[1, 0]], first=1000)
    core.extend(known)
    wanted = reference.draft_rows(spec, weights, rows.astype(np.float64), known, first=1000)
    assert np.abs(core.draft(1, spec.block - 1) - wanted[1:]).max() < CLOSE


def test_a_window_keeps_no_more_pages_than_it_sees() -> None:
    spec, weights = drafter_of("window", 11)
    known = np.tile(states(11, CASES["window"]), (10, 1))
    core = core_of(spec, weights, np.ones((2, spec.hidden), np.float32))
    core.extend(known[:130])
    few = core.bytes
    for at in range(130, len(known), 100):
        core.extend(known[at : at + 100])
    assert core.length == len(known) and 0 < core.bytes <= few


def test_an_interrupted_pass_leaves_nothing() -> None:
    spec, weights = drafter_of("window", 11)
    core = core_of(spec, weights, embeds(11, CASES["window"], 0)[[1, 0]])
    core.extend(states(11, CASES["window"])[:30])
    before = core.draft(1, 3)
    assert core.draft(1, 3, interrupt_at=1) is None and core.length == 30
    assert np.array_equal(core.draft(1, 3), before)
    assert np.array_equal(core.draft(1, 7)[:3], before), "fewer rows of the head, the same pass"


def test_what_does_not_go_with_the_model_is_refused_with_both_values() -> None:
    spec, weights = drafter_of("window", 11)
    table = np.zeros((64, 48), np.float32)
    ends = pack_weights({"embed": table, "head": table})
    tensors, target = pack_weights(weights), target_of(spec, 64)

    def made(spec: ModelSpec, target: ModelSpec) -> None:
        plain = [dataclasses.asdict(one) for one in (spec, target)]
        _core.testing.Drafter(plain[0], tensors, plain[1], ends)

    made(spec, target)
    with pytest.raises(InvalidRequest, match="drafter: hidden is 48, the model's is 40"):
        made(spec, dataclasses.replace(target, hidden=40))
    with pytest.raises(InvalidRequest, match="mask_token is 64, the model's vocabulary has 64"):
        made(dataclasses.replace(spec, mask_token=64), target)
    with pytest.raises(InvalidRequest, match=r"target_layers has 3; .* is 2, .* 4 layers"):
        made(spec, dataclasses.replace(target, layers=target.layers[:4]))
    with pytest.raises(UnsupportedModel, match="a drafter is needed"):
        made(target, target)
    with pytest.raises(CorruptFile, match="context"):
        _core.testing.Drafter(
            dataclasses.asdict(spec),
            {name: one for name, one in tensors.items() if name != "context"},
            dataclasses.asdict(target),
            ends,
        )
    core = core_of(spec, weights, np.ones((2, spec.hidden), np.float32))
    for count in (0, spec.block):
        with pytest.raises(InvalidRequest, match=f"got {count} tokens, allowed is 1 to 7"):
            core.draft(1, count)
    with pytest.raises(InvalidRequest, match="got 513 rows, allowed is 1 to 512"):
        core.extend(np.zeros((513, 144), np.float32))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"block_size": 1}, "block_size"),
        ({"block_size": 65}, "block_size"),
        ({"sliding_window": 7}, "sliding_window"),
        ({"target_layer_ids": []}, "target_layer_ids"),
        ({"target_layer_ids": [1, -1]}, "target_layer_ids"),
        ({"mask_token_id": -1}, "mask_token_id"),
        ({"architectures": ["LlamaForCausalLM"]}, "architectures"),
        ({"attention_bias": True}, "attention_bias"),
    ],
)
def test_configs_that_are_refused(change: dict, named: str) -> None:
    with pytest.raises(UnsupportedModel, match=named):
        read_config(CASES["window"] | change)


def test_the_spec_survives_a_file() -> None:
    spec, _ = drafter_of("window", 11)
    assert spec_from_dict(json.loads(json.dumps(spec_to_file(spec))), "here") == spec
    for change in ({"block": 1}, {"block": 0}, {"target_layers": [5000]}, {"target_layers": []}):
        with pytest.raises(CorruptFile, match=r"block|target_layers"):
            spec_from_dict(spec_to_file(spec) | change, "here")


@pytest.mark.parametrize("name", ["muse", "everything", "experts"])
def test_steps_log_what_layers_give(name: str) -> None:
    """The oracle is the model cut off after the layer, its head the identity."""
    spec = tiny_models.SPECS[name]()
    weights = tiny_models.random_weights(spec)
    tokens = tiny_models.random_tokens(spec, 90)
    runner = tiny_models.Runner(spec, pack_weights(weights))
    sequence, other = runner.sequence(), runner.sequence()
    layers = [1, 0]
    first = runner.model.forward(
        [(sequence, tokens[:50].tolist(), "none"), (other, tokens[:7].tolist(), "last")],
        states=[(layers, 20), ([0], 0)],
    )[1]
    sequence.accept(50)
    later = runner.model.forward([(sequence, tokens[50:].tolist(), "all")], states=[(layers, 0)])[1]
    found = np.concatenate([first[0], later[0]]).reshape(70, 2, spec.hidden)
    for at, layer in enumerate(layers):
        cut = dataclasses.replace(
            spec,
            layers=spec.layers[: layer + 1],
            final_norm=NormSpec(),
            tied_head=False,
            logit_scale=1.0,
            logit_softcap=0.0,
        )
        wanted = forward.logits(cut, weights | {"head": np.eye(spec.hidden)}, tokens)
        assert np.abs(found[:, at] - wanted[20:]).max() < 1e-3 < np.abs(wanted).mean()
        if layer == 0:
            assert np.abs(first[1].reshape(7, -1) - wanted[:7]).max() < 1e-3
