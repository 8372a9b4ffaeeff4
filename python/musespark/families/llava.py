"""LLaVA 1.5, the text tower (transformers: LlavaForConditionalGeneration): a llama."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from musespark.families import llama
from musespark.families.fields import Fields
from musespark.families.qwen2_vl import tied_head
from musespark.families.spec import ModelSpec
from musespark.families.tensors import TensorMap, match_tensors, vision_tower

name = "llava"
model_types = ("llava",)
architectures = ("LlavaForConditionalGeneration",)
models = "LLaVA 1.5 (text, images)"

_IGNORABLE = llama.IGNORABLE | vision_tower("vision_tower", "multi_modal_projector")


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; its ``text_config`` is read as a llama config."""
    outer = Fields.of(config)
    outer.architecture(*architectures)
    c = outer.section("text_config")
    c.must_be("model_type", "llama", "llama")
    return llama.text_spec(c, tied_head(outer, c))


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names; those of the vision tower are left out and listed."""
    names = list(names)
    source_of = llama.namer_beside_towers(names, llama.LAYER_NAMES)
    return match_tensors(model, names, source_of, _IGNORABLE)
