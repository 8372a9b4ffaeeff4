"""Writes a random model of Llama-3.2-1B shape: a Hugging Face folder and the same weights as GGUF.

    python benchmarks/make_model.py OUT_DIR      (needs numpy, safetensors, tokenizers, gguf)

OUT_DIR/hf is what musespark loads; OUT_DIR/f16.gguf is what llama.cpp quantizes. Weights are normal
with standard deviation 0.02 and seed 0, tied embeddings, 128,256 rows; speed depends on none.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    folder = out / "hf"
    folder.mkdir(parents=True, exist_ok=True)

    import gguf
    from safetensors.numpy import save_file

    hidden, inter, layers = SHAPE["hidden_size"], SHAPE["intermediate_size"], 16
    heads, kv_heads, dim = 32, 8, SHAPE["head_dim"]
    shapes = {
        "self_attn.q_proj": (heads * dim, hidden),
        "self_attn.k_proj": (kv_heads * dim, hidden),
        "self_attn.v_proj": (kv_heads * dim, hidden),
        "self_attn.o_proj": (hidden, heads * dim),
        "mlp.gate_proj": (inter, hidden),
        "mlp.up_proj": (inter, hidden),
        "mlp.down_proj": (hidden, inter),
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **SHAPE,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    tokens, merges = byte_level_tokenizer(folder, SHAPE["vocab_size"])
    names = {"bos_token": tokens[128000], "eos_token": tokens[128001]}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))

    writer = gguf.GGUFWriter(str(out / "f16.gguf"), "llama")
    writer.add_context_length(131072)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inter)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(dim)
    writer.add_vocab_size(SHAPE["vocab_size"])
    writer.add_file_type(1)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 128000 + [3] * 256)
    writer.add_token_merges([f"{a} {b}" for a, b in merges])
    writer.add_bos_token_id(128000)
    writer.add_eos_token_id(128001)

    rng = np.random.default_rng(0)

    def normal(shape: tuple[int, int]) -> np.ndarray:
        return (rng.standard_normal(shape, dtype=np.float32) * 0.02).astype(np.float16)

    tensors = {"model.embed_tokens.weight": normal((SHAPE["vocab_size"], hidden))}
    writer.add_tensor("token_embd.weight", tensors["model.embed_tokens.weight"])
    ones = np.ones(hidden, np.float32)
    tensors["model.norm.weight"] = ones
    writer.add_tensor("output_norm.weight", ones)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name, short in MATRICES.items():
            matrix = tensors[f"{prefix}{name}.weight"] = normal(shapes[name])
            count = {"attn_q": heads, "attn_k": kv_heads}.get(short)
            if count:
                matrix = interleave_heads(matrix, count)
            writer.add_tensor(f"blk.{layer}.{short}.weight", matrix)
        for name, short in (
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
        ):
            tensors[f"{prefix}{name}.weight"] = ones
            writer.add_tensor(f"blk.{layer}.{short}.weight", ones)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(folder, out / "f16.gguf")


if __name__ == "__main__":
    main()
