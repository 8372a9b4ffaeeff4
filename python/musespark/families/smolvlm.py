"""SmolVLM and Idefics 3, the text tower (transformers: SmolVLMForConditionalGeneration,
Idefics3ForConditionalGeneration): a llama."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from musespark.families import llama
from musespark.families.fields import Fields
from musespark.families.spec import ModelSpec
from musespark.families.tensors import TensorMap, match_tensors, vision_tower

name = "smolvlm"
model_types = ("smolvlm", "idefics3")
architectures = ("SmolVLMForConditionalGeneration", "Idefics3ForConditionalGeneration")
models = "SmolVLM, Idefics 3 (text, images)"

_IGNORABLE = llama.IGNORABLE | vision_tower("vision_model", "connector")


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; its ``text_config`` is read as a llama config. The outer
    ``tie_word_embeddings`` alone ties the head, as in transformers."""
    outer = Fields.of(config)
    outer.architecture(*architectures)
    c = outer.section("text_config")
    c.must_be("model_type", "llama", "llama")
    c.get("tie_word_embeddings")
    outer.get("scale_factor")  # of the connector
    # transformers gives the text config this value where the whole section is missing.
    eps = 1e-6 if c.values else 1e-5
    return llama.text_spec(c, outer.flag("tie_word_embeddings", False), eps)


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names; those of the vision tower are left out and listed."""
    names = list(names)
    source_of = llama.namer_beside_towers(names, llama.LAYER_NAMES)
    return match_tensors(model, names, source_of, _IGNORABLE)
