"""llama.cpp's own quantizers, from the library inside its Python package (environments.py)."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
from environments import BUILD, llama_cpp

# Kind -> (number in ggml, numbers in a block, bytes of a block).
KINDS = {
    "Q4_0": (2, 32, 18),
    "Q8_0": (8, 32, 34),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "IQ4_NL": (20, 32, 18),
    "IQ4_XS": (23, 256, 136),
}


def bits(kind: str) -> float:
    """Bits per number of a whole block."""
    _, block, nbytes = KINDS[kind]
    return 8 * nbytes / block


@functools.cache
def _library() -> Any:
    found = sorted(
        BUILD.glob("llama-cpp-*/lib/python*/site-packages/llama_cpp/lib/libggml-base.so")
    )
    if not found:
        llama_cpp().python()  # makes it
        found = sorted(BUILD.glob("llama-cpp-*/lib/python*/site-packages/**/libggml-base.so"))
    library = ctypes.CDLL(str(found[0]))
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, pointer, pointer, count, count, count, pointer
    ]  # fmt: skip
    return library


def theirs(kind: str, matrix: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """float32 [n, k] through one of llama.cpp's formats and back, with an importance matrix
    (float32 [k]) where one is given.

    Rows are filled up with zeros to whole blocks: llama.cpp itself would take another format for
    such a matrix, with more bits.
    """
    number, block, nbytes = KINDS[kind]
    rows, cols = matrix.shape
    pad = -cols % block
    filled = np.ascontiguousarray(np.pad(matrix, ((0, 0), (0, pad))), np.float32)
    weights = None
    if importance is not None:
        weights = np.ascontiguousarray(np.pad(importance, (0, pad)), np.float32)
    packed = np.zeros(filled.size // block * nbytes, np.uint8)
    at = None if weights is None else weights.ctypes.data
    _library().ggml_quantize_chunk(
        number, filled.ctypes.data, packed.ctypes.data, 0, rows, filled.shape[1], at
    )
    out = np.empty_like(filled)
    decode = getattr(_library(), f"dequantize_row_{kind.lower().replace('_k', '_K')}")
    decode.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    decode(packed.ctypes.data, out.ctypes.data, out.size)
    return out[:, :cols]
