"""From GGUF metadata to the files of a model folder that speak of text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from musespark.errors import CorruptFile, UnsupportedModel
from musespark.untrusted import MAX_TOKENIZER_BYTES
from musespark.vocab.bpe import bpe_tokenizer, gemma4_tokenizer
from musespark.vocab.ends import turn_ends
from musespark.vocab.keys import MAX_TOKENS, VocabularyKeys
from musespark.vocab.spm import spm_tokenizer
from musespark.vocab.vocabulary import CONTROL, USER_DEFINED, Vocabulary
from musespark.vocab.wordpiece import wordpiece_tokenizer

Maker = Callable[[VocabularyKeys], tuple[Vocabulary, dict[str, Any]]]
_MAKERS: dict[str, Maker] = {
    "llama": spm_tokenizer,
    "gpt2": bpe_tokenizer,
    "gemma4": gemma4_tokenizer,
    "bert": wordpiece_tokenizer,
}
TOKENIZER_MODELS = tuple(_MAKERS)
_MAX_NAMED_TEMPLATES = 64
# GGUF key -> (name in generation_config.json, lowest, highest)
_SAMPLING = {
    "general.sampling.temp": ("temperature", 0.0, 1e4),
    "general.sampling.top_k": ("top_k", 0, 2**31 - 1),
    "general.sampling.top_p": ("top_p", 0.0, 1.0),
    "general.sampling.min_p": ("min_p", 0.0, 1.0),
    "general.sampling.penalty_repeat": ("repetition_penalty", 1e-2, 1e2),
}


def tokenizer_assets(metadata: Mapping[str, Any], marker: str = "") -> dict[str, bytes]:
    """File name -> contents: tokenizer.json, tokenizer_config.json, generation_config.json and,
    where the file has a chat template, chat_template.jinja.

    ``metadata``: a GGUF file's keys and values; strings as str or bytes, arrays as lists or NumPy
    arrays. ``marker``: a text that must be one token; where the vocabulary lacks it, it gets the
    first id behind it. Raises UnsupportedModel for a kind of vocabulary or pre-tokenizer that is
    not known, and CorruptFile, naming the field, for metadata that does not make sense.
    """
    keys = VocabularyKeys(metadata)
    kind = keys.text("tokenizer.ggml.model")
    if kind is None:
        raise UnsupportedModel("tokenizer.ggml.model: missing, the file has no vocabulary")
    maker = _MAKERS.get(kind)
    if maker is None:
        raise UnsupportedModel(
            f"tokenizer.ggml.model: {kind!r} is not known; known are {', '.join(_MAKERS)}"
        )
    vocabulary, tokenizer = maker(keys)
    if kind == "llama" and keys.text("general.architecture") == "phi3":
        _strip_after_markers(tokenizer)
    if marker:
        _add_marker(tokenizer, vocabulary, marker)
    config = _config(vocabulary)
    assets = {"tokenizer.json": tokenizer, "generation_config.json": _defaults(keys, vocabulary)}
    templates = _templates(keys)
    if len(templates) > 1 or (templates and "default" not in templates):
        config["chat_template"] = [{"name": n, "template": t} for n, t in templates.items()]
    files = {
        name: json.dumps(value, ensure_ascii=False).encode()
        for name, value in {**assets, "tokenizer_config.json": config}.items()
    }
    if len(files["tokenizer.json"]) > MAX_TOKENIZER_BYTES:
        raise CorruptFile(
            f"tokenizer.ggml: {len(files['tokenizer.json'])} bytes as tokenizer.json, more than "
            f"the limit of {MAX_TOKENIZER_BYTES}"
        )
    if templates and "chat_template" not in config:
        files["chat_template.jinja"] = templates["default"].encode()
    return files


def _strip_after_markers(tokenizer: dict[str, Any]) -> None:
    """Phi-3's markers take the white space after them, which GGUF cannot say."""
    for entry in tokenizer["added_tokens"]:
        entry["rstrip"] = entry["content"] not in ("<unk>", "<s>", "<|endoftext|>")


def _add_marker(tokenizer: dict[str, Any], vocabulary: Vocabulary, marker: str) -> None:
    known = next((one for one in tokenizer["added_tokens"] if one["content"] == marker), None)
    if known is None:
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        known = {"id": vocabulary.ids.get(marker, len(vocabulary.tokens)), "content": marker}
        tokenizer["added_tokens"].append(known | flags)
        known = tokenizer["added_tokens"][-1]
    known["special"] = True


def tokens_missing(metadata: Mapping[str, Any], tokens: Sequence[str]) -> list[str]:
    """Those of `tokens` that a file's vocabulary has not, as texts of one token each."""
    if not tokens:
        return []
    known = frozenset(VocabularyKeys(metadata).strings("tokenizer.ggml.tokens", MAX_TOKENS) or ())
    return [token for token in tokens if token not in known]


def _config(vocabulary: Vocabulary) -> dict[str, Any]:
    """tokenizer_config.json: the texts of the special tokens."""
    found = {
        f"{role}_token": vocabulary.tokens[vocabulary.roles[role]]
        for role in ("bos", "eos", "unk", "sep", "pad", "mask")
        if role in vocabulary.roles
    }
    return {"bos_token": None, "eos_token": None, **found}


def _defaults(keys: VocabularyKeys, vocabulary: Vocabulary) -> dict[str, Any]:
    """generation_config.json: what ends a turn, and how its maker samples."""
    found: dict[str, Any] = {"eos_token_id": _turn_ends(vocabulary)}
    for key, (name, low, high) in _SAMPLING.items():
        value = keys.number(key, low, high)
        if value is not None:
            found[name] = value
    if found.keys() & {"temperature", "top_k", "top_p", "min_p"}:
        found["do_sample"] = found.get("temperature", 1.0) > 0
        if not found["do_sample"]:
            del found["temperature"]
    return found


def sampling_notes(metadata: Mapping[str, Any]) -> list[str]:
    """What a file says of how its maker samples that is not among our defaults."""
    others = sorted(k for k in metadata if k.startswith("general.sampling.") and k not in _SAMPLING)
    if not others:
        return []
    return [f"generation defaults that this version does not read: {', '.join(others)}"[:1000]]


def _turn_ends(vocabulary: Vocabulary) -> list[int]:
    named = [vocabulary.roles[r] for r in ("eos", "eot", "eom") if r in vocabulary.roles]
    kinds = vocabulary.types
    markers = {t: i for t, i in vocabulary.ids.items() if kinds[i] in (CONTROL, USER_DEFINED)}
    named_too = {vocabulary.tokens[i]: i for i in named}
    control = {i for i in markers.values() if kinds[i] == CONTROL}
    return turn_ends(named, {**markers, **named_too}, control)


def _templates(keys: VocabularyKeys) -> dict[str, str]:
    """The chat templates by name."""
    found = {}
    plain = keys.text("tokenizer.chat_template")
    if plain is not None:
        found["default"] = plain
    for name in keys.strings("tokenizer.chat_templates", _MAX_NAMED_TEMPLATES) or []:
        text = keys.text(f"tokenizer.chat_template.{name}")
        if text is None and name not in found:
            raise CorruptFile(f"tokenizer.chat_templates names {name!r}, which is not there")
        if text is not None:
            found[name] = text
    return found
