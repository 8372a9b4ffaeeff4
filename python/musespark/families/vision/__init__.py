"""Vision families: one module for each kind of tower, from a Hugging Face config to a VisionSpec.

A module has ``model_types``, ``spec(config, width) -> VisionSpec`` and
``tensors(config, spec, names) -> TensorMap``, with `config` as Fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, cast

from musespark.errors import UnsupportedModel
from musespark.families.fields import Fields
from musespark.families.tensors import TensorMap
from musespark.families.vision import gemma3, idefics3, lfm2_vl, llava, muse, qwen_vl
from musespark.families.vision.spec import VisionSpec

__all__ = ["MODULES", "VisionSpec", "vision_spec", "vision_tensors"]


class VisionFamily(Protocol):
    """What a module of this folder offers."""

    model_types: tuple[str, ...]

    def spec(self, config: Fields, width: int) -> VisionSpec: ...
    def tensors(self, config: Fields, tower: VisionSpec, names: Iterable[str]) -> TensorMap: ...


MODULES = cast(tuple[VisionFamily, ...], (muse, idefics3, qwen_vl, gemma3, llava, lfm2_vl))


def _module(config: Fields) -> VisionFamily:
    kind = config.get("model_type")
    for module in MODULES:
        if kind in module.model_types:
            return module
    known = [one for module in MODULES for one in module.model_types]
    raise UnsupportedModel(f"config.model_type is {kind!r:.80}: vision towers are known of {known}")


def vision_spec(config: Mapping[str, Any] | Fields, width: int) -> VisionSpec:
    """The tower of a ``config.json`` whose text side reads rows of `width` (its hidden size).

    UnsupportedModel names the field that is not supported. Keys that are missing take the class
    defaults of transformers.
    """
    c = Fields.of(config)
    return _module(c).spec(c, width)


def vision_tensors(
    config: Mapping[str, Any] | Fields, tower: VisionSpec, names: Iterable[str]
) -> TensorMap:
    """Where the tower's tensors are among a checkpoint's `names` (those of the text are left
    alone); CorruptFile for one that is missing or that the tower has no place for."""
    c = Fields.of(config)
    return _module(c).tensors(c, tower, names)
