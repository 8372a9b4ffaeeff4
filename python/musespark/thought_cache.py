"""What becomes of the keys and values of thoughts: the caller's choice, and a model's markers."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, product
from typing import Any

from musespark.errors import InvalidRequest
from musespark.families.spec import ModelSpec
from musespark.text import Tokenizer
from musespark.text.channels import THOUGHT
from musespark.text.protocols import Protocol
from musespark.text.spelling import spellings

KEEP, DEMOTE, DROP = "keep", "demote", "drop"
THOUGHT_CACHES = (KEEP, DEMOTE, DROP)
THOUGHT_OPTIONS = ("thought_cache", "thought_cache_tokens")
LEAST_TOKENS = 32  # csrc/decode/thoughts.h


@dataclass(frozen=True)
class ThoughtChoice:
    """What a caller wants of the keys and values of thoughts; with no ``tokens``, no limit."""

    cache: str = KEEP
    tokens: int | None = None

    def fields(self) -> dict[str, Any]:
        """As options of a request."""
        return {"thought_cache": self.cache, "thought_cache_tokens": self.tokens}


def checked_choice(cache: Any = None, tokens: Any = None) -> ThoughtChoice:
    """The options as given; None means the default."""
    cache = KEEP if cache is None else cache
    if not isinstance(cache, str) or cache not in THOUGHT_CACHES:
        raise InvalidRequest(
            f"thought_cache: got {cache!r:.60}, allowed is one of {list(THOUGHT_CACHES)}"
        )
    if tokens is None:
        return ThoughtChoice(cache)
    try:
        number = -1 if isinstance(tokens, bool) else operator.index(tokens)
    except TypeError:
        number = -1
    if not LEAST_TOKENS <= number < 2**31:
        raise InvalidRequest(
            f"thought_cache_tokens: got {tokens!r:.60}, allowed is None or an integer of at least "
            f"{LEAST_TOKENS}"
        )
    return ThoughtChoice(cache, number)


def request_thoughts(
    given: Mapping[str, Any],
    protocol: Protocol,
    marks: Mapping[str, Any] | None,
    spec: ModelSpec,
    formats: str,
) -> dict[str, Any] | None:
    """``Request.thoughts`` of a request's options; None where nothing is to be done and thoughts
    are not marked by tokens. ``marks``: of :func:`thought_marks`. ``formats``: of keys and values
    (:attr:`ModelInfo.kv_formats`). InvalidRequest where the choice could do nothing."""
    choice = checked_choice(*(given.get(name) for name in THOUGHT_OPTIONS))
    if marks is None and choice != ThoughtChoice():
        name, value = _asked(choice)
        raise InvalidRequest(
            f"{name}: got {value!r}, but the model's protocol {protocol.name!r} marks no thoughts "
            "by tokens of its own"
        )
    if choice != ThoughtChoice():
        _refuse_idle(choice, spec, formats)
    if marks is None:
        return None
    return {"cache": choice.cache, "most_tokens": choice.tokens, **marks}


def _refuse_idle(choice: ThoughtChoice, spec: ModelSpec, formats: str) -> None:
    by_layer = formats.split(",")
    if len(by_layer) == 1:
        by_layer *= len(spec.layers)
    pairs = zip(spec.layers, by_layer, strict=True)
    whole = [text.split("/") for layer, text in pairs if layer.attention.window == 0]
    if choice.tokens is not None and not whole:
        raise InvalidRequest(
            f"thought_cache_tokens: got {choice.tokens}, but every layer of the model has a window"
        )
    if choice.cache == DEMOTE and all(f in ("f32", "kv4") for heads in whole for f in heads):
        raise InvalidRequest(
            "thought_cache: got 'demote', but layers without a window have nothing to demote: "
            f"their keys and values are {' and '.join(sorted({f for h in whole for f in h}))}"
        )


def _asked(choice: ThoughtChoice) -> tuple[str, Any]:
    if choice.cache != KEEP:
        return "thought_cache", choice.cache
    return "thought_cache_tokens", choice.tokens


def thought_marks(protocol: Protocol, tokenizer: Tokenizer) -> dict[str, Any] | None:
    """``opens``: the ids after which a thought begins, any of several lists, the first one as the
    encoder writes it. (The header's text in other tokens opens a thought to who reads the turn, so
    it does to budgets and caches; with white space of its own, to the reader alone.) ``closes``:
    the ids before which it ends; ``header``, where channels have one: the ids it begins and ends
    with. None where a marker is no token."""
    known = tokenizer.markers
    if protocol.headers:
        names = protocol.headers
        closes = {names.end_channel, *names.end_turn, names.start}
        needed = closes | {names.message}
        needed |= {text for text, marker in names.open_thought if marker}
        if not needed <= known.keys():
            return None
        parts = [
            [[known[text]]] if marker else spellings(tokenizer, text)
            for text, marker in names.open_thought
        ]
        opens = [list(chain.from_iterable(one)) for one in product(*parts)]
        header = [known[names.start], known[names.message]]
        return {
            "opens": opens,
            "closes": sorted(known[name] for name in closes),
            "header": header,
        }
    tags = [tag for tag in protocol.tags if tag.kind == THOUGHT]
    if not tags or any(name not in known for tag in tags for name in (tag.open, tag.close)):
        return None
    opens = [[known[tag.open]] for tag in tags]
    return {"opens": opens, "closes": sorted(known[tag.close] for tag in tags)}
