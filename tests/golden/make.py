"""Writes the golden fixtures ``<case>.npz`` from transformers (torch, float32, eager attention).

Needs torch and transformers >= 5.23; run ``python tests/golden/make.py`` from the repository root.
For each case and seed a fixture holds ``tokens_<seed>`` int32 [prompt + 64]: a random prompt and
the 64 tokens that greedy decoding continues it with, and ``logits_<seed>`` float32
[prompt + 64, vocab]: the logits at each of these positions in one forward pass.
Configurations are in cases.py, weights in weights.py; nothing else is stored.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from cases import CASES, Case  # noqa: E402
from weights import random_weight, uniform  # noqa: E402

GREEDY = 64
_CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "muse_glimmer": (
        transformers.MuseGlimmerConfig,
        transformers.MuseGlimmerForConditionalGeneration,
    ),
}


def reference_model(case: Case, seed: int) -> torch.nn.Module:
    """The transformers model of a case with the seed's weights."""
    config_class, model_class = _CLASSES[case.family]
    config = config_class.from_dict(case.config)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = model_class(config).float().eval()
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "vision" in name or (tied and name == "lm_head.weight"):
                continue
            value = random_weight(
                seed, name, tuple(parameter.shape), case.family == "muse_glimmer", tied
            )
            parameter.copy_(torch.from_numpy(value))
    return model


def run_case(case: Case, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Greedy continuation by whole forward passes: no cache that could differ."""
    model = reference_model(case, seed)
    text = case.config.get("text_config", case.config)
    vocab = text["vocab_size"]
    prompt = (uniform(seed, "prompt", (case.prompt,)) * 0.5 + 0.5) * vocab
    tokens = prompt.astype(np.int64).clip(0, vocab - 1)
    with torch.inference_mode():
        for _ in range(GREEDY):
            logits = model(input_ids=torch.from_numpy(tokens)[None]).logits[0, -1]
            tokens = np.append(tokens, int(logits.argmax()))
        logits = model(input_ids=torch.from_numpy(tokens)[None]).logits[0]
    return tokens.astype(np.int32), logits.numpy().astype(np.float32)


def main() -> None:
    torch.set_num_threads(1)
    for name, case in CASES.items():
        arrays: dict[str, np.ndarray] = {}
        for seed in case.seeds:
            tokens, logits = run_case(case, seed)
            arrays[f"tokens_{seed}"], arrays[f"logits_{seed}"] = tokens, logits
            spread = float(logits.max() - logits.min())
            two = np.sort(logits, axis=1)[:, -2:]
            near = int(((two[:, 1] - two[:, 0]) < 2e-4 * spread).sum())
            kinds = len(set(tokens[case.prompt :].tolist()))
            print(
                f"{name} seed {seed}: range {spread:.2f}, {kinds} different greedy tokens, "
                f"{near} near ties"
            )
        np.savez_compressed(HERE / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main()
