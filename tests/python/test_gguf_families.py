"""Every family that llama.cpp writes, from a GGUF file, against transformers' golden logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from musespark import _core
from musespark.errors import CorruptFile, UnsupportedModel
from musespark.families import read_config
from musespark.families.gguf import read_gguf
from musespark.families.gguf_names import ARCHITECTURES, NEUTRAL
from musespark.weights import open_model
from musespark.weights.gguf_source import open_gguf
from support.model_folder import CASES, Case, Golden, canonical_weights, checkpoint_weights
from support.run_engine import engine, greedy, logits

gguf = pytest.importorskip("gguf")
from support.gguf_families import write_family  # noqa: E402
from support.gguf_models import plain, quantized  # noqa: E402

# Cases whose config a GGUF file can say whole: llama.cpp has fixed numbers where there is no key.
NAMES = [
    "mistral_window", "mistral_head_dim", "mixtral_plain", "mixtral_head_dim", "qwen2_full",
    "qwen2_yarn", "qwen2_moe_plain", "qwen3_full", "qwen3_moe_renormalized", "gpt_oss_defaults",
    "gemma_defaults", "gemma_legacy", "gemma2_head_scale", "gemma3_old_keys", "phi3_window",
    "phi3_partial", "phi3_longrope", "phi3_longrope_partial", "smollm3_defaults", "olmo2_plain",
    "olmo2_grouped", "olmo3_yarn", "granite_multipliers", "granite_biases", "muse_defaults",
    "mistral3_untied", "glm4_defaults", "glm4_share", "granitemoe_biases",
    "granitemoe_multipliers", "starcoder2_defaults", "qwen2_vl_flat", "qwen3_vl_tied",
]  # fmt: skip
GREEDY = 64


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSESPARK_CACHE", str(tmp_path / "cache"))


def written(name: str, path: Path, **options) -> Path:
    case = CASES[name]
    spec, _ = canonical_weights(case, 11)
    return write_family(path, case, spec, checkpoint_weights(case, 11), **options)


def _numbers(model) -> dict[str, np.ndarray]:
    return {
        name: np.asarray(data) if rows == 1 else _core.unpack(form, data, rows, cols)
        for name, (form, rows, cols, data) in model.tensors.items()
    }


def test_every_family_of_the_tables_is_here() -> None:
    families = {CASES[name].family for name in NAMES} | {"llama"}  # llama: test_gguf_models.py
    families -= {"mistral3"}  # read as mistral
    kinds = {"gemma3_text": "gemma3"}
    tables = {
        one.model_type for arch in ARCHITECTURES.values() for one in (arch, *arch.variants.values())
    }
    families |= {"bert"}  # test_gguf_bert.py
    assert families == {kinds.get(one, one) for one in tables}


@pytest.mark.parametrize("name", NAMES)
def test_numbers_logits_and_greedy_tokens(name: str, tmp_path: Path) -> None:
    model = open_model(written(name, tmp_path / "m.gguf"), quantize="none", progress=False)
    _, weights = canonical_weights(CASES[name], 11)
    found = _numbers(model)
    if name.startswith("muse"):  # norms of heads carry qk_scale_factor
        found = {
            tensor: v for tensor, v in found.items() if not tensor.endswith(("q_norm", "k_norm"))
        }
    assert set(found) == set(weights)
    family = CASES[name].family
    for tensor, value in found.items():
        shifted = tensor.endswith("norm") and family.startswith(("gemma", "muse"))
        shifted = shifted and not (family == "muse_glimmer" and tensor == "final_norm")
        wanted = weights[tensor] + np.float32(shifted)
        np.testing.assert_array_equal(value, wanted, err_msg=tensor)
    golden = Golden.of(name, 11)
    core = engine(model.spec, model.tensors, context=min(256, model.spec.max_context))
    assert golden.distance(logits(core, golden.tokens)) < 1e-4
    start = len(golden.tokens) - GREEDY
    found = greedy(core, golden.tokens[:start], GREEDY)
    same = next(
        (i for i, (a, b) in enumerate(zip(found, golden.tokens[start:], strict=True)) if a != b),
        GREEDY,
    )
    assert same == GREEDY or golden.margins[same] < 2e-4


GPT_OSS = {
    "model_type": "gpt_oss", "vocab_size": 61, "hidden_size": 64, "intermediate_size": 32,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 9,
    "tie_word_embeddings": True,
}  # fmt: skip
PHI3 = {
    "model_type": "phi3", "vocab_size": 61, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}  # fmt: skip


def _stored(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(6)
    common = {"embed_tokens.weight": (61, 64), "norm.weight": (64,)}
    norms = ("input_layernorm", "post_attention_layernorm")
    layer = {f"{norm}.weight": (64,) for norm in norms} | shapes
    named = {f"model.{name}": shape for name, shape in common.items()}
    named |= {f"model.layers.0.{name}": shape for name, shape in layer.items()}
    return {name: rng.standard_normal(s).astype(np.float32) for name, s in named.items()}


def _packed_numbers(file: Path) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    model = open_model(file, progress=False)
    assert model.info["quantize"] == "gguf"
    return _numbers(model), model.info["formats"]


def _rounded(kind: str, weight: np.ndarray) -> np.ndarray:
    found = gguf.GGMLQuantizationType[kind]
    return gguf.quants.dequantize(gguf.quants.quantize(weight, found), found)


def test_experts_in_blocks_are_repacked_one_by_one(tmp_path: Path) -> None:
    """MXFP4 stacks [experts, rows, blocks], as gpt-oss comes: every number that gguf-py reads."""
    case = Case("gpt_oss", GPT_OSS, 0)
    heads = {"q": 64, "k": 32, "v": 32, "o": 64}
    shapes: dict[str, tuple[int, ...]] = {
        f"self_attn.{name}_proj.weight": (rows, 64) for name, rows in heads.items()
    }
    shapes |= {f"self_attn.{name}_proj.bias": (rows,) for name, rows in heads.items()}
    shapes |= {"self_attn.sinks": (4,), "mlp.router.weight": (3, 64), "mlp.router.bias": (3,)}
    shapes |= {"mlp.experts.gate_up_proj": (3, 64, 64), "mlp.experts.gate_up_proj_bias": (3, 64)}
    shapes |= {"mlp.experts.down_proj": (3, 32, 64), "mlp.experts.down_proj_bias": (3, 64)}
    weights = _stored(shapes)

    def encode(name: str, weight: np.ndarray):
        return quantized("MXFP4")(name, weight) if weight.ndim == 3 else plain(name, weight)

    file = write_family(tmp_path / "m.gguf", case, read_config(GPT_OSS)[1], weights, encode)
    found, formats = _packed_numbers(file)
    at = "model.layers.0.mlp.experts."
    both = weights[f"{at}gate_up_proj"].swapaxes(1, 2)
    stacks = {"gate": both[:, ::2], "up": both[:, 1::2]}
    stacks["down"] = weights[f"{at}down_proj"].swapaxes(1, 2)
    for part, stack in stacks.items():
        exact = _rounded("MXFP4", np.ascontiguousarray(stack))
        for expert in range(3):
            name = f"layers.0.experts.{expert}.{part}"
            np.testing.assert_array_equal(found[name], exact[expert], err_msg=name)
    bias = weights[f"{at}gate_up_proj_bias"]
    np.testing.assert_array_equal(found["layers.0.experts.2.up_bias"], bias[2, 1::2])
    assert "mxfp4" in formats


def test_rows_of_fused_blocks_are_repacked_apart(tmp_path: Path) -> None:
    case = Case("phi3", PHI3, 0)
    shapes = {"self_attn.qkv_proj.weight": (128, 64), "self_attn.o_proj.weight": (64, 64)}
    shapes |= {"mlp.gate_up_proj.weight": (192, 64), "mlp.down_proj.weight": (64, 96)}
    weights = _stored(shapes)
    spec = read_config(PHI3)[1]
    file = write_family(tmp_path / "m.gguf", case, spec, weights, quantized("Q8_0"))
    found, _ = _packed_numbers(file)
    qkv = _rounded("Q8_0", weights["model.layers.0.self_attn.qkv_proj.weight"])
    fused = _rounded("Q8_0", weights["model.layers.0.mlp.gate_up_proj.weight"])
    parts = {"q": qkv[:64], "k": qkv[64:96], "v": qkv[96:], "gate": fused[:96], "up": fused[96:]}
    for part, exact in parts.items():
        np.testing.assert_array_equal(found[f"layers.0.{part}"], exact, err_msg=part)


def test_what_a_file_must_say_and_may_not(tmp_path: Path) -> None:
    def refused(name: str, error: type[Exception], message: str, change) -> None:
        case = CASES[name]
        spec, _ = canonical_weights(case, 11)
        weights = checkpoint_weights(case, 11)
        file = write_family(tmp_path / "m.gguf", case, spec, weights, more=change)
        with pytest.raises(error, match=message):
            open_model(file, progress=False)

    refused(
        "olmo2_plain",
        UnsupportedModel,
        "sliding_window_pattern",
        lambda writer: (
            writer.add_sliding_window(7),
            writer.add_sliding_window_pattern([True, False]),
        ),
    )
    refused(
        "gpt_oss_defaults",
        CorruptFile,
        r"blk.0.ffn_gate_inp.weight' has shape .6, 48., the config asks for .5, 48.",
        lambda writer: writer.add_uint32("gpt-oss.expert_count", 5),
    )
    refused(
        "phi3_window",
        CorruptFile,
        r"blk.0.attn_qkv.weight' has shape .144, 48., the config asks for .96, 48.",
        lambda writer: writer.add_head_count_kv(2),
    )
    refused(
        "granite_biases",
        UnsupportedModel,
        "granite.attention.clamp_kqv is 8.0: this key is not supported",
        lambda writer: writer.add_clamp_kqv(8.0),
    )


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("muse_defaults", "block_count", 2**31),
        ("muse_defaults", "block_count", 0),
        ("granite_multipliers", "attention.head_count", 0),
        ("gemma2_head_scale", "attention.head_count", 2**24),
        ("gemma2_head_scale", "attention.key_length", 0),
        ("smollm3_defaults", "embedding_length", 0),
    ],
)
def test_sizes_out_of_range_are_refused_at_once(
    name: str, key: str, value: int, tmp_path: Path
) -> None:
    case = CASES[name]
    spec, weights = canonical_weights(case, 11)[0], checkpoint_weights(case, 11)
    full = f"{case.family.replace('_', '-')}.{key}"
    file = write_family(
        tmp_path / "m.gguf",
        case,
        spec,
        weights,
        more=lambda writer: writer.add_uint32(full, value),
    )
    with pytest.raises(UnsupportedModel, match=f"{full} is {value}: an integer in 1"):
        open_model(file, progress=False)


ODD = (True, -1, 0, 1, 3, 2**31, 2**63, 0.0, -2.5, 1e-300, 1e300, float("nan"), "", "x",
       np.zeros(3, bool), np.zeros(0, np.int32), np.full(3, 2**30),
       np.array([0.5, 2.0]))  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_odd_values_of_keys_are_refused_or_read(name: str, tmp_path: Path) -> None:
    """Every key of every architecture with each odd value: a model, or a refusal."""
    checkpoint = open_gguf(written(name, tmp_path / "m.gguf"))
    keys = {key: checkpoint.metadata[key] for key in checkpoint.metadata}
    shapes = {tensor: checkpoint.entry(tensor).shape for tensor in checkpoint.file_of}
    vectors = {
        tensor: checkpoint.vector(tensor) for tensor, shape in shapes.items() if len(shape) == 1
    }
    refused = tried = 0
    absent = [f"{keys['general.architecture']}.{key}" for key in NEUTRAL]
    for key in [*keys, *absent]:
        for value in ODD:
            tried += 1
            try:
                read_gguf(keys | {key: value}, shapes, vectors.__getitem__)
            except (CorruptFile, UnsupportedModel):
                refused += 1
    assert 0.5 * tried < refused < tried
    checkpoint.close()


@pytest.mark.parametrize("name", ["mixtral_plain", "gpt_oss_defaults", "qwen2_moe_plain"])
def test_a_number_that_experts_need_is_asked_for(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    spec, weights = canonical_weights(case, 11)[0], checkpoint_weights(case, 11)

    def without(writer) -> None:
        (keys,) = writer.kv_data
        del keys[next(key for key in keys if key.endswith("expert_used_count"))]

    file = write_family(tmp_path / "m.gguf", case, spec, weights, more=without)
    with pytest.raises(CorruptFile, match="expert_used_count is missing"):
        open_model(file, progress=False)


@pytest.mark.parametrize(
    ("arch", "lacks"),
    [
        ("qwen35", "gated delta net layers are not part"),
        ("lfm2", "short convolution layers are not part"),
        ("deepseek2", "latent attention"),
        ("no-such-thing", "supported are .*gemma2, gemma3, "),
    ],
)
def test_architectures_we_lack_say_what_they_need(arch: str, lacks: str, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "m.gguf"), arch)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    message = f"general.architecture is '{arch}': .*{lacks}"
    with pytest.raises(UnsupportedModel, match=message):
        open_model(tmp_path / "m.gguf")
