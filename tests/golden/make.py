"""Writes the golden fixtures ``<case>.npz`` from transformers (torch, float32, eager attention).

Needs torch and transformers >= 5.23; run ``python tests/golden/make.py [CASE …]`` from the
repository root. A fixture holds ``tensors``, the names and shapes of the checkpoint that
transformers writes for the configuration, as JSON, and for each seed:

- ``tokens_<seed>`` int32 [prompt + 64]: a random prompt and the 64 tokens that greedy decoding
  continues it with;
- ``positions_<seed>`` int32 [n] and ``logits_<seed>`` float32 [n, vocab]: the logits after some of
  these tokens, in one forward pass over all of them;
- ``image_tokens_<seed>`` int32 [n] and ``image_logits_<seed>`` float32 [m, vocab], of a case with
  images: a prompt in which they stand, and the logits after every fourth token and the last, from
  one forward pass with rows that :func:`image_rows` gives for the images' embeddings;
- ``margins_<seed>`` float32 [64]: for each greedy token, how far the best logit is above the
  second, as a share of the range of all logits.

Configurations are in cases.py, weights in weights.py. The reference model is loaded from a folder
with those weights by ``from_pretrained``, as a user would load it.
"""

from __future__ import annotations

import inspect
import json
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from cases import CASES, Case  # noqa: E402
from weights import image_rows, random_weight, uniform  # noqa: E402

GREEDY = 64
EVERY = 4  # of the positions, and the last


def _model_class(case: Case) -> type:
    return getattr(transformers, case.config["architectures"][0])


def _text(case: Case) -> dict:
    return case.config.get("text_config", case.config)


def _shapes(file: Path) -> dict[str, list[int]]:
    with safe_open(file, "np") as stored:
        return {name: list(stored.get_slice(name).get_shape()) for name in sorted(stored.keys())}


def checkpoint_tensors(case: Case) -> dict[str, list[int]]:
    """Names and shapes of what transformers saves for a case's model."""
    model_class = _model_class(case)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(case.config))
        config = transformers.AutoConfig.from_pretrained(folder)
        torch.manual_seed(0)
        model_class(config).float().save_pretrained(folder)
        return _shapes(Path(folder) / "model.safetensors")


def reference_model(case: Case, seed: int, shapes: dict[str, list[int]]) -> torch.nn.Module:
    """The transformers model of a case with the seed's weights."""
    tied = "lm_head.weight" not in shapes
    weights = {
        name: random_weight(case.family, seed, name, tuple(shape), tied)
        for name, shape in shapes.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(case.config))
        save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        model, report = _model_class(case).from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="eager",
            output_loading_info=True,
        )
    wrong = {kind: found for kind, found in report.items() if found}
    assert not wrong, f"{case.name}: {wrong}"
    return model.eval()


def run_case(case: Case, seed: int, shapes: dict[str, list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Greedy continuation by whole forward passes: no cache that could differ."""
    model = reference_model(case, seed, shapes)
    vocab = _text(case)["vocab_size"]
    prompt = (uniform(seed, "prompt", (case.prompt,)) * 0.5 + 0.5) * vocab
    tokens = prompt.astype(np.int64).clip(0, vocab - 1)
    with torch.inference_mode():
        for _ in range(GREEDY):
            logits = model(input_ids=torch.from_numpy(tokens)[None], use_cache=False).logits[0, -1]
            tokens = np.append(tokens, int(logits.argmax()))
        logits = model(input_ids=torch.from_numpy(tokens)[None], use_cache=False).logits[0]
    return tokens.astype(np.int32), logits.numpy().astype(np.float32)


def run_images(case: Case, seed: int, shapes: dict) -> tuple[np.ndarray, np.ndarray]:
    """The prompt with images in it, and the logits after each of its tokens."""
    model = reference_model(case, seed, shapes)
    text = _text(case)
    tokens = (uniform(seed, "image prompt", (case.prompt,)) * 0.5 + 0.5) * text["vocab_size"]
    tokens = tokens.astype(np.int64).clip(0, text["vocab_size"] - 1)
    image_token = case.config.get("image_token_id", case.config.get("image_token_index"))
    tokens[tokens == image_token] += 1
    for first, height, width in case.images:
        tokens[first : first + height * width] = image_token
    rows, taps = image_rows(case.images, text["hidden_size"], case.taps, seed)
    ids = torch.from_numpy(tokens)[None]
    seen = types.SimpleNamespace(
        pooler_output=[torch.from_numpy(one) for one in rows],
        deepstack_features=[[torch.from_numpy(one) for one in tap] for tap in taps],
    )
    if case.family in ("gemma3", "smolvlm"):
        seen.pooler_output = torch.cat(seen.pooler_output)
    given = {
        "mm_encoder_outputs": {"image": seen},
        # The towers merge two by two.
        "image_grid_thw": torch.tensor([[1, 2 * h, 2 * w] for _, h, w in case.images]),
        "mm_token_type_ids": (ids == image_token).int(),
        "token_type_ids": (ids == image_token).long(),
    }
    known = inspect.signature(model.forward).parameters
    given = {name: value for name, value in given.items() if name in known}
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False, **given).logits[0]
    return tokens.astype(np.int32), logits.numpy().astype(np.float32)


def make(case: Case) -> dict[str, np.ndarray]:
    """All arrays of a case's fixture."""
    shapes = checkpoint_tensors(case)
    stored = np.frombuffer(json.dumps(shapes).encode(), np.uint8)
    arrays: dict[str, np.ndarray] = {"tensors": stored}
    for seed in case.seeds:
        tokens, logits = run_case(case, seed, shapes)
        spread = float(np.ptp(logits))
        two = np.sort(logits[case.prompt - 1 : -1], axis=1)[:, -2:]
        margins = ((two[:, 1] - two[:, 0]) / spread).astype(np.float32)
        positions = np.unique([*range(0, len(tokens), EVERY), len(tokens) - 1]).astype(np.int32)
        arrays |= {
            f"tokens_{seed}": tokens,
            f"positions_{seed}": positions,
            f"logits_{seed}": logits[positions],
            f"margins_{seed}": margins,
        }
        if case.images:
            prompt, seen = run_images(case, seed, shapes)
            places = np.unique([*range(0, len(prompt), EVERY), len(prompt) - 1])
            arrays |= {f"image_tokens_{seed}": prompt, f"image_logits_{seed}": seen[places]}
        kinds = len(set(tokens[case.prompt :].tolist()))
        print(
            f"{case.name} seed {seed}: range {spread:.2f}, {kinds} different greedy tokens, "
            f"{int((margins < 2e-4).sum())} near ties"
        )
    return arrays


def main() -> None:
    torch.set_num_threads(1)
    for name in sys.argv[1:] or CASES:
        np.savez_compressed(HERE / f"{name}.npz", **make(CASES[name]))


if __name__ == "__main__":
    main()
