"""Writes a random model of Llama-3.2-1B shape: a Hugging Face folder and the same weights as GGUF.

    python benchmarks/make_model.py OUT_DIR      (needs numpy, safetensors, tokenizers, gguf)

OUT_DIR/hf is what musespark loads; OUT_DIR/f16.gguf is what llama.cpp quantizes. Weights are normal
with standard deviation 0.02 and seed 0, tied embeddings, 128,256 rows; speed depends on none.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
}
MATRICES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
BOS, EOS = 128000, 128001
CONTEXT = 131072
ROPE_THETA = 500000.0
NORM_EPS = 1e-5


def byte_level_tokenizer(path: Path, size: int) -> tuple[list[str], list[tuple[str, str]]]:
    """A valid byte-level BPE of `size` entries (bytes, byte pairs, some triples, 256 specials)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens, merges = list(symbols), []
    for a in symbols:
        for b in symbols:
            tokens.append(a + b)
            merges.append((a, b))
    for a in symbols:
        for b in symbols:
            for c in symbols:
                if len(tokens) == size - 256:
                    break
                tokens.append(a + b + c)
                merges.append((a + b, c))
    special = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_{i}|>" for i in range(254))]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(path / "tokenizer.json"))
    return tokens + special, merges


def interleave_heads(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Rows of Q and K from half-split rope order to llama.cpp's interleaved order."""
    rows, cols = matrix.shape
    return matrix.reshape(heads, 2, rows // heads // 2, cols).swapaxes(1, 2).reshape(rows, cols)


def write_config(folder: Path, tokens: list[str]) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **SHAPE,
        "hidden_act": "silu",
        "rms_norm_eps": NORM_EPS,
        "rope_theta": ROPE_THETA,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    names = {"bos_token": tokens[BOS], "eos_token": tokens[EOS]}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def describe(writer: Any, tokens: list[str], merges: list[tuple[str, str]]) -> None:
    """The same configuration and tokenizer as GGUF keys."""
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(SHAPE["hidden_size"])
    writer.add_block_count(SHAPE["num_hidden_layers"])
    writer.add_feed_forward_length(SHAPE["intermediate_size"])
    writer.add_head_count(SHAPE["num_attention_heads"])
    writer.add_head_count_kv(SHAPE["num_key_value_heads"])
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_layer_norm_rms_eps(NORM_EPS)
    writer.add_rope_dimension_count(SHAPE["head_dim"])
    writer.add_vocab_size(SHAPE["vocab_size"])
    writer.add_file_type(1)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * BOS + [3] * 256)
    writer.add_token_merges([f"{a} {b}" for a, b in merges])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)


def matrix_shapes() -> dict[str, tuple[int, int]]:
    """(rows, columns) of the matrices of a layer."""
    hidden, inter, dim = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["head_dim"]
    q, kv = SHAPE["num_attention_heads"] * dim, SHAPE["num_key_value_heads"] * dim
    return {
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "mlp.gate_proj": (inter, hidden),
        "mlp.up_proj": (inter, hidden),
        "mlp.down_proj": (hidden, inter),
    }


def make_tensors(writer: Any) -> dict[str, np.ndarray]:
    """The checkpoint's tensors; adds each to the GGUF too, as llama.cpp wants it."""
    rng = np.random.default_rng(0)

    def normal(shape: tuple[int, int]) -> np.ndarray:
        return (rng.standard_normal(shape, dtype=np.float32) * 0.02).astype(np.float16)

    shapes, ones = matrix_shapes(), np.ones(SHAPE["hidden_size"], np.float32)
    heads = {"attn_q": SHAPE["num_attention_heads"], "attn_k": SHAPE["num_key_value_heads"]}
    embedding = normal((SHAPE["vocab_size"], SHAPE["hidden_size"]))
    tensors = {"model.embed_tokens.weight": embedding, "model.norm.weight": ones}
    writer.add_tensor("token_embd.weight", embedding)
    writer.add_tensor("output_norm.weight", ones)
    for layer in range(SHAPE["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, short in MATRICES.items():
            matrix = tensors[f"{prefix}{name}.weight"] = normal(shapes[name])
            if short in heads:
                matrix = interleave_heads(matrix, heads[short])
            writer.add_tensor(f"blk.{layer}.{short}.weight", matrix)
        for name, short in NORMS.items():
            tensors[f"{prefix}{name}.weight"] = ones
            writer.add_tensor(f"blk.{layer}.{short}.weight", ones)
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    folder = out / "hf"
    folder.mkdir(parents=True, exist_ok=True)

    import gguf
    from safetensors.numpy import save_file

    tokens, merges = byte_level_tokenizer(folder, SHAPE["vocab_size"])
    write_config(folder, tokens)
    writer = gguf.GGUFWriter(str(out / "f16.gguf"), "llama")
    describe(writer, tokens, merges)
    save_file(make_tensors(writer), folder / "model.safetensors", metadata={"format": "pt"})
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(folder, out / "f16.gguf")


if __name__ == "__main__":
    main()
