"""One file for each family's processor, and which family a model's is."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from musespark.errors import UnsupportedModel
from musespark.vision.preprocess import Processor

# model_type of config.json -> module, class
_PROCESSORS = {
    "siglip": ("siglip", "Siglip"),
    "siglip_vision_model": ("siglip", "Siglip"),
    "idefics3": ("idefics3", "Idefics3"),
    "smolvlm": ("idefics3", "Idefics3"),
    "qwen2_vl": ("qwen_vl", "QwenVL"),
    "qwen2_5_vl": ("qwen_vl", "QwenVL"),
    "qwen3_vl": ("qwen_vl", "QwenVL"),
    "qwen3_vl_moe": ("qwen_vl", "QwenVL"),
    "gemma3": ("gemma3", "Gemma3"),
    "llava": ("llava", "Llava"),
    "lfm2_vl": ("lfm2_vl", "Lfm2VL"),
    "muse_glimmer": ("muse", "Muse"),
    "muse_spark": ("muse", "Muse"),
}

MODEL_TYPES = tuple(_PROCESSORS)


def processor_for(
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any] | None = None,
    processor: Mapping[str, Any] | None = None,
    video_preprocessor: Mapping[str, Any] | None = None,
) -> Processor:
    """The processor of a model folder: its config.json, preprocessor_config.json,
    processor_config.json and video_preprocessor_config.json, as far as it has them.

    Keys that are missing take the defaults of transformers' classes. Raises UnsupportedModel for a
    family without a processor here or a step that has no other way, CorruptFile for a value of the
    wrong kind.
    """
    kind = config.get("model_type")
    if kind not in _PROCESSORS:
        raise UnsupportedModel(f"images: no image processor for model_type {kind!r}")
    module, name = _PROCESSORS[kind]
    made = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    whole = dict(processor or {})
    given = preprocessor if preprocessor is not None else whole.get("image_processor")
    video = video_preprocessor if video_preprocessor is not None else whole.get("video_processor")
    if name == "Muse":
        return made(config, given, whole, video)
    return made(config, given, whole)
