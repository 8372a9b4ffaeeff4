"""How model families write a turn, as data for the channel parser.

Sources: the families' chat templates (tests/golden names those at hand), the harmony format's
description (https://cookbook.openai.com/articles/openai-harmony), the Llama 3 and 4 prompt formats,
Google's function-calling guides for Gemma, and the model cards of LFM2 and Phi-4-mini.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

Pieces = tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Headers:
    """Markers of a turn made of channels with headers.

    ``fields``: markers inside a header. ``channels``: a header names its channel after the first of
    these (harmony); else its recipient, ``to=NAME``, says what it is (Muse). ``thought``,
    ``answer``: the channels or recipients of these kinds. ``open_thought``, ``open_answer``: what
    makes the model write one, as pieces ``(text, is_marker)`` after the generation prompt.
    """

    start: str
    message: str
    end_channel: str
    end_turn: tuple[str, ...]
    thought: str
    answer: str
    syntax: str
    open_thought: Pieces
    open_answer: Pieces
    role: str = "assistant"
    fields: tuple[str, ...] = ()
    channels: bool = False

    @property
    def markers(self) -> frozenset[str]:
        return frozenset((self.start, self.message, self.end_channel, *self.end_turn, *self.fields))


@dataclass(frozen=True)
class Tag:
    """A pair of tags around a ``thought`` or a ``tool`` call.

    ``close`` is empty where only the next call or the turn's end ends it. ``syntax`` names the
    parser of a call's text (syntaxes.py), ``inner`` the markers in it. ``lead``: text after the
    opening tag that belongs to the tag.
    """

    kind: str
    open: str
    close: str
    syntax: str = ""
    inner: tuple[str, ...] = ()
    lead: str = ""


@dataclass(frozen=True)
class Protocol:
    """One family's way: headers, or tags, or neither (then all text is the answer).

    ``trim``: characters that separate channels and belong to none of them. ``silent``: markers
    around several calls, which say nothing; ``as_text``: tokens that are pieces of longer tags.
    ``ends``: markers that end a turn besides those of the tokenizer's configuration. ``bare``: the
    forms in which an answer without tags may be calls, where the request offers tools (``json``,
    ``list``, ``fence``). ``call_ids``: how ids of calls are written; some templates want 9 letters.
    ``closing``: the words that close a thought which is cut (of Qwen3, arXiv:2505.09388, section
    4.6, where the family has none of its own).
    """

    name: str
    headers: Headers | None = None
    tags: tuple[Tag, ...] = ()
    trim: str = ""
    silent: tuple[str, ...] = ()
    as_text: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    call_ids: str = "call_{}"
    closing: str = (
        "\n\nConsidering the limited time by the user, I have to give the solution based on the "
        "thinking directly now.\n"
    )

    @property
    def markers(self) -> frozenset[str]:
        """Every marker that means something to the parser."""
        if self.headers:
            return self.headers.markers
        found = {*self.silent, *self.as_text}
        for tag in self.tags:
            found |= {tag.open, tag.close, *tag.inner}
        return frozenset(found - {""})


MUSE = Protocol(
    "muse",
    headers=Headers(
        "<|start|>",
        "<|message|>",
        "<|eom|>",
        ("<|eot|>",),
        thought="self",
        answer="user",
        syntax="atem",
        open_thought=((" to=self", False), ("<|message|>", True)),
        open_answer=((" to=user", False), ("<|message|>", True)),
    ),
    ends=("<|eot|>",),
    closing="\nTime is up. I answer with the best I have.",
)
HARMONY = Protocol(
    "harmony",
    headers=Headers(
        "<|start|>",
        "<|message|>",
        "<|end|>",
        ("<|return|>", "<|call|>"),
        thought="analysis",
        answer="user",
        syntax="harmony",
        open_thought=(("<|channel|>", True), ("analysis", False), ("<|message|>", True)),
        open_answer=(("<|channel|>", True), ("final", False), ("<|message|>", True)),
        fields=("<|channel|>", "<|constrain|>"),
        channels=True,
    ),
    ends=("<|return|>", "<|call|>"),
)
PLAIN = Protocol("plain")

# ---- how families mark thoughts: the tag, by name ----------------------------------------------

THOUGHTS: dict[str, Tag] = {
    "think": Tag("thought", "<think>", "</think>"),
    "seed-think": Tag("thought", "<seed:think>", "</seed:think>"),
    "bracket-think": Tag("thought", "[THINK]", "[/THINK]"),
    "command-think": Tag("thought", "<|START_THINKING|>", "<|END_THINKING|>"),
    "gemma-think": Tag("thought", "<|channel>", "<channel|>", lead="thought\n"),
    "apertus-think": Tag("thought", "<|inner_prefix|>", "<|inner_suffix|>"),
}

# ---- how families write calls: a protocol without thoughts, by name ----------------------------


def _calls(name: str, open_: str, close: str, syntax: str, *inner: str, **more: object) -> Protocol:
    tag = Tag("tool", open_, close, syntax, inner)
    return replace(Protocol(name, tags=(tag,), trim="\n"), **more)


CALLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        _calls("hermes", "<tool_call>", "</tool_call>", "json"),
        _calls("xml", "<tool_call>", "</tool_call>", "xml"),
        _calls(
            "glm",
            *("<tool_call>", "</tool_call>", "glm"),
            *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
        ),
        _calls("seed", "<seed:tool_call>", "</seed:tool_call>", "xml"),
        _calls(
            "mistral", "[TOOL_CALLS]", "", "mistral", "[ARGS]", "[CALL_ID]", call_ids="call{:05d}"
        ),
        _calls(
            "deepseek",
            *("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "deepseek", "<｜tool▁sep｜>"),
            silent=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
        ),
        _calls(
            "dsml",
            "<｜DSML｜function_calls>",
            "</｜DSML｜function_calls>",
            "dsml",
            as_text=("｜DSML｜",),
        ),
        _calls(
            "dsml-4",
            *("<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>", "dsml"),
            as_text=("｜DSML｜",),
        ),
        _calls(
            "kimi",
            *("<|tool_call_begin|>", "<|tool_call_end|>", "kimi", "<|tool_call_argument_begin|>"),
            silent=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        ),
        _calls(
            "command",
            *("<|START_ACTION|>", "<|END_ACTION|>", "json"),
            silent=("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
        ),
        _calls("phi4", "<|tool_call|>", "<|/tool_call|>", "json"),
        _calls("granite", "<|tool_call|>", "", "json"),
        _calls("lfm2", "<|tool_call_start|>", "<|tool_call_end|>", "code"),
        _calls("apertus", "<|tools_prefix|>", "<|tools_suffix|>", "keyed"),
        _calls("gemma-4", "<|tool_call>", "<tool_call|>", "gemma", '<|"|>', ends=("<turn|>",)),
        _calls(
            "function-gemma",
            *("<start_function_call>", "<end_function_call>", "function-gemma", "<escape>"),
            ends=("<end_of_turn>",),
        ),
        _calls(
            "llama-3",
            *("<|python_tag|>", "", "code"),
            bare=("json", "list"),
            ends=("<|eot_id|>", "<|eom_id|>"),
        ),
        _calls(
            "llama-4",
            *("<|python_start|>", "<|python_end|>", "code"),
            bare=("json", "list"),
            ends=("<|eot|>", "<|eom|>"),
        ),
        Protocol("gemma", trim="\n", ends=("<end_of_turn>",), bare=("json", "list", "fence")),
    )
}


def compose(thoughts: str | None, calls: str | None) -> Protocol:
    """The protocol of a family that marks thoughts and calls so; None for neither."""
    base = CALLS[calls] if calls else PLAIN
    if thoughts is None:
        return base
    name = f"{thoughts}+{calls}" if calls else thoughts
    return replace(base, name=name, tags=(THOUGHTS[thoughts], *base.tags), trim="\n")


PROTOCOLS: dict[str, Protocol] = {
    p.name: p
    for p in (
        MUSE,
        HARMONY,
        PLAIN,
        *CALLS.values(),
        *(compose(thoughts, calls) for thoughts in THOUGHTS for calls in (None, *CALLS)),
    )
}
