"""Tokenizer, chat template and generation defaults from the files a model carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from musespark.errors import CorruptFile, InvalidRequest, UnsupportedModel
from musespark.families.spec import ModelSpec
from musespark.text import ChatTemplate, Tokenizer
from musespark.untrusted import no_tokenizer, parse_json_object
from musespark.vocab import OUTLINE, read_outline

_TEMPLATE = "chat_template.jinja"


def json_asset(assets: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """A JSON object among the assets, {} where there is none; CorruptFile for anything else."""
    return parse_json_object(assets[name], name) if name in assets else {}


def tokenizer_of(assets: Mapping[str, bytes], source: str = "the model") -> Tokenizer:
    if "tokenizer.json" not in assets:
        raise UnsupportedModel(no_tokenizer(source))
    text = assets["tokenizer.json"]
    config = {
        **json_asset(assets, "special_tokens_map.json"),
        **json_asset(assets, "tokenizer_config.json"),
    }
    generation = _ends(assets) | json_asset(assets, "generation_config.json")
    given = {"config": config, "generation_config": generation}
    where = f"{source}: tokenizer.json"
    if OUTLINE in assets:
        return Tokenizer.from_outline(read_outline(assets[OUTLINE]), text, **given, source=where)
    return Tokenizer.from_json(text, **given, source=where)


def _ends(assets: Mapping[str, bytes]) -> dict[str, Any]:
    """``eos_token_id`` of config.json: it counts where generation_config.json has none, as in
    transformers."""
    config = json_asset(assets, "config.json")
    inner = config.get("text_config")
    found = config.get(
        "eos_token_id", inner.get("eos_token_id") if isinstance(inner, dict) else None
    )
    ids = found if isinstance(found, list) else [found]
    usable = [i for i in ids if type(i) is int and i >= 0]  # -1 is none
    return {"eos_token_id": usable} if usable else {}


def check_usable(
    spec: ModelSpec, assets: Mapping[str, bytes], source: str, use: str | None
) -> None:
    """What a model must have, asked before it is packed: a tokenizer and a template that can be
    read, and what its use needs."""
    tokenizer_of(assets, source)
    check_use(spec, assets, source, use)


def check_use(spec: ModelSpec, assets: Mapping[str, bytes], source: str, use: str | None) -> None:
    """UnsupportedModel or InvalidRequest where a model is not for chat, generate or embed (None:
    for any use)."""
    template = template_of(assets, source)
    if spec.bidirectional and use in ("chat", "generate"):
        raise UnsupportedModel(
            f"{source} is an embedding model, which writes no text: use musespark embed, or "
            "model.embed"
        )
    if not spec.bidirectional and use == "embed":
        raise UnsupportedModel(f"{source} writes text; it gives no embeddings")
    if use == "chat" and template is None:
        raise InvalidRequest(
            f"{source} has no chat template and cannot chat; musespark generate needs none"
        )


def template_of(assets: Mapping[str, bytes], source: str = "the model") -> ChatTemplate | None:
    """The chat template, None where the model has none. ``source`` begins what errors say of it."""
    try:
        return _template_of(assets)
    except CorruptFile as error:
        raise CorruptFile(f"{source}: {error}") from error


def _template_of(assets: Mapping[str, bytes]) -> ChatTemplate | None:
    if _TEMPLATE in assets:
        try:
            text = assets[_TEMPLATE].decode()
        except UnicodeDecodeError as error:
            raise CorruptFile(f"{_TEMPLATE}: not UTF-8: {error}") from error
        return ChatTemplate.from_named(text, origin=_TEMPLATE)
    for name in ("tokenizer_config.json", "chat_template.json"):
        found = json_asset(assets, name).get("chat_template")
        if found is not None:
            return ChatTemplate.from_named(found, origin=f"{name}: field chat_template")
    return None
