"""What the configs of part 2's families may say: read, refused by name, or named in a note."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest

from musespark.errors import UnsupportedModel
from musespark.families import (
    FAMILIES,
    MODULES,
    bert,
    muse_glimmer_assistant,
    read_config,
    support,
)
from musespark.families.lacking import GGUF_LACKING, LACKING
from musespark.families.rope import rope_from_config
from support.model_folder import CASES, stored_shapes

OF_FAMILY = {case.family: name for name, case in CASES.items()}


def _with(name: str, field: str, value: object) -> dict:
    config = copy.deepcopy(CASES[name].config)
    at = config
    *parents, last = field.split(".")
    for parent in parents:
        at = at.setdefault(parent, {})
    at[last] = value
    return config


def test_the_table_in_the_guide_is_what_is_registered(repository: Path) -> None:
    """If not: ``python -m musespark.families.support python/musespark/docs/models.md``."""
    guide = (repository / "python/musespark/docs/models.md").read_text(encoding="utf-8")
    assert support.with_table(guide) == guide
    for model_type in FAMILIES:
        assert f"`{model_type}`" in support.support_table()


def test_every_family_has_three_cases() -> None:
    # Those of an encoder are in test_encoder.py, of a drafter in test_drafter.py.
    counts = {family.name: 0 for family in MODULES if family not in (bert, muse_glimmer_assistant)}
    for case in CASES.values():
        counts[case.family] += 1
    assert min(counts.values()) >= 3, counts


@pytest.mark.parametrize("name", CASES)
def test_no_key_of_a_known_config_goes_unread(name: str) -> None:
    _, _, notes = read_config(CASES[name].config)
    assert not [note for note in notes if "does not read" in note]


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("mistral_window", "sliding_window", 0),
        ("mistral_window", "layer_types", ["full_attention"] * 3),
        ("mistral_window", "quantization_config", {"quant_method": "fp8"}),
        ("qwen2_full", "attention_bias", False),
        ("qwen2_full", "rope_scaling", {"type": "default", "mrope_section": [2, 2, 2]}),
        ("gemma2_defaults", "use_bidirectional_attention", True),
        ("gemma2_defaults", "query_pre_attn_scalar", 0),
        ("gemma2_defaults", "hidden_activation", None),
        ("gemma2_defaults", "attn_logit_softcapping", -1.0),
        ("gemma3_old_keys", "attn_logit_softcapping", 50.0),
        ("gemma3_old_keys", "use_bidirectional_attention", True),
        ("gemma3_old_keys", "rope_parameters", {"rope_theta": 1e6}),
        ("gemma3_old_keys", "sliding_window", None),
        ("gemma3_vision", "text_config.model_type", "gemma3n_text"),
        ("gemma3_vision", "text_config.final_logit_softcapping", 30.0),
        ("phi3_window", "rope_scaling", {"type": "linear", "factor": 2.0}),
        ("phi3_window", "partial_rotary_factor", 1.5),
        ("phi3_window", "lm_head_bias", True),
        ("phi3_window", "attention_bias", True),
        ("phi3_longrope", "rope_scaling.long_factor", [1.0] * 3),
        ("phi3_longrope", "rope_scaling.long_factor", None),
        ("phi3_longrope", "rope_scaling.short_factor", [1.0, 1.0, 0.0, 1.0]),
        ("smollm3_defaults", "no_rope_layers", [1, 1, 1, 2, 1]),
        ("smollm3_defaults", "no_rope_layers", [1]),
        ("smollm3_windows", "sliding_window", -4),
        ("olmo2_plain", "clip_qkv", 8.0),
        ("olmo2_plain", "sliding_window", 4096),
        ("qwen3_moe_plain", "num_experts_per_tok", 8),
        ("qwen3_moe_plain", "num_experts", 10**6),
        ("qwen3_moe_plain", "mlp_only_layers", "0"),
        ("qwen3_moe_plain", "mlp_only_layers", [0] * 10_000),
        ("qwen3_moe_plain", "mlp_only_layers", [-1]),
        ("qwen3_moe_plain", "mlp_only_layers", [10**9]),
        ("qwen3_moe_plain", "layer_types", ["full_attention"] * 3),
        ("gpt_oss_defaults", "hidden_act", "gelu"),
        ("gpt_oss_defaults", "experts_per_token", 3),
        ("gpt_oss_defaults", "swiglu_limit", 0.0),
        ("gpt_oss_defaults", "quantization_config", {"quant_method": "gptq"}),
        ("spark_defaults", "text_config.mlp_layer_types", ["sparse"]),
        ("spark_defaults", "text_config.mlp_layer_types", ["sparse"] * 4 + ["hash"]),
        ("spark_defaults", "text_config.num_experts_per_tok", 0),
        ("spark_defaults", "text_config.model_type", "muse_glimmer_text"),
        ("granite_multipliers", "logits_scaling", 0.0),
        ("mistral3_tied", "text_config", None),
        ("mistral3_tied", "text_config.model_type", "ministral3"),
        ("mistral3_tied", "text_config.partial_rotary_factor", 0.5),
        ("llama_plain", "attn_logit_softcapping", 50.0),
        ("llama_plain", "query_pre_attn_scalar", 100),
        ("qwen3_full", "num_experts", 8),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_named(name: str, field: str, value: object) -> None:
    with pytest.raises(UnsupportedModel) as raised:
        read_config(_with(name, field, value))
    message = str(raised.value)
    assert field.split(".")[-1] in message
    if not isinstance(value, dict | list):
        assert repr(value) in message


def test_experts_are_counted_over_all_layers() -> None:
    """Each count is within its limit; the names of all experts would take 1.5 GB."""
    config = CASES["qwen3_moe_plain"].config | {"num_hidden_layers": 1024, "num_experts": 4096}
    with pytest.raises(UnsupportedModel, match="4194304 experts together, at most 65536"):
        read_config(config)


ODD = (None, True, 0, 1, -1, 2, 3, 2**31, 2**70, 0.0, 0.5, 1.0, -2.5, 1e-300, 1e300, float("nan"),
       float("inf"), "", "x", [], [0], [None] * 3, {}, {"x": 1}, {"rope_type": []})  # fmt: skip


def _paths(values: object, at: tuple = ()) -> list[tuple]:
    if not isinstance(values, dict):
        return []
    here = [(*at, key) for key in values]
    return here + [path for key, one in values.items() for path in _paths(one, (*at, key))]


@pytest.mark.parametrize(
    "name", sorted({*OF_FAMILY.values(), "phi3_longrope", "gpt_oss_old_keys", "gemma3_old_keys"})
)
def test_odd_values_are_refused_or_read(name: str) -> None:
    """Every key of a config with each odd value: a spec that holds together, or a refusal."""
    refused = tried = 0
    for path in _paths(CASES[name].config):
        for value in ODD:
            config = copy.deepcopy(CASES[name].config)
            at = config
            for step in path[:-1]:
                at = at[step]
            at[path[-1]] = value
            tried += 1
            try:
                spec = read_config(config)[1]
            except UnsupportedModel:
                refused += 1
            else:
                assert len(spec.layers) <= 1024
    assert 0.2 * tried < refused < tried


@pytest.mark.parametrize("family", sorted(OF_FAMILY))
def test_keys_that_mean_nothing_here_are_let_by(family: str) -> None:
    name = OF_FAMILY[family]
    config = CASES[name].config | {
        "torch_dtype": "bfloat16",
        "use_cache": None,
        "logit_scale": None,
        "alibi": False,
        "residual_multiplier": 1.0,
        "bos_token_id": 1,
    }
    assert read_config(config)[1] == read_config(CASES[name].config)[1]


@pytest.mark.parametrize("where", ["", "text_config."])
def test_a_key_that_nothing_reads_is_named_in_a_note(where: str) -> None:
    name = "spark_defaults" if where else "olmo2_plain"
    _, _, notes = read_config(_with(name, f"{where}my_own_key", 3))
    assert f"config.{where}my_own_key" in notes[-1]


@pytest.mark.parametrize(
    ("root", "head"),
    [
        ("model.language_model", "lm_head.weight"),
        ("language_model.model", "language_model.lm_head.weight"),
        ("language_model.model", "lm_head.weight"),
        ("model", "lm_head.weight"),
    ],
)
def test_a_text_tower_may_stand_under_several_roots(root: str, head: str) -> None:
    """As checkpoints of different years store models that see."""
    case = CASES["mistral3_untied"]
    family, spec, _ = read_config(case.config)
    stored = "language_model.model."
    names = [n for n in stored_shapes(case) if n.startswith(stored)]
    assert len(names) > 20
    renamed = [n.replace(stored, f"{root}.") for n in names]
    tower = ["vision_tower.ln_pre.weight", "multi_modal_projector.norm.weight"]
    mapping = family.tensors(spec, [*renamed, head, *tower])
    assert mapping.sources["head"].name == head
    assert mapping.sources["layers.1.q"].name == f"{root}.layers.1.self_attn.q_proj.weight"
    assert mapping.ignored == {"vision tower: left out": sorted(tower)}


def test_null_is_what_the_class_says_it_is() -> None:
    base = CASES["mistral_window"].config
    assert read_config(base | {"sliding_window": None})[1].layers[0].attention.window == 0
    assert read_config(base | {"num_key_value_heads": None})[1].layers[0].attention.kv_heads == 8
    assert read_config(base | {"head_dim": None})[1].layers[0].attention.head_dim == 8
    gemma = CASES["gemma2_caps"].config | {"final_logit_softcapping": None}
    assert read_config(gemma)[1].logit_softcap == 0


# Configs with the keys of published models; big numbers where they matter for what is read.
_YARN_GPT_OSS = {
    "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
    "rope_type": "yarn", "truncate": False,
}  # fmt: skip
PUBLISHED: dict[str, dict] = {
    "smollm3": {
        "architectures": ["SmolLM3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": None, "max_position_embeddings": 65536, "max_window_layers": 28,
        "mlp_bias": False, "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 9,
        "pretraining_tp": 2, "rope_scaling": None, "rope_theta": 5000000.0, "sliding_window": None,
        "torch_dtype": "bfloat16", "use_cache": False, "use_sliding_window": False,
    },
    "gpt_oss": {
        "architectures": ["GptOssForCausalLM"], "experts_per_token": 4, "num_hidden_layers": 24,
        "initial_context_length": 4096, "num_experts_per_tok": 4, "num_local_experts": 32,
        "layer_types": ["sliding_attention", "full_attention"] * 12, "rope_theta": 150000,
        "output_router_logits": False, "router_aux_loss_coef": 0.9, "rope_scaling": _YARN_GPT_OSS,
        "swiglu_limit": 7.0, "sliding_window": 128, "tie_word_embeddings": False,
    },
    "gemma3": {
        "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999,
        "eoi_token_index": 256000, "eos_token_id": [1, 106], "image_token_index": 262144,
        "initializer_range": 0.02, "mm_tokens_per_image": 256, "vision_config": {"hidden_size": 1},
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
            "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
    },
    "phi3": {
        "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "auto_map": {"x": "y"},
        "embd_pdrop": 0.0, "full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False,
        "max_position_embeddings": 131072, "mlp_bias": False, "num_key_value_heads": 8,
        "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75,
        "num_attention_heads": 24, "resid_pdrop": 0.0, "rope_theta": 10000.0,
        "sliding_window": 262144,
        "tie_word_embeddings": True,
        "rope_scaling": {
            "long_factor": [2.0] * 48, "short_factor": [1.0] * 48, "type": "longrope",
        },
    },
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "decoder_sparse_step": 1,
        "head_dim": 128, "max_window_layers": 48, "mlp_only_layers": [], "norm_topk_prob": True,
        "num_experts": 128, "num_experts_per_tok": 8, "rope_scaling": None, "rope_theta": 1000000.0,
        "sliding_window": None, "use_sliding_window": False,
    },
    "llama": {
        "architectures": ["LlamaForCausalLM"], "is_llama_config": True, "rope_interleaved": False,
        "pretraining_tp": 2, "rope_scaling": None, "transformers.js_config": {"dtype": "q4"},
    },
}  # fmt: skip


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_published_configs_are_read_whole(model_type: str) -> None:
    _, spec, notes = read_config({"model_type": model_type} | PUBLISHED[model_type])
    assert notes == []
    if model_type == "phi3":
        assert spec.ropes[0].dim == 96 and spec.layers[0].attention.head_dim == 128


def test_a_factor_that_transformers_does_not_read_is_told() -> None:
    """As the distilled Qwen3 8B of May 2025 has it: engines differ in whether they multiply it."""
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    config = {"model_type": "qwen3", "rope_scaling": scaling | {"attn_factor": 0.8782488562869419}}
    _, spec, notes = read_config(config)
    assert spec.ropes[0].attention_factor == pytest.approx(0.1 * math.log(4) + 1)
    assert notes == ["config keys that this version does not read: config.rope_scaling.attn_factor"]


def test_yarn_beside_the_trained_length_stretches_the_context() -> None:
    """As Qwen's model cards add it: max_position_embeddings stays what it was."""
    config = CASES["qwen2_yarn"].config
    assert config["max_position_embeddings"] == 64
    assert read_config(config)[1].max_context == 256
    assert read_config(config | {"max_position_embeddings": 512})[1].max_context == 512


def test_longrope_says_both_sets_and_the_attention_factor() -> None:
    rope = read_config(CASES["phi3_longrope"].config)[1].ropes[0]
    assert (rope.scaling, rope.original_context, len(rope.factors)) == ("factors", 64, 4)
    assert rope.factors[-1] == 6.0 and rope.short_factors[-1] == 1.6
    assert rope.attention_factor == pytest.approx(math.sqrt(1 + math.log(5) / math.log(64)))


def test_what_transformers_drops_of_a_kind_of_layers_is_refused() -> None:
    for scaling, field in (
        ({"type": "linear", "factor": 8.0}, "rope_scaling.type is 'linear'"),
        (YARN | {"truncate": False}, "rope_scaling.truncate is False"),
    ):
        for model_type in ("gemma3_text", "olmo3"):
            with pytest.raises(UnsupportedModel, match=f"config.{field}: .*transformers"):
                read_config({"model_type": model_type, "rope_scaling": scaling})
    nested = {"rope_parameters": {"full_attention": {"type": "linear", "factor": 8.0}}}
    assert read_config({"model_type": "olmo3"} | nested)[1].ropes[1].scaling == "linear"


YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize("model_type", ["gemma3_text", "olmo3"])
@pytest.mark.parametrize(
    "keys", [{"rope_scaling": YARN}, {"rope_parameters": {"full_attention": YARN}}]
)
def test_scaling_of_one_kind_of_layers_looks_at_nothing_else(model_type: str, keys: dict) -> None:
    """What stands beside it, transformers 5.23 reads only where all layers rotate the same way."""
    base = {"model_type": model_type, "max_position_embeddings": 4096}
    config = base | keys | {"original_max_position_embeddings": 1024}
    _, spec, notes = read_config(config)
    assert spec.ropes[1].original_context == 4096
    assert notes[-1].endswith("does not read: config.original_max_position_embeddings")
    inside = YARN | {"original_max_position_embeddings": 2048}
    _, spec, notes = read_config(base | {"rope_parameters": {"full_attention": inside}})
    assert spec.ropes[1].original_context == 2048 and not notes


def test_the_pattern_of_gemma3_has_no_underscore() -> None:
    """Gemma3TextConfig writes ``_sliding_window_pattern``, but reads the key without it."""
    base = {"model_type": "gemma3_text", "num_hidden_layers": 12}
    key = "sliding_window_pattern"
    for keys, every in (({}, 6), ({f"_{key}": 3}, 6), ({key: 3}, 3)):
        _, spec, notes = read_config(base | keys)
        full = [i for i, layer in enumerate(spec.layers) if not layer.attention.window]
        assert full == list(range(every - 1, 12, every)) and not notes


def test_yarn_between_dimensions_is_yarn_where_the_ends_are_whole() -> None:
    """With a ramp from 2 to 5 exactly both ways of saying it give the same frequencies."""
    from musespark.families.fields import Fields
    from musespark.reference.forward import inverse_frequencies

    theta, dim, context = 10000.0, 16, 512
    turns = {at: context / (2 * math.pi * theta ** (2 * at / dim)) for at in (2, 5)}
    said = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": context}
    # A hair inside, so that rounding down and up gives these very dimensions.
    said |= {"beta_fast": turns[2] * (1 - 1e-9), "beta_slow": turns[5] * (1 + 1e-9)}
    whole, between = (
        rope_from_config(Fields({"rope_scaling": said | {"truncate": truncate}}), dim, 4096)
        for truncate in (True, False)
    )
    assert (whole.scaling, between.scaling) == ("yarn", "factors")
    assert inverse_frequencies(between) == pytest.approx(inverse_frequencies(whole), rel=1e-6)


@pytest.mark.parametrize("model_type", sorted(LACKING))
def test_a_family_we_lack_says_what_it_needs(model_type: str) -> None:
    assert model_type not in FAMILIES
    with pytest.raises(UnsupportedModel) as raised:
        read_config({"model_type": model_type})
    message = str(raised.value)
    assert repr(model_type) in message and message.endswith("not part of this version")


def test_gguf_names_of_what_we_lack_are_known() -> None:
    assert set(GGUF_LACKING.values()) <= set(LACKING)


@pytest.mark.lab
@pytest.mark.parametrize("model_type", sorted(FAMILIES))
def test_every_key_of_the_transformers_class_is_known(model_type: str) -> None:
    """What the class writes by default is read, refused or known to be without effect."""
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(model_type).to_dict()
    _, _, notes = read_config(config)
    assert not [note for note in notes if "does not read" in note], notes
