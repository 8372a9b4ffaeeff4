"""Random weights that are a pure function of (seed, name, shape), for the golden fixtures.

The bits come from Philox counters by integer arithmetic alone, so they are the same with every
version of NumPy and on every machine, and the fixtures need not store any weight.
"""

from __future__ import annotations

import re
import zlib

import numpy as np

# Families whose norm weights have a 1 added to them -> the norms that are ordinary ones there.
_CENTERED = {
    "gemma": r"(?!)",
    "gemma2": r"(?!)",
    "gemma3": r"(?!)",
    "muse_glimmer": r"language_model\.norm\.weight$",
    "muse_spark": r"language_model\.norm\.weight$",
}


def uniform(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 in [-1, 1), multiples of 2^-23."""
    bits = np.random.Philox(key=[seed, zlib.crc32(name.encode())])
    raw = np.asarray(bits.random_raw(int(np.prod(shape))), dtype=np.uint64)
    values = (raw >> np.uint64(40)).astype(np.int64) - (1 << 23)
    return (values.astype(np.float32) / np.float32(1 << 23)).reshape(shape)


def _norm_center(family: str, name: str) -> float:
    centered = family in _CENTERED and not re.search(_CENTERED[family], name)
    return 0.0 if centered else 1.0


def random_weight(
    family: str, seed: int, name: str, shape: tuple[int, ...], tied: bool
) -> np.ndarray:
    """One tensor of a checkpoint, scaled by what its name says it is.

    Matrices keep the size of what they multiply, a little enlarged so that attention is far from
    uniform and logits far from equal; norm weights lie around 1 (or 0 where zero-centred).
    """
    u = uniform(seed, name, shape)
    center = np.float32(_norm_center(family, name))
    if re.search(r"(model|language_model)\.norm\.weight$", name) and tied:
        # Signs at random: a tied head would else see mostly the token just read and repeat it.
        return np.float32(1.5) * u - (1 - center)
    if name.endswith("norm.weight") and len(shape) == 1:
        return center + np.float32(0.4) * u
    if name.endswith(("bias", "sinks", "residual_gate.gate")):
        return np.float32(0.5) * u
    if name.endswith("embed_tokens.weight"):
        # Gemma multiplies what it looks up with the root of the width.
        scale = shape[1] ** -0.5 if family.startswith("gemma") else 1.0
        return np.float32(1.7 * scale) * u
    sharp = re.search(r"(q_proj|k_proj|qkv_proj|lm_head|router|mlp\.gate)\.weight$", name)
    gain = 3.0 if sharp else 1.8
    # Experts of gpt_oss are stored turned: [experts, inputs, outputs].
    inputs = shape[-2] if family == "gpt_oss" and len(shape) == 3 else shape[-1]
    return np.float32(gain / np.sqrt(inputs)) * u


def image_rows(
    images: tuple[tuple[int, int, int], ...], hidden: int, taps: int, seed: int
) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """What a tower might give for the images of a case: float32 [height * width, hidden] for each,
    and as much for each of them in each tap."""

    def of(name: str) -> list[np.ndarray]:
        return [
            np.float32(1.7) * uniform(seed, f"{name} {i}", (height * width, hidden))
            for i, (_, height, width) in enumerate(images)
        ]

    return of("image"), [of(f"tap {i}") for i in range(taps)]
