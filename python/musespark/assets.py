"""Tokenizer, chat template and generation defaults from the files a model carries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from musespark.errors import CorruptFile, UnsupportedModel
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
    generation = json_asset(assets, "generation_config.json")
    if OUTLINE in assets:
        outline = read_outline(assets[OUTLINE])
        return Tokenizer.from_outline(outline, text, config=config, generation_config=generation)
    return Tokenizer.from_json(text, config=config, generation_config=generation)


def template_of(assets: Mapping[str, bytes]) -> ChatTemplate | None:
    """The chat template, None where the model has none."""
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
