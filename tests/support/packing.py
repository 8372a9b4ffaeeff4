"""The models that the tests of packing pack, and their weights read back."""

from __future__ import annotations

import numpy as np

from musespark import _core
from support.model_folder import CASES

CASE = CASES["llama_llama3_biases"]
MUSE = CASES["muse_defaults"]


def unpacked(model) -> dict[str, np.ndarray]:
    """The weights of an opened model as floats, by canonical name."""
    return {
        name: np.asarray(data) if rows == 1 else _core.unpack(fmt, data, rows, cols)
        for name, (fmt, rows, cols, data) in model.tensors.items()
    }
