"""stories260K, a real trained checkpoint: tokenizer, greedy text, and what quantization costs."""

from __future__ import annotations

from pathlib import Path

import gguf
import gguf.quants
import numpy as np
import pytest
from tokenizers import Tokenizer

from musespark import _core
from musespark.weights import open_model
from support.plain_forward import forward
from support.run_engine import engine, greedy, pack_weights, scores
from support.stories260k import BOS, convert_stories260k, encode, read_pieces, read_weights

PROMPT = "Once upon a time"
CHUNK = 400  # tokens scored at a time, each after BOS
CHUNKS = 40


@pytest.fixture(scope="module")
def source(shared_data: Path) -> Path:
    return shared_data / "stories260K"


@pytest.fixture(scope="module")
def folder(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_stories260k(source, tmp_path_factory.mktemp("stories") / "hf")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def sample(shared_data: Path) -> str:
    return (shared_data / "text" / "tinystories.txt").read_text()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSESPARK_CACHE", str(tmp_path / "cache"))


def f32_weights(folder: Path) -> tuple:
    """Spec, and canonical weights read back from the packed file."""
    model = open_model(folder, quantize="none")
    return model.spec, {
        name: np.array(data) if rows == 1 else _core.unpack(fmt, data, rows, cols)
        for name, (fmt, rows, cols, data) in model.tensors.items()
    }


def test_tokenizer_is_llama2c_s(source: Path, tokenizer: Tokenizer, sample: str) -> None:
    pieces = read_pieces(source / "tok512.bin")
    texts = [line for line in sample.split("\n") if line][:120]
    for text in [*texts, PROMPT, "naïve 🙂 日本", "a  b", "0 12"]:
        ids = tokenizer.encode(text).ids
        assert ids == encode(pieces, text)
        assert tokenizer.decode(ids) == text


def test_greedy_text_is_that_of_a_float64_forward(folder: Path, tokenizer: Tokenizer) -> None:
    """One float64 pass over prompt and continuation proves all 200 choices, each after the last."""
    spec, weights = f32_weights(folder)
    prompt = tokenizer.encode(PROMPT).ids
    tokens = greedy(engine(spec, pack_weights(weights), context=512), prompt, 200)
    assert len(tokens) == 200
    logits = forward(spec, weights, prompt + tokens)
    chosen = logits[len(prompt) - 1 : -1].argmax(1)
    assert tokens == chosen.tolist()
    text = tokenizer.decode(tokens)
    assert text.startswith(", there was a little girl named Lily.")


def perplexity(core, ids: np.ndarray) -> float:
    total = 0.0
    for i in range(CHUNKS):
        chunk = np.concatenate([[BOS], ids[i * CHUNK : (i + 1) * CHUNK]])
        total += float(scores(core, chunk).astype(np.float64).sum())
    return float(np.exp(-total / (CHUNKS * CHUNK)))


@pytest.fixture(scope="module")
def ids(tokenizer: Tokenizer, sample: str) -> np.ndarray:
    ids = np.array(tokenizer.encode(sample, add_special_tokens=False).ids)
    assert ids.size > CHUNK * CHUNKS
    return ids


def loaded_perplexity(folder: Path, quantize: str, ids: np.ndarray) -> float:
    model = open_model(folder, quantize=quantize)
    return perplexity(engine(model.spec, model.tensors, context=512), ids)


def q4_0(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every matrix through llama.cpp's Q4_0 (gguf-py), rows filled up with zeros to 32 columns."""
    kind = gguf.GGMLQuantizationType.Q4_0
    out = dict(weights)
    for name, matrix in weights.items():
        if matrix.ndim == 2:
            filled = np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % 32)))
            restored = gguf.quants.dequantize(gguf.quants.quantize(filled, kind), kind)
            out[name] = restored[:, : matrix.shape[1]]
    return out


@pytest.mark.slow
def test_what_quantization_costs(folder: Path, ids: np.ndarray, record_property) -> None:
    """Perplexity on the TinyStories sample: q8 within 0.5% of f32; q4 no worse than Q4_0."""
    spec, weights = f32_weights(folder)
    found = {"f32": perplexity(engine(spec, pack_weights(weights), context=512), ids)}
    found |= {q: loaded_perplexity(folder, q, ids) for q in ("q8", "q4")}
    assert abs(found["q8"] / found["f32"] - 1) < 0.005, found
    found["Q4_0"] = perplexity(engine(spec, pack_weights(q4_0(weights)), context=512), ids)
    for name, value in found.items():
        record_property(f"perplexity_{name}", round(value, 4))
    print(found)
    assert found["f32"] < found["q4"] <= found["Q4_0"], found


def test_the_converter_reads_the_whole_file(source: Path) -> None:
    config, tensors = read_weights(source / "stories260K.bin")
    assert (config["vocab_size"], config["hidden_size"], config["tie_word_embeddings"]) == (
        512,
        64,
        True,
    )
    assert sum(t.size for t in tensors.values()) == 260_032
