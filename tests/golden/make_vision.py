"""Writes vision_<case>.npz: rows that transformers' vision towers give for vision_cases.py.

Needs torch and transformers >= 5.23; run ``python tests/golden/make_vision.py [CASE …]`` from the
repository root. A fixture holds ``tensors``, names and shapes of the tower's checkpoint as JSON;
``rows``, float32 [tokens, width], all grids one after the other; ``taps``, float32 [taps, tokens,
width], where there are some. Weights and patches are functions of their names.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import save_file

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from vision_cases import CASES, TEXT, VisionCase, patches, weight  # noqa: E402


def config_of(case: VisionCase, folder: str) -> transformers.PreTrainedConfig:
    config = case.config | {"architectures": [case.architecture]}
    (Path(folder) / "config.json").write_text(json.dumps(config))
    return transformers.AutoConfig.from_pretrained(folder)


def reference_model(case: VisionCase) -> tuple[torch.nn.Module, dict[str, list[int]]]:
    """The model with the case's weights in its tower, and the tower's names and shapes."""
    kind = getattr(transformers, case.architecture)
    with tempfile.TemporaryDirectory() as folder:
        kind(config_of(case, folder)).float().save_pretrained(folder)
        file = Path(folder) / "model.safetensors"
        with safe_open(file, "np") as stored:
            every = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        shapes = {n: list(v.shape) for n, v in sorted(every.items()) if not TEXT.match(n)}
        every |= {name: weight(name, tuple(shape)) for name, shape in shapes.items()}
        save_file(every, file, metadata={"format": "pt"})
        model, report = kind.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            output_loading_info=True,
        )
    wrong = {what: found for what, found in report.items() if found}
    assert not wrong, wrong
    return model.eval(), shapes


def images(rows: torch.Tensor, grids: list, patch: int) -> torch.Tensor:
    """[grids, 3, height, width] pixels of patches with columns in (channel, y, x) order."""
    _, h, w = grids[0]
    x = rows.reshape(len(grids), h, w, 3, patch, patch).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(len(grids), 3, h * patch, w * patch)


def inputs(case: VisionCase, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """What get_image_features takes."""
    grids = torch.tensor(case.grids)
    if case.how == "packed":
        return {"pixel_values": rows, "image_grid_thw": grids}
    if case.how == "images":
        pixels = images(rows, case.grids, case.config["vision_config"]["patch_size"])
        several = case.config["model_type"] in ("idefics3", "smolvlm")
        return {"pixel_values": pixels[None] if several else pixels}
    counts = (grids[:, 1] * grids[:, 2]).tolist()
    padded = torch.nn.utils.rnn.pad_sequence(list(rows.split(counts)), batch_first=True)
    mask = torch.arange(padded.shape[1]) < torch.tensor(counts)[:, None]
    return {
        "pixel_values": padded,
        "spatial_shapes": grids[:, 1:],
        "pixel_attention_mask": mask.long(),
    }


def make(name: str) -> dict[str, np.ndarray]:
    case = CASES[name]
    model, shapes = reference_model(case)
    c = case.config["vision_config"]
    depth = c.get("temporal_patch_size", c.get("patch_temporal", 2)) if case.how == "packed" else 1
    rows = torch.from_numpy(patches(name, 3 * c["patch_size"] ** 2 * depth))
    with torch.inference_mode():
        out = model.model.get_image_features(**inputs(case, rows), return_dict=True)
    found = out.pooler_output
    found = torch.cat([one.reshape(-1, case.width) for one in found]).numpy()
    print(f"{name}: {found.shape}, range {np.ptp(found):.2f}")
    arrays = {
        "tensors": np.frombuffer(json.dumps(shapes).encode(), np.uint8),
        "rows": found.astype(np.float32),
    }
    if getattr(out, "deepstack_features", None):
        taps = [torch.cat(tuple(one)) for one in out.deepstack_features]
        arrays["taps"] = torch.stack(taps).numpy()
    return arrays


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case_name in sys.argv[1:] or CASES:
        np.savez_compressed(HERE / f"vision_{case_name}.npz", **make(case_name))
