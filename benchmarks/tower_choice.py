"""Which layers of a vision tower stay as stored when it is packed: towers of published sizes.

    python benchmarks/tower_choice.py [--towers smolvlm gemma3 …] [--threads 2] [--loud LAYER]

Random weights, the package's pictures through each family's processor. Prints what is decided
(weights/tower_choice.py), seconds, of which seconds were spent on drawing weights, and the peak of
memory. ``--loud``: one channel of this layer's MLP is a thousand times as loud as the others, and
its weights as much smaller, which 8 bits do not survive.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
import zlib
from typing import Any

import numpy as np

from musespark import _core
from musespark.families.vision import vision_spec
from musespark.families.vision.spec import VisionSpec
from musespark.families.vision.tensors import canonical_shapes
from musespark.vision.samples import sample_views
from musespark.vision.tower import matrix_format
from musespark.weights.tower_choice import choose_stored, describe_tower
from musespark.weights.tower_pieces import Tensor, aligned

WIDTH = 2048
_SIGLIP = {"model_type": "siglip_vision_model"}
_QWEN = {"spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": WIDTH}
TOWERS: dict[str, dict[str, Any]] = {
    "smolvlm": {
        "model_type": "idefics3",
        "scale_factor": 4,
        "vision_config": {
            "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "patch_size": 16, "image_size": 512,
        },
    },
    "llava": {
        "model_type": "llava",
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
            "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14, "image_size": 336,
        },
    },
    "gemma3": {
        "model_type": "gemma3",
        "mm_tokens_per_image": 256,
        "vision_config": _SIGLIP | {
            "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
            "num_attention_heads": 16, "patch_size": 14, "image_size": 896,
        },
    },
    "qwen2_5_vl": {
        "model_type": "qwen2_5_vl",
        "vision_config": _QWEN | {
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
            "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
        },
    },
    "qwen3_vl": {
        "model_type": "qwen3_vl",
        "vision_config": _QWEN | {
            "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
            "patch_size": 16, "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [5, 11, 17],
        },
    },
}  # fmt: skip

# What the checkpoints' preprocessor_config.json says beside the classes' defaults.
SETTINGS: dict[str, dict[str, Any]] = {
    "smolvlm": {"max_image_size": {"longest_edge": 512}, "size": {"longest_edge": 2048}},
    "llava": {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
    "gemma3": {"size": {"height": 896, "width": 896}},
    "qwen2_5_vl": {},
    "qwen3_vl": {"patch_size": 16},
}


class Weights:
    """Random tensors of a tower, drawn again each time they are asked for."""

    def __init__(self, spec: VisionSpec, threads: int, loud: int | None):
        self.shapes, self.threads = canonical_shapes(spec), threads
        self.loud = None if loud is None else f"layers.{loud}."
        self.drawing = 0.0

    def read(self, name: str, kind: str) -> Tensor:
        """As ``weights.tower_pieces`` asks for them."""
        shape = self.shapes[name]
        started = time.perf_counter()
        array = self._drawn(name, shape)
        self.drawing += time.perf_counter() - started
        if len(shape) == 1:
            return "f32", 1, shape[0], array
        form = matrix_format(name, "f32" if kind == "stored" else "q8")
        form = "q8" if kind == "narrow" and form != "f32" else form
        out = aligned(_core.packed_nbytes(form, *shape))
        _core.pack(form, array, out=out, dtype="f32", threads=self.threads)
        return form, *shape, out

    def _drawn(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        array = rng.standard_normal(shape, np.float32)
        if len(shape) == 2:
            array *= np.float32(1 / np.sqrt(shape[1]))
        elif name.endswith("norm"):
            array = 1 + np.float32(0.1) * array
        else:
            array *= np.float32(0.1)
        factors = {"mlp_norm": 1000, "mlp_norm_bias": 1000, "up": 0.001, "gate": 0.001}
        if self.loud and name.startswith(self.loud) and name.removeprefix(self.loud) in factors:
            array[..., 5] *= np.float32(factors[name.removeprefix(self.loud)])
        return array


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--towers", nargs="+", choices=TOWERS, default=[*TOWERS])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--loud", type=int, metavar="LAYER")
    options = parser.parse_args()
    for name in options.towers:
        config = TOWERS[name] | {"text_config": {"hidden_size": WIDTH}}
        spec = vision_spec(config, WIDTH)
        settings = json.dumps(SETTINGS[name]).encode()
        views = sample_views(
            {"config.json": json.dumps(config).encode(), "preprocessor_config.json": settings}
        )
        weights = Weights(spec, options.threads, options.loud)
        started = time.perf_counter()
        chosen = choose_stored(spec, weights.read, views, threads=options.threads)
        seconds = time.perf_counter() - started
        millions = sum(int(np.prod(shape)) for shape in weights.shapes.values()) / 1e6
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{name}: {millions:.0f} M parameters, {seconds:.1f} s ({weights.drawing:.1f} s of "
              f"them drawing weights), peak {peak:.0f} MB so far")  # fmt: skip
        said = "not measured" if chosen is None else describe_tower(chosen)
        patches = 0 if chosen is None else chosen.patches
        print(f"  {patches} patches: {said}", flush=True)


if __name__ == "__main__":
    main()
