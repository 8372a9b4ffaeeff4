"""What the formats cost: weight error, and perplexity of stories260K beside llama.cpp's Q4_0.

    python benchmarks/quality.py --data ../shared/data     (needs gguf and tokenizers)

Weight error is relative RMS in percent on random 512 x 2048 matrices. Perplexity: 16,000 tokens of
the TinyStories sample in chunks of 400 after BOS, on our f32 kernels for dequantized weights, so
that all rows differ in weights only; "engine" rows run the packed formats themselves, with int8
activations. Q4_0 through gguf-py, rows filled up to 32 columns; "as llama-quantize" leaves what has
no 32 columns in f16 (mlp.down here, 172 wide) and the tied head in Q8_0, as that program does.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from common import machine, save

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from musespark import _core
from musespark.weights import open_model
from support.run_engine import engine, pack_weights, scores
from support.stories260k import BOS, convert_stories260k

CHUNK, CHUNKS = 400, 40


def relative(found: np.ndarray, exact: np.ndarray) -> float:
    """Root of the squared error over the squared size, in percent."""
    return 100 * float(np.sqrt(((found - exact) ** 2).sum() / (exact**2).sum()))


def ours(fmt: str, matrix: np.ndarray) -> np.ndarray:
    """Through one of our formats and back."""
    matrix = np.ascontiguousarray(matrix, np.float32)
    data = np.empty(_core.packed_nbytes(fmt, *matrix.shape), np.uint8)
    _core.pack(fmt, matrix, dtype="f32", out=data)
    return _core.unpack(fmt, data, *matrix.shape)


def theirs(kind: str, matrix: np.ndarray) -> np.ndarray:
    """Through one of llama.cpp's formats and back."""
    import gguf

    quant = gguf.GGMLQuantizationType[kind]
    filled = np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % 32)))
    packed = gguf.quants.quantize(filled, quant)
    return gguf.quants.dequantize(packed, quant)[:, : matrix.shape[1]]


def weight_errors() -> dict[str, dict[str, float]]:
    """Distribution -> format -> relative RMS in percent."""
    rng = np.random.default_rng(0)
    matrices = {
        "normal": rng.standard_normal((512, 2048)),
        "laplace": rng.laplace(size=(512, 2048)),
        "student t5": rng.standard_t(5, size=(512, 2048)),
    }
    table = {}
    for name, matrix in matrices.items():
        matrix = matrix.astype(np.float32)
        row = {fmt: relative(ours(fmt, matrix), matrix) for fmt in ("q8", "q6", "q4")}
        row |= {kind: relative(theirs(kind, matrix), matrix) for kind in ("Q8_0", "Q4_0")}
        table[name] = {fmt: round(value, 3) for fmt, value in row.items()}
    return table


def perplexities(data: Path) -> dict[str, float]:
    """Kind of weights -> perplexity on the sample."""
    from tokenizers import Tokenizer

    scratch = Path(tempfile.mkdtemp())
    folder = convert_stories260k(data / "stories260K", scratch / "hf")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = (data / "text" / "tinystories.txt").read_text()
    ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids)
    exact = open_model(folder, quantize="none", progress=False)
    weights = {
        name: np.array(raw) if rows == 1 else _core.unpack(fmt, raw, rows, cols)
        for name, (fmt, rows, cols, raw) in exact.tensors.items()
    }

    def perplexity(tensors: dict) -> float:
        core = engine(exact.spec, tensors, context=512)
        total = 0.0
        for i in range(CHUNKS):
            chunk = np.concatenate([[BOS], ids[i * CHUNK : (i + 1) * CHUNK]])
            total += float(scores(core, chunk).astype(np.float64).sum())
        return round(float(np.exp(-total / (CHUNK * CHUNKS))), 4)

    def each(change) -> dict:
        return pack_weights({n: change(n, w) if w.ndim == 2 else w for n, w in weights.items()})

    def like_llama_quantize(name: str, w: np.ndarray) -> np.ndarray:
        if name == "embed":
            return theirs("Q8_0", w)
        return theirs("Q4_0", w) if w.shape[1] % 32 == 0 else w.astype(np.float16)

    table = {"f32": perplexity(pack_weights(weights))}
    for quantize in ("q8", "q4"):
        loaded = open_model(folder, quantize=quantize, progress=False)
        table[f"{quantize} engine"] = perplexity(loaded.tensors)
    table["q4 (embed q6)"] = perplexity(each(lambda n, w: ours("q6" if n == "embed" else "q4", w)))
    table["q4 everywhere"] = perplexity(each(lambda n, w: ours("q4", w)))
    table["Q4_0 everywhere"] = perplexity(each(lambda n, w: theirs("Q4_0", w)))
    table["Q4_0, embed q6"] = perplexity(
        each(lambda n, w: ours("q6", w) if n == "embed" else theirs("Q4_0", w))
    )
    table["Q4_0 as llama-quantize"] = perplexity(each(like_llama_quantize))
    return table


def bytes_per_token() -> dict[str, float]:
    """MB of weights a token of a Llama-3.2-1B shape reads: recipes and Q4_0 with a Q6_K head."""
    body = 16 * (2 * 2048 * 2048 + 2 * 512 * 2048 + 3 * 2048 * 8192)
    head = 128256 * 2048

    def q(fmt: str, count: int) -> float:
        return _core.packed_nbytes(fmt, 2048, 2048) / 2048**2 * count / 1e6

    return {
        "q4, head q6": round(q("q4", body) + q("q6", head), 1),
        "q4, head q8": round(q("q4", body) + q("q8", head), 1),
        "q4, head q4": round(q("q4", body) + q("q4", head), 1),
        "Q4_0, head Q6_K": round((body * 4.5 + head * 6.5625) / 8e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="the shared data folder")
    report = {
        "machine": machine(),
        "weight_error_percent": weight_errors(),
        "megabytes_per_token": bytes_per_token(),
        "perplexity": perplexities(parser.parse_args().data),
    }
    for name in ("weight_error_percent", "megabytes_per_token", "perplexity"):
        print(name)
        for key, value in report[name].items():
            print(f"  {key:24} {value}")
    save("quality", report)


if __name__ == "__main__":
    main()
