"""Families: one module per architecture, from a Hugging Face config to a ModelSpec.

A family is a module with ``name``, ``model_types`` and ``architectures`` (as transformers names
them), ``models`` (what a user knows them by), ``spec(config) -> ModelSpec``,
``tensors(spec, names) -> TensorMap`` and, where there is something to say,
``notes(config) -> list of str``: what a user should know about how a config is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, cast, runtime_checkable

from musespark.errors import UnsupportedModel
from musespark.families import (
    bert,
    gemma,
    gemma2,
    gemma3,
    glm4,
    gpt_oss,
    granite,
    granitemoe,
    llama,
    llava,
    mistral,
    mistral3,
    mixtral,
    muse_glimmer,
    muse_glimmer_assistant,
    muse_spark,
    olmo2,
    olmo3,
    phi3,
    qwen2,
    qwen2_moe,
    qwen2_vl,
    qwen3,
    qwen3_moe,
    qwen3_vl,
    smollm3,
    smolvlm,
    starcoder2,
)
from musespark.families.fields import Fields
from musespark.families.lacking import LACKING
from musespark.families.spec import ModelSpec, check_spec
from musespark.families.tensors import TensorMap


class Family(Protocol):
    """What a family module offers."""

    name: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    models: str

    def spec(self, config: Mapping[str, Any] | Fields) -> ModelSpec: ...
    def tensors(self, model: ModelSpec, names: Iterable[str]) -> TensorMap: ...


@runtime_checkable
class _WithNotes(Protocol):
    def notes(self, config: Mapping[str, Any] | Fields) -> list[str]: ...


# In the order of the support table.
MODULES = cast(
    tuple[Family, ...],
    (
        muse_glimmer,
        muse_glimmer_assistant,
        muse_spark,
        llama,
        mistral,
        mistral3,
        mixtral,
        qwen2,
        qwen2_moe,
        qwen3,
        qwen3_moe,
        qwen2_vl,
        qwen3_vl,
        smolvlm,
        llava,
        gpt_oss,
        gemma,
        gemma2,
        gemma3,
        glm4,
        phi3,
        smollm3,
        olmo2,
        olmo3,
        granite,
        granitemoe,
        starcoder2,
        bert,
    ),
)
# What the core's tables of positions hold (csrc/ops/rope.h).
MOST_CONTEXT = 1 << 20
FAMILIES: dict[str, Family] = {
    model_type: family for family in MODULES for model_type in family.model_types
}


def family_for(config: Mapping[str, Any]) -> Family:
    """The family of a ``config.json``; UnsupportedModel names a model_type that is not known."""
    if not isinstance(config, Mapping):
        raise UnsupportedModel(f"config: an object is needed, not {config!r:.80}")
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    what = f"config.model_type is {model_type!r:.80}: "
    if isinstance(model_type, str) and model_type in LACKING:
        raise UnsupportedModel(f"{what}{LACKING[model_type]} not part of this version")
    raise UnsupportedModel(f"{what}supported are {', '.join(sorted(FAMILIES))}")


def read_config(config: Mapping[str, Any]) -> tuple[Family, ModelSpec, list[str]]:
    """The family of a ``config.json``, its ModelSpec, and notes on how the config was read.

    A key that is known to change what some model computes, but is no part of this family, is
    refused (UnsupportedModel), and so is a spec beyond what is run; one that nothing here reads is
    named in a note.
    """
    family = family_for(config)
    fields = Fields(config)
    spec = family.spec(fields)
    notes = family.notes(fields) if isinstance(family, _WithNotes) else []
    if spec.max_context > MOST_CONTEXT:  # "no limit" is written as millions
        notes.append(f"context: the config says {spec.max_context}, at most {MOST_CONTEXT} is run")
        spec = dataclasses.replace(spec, max_context=MOST_CONTEXT)
    check_spec(spec, "config", UnsupportedModel)
    unknown = fields.unknown()
    if unknown:
        notes.append(f"config keys that this version does not read: {', '.join(sorted(unknown))}")
    return family, spec, notes
