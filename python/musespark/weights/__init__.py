"""Weights in: safetensors, GGUF, the packed container, packing and its cache.

:func:`open_model` gives what the core runs; :func:`convert` writes a packed file;
:func:`inspect` says what is in one or in a model that is not packed yet.
"""

from __future__ import annotations

from musespark.weights.adapters import (
    LoraConfig,
    LoraWeights,
    can_merge,
    core_bytes,
    merge,
    read_adapter,
    read_adapter_config,
)
from musespark.weights.calibration import CHUNK, METHODS, Calibration
from musespark.weights.converting import convert
from musespark.weights.files import WriteFailed
from musespark.weights.inspection import Inspection, inspect, look
from musespark.weights.kv_choice import FALLBACK, KvChoice, describe, summary
from musespark.weights.loading import LoadedWeights, Source, open_model
from musespark.weights.model_source import BLIND
from musespark.weights.pack import QUANTIZE
from musespark.weights.packed import ARITHMETIC_VERSION
from musespark.weights.placement import place
from musespark.weights.tower_pieces import View
from musespark.weights.updating import updated

__all__ = [
    "ARITHMETIC_VERSION",
    "BLIND",
    "CHUNK",
    "FALLBACK",
    "METHODS",
    "QUANTIZE",
    "Calibration",
    "Inspection",
    "KvChoice",
    "LoadedWeights",
    "LoraConfig",
    "LoraWeights",
    "Source",
    "View",
    "WriteFailed",
    "can_merge",
    "convert",
    "core_bytes",
    "describe",
    "inspect",
    "look",
    "merge",
    "open_model",
    "place",
    "summary",
    "read_adapter",
    "read_adapter_config",
    "updated",
]
