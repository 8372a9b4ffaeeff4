"""Configs of llama, qwen3 and muse_glimmer become the right ModelSpec, or are refused by name.

The golden fixtures come from transformers (tests/golden/make.py); a plain float64 forward over the
spec must reproduce their logits, so every field of the spec is exercised without the core.
"""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest

from musespark.errors import CorruptFile, UnsupportedModel
from musespark.families import family_for, read_config
from musespark.families.spec import (
    AttentionSpec,
    LayerSpec,
    MlpSpec,
    ModelSpec,
    NormSpec,
    RopeSpec,
    spec_from_dict,
    spec_to_file,
)
from musespark.families.tensors import canonical_shapes
from support.model_folder import CASES, Golden, canonical_weights, stored_shapes
from support.plain_forward import covers, forward

# float32 against float64 through up to five layers: measured at most 4e-6 of the range.
CLOSE = 2e-5


def spec_of(name: str) -> ModelSpec:
    return family_for(CASES[name].config).spec(CASES[name].config)


RUNS = [(name, seed) for name, case in CASES.items() for seed in case.seeds]


# The others are compared through musespark.reference, in test_families_engine.py.
PLAIN = [(name, seed) for name, seed in RUNS if covers(spec_of(name))]


@pytest.mark.parametrize(("name", "seed"), PLAIN)
def test_spec_reproduces_transformers(name: str, seed: int) -> None:
    spec, weights = canonical_weights(CASES[name], seed)
    golden = Golden.of(name, seed)
    assert golden.distance(forward(spec, weights, golden.tokens)) < CLOSE


def _change_attention(spec, **changes):
    layers = [
        dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, **changes))
        for layer in spec.layers
    ]
    return dataclasses.replace(spec, layers=layers)


def _planted(spec, error: str):
    if error == "window off by one":
        return _change_attention(spec, window=spec.layers[-2].attention.window + 1)
    if error == "positions everywhere":
        return _change_attention(spec, rope=0)
    if error == "no output gate":
        return _change_attention(spec, output_gate=False)
    if error == "query scale":
        return _change_attention(spec, query_scale=spec.layers[0].attention.query_scale * 1.01)
    if error == "embedding not normed":
        return dataclasses.replace(spec, embed_norm=NormSpec())
    if error == "final norm centred":
        return dataclasses.replace(spec, final_norm=NormSpec("rms_centered", 1e-5))
    assert error == "no soft cap"
    return dataclasses.replace(spec, logit_softcap=0.0)


@pytest.mark.parametrize(
    "error",
    ["window off by one", "positions everywhere", "no output gate", "query scale",
     "embedding not normed", "final norm centred", "no soft cap"],
)  # fmt: skip
def test_the_comparison_sees_planted_errors(error: str) -> None:
    spec, weights = canonical_weights(CASES["muse_defaults"], 11)
    golden = Golden.of("muse_defaults", 11)
    assert golden.distance(forward(_planted(spec, error), weights, golden.tokens)) > 1e-4


@pytest.mark.parametrize("name", CASES)
def test_spec_survives_a_round_trip(name: str) -> None:
    case = CASES[name]
    spec = family_for(case.config).spec(case.config)
    assert spec_from_dict(dataclasses.asdict(spec), "here") == spec
    assert spec_from_dict(json.loads(json.dumps(spec_to_file(spec))), "here") == spec


def test_later_fields_stand_in_files_only_where_they_say_something() -> None:
    rope = RopeSpec(dim=4, scaling="factors", factors=(1.0, 2.5))
    norm = NormSpec("layer", 1e-5, bias=True)
    mlp = MlpSpec(kind="experts", intermediate=8, experts=4, experts_per_token=2, router="sigmoid")
    layer = LayerSpec(AttentionSpec(heads=1, kv_heads=1, head_dim=4, rope=0), mlp, norm)
    spec = ModelSpec(vocab=5, hidden=4, max_context=8, ropes=[rope], layers=[layer])
    values = json.loads(json.dumps(spec_to_file(spec)))
    assert spec_from_dict(values, "here") == spec
    assert values["ropes"][0]["factors"] == [1.0, 2.5]
    assert values["layers"][0]["attn_norm"] == {"kind": "layer", "eps": 1e-5, "bias": True}
    assert values["layers"][0]["mlp_norm"] == {"kind": "none", "eps": 0.0}
    assert "pooling" not in values
    assert "router_scale" not in values["layers"][0]["mlp"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"experts_per_token": 5}, "experts_per_token"),
        ({"experts": 2**17}, "experts"),
        ({"kind": "dense"}, "experts"),
        ({"router": "argmax"}, "router"),
        ({"expert_width": -1}, "expert_width"),
    ],
)
def test_experts_that_make_no_sense_are_corrupt(change: dict, field: str) -> None:
    values = dataclasses.asdict(
        family_for(CASES["muse_defaults"].config).spec(CASES["muse_defaults"].config)
    )
    values["layers"][0]["mlp"] |= {"kind": "experts", "experts": 4, "experts_per_token": 2}
    spec_from_dict(values, "here")
    values["layers"][0]["mlp"] |= change
    with pytest.raises(CorruptFile, match=field):
        spec_from_dict(values, "here")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("vocab",), 0), (("vocab",), "97"), (("vocab",), True), (("hidden",), 2**30),
        (("layers",), []), (("layers", 0, "attention", "kv_heads"), 2),
        (("layers", 0, "attention", "rope"), 5), (("layers", 0, "attention", "window"), -1),
        (("layers", 0, "mlp", "activation"), "tanh"), (("ropes", 0, "dim"), 7),
        (("ropes", 0, "theta"), float("inf")), (("final_norm", "kind"), "rmsnorm"),
        (("embed_scale",), None), (("surplus",), 1),
    ],
)  # fmt: skip
def test_a_spec_that_makes_no_sense_is_corrupt(path: tuple, value: object) -> None:
    case = CASES["muse_defaults"]
    values = dataclasses.asdict(family_for(case.config).spec(case.config))
    at = values
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    with pytest.raises(CorruptFile, match=str(path[-1])):
        spec_from_dict(values, "here")


def _with(name: str, field: str, value: object) -> dict:
    config = copy.deepcopy(CASES[name].config)
    at = config
    *parents, last = field.split(".")
    for parent in parents:
        at = at.setdefault(parent, {})
    at[last] = value
    return config


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("llama_plain", "model_type", "mamba"),
        ("llama_plain", "model_type", None),
        ("llama_plain", "architectures", ["LlamaForSequenceClassification"]),
        ("llama_plain", "hidden_act", "mish"),
        ("llama_plain", "hidden_act", ["silu"]),
        ("llama_plain", "quantization_config", {"quant_method": "awq"}),
        ("llama_plain", "num_key_value_heads", 2),
        ("llama_plain", "num_key_value_heads", 6),
        ("llama_plain", "hidden_size", 60.0),
        ("llama_plain", "hidden_size", True),
        ("llama_plain", "hidden_size", 2**40),
        ("llama_plain", "num_hidden_layers", 10**9),
        ("llama_plain", "head_dim", 13),
        ("llama_plain", "rms_norm_eps", 0),
        ("llama_plain", "rms_norm_eps", float("nan")),
        ("llama_plain", "partial_rotary_factor", 0.5),
        ("llama_plain", "rope_scaling", {"type": "dynamic", "factor": 2.0}),
        ("llama_plain", "rope_scaling", {"rope_type": "longrope", "factor": 2.0}),
        ("llama_plain", "rope_scaling", {"rope_type": "linear"}),
        ("llama_plain", "rope_scaling", {"rope_type": "linear", "factor": "2"}),
        ("llama_plain", "rope_scaling", {"rope_type": "default", "mrope_section": [4, 4, 4]}),
        ("llama_plain", "rope_scaling", [2.0]),
        ("llama_plain", "rope_theta", -1.0),
        ("llama_llama3_biases", "rope_scaling.high_freq_factor", 1.0),
        ("qwen3_layer_types", "sliding_window", None),
        ("qwen3_layer_types", "layer_types", ["full_attention"]),
        ("qwen3_layer_types", "layer_types", ["full_attention", "chunked_attention", "x"]),
        ("qwen3_layer_types", "use_sliding_window", False),
        ("muse_defaults", "text_config.model_type", "muse_spark_text"),
        ("muse_defaults", "text_config.layer_rope_theta", [1.0]),
        ("muse_defaults", "text_config.layer_rope_theta", [1.0, 0, 0, 0, "x"]),
        ("muse_defaults", "text_config.sliding_window", None),
        ("muse_defaults", "text_config.final_logit_softcapping", None),
        ("muse_defaults", "text_config", [1]),
    ],
)
def test_what_is_not_supported_is_named(name: str, field: str, value: object) -> None:
    config = _with(name, field, value)
    named = {"use_sliding_window": "sliding_window"}
    last = field.split(".")[-1]
    with pytest.raises(UnsupportedModel) as raised:
        read_config(config)
    message = str(raised.value)
    expected = named.get(last, last)
    if expected == "rope_scaling" and isinstance(value, dict):
        expected = "rope_scaling."  # names the key inside
    assert expected in message
    if not isinstance(value, dict | list) and expected == last:
        assert repr(value) in message


def test_missing_keys_take_the_class_defaults() -> None:
    """Numbers of LlamaConfig(), Qwen3Config() and MuseGlimmerTextConfig() in transformers 5.23."""
    llama = family_for({"model_type": "llama"}).spec({"model_type": "llama"})
    assert (llama.vocab, llama.hidden, len(llama.layers)) == (32000, 4096, 32)
    assert llama.layers[0].attention.head_dim == 128 and llama.layers[0].mlp.intermediate == 11008
    assert (llama.max_context, llama.final_norm.eps) == (2048, 1e-6) and not llama.tied_head
    qwen = family_for({"model_type": "qwen3"}).spec({"model_type": "qwen3"})
    assert (qwen.vocab, qwen.layers[0].attention.kv_heads, qwen.max_context) == (151936, 32, 32768)
    assert qwen.layers[31].attention.window == 0 and qwen.layers[0].mlp.intermediate == 22016
    muse = family_for({"model_type": "muse_glimmer"}).spec({"model_type": "muse_glimmer"})
    assert (muse.vocab, muse.hidden, len(muse.layers)) == (202048, 6656, 52)
    windows = [layer.attention.window for layer in muse.layers]
    ropes = [layer.attention.rope for layer in muse.layers]
    assert windows[48:] == [2048, 2048, 2048, 0] and ropes[48:] == [0, 0, 0, -1]
    assert muse.layers[0].attention.query_scale == pytest.approx(3.87 / 128**0.5)
    assert (muse.logit_softcap, muse.max_context) == (20.0, 131072)


def test_rope_theta_of_a_layer_is_a_switch_and_a_note() -> None:
    """transformers 5.23 rotates with rope_parameters.rope_theta whatever layer_rope_theta says."""
    config = _with("muse_defaults", "text_config.layer_rope_theta", [5.0, 5.0, 0, 5.0, 0])
    family = family_for(config)
    spec = family.spec(config)
    assert [layer.attention.rope for layer in spec.layers] == [0, 0, -1, 0, -1]
    assert spec.ropes[0].theta == 10000.0
    (note,) = family.notes(config)
    assert "layer_rope_theta" in note and "10000" in note


@pytest.mark.lab
def test_fixtures_are_what_make_py_writes() -> None:
    """One case again from transformers, so that the script and the fixtures stay together."""
    pytest.importorskip("torch", reason="torch and transformers make the golden fixtures")
    pytest.importorskip("transformers")
    import make

    case = CASES["muse_tied_biases"]
    shapes = make.checkpoint_tensors(case)
    assert {name: tuple(shape) for name, shape in shapes.items()} == stored_shapes(case)
    tokens, logits = make.run_case(case, 12, shapes)
    golden = Golden.of(case.name, 12)
    assert tokens.tolist() == golden.tokens.tolist()
    assert golden.distance(logits) < 1e-6


class TestTensorNames:
    def names(self, name: str) -> tuple:
        case = CASES[name]
        family = family_for(case.config)
        spec = family.spec(case.config)
        return family, spec, list(stored_shapes(case))

    def test_every_tensor_finds_its_source(self) -> None:
        """Every number that transformers saves is used once, in the shape it is asked for."""
        for name, case in CASES.items():
            family, spec, names = self.names(name)
            mapping, shapes = family.tensors(spec, names), stored_shapes(case)
            for reason in mapping.ignored:
                assert reason.startswith(("vision tower:", "audio tower:"))
            ignored = {n for found in mapping.ignored.values() for n in found}
            marks = {n: np.zeros(shape, np.int8) for n, shape in shapes.items()}
            for canonical, shape in canonical_shapes(spec).items():
                part = mapping.sources[canonical]
                assert part.stored == shapes[part.name], canonical
                view = part.of(marks[part.name])
                assert view.shape == shape, canonical
                view += 1
            for stored, mark in marks.items():
                assert (mark == (stored not in ignored)).all(), stored
            assert mapping.spare_head is None

    def test_missing_and_left_over_are_named(self) -> None:
        family, spec, names = self.names("llama_llama3_biases")
        with pytest.raises(CorruptFile, match=r"q_proj\.bias"):
            family.tensors(spec, [n for n in names if n != "model.layers.1.self_attn.q_proj.bias"])
        with pytest.raises(CorruptFile, match=r"model\.layers\.2\.mlp\.up_proj"):
            family.tensors(spec, [*names, "model.layers.2.mlp.up_proj.weight"])

    def test_vision_tensors_are_ignored_knowingly(self) -> None:
        family, spec, names = self.names("muse_defaults")
        vision = [n for n in names if "vision" in n]
        assert len(vision) > 5
        assert family.tensors(spec, names).ignored == {"vision tower: left out": sorted(vision)}
        with pytest.raises(CorruptFile, match="audio"):
            family.tensors(spec, [*names, "model.audio_tower.weight"])

    def test_old_rotary_tables_are_ignored(self) -> None:
        family, spec, names = self.names("llama_plain")
        table = "model.layers.0.self_attn.rotary_emb.inv_freq"
        assert [table] in family.tensors(spec, [*names, table]).ignored.values()

    def test_a_tied_matrix_may_stand_under_either_name(self) -> None:
        family, spec, names = self.names("llama_plain")
        both = family.tensors(spec, [*names, "lm_head.weight"])
        assert both.sources["embed"].name == "model.embed_tokens.weight"
        assert both.spare_head == "lm_head.weight"
        swapped = ["lm_head.weight" if n == "model.embed_tokens.weight" else n for n in names]
        assert family.tensors(spec, swapped).sources["embed"].name == "lm_head.weight"
