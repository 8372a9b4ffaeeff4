"""A small valid GGUF model with every kind of metadata, written without gguf-py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from support import gguf_bytes as g

_HIDDEN, _INNER, _HEADS, _LAYERS, _VOCAB = 64, 64, 2, 1, 40
_F32, _F16, _Q4_0, _Q8_0 = 0, 1, 2, 8
_BYTES = {_F32: (1, 4), _F16: (1, 2), _Q4_0: (32, 18), _Q8_0: (32, 34)}


def _keys(vocabulary: str) -> dict[str, bytes]:
    letters = [chr(i) for i in range(33, 33 + _VOCAB - 1)]
    numbers = {
        "context_length": 64, "embedding_length": _HIDDEN, "block_count": _LAYERS,
        "feed_forward_length": _INNER, "attention.head_count": _HEADS, "vocab_size": _VOCAB,
        "attention.head_count_kv": 1, "rope.dimension_count": _HIDDEN // _HEADS,
    }  # fmt: skip
    values: dict[str, tuple[int, Any]] = {
        "general.architecture": (g.STRING, "llama"),
        "general.alignment": (g.U32, 64),
        **{f"llama.{name}": (g.U32, value) for name, value in numbers.items()},
        "llama.attention.layer_norm_rms_epsilon": (g.F32, 1e-5),
        "llama.rope.freq_base": (g.F32, 1e4),
        "tokenizer.ggml.model": (g.STRING, vocabulary),
        "tokenizer.ggml.tokens": (g.ARRAY, (g.STRING, [*letters, "<|endoftext|>"])),
        "tokenizer.ggml.token_type": (g.ARRAY, (g.I32, [1] * (_VOCAB - 1) + [3])),
        "tokenizer.ggml.eos_token_id": (g.U32, _VOCAB - 1),
        "nested": (g.ARRAY, (g.ARRAY, [(g.U16, [1, 2]), (g.STRING, ["a", ""])])),
        "flags": (g.ARRAY, (g.BOOL, [0, 1])),
        "wide": (g.I64, -5),
    }
    if vocabulary == "gpt2":
        values["tokenizer.ggml.pre"] = (g.STRING, "gpt-2")
        values["tokenizer.ggml.merges"] = (g.ARRAY, (g.STRING, []))
    else:
        values["tokenizer.ggml.scores"] = (g.ARRAY, (g.F32, [0.0] * _VOCAB))
    return {name: g.key(name, *value) for name, value in values.items()}


def _tensors(biases: bool) -> list[tuple[str, list[int], int]]:
    found = [
        ("token_embd.weight", [_HIDDEN, _VOCAB], _F16),
        ("output_norm.weight", [_HIDDEN], _F32),
    ]
    for i in range(_LAYERS):
        at = f"blk.{i}."
        found += [(f"{at}{name}_norm.weight", [_HIDDEN], _F32) for name in ("attn", "ffn")]
        found += [(f"{at}attn_{name}.weight", [_HIDDEN, 64], _Q8_0) for name in ("q", "output")]
        found += [(f"{at}attn_{name}.weight", [_HIDDEN, 32], _Q4_0) for name in ("k", "v")]
        found += [(f"{at}ffn_{name}.weight", [64, 64], _Q4_0) for name in ("gate", "up", "down")]
        widths = {"q": 64, "k": 32, "v": 32, "output": 64} if biases else {}
        found += [(f"{at}attn_{name}.bias", [n], _Q8_0) for name, n in widths.items()]
    return found


def valid_gguf(
    path: Path,
    biases: bool = False,
    vocabulary: str = "gpt2",
    keys: Mapping[str, bytes] | None = None,
) -> Path:
    """Writes the model, about 30 kB; with `biases`, attention's are there, in blocks of Q8_0.

    ``vocabulary``: gpt2 or llama (SentencePiece). ``keys``: some more, or in place of its own.
    """
    written = _keys(vocabulary) | dict(keys or {})
    return _write(path, list(written.values()), _tensors(biases))


def _write(path: Path, keys: list[bytes], tensors: list[tuple[str, list[int], int]]) -> Path:
    rng = np.random.default_rng(1)
    infos, data = [], b""
    for name, lengths, kind in tensors:
        values, size = _BYTES[kind]
        count = int(np.prod(lengths))
        infos.append(g.info(name, lengths, kind, len(data)))
        if kind == _F32:
            raw = np.ones(count, np.float32).tobytes()
        elif kind == _F16:
            raw = rng.standard_normal(count).astype(np.float16).tobytes()
        else:
            blocks = rng.integers(0, 256, (count // values, size), np.uint8)
            blocks[:, :2] = np.float16([0.01]).view(np.uint8)
            raw = blocks.tobytes()
        data += raw + bytes(-len(raw) % 64)
    path.write_bytes(g.file_bytes(keys, infos, data, alignment=64))
    return path


# ---- a projector beside it -----------------------------------------------------------------------

_WIDE, _PATCH = 32, 4  # of the tower


def _tower(frames: int) -> list[tuple[str, list[int], int]]:
    square, patch = [_WIDE, _WIDE], [_PATCH, _PATCH, 3, _WIDE]
    found = [("v.patch_embd.weight", patch, _F16)]
    if frames == 2:
        found += [("v.patch_embd.weight.1", patch, _F16), ("mm.0.weight", [128, 128], _Q8_0)]
        found += [("mm.0.bias", [128], _F32), ("mm.2.weight", [128, _HIDDEN], _Q4_0)]
        norms = [f"v.blk.0.ln{i}" for i in (1, 2)] + ["v.post_ln"]
    else:
        found += [("v.class_embd", [_WIDE], _F32), ("v.position_embd.weight", [_WIDE, 5], _F32)]
        found += [("mm.0.weight", [_WIDE, _HIDDEN], _Q8_0), ("mm.0.bias", [_HIDDEN], _F32)]
        found += [("mm.2.weight", [_HIDDEN, _HIDDEN], _Q4_0)]
        norms = [f"v.blk.0.ln{i}" for i in (1, 2)] + ["v.pre_ln"]
    found += [("mm.2.bias", [_HIDDEN], _F32)]
    found += [(f"{norm}.{part}", [_WIDE], _F32) for norm in norms for part in ("weight", "bias")]
    for part in ("attn_q", "attn_k", "attn_v", "attn_out", "ffn_up", "ffn_down"):
        inner = {"ffn_up": [_WIDE, 64], "ffn_down": [64, _WIDE]}.get(part, square)
        found += [(f"v.blk.0.{part}.weight", inner, _Q8_0)]
        found += [(f"v.blk.0.{part}.bias", [inner[1]], _F32)]
    return found


def valid_projector(path: Path, kind: str) -> Path:
    """Writes a projector file of 20 to 40 kB. ``kind``: mlp, which goes with the model of
    :func:`valid_gguf`, or qwen2vl_merger."""
    numbers = {
        "image_size": 2 * _PATCH, "patch_size": _PATCH, "embedding_length": _WIDE,
        "feed_forward_length": 64, "block_count": 1, "attention.head_count": 2,
        "projection_dim": _HIDDEN,
    }  # fmt: skip
    keys = {
        "general.architecture": (g.STRING, "clip"),
        "general.type": (g.STRING, "mmproj"),
        "general.alignment": (g.U32, 64),
        "clip.has_vision_encoder": (g.BOOL, 1),
        "clip.projector_type": (g.STRING, kind),
        **{f"clip.vision.{name}": (g.U32, value) for name, value in numbers.items()},
        "clip.vision.attention.layer_norm_epsilon": (g.F32, 1e-5),
        "clip.vision.image_mean": (g.ARRAY, (g.F32, [0.5] * 3)),
        "clip.vision.image_std": (g.ARRAY, (g.F32, [0.25] * 3)),
    }
    tensors = _tower(1 if kind == "mlp" else 2)
    return _write(path, [g.key(name, *value) for name, value in keys.items()], tensors)
