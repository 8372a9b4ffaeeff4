"""Mistral Small 3.1 and 3.2, the text tower (transformers: Mistral3ForConditionalGeneration)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from musespark.families import llama, mistral
from musespark.families.fields import Fields
from musespark.families.spec import ModelSpec
from musespark.families.tensors import TensorMap, match_tensors, vision_tower

name = "mistral3"
model_types = ("mistral3",)
architectures = ("Mistral3ForConditionalGeneration",)
models = "Mistral Small 3.1 and 3.2 (text)"

_IGNORABLE = llama.IGNORABLE | vision_tower("vision_tower", "multi_modal_projector")


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; its ``text_config`` is read as a mistral config.

    transformers ties the head by the outer ``tie_word_embeddings`` alone, and by default; a stored
    head that differs from the embedding stays its own.
    """
    outer = Fields.of(config)
    outer.architecture(*architectures)
    c = outer.section("text_config")
    if not c.values:
        raise outer.refuse("text_config", "this family needs one")
    c.must_be("model_type", "mistral", "mistral")
    tied = outer.flag("tie_word_embeddings", True)
    return mistral.text_spec(c, tied)


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names; those of the vision tower are left out and listed."""
    names = list(names)
    source_of = llama.namer_beside_towers(names, llama.LAYER_NAMES)
    return match_tensors(model, names, source_of, _IGNORABLE)
