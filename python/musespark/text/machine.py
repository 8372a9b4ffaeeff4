"""The state of a turn: which channel is open and what belongs to it.

A machine takes text and markers in order and gives events. Markers come as ids, or, where they are
no tokens of the vocabulary (or there are no ids at all), are found in the text.
"""

from __future__ import annotations

from collections.abc import Collection

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
    TurnEnd,
)
from musespark.text.protocols import Protocol
from musespark.text.spelling import first_of, overlap
from musespark.text.syntaxes import CallReader
from musespark.text.toolcalls import Raw

FOREIGN = "foreign"  # a channel of a role that is not the assistant's
MOST_HELD = 256  # separators beside a channel that are waited with; what is more belongs to it


class Machine:
    """The open channel and the events it gives; the two kinds of protocols drive it.

    ``spelled``: the protocol's markers that are looked for in the text.
    """

    def __init__(self, protocol: Protocol, calls: CallReader, spelled: frozenset[str]):
        self.protocol, self._calls, self._spelled = protocol, calls, spelled
        self.out: list[Event] = []
        self.kind: str | None = None
        self._recipient: str | None = None
        self._syntax = protocol.headers.syntax if protocol.headers else ""
        self._after_tool = False  # a tool channel of this turn was closed
        self._raw: list[str] = []  # of a tool or foreign channel
        self._raw_length = 0
        self._marks: dict[str, list[int]] = {}  # of a tool channel: where its inner markers came
        self._written = {THOUGHT: False, ANSWER: False}  # has a channel of this kind had text?
        self._fresh = self._trim_start = False
        self._held: list[str] = []  # trailing separators of a thought
        self._held_length = 0
        self._pending = ""  # text that may turn out to be a marker

    # ---- what comes in ------------------------------------------------------------------------

    def take(self, text: str) -> None:
        """Text of any length; markers spelled in it are found where they would mean something."""
        text, self._pending = self._pending + text, ""
        while text:
            if self.undecided(text):
                self._pending = text
                return
            names = self.awaited(text)
            at, name = first_of(text, names)
            if name is None:
                keep = overlap(text, names) if names else 0
                self._pending = text[len(text) - keep :]
                text = text[: len(text) - keep]
                if text:
                    self.text(text)
                return
            if at and not self.leads(text[:at], name):
                self.text(text[:at])
            self.marker(name)
            text = text[at + len(name) :]

    def mark(self, marker: str) -> None:
        """A marker that came as an id."""
        self.release()
        self.marker(marker)

    def release(self) -> None:
        """What was held back is no marker."""
        text, self._pending = self._pending, ""
        if text:
            self.text(text)

    def finish(self) -> None:
        """Nothing more comes: the turn was cut."""
        self.release()
        self.leave(cut=True)

    def end_turn(self) -> None:
        """The model ended the turn."""
        self.release()
        self.leave()
        self.out.append(TurnEnd())

    # ---- channels -----------------------------------------------------------------------------

    def open(self, kind: str, recipient: str | None = None, *, trim_start: bool = False) -> None:
        self.kind, self._recipient = kind, recipient
        self._fresh, self._trim_start = True, trim_start
        if kind != FOREIGN:
            self.out.append(ChannelStart(kind, recipient))

    def write(self, text: str) -> None:
        if self.kind in (TOOL, FOREIGN):
            self._raw.append(text)
            self._raw_length += len(text)
            if text and self.kind == TOOL:
                self.out.append(Text(TOOL, text))
            return
        trim = self.protocol.trim
        if self._trim_start:
            text = text.lstrip(trim)
            self._trim_start = not text
        if self.kind == THOUGHT and trim:
            text = self._hold_separators(text)
        if not text:
            return
        if self._fresh and self._written[self.kind]:
            text = SEPARATOR + text
        self._fresh, self._written[self.kind] = False, True
        self.out.append(Text(self.kind, text))

    def _hold_separators(self, text: str) -> str:
        """What is certain of a thought's text; its last separators wait for more, up to a limit."""
        separators = len(text) - len(text.rstrip(self.protocol.trim))
        if separators == len(text):
            self._held.append(text)
            self._held_length += separators
            # Let go in lumps, so that not every piece is copied again.
            return self._let_go() if self._held_length > 2 * MOST_HELD else ""
        self._held_length = min(separators, MOST_HELD)
        split = len(text) - self._held_length
        before, self._held = self._held, [text[split:]]
        return "".join([*before, text[:split]])

    def _let_go(self) -> str:
        """All held separators but the last, which may still be the thought's end."""
        held = "".join(self._held)
        self._held, self._held_length = [held[-MOST_HELD:]], min(len(held), MOST_HELD)
        return held[:-MOST_HELD]

    def write_mark(self, marker: str) -> None:
        """A marker inside a tool channel, as the syntax of its calls has it."""
        self._marks.setdefault(marker, []).append(self._raw_length)
        self.write(marker)

    def close(self, *, cut: bool = False, closed: bool = False) -> None:
        """End the open channel, if any. ``cut``: it keeps its trailing separators (else it loses
        MOST_HELD of them at most); ``closed``: by its own closing marker."""
        kind, raw = self.kind, "".join(self._raw)
        if kind is None:
            return
        if kind == TOOL:
            self._after_tool = True
            known = {name: self._marks.get(name, []) for name in self.inner() - self._spelled}
            text = Raw.of(raw, known)
            self.out += self._calls.read(self._syntax, text, self._recipient, closed=closed)
        elif kind == FOREIGN:
            self.error(raw, "text of another role")
        elif held := "".join(self._held) if cut else self._let_go():
            self.out.append(Text(kind, held))
        self._held, self._held_length = [], 0
        self._raw, self._raw_length, self._marks = [], 0, {}
        self.kind = None
        if kind != FOREIGN:
            self.out.append(ChannelEnd(kind))

    def error(self, raw: str, reason: str) -> None:
        self.out.append(ProtocolError(raw, reason))

    # ---- what a kind of protocol adds -----------------------------------------------------------

    def text(self, text: str) -> None:
        """Text without markers."""
        raise NotImplementedError

    def marker(self, marker: str) -> None:
        """A marker of the protocol."""
        raise NotImplementedError

    def leave(self, *, cut: bool = False) -> None:
        """Whatever is open ends."""
        raise NotImplementedError

    def inner(self) -> frozenset[str]:
        """The markers that are part of an open tool channel's text."""
        return frozenset()

    def awaited(self, text: str) -> Collection[str]:
        """The spelled markers that would mean something at the beginning of this text."""
        return self._spelled

    def undecided(self, text: str) -> bool:
        """Whether all of this text may still be the beginning of something."""
        return False

    def leads(self, text: str, marker: str) -> bool:
        """Whether this text before a marker is nothing but its lead."""
        return False
