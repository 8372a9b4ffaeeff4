"""BERT checkpoints for tests: the golden cases of tests/golden/bert_cases.py as model folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from bert_cases import CASES, LENGTHS, SEEDS, texts, weight
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from musespark.families import bert
from musespark.families.spec import ModelSpec
from support.model_folder import GOLDEN, write_folder

__all__ = ["CASES", "LENGTHS", "SEEDS", "canonical", "checkpoint", "folder_of", "golden", "texts"]


def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "bert.npz") as stored:
        return dict(stored)


def checkpoint(name: str, seed: int) -> dict[str, np.ndarray]:
    """The tensors as BertModel saves them."""
    shapes = json.loads(golden()[f"tensors_{name}"].tobytes())
    return {key: weight(seed, key, tuple(shape)) for key, shape in shapes.items()}


def canonical(
    name: str, seed: int, pooling: dict[str, Any] | None = None
) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """The spec and the weights under their canonical names."""
    config = CASES[name] | ({"sentence_transformers": pooling} if pooling else {})
    spec, stored = bert.spec(config), checkpoint(name, seed)
    sources = bert.tensors(spec, stored).sources
    return spec, {key: part.of(stored[part.name]) for key, part in sources.items()}


def folder_of(path: Path, name: str, seed: int) -> Path:
    """A folder as sentence-transformers writes it: mean pooling, normalized, WordPiece."""
    write_folder(path, CASES[name], checkpoint(name, seed))
    kind = "sentence_transformers.models."
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{kind}Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{kind}Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{kind}Normalize"},
    ]
    (path / "modules.json").write_text(json.dumps(modules))
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(chr(97 + i) for i in range(26))]
    words += [f"##{chr(97 + i)}" for i in range(26)]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(8)  # must not be applied
    tokenizer.save(str(path / "tokenizer.json"))
    return path
