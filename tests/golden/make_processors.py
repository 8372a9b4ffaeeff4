"""Writes processors.npz: what transformers' image processors make of processor_cases.py.

Needs torch, torchvision, Pillow >= 13 and transformers >= 5.23; run ``python
tests/golden/make_processors.py`` from the repository root. For each case and size
``<case>_<height>x<width>``, and for each video ``video_<fps>``: a JSON text as bytes with
``shape``, ``grids``, ``text`` and ``sha256`` of the float32 patches, and under the same name with
``_values`` about 400 of them at even steps.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import processor_cases as cases  # noqa: E402

VALUES = 400


def record(found: cases.Theirs) -> tuple[np.ndarray, np.ndarray]:
    patches = np.ascontiguousarray(found.patches, np.float32)
    about = {
        "shape": patches.shape,
        "grids": found.grids,
        "text": found.text,
        "sha256": hashlib.sha256(patches.tobytes()).hexdigest(),
    }
    step = max(patches.size // VALUES, 1)
    return np.frombuffer(json.dumps(about).encode(), np.uint8), patches.reshape(-1)[::step]


def main() -> None:
    arrays: dict[str, np.ndarray] = {}
    for name, case in cases.SMALL.items():
        for height, width in cases.SIZES:
            image = Image.fromarray(cases.scene(height, width))
            key = f"{name}_{height}x{width}"
            arrays[key], arrays[f"{key}_values"] = record(cases.expected(case, image))
    for fps in cases.FPS:
        key = f"video_{fps:g}"
        found = cases.expected_video(cases.frames(), fps)
        arrays[key], arrays[f"{key}_values"] = record(found)
    np.savez_compressed(HERE / "processors.npz", **arrays)
    print(f"{len(arrays) // 2} records")


if __name__ == "__main__":
    main()
