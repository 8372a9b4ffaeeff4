"""From what a caller asks to prompt ids: chat options, effort, modes, ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from musespark.errors import InvalidRequest, UnsupportedModel
from musespark.options import EFFORTS, MODES
from musespark.text import ChatTemplate, Tokenizer, encode_chat
from musespark.text.protocols import Protocol

# How templates name the effort; the first that a template reads is set.
_EFFORT_VARIABLES = ("reasoning_strength", "reasoning_effort")
_THINK_VARIABLE = "enable_thinking"
_IMAGE_PARTS = ("image", "image_url", "input_image", "video", "audio", "input_audio")


def token_ids(value: Any, name: str) -> np.ndarray:
    """Token ids given by the caller as an int32 array [n]; InvalidRequest for anything else."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError):  # rows of unequal length, odd objects
        array = np.empty((0, 0))
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InvalidRequest(f"{name}: got {value!r:.60}, allowed is a str or a list of token ids")
    if array.size and (array.min() < 0 or array.max() >= 2**31):
        worst = array.min() if array.min() < 0 else array.max()
        raise InvalidRequest(f"{name}: got token id {worst}, allowed is 0 to vocabulary - 1")
    return array.astype(np.int32)


def stop_ids(tokenizer: Tokenizer, protocol: Protocol, vocab: int) -> frozenset[int]:
    """Every id that ends a turn: the configuration's and the protocol's own."""
    found = set(tokenizer.eos_ids)
    found.update(tokenizer.markers[m] for m in protocol.ends if m in tokenizer.markers)
    return frozenset(i for i in found if i < vocab)


def calls_so_far(messages: Any) -> int:
    """Tool calls already in a conversation, so that new ids stay unique in it."""
    if isinstance(messages, str):
        return 0
    return sum(len(m.get("tool_calls") or ()) for m in messages if isinstance(m, Mapping))


def chat_ids(
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    protocol: Protocol,
    messages: str | Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    reasoning_effort: str | None = None,
    mode: str | None = "auto",
) -> list[int]:
    """The prompt ids of a conversation, up to where the model writes.

    Raises InvalidRequest where the template cannot express an option: nothing is ignored.
    """
    if template is None:
        raise InvalidRequest(
            "this model has no chat template; give one with "
            "model.template = musespark.ChatTemplate(path or text), or put a chat_template.jinja "
            "into its folder, or use generate(), which needs none"
        )
    mode = mode or "auto"
    if mode == "contemplating":
        raise InvalidRequest("mode: 'contemplating' is not part of this version")
    if mode not in MODES:
        raise InvalidRequest(f"mode: got {mode!r}, allowed is one of {list(MODES)}")
    if mode == "instant" and reasoning_effort is not None:
        raise InvalidRequest(
            f"mode 'instant' (no thought) contradicts reasoning_effort {reasoning_effort!r}"
        )
    _check_contents(messages, template)
    if isinstance(messages, Sequence) and not isinstance(messages, str) and not messages:
        raise InvalidRequest("messages: got an empty list, allowed is at least one message")
    variables = {**_effort(template, reasoning_effort), **_thinking(template, protocol, mode)}
    ids = encode_chat(tokenizer, template, messages, tools=tools, **variables)
    if protocol.headers and mode != "auto":
        headers = protocol.headers
        ids += tokenizer.encode_pieces(
            headers.open_answer if mode == "instant" else headers.open_thought
        )
    return ids


def _effort(template: ChatTemplate, effort: str | None) -> dict[str, Any]:
    if effort is None:
        return {}
    if effort not in EFFORTS:
        raise InvalidRequest(f"reasoning_effort: got {effort!r}, allowed is one of {list(EFFORTS)}")
    for name in _EFFORT_VARIABLES:
        if name in template.source:
            return {name: effort}
    raise InvalidRequest(
        f"reasoning_effort: got {effort!r}, but this model's chat template knows no effort"
    )


def _thinking(template: ChatTemplate, protocol: Protocol, mode: str) -> dict[str, Any]:
    if mode == "auto" or protocol.headers:
        return {}
    if _THINK_VARIABLE in template.source:
        return {_THINK_VARIABLE: mode == "thinking"}
    raise InvalidRequest(f"mode: got {mode!r}, but this model's chat template cannot choose it")


def _check_contents(messages: Any, template: ChatTemplate) -> None:
    """Refuses what a template would drop without a word: media, and parts it does not name."""
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        return
    for index, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(content, (str, list, tuple, Mapping, int, float, type(None))):
            raise InvalidRequest(
                f"messages[{index}]: content is of type {type(content).__name__}, "
                "allowed is a str or a list of parts"
            )
        for part in content if isinstance(content, (list, tuple)) else ():
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            known = kind == "text" or (isinstance(kind, str) and kind in template.source)
            if kind in _IMAGE_PARTS or not isinstance(part, Mapping) or not known:
                raise UnsupportedModel(
                    f"messages[{index}]: a part of type {kind!r}; this version runs text only"
                )
