"""Makes pretokenizers.json: how llama.cpp cuts texts into words, for each pre-tokenizer name.

    python tests/golden/make_pretokenizers.py

Needs llama-cpp-python and gguf. The vocabulary written here has every substring of every text as a
token, with a merge for each way to make it: whatever a pre-tokenizer takes for a word becomes one
token, so that the tokens' lengths are the words. The fixture holds those lengths, in bytes.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import gguf
import llama_cpp
from pretokenizer_cases import TEXTS

from musespark.text.decoding import byte_alphabet
from musespark.vocab import PRE_TOKENIZERS

_CHARS = {b: c for c, b in byte_alphabet().items()}


def all_substrings() -> tuple[list[str], list[str]]:
    """Tokens and merges, shortest first."""
    tokens = dict.fromkeys(_CHARS[b] for b in range(256))
    merges: dict[str, None] = {}
    for text in TEXTS:
        whole = "".join(_CHARS[b] for b in text.encode())
        for n in range(2, len(whole) + 1):
            for i in range(len(whole) - n + 1):
                piece = whole[i : i + n]
                if piece not in tokens:
                    tokens[piece] = None
                    merges.update((f"{piece[:k]} {piece[k:]}", None) for k in range(1, n))
    return list(tokens), list(merges)


def words(path: Path, tokens: list[str]) -> list[list[int]]:
    """The lengths of the words of each text."""
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    found = []
    for text in TEXTS:
        ids = model.tokenize(text.encode(), add_bos=False, special=False)
        found.append([len(tokens[i]) for i in ids])
        assert sum(found[-1]) == len(text.encode()), (path, text)
    return found


def main() -> None:
    tokens, merges = all_substrings()
    made = {}
    for name in PRE_TOKENIZERS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vocab.gguf"
            writer = gguf.GGUFWriter(str(path), "llama")
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre(name)
            writer.add_token_list(tokens)
            writer.add_token_merges(merges)
            writer.add_bos_token_id(0)
            writer.add_eos_token_id(0)
            writer.add_block_count(1)
            writer.add_context_length(512)
            writer.add_embedding_length(32)
            writer.add_feed_forward_length(32)
            writer.add_head_count(1)
            writer.add_layer_norm_rms_eps(1e-5)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.close()
            try:
                made[name] = words(path, tokens)
            except ValueError:
                print(f"{name}: not known to this llama.cpp")
    lines = ",\n".join(
        f"{json.dumps(n)}: {json.dumps(w, separators=(',', ':'))}" for n, w in made.items()
    )
    out = Path(__file__).with_name("pretokenizers.json")
    head = json.dumps(llama_cpp.__version__)
    out.write_text(f'{{"llama-cpp-python": {head}, "words": {{\n{lines}\n}}}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
