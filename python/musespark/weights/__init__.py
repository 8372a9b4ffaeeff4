"""Weights in: safetensors, GGUF, the packed container, packing and its cache.

:func:`open_model` gives what the core runs; :func:`convert` writes a packed file;
:func:`inspect` says what is in one.
"""

from __future__ import annotations

from musespark.weights.files import WriteFailed
from musespark.weights.inspection import inspect
from musespark.weights.loading import LoadedWeights, convert, open_model

__all__ = ["LoadedWeights", "WriteFailed", "convert", "inspect", "open_model"]
