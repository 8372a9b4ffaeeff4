"""The outline of a tokenizer.json: all that a model needs of it until a text has to be encoded.

Most of the file are merges, and building the tokenizer of a large vocabulary takes several times as
long as mapping the weights. The outline is the same JSON without ``model.vocab`` and
``model.merges``, and the text of every id as a list. Packers write it beside the file, where the
tokenizers library builds the file and has these very tokens; without it the file itself is read and
built at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from musespark.errors import CorruptFile
from musespark.untrusted import MAX_TOKENIZER_BYTES, parse_json_object

OUTLINE = "tokenizer.outline.json"


@dataclass(frozen=True)
class Outline:
    """``rest`` is tokenizer.json without vocabulary and merges; ``tokens`` the text of each id,
    None for an id that has none."""

    rest: dict[str, Any]
    tokens: list[str | None]


def rest_of(data: dict[str, Any]) -> dict[str, Any]:
    """A parsed tokenizer.json without vocabulary and merges."""
    model = {k: v for k, v in data["model"].items() if k not in ("vocab", "merges")}
    return data | {"model": model}


def make_outline(text: bytes) -> bytes | None:
    """The outline of the tokenizer.json `text`; None where it is not to be had: the file is broken,
    has an id twice or ids far apart, or drops merges at random."""
    import tokenizers

    try:
        data = parse_json_object(text, "tokenizer.json", MAX_TOKENIZER_BYTES)
        built = tokenizers.Tokenizer.from_str(text.decode("utf-8-sig"))
        rest = rest_of(data)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # a panic in the Rust library derives from BaseException
        return None
    ids = built.get_vocab(with_added_tokens=True)
    size = 1 + max(ids.values(), default=-1)
    spread = size > 2 * len(ids) or len(set(ids.values())) != len(ids)
    if not ids or spread or data["model"].get("dropout"):
        return None
    tokens: list[str | None] = [None] * size
    for token, token_id in ids.items():
        tokens[token_id] = token
    if any(token is not None and built.id_to_token(i) != token for i, token in enumerate(tokens)):
        return None
    return json.dumps({"rest": rest, "tokens": tokens}, ensure_ascii=False).encode()


def read_outline(data: bytes) -> Outline:
    """What :func:`make_outline` wrote; CorruptFile for anything else."""
    found = parse_json_object(data, OUTLINE, MAX_TOKENIZER_BYTES)
    rest, tokens = found.get("rest"), found.get("tokens")
    if not isinstance(rest, dict) or not isinstance(rest.get("model"), dict):
        raise CorruptFile(f"{OUTLINE}: field 'rest' is not a tokenizer.json")
    if not isinstance(tokens, list) or not {type(t) for t in tokens} <= {str, type(None)}:
        raise CorruptFile(f"{OUTLINE}: field 'tokens' is not a list of texts")
    return Outline(rest, tokens)
