"""Instructions in what tools give back: found by their wording, so that they are seen.

What a tool gives is data. Markers in it are text by construction (the template's own markers alone
become tokens); that a model follows words in it cannot be ruled out by any wording. So a flag is a
warning for whoever approves calls, not a defence, and what has no flag is not proven harmless
(indirect prompt injection: Greshake et al., arXiv:2302.12173).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

_ORDERS = r"(?:instruction|prompt|rule|direction|guideline|message|task)s?"
_PATTERNS: dict[str, str] = {
    "overrides instructions": (
        rf"\b(?:ignore|disregard|forget|override|skip)\b[^.\n]{{0,40}}?\b{_ORDERS}\b"
    ),
    "changes the role": r"\b(?:you are now|from now on,? you|pretend (?:to be|you)|act as if)\b",
    "asks for secrecy": (
        r"\b(?:do not|don't|never|without) (?:tell|telling|inform|mention|show|reveal|ask)\w*"
        r"[^.\n]{0,20}\b(?:user|anyone|human|owner)\b"
    ),
    "speaks to the model": (
        r"\b(?:assistant|AI|language model|agent|LLM|chatbot)\b\s*[:,]\s*(?:you|please|now|must|"
        r"ignore|call|send|do)\b"
    ),
    "speaks of the system prompt": r"\b(?:system prompt|system message|new instructions?)\b",
    "imitates markers": (
        r"<\|[\w|]{2,30}\|>|</?tool_(?:call|output|response)s?\b|</?(?:atem|｜DSML｜):?\w*|\[/?INST\]"
    ),
}
_COMPILED = {reason: re.compile(text, re.IGNORECASE) for reason, text in _PATTERNS.items()}
_SHOWN = 120  # characters of an excerpt


@dataclass(frozen=True)
class Flag:
    """What looks like an instruction: why, its place in the text in characters, and an excerpt."""

    reason: str
    at: int
    excerpt: str


def flags_of(
    text: str, tools: Iterable[str] = (), markers: Collection[str] = ()
) -> tuple[Flag, ...]:
    """The first of each kind in a text, by place. ``tools``: names that it must not say to call;
    ``markers``: of the model."""
    patterns = dict(_COMPILED)
    names = "|".join(re.escape(name) for name in tools)
    if names:
        patterns["asks for a call"] = re.compile(
            rf"\b(?:call|use|run|invoke|execute)\b[^.\n]{{0,30}}?\b(?:{names})\b|\b(?:{names})\s*\(",
            re.IGNORECASE,
        )
    found = [
        Flag(reason, match.start(), _excerpt(text, match.start()))
        for reason, pattern in patterns.items()
        if (match := pattern.search(text))
    ]
    known = min((at for at in map(text.find, markers) if at >= 0), default=None)
    if known is not None and not any(flag.reason == "imitates markers" for flag in found):
        found.append(Flag("imitates markers", known, _excerpt(text, known)))
    return tuple(sorted(found, key=lambda flag: flag.at))


def _excerpt(text: str, at: int) -> str:
    line = text[at : at + _SHOWN].partition("\n")[0]
    return " ".join(line.split())
