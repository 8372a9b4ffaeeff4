"""Random models of the named shapes (shapes.py), in the files that each engine loads.

    python benchmarks/models.py llama-3.2-1b [q4.safetensors q4_0.gguf checkpoint …]

Weights are random: normal with standard deviation 0.02 where they are floats, random codes under
small scales in GGUF blocks. Speed depends on none of them, so engines need not have the same ones.
A model that is there is not made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from environments import BUILD, EXPORT
from shapes import SHAPES, Shape

from musespark import _core
from musespark.families import family_for
from musespark.families.gguf import sources as gguf_sources
from musespark.families.gguf_names import ARCHITECTURES
from musespark.families.spec import ModelSpec, spec_to_file
from musespark.families.tensors import EVERY_NAME, canonical_shapes
from musespark.vocab import OUTLINE, make_outline
from musespark.weights.files import write_aside
from musespark.weights.pack import matrix_format
from musespark.weights.packed import Planned, write_packed

WORKERS = Path(__file__).parent / "workers"
DEVIATION = 0.02
_POOL = (1 << 22) + 7919  # random numbers that all matrices take their values from
_ROWS = 512  # rows of a matrix that are packed; the others repeat them
# File -> how matrices and the head (or tied embedding) are stored, as llama-quantize stores them.
GGUF_KINDS = {"q4_0": ("Q4_0", "Q6_K"), "q8_0": ("Q8_0", "Q8_0"), "q4_k": ("Q4_K", "Q6_K")}
OPENVINO_KINDS = ("int4", "int8")
FLOATS = ("checkpoint", "onnx-int4", *(f"openvino-{kind}" for kind in OPENVINO_KINDS))


class NotBuilt(Exception):  # noqa: N818 - it is a reason, shown in a row
    """A model that cannot be had in this form; the message says why."""


def spec_of(shape: Shape) -> ModelSpec:
    return family_for(shape.config).spec(shape.config)


def build(shape: Shape, what: str) -> Path:
    """The file or folder ``what`` of a shape: q4.safetensors, q8_0.gguf, checkpoint, openvino-int4
    and so on; made when it is not there."""
    path = BUILD / "models" / shape.name / what
    if path.exists():
        return path
    if what in FLOATS and not shape.floats:
        raise NotBuilt(f"{what} is exported from a half precision checkpoint, which is too large")
    path.parent.mkdir(parents=True, exist_ok=True)
    print(f"making {path}", flush=True)
    maker = _maker(what)
    aside = path.with_name(f"{path.stem}.partial{path.suffix}")
    _remove(aside)
    try:
        maker(shape, aside, what)
        aside.rename(path)
    finally:
        _remove(aside)
    return path


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _maker(what: str) -> Callable[[Shape, Path, str], None]:
    if what in ("q4.safetensors", "q8.safetensors"):
        return write_ours
    if what.endswith(".gguf") and what.removesuffix(".gguf") in GGUF_KINDS:
        return write_gguf
    makers = {"checkpoint": write_checkpoint, "onnx-int4": export_onnx}
    makers |= {f"openvino-{kind}": export_openvino for kind in OPENVINO_KINDS}
    if what not in makers:
        raise NotBuilt(f"{what!r} is no form of a model")
    return makers[what]


def weight_bytes(shape: Shape, what: str, path: Path) -> int:
    """Bytes of weights that decoding one token reads, from the file itself."""
    if what.endswith(".safetensors"):
        from musespark.cli.work import bytes_per_token
        from musespark.weights import open_model

        weights = open_model(path, progress=False)
        try:
            nbytes = {name: data.nbytes for name, (*_, data) in weights.tensors.items()}
            return bytes_per_token(weights.spec, nbytes)
        finally:
            weights.close()
    if what.endswith(".gguf"):
        tied = shape.config["tie_word_embeddings"]
        return sum(
            t.nbytes for t in gguf_tensors(shape, what) if tied or t.name != "token_embd.weight"
        )
    if what.startswith("openvino"):
        return (path / "openvino_model.bin").stat().st_size
    return json.loads((path / "bench.json").read_text())["weight_bytes"]


# ---- tokenizer ----------------------------------------------------------------------------------


def byte_level_tokens(size: int) -> tuple[list[str], list[tuple[str, str]], list[str]]:
    """A valid byte-level BPE of ``size`` entries: tokens (bytes, byte pairs, some triples), their
    merges, and 256 special tokens."""
    from tokenizers import pre_tokenizers

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(a, b) for a in symbols for b in symbols]
    triples = ((a + b, c) for a in symbols for b in symbols for c in symbols)
    room = size - 256 - len(symbols)
    merges = merges[:room]
    merges += [next(triples) for _ in range(room - len(merges))]
    special = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_{i}|>" for i in range(254))]
    return symbols + [a + b for a, b in merges], merges, special


def tokenizer_json(shape: Shape) -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens, merges, special = byte_level_tokens(shape.text["vocab_size"])
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return tokenizer.to_str()


# ---- ours ---------------------------------------------------------------------------------------


def normal(count: int) -> np.ndarray:
    """float32 [count], normal, repeating after some four million numbers."""
    rng = np.random.default_rng(0)
    pool = rng.standard_normal(min(count, _POOL), np.float32) * np.float32(DEVIATION)
    return np.resize(pool, count)


def write_ours(shape: Shape, path: Path, what: str) -> None:
    """A packed file, as ``musespark convert`` writes it."""
    family, spec, quantize = family_for(shape.config), spec_of(shape), path.name.split(".")[0]
    planned = [
        Planned(name, "f32", 1, dims[0], True)
        if len(dims) == 1
        else Planned(name, matrix_format(quantize, name, "F16", *dims), *dims, False)
        for name, dims in canonical_shapes(spec).items()
    ]
    pieces: dict[tuple[str, int], np.ndarray] = {}

    def payload(p: Planned) -> Iterator[np.ndarray]:
        if p.vector:
            yield np.resize(np.ones(p.cols, np.float32), p.nbytes // 4)
            return
        key = (p.format, p.cols)
        if key not in pieces:
            pieces[key] = np.empty(_core.packed_nbytes(p.format, _ROWS, p.cols), np.uint8)
            rows = normal(_ROWS * p.cols).reshape(_ROWS, p.cols)
            _core.pack(p.format, rows, out=pieces[key], threads=2)
        left = p.nbytes
        while left:
            yield pieces[key][:left]
            left -= min(left, pieces[key].nbytes)

    config = json.dumps(shape.config).encode()
    assets = {"config.json": config, "tokenizer.json": tokenizer_json(shape).encode()}
    outline = make_outline(assets["tokenizer.json"])
    assets |= {} if outline is None else {OUTLINE: outline}
    with write_aside(path) as file:
        write_packed(
            file,
            spec=spec_to_file(spec),
            family=family.name,
            quantize=quantize,
            notes=lambda: ["random weights"],
            assets=assets,
            planned=planned,
            payload=payload,
        )


# ---- GGUF ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF file: rows and columns (rows 1: a vector), and its type's name."""

    name: str
    rows: int
    cols: int
    kind: str

    @property
    def row_bytes(self) -> int:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        values, size = GGML_QUANT_SIZES[GGMLQuantizationType[self.kind]]
        return self.cols // values * size

    @property
    def nbytes(self) -> int:
        return self.rows * self.row_bytes


def gguf_tensors(shape: Shape, what: str) -> list[GgufTensor]:
    """All tensors of a shape, named and typed as llama.cpp has them."""
    body, head = GGUF_KINDS[what.removesuffix(".gguf")]
    spec, arch = spec_of(shape), ARCHITECTURES[shape.gguf]
    name_of = gguf_sources(arch, spec)
    large = "embed" if spec.tied_head else "head"
    found = []
    for name, dims in canonical_shapes(spec).items():
        stored = name_of(name)
        assert isinstance(stored, str), name
        if len(dims) == 1:
            found.append(GgufTensor(stored, 1, dims[0], "F32"))
        else:
            found.append(GgufTensor(stored, *dims, head if name == large else body))
    if arch.weighted_heads:  # the file has weights for norms that are ours without
        dim = spec.layers[0].attention.head_dim
        for layer in range(len(spec.layers)):
            for part in ("attn_q_norm", "attn_k_norm"):
                found.append(GgufTensor(f"blk.{layer}.{part}.weight", 1, dim, "F32"))
    return found


def random_blocks(kind: str, rows: int, cols: int) -> np.ndarray:
    """Rows of a GGUF type, random codes under small scales: uint8 [rows, bytes of a row]."""
    from musespark.reference import stored

    name = kind.lower()
    size, decode = stored.TYPES[name]
    values = decode(np.zeros((1, size), np.uint8)).size
    rng = np.random.default_rng(1)
    if name in ("f32", "f16", "bf16"):
        plain = (rng.standard_normal((rows, cols), np.float32) * DEVIATION).astype(np.float16)
        if name == "f16":
            return plain.view(np.uint8)
        wide = plain.astype(np.float32)
        bits = wide if name == "f32" else (wide.view(np.uint32) >> 16).astype(np.uint16)
        return np.ascontiguousarray(bits).view(np.uint8)
    blocks = rng.integers(0, 256, (rows, cols // values, size), np.uint8)
    scale = np.frombuffer(np.float16(0.002).tobytes(), np.uint8)
    for at in {"q2_k": (80, 82), "q3_k": (108,), "q6_k": (208,), "mxfp4": ()}.get(name, (0,)):
        blocks[:, :, at : at + 2] = scale
    if name in ("q4_1", "q5_1", "q4_k", "q5_k"):
        blocks[:, :, 2:4] = scale
    if name == "mxfp4":
        blocks[:, :, 0] = rng.integers(116, 124, blocks.shape[:2])
    return blocks.reshape(rows, -1)


def _describe(writer: Any, shape: Shape) -> None:
    """The shape's config and tokenizer as GGUF keys."""
    text, spec = shape.text, spec_of(shape)
    text = {"rope_theta": spec.ropes[0].theta, "output_multiplier": spec.logit_scale, **text}
    if spec.logit_softcap:
        text["final_logit_softcapping"] = spec.logit_softcap
    for key, field in ARCHITECTURES[shape.gguf].keys.items():
        if field in text:
            add = writer.add_uint32 if isinstance(text[field], int) else writer.add_float32
            add(f"{shape.gguf}.{key}", text[field])
    writer.add_value_length(spec.layers[0].attention.head_dim)
    writer.add_rope_dimension_count(spec.ropes[0].dim)
    windows = [layer.attention.window > 0 for layer in spec.layers]
    if any(windows):
        writer.add_sliding_window_pattern(windows)
    tokens, merges, special = byte_level_tokens(text["vocab_size"])
    writer.add_vocab_size(text["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(shape.pretokenizer)
    writer.add_token_list(tokens + special)
    writer.add_token_types([1] * len(tokens) + [3] * len(special))
    writer.add_token_merges([f"{a} {b}" for a, b in merges])
    writer.add_bos_token_id(text["bos_token_id"])
    writer.add_eos_token_id(text["eos_token_id"])


def write_gguf(shape: Shape, path: Path, what: str) -> None:
    """A GGUF file, tensor by tensor."""
    import gguf

    writer = gguf.GGUFWriter(str(path), shape.gguf)
    _describe(writer, shape)
    tensors = gguf_tensors(shape, what)
    for t in tensors:
        raw = gguf.GGMLQuantizationType[t.kind]
        dims = (t.cols * 4,) if t.rows == 1 else (t.rows, t.row_bytes)
        if t.rows == 1:
            writer.add_tensor_info(t.name, (t.cols,), np.dtype(np.float32), t.nbytes)
        else:
            writer.add_tensor_info(t.name, dims, np.dtype(np.uint8), t.nbytes, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    some: dict[tuple[str, int], np.ndarray] = {}
    for t in tensors:
        if t.rows == 1:
            writer.write_tensor_data(np.ones(t.cols, np.float32))
            continue
        if (t.kind, t.cols) not in some:
            some[t.kind, t.cols] = random_blocks(t.kind, _ROWS, t.cols)
        writer.write_tensor_data(np.resize(some[t.kind, t.cols], (t.rows, t.row_bytes)))
    writer.close()


# ---- checkpoint and exports ---------------------------------------------------------------------


def write_checkpoint(shape: Shape, path: Path, what: str) -> None:
    """A Hugging Face folder in f16, tensor by tensor."""
    path.mkdir()
    _, _, special = byte_level_tokens(shape.text["vocab_size"])
    (path / "config.json").write_text(json.dumps(shape.config, indent=1))
    (path / "tokenizer.json").write_text(tokenizer_json(shape))
    names = {"bos_token": special[0], "eos_token": special[1]}
    described = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (path / "tokenizer_config.json").write_text(json.dumps(described))
    spec = spec_of(shape)
    sources = family_for(shape.config).tensors(spec, [EVERY_NAME]).sources
    shapes = {sources[name].name: dims for name, dims in canonical_shapes(spec).items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dims in shapes.items():
        begin, end = end, end + 2 * int(np.prod(dims))
        header[name] = {"dtype": "F16", "shape": dims, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    pool = normal(_POOL).astype(np.float16)
    with open(path / "model.safetensors", "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for dims in shapes.values():
            if len(dims) == 1:
                file.write(np.ones(dims, np.float16).data)
                continue
            left = int(np.prod(dims))
            while left:
                file.write(pool[:left].data)
                left -= min(left, pool.size)


def _export(script: str, source: Path, destination: Path, kind: str) -> None:
    command = [str(EXPORT.python()), str(WORKERS / script), str(source), str(destination), kind]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        lines = [line for line in run.stderr.splitlines() if line.strip()]
        said = lines[-1] if lines else f"status {run.returncode}"
        raise NotBuilt(f"{destination.name.replace('.partial', '')}: export failed: {said:.300}")


def export_openvino(shape: Shape, path: Path, what: str) -> None:
    """OpenVINO's intermediate representation through optimum-intel."""
    _export("export_openvino.py", build(shape, "checkpoint"), path, what.split("-")[1])


def export_onnx(shape: Shape, path: Path, what: str) -> None:
    """What ONNX Runtime GenAI's own model builder makes."""
    _export("export_onnx.py", build(shape, "checkpoint"), path, what.split("-")[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("what", nargs="*", default=["q4.safetensors", "q4_0.gguf"])
    args = parser.parse_args()
    for what in args.what:
        print(build(SHAPES[args.shape], what))


if __name__ == "__main__":
    main()
