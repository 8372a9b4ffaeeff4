"""Families: one module per architecture, from a Hugging Face config to a ModelSpec.

A family is a module with ``name``, ``model_types``, ``spec(config) -> ModelSpec``,
``tensors(spec, names) -> TensorMap`` and ``notes(config) -> list of str``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, cast

from musespark.errors import UnsupportedModel
from musespark.families import llama, muse_glimmer, qwen3
from musespark.families.spec import ModelSpec
from musespark.families.tensors import TensorMap


class Family(Protocol):
    """What a family module offers."""

    name: str
    model_types: tuple[str, ...]

    def spec(self, config: Mapping[str, Any]) -> ModelSpec: ...
    def tensors(self, model: ModelSpec, names: Iterable[str]) -> TensorMap: ...
    def notes(self, config: Mapping[str, Any]) -> list[str]: ...


FAMILIES: dict[str, Family] = {
    model_type: cast(Family, module)
    for module in (llama, qwen3, muse_glimmer)
    for model_type in module.model_types
}


def family_for(config: Mapping[str, Any]) -> Family:
    """The family of a ``config.json``; UnsupportedModel names a model_type that is not known."""
    if not isinstance(config, Mapping):
        raise UnsupportedModel(f"config: an object is needed, not {config!r:.80}")
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnsupportedModel(
            f"config.model_type is {model_type!r:.80}: supported are {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]
