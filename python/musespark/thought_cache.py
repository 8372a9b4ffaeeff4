"""What becomes of the keys and values of thoughts: the caller's choice, and a model's markers."""

from __future__ import annotations

from typing import Any

from musespark.errors import InvalidRequest
from musespark.text import Tokenizer
from musespark.text.channels import THOUGHT
from musespark.text.protocols import Protocol

KEEP, DROP = "keep", "drop"
THOUGHT_CACHES = (KEEP, DROP)
THOUGHT_OPTIONS = ("thought_cache",)


def check_thought_cache(value: Any) -> str:
    """The choice as given; None means ``keep``."""
    if value is None:
        return KEEP
    if not isinstance(value, str) or value not in THOUGHT_CACHES:
        raise InvalidRequest(
            f"thought_cache: got {value!r:.60}, allowed is one of {list(THOUGHT_CACHES)}"
        )
    return value


def request_thoughts(value: Any, protocol: Protocol, tokenizer: Tokenizer) -> dict[str, Any] | None:
    """``Request.thoughts`` for a model's protocol; None where nothing is to be done and its
    thoughts are not marked by tokens."""
    chosen = check_thought_cache(value)
    marks = thought_marks(protocol, tokenizer)
    if marks is None:
        if chosen == KEEP:
            return None
        raise InvalidRequest(
            f"thought_cache: got {chosen!r}, but the model's protocol {protocol.name!r} marks no "
            "thoughts by tokens of its own"
        )
    return {"cache": chosen, **marks}


def thought_marks(protocol: Protocol, tokenizer: Tokenizer) -> dict[str, Any] | None:
    """``opens``: the ids after which a thought begins, any of several lists; ``closes``: the ids
    before which it ends. None where a marker is no token."""
    known = tokenizer.markers
    if protocol.headers:
        names = protocol.headers
        closes = {names.end_channel, *names.end_turn, names.start}
        needed = closes | {text for text, marker in names.open_thought if marker}
        if not needed <= known.keys():
            return None
        opens = [tokenizer.encode_pieces(names.open_thought)]
        return {"opens": opens, "closes": sorted(known[name] for name in closes)}
    tags = [tag for tag in protocol.tags if tag.kind == THOUGHT]
    if not tags or any(name not in known for tag in tags for name in (tag.open, tag.close)):
        return None
    opens = [[known[tag.open]] for tag in tags]
    return {"opens": opens, "closes": sorted(known[tag.close] for tag in tags)}
