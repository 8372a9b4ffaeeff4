"""Writes the golden fixtures ``lora_<case>.npz`` from PEFT on transformers (torch, float32).

Needs torch, transformers >= 5.23 and peft; run ``python tests/golden/make_lora.py [CASE …]`` from
the repository root. A fixture holds ``config``, the adapter_config.json that PEFT writes, and
``tensors``, the names and shapes of its adapter_model.safetensors, both as JSON; ``tokens`` int32
[n]; ``positions`` int32 [p]; and float32 [p, vocab] ``logits``, with the adapter, and ``base``,
without. Adapters are in lora_cases.py.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import peft
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from cases import CASES  # noqa: E402
from lora_cases import LORA_CASES, LoraCase, lora_value  # noqa: E402
from make import _shapes, checkpoint_tensors, reference_model  # noqa: E402

TOKENS = 48
EVERY = 6


def _set_values(model: torch.nn.Module, seed: int) -> None:
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                stored = name.replace(".default", "")
                array = lora_value(seed, stored, tuple(value.shape))
                value.copy_(torch.from_numpy(array))


def make(case: LoraCase) -> dict[str, np.ndarray]:
    """All arrays of a case's fixture."""
    base = CASES[case.base]
    with np.load(HERE / f"{case.base}.npz") as stored:
        tokens = stored[f"tokens_{case.seed}"][:TOKENS]
    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    model = reference_model(base, case.seed, checkpoint_tensors(base))
    positions = np.arange(EVERY - 1, len(tokens), EVERY).astype(np.int32)
    with torch.inference_mode():
        without = model(input_ids=ids, use_cache=False).logits[0].numpy()[positions]
    adapted = peft.get_peft_model(model, peft.LoraConfig(**case.config)).eval()
    _set_values(adapted, case.seed)
    with torch.inference_mode():
        logits = adapted(input_ids=ids, use_cache=False).logits[0].numpy()[positions]
    with tempfile.TemporaryDirectory() as folder:
        adapted.save_pretrained(folder)
        config = json.loads((Path(folder) / "adapter_config.json").read_text())
        shapes = _shapes(Path(folder) / "adapter_model.safetensors")
    config["base_model_name_or_path"] = case.base  # it was a folder of this machine
    moved = float(np.abs(logits - without).max() / np.ptp(logits))
    print(
        f"{case.base}: {len(shapes)} tensors, the adapter moves logits by {moved:.0%} of the range"
    )
    return {
        "config": np.frombuffer(json.dumps(config).encode(), np.uint8),
        "tensors": np.frombuffer(json.dumps(shapes).encode(), np.uint8),
        "tokens": tokens,
        "positions": positions,
        "logits": logits,
        "base": without,
    }


def main() -> None:
    torch.set_num_threads(1)
    for name in sys.argv[1:] or LORA_CASES:
        np.savez_compressed(HERE / f"{name}.npz", **make(LORA_CASES[name]))


if __name__ == "__main__":
    main()
