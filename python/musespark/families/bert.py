"""BERT encoders for embeddings: MiniLM, bge (transformers: BertModel).

How rows become one embedding stands beside config.json, in the files of sentence-transformers:
``modules.json`` and the pooling module's config. The loader lays them into the config under
``sentence_transformers``; without them the mean of all rows is taken, as that library does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from musespark.families.decoder import read_sizes
from musespark.families.fields import MAX_VOCAB, Fields
from musespark.families.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec
from musespark.families.tensors import TensorMap, match_tensors

name = "bert"
model_types = ("bert",)
architectures = ("BertModel",)
models = "MiniLM, bge and other sentence embeddings"

_EMBEDDINGS = {
    "embed": "word_embeddings.weight",
    "positions": "position_embeddings.weight",
    "token_types": "token_type_embeddings.weight",
    "embed_norm": "LayerNorm.weight",
    "embed_norm_bias": "LayerNorm.bias",
}
_PLACES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "attn_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
# Modules of sentence-transformers, with the folder that each has its files in.
_MODULES = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
_MODE = "pooling_mode_"
_IGNORABLE = {
    "position numbers, which follow from the config": re.compile(r"embeddings\.position_ids"),
    "pooler, which embeddings do not use": re.compile(r"pooler\.dense\.(weight|bias)"),
}


def spec(config: Mapping[str, Any] | Fields) -> ModelSpec:
    """ModelSpec of a ``config.json``; keys that are missing take BertConfig's defaults."""
    c = Fields.of(config)
    c.architecture(*architectures)
    c.must_be("position_embedding_type", "absolute", "absolute")
    c.must_be("is_decoder", False, False)
    c.get("tie_word_embeddings")  # of heads that an encoder does not have
    c.must_be("add_cross_attention", False, False)
    size = read_sizes(
        c,
        vocab_size=30522,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=None,
        max_position_embeddings=512,
    )
    norm = NormSpec("layer", c.number("layer_norm_eps", 1e-12), bias=True)
    layer = LayerSpec(
        attention=AttentionSpec(
            heads=size.heads,
            kv_heads=size.heads,
            head_dim=size.head_dim,
            query_scale=size.head_dim**-0.5,
            qkv_bias=True,
            o_bias=True,
        ),
        mlp=MlpSpec(
            activation=c.activation("hidden_act", "gelu"),
            gated=False,
            bias=True,
            intermediate=size.intermediate,
        ),
        attn_norm=norm,
        mlp_norm=norm,
    )
    pooling, normalize = _pooling(c)
    return ModelSpec(
        vocab=size.vocab,
        hidden=size.hidden,
        max_context=size.context,
        embed_norm=norm,
        layers=[layer] * size.layers,
        bidirectional=True,
        positions=size.context,
        token_types=c.integer("type_vocab_size", 2, MAX_VOCAB),
        normed_residual=True,
        pooling=pooling,
        normalize=normalize,
    )


def _pooling(c: Fields) -> tuple[str, bool]:
    """``mean`` or ``cls``, and whether the embedding is divided by its length."""
    files = c.section("sentence_transformers")
    modules = files.get("modules") or []
    kinds = []
    for one in modules if isinstance(modules, list) else [modules]:
        kind = str(one.get("type")).rpartition(".")[2] if isinstance(one, Mapping) else ""
        place = one.get("path") if isinstance(one, Mapping) else None
        if _MODULES.get(kind, place) != place:
            raise files.refuse("modules", f"{one!r:.120}: known are {_MODULES}")
        if kind not in _MODULES:
            raise files.refuse("modules", f"{kind!r:.80} is none of {list(_MODULES)}")
        kinds.append(kind)
    pooling = files.section("pooling")
    pooling.get("word_embedding_dimension"), pooling.get("include_prompt")
    modes = [key for key in pooling.values if key.startswith(_MODE) and pooling.flag(key, False)]
    if modes == [f"{_MODE}cls_token"]:
        return "cls", "Normalize" in kinds
    if modes in ([], [f"{_MODE}mean_tokens"]):
        return "mean", "Normalize" in kinds
    raise files.refuse("pooling", "pooling is supported as mean or cls")


def tensors(model: ModelSpec, names: Iterable[str]) -> TensorMap:
    """Maps the checkpoint's tensor names, with or without ``bert.`` before them."""
    known = list(names)
    root = "bert." if any(name.startswith("bert.") for name in known) else ""

    def source_name(canonical: str) -> str:
        if canonical in _EMBEDDINGS:
            return f"{root}embeddings.{_EMBEDDINGS[canonical]}"
        _, index, part = canonical.split(".")
        plain = part.removesuffix("_bias")
        kind = "bias" if part != plain else "weight"
        return f"{root}encoder.layer.{index}.{_PLACES[plain]}.{kind}"

    ignorable = {
        reason: re.compile(re.escape(root) + pattern.pattern)
        for reason, pattern in _IGNORABLE.items()
    }
    return match_tensors(model, known, source_name, ignorable)


def notes(config: Mapping[str, Any] | Fields) -> list[str]:
    """A note where nothing says how rows become an embedding, or that texts were shorter."""
    files = Fields.of(config).section("sentence_transformers")
    if not files.has("pooling"):
        return ["no pooling config of sentence-transformers: the mean of all rows is taken"]
    cut = files.section("transformer")
    longest = cut.get("max_seq_length")
    cut.must_be("do_lower_case", False, False)  # the tokenizer's own files say that
    return [] if longest is None else [f"sentence-transformers cuts texts to {longest} tokens"]
