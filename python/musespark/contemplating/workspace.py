"""What agents came to, put under the question: bounded, in the form that Spark Nano is trained on.

QUESTION
Draft 1: 12 + 7 = 19. 19 - 5 = 14.
Draft 2: 12 + 7 = 18. 18 - 5 = 13.
Check the drafts and answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from musespark.text import Tokenizer

_CLOSING = "Check the drafts and answer."
_SENTENCE_END = re.compile(r"(?<=[.!?…。！？])\s+|\n")
_LEAST = 16  # tokens of a draft that says anything


class Draft(NamedTuple):
    """What one agent came to."""

    answer: str
    thought: str


def listed(drafts: Sequence[str]) -> str:
    """The default text under the question, the one of ``lab/formats.py``."""
    return "\n".join([*(f"Draft {i}: {text}" for i, text in enumerate(drafts, 1)), _CLOSING])


def workspace_text(
    tokenizer: Tokenizer,
    drafts: Sequence[Draft],
    leading: Sequence[Draft],
    most: int,
    write: Callable[[Sequence[str]], str],
) -> str | None:
    """``write`` of all ``drafts``, each cut to the same share of ``most`` tokens; where that is too
    little to say anything, of one draft for each of the ``leading`` answers, as many as there is
    room for. None where there is room for none."""
    fewer = (leading[:count] for count in range(len(leading), 0, -1))
    for chosen in (drafts, *fewer):
        text = _fitted(tokenizer, chosen, most, write)
        if text is not None:
            return text
    return None


def _fitted(
    tokenizer: Tokenizer,
    drafts: Sequence[Draft],
    most: int,
    write: Callable[[Sequence[str]], str],
) -> str | None:
    count = len(drafts)
    share = (most - len(tokenizer.encode(write([""] * count)))) // count
    while share >= _LEAST:
        text = write([conclusion(tokenizer, draft, share) for draft in drafts])
        excess = len(tokenizer.encode(text)) - most
        if excess <= 0:
            return text
        share -= -(-excess // count)
    return None


def conclusion(tokenizer: Tokenizer, draft: Draft, most: int) -> str:
    """A draft in one line of at most ``most`` tokens: its answer, and before it as many of the last
    sentences of its thought as fit. An answer that the thought ends with is told once; of one that
    is longer than all that its end."""
    answer = " ".join(draft.answer.split())
    sentences = [" ".join(part.split()) for part in _SENTENCE_END.split(draft.thought)]
    sentences = [sentence for sentence in sentences if sentence]
    ends_with_it = sentences and _ends_with(sentences[-1], answer)
    text = sentences.pop() if ends_with_it else answer
    while sentences:
        longer = f"{sentences.pop()} {text}"
        if len(tokenizer.encode(longer)) > most:
            break
        text = longer
    return _last_tokens(tokenizer, text, most)


def _ends_with(sentence: str, answer: str) -> bool:
    said, words = sentence.rstrip(".").split(), answer.rstrip(".").split()
    return bool(words) and said[-len(words) :] == words


def _last_tokens(tokenizer: Tokenizer, text: str, most: int) -> str:
    ids = tokenizer.encode(text)
    if len(ids) <= most:
        return text
    return tokenizer.decode(ids[-most:]).lstrip("\ufffd").strip()  # no half of a character


def with_workspace(
    messages: str | Sequence[Mapping[str, Any]], text: str
) -> str | list[Mapping[str, Any]]:
    """The conversation with ``text`` under its last message, the user's; as a message of the user's
    where the last one is another's (a tool's)."""
    if isinstance(messages, str):
        return f"{messages}\n{text}"
    last: Any = messages[-1]
    if callable(getattr(last, "model_dump", None)):  # pydantic
        last = last.model_dump()
    if last["role"] != "user":
        return [*messages, {"role": "user", "content": text}]
    content = last["content"]
    if isinstance(content, str):
        content = f"{content}\n{text}"
    else:
        content = [*content, {"type": "text", "text": f"\n{text}"}]
    return [*messages[:-1], {**last, "content": content}]
