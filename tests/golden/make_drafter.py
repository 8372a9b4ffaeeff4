"""Writes drafter.npz: what transformers' MuseGlimmerAssistantModel gives for drafter_cases.py.

Needs torch and transformers >= 5.23; run ``python tests/golden/make_drafter.py`` from the
repository root. For each case and seed ``rows_<case>_<seed>``, float32 [passes, block, hidden]: the
last hidden states of each pass, with a DFlashCache that is driven as transformers' own candidate
generator does; ``tensors_<case>``, the names and shapes of the checkpoint as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.cache_utils import DFlashCache

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from drafter_cases import CASES, GROWS, SEEDS, embeds, states, weight  # noqa: E402


def reference(config: dict[str, Any], seed: int) -> torch.nn.Module:
    values = transformers.MuseGlimmerAssistantConfig(**config)
    values._attn_implementation = "eager"
    model = transformers.MuseGlimmerAssistantModel(values).float().eval()
    state = {
        name: torch.from_numpy(weight(seed, name, tuple(value.shape)))
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    return model


def passes(model: torch.nn.Module, config: dict[str, Any], seed: int) -> np.ndarray:
    """Pass after pass over one cache (generation.DFlashTokenCandidateGenerator.get_candidates)."""
    cache, block, at, found = DFlashCache(config=model.config), config["block_size"], 0, []
    cache.activate_past_recording()
    known = states(seed, config)
    for turn, count in enumerate(GROWS):
        cache.set_previous_accepted_tokens(count)
        if turn:
            cache.crop(-block)
        with torch.inference_mode():
            out = model(
                noise_embeds=torch.from_numpy(embeds(seed, config, turn))[None],
                context_hidden_states=torch.from_numpy(known[at : at + count])[None],
                position_ids=torch.arange(at, at + count + block)[None],
                past_key_values=cache,
            )
        at += count
        found.append(out.last_hidden_state[0].numpy())
    return np.stack(found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    arrays: dict[str, np.ndarray] = {}
    for name, config in CASES.items():
        for seed in SEEDS:
            model = reference(config, seed)
            arrays[f"rows_{name}_{seed}"] = passes(model, config, seed)
            shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        arrays[f"tensors_{name}"] = np.frombuffer(json.dumps(shapes).encode(), np.uint8)
    np.savez_compressed(HERE / "drafter.npz", **arrays)
