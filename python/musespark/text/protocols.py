"""How model families write a turn, as data for the channel parser.

Sources: the Muse Glimmer chat template (``<|start|>assistant to=self<|message|>…<|eom|>``); the
Qwen3 and DeepSeek-R1 templates and model cards for ``<think>``; the Mistral reasoning and Seed-OSS
templates for the other tags.
"""

from __future__ import annotations

from dataclasses import dataclass

from musespark.text.template import ChatTemplate
from musespark.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Headers:
    """Markers of a turn made of channels with headers (``assistant to=RECIPIENT``)."""

    start: str
    message: str
    end_channel: str
    end_turn: str
    role: str = "assistant"
    thought: str = "self"  # the recipient of thoughts
    answer: str = "user"  # the recipient of answers; any other one is a tool


@dataclass(frozen=True)
class Tag:
    """A pair of tags around a ``thought`` or a ``tool`` call."""

    kind: str
    open: str
    close: str


@dataclass(frozen=True)
class Protocol:
    """One family's way: headers, or tags, or neither (then all text is the answer).

    ``tool_syntax`` names the parser of a tool channel's text (toolcalls.py). ``trim``: characters
    that separate channels and belong to none of them.
    """

    name: str
    headers: Headers | None = None
    tags: tuple[Tag, ...] = ()
    tool_syntax: str = "json"
    trim: str = ""


MUSE = Protocol(
    "muse",
    headers=Headers("<|start|>", "<|message|>", "<|eom|>", "<|eot|>"),
    tool_syntax="atem",
)
_CALL = Tag("tool", "<tool_call>", "</tool_call>")
THINK = Protocol("think", tags=(Tag("thought", "<think>", "</think>"), _CALL), trim="\n")
SEED_THINK = Protocol(
    "seed-think", tags=(Tag("thought", "<seed:think>", "</seed:think>"),), trim="\n"
)
BRACKET_THINK = Protocol("bracket-think", tags=(Tag("thought", "[THINK]", "[/THINK]"),), trim="\n")
TOOL_TAGS = Protocol("tool-tags", tags=(_CALL,), trim="\n")
PLAIN = Protocol("plain")

PROTOCOLS = {p.name: p for p in (MUSE, THINK, SEED_THINK, BRACKET_THINK, TOOL_TAGS, PLAIN)}


def detect_protocol(tokenizer: Tokenizer, template: ChatTemplate | str | None) -> Protocol:
    """The protocol of a model, from its markers and its template (PLAIN where nothing fits)."""
    source = template.source if isinstance(template, ChatTemplate) else template or ""
    muse = MUSE.headers
    if all(
        m in tokenizer.markers for m in (muse.start, muse.message, muse.end_channel, muse.end_turn)
    ):
        return MUSE
    for protocol in (THINK, SEED_THINK, BRACKET_THINK):
        # The closing tag: some templates write the opening one themselves, others leave it away.
        if protocol.tags[0].close in source:
            return protocol
    if TOOL_TAGS.tags[0].open in source and TOOL_TAGS.tags[0].open in tokenizer.markers:
        return TOOL_TAGS
    return PLAIN
