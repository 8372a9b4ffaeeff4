"""Which keys of a GGUF file are read, which change nothing, and how the others are refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from musespark.errors import CorruptFile, UnsupportedModel
from musespark.families.gguf import GgufModel, read_gguf
from musespark.families.gguf_names import ARCHITECTURES, LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS
from musespark.weights.gguf import Metadata
from musespark.weights.gguf_source import open_gguf
from musespark.weights.model_source import understand
from support import gguf_bytes as g
from support.fuzz_gguf import valid_gguf

SCALING = "rope.scaling."
TYPE, FACTOR = f"{SCALING}type", f"{SCALING}factor"
ORIGINAL, ATTENTION = f"{SCALING}original_context_length", f"{SCALING}attn_factor"
HEAD = 32
LONG = {LONG_FACTORS: np.linspace(1, 4, HEAD // 2, dtype=np.float32)}
BOTH = LONG | {SHORT_FACTORS: np.ones(HEAD // 2, np.float32)}


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata and shapes of a llama with heads of 32."""
    checkpoint = open_gguf(valid_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf"))
    metadata = {key: checkpoint.metadata[key] for key in checkpoint.metadata}
    shapes = {name: checkpoint.entry(name).shape for name in checkpoint.file_of}
    checkpoint.close()
    return metadata, shapes


def read(
    valid: tuple[dict[str, Any], dict[str, Any]],
    keys: Mapping[str, Any],
    vectors: Mapping[str, np.ndarray] | None = None,
    arch: str = "llama",
) -> GgufModel:
    """The model with these keys (None: without one) and vectors, told to be of `arch`."""
    metadata, shapes = valid
    named = {key.replace("llama.", f"{arch}.", 1): value for key, value in metadata.items()}
    named["general.architecture"] = arch
    named |= {f"{arch}.{key}": value for key, value in keys.items()}
    named = {key: value for key, value in named.items() if value is not None}
    vectors = vectors or {}
    more = {name: one.shape for name, one in vectors.items()}
    return read_gguf(named, shapes | more, vectors.__getitem__)


def test_a_factor_without_a_type_is_linear(valid: Any) -> None:
    (rope,) = read(valid, {FACTOR: 4.0}).spec.ropes
    assert (rope.scaling, rope.factor) == ("linear", 4.0)
    for keys in ({FACTOR: 0.0}, {FACTOR: 1.0}, {TYPE: "linear", FACTOR: 1.0}, {TYPE: "none"}):
        assert read(valid, keys).spec.ropes[0].scaling == "none"


@pytest.mark.parametrize(
    "keys",
    [
        {ATTENTION: 2.0},
        {TYPE: "linear", FACTOR: 4.0, ATTENTION: 2.0},
        {TYPE: "yarn", FACTOR: 4.0, ORIGINAL: 16, ATTENTION: 2.0},
        {FACTOR: 4.0, f"{SCALING}yarn_beta_fast": 16.0},
        {f"{SCALING}yarn_beta_slow": 2.0},
        {TYPE: "none", FACTOR: 4.0},
        {"attention.clamp_kqv": 8.0},
        {"attention.causal": 1},
        {"use_parallel_residual": 0},
        {"rope.scale_linear": 2.0},
        {"expert_shared_count": False},
    ],
)
def test_a_key_that_nobody_reads_is_refused(valid: Any, keys: dict[str, Any]) -> None:
    key, value = list(keys.items())[-1]
    key, value = (FACTOR, 4.0) if keys.get(TYPE) == "none" else (key, value)
    with pytest.raises(UnsupportedModel, match=f"llama.{key} is {value}: this key is not supp"):
        read(valid, keys)


@pytest.mark.parametrize(
    "keys",
    [
        {ATTENTION: 1.0, ORIGINAL: 4096, f"{SCALING}finetuned": True},
        {FACTOR: 4.0, f"{SCALING}yarn_beta_fast": 32.0, f"{SCALING}yarn_beta_slow": 1.0},
        {"attention.causal": True, "use_parallel_residual": False, "expert_shared_count": 0},
        {"rope.dimension_count_swa": HEAD},
        {"rope.dimension_count_swa": HEAD, "rope.dimension_count": None},
    ],
)
def test_a_key_that_changes_nothing_is_taken(valid: Any, keys: dict[str, Any]) -> None:
    spec = read(valid, keys).spec
    assert read(valid, {FACTOR: keys.get(FACTOR)}).spec == spec


def test_rotated_widths(valid: Any) -> None:
    with pytest.raises(UnsupportedModel, match="dimension_count_swa is 16: other layers rotate 32"):
        read(valid, {"rope.dimension_count_swa": 16})
    with pytest.raises(CorruptFile, match="dimension_count_swa is '32', a number"):
        read(valid, {"rope.dimension_count_swa": "32"})
    for odd in (15, 34, 0):
        with pytest.raises(UnsupportedModel, match=f"llama.rope.dimension_count is {odd}: an even"):
            read(valid, {"rope.dimension_count": odd})


def test_factors_for_long_texts(valid: Any) -> None:
    keys = {ORIGINAL: 16, ATTENTION: 1.5}
    for kind in (None, "none", "longrope"):
        model = read(valid, keys | {TYPE: kind}, BOTH)
        (rope,) = model.spec.ropes
        assert (rope.scaling, rope.original_context, rope.attention_factor) == ("factors", 16, 1.5)
        assert rope.factors == tuple(BOTH[LONG_FACTORS].tolist())
        assert model.mapping.ignored == {}
    for kind in ("yarn", "linear"):
        with pytest.raises(UnsupportedModel, match=f"{TYPE} is '{kind}': not .*{LONG_FACTORS}"):
            read(valid, keys | {TYPE: kind, FACTOR: 4.0}, BOTH)
    with pytest.raises(UnsupportedModel, match=f"{FACTOR} is 4.0: this key"):
        read(valid, keys | {FACTOR: 4.0}, BOTH)
    with pytest.raises(UnsupportedModel, match=f"tensor '{LONG_FACTORS}': -1.0 is not a number ab"):
        read(valid, keys, BOTH | {LONG_FACTORS: -np.ones(HEAD // 2, np.float32)})


def test_long_texts_without_an_attention_factor(valid: Any) -> None:
    """llama.cpp takes 1 where the key is missing; the formula of transformers was taken."""
    for kind in (None, "longrope"):
        (rope,) = read(valid, {ORIGINAL: 16, TYPE: kind}, BOTH).spec.ropes
        assert (rope.scaling, rope.attention_factor) == ("factors", 1.0)


def test_factors_that_are_missing(valid: Any) -> None:
    long = "rope_factors_long.weight' is missing"
    with pytest.raises(CorruptFile, match=f"{TYPE} is 'longrope', tensor '{long}"):
        read(valid, {TYPE: "longrope", ORIGINAL: 16})
    short = {SHORT_FACTORS: BOTH[SHORT_FACTORS]}
    with pytest.raises(CorruptFile, match=f"tensor '{long}, '{SHORT_FACTORS}' is there"):
        read(valid, {ORIGINAL: 16}, short)
    with pytest.raises(CorruptFile, match=f"tensor '{SHORT_FACTORS}' is missing"):
        read(valid, {ORIGINAL: 16}, LONG)
    with pytest.raises(CorruptFile, match=f"llama.{ORIGINAL} is missing"):
        read(valid, {}, BOTH)


def test_factors_beside_another_scaling(valid: Any) -> None:
    factors = {ROPE_FACTORS: BOTH[LONG_FACTORS]}
    assert read(valid, {}, factors).spec.ropes[0].scaling == "factors"
    for keys, more in (({FACTOR: 4.0}, {}), ({ORIGINAL: 16}, BOTH)):
        kind = "longrope" if more else "linear"
        with pytest.raises(UnsupportedModel, match=f"'{ROPE_FACTORS}' is not .*{TYPE} '{kind}'"):
            read(valid, keys, factors | more)


def test_an_embedding_model_says_so(valid: Any) -> None:
    assert read(valid, {"pooling_type": 0}).notes == read(valid, {}).notes == []
    for number, what in ((1, "mean"), (2, "first token"), (3, "last token")):
        (note,) = read(valid, {"pooling_type": number}).notes
        assert note.startswith(f"an embedding model; llama.pooling_type {number} ({what}) is not")
    for number in (-1, 4):
        with pytest.raises(UnsupportedModel, match=f"llama.pooling_type is {number}: known are 0"):
            read(valid, {"pooling_type": number})
    with pytest.raises(CorruptFile, match="pooling_type is False, a number"):
        read(valid, {"pooling_type": False})


@pytest.mark.parametrize(
    ("arch", "keys", "message"),
    [
        ("granite", {"rope.dimension_count": 16}, "rope.dimension_count is 16: .* whole heads"),
        ("llama", {"attention.head_count": 3, "attention.key_length": 32},
         "attention.head_count_kv is 2: must divide attention.head_count, 3"),
        ("llama", {"context_length": 0}, "context_length is 0: an integer in 1"),
        ("llama", {TYPE: "yarn", FACTOR: -4.0}, f"{FACTOR} is -4.0: a finite number"),
        ("llama", {TYPE: "yarn", FACTOR: 4.0, ORIGINAL: 0}, f"{ORIGINAL} is 0: an integer"),
        ("llama", {FACTOR: -2.0}, f"{FACTOR} is -2.0: a finite number"),
        ("llama", {TYPE: "yarn", FACTOR: 4.0, ORIGINAL: 16, f"{SCALING}yarn_beta_fast": 0.0},
         f"{SCALING}yarn_beta_fast is 0.0: a finite"),
        ("phi3", {FACTOR: 2.0}, f"{FACTOR} is 2.0: supported: default, longrope"),
        ("phi3", {TYPE: "linear", FACTOR: 2.0}, f"{TYPE} is 'linear': supported: default, longr"),
        ("llama", {"attention.sliding_window_pattern": np.array([True])},
         "attention.sliding_window_pattern is an array of 1: this key is not supported"),
    ],
)  # fmt: skip
def test_a_family_refuses_in_terms_of_the_file(
    valid: Any, arch: str, keys: dict[str, Any], message: str
) -> None:
    if keys.get("attention.head_count") == 3:
        keys = keys | {"attention.head_count_kv": 2}
    with pytest.raises(UnsupportedModel, match=rf"^{arch}\.{message}") as found:
        read(valid, keys, arch=arch)
    assert "config" not in str(found.value)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_required_keys_are_among_those_that_are_read(name: str) -> None:
    for arch in (ARCHITECTURES[name], *ARCHITECTURES[name].variants.values()):
        assert arch.required <= arch.keys.keys()


MANY = (g.STRING, [""] * 50_000)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.foo", MANY, r"llama\.foo is an array of 50000: this key is not supported"),
        ("llama.rope.scaling.factor", MANY, r"factor is an array of 50000, a number is needed"),
        ("llama.rope.scaling.type", MANY, r"type is an array of 50000: supported are"),
        ("llama.attention.sliding_window_pattern", MANY, "is an array of 50000: 1 booleans are"),
        ("general.license", MANY, None),
        ("general.architecture", MANY, "general.architecture is an array of 50000: supported are"),
        ("general.alignment", MANY, "general.alignment is an array of 50000, a power of two"),
        ("split.count", MANY, "split.count is an array of 50000, an integer is needed"),
        ("tokenizer.ggml.tokens", MANY, "tokens has 50000 entries, the embedding 40 rows"),
        ("tokenizer.ggml.merges", MANY, "merges: 50000 entries, at most 2560 are allowed"),
        ("tokenizer.ggml.token_type", MANY, "token_type: 50000 entries, but .* has 40"),
        ("tokenizer.ggml.bos_token_id", MANY, "bos_token_id: expected a token id, got an array of"),
        ("tokenizer.chat_template", MANY, "chat_template: expected a string, got an array of"),
        ("tokenizer.ggml.add_bos_token", MANY, "token: expected a boolean, got an array of 50000"),
        ("general.sampling.temp", MANY, "temp: expected a number, got an array of 50000"),
    ],
)
def test_long_arrays_are_not_decoded_to_be_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: Any, message: str | None
) -> None:
    decode = Metadata._decode

    def short(self: Metadata, array: Any) -> Any:
        assert array.count < 1000
        return decode(self, array)

    path = valid_gguf(tmp_path / "m.gguf", keys={key: g.key(key, g.ARRAY, value)})
    monkeypatch.setattr(Metadata, "_decode", short)
    if message is None:
        understand(path).made_assets()
        return
    with pytest.raises((CorruptFile, UnsupportedModel), match=message):
        understand(path).made_assets()


@pytest.mark.parametrize("kind", ["adapter", "mmproj", 5])
def test_only_models_are_models(valid: Any, kind: Any) -> None:
    metadata, shapes = valid
    read((metadata | {"general.type": "model"}, shapes), {})
    with pytest.raises(UnsupportedModel, match=f"general.type is {kind!r}: only a 'model'"):
        read((metadata | {"general.type": kind}, shapes), {})


def test_other_ways_to_sample_are_told(tmp_path: Path) -> None:
    names = ("general.sampling.xtc_probability", "general.sampling.temp")
    keys = {name: g.key(name, g.F32, 0.5) for name in names}
    folder = understand(valid_gguf(tmp_path / "m.gguf", keys=keys))
    assert folder.notes == [f"generation defaults that this version does not read: {names[0]}"]
