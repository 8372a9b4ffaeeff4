"""stories260K (llama2.c: weights .bin and tok512.bin) as a Hugging Face folder.

llama2.c rotates neighbouring pairs of a head, transformers the two halves, so rows of q and k are
reordered. The tokenizer is SentencePiece BPE: merges follow from the pieces' scores.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from .model_folder import write_folder

BOS, EOS = 1, 2


def read_weights(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The config and the tensors under transformers' names, float32."""
    data = path.read_bytes()
    dim, inter, layers, heads, kv_heads, vocab, context = struct.unpack("<7i", data[:28])
    tied, vocab = vocab > 0, abs(vocab)
    head_dim = dim // heads
    floats = np.frombuffer(data, "<f4", offset=28)
    at = 0

    def take(*shape: int) -> np.ndarray:
        nonlocal at
        size = int(np.prod(shape))
        at += size
        return floats[at - size : at].reshape(shape)

    def halves(w: np.ndarray, count: int) -> np.ndarray:
        pairs = w.reshape(count, head_dim // 2, 2, dim)
        return np.ascontiguousarray(pairs.transpose(0, 2, 1, 3)).reshape(w.shape)

    tensors = {"model.embed_tokens.weight": take(vocab, dim)}
    kv = kv_heads * head_dim
    stacks = {
        "input_layernorm": take(layers, dim),
        "self_attn.q_proj": take(layers, dim, dim),
        "self_attn.k_proj": take(layers, kv, dim),
        "self_attn.v_proj": take(layers, kv, dim),
        "self_attn.o_proj": take(layers, dim, dim),
        "post_attention_layernorm": take(layers, dim),
        "mlp.gate_proj": take(layers, inter, dim),
        "mlp.down_proj": take(layers, dim, inter),
        "mlp.up_proj": take(layers, inter, dim),
    }
    for name, stack in stacks.items():
        for i, w in enumerate(stack):
            if name.endswith(("q_proj", "k_proj")):
                w = halves(w, heads if name.endswith("q_proj") else kv_heads)
            tensors[f"model.layers.{i}.{name}.weight"] = w
    tensors["model.norm.weight"] = take(dim)
    take(2, context, head_dim // 2)  # cos and sin tables, which follow from the config
    if not tied:
        tensors["lm_head.weight"] = take(vocab, dim)
    assert at == floats.size, f"{path}: {floats.size} floats, {at} expected"
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": dim,
        "intermediate_size": inter,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "torch_dtype": "float32",
    }
    return config, tensors


def read_pieces(path: Path) -> list[tuple[str, float]]:
    """(piece, score) by id, as tok512.bin stores them: with spaces, byte pieces as <0xXX>."""
    data, at = path.read_bytes(), 4
    pieces = []
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        pieces.append((data[at + 8 : at + 8 + length].decode(), score))
        at += 8 + length
    return pieces


def tokenizer_json(pieces: list[tuple[str, float]]) -> dict[str, Any]:
    """The tokenizer.json of a SentencePiece BPE model with byte fallback."""
    names = [piece.replace(" ", "▁") for piece, _ in pieces]
    names[0], names[BOS], names[EOS] = "<unk>", "<s>", "</s>"
    vocab = {name: i for i, name in enumerate(names)}
    assert len(vocab) == len(names), "pieces are not unique"
    merges = []
    for name, (_, score) in zip(names, pieces, strict=True):
        for cut in range(1, len(name)):
            left, right = name[:cut], name[cut:]
            if not name.startswith("<") and left in vocab and right in vocab:
                merges.append((-score, vocab[left], vocab[right], left, right))
    merges.sort()
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
               "special": True}  # fmt: skip
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    single = [begin, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": c} | special for i, c in enumerate(("<unk>", "<s>", "</s>"))
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": pair,
            "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [f"{left} {right}" for _, _, _, left, right in merges],
        },
    }


def encode(pieces: list[tuple[str, float]], text: str) -> list[int]:
    """llama2.c's own encoder, written out: the check of the tokenizer.json above. With BOS."""
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    tokens = [BOS, ids[" "]]
    for char in text:
        tokens += [ids[char]] if char in ids else [byte + 3 for byte in char.encode()]
    while True:
        pairs = [
            (pieces[ids[merged]][1], -i)
            for i in range(len(tokens) - 1)
            if (merged := pieces[tokens[i]][0] + pieces[tokens[i + 1]][0]) in ids
        ]
        if not pairs:
            return tokens
        i = -max(pairs)[1]
        tokens[i : i + 2] = [ids[pieces[tokens[i]][0] + pieces[tokens[i + 1]][0]]]


def convert_stories260k(source: Path, folder: Path) -> Path:
    """Writes the Hugging Face folder of `source` (the folder with the two .bin files)."""
    config, tensors = read_weights(source / "stories260K.bin")
    write_folder(folder, config, tensors)
    pieces = read_pieces(source / "tok512.bin")
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(pieces), ensure_ascii=False))
    generation = {"bos_token_id": BOS, "eos_token_id": EOS}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder
