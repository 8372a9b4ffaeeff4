"""A model's turn as a stream of events: thoughts, answers, tool calls.

    parser = ChannelParser.for_prompt(protocol, tokenizer, prompt_ids, tools=tools)
    for token_id in generated:
        for event in parser.push(token_id): ...
    for event in parser.finish(): ...
    parser.turn.content, parser.turn.reasoning, parser.turn.tool_calls

Markers are recognised by token id; text that merely spells one stays text. Only where a family's
tags are no tokens of the vocabulary are they looked for in the text: one pair of think tags at the
beginning of the turn, and tags of calls where the request offers tools. The events depend on the
sequence of ids (or of characters) alone, not on how it was cut into calls.

Nothing is lost. Truncation anywhere keeps what was there: the text of a thought or answer is text,
a call that does not read as one (cut short or malformed) is a :class:`ToolCallError` with all of
its text, which results show as ``malformed_tool_calls``; what has no place in the protocol is a
:class:`ProtocolError`. Calls that come without tags (Llama, Gemma) are calls only where the whole
answer reads as calls to tools on offer; else it stays the answer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from musespark.errors import InvalidRequest
from musespark.text.events import (
    ANSWER,
    SEPARATOR,
    THOUGHT,
    TOOL,
    ChannelEnd,
    ChannelStart,
    Event,
    ProtocolError,
    Text,
    Turn,
    TurnEnd,
)
from musespark.text.machine import Machine
from musespark.text.machine_headers import HeaderMachine, read_header
from musespark.text.machine_tags import TagMachine
from musespark.text.protocols import Protocol
from musespark.text.syntaxes import CallReader
from musespark.text.tokenizer import Tokenizer

__all__ = [
    "ANSWER",
    "SEPARATOR",
    "THOUGHT",
    "TOOL",
    "ChannelEnd",
    "ChannelParser",
    "ChannelStart",
    "Event",
    "ProtocolError",
    "Text",
    "Turn",
    "TurnEnd",
]


class ChannelParser:
    """Generated ids (or plain text) in, events out; see the module's docstring.

    ``tokenizer``: None where the output comes as text without ids (:meth:`push_text`); then every
    marker is looked for in the text. ``opened``: the kind of the channel that the prompt left open,
    if any; ``header``: the header text after the prompt's last start marker (protocols with
    headers). ``known_calls``: ids of the calls so far, so that those of new ones (``call_<n>``,
    where the model gives none itself) stay unique in a conversation. ``ends``: ids that end the
    turn beside those of protocol and configuration.
    """

    def __init__(
        self,
        protocol: Protocol,
        tokenizer: Tokenizer | None,
        *,
        tools: Iterable[Mapping[str, Any]] | None = None,
        opened: str | None = None,
        header: str | None = None,
        known_calls: Collection[str] = (),
        ends: Iterable[int] = (),
    ):
        self.protocol, self.turn = protocol, Turn()
        self._tokenizer = tokenizer
        self._decoder = tokenizer.stream(continuing=True) if tokenizer else None
        known = tokenizer.markers if tokenizer else {}
        spelled = spelled_markers(protocol, known.keys())
        calls = CallReader(tools, protocol.call_ids, known_calls)
        if protocol.headers:
            header = protocol.headers.role if header is None else header
            self._machine: Machine = HeaderMachine(
                protocol.headers, opened, header, protocol, calls, spelled
            )
        else:
            self._machine = TagMachine(opened, protocol, calls, spelled)
        self._names = {known[n]: n for n in protocol.markers - spelled if n in known}
        ends = {*ends, *(known[n] for n in protocol.ends if n in known)}
        ends |= {*tokenizer.eos_ids} if tokenizer else set()
        self._ends = frozenset(ends - self._names.keys())
        special = tokenizer.special_ids if tokenizer else frozenset()
        self._marks = self._ends | special | self._names.keys()  # ids that are no text
        self._spells = bool(spelled)
        self._pending_tokens = 0

    @classmethod
    def for_prompt(
        cls,
        protocol: Protocol,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        *,
        tools: Iterable[Mapping[str, Any]] | None = None,
        known_calls: Collection[str] = (),
        ends: Iterable[int] = (),
        continuing: bool = False,
    ) -> ChannelParser:
        """A parser for what follows these prompt ids: an open thought or header is continued, or
        (``continuing``) the answer that the prompt ends with."""
        opened, header = opened_by(protocol, tokenizer, prompt)
        if continuing and not protocol.headers:
            opened = ANSWER
        given = {"tools": tools, "known_calls": known_calls, "ends": ends}
        return cls(protocol, tokenizer, opened=opened, header=header, **given)

    @property
    def kind(self) -> str | None:
        """Of the channel that is open; None between channels."""
        return self._machine.kind

    def is_text(self, token_id: int) -> bool:
        """Whether an id is text, and no marker."""
        return token_id not in self._marks

    def run_length(self, ids: Sequence[int], start: int) -> int:
        """How many of these ids, from ``start`` on, may be given to :meth:`push_run`: text of the
        channel that is open and stays so, since every marker is an id. Else 1, for
        :meth:`push`."""
        if self._spells or self.kind is None:
            return 1
        end = start
        while end < len(ids) and ids[end] not in self._marks:
            end += 1
        return max(1, end - start)

    def push(self, token_id: int) -> list[Event]:
        """The events of one generated id. Raises InvalidRequest for an id out of range."""
        if self._tokenizer is None or self._decoder is None:
            raise InvalidRequest("this parser was made without a tokenizer; use push_text()")
        if self.is_text(token_id):
            text = self._decoder.push(token_id)
            if text:
                self._machine.take(text)
            return self._drain(1)
        name = self._names.get(token_id)
        rest = self._decoder.flush()
        if rest:
            self._machine.take(rest)
        if name in self.protocol.as_text:
            self._machine.take(name)
        elif name is not None:
            self._machine.mark(name)
        elif token_id in self._ends:
            self._machine.end_turn()
        else:
            self._machine.error(
                self._tokenizer.token(token_id), "a special token without a meaning here"
            )
        return self._drain(1)

    def push_run(self, ids: Sequence[int]) -> list[Event]:
        """The events of ids that are text and change no channel; see :meth:`run_length`."""
        assert self._decoder is not None  # run_length has been asked of ids
        text = self._decoder.push_run(ids)
        if text:
            self._machine.take(text)
        return self._drain(len(ids))

    def push_text(self, text: str) -> list[Event]:
        """The events of text that came without ids. With a tokenizer it contains no markers but
        those that are no tokens of it; without one, all that it spells."""
        self._machine.take(text)
        return self._drain(0)

    def finish(self) -> list[Event]:
        """The last events, of a turn that ends here: cut, unless the model ended it."""
        rest = self._decoder.flush() if self._decoder else ""
        if rest:
            self._machine.take(rest)
        self.turn.open_kind = self._machine.kind or self.turn.open_kind
        self._machine.finish()
        return self._drain(0)

    def _drain(self, tokens: int) -> list[Event]:
        machine, turn = self._machine, self.turn
        events, machine.out = machine.out, []
        was_thought = machine.kind == THOUGHT
        for event in events:
            turn.add(event)
            was_thought |= isinstance(event, ChannelEnd) and event.kind == THOUGHT
        self._pending_tokens += tokens
        if was_thought:
            turn.reasoning_tokens += self._pending_tokens
        if was_thought or machine.kind is not None:
            self._pending_tokens = 0
        return events


def spelled_markers(protocol: Protocol, known: Iterable[str]) -> frozenset[str]:
    """The protocol's markers that are to be looked for in the text: those that are no tokens, and
    the other half of a pair of which one is none."""
    missing = set(protocol.markers) - set(known)
    for tag in protocol.tags:
        if missing & {tag.open, tag.close}:
            missing |= {tag.open, tag.close}
    return frozenset(missing - {"", *protocol.as_text})


def opened_by(
    protocol: Protocol, tokenizer: Tokenizer, prompt: Sequence[int]
) -> tuple[str | None, str | None]:
    """What a prompt leaves open: (kind of the open channel or None, open header or None)."""
    if protocol.headers:
        start, message = (
            tokenizer.markers[m] for m in (protocol.headers.start, protocol.headers.message)
        )
        ids = list(prompt)
        if start not in ids:
            return None, None
        tail = ids[len(ids) - ids[::-1].index(start) :]
        if message not in tail:
            return None, tokenizer.decode(tail, continuing=True)
        header = tokenizer.decode(tail[: tail.index(message)], continuing=True)
        return read_header(protocol.headers, header)[0], None
    for tag in protocol.tags:
        if tag.kind == THOUGHT:
            tail = tokenizer.decode(prompt[-2 * len(tag.open) - 8 :], continuing=True)
            if tail.rstrip().endswith((tag.open, (tag.open + tag.lead).rstrip())):
                return THOUGHT, None
    return None, None
